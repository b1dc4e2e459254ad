"""How steady masks are on walks through synthetic rooms that the demo has not seen, with and without smoothing.

``python benchmarks/steadiness.py [--bundle PATH] [--seconds 30] [--weights 0 0.7] [--json FILE]``

The rooms are those of the split "val". All weights see the same frames and the same logits, in turn. The time is that
of the smoothing alone, on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.scenes import CLASS_NAMES, walk
from dinov3_seg_ros.support.files import write_json
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from dinov3_seg_ros.support.resources import resource_path
from training.evaluation.flicker import Flicker


class Variant:
    """One weight, and what its masks were like."""

    def __init__(self, weight: float) -> None:
        self.smoother = TemporalSmoother(weight) if weight else None
        self.flicker, self.matrix = Flicker(), ConfusionMatrix(len(CLASS_NAMES))
        self.seconds: list[float] = []


def measure(bundle: Path, frames: int, rate_hz: float, first_room: int, weights: list[float]) -> list[dict[str, float]]:
    """Segment a walk; return mIoU, flicker and time of each weight."""
    segmenter = Segmenter.from_bundle(bundle, runtime="onnx")
    variants = {weight: Variant(weight) for weight in weights}
    cv2.setNumThreads(1)
    stream = itertools.islice(walk("val", first_room, (480, 640), rate_hz), frames)
    for number, (image, truth) in enumerate(stream):
        single = segmenter.segment([image])[0]
        for variant in variants.values():
            start = time.perf_counter()
            result = single
            if variant.smoother is not None:
                result = single.smoothed(variant.smoother, image, number / rate_hz)
            variant.seconds.append(time.perf_counter() - start)
            variant.matrix.update(truth, result.labels)
            variant.flicker.update(image, result.labels, truth)
    return [
        {
            "weight": weight,
            "miou": variant.matrix.summary(CLASS_NAMES)["miou"],
            "flicker": variant.flicker.share(),
            "smoothing_ms": 1000 * float(np.median(variant.seconds)),
        }
        for weight, variant in variants.items()
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=resource_path("weights/demo"), help="default: the demo")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the walk (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second (default: %(default)s)")
    parser.add_argument("--room", type=int, default=40, help="first room (default: %(default)s)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.7], help="default: 0 0.7")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = measure(options.bundle, round(options.seconds * options.rate), options.rate, options.room, options.weights)
    print("weight    mIoU  flicker  smoothing")
    for row in found:
        figures = (row["weight"], row["miou"], 100 * row["flicker"], row["smoothing_ms"])
        print("{:6.2f}  {:.4f}  {:5.2f} %  {:6.2f} ms".format(*figures))
    if options.json:
        write_json(options.json, {"variants": found})


if __name__ == "__main__":
    main()
