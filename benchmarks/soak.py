"""Send a steady stream through the node, and watch its memory.

    python benchmarks/soak.py --minutes 30

Mask, confidence, overlay and compressed overlay are subscribed to. Memory, threads and open files are sampled
throughout. The result is their growth after the first minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sensor_msgs.msg import CompressedImage
from streams import DEMO, Cameras, Counts, Graph, Masks, Usage, account, summary_ms

_SETTLING_S = 60.0
_SAMPLES_COMPARED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second (default: %(default)s)")
    parser.add_argument("--sample", type=float, default=10.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument(
        "--frame", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of the images"
    )
    parser.add_argument("--bundle", type=Path, default=DEMO)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Graph(Path(folder))) as graph:
        print(json.dumps(measure(graph, options), indent=2))


def measure(graph: Graph, options: argparse.Namespace) -> dict[str, Any]:
    """Run the stream; return where the frames went, latency, processor time and growth."""
    node = graph.start_node(bundle=options.bundle.resolve())
    masks = Masks(graph, [f"segmentation/{name}" for name in ("mask", "confidence", "overlay")])
    jpegs = Masks(graph, ["segmentation/overlay/compressed"], CompressedImage)
    counts = Counts(graph, "segmentation: camera")
    with contextlib.closing(Cameras(graph, ["image"], tuple(options.frame))) as cameras:
        cameras.run(options.rate, 2.0)
        before, usage, samples, start = counts.read(), Usage([node]), [], time.monotonic()
        masks.take(), jpegs.take()

        def sample() -> None:
            samples.append({"second": round(time.monotonic() - start), **usage.memory_mb(), **usage.handles()})
            print(json.dumps(samples[-1]), file=sys.stderr, flush=True)

        stream = cameras.run(options.rate, 60 * options.minutes, every=(options.sample, sample))
        sent, answered = stream["sent"]["image"], {**masks.take(), **jpegs.take()}
        return {
            "frames": account(sent, before, counts.read()),
            "received": {topic: len(delays) for topic, delays in answered.items()},
            "latency_ms": {topic: summary_ms(delays) for topic, delays in answered.items()},
            "cores": round(usage.cores(), 2),
            "growth": growth(samples),
            "samples": samples,
        }


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Compare the end of the first minute with the end of the stream (medians of a few samples); memory in percent."""
    settled = [sample for sample in samples if sample["second"] >= _SETTLING_S] or samples
    first, last = settled[:_SAMPLES_COMPARED], settled[-_SAMPLES_COMPARED:]

    def medians(key: str) -> tuple[float, float]:
        return statistics.median(s[key] for s in first), statistics.median(s[key] for s in last)

    found = {}
    for key in ("rss", "uss"):
        before, after = medians(key)
        found[f"{key}_percent"] = round(100 * (after / before - 1), 3)
    for key in ("threads", "files"):
        before, after = medians(key)
        found[key] = after - before
    return found


if __name__ == "__main__":
    main()
