"""Evaluate a bundle on a data set: ``python -m training.evaluate BUNDLE [--dataset NAME] [--key value ...]``.

`dinov3_seg_ros.segmenter.Segmenter` segments the images as on the robot, unless the bundle's recipe or an option asks
for other views: ``--inference.mode slide``, ``--inference.scales 0.75 1.0 1.25``, ``--inference.flip True``. Labels
are compared at the size of the true mask.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.command_line import add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import write_json
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from training.data import DATASETS, DataSection, SegmentationDataset, Split
from training.evaluation.boundary import BoundaryIoU
from training.evaluation.inference import AveragingSegmenter, Inference, open_segmenter
from training.recipes.loading import load_recipe
from training.recipes.overrides import SettingsParser, apply_overrides, separated
from training.reports.evaluation_folder import Examples, write_evaluation
from training.reports.pictures import percent
from training.support.output import check_free, writing
from training.support.section import Section

OnPrediction = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]


class EvaluationSettings(Section):
    """The settings that the command line can change."""

    data: DataSection
    split: Split = "val"
    """Which part of the data set."""
    inference: Inference = Inference()
    """Which views of each image are averaged; default: as the bundle's recipe says."""
    boundary_width: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Width of the bands that boundary IoU compares, as a part of the image's diagonal."""


def evaluate(
    segmenter: Segmenter | AveragingSegmenter,
    data: SegmentationDataset,
    indices: Iterable[int],
    on_prediction: OnPrediction | None = None,
) -> ConfusionMatrix:
    """Compare the segmenter's labels with the true masks, pixel by pixel at their size.

    Args:
        segmenter: of a bundle with the classes of ``data``, in the same order.
        data: the data set.
        indices: of the items to compare.
        on_prediction: called with index, image, true mask and labels of each.

    Raises:
        DatasetError: an item cannot be read.
    """
    matrix, rest = ConfusionMatrix(len(data.class_names)), iter(indices)
    while batch := list(itertools.islice(rest, segmenter.max_batch)):
        items = [data.item(index) for index in batch]
        found = segmenter.segment([image for image, _ in items])
        for index, (image, truth), segmentation in zip(batch, items, found, strict=True):
            matrix.update(truth, segmentation.labels)
            if on_prediction is not None:
                on_prediction(index, image, truth, segmentation.labels)
    return matrix


def scores_table(scores: dict[str, Any]) -> Table:
    """The scores of `ConfusionMatrix` and `BoundaryIoU` as a table; undefined for classes that occur nowhere."""
    table = Table("class", "IoU", "boundary IoU")
    for name, iou in scores["per_class_iou"].items():
        table.add_row(name, percent(iou), percent(scores["per_class_boundary_iou"][name]))
    table.add_section()
    table.add_row("mean", percent(scores["miou"]), percent(scores["boundary_miou"]))
    for name in ("macc", "aacc"):
        table.add_row(name, percent(scores[name]))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.evaluate",
        "Evaluate a bundle on a data set.",
        "BUNDLE [--dataset NAME] [--json FILE] [--report FOLDER] [--key value ...]",
        EvaluationSettings,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="name of a data set, or a recipe whose data set is used (default: the one the bundle was trained on)",
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
        console, compute = Console(), read_flags(ComputeOptions, options)
        if options.report is not None:
            check_free(options.report, "--report")
        scores = evaluate_bundle(options.bundle, console, options.dataset, overrides, options.report, compute=compute)
        with writing(options.json):
            write_json(options.json, scores)
        console.print(scores_table(scores))
        written = f"{options.json}" if options.report is None else f"{options.json} and {options.report}"
        console.print(f"written to {written}", soft_wrap=True)

    return run_command(parser, work, arguments)


def evaluate_bundle(
    path: Path,
    console: Console,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    report: Path | None = None,
    inference: Inference | None = None,
    compute: ComputeOptions | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle.

    Args:
        path: the bundle's folder.
        console: shows the progress if it is a terminal.
        dataset: a data set's name, or a recipe that names one; default: the bundle's own.
        overrides: of `EvaluationSettings`, as on the command line.
        report: folder for tables, pictures and examples; see `output.check_free`.
        inference: which views of each image are averaged, before overrides; default: as the bundle's recipe says.
        compute: how to compute the network.

    Returns:
        The scores and all settings, for JSON.

    Raises:
        SegmentationError: the bundle, the data set or the options do not fit; or the report cannot be written.
    """
    manifest, compute, overrides = load_bundle(path).manifest, compute or ComputeOptions(), separated(overrides)
    if inference is None:
        inference = Inference.model_validate(manifest.training.recipe.get("inference", {}))
    settings = EvaluationSettings(data=_data_section(dataset, manifest, overrides), inference=inference)
    settings = apply_overrides(settings, overrides)
    data = settings.data.open(settings.split)
    if data.class_names != manifest.classes.names:
        raise DatasetError(
            f"the data set's classes are not those of {path}: {data.class_names} and {manifest.classes.names}; "
            "evaluate on a data set with the same classes in the same order"
        )
    boundary, examples = BoundaryIoU(len(data.class_names), settings.boundary_width), Examples(data)

    def compare(index: int, image: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        boundary.update(truth, labels)
        if report is not None:
            examples.add(index, image, truth, labels)

    indices = track(range(len(data)), "evaluating", console=console, disable=not console.is_terminal)
    matrix = evaluate(open_segmenter(path, settings.inference, compute), data, indices, compare)
    scores = {
        **matrix.summary(data.class_names),
        **boundary.summary(data.class_names),
        "bundle": str(path),
        "images": len(data),
        **settings.model_dump(mode="json"),
        **compute.model_dump(mode="json"),
    }
    if report is not None:
        write_evaluation(report, scores, matrix, examples)
    return scores


def _data_section(dataset: str | None, manifest: Manifest, overrides: Sequence[str]) -> Any:
    """The section of the data set, before overrides."""
    own = manifest.training.recipe.get("data", {})
    if dataset is None or dataset == own.get("name"):
        if own.get("name") not in DATASETS:
            raise DatasetError(f"bundle '{manifest.name}' does not name its data set; give --dataset NAME")
        return DATASETS[own["name"]].model_validate(own)
    if dataset in DATASETS:
        return _new_section(dataset, manifest, overrides)
    return load_recipe(dataset).data


def _new_section(dataset: str, manifest: Manifest, overrides: Sequence[str]) -> Any:
    """The section of a data set that only its name selects. Required values come from the overrides and the bundle."""
    section = DATASETS[dataset]
    required: dict[str, Any] = {}
    if "root" in section.model_fields:
        root = next((overrides[i + 1] for i, o in enumerate(overrides[:-1]) if o == "--data.root"), None)
        if root is None:
            raise DatasetError(f"data set '{dataset}' needs --data.root FOLDER")
        required["root"] = root
    if "classes" in section.model_fields:
        required["classes"] = dict(zip(manifest.classes.names, manifest.classes.palette, strict=True))
    return section(**required)


if __name__ == "__main__":
    sys.exit(main())
