"""Five frames through a node, in whatever surroundings this is started: ``python segment_five.py BUNDLE FOLDER``.

Prints ``{"answered": 5}`` when each got its mask; the node's log comes into the folder. Imports no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ros_graph import Graph


def picture(seed=0):
    """Noise, (60, 80, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)


def send_until_one_is_answered(graph, camera, masks):
    """Both sides may know of each other at different moments; what is sent between is lost."""

    def answered():
        camera.send(camera.message(picture()))
        graph.spin_for(0.05)
        return masks

    graph.spin_until(answered, "a mask")
    count = 0
    while count < len(masks):  # until no further of these frames is answered
        count = len(masks)
        graph.spin_for(1.0)


def segment(graph, camera, masks, rgb):
    """Send a frame and wait for the mask with its header."""
    sent = camera.send(camera.message(rgb))
    graph.spin_until(lambda: sent.header in [mask.header for mask in masks], f"the mask of {sent.header.frame_id}")


def main():
    bundle, folder = map(Path, sys.argv[1:])
    graph = Graph(folder)
    try:
        graph.start_node(bundle=bundle)
        camera, masks = graph.camera(), graph.listen("segmentation/mask")
        send_until_one_is_answered(graph, camera, masks)
        for seed in range(5):
            segment(graph, camera, masks, picture(seed))
    finally:
        graph.close()
    print(json.dumps({"answered": 5}))


if __name__ == "__main__":
    main()
