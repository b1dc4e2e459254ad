"""The data sets ``auto`` and ``folder``: a folder of one's own, in any format that `training.data.formats` knows."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.image_files import has_alpha
from dinov3_seg_ros.frames.mask_labels import as_greys, is_grey
from dinov3_seg_ros.frames.sources import unread_pictures
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.data.base import DataSettings, Found, Split
from training.data.classes.items import Items, WrittenClasses, WrittenIgnored, parse_ignored
from training.data.classes.map import ClassMap, map_classes
from training.data.formats import detect, find_format
from training.data.image_values import image_values
from training.data.labelled_images import LabelledImages, complete
from training.data.reading.protocol import LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.tree import Tree
from training.data.splits import DEFAULT_VAL_FRACTION, MOST_FOLDS, Fold, divided, samples_of
from training.support.section import Folder
from training.support.spread import spread

# So many masks, evenly spread, tell how the others must be read.
_LOOKED_AT = 12
# Of larger masks, so many rows and columns tell it.
_ENOUGH_ROWS = 500
# Values of pixels of no class, as ignore: auto has them.
_VOID = (255, 65535)


class LabelledFolderData(DataSettings):
    """A folder of images and labels; the settings that every format has."""

    root: Folder
    """Folder of the data set."""
    images: str = "auto"
    """Which files are images: a pattern such as "*_image.png" or "rgb/*.png", or the name of a folder. auto: what is
    no mask."""
    masks: str = "auto"
    """Which files are masks: as for images. auto: by the names of folders and files."""
    classes: WrittenClasses = None
    """Class names in the order of their ids; or a mapping of names to values, ranges, colours, or names of the folder's
    own classes: {road: [7, 12], person: 255}. null: the classes that the folder names."""
    ignore: WrittenIgnored = "auto"
    """Values, ranges, colours or names that belong to no class; rest: all that classes does not list. auto: 255, above
    255 classes 65535."""
    value_range: ValueRange = "auto"
    """Which values of 16-bit images are black and white: auto (0 and the largest of the sensor's, learned from all
    images), full (0 and 65535) or two numbers. The bundle takes what is not auto to the robot."""
    resize_masks: bool = False
    """Whether a mask of another size than its image is resized to it, by nearest neighbour."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Share of the images kept for validation where the folder has no validation split; auto: 0.2."""
    group: str = "auto"
    """Which images that split keeps together. auto: versions of one image, and videos and sequences, by the numbers and
    folders in their names; none: every image alone; else a regular expression whose first parentheses name the
    group."""
    folds: Annotated[int, Field(ge=2, le=MOST_FOLDS)] | None = None
    """Parts of a cross-validation, into which the images for training and validation are divided, by groups; null: the
    folder's own split. `training.train --folds` trains them all."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which part is for validation, from 0; the others are for training."""

    @model_validator(mode="after")
    def _fold_exists(self) -> LabelledFolderData:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold is {self.fold}, but {self.folds or 'no'} folds were asked for; they count from 0")
        return self

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`.

        Raises:
            DatasetError: the format is unknown, or the folder contradicts it; an image has no mask; the classes
                cannot be used; an ignored value is a class; or the range of 16-bit images cannot be told.
        """
        return self._open(lambda folder: self._samples_of(split, folder))

    def open_all(self) -> LabelledImages:
        """See `DataSettings.open_all`."""
        return self._open(LabelledFolder.all_samples)

    def _samples_of(self, split: Split, folder: LabelledFolder) -> list[Sample]:
        fold = None if self.folds is None else Fold(self.fold, self.folds)
        return samples_of(split, folder.samples, self.val_fraction, self.group, fold)

    def _open(self, choose: Callable[[LabelledFolder], Sequence[Sample]]) -> LabelledImages:
        _, _, folder = self._read()
        class_map, samples = self._class_map(folder), choose(folder)
        all_samples = folder.all_samples()
        value_range = image_values(all_samples).range(self.value_range)
        # An image that is background for want of a text file stands for its own labels.
        labels = [sample.labels for sample in all_samples if sample.labels != sample.image]
        return complete(
            LabelledImages(
                self.root,
                samples,
                class_map,
                folder.read,
                folder.spare,
                self.resize_masks,
                folder.evidence,
                folder.masks,
                value_range,
                labels,
            )
        )

    def for_other_folder(self, chosen: Container[str]) -> LabelledFolderData:
        """See `DataSettings.for_other_folder`.

        The format is found anew where the folder cannot be read in that of the training. What the training resolved
        from ignore: auto is auto again for shapes, which have no values. The folder's own validation split takes the
        place of a share of the images.
        """
        settings = self
        try:
            folder = self._read()[2]
        except DatasetError:
            if "format" in chosen or "format" not in type(self).model_fields:
                raise
            settings = self.model_copy(update={"format": "auto"})
            folder = settings._read()[2]
        changes = {}
        if "ignore" not in chosen and folder.classes.drawn and self.ignore in [[value] for value in _VOID]:
            changes["ignore"] = "auto"
        if "val_fraction" not in chosen and folder.samples.get("val"):
            changes["val_fraction"] = "auto"
        return settings.model_copy(update=changes)

    def found(self, all_splits: bool = False) -> Found:
        """See `DataSettings.found`."""
        kind, match, folder = self._read()
        notes = self._notes(folder) if all_splits else [*self._split_notes(folder), *self._notes(folder)]
        return Found(kind, match.sure.name.lower(), match.why, tuple(notes))

    def robot_value_range(self) -> ValueRange:
        """See `DataSettings.robot_value_range`."""
        return self.value_range

    def resolved(self) -> LabelledFolderData:
        """See `DataSettings.resolved`."""
        kind, _, folder = self._read()
        changes = {"val_fraction": self._resolved_fraction(folder), "ignore": self._resolved_ignored(folder)}
        return self.model_copy(update=changes | ({"format": kind} if "format" in type(self).model_fields else {}))

    @abstractmethod
    def _format(self, tree: Tree) -> tuple[str, Match]:
        """Name of the format, and why it is that."""

    def _read(self) -> tuple[str, Match, LabelledFolder]:
        tree = Tree(self.root)
        tree.check_complete()
        name, match = self._format(tree)
        patterns = Patterns(*(None if pattern == "auto" else pattern for pattern in (self.images, self.masks)))
        folder = find_format(name).open(tree, patterns)
        _check_images(folder)
        return name, match, folder

    def _class_map(self, folder: LabelledFolder) -> ClassMap:
        source = folder.classes
        if self.classes is None and not source.classes:
            raise DatasetError(
                f"the data set at {self.root} has no class names: list them under data.classes in the recipe, or in "
                f"{self.root}/classes.yaml{_values_found(folder, parse_ignored(self.ignore))}"
            )
        class_map = map_classes(self.classes, self.ignore, source)
        return _decide_kinds(class_map, folder) if folder.masks else class_map

    def _resolved_fraction(self, folder: LabelledFolder) -> float | Literal["auto"]:
        needed = self.val_fraction == "auto" and self.folds is None and not folder.samples.get("val")
        return DEFAULT_VAL_FRACTION if needed else self.val_fraction

    def _resolved_ignored(self, folder: LabelledFolder) -> object:
        if self.ignore != "auto" or folder.classes.drawn:
            return self.ignore
        class_map = self._class_map(folder)
        value = unlabelled_value(len(class_map.names))
        return [value] if (value, value) in class_map.masks.numbers.pairs() else "auto"

    def _split_notes(self, folder: LabelledFolder) -> list[str]:
        notes = []
        if self.folds is not None:
            notes.append(f"fold {self.fold} of {self.folds}: each image is for validation in one of them (data.folds)")
        elif self.val_fraction == "auto" and not folder.samples.get("val"):
            notes.append(
                f"the folder has no validation split: {DEFAULT_VAL_FRACTION:.0%} of the images are kept for it "
                "(data.val_fraction)"
            )
        if self.folds is not None or not folder.samples.get("val"):
            with contextlib.suppress(DatasetError):  # opening the split will say why
                taken = sum(len(self._samples_of(split, folder)) for split in ("train", "val"))
                beside = len(divided(folder.samples)) - taken
                if beside:
                    notes.append(f"{beside} images next to validation images of their video are in neither part")
        left_out = folder.samples.get(None, ())
        if left_out and (folder.samples.get("train") or folder.samples.get("val")):
            notes.append(f"{len(left_out)} images lie in no split and are left out")
        return notes

    def _notes(self, folder: LabelledFolder) -> list[str]:
        notes = []
        if folder.unlabelled:
            notes.append(f"{folder.unlabelled} images have no labels and are left out")
        if folder.boxes:
            notes.append(f"{folder.boxes} annotations have a box alone, which is filled")
        if folder.absent:
            notes.append(f"{folder.absent} images that lists name are not in the folder")
        if folder.masks and any(_has_alpha(sample) for sample in _some(folder)):
            notes.append("masks have an alpha channel, which is not read")
        if unread := unread_pictures(self.root, Tree(self.root).files):
            notes.append(unread)
        values = image_values(folder.all_samples())
        if values.ends is not None:
            ends, (low, high) = values.ends, values.range(self.value_range)
            notes.append(
                f"{values.number} images have 16 bits, their values lie from {ends.least} to {ends.most}: {low} to "
                f"{high} become 0 to 255 (data.value_range)"
            )
        return notes


class AutoData(LabelledFolderData):
    """A folder of images and labels, whose format is found by what lies in it; docs/data.md lists the formats."""

    name: Literal["auto"] = "auto"
    format: str = "auto"
    """Format of the labels, such as labelme or coco; auto: found by what lies in the folder."""

    def _format(self, tree: Tree) -> tuple[str, Match]:
        if self.format != "auto":
            return self.format, Match(Sure.CERTAINLY, "data.format says so")
        if self.masks != "auto":
            return "folder", Match(Sure.CERTAINLY, "data.masks says which files are masks")
        kind, match = detect(tree)
        return kind.name, match


class FolderData(LabelledFolderData):
    """A folder of images and masks.

    Every pixel of a mask holds a class id, another value that `classes` names, or the colour of a class. The split is
    told by lists named train, val and test, or by folders of these names, anywhere in the paths.
    """

    name: Literal["folder"] = "folder"

    def _format(self, tree: Tree) -> tuple[str, Match]:
        return "folder", Match(Sure.CERTAINLY, "data.name says so")


def _check_images(folder: LabelledFolder) -> None:
    """Raise DatasetError where two entries of shapes have one image file: at most one of them is of that image."""
    of_image: dict[Path, Sample] = {}
    for sample in folder.all_samples() if not folder.masks else ():
        first = of_image.setdefault(sample.image, sample) if sample.content is None else sample
        if first is not sample:
            raise DatasetError(
                f"{sample.image} is in {_origin(first)} and in {_origin(sample)}; keep one, or add the image of the "
                "other"
            )


def _origin(sample: Sample) -> str:
    return f"{sample.labels} ({sample.written})" if sample.written else str(sample.labels)


def _some(folder: LabelledFolder) -> list[Sample]:
    """A few samples, spread over all."""
    samples = folder.all_samples()
    chosen = [samples[index] for index in spread(len(samples), _LOOKED_AT)]
    return [sample for sample in chosen if sample.labels.is_file()]


def _has_alpha(sample: Sample) -> bool:
    try:
        return has_alpha(sample.labels)
    except ItemError:
        return False  # reading it will say why


def _decide_kinds(class_map: ClassMap, folder: LabelledFolder) -> ClassMap:
    """Say how masks that may hold numbers or colours are read, once for the data set.

    Programs that make files smaller store a mask whose colours are all grey with one channel, and one that is black and
    white with one bit. So among masks of colours, such files hold colours too.
    """
    labels = class_map.masks
    masks = []
    for sample in _some(folder):
        with contextlib.suppress(ItemError):  # reading it will say why
            mask = folder.read(sample)
            step = 1 + min(mask.values.shape) // _ENOUGH_ROWS
            masks.append(mask._replace(values=np.unique(mask.values[::step, ::step])))
    several_bits = [mask for mask in masks if not mask.coloured and not mask.bilevel]
    if labels.colours is not None:  # palettes are read by colour
        several_bits = [mask for mask in several_bits if mask.palette is None]
    largest = [int(labels.numbers_of(mask).max()) for mask in several_bits]
    labels = dataclasses.replace(labels, bilevel_ones=all(value < 2 for value in largest))
    if (colours := labels.colours) is not None:
        has_hues = any(mask.palette is not None or (mask.coloured and not is_grey(mask.values)) for mask in masks)
        greys = [mask.values for mask in masks if mask.coloured]
        lit = [as_greys(mask.values[mask.values > 0]) for mask in masks if not mask.coloured and mask.palette is None]
        lit = [values for values in lit if values.size]
        labels = dataclasses.replace(
            labels,
            grey_numbers=bool(greys) and not has_hues and not all(map(colours.covers, greys)),
            grey_colours=all(map(colours.names, lit)) and (has_hues or bool(lit)),
        )
    return class_map._replace(masks=labels)


def _values_found(folder: LabelledFolder, ignored: Items | None) -> str:
    """What the masks hold, as the start of a map to copy, without what is ignored; ends a message."""
    if not folder.masks:
        return ""
    values: set[int] = set()
    for sample in _some(folder):
        try:
            mask = folder.read(sample)
        except ItemError:
            continue
        if mask.coloured and not is_grey(mask.values):
            return ". The masks hold colours: write a mapping of names to colours [r, g, b]"
        values |= set((mask.values % 256 if mask.coloured else mask.values).ravel().tolist())
    void = {max(values)}.intersection(_VOID) if ignored is None and len(values) > 2 else set()
    values -= void | set(ignored.values if ignored is not None else ())
    if not values:
        return ""
    shown = sorted(values)[:20]
    written = ", ".join(f"class_{value}: {value}" for value in shown) + (", ..." if len(values) > len(shown) else "")
    more = f", and data.ignore as {list(void)}, the usual void" if void else ""
    return f". The masks hold the values of this map, whose names are for you to choose: {{{written}}}{more}"
