"""Evaluate a bundle on a data set: ``python -m training.evaluate BUNDLE [--dataset NAME] [--key value ...]``.

`dinov3_seg_ros.segmenter.Segmenter` segments the images as on the robot, unless the bundle's recipe or an option asks
for other views: ``--inference.mode slide``, ``--inference.scales 0.75 1.0 1.25``, ``--inference.flip True``. Labels
are compared at the size of the true mask.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, Bundle, load_bundle
from dinov3_seg_ros.frames.order import in_order
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.options import ComputeOptions, TemporalSmoothing
from dinov3_seg_ros.segmenter import HeadSegmentation
from dinov3_seg_ros.support.command_line import add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import BundleError, DatasetError, SegmentationError
from dinov3_seg_ros.support.files import write_json
from training.data import DataSection, SegmentationDataset, Split
from training.data.labelled_images import LabelledImages
from training.evaluation.bootstrap import LEVEL
from training.evaluation.flicker import Flicker
from training.evaluation.inference import Inference, open_segmenter
from training.evaluation.loop import check_classes, check_outside_data, segment_all
from training.evaluation.scores import Scores, per_class_name, per_class_title, titles
from training.loop.origins import count_trained_on
from training.recipes.of_bundle import find_data, for_other_folder, read_own
from training.recipes.overrides import SettingsParser, apply_overrides, separated
from training.reports.evaluation_folder import Examples, write_evaluation
from training.support.section import Section
from training.support.text import percent, say
from training.support.writing import new_folder, writing


class EvaluationSettings(Section):
    """The settings that the command line can change."""

    data: DataSection
    split: Split | Literal["all"] = "val"
    """Which part of the data set; all: every image of a folder, also those that were trained on."""
    inference: Inference = Inference()
    """Which views of each image are averaged; default: as the bundle's recipe says."""
    boundary_width: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Width of the bands that boundary IoU compares, as a part of the image's diagonal."""
    thin_width: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Objects narrower than about this part of the image's diagonal, in an odd number of pixels, are thin."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Draws of the images from which the intervals of the scores are computed; 0: no intervals."""
    sequence: bool = False
    """Whether the images follow one another in time, as those of a video do; then flicker is a score. Their order is
    that of their paths, in which numbers are compared as numbers. Cuts are seen."""
    temporal_smoothing: TemporalSmoothing = 0.0
    """For a sequence: the weight of previous frames, as the node's parameter of this name."""


def scores_table(scores: dict[str, Any]) -> Table:
    """The most important scores of `Scores` as a table; undefined for classes that occur nowhere."""
    columns = ("miou", "boundary_miou_3px", "thin_recall")
    table = Table("class", *map(per_class_title, columns))
    for name in scores["per_class_iou"]:
        table.add_row(name, *(percent(scores[per_class_name(column)][name]) for column in columns))
    table.add_section()
    table.add_row("mean", *(percent(scores[column]) for column in columns))
    if scores.get("miou_interval"):
        table.add_row(f"{LEVEL:.0%} interval", *(_interval(scores[f"{column}_interval"]) for column in columns))
    for name in titles(scores):
        if name not in columns:
            table.add_row(name, percent(scores[name]))
    return table


def differences_table(differences: dict[str, Any], other: Path) -> Table:
    """The differences of `Scores.differences`, and that of the flicker, as a table."""
    table = Table("score", "difference", f"{LEVEL:.0%} interval", title=f"minus {other}", title_justify="left")
    for name in titles(differences):
        ends = f"{name}_interval"
        table.add_row(name, percent(differences[name]), _interval(differences[ends]) if ends in differences else "")
    return table


def _interval(ends: list[float] | None) -> str:
    return "undefined" if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.evaluate",
        "Evaluate a bundle on a data set.",
        "BUNDLE [--against BUNDLE] [--dataset NAME] [--json FILE] [--report FOLDER] [--key value ...]",
        EvaluationSettings,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="name of a data set, or a recipe whose data set is used (default: the one the bundle was trained on)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="BUNDLE",
        help="another bundle with the same classes, to evaluate on the same images and subtract",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("evaluation.json"),
        metavar="FILE",
        help="file for the scores (default: %(default)s)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="folder for tables, pictures and examples; must be new or empty"
    )
    add_flags(parser, ComputeOptions)

    def work(words: list[str]) -> None:
        options, overrides = parser.parse_settings(words)
        console, compute = Console(markup=False), read_flags(ComputeOptions, options)
        settings = find_settings(options.bundle, options.dataset, overrides)
        if options.report is not None:
            check_outside_data(options.report, settings.data)
        with contextlib.nullcontext() if options.report is None else new_folder(options.report, "--report"):
            scores = evaluate_bundle(options.bundle, console, settings, options.report, compute, options.against)
        console.print(scores_table(scores))
        if options.against is not None:
            console.print(differences_table(scores["against"]["difference"], options.against))
        with writing(options.json):  # last, so that nothing is lost where it fails
            write_json(options.json, scores)
        written = f"{options.json}" if options.report is None else f"{options.json} and {options.report}"
        say(console, f"written to {written}")

    return run_command(parser, work, arguments)


