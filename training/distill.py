"""Label images by a teacher, for a student to train on: ``python -m training.distill IMAGES --bundle TEACHER``.

The teacher is a bundle, such as one of a larger backbone, or several, whose probabilities are averaged; ``--inference``
averages views of each image too. What the teacher is not sure of is ignored. A recipe trains on the folder by
``--pseudo_labels.root FOLDER``, beside the images that people labelled.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.frames.classes import label_type
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.output_classes import confidence_threshold
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.options import ComputeOptions, ValueRange
from dinov3_seg_ros.support.command_line import DONE, FAILED, add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import check_outside, replacing_file, write_json
from training.data.pseudo_labels import IMAGES, MASKS, PSEUDO_FILE
from training.evaluation.inference import Inference
from training.recipes.overrides import SettingsParser, apply_overrides
from training.support.section import Section
from training.support.text import say
from training.support.writing import new_folder, writing
from training.unlabelled.arguments import add_image_arguments, add_labelling_arguments, open_from
from training.unlabelled.images import UnlabelledImages
from training.unlabelled.labelled import Labelled, find_labelled
from training.unlabelled.teacher import Teacher

_CLASSES_FILE, _CONFIDENCE = "classes.yaml", ".confidence"
_LEVELS = 256  # confidence is uint8


class DistillSettings(Section):
    """The settings that the command line can change."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Pixels of at least this confidence are kept; the others are ignored, unless class_share keeps them."""
    class_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """At least this share of the pixels of each class is kept, the most confident ones: a teacher is seldom sure of
    small and rare classes, which would vanish."""
    inference: Inference = Inference()
    """Which views of each image are averaged."""
    value_range: ValueRange = "auto"
    """Which values of 16-bit images are black and white; auto: as the bundle says."""


def class_levels(histogram: NDArray[np.int64], threshold: float, class_share: float) -> NDArray[np.int64]:
    """The least confidence, in 1/255, of the pixels of each class that are kept, (K,).

    Yang Zou, Zhiding Yu, B. V. K. Vijaya Kumar, Jinsong Wang: Unsupervised Domain Adaptation for Semantic Segmentation
    via Class-Balanced Self-Training, 2018, arXiv:1810.07911.

    Args:
        histogram: (K, 256) pixels of each class by their confidence, over all images.
        threshold, class_share: see `DistillSettings`.
    """
    from_above = histogram[:, ::-1].cumsum(1)[:, ::-1]
    enough = from_above >= class_share * histogram.sum(1, keepdims=True)
    # The highest level above which there are enough pixels.
    highest = _LEVELS - 1 - enough[:, ::-1].argmax(1)
    return np.asarray(np.minimum(highest, confidence_threshold(threshold)))


