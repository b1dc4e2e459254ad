"""Label images by a bundle, for a person to correct: ``python -m training.pre_label IMAGES --bundle BUNDLE``.

The images and their labels go into a folder that labelme, CVAT or a tool for COCO's annotations opens. What the bundle
is not sure of is left open. pre_label.json and the last lines of the output say how a recipe reads the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.frames.output_classes import confidence_threshold
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.options import ComputeOptions, ValueRange
from dinov3_seg_ros.segmenter import HeadSegmentation
from dinov3_seg_ros.support.command_line import DONE, FAILED, add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import check_outside, write_json
from training.data.classes.lists import BACKGROUND, plain_name
from training.data.writing import WRITERS
from training.data.writing.protocol import IGNORED_LABEL, IMAGES, ShapeKind
from training.data.writing.regions import find_regions
from training.evaluation.inference import Inference
from training.recipes.overrides import SettingsParser, apply_overrides
from training.support.section import Section
from training.support.writing import new_folder, writing
from training.unlabelled.arguments import add_image_arguments, add_labelling_arguments, open_from
from training.unlabelled.images import UnlabelledImages
from training.unlabelled.teacher import Teacher

SUMMARY_FILE = "pre_label.json"
_GREY = (128, 128, 128)


class PreLabelSettings(Section):
    """The settings that the command line can change."""

    format: Literal["labelme", "coco", "cvat"] = "labelme"
    """Of the labels: labelme's JSON, COCO instances, or CVAT for images 1.1."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Pixels of a smaller confidence are left open."""
    shapes: ShapeKind = "polygons"
    """polygons: to be edited; masks: every pixel exactly."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """How far polygons may lie from the border of their region, pixels; 0: exactly on it."""
    least_area: Annotated[int, Field(ge=0)] = 64
    """Smaller regions are left open, pixels; where one region encloses them, they join it."""
    inference: Inference = Inference()
    """Which views of each image are averaged."""
    value_range: ValueRange = "auto"
    """Which values of 16-bit images are black and white; auto: as the bundle says."""


class OpenLabels:
    """Gives the labels that are written: classes where the bundle is sure, and what is left open.

    Where the bundle has no class named background, open means that no shape covers a pixel. Where it has one, that is
    what no shape covers, and open regions are shapes named ``__ignore__``.

    Args:
        classes: of the bundle.
        threshold: see `PreLabelSettings`.

    Attributes:
        names, palette: of the labels that shapes have.
        open: what `of` gives for pixels that are left open.
    """

    def __init__(self, classes: ClassesSection, threshold: float) -> None:
        self._classes, self._level = [plain_name(name) for name in classes.names], confidence_threshold(threshold)
        self._has_background = BACKGROUND in self._classes
        drawn = [index for index, name in enumerate(self._classes) if name != BACKGROUND]
        self.names = [self._classes[index] for index in drawn]
        self.palette = [classes.palette[index] for index in drawn]
        self.open = len(self.names)
        # Every class id to the number of its label; the background to one beyond all labels.
        self._label_of = np.full(len(self._classes), self.open + 1, np.int32)
        self._label_of[drawn] = np.arange(len(drawn))
        if self._has_background:
            self.names.append(IGNORED_LABEL)
            self.palette.append(_GREY)

    def of(self, found: HeadSegmentation) -> np.ndarray:
        """Numbers of labels (H, W) int32; what has none is at least their count."""
        confidence = found.confidence  # decodes the labels too
        return np.where(confidence >= self._level, self._label_of[found.labels], self.open).astype(np.int32)

    def data_section(self, root: Path, kind: str, value_range: ValueRange) -> dict[str, Any]:
        """The section ``data`` of a recipe that reads the labels back, and the images as they were labelled."""
        ignored = [IGNORED_LABEL] if self._has_background else [BACKGROUND]
        section: dict[str, Any] = {"name": "auto", "root": str(root), "classes": self._classes}
        if value_range != "auto":
            section["value_range"] = value_range if isinstance(value_range, str) else list(value_range)
        # labelme's own name for it needs no mention.
        return section if self._has_background and kind == "labelme" else {**section, "ignore": ignored}


def pre_label(
    images: UnlabelledImages, teacher: Teacher, output: Path, settings: PreLabelSettings, console: Console
) -> dict[str, Any]:
    """Label images and write them with their labels.

    Args:
        images: the images.
        teacher: labels them.
        output: folder; pre_label.json is written last.
        settings: what to write; ``inference`` is not read here, and ``value_range`` only written down.
        console: shows the progress if it is a terminal.

    Returns:
        The content of pre_label.json.

    Raises:
        DatasetError: no image can be read, or two would have one file of labels.
        OutputError: something cannot be written.
    """
    labels = OpenLabels(teacher.classes, settings.threshold)
    value_range = chosen_range(settings.value_range, teacher.value_range)
    count = len(labels.names)
    written = regions_written = 0
    covered = 0.0
    writer_type = WRITERS[settings.format]
    if writer_type.is_file_of_each_image:
        images.check_label_names()
    with writing(output):
        writer = writer_type(output, labels.names, labels.palette, settings.shapes)
        taken = track(images.take(), "labelling", total=len(images), console=console, disable=not console.is_terminal)
        for image in taken:
            of_pixels = labels.of(teacher.label(image.pixels))
            tolerance = settings.tolerance if settings.shapes == "polygons" else 0.0
            regions = find_regions(of_pixels, count, settings.least_area, tolerance, labels.open)
            image.copy_to(output / IMAGES / image.name)
            writer.add(image.name, of_pixels.shape, regions)
            written, regions_written = written + 1, regions_written + len(regions)
            covered += float((of_pixels != labels.open).mean())
        if not written:
            reason = next(iter(images.unreadable.values()), "there is none")
            raise DatasetError(f"no image can be labelled: {reason}")
        writer.finish()
        summary = {
            "images": written,
            "regions": regions_written,
            "sure": round(covered / written, 4),
            "unreadable": dict(images.unreadable),
            "settings": settings.model_dump(mode="json"),
            "data": labels.data_section(output, settings.format, value_range),
        }
        write_json(output / SUMMARY_FILE, summary)
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where an image could not be read."""
    parser = SettingsParser(
        "training.pre_label",
        __doc__,
        "IMAGES --bundle BUNDLE [BUNDLE ...] [--format labelme|coco|cvat] [--output FOLDER] [--key value ...]",
        PreLabelSettings,
        lambda _, overrides: apply_overrides(PreLabelSettings(), overrides),
    )
    add_image_arguments(parser)
    add_labelling_arguments(parser, "BUNDLE", "pre_labelled")
    add_flags(parser, ComputeOptions)

    def work(words: list[str]) -> int:
        options, overrides = parser.parse_settings(words)
        settings = apply_overrides(PreLabelSettings(), overrides)
        compute = read_flags(ComputeOptions, options)
        with new_folder(options.output):
            return _pre_label(options, settings, compute)

    return run_command(parser, work, arguments, "the folder is not complete")


def _pre_label(options: argparse.Namespace, settings: PreLabelSettings, compute: ComputeOptions) -> int:
    """Label what the command line names, and print how it is read back; return the exit code."""
    check_outside(options.output, options.images)
    console = Console(markup=False)
    with contextlib.closing(Teacher(options.bundle, settings.inference, compute)) as teacher:
        images = open_from(options, chosen_range(settings.value_range, teacher.value_range))
        summary = pre_label(images, teacher, options.output, settings, console)
    for name, reason in images.unreadable.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    print(
        f"{summary['images']} images, {summary['regions']} regions, {100 * summary['sure']:.1f} % of the pixels sure; "
        f"written to {options.output}. A recipe reads them back by:"
    )
    print(
        yaml.safe_dump({"data": summary["data"]}, sort_keys=False, allow_unicode=True, default_flow_style=None), end=""
    )
    return FAILED if images.unreadable else DONE


if __name__ == "__main__":
    sys.exit(main())