def evaluate_bundle(
    path: Path,
    console: Console,
    settings: EvaluationSettings | None = None,
    report: Path | None = None,
    compute: ComputeOptions | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle.

    Args:
        path: the bundle's folder.
        console: shows the progress if it is a terminal.
        settings: on which images, and how; default: as the bundle's recipe says.
        report: folder for tables, pictures and examples; see `writing.new_folder`.
        compute: how to compute the network.
        against: another bundle with the same classes, which is evaluated on the same images, in the same way.

    Returns:
        The scores and all settings, for JSON; with ``against`` also the other bundle's scores, and the ``difference``
        to them, under that name. ``trained_on`` counts the images that a bundle was trained on, see
        `count_trained_on`.

    Raises:
        SegmentationError: the bundle, the data set or the options do not fit; or the report cannot be written.
    """
    compute, settings = compute or ComputeOptions(), settings or find_settings(path)
    data = settings.data.open_all() if settings.split == "all" else settings.data.open(settings.split)
    say(console, f"{len(data)} images: {'all splits' if settings.split == 'all' else f'the split {settings.split}'}")
    for note in settings.data.found(all_splits=settings.split == "all").notes:
        say(console, f"note: {note}")
    examples = Examples(data) if report is not None else None
    if settings.temporal_smoothing and not settings.sequence:
        raise DatasetError("temporal_smoothing is for images that follow one another in time; add --sequence True")
    bundle, other_bundle = load_bundle(path), None
    check_classes(bundle, data)
    if against is not None:  # before the first image, since an evaluation takes long
        try:
            other_bundle = load_bundle(against)
            check_classes(other_bundle, data)
            open_segmenter(other_bundle, settings.inference, compute).close()
        except SegmentationError as error:
            raise BundleError(f"the bundle of --against cannot be compared: {error}") from error
    trained_on = [count_trained_on(own, data, console) for own in (bundle, other_bundle) if own is not None]
    found, flicker = _evaluate_one(bundle, settings, data, compute, console, examples)
    scores = {
        **found.summary(settings.bootstrap),
        "flicker": flicker,
        "bundle": str(path),
        "images": len(data),
        "trained_on": trained_on[0],
        **settings.model_dump(mode="json"),
        **compute.model_dump(mode="json"),
    }
    if other_bundle is not None:
        other, other_flicker = _evaluate_one(other_bundle, settings, data, compute, console)
        difference = found.differences(other, settings.bootstrap)
        difference["flicker"] = None if flicker is None or other_flicker is None else flicker - other_flicker
        summary = {**other.summary(settings.bootstrap), "flicker": other_flicker, "trained_on": trained_on[1]}
        scores["against"] = {**summary, "bundle": str(against), "difference": difference}
    if report is not None and examples is not None:
        write_evaluation(report, scores, found.matrix, examples)
    return scores


def find_settings(path: Path, dataset: str | None = None, overrides: Sequence[str] = ()) -> EvaluationSettings:
    """Find how a bundle is evaluated.

    Args:
        path: the bundle's folder.
        dataset: a data set's name, or a recipe that names one; default: the bundle's own.
        overrides: of `EvaluationSettings`, as on the command line.

    Raises:
        SegmentationError: the bundle, the data set or the overrides do not fit.
    """
    manifest, overrides = load_bundle(path).manifest, separated(overrides)
    inference = read_own(manifest, "inference", Inference, "correct it in its bundle.json")
    settings = EvaluationSettings(data=find_data(dataset, manifest, overrides), inference=inference)
    return for_other_folder(apply_overrides(settings, overrides), overrides)


def _evaluate_one(
    bundle: Bundle,
    settings: EvaluationSettings,
    data: SegmentationDataset,
    compute: ComputeOptions,
    console: Console,
    examples: Examples | None = None,
) -> tuple[Scores, float | None]:
    """The scores of a bundle, and its flicker where the data set is a sequence."""
    scores = Scores(data.class_names, settings.boundary_width, settings.thin_width)
    flicker = Flicker() if settings.sequence else None
    smoother = TemporalSmoother(settings.temporal_smoothing) if settings.temporal_smoothing else None

    def compare(index: int, image: np.ndarray, truth: np.ndarray, found: HeadSegmentation) -> None:
        confidence = found.confidence  # decodes the labels as well
        scores.update(truth, found.labels, confidence)
        if flicker is not None:
            flicker.update(image, found.labels, truth)
        if examples is not None:
            examples.add(index, image, truth, found.labels)

    order = _in_time(data) if settings.sequence else list(range(len(data)))
    indices = track(order, "evaluating", console=console, disable=not console.is_terminal)
    with contextlib.closing(open_segmenter(bundle, settings.inference, compute)) as segmenter:
        segment_all(segmenter, data, indices, compare, smoother)
    return scores, flicker.share() if flicker is not None else None


def _in_time(data: SegmentationDataset) -> list[int]:
    """Indices of the items of a sequence, in the order of `EvaluationSettings.sequence`."""
    indices = range(len(data))
    if not isinstance(data, LabelledImages):  # has no paths
        return list(indices)
    return in_order(indices, lambda index: data.samples[index].image.as_posix())


if __name__ == "__main__":
    sys.exit(main())
