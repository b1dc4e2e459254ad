"""Measure memory, threads and open files of one node over many lifecycles.

    python benchmarks/lifecycle.py --cycles 200

Each cycle is configure, activate, deactivate, cleanup. A frame is segmented in each, so everything is in use when it is
released.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "test"))

from ros_graph import Graph  # noqa: E402

from dinov3_seg_ros.support.resources import resource_path  # noqa: E402

_NAMES = ("memory_kb", "threads", "files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--bundle", type=Path, default=resource_path("weights/demo"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Graph(Path(folder))) as graph:
        measure(graph, options)


def measure(graph: Graph, options: argparse.Namespace) -> None:
    node = graph.start_node(bundle=options.bundle.resolve(), autostart=False)
    process = psutil.Process(node.process.pid)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    frame, used = np.zeros((120, 160, 3), np.uint8), []
    for cycle in range(1, options.cycles + 1):
        for transition in ("configure", "activate"):
            assert node.change_state(transition), node.log
        camera.wait_for_subscriber()
        camera.send_until_answered(camera.message(frame), masks)
        masks.clear()
        for transition in ("deactivate", "cleanup"):
            assert node.change_state(transition), node.log
        used.append((process.memory_info().rss >> 10, process.num_threads(), process.num_fds()))
        if cycle % 20 == 0:
            print(
                f"{cycle} cycles: {used[-1][0] >> 10} MB, {used[-1][1]} threads, {used[-1][2]} files", file=sys.stderr
            )
    # The first cycles load libraries and fill caches.
    settled, last = used[min(20, len(used) // 2)], used[-1]
    growth = {name: after - before for name, before, after in zip(_NAMES, settled, last, strict=True)}
    print(json.dumps({"cycles": options.cycles, "settled": settled, "last": last, "growth": growth}))


if __name__ == "__main__":
    main()