def distill(
    images: UnlabelledImages,
    labelled: Labelled,
    teacher: Teacher,
    output: Path,
    settings: DistillSettings,
    console: Console,
) -> dict[str, Any]:
    """Label images and write them with their masks.

    The masks hold class ids; the unlabelled value where the teacher is not sure.

    Args:
        images: the images.
        labelled: images that are left out: those that people labelled, and those for validation.
        teacher: labels the others.
        output: folder; pseudo_labels.json is written last.
        settings: what is kept; ``inference`` and ``value_range`` are not read here.
        console: shows the progress if it is a terminal.

    Returns:
        What pseudo_labels.json says, without the images.

    Raises:
        DatasetError: no image can be read, or two would have one mask.
        OutputError: something cannot be written.
    """
    classes = teacher.classes
    count = len(classes.names)
    histogram = np.zeros((count, _LEVELS), np.int64)
    image_of: dict[str, str] = {}
    skipped = 0
    images.check_label_names()
    with writing(output):
        taken = track(images.take(), "labelling", total=len(images), console=console, disable=not console.is_terminal)
        for image in taken:
            if labelled.has(image.pixels, image.file):
                skipped += 1
                continue
            mask = PurePosixPath(image.name).with_suffix(".png").as_posix()
            image_of[mask] = image.name
            found = teacher.label(image.pixels)
            confidence, labels = found.confidence, found.labels
            pairs = labels.astype(np.int64) * _LEVELS + confidence
            histogram += np.bincount(pairs.ravel(), minlength=histogram.size).reshape(histogram.shape)
            image.copy_to(output / IMAGES / image.name)
            _write_png(output / MASKS / mask, labels)
            _write_png(output / _CONFIDENCE / mask, confidence)
        if not image_of:
            reason = f"{skipped} are labelled already, {len(images.unreadable)} cannot be read"
            raise DatasetError(f"no image is left to label: {reason}")
        levels = class_levels(histogram, settings.threshold, settings.class_share)
        for mask in image_of:
            labels, confidence = (_read_png(output / folder / mask) for folder in (MASKS, _CONFIDENCE))
            kept = np.where(confidence >= levels[labels], labels, classes.unlabelled)
            _write_png(output / MASKS / mask, kept.astype(label_type(len(classes.names))))
        shutil.rmtree(output / _CONFIDENCE)
        with replacing_file(output / _CLASSES_FILE) as temporary:
            colours = {name: list(colour) for name, colour in zip(classes.names, classes.palette, strict=True)}
            temporary.write_text(yaml.safe_dump(colours, sort_keys=False, allow_unicode=True), encoding="utf-8")
        about = {
            "classes": classes.names,
            "kept": dict(_kept(histogram, levels, classes.names)),
            "thresholds": dict(zip(classes.names, (levels / (_LEVELS - 1)).round(4).tolist(), strict=True)),
            "settings": settings.model_dump(mode="json"),
            "already_labelled": skipped,
            "unreadable": dict(images.unreadable),
        }
        entries = [{"image": image, "mask": mask} for mask, image in image_of.items()]
        write_json(output / PSEUDO_FILE, {**about, "images": entries})
    return about


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where an image could not be read."""
    parser = SettingsParser(
        "training.distill",
        __doc__,
        "IMAGES --bundle TEACHER [TEACHER ...] [--labelled FOLDER ...] [--output FOLDER] [--key value ...]",
        DistillSettings,
        lambda _, overrides: apply_overrides(DistillSettings(), overrides),
    )
    add_image_arguments(parser)
    add_labelling_arguments(parser, "TEACHER", "pseudo_labels")
    parser.add_argument(
        "--labelled",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of images to leave out: those that have labels, and those for validation",
    )
    add_flags(parser, ComputeOptions)

    def work(words: list[str]) -> int:
        options, overrides = parser.parse_settings(words)
        settings = apply_overrides(DistillSettings(), overrides)
        compute = read_flags(ComputeOptions, options)
        with new_folder(options.output):
            return _distill(options, settings, compute)

    return run_command(parser, work, arguments, "the folder is not complete")


def _distill(options: argparse.Namespace, settings: DistillSettings, compute: ComputeOptions) -> int:
    """Label what the command line names; return the exit code."""
    for source in (options.images, *options.labelled):
        check_outside(options.output, source)
    console = Console(markup=False)
    with contextlib.closing(Teacher(options.bundle, settings.inference, compute)) as teacher:
        images = open_from(options, chosen_range(settings.value_range, teacher.value_range))
        labelled = find_labelled(options.labelled, chosen_range(settings.value_range, teacher.value_range))
        for note in labelled.notes:
            say(console, f"note: {note}")
        about = distill(images, labelled, teacher, options.output, settings, console)
    for name, reason in images.unreadable.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    print("kept of each class: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in about["kept"].items()))
    skipped = f"{about['already_labelled']} left out as labelled; " if options.labelled else ""
    print(f"{skipped}written to {options.output}; train on it with: --pseudo_labels.root {options.output}")
    return FAILED if images.unreadable else DONE


def _kept(histogram: NDArray[np.int64], levels: NDArray[np.int64], names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The share of its pixels that each class keeps; of classes that the teacher found."""
    for name, row, level in zip(names, histogram, levels, strict=True):
        if row.any():
            yield name, round(float(row[level:].sum() / row.sum()), 4)


def _write_png(path: Path, values: np.ndarray) -> None:
    # Not flushed to the disk: pseudo_labels.json, written last, says that the folder is complete.
    write_picture(path, values, durable=False)


def _read_png(path: Path) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED))


if __name__ == "__main__":
    sys.exit(main())
