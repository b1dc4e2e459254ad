"""Calibrate a bundle's confidence: ``python -m training.calibrate BUNDLE --output FOLDER [--dataset NAME]``.

One temperature is fitted on images that the head was not trained on, and folded into the head's last weights. Labels
stay as they are, and nothing is computed in addition on the robot.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import HEAD_FILE, CalibrationSection, Manifest
from dinov3_seg_ros.bundle.onnx_folder import find_exports
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.segmenter import HeadSegmentation, Segmenter
from dinov3_seg_ros.support.command_line import run_command
from dinov3_seg_ros.support.errors import BundleError, DatasetError
from training.data import DataSection, SegmentationDataset, Split
from training.evaluation.loop import check_classes, segment_all
from training.evaluation.temperature import PixelSample, fit_temperature
from training.loop.origins import count_trained_on
from training.recipes.of_bundle import find_data, for_other_folder
from training.recipes.overrides import SettingsParser, apply_overrides, separated
from training.support.section import Section
from training.support.text import percent, say
from training.support.writing import new_folder, writing


class CalibrationSettings(Section):
    """The settings that the command line can change."""

    data: DataSection
    split: Split = "val"
    """Which part of the data set."""


def calibrate(bundle: Bundle, settings: CalibrationSettings, output: Path, console: Console) -> Bundle:
    """Write a calibrated copy of a bundle, without its exports, which belong to the old head.

    Args:
        bundle: is not changed.
        settings: data set and split to fit on.
        output: folder of the copy; must be new or empty.
        console: shows the progress if it is a terminal.

    Raises:
        DatasetError: the classes differ, no pixel is labelled, or an item cannot be read.
        BundleError, BackboneError: the bundle's network cannot be loaded, or its logits are not finite.
        OutputError: the folder holds something, or cannot be written.
    """
    with new_folder(output):
        data = settings.data.open(settings.split)
        check_classes(bundle, data)
        count_trained_on(bundle, data, console)
        pixels = _sample(bundle, data, console)
        if not len(pixels.tensors()[1]):
            raise DatasetError(f"no pixel of the {settings.split} split is labelled; calibrate on labelled images")
        fitted = fit_temperature(pixels)
        if fitted is None:
            raise BundleError(
                f"{bundle.path} gives logits that are not finite; train it again with a lower optimizer.lr"
            )
        head = bundle.load_head()
        head.scale_logits(1 / fitted["temperature"])
        before = bundle.manifest.calibration
        if before is not None:  # the weights hold that temperature too
            fitted["temperature"] *= before.temperature
        calibration = CalibrationSection(data=settings.data.name, split=settings.split, images=len(data), **fitted)

        def copy_backbone(folder: Path) -> None:
            for name in bundle.manifest.files:
                if name != HEAD_FILE:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.path / name, folder / name)

        manifest = bundle.manifest.model_copy(update={"calibration": calibration})
        with writing(output):
            return save_bundle(output, manifest, head.state_dict(), copy_backbone)


def find_settings(manifest: Manifest, dataset: str | None = None, overrides: Sequence[str] = ()) -> CalibrationSettings:
    """Find the images that a bundle is calibrated on.

    Args:
        manifest: of the bundle.
        dataset: a data set's name, or a recipe that names one; default: the bundle's own.
        overrides: of `CalibrationSettings`, as on the command line.

    Raises:
        SegmentationError: the data set or the overrides do not fit.
    """
    overrides = separated(overrides)
    settings = CalibrationSettings(data=find_data(dataset, manifest, overrides))
    return for_other_folder(apply_overrides(settings, overrides), overrides)


def _sample(bundle: Bundle, data: SegmentationDataset, console: Console) -> PixelSample:
    """Logits of some pixels of every item, by the model itself, as training fits its temperature."""
    pixels = PixelSample(len(data))

    def add(index: int, _image: np.ndarray, truth: np.ndarray, found: HeadSegmentation) -> None:
        pixels.add(torch.as_tensor(found.logits), found.window, truth, len(data.class_names), index)

    indices = track(range(len(data)), "calibrating", console=console, disable=not console.is_terminal)
    with contextlib.closing(Segmenter.from_bundle(bundle, "torch")) as segmenter:
        segment_all(segmenter, data, indices, add)
    return pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.calibrate",
        __doc__,
        "BUNDLE --output FOLDER [--dataset NAME] [--key value ...]",
        CalibrationSettings,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the copy; must be new or empty")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="name of a data set, or a recipe whose data set is used (default: the one the bundle was trained on)",
    )

    def work(words: list[str]) -> None:
        options, overrides = parser.parse_settings(words)
        console, bundle = Console(markup=False), load_bundle(options.bundle)
        settings = find_settings(bundle.manifest, options.dataset, overrides)
        done = calibrate(bundle, settings, options.output, console).manifest.calibration
        assert done is not None  # written just now
        say(
            console,
            f"temperature {done.temperature:.3f}; expected calibration error of {done.images} images "
            f"{percent(done.ece_before)} before, {percent(done.ece)} now; written to {options.output}",
        )
        if any(find_exports(bundle)):
            say(console, f"it has no exports yet; make them with: python -m dinov3_seg_ros.export {options.output}")

    return run_command(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
