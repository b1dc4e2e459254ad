"""Cameras of either reliability, with and without the package's profile of Fast DDS: which masks come, and how late.

    python benchmarks/reliable_cameras.py
    python benchmarks/reliable_cameras.py --node slow --reliability reliable --profile none

The camera sends 120 images at 15 Hz. A slow node needs longer for a frame than the camera; a stopped one is halted by
SIGSTOP after its first masks. The camera must keep its rate beside both: ``publish_ms`` says how long its calls took.
With --checkout the node runs from another checkout, so that two versions are compared by one script.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from streams import DEMO, Cameras, Graph, Masks, Usage, export_demo, per_second, summary_ms

_RATE_HZ, _SECONDS = 15.0, 8.0
_SIZES = ("640x480", "1280x720", "1920x1080")
# Of a node that is too slow for 15 Hz: a frame takes it about 0.2 s on one thread of a small processor.
_SLOW_NETWORK = (672, 896)
_RUN_CHECKOUT = (
    "import sys, runpy; sys.path.insert(0, {!r}); runpy.run_module('dinov3_seg_ros.node', run_name='__main__')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=_SIZES, metavar="WIDTHxHEIGHT", help="of the images")
    parser.add_argument("--reliability", nargs="+", default=("reliable", "best_effort"), help="that the camera offers")
    parser.add_argument("--profile", nargs="+", default=("none", "ours"), help="of the camera's process")
    parser.add_argument("--node", choices=("fast", "slow", "stopped"), default="fast")
    parser.add_argument("--checkout", type=Path, help="run the node from it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_demo(Path(folder) / "bundles", _SLOW_NETWORK)[0] if options.node == "slow" else DEMO
        cases = itertools.product(options.reliability, options.profile, options.size)
        for number, (reliability, profile, size) in enumerate(cases):
            logs = Path(folder) / str(number)
            logs.mkdir()
            with contextlib.closing(Graph(logs)) as graph:
                row = {"reliability": reliability, "profile": profile, "size": size, "node": options.node}
                print(json.dumps(row | measure(graph, bundle, row, options.checkout)), flush=True)


def measure(graph: Graph, bundle: Path, case: dict[str, str], checkout: Path | None) -> dict[str, Any]:
    """Run one stream; return what was sent and what came, with latency, the node's processor time and publish times."""
    program = ("-m", "dinov3_seg_ros.node") if checkout is None else ("-c", _RUN_CHECKOUT.format(str(checkout)))
    node = graph.start_node(program=program, bundle=bundle.resolve(), mask_size="network", threads=1)
    masks = Masks(graph, ["segmentation/mask"])
    width, height = map(int, case["size"].split("x"))
    reliable, profile = case["reliability"] == "reliable", case["profile"] == "ours"
    cameras = Cameras(graph, ["image"], (height, width), reliable, profile)
    try:
        cameras.run(_RATE_HZ, 2.0)
        masks.take()
        usage = Usage([node])
        if case["node"] == "stopped":
            node.process.send_signal(signal.SIGSTOP)
        stream = cameras.run(_RATE_HZ, _SECONDS)
        cores = usage.cores()
        delays = masks.take()["segmentation/mask"]
        sent = stream["sent"]["image"] - 1
        return {
            "sent": sent,
            "sent_hz": round(per_second(sent + 1, stream), 2),
            "masks": max(len(delays) - 1, 0),
            "latency_ms": summary_ms(delays),
            "node_cores": round(cores, 2),
            "publish_ms": stream["publish_ms"],
        }
    finally:
        node.process.send_signal(signal.SIGCONT)
        cameras.close()


if __name__ == "__main__":
    main()
