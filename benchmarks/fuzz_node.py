"""Send thousands of bad images to one node, and check that it goes on.

    python benchmarks/fuzz_node.py --count 10000

After every five bad images the node must answer a good one. The script stops with the node's log at the first that it
does not answer; at the end it prints the counts of /diagnostics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "test"))

from fuzzing import fuzz  # noqa: E402
from ros_graph import Graph  # noqa: E402

from dinov3_seg_ros.support.resources import resource_path  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="bad images for each transport")
    parser.add_argument("--bundle", type=Path, default=resource_path("weights/demo"))
    options = parser.parse_args()
    for transport in ("raw", "compressed"):
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(Graph(Path(folder))) as graph:
            report(graph, transport, options)


def report(graph: Graph, transport: str, options: argparse.Namespace) -> None:
    node = graph.start_node(bundle=options.bundle.resolve(), image_transport=transport)
    process, start, memory = psutil.Process(node.process.pid), time.monotonic(), []

    def progress(done: int) -> None:
        if done % 500 == 0:
            memory.append(process.memory_info().rss >> 20)
            print(f"{transport}: {done} sent, {memory[-1]} MB", file=sys.stderr, flush=True)

    counts = fuzz(graph, transport, options.count, progress)
    assert node.process.poll() is None
    print(
        json.dumps(
            {
                "transport": transport,
                "bad_images": options.count,
                "seconds": round(time.monotonic() - start),
                "memory_mb": memory[:1] + memory[-1:],
                "tracebacks": node.log.count("Traceback"),
                **counts,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
