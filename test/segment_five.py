"""Sends five frames through a node, in the environment that starts this: ``python segment_five.py BUNDLE FOLDER``.

Prints ``{"answered": 5}`` when each frame has its mask. The node's log is written into the folder. Imports no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ros_graph import Graph


def picture(seed=0):
    """Generate a noise image, (60, 80, 3) uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)


def send_until_one_is_answered(graph, camera, masks):
    """Send until a mask comes: the two sides discover each other at different times, and frames between are lost."""

    def answered():
        camera.send(camera.message(picture()))
        graph.spin_for(0.05)
        return masks

    graph.spin_until(answered, "a mask")
    count = 0
    while count < len(masks):  # until no more masks of these frames come
        count = len(masks)
        graph.spin_for(1.0)


def segment(graph, camera, masks, rgb):
    """Send a frame, and wait for the mask that has its header."""
    sent = camera.message(rgb)
    what = f"the mask of {sent.header.frame_id}"
    camera.send_until(sent, lambda: sent.header in [mask.header for mask in masks], what)


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
