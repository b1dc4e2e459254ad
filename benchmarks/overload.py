"""Send the node five times as many frames as it can process.

    python benchmarks/overload.py --minutes 10

The script first measures the capacity: masks per second while frames arrive at twice the rate of single frames. Then it
sends the load, and summarises each window of it. Each frame that was sent must appear in /diagnostics: as segmented, as
dropped under a cause, or as dropped by the transport. A frame time is 1 / capacity.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from streams import Cameras, Counts, Graph, Masks, Usage, account, export_demo, per_second, summary_ms

_CAPACITY_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--window", type=float, default=30.0, help="length of each window, seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--times", type=float, default=5.0, help="the load as a multiple of the capacity (default: %(default)s)"
    )
    parser.add_argument(
        "--frame", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of the images"
    )
    parser.add_argument(
        "--network-size",
        type=int,
        nargs=2,
        default=(448, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="of a copy of the demo's bundle",
    )
    parser.add_argument("--bundle", type=Path, help="an exported bundle, instead of that copy")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of the node; the camera needs a core too (default: %(default)s)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or export_demo(Path(folder) / "bundles", tuple(options.network_size))[0]
        with contextlib.closing(Graph(Path(folder))) as graph:
            print(json.dumps(measure(graph, bundle.resolve(), options), indent=2))


def measure(graph: Graph, bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the capacity, then send the load; return where the frames went, latency and memory."""
    node = graph.start_node(bundle=bundle, threads=options.threads)
    masks, counts = Masks(graph, ["segmentation/mask"]), Counts(graph, "segmentation: camera")
    with contextlib.closing(Cameras(graph, ["image"], tuple(options.frame))) as cameras:
        capacity = find_capacity(cameras, masks)
        frame_ms = 1000 / capacity
        print(f"capacity {capacity:.1f} frames per second, a frame time is {frame_ms:.1f} ms", file=sys.stderr)
        before, windows, sent, every, used = counts.read(), [], 0, [], {}
        while sum(window["seconds"] for window in windows) < 60 * options.minutes:
            usage = Usage([node])

            def use(usage: Usage = usage) -> None:
                # Read within the stream: the pause after it must not count.
                used.update(cores=round(usage.cores(), 2), memory_mb=usage.memory_mb())

            load = options.times * capacity
            stream = cameras.run(load, options.window, every=(0.99 * options.window, use))
            delays = masks.take()["segmentation/mask"]
            sent += stream["sent"]["image"]
            every += delays
            window = {
                "seconds": round(stream["seconds"], 2),
                "sent_hz": round(per_second(stream["sent"]["image"], stream), 1),
                "published_hz": round(per_second(len(delays), stream), 1),
                "latency_ms": summary_ms(delays),
                "over_two_frame_times": sum(1000 * delay > 2 * frame_ms for delay in delays),
                **used,
            }
            windows.append(window)
            print(json.dumps(window), file=sys.stderr, flush=True)
        return {
            "capacity_hz": round(capacity, 2),
            "two_frame_times_ms": round(2 * frame_ms, 1),
            "latency_ms": summary_ms(every),
            "over_two_frame_times": sum(window["over_two_frame_times"] for window in windows),
            "published": len(every),
            "frames": account(sent, before, counts.read()),
            "memory_growth_percent": growth_percent([window["memory_mb"] for window in windows]),
            "windows": windows,
        }


def find_capacity(cameras: Cameras, masks: Masks) -> float:
    """Measure the masks per second of a node that always has a frame waiting."""
    cameras.run(2.0, 5.0)
    alone_s = sorted(masks.take()["segmentation/mask"])
    stream = cameras.run(2.0 / alone_s[len(alone_s) // 2], _CAPACITY_S)
    return per_second(len(masks.take()["segmentation/mask"]), stream)


def growth_percent(memory_mb: list[dict[str, float]]) -> dict[str, float]:
    """Return by how much memory of the last window exceeds that of the first, percent."""
    return {kind: round(100 * (last / memory_mb[0][kind] - 1), 2) for kind, last in memory_mb[-1].items()}


if __name__ == "__main__":
    main()
