"""How honest the confidence of bundles is on images that the temperature was not fitted on, before and after the fit.

    python benchmarks/calibration.py BUNDLE [BUNDLE ...] [--dataset NAME] [--root FOLDER]

The validation images are divided into two parts, by turns so many after one another: neighbours of a video look alike,
and two halves of one can differ much. The temperature is fitted on each part, as training fits it, and scored on the
other. A bundle's own temperature is taken out first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.segmenter import HeadSegmentation, Segmenter
from dinov3_seg_ros.support.files import write_json
from training.calibrate import find_settings
from training.evaluation.inference import Window
from training.evaluation.loop import segment_all
from training.evaluation.temperature import PixelSample, fit_temperature


class Seen(NamedTuple):
    """Logits (1, C, h, w) of an image, the part of them that it covers, and its true classes (H, W)."""

    logits: torch.Tensor
    window: Window
    truth: np.ndarray


def look(path: Path, dataset: str | None, overrides: Sequence[str]) -> list[Seen]:
    """Segment all images; the logits are those before the bundle's temperature."""
    bundle = load_bundle(path)
    settings = find_settings(bundle.manifest, dataset, list(overrides))
    data = settings.data.open(settings.split)
    calibration = bundle.manifest.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    seen: list[Seen] = []

    def add(_index: int, _image: np.ndarray, truth: np.ndarray, found: HeadSegmentation) -> None:
        seen.append(Seen(torch.as_tensor(found.logits).clone() * temperature, found.window, truth))

    segment_all(Segmenter.from_bundle(bundle, runtime="torch"), data, range(len(data)), add)
    return seen


def sample(seen: Sequence[Seen], temperature: float) -> PixelSample:
    """Logits at a temperature, of some pixels of all images."""
    pixels = PixelSample(len(seen))
    for index, one in enumerate(seen):
        pixels.add(one.logits / temperature, one.window, one.truth, one.logits.shape[1], index)
    return pixels


def score(seen: Sequence[Seen], stretch: int) -> dict[str, Any]:
    """Mean errors of two parts, each with the temperature of the other; and the two temperatures."""
    parts = [[one for index, one in enumerate(seen) if index // stretch % 2 == part] for part in (0, 1)]
    before, after, temperatures = [], [], []
    for fitted_on, scored in (parts, parts[::-1]):
        fitted = fit_temperature(sample(fitted_on, 1.0))
        raw = fit_temperature(sample(scored, 1.0))
        if fitted is None or raw is None:
            raise SystemExit(f"{stretch} by turns: no pixel of one part is labelled, or its logits are not finite")
        scaled = fit_temperature(sample(scored, fitted["temperature"]))
        assert scaled is not None
        temperatures.append(round(fitted["temperature"], 3))
        before.append(raw["ece_before"])
        after.append(scaled["ece_before"])
    return {"ece_before": statistics.mean(before), "ece": statistics.mean(after), "temperatures": temperatures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--dataset", help="name of a data set or recipe (default: the one a bundle was trained on)")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--stretches", nargs="+", type=int, default=[1, 10], help="so many by turns (default: 1 10)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for path in options.bundles:
        seen = look(path, options.dataset, ["--data.root", options.root] if options.root else [])
        for stretch in options.stretches:
            row = {"bundle": str(path), "images": len(seen), "stretch": stretch, **score(seen, stretch)}
            rows.append(row)
            print(
                f"{path}: {len(seen)} images, {stretch} by turns: expected calibration error {row['ece_before']:.2%} "
                f"before, {row['ece']:.2%} after (temperatures {row['temperatures']})",
                flush=True,
            )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
