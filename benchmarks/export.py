"""Measure how close ONNX exports are to the model and how fast they run, on random weights.

    python benchmarks/export.py --models vits16plus convnext_tiny --sizes 640x640 480x640 224x224 --precisions fp32 int8

The networks have the published architectures and a classifier that shows many classes (random_models.py). Times are of
the backbone alone, with all precisions in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from random_models import MODELS, random_bundle

from dinov3_seg_ros import scenes
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import export_folder
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ExportError
from dinov3_seg_ros.support.files import write_json

CLASSES = 24


def interleaved_ms(segmenters: dict[str, Segmenter], size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of one backbone pass of each segmenter; passes take turns."""
    canvas = cv2.resize(scenes.sample("val", 0, (480, 640))[0], size[::-1])[None]
    times: dict[str, list[float]] = {name: [] for name in segmenters}
    for _ in range(rounds):
        for name, segmenter in segmenters.items():
            start = time.perf_counter()
            segmenter.runtime.start(canvas, []).logits()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.median(values[1:])), 1) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", default=["640x640", "480x640", "224x224"], metavar="HxW")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        for model in options.models:
            for text in options.sizes:
                size = tuple(int(side) for side in text.split("x"))
                rooms = [scenes.sample("train", 40 * index, (480, 640))[0] for index in range(3)]
                bundle = random_bundle(Path(work) / f"{model}-{text}", model, size, rooms, CLASSES)
                results.append({"model": model, "size": text, **measure(bundle, size, options)})
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        write_json(options.json, results)


def measure(bundle: Path, size: tuple[int, int], options: argparse.Namespace) -> dict:
    """Measure agreement and times of all precisions of one bundle at one size."""
    result, segmenters = {}, {"torch": Segmenter.from_bundle(bundle, "torch", network_size=size)}
    for precision in options.precisions:
        try:
            export([bundle], ExportOptions(size=size, precision=precision))
        except ExportError as error:
            result[precision] = str(error)
            continue
        segmenters[precision] = Segmenter.from_bundle(bundle, "onnx", network_size=size, precision=precision)
        folder = export_folder(load_bundle(bundle), size, precision)
        result[precision] = json.loads((folder / "export.json").read_text())["parity"]
    return {**result, "backbone_ms": interleaved_ms(segmenters, size, options.rounds)}


if __name__ == "__main__":
    main()
