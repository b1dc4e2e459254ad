"""From a bundle's classes to the published ones: filter, merge, order, colours, and unlabelled pixels."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dinov3_seg_ros.frames.classes import Byte, ClassesSection, Colour, label_type, unlabelled_value
from dinov3_seg_ros.frames.overlay import blend_overlay, colour_mask
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.yaml_text import parse_yaml


class ClassList(BaseModel):
    """The classes to publish, as a YAML file lists them. One file may serve several heads.

    Attributes:
        classes: published name -> names of the bundle's classes that it stands for. Published ids count from 0 in this
            order. Classes that are not named become unlabelled. A plain list of names keeps each class by itself. None
            publishes all classes of the bundle under their own ids.
        palette: published name -> RGB colour, 0..255, instead of the bundle's.
        unlabelled_colour: RGB colour of unlabelled pixels in the colour mask; None for the one in `OutputClasses`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)] | None = None
    palette: dict[str, tuple[Byte, Byte, Byte]] = {}
    unlabelled_colour: tuple[Byte, Byte, Byte] | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _names_stand_for_themselves(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if len({str(name) for name in value}) != len(value):
            raise ValueError("a class is named twice")
        return {name: [name] for name in value}

    @field_validator("classes")
    @classmethod
    def _one_meaning_each(cls, value: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        sources = [source for names in (value or {}).values() for source in names]
        for source in sources:
            if sources.count(source) > 1:
                raise ValueError(f"'{source}' is published as two classes")
        return value


class Labelled(Protocol):
    """Labels (H, W) uint8 or uint16 and confidence (H, W) uint8 of one frame, such as `segmenter.HeadSegmentation`.

    ``merged`` gives them for groups of class ids, in which labels are positions: a group is as probable as its classes
    together.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def confidence(self) -> np.ndarray: ...

    def merged(self, groups: Sequence[Sequence[int]]) -> Labelled: ...


@dataclass(frozen=True)
class OutputClasses:
    """The classes that one head publishes.

    Attributes:
        names: class names, by published id.
        palette: RGB colours, 0..255, by published id; black for names that only other heads publish.
        unlabelled: the mask value that stands for no class: 255, or 65535 for more than 255 published classes.
        groups: the bundle's ids that are decoded as one class, which the class list merges; those that are not named
            are groups of their own. None where nothing is merged.
        lookup: (256,) or (65536,) uint8 or uint16, the published id for each position in ``groups``, or for each id of
            the bundle; None if all are equal.
        unlabelled_colour: RGB colour of no class in colour masks. Unless the class list chooses one it is black; where
            a class is black, white.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    unlabelled: int
    groups: tuple[tuple[int, ...], ...] | None = None
    lookup: np.ndarray | None = None
    unlabelled_colour: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, classes: ClassesSection, chosen: ClassList | None = None) -> OutputClasses:
        """Apply a class list to a bundle's classes.

        Args:
            classes: the bundle's classes.
            chosen: from `load_class_list`. Names that the bundle lacks are left to other heads (see
                `check_class_list`); their ids stay unused. None publishes the bundle's classes as they are.

        Raises:
            ParameterError: the chosen colour of unlabelled pixels is that of a class.
        """
        chosen = chosen or ClassList()
        ids = {name: index for index, name in enumerate(classes.names)}
        published_classes = chosen.classes or {name: [name] for name in classes.names}
        names, unlabelled = tuple(published_classes), unlabelled_value(len(published_classes))
        colours: dict[str, Colour] = {}
        published_as: dict[tuple[int, ...], int] = {}
        for published, (name, sources) in enumerate(published_classes.items()):
            known = [ids[source] for source in sources if source in ids]
            if known:
                published_as[tuple(sorted(known))] = published
                colours[name] = classes.palette[known[0]]
        named = set(itertools.chain(*published_as))
        decoded = tuple(sorted([*published_as, *((index,) for index in ids.values() if index not in named)]))
        lookup = np.full(unlabelled_value(len(decoded)) + 1, unlabelled, label_type(len(names)))
        for position, group in enumerate(decoded):
            lookup[position] = published_as.get(group, unlabelled)
        is_same = names == tuple(classes.names) and np.array_equal(lookup[: len(names)], np.arange(len(names)))
        groups = decoded if len(decoded) < len(ids) else None  # else the positions are the ids
        colours |= {name: chosen.palette[name] for name in names if name in chosen.palette}
        same = next((name for name, colour in colours.items() if colour == chosen.unlabelled_colour), None)
        if same is not None:
            raise ParameterError(
                f"the class list gives unlabelled pixels the colour {list(chosen.unlabelled_colour or ())}, which "
                f"class '{same}' has; choose another unlabelled_colour"
            )
        unlabelled_colour = chosen.unlabelled_colour or _unused_colour(colours.values())
        palette = tuple(colours.get(name, (0, 0, 0)) for name in names)
        return cls(names, palette, unlabelled, groups, None if is_same else lookup, unlabelled_colour)

    def labels(self, found: Labelled, threshold: int = 0) -> np.ndarray:
        """Published labels, (H, W) uint8 or uint16.

        Args:
            found: one head's result for a frame.
            threshold: the least confidence of a labelled pixel, in 1/255, from `confidence_threshold`. With 0 there is
                no threshold, and the confidence is not decoded.
        """
        return self._published(self._merged(found), threshold)

    def labels_and_confidence(self, found: Labelled, threshold: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Published labels as from `labels`, and confidence (H, W) uint8, 0 where a pixel is unlabelled.

        The confidence of a merged class is the probability of all classes that it stands for.
        """
        found = self._merged(found)
        confidence = found.confidence  # asked for first, since its decode gives the labels as well
        labels = self._published(found, threshold)
        if labels is found.labels:
            return labels, confidence
        return labels, confidence * (labels != self.unlabelled)

    def _merged(self, found: Labelled) -> Labelled:
        return found if self.groups is None else found.merged(self.groups)

    def _published(self, found: Labelled, threshold: int) -> np.ndarray:
        confidence = found.confidence if threshold else None
        labels = found.labels
        if self.lookup is not None:
            bytes_only = labels.dtype == self.lookup.dtype == np.uint8
            labels = cv2.LUT(labels, self.lookup) if bytes_only else self.lookup[labels]
        if confidence is not None:
            doubtful = (confidence < threshold).astype(labels.dtype)
            labels = labels | np.negative(doubtful)  # sets all bits where doubtful: 255 or 65535, unlabelled
        return labels

    def coloured(self, labels: np.ndarray) -> np.ndarray:
        """A colour mask, (H, W, 3) uint8 RGB, of labels as from `labels`."""
        return colour_mask(labels, self.palette, self.unlabelled_colour)

    def overlay(self, image: np.ndarray, labels: np.ndarray, options: PublishOptions) -> np.ndarray:
        """The classes' colours over an image, as the options say; see `overlay.blend_overlay`.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: as from `labels`, of any size.
            options: of the overlay.
        """
        names = self.names if options.overlay_names else None
        return blend_overlay(image, labels, self.palette, options.overlay_alpha, names)


def classes_to_publish(path: str, of_bundles: Mapping[str, ClassesSection]) -> dict[str, OutputClasses]:
    """What each of several bundles publishes.

    Args:
        path: of a class list; empty publishes all classes of the bundles.
        of_bundles: the bundles' classes, by name.

    Raises:
        ParameterError: the class list cannot be used.
    """
    chosen = load_class_list(path) if path else ClassList()
    check_class_list(chosen, of_bundles)
    return {name: OutputClasses.of(classes, chosen) for name, classes in of_bundles.items()}


def load_class_list(path: str | os.PathLike[str]) -> ClassList:
    """Read a class list from a YAML file.

    Raises:
        ParameterError: the file cannot be read or is no class list; the message names the file and the place in it.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(f"class list {path} is not YAML: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # no file; the home of an unknown user; no path
        raise ParameterError(
            f"class list {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ParameterError(f"class list {path} is not YAML: {error}") from error
    try:
        return ClassList.model_validate(content or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ParameterError(
            f"class list {path}: {where}: {problem['msg']}; it may hold 'classes', 'palette' and 'unlabelled_colour', "
            "see config/classes"
        ) from error


def check_class_list(chosen: ClassList, of_bundles: Mapping[str, ClassesSection]) -> None:
    """Check that each name in a class list occurs in a bundle, and that each bundle has one of the names.

    Args:
        chosen: the class list.
        of_bundles: the bundles' classes, by name.

    Raises:
        ParameterError: a name would have no effect, or all pixels of a bundle's masks would be unlabelled.
    """
    known = {name for classes in of_bundles.values() for name in classes.names}
    published = known if chosen.classes is None else set(chosen.classes)
    named = [source for sources in (chosen.classes or {}).values() for source in sources]
    for name in named:
        if name not in known:
            raise ParameterError(
                f"the class list names '{name}', which no bundle has; the classes are: {', '.join(sorted(known))}"
            )
    for name in chosen.palette:
        if name not in published:
            raise ParameterError(
                f"the palette colours '{name}', which is not published; published: {', '.join(sorted(published))}"
            )
    for bundle, classes in of_bundles.items():
        if chosen.classes is not None and not set(named) & set(classes.names):
            raise ParameterError(
                f"the class list names no class of the bundle '{bundle}', so all of its pixels would be unlabelled; "
                f"name at least one of: {', '.join(classes.names)}"
            )


def _unused_colour(palette: Collection[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Black, or white, or the lightest colour that no class has."""
    candidates = itertools.chain([(0, 0, 0)], itertools.product(range(255, -1, -1), repeat=3))
    return next((red, green, blue) for red, green, blue in candidates if (red, green, blue) not in palette)


def confidence_threshold(probability: float) -> int:
    """Convert a probability (0..1) to the least confidence, in 1/255, of a pixel that is at least so probable.

    Confidences are rounded, so a pixel that is less probable by up to 1/255 may reach it too.
    """
    return math.floor(255.0 * probability + 0.5)
