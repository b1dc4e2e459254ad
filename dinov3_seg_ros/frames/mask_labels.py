"""From the values and colours of mask files to class ids. Training reads its masks by this, and the export too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from dinov3_seg_ros.frames.classes import VALUE_COUNT, MaskValues, label_type, unlabelled_value
from dinov3_seg_ros.frames.image_files import ImageSource, MaskPixels, colour_value, is_turned, value_colour
from dinov3_seg_ros.support.errors import ItemError

#: By how much the aspect ratios of an image and its mask may differ for the mask to be resized.
_ASPECT_TOLERANCE = 0.03
# A picture of more colours is a photo.
_MOST_COLOURS = 1000


class LabelTable:
    """Table from the values of a mask to labels.

    Args:
        label_of: class id, or unlabelled value, of each allowed value; values below `VALUE_COUNT`.
        class_count: number of classes.
        name: describes a value for people, such as `as_number`.
        advice: what to do about a value that is not allowed; ends the error message.
        rest: label of all other values; None where they are not allowed.
    """

    def __init__(
        self,
        label_of: Mapping[int, int],
        class_count: int,
        name: Callable[[int], str],
        advice: str,
        rest: int | None = None,
    ) -> None:
        self._values = np.array(sorted(label_of), np.uint32)
        self._labels = np.array([label_of[value] for value in sorted(label_of)], label_type(class_count))
        self._name, self._advice, self.rest = name, advice, rest

    def pairs(self) -> list[tuple[int, int]]:
        """Each value with its label, in the order of the values."""
        return list(zip(self._values.tolist(), self._labels.tolist(), strict=True))

    def covers(self, values: np.ndarray) -> bool:
        """Whether every value is allowed."""
        return self.rest is not None or self.names(values)

    def names(self, values: np.ndarray) -> bool:
        """Whether every value has a label of its own, not that of the rest."""
        return bool(np.isin(values, self._values).all())

    def names_class(self, values: np.ndarray) -> bool:
        """Whether any of the values is named as one of a class."""
        named = np.isin(self._values, values)
        return bool((self._labels[named] != np.iinfo(self._labels.dtype).max).any())

    def labels(self, values: np.ndarray, source: object) -> np.ndarray:
        """Labels (H, W), uint8 (uint16 above 255 classes), of the values (H, W) uint32 that ``source`` holds.

        Raises:
            ItemError: a value is not allowed.
        """
        # Zero means unknown; the last entry stands for everything beyond the largest value. The system provides zeros
        # only where they are touched, so that a table of 16 million colours costs little.
        wide = np.uint16 if self._labels.dtype == np.uint8 else np.uint32
        table = np.zeros(int(self._values.max(initial=0)) + 2, wide)
        if self.rest is not None:
            table[:] = self.rest + 1
        table[self._values] = self._labels.astype(wide) + 1
        found = table.take(values, mode="clip")
        if not found.all():
            row, column = np.argwhere(found == 0)[0]
            raise ItemError(
                f"{source} has {self._name(int(values[row, column]))} at row {row}, column {column}; {self._advice}",
                "value of no class",
            )
        return (found - 1).astype(self._labels.dtype)


@dataclass(frozen=True)
class MaskLabels:
    """The label of every value and colour of masks.

    Attributes:
        numbers: labels of numbers.
        colours: labels of colours; None where the classes have none.
        grey_numbers, grey_colours, bilevel_ones: see `MaskValues`.
        no_colours: why there are no labels of colours; ends a message.
        no_numbers: why masks of numbers cannot be read although masks of colours can; ends a message, empty where they
            can be read.
    """

    NO_COLOURS: ClassVar[str] = (
        "give every class a colour (data.classes: a mapping of names to colours [r, g, b]), or store one class id per "
        "pixel (greyscale or palette PNG)"
    )

    numbers: LabelTable
    colours: LabelTable | None = None
    grey_numbers: bool = False
    grey_colours: bool = False
    bilevel_ones: bool = True
    no_colours: str = NO_COLOURS
    no_numbers: str = ""

    @classmethod
    def of_values(cls, values: MaskValues, class_count: int) -> MaskLabels:
        """The labels that a bundle of ``class_count`` classes describes."""
        numbers = {value: label for first, last, label in values.numbers for value in range(first, last + 1)}
        advice = f"the bundle was trained on masks with the values {ranges(numbers) or 'none'}; give masks like these"
        colours, no_numbers = None, ""
        if values.colours is not None:
            numbered = {unlabelled_value(class_count), *numbers.values()}
            if not numbered.issuperset(label for *_, label in values.colours):
                no_numbers = "but the bundle was trained on masks of colours; give masks like these"
            colours = LabelTable(
                {colour_value((red, green, blue)): label for red, green, blue, label in values.colours},
                class_count,
                as_colour,
                "the masks that the bundle was trained on have other colours; give masks like these",
                values.rest,
            )
        return cls(
            LabelTable(numbers, class_count, as_number, advice, values.rest),
            colours,
            values.grey_numbers,
            values.grey_colours,
            values.bilevel_ones,
            "the bundle was trained on masks of numbers; give masks like these",
            no_numbers,
        )

    def values(self, resize: bool = False) -> MaskValues:
        """The same for a bundle."""
        colours = [] if self.colours is None else self.colours.pairs()
        return MaskValues(
            numbers=_runs(self.numbers.pairs()),
            colours=None if self.colours is None else [(*value_colour(value), label) for value, label in colours],
            rest=self.numbers.rest,
            grey_numbers=self.grey_numbers,
            grey_colours=self.grey_colours,
            bilevel_ones=self.bilevel_ones,
            resize=resize,
        )

    def labels(self, mask: MaskPixels, source: object) -> np.ndarray:
        """Class ids and the unlabelled value (H, W), uint8 (uint16 above 255 classes).

        Args:
            mask: pixels of one mask.
            source: the mask's file, for messages.

        Raises:
            ItemError: a value or colour belongs to no class.
        """
        if mask.palette is not None and self.colours is not None:
            return _palette_labels(mask.values, mask.palette, source, self.colours)
        if not mask.coloured:
            if self.colours is not None and self._holds_greys(mask, self.colours):
                return self.colours.labels(as_greys(mask.values), source)
            return self._number_labels(self.numbers_of(mask), source)
        if self.colours is not None and not (self.grey_numbers and is_grey(mask.values)):
            return self.colours.labels(mask.values, source)
        if is_grey(mask.values):
            return self._number_labels(mask.values % 256, source)
        if len(np.unique(mask.values)) > _MOST_COLOURS:
            raise ItemError(
                f"{source} looks like a photo, not like a mask; are images and masks swapped?", "value of no class"
            )
        raise ItemError(f"{source} is a colour image; {self.no_colours}", "value of no class")

    def _holds_greys(self, mask: MaskPixels, colours: LabelTable) -> bool:
        """Whether one channel holds grey colours; numbers have values that are no colours."""
        if not self.grey_colours or mask.palette is not None:
            return False
        greys = as_greys(np.unique(mask.values))
        return colours.covers(greys) and colours.names(greys[greys > 0])

    def numbers_of(self, mask: MaskPixels) -> np.ndarray:
        """The numbers that one channel holds, as many as the mask's values, uint32."""
        if mask.palette is None:
            return mask.numbers(self.bilevel_ones and self.numbers.names(np.array([1])))
        if is_grey(mask.palette):
            # Numbers that were stored with a palette to make the file smaller, unless they do not fit the classes.
            present = np.unique(mask.values)
            if present[-1] < len(mask.palette):
                greys: np.ndarray = mask.palette[present] % 256
                lit = greys[greys > 0]
                if self.numbers.covers(greys) and self.numbers.names(lit) and self.numbers.names_class(lit):
                    return np.asarray(mask.palette[mask.values] % 256)
        return mask.values

    def _number_labels(self, values: np.ndarray, source: object) -> np.ndarray:
        if self.no_numbers:
            raise ItemError(f"{source} holds numbers, {self.no_numbers}", "value of no class")
        return self.numbers.labels(values, source)


def fit_to_image(
    labels: np.ndarray, size: tuple[int, int], resize: bool, mask: object, image: ImageSource
) -> np.ndarray:
    """Labels in the size of their image.

    Args:
        labels: (h, w), of any unsigned type.
        size: height and width of the image, pixels.
        resize: whether labels of another size and the same aspect ratio are resized, by nearest neighbour.
        mask, image: where they come from, for messages.

    Raises:
        ItemError: they have another size.
    """
    height, width = size
    if labels.shape == (height, width):
        return labels
    fits = abs((height / labels.shape[0]) / (width / labels.shape[1]) - 1) < _ASPECT_TOLERANCE
    if resize and fits:
        return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    advice = "a mask must have the size of its image"
    if labels.shape == (width, height) and is_turned(image):
        advice = (
            "the image's EXIF tag turns it by a quarter, and the mask was made without that turn: turn the mask, or "
            "save the image without the tag"
        )
    elif fits:
        advice += ": set data.resize_masks to true to resize it"
    raise ItemError(
        f"{mask} is {labels.shape[1]}x{labels.shape[0]} pixels and its image {image} is {width}x{height}; {advice}",
        "sizes differ",
    )


def is_grey(values: np.ndarray) -> bool:
    """Whether the three channels of every colour are equal."""
    return bool((values % 256 * 65793 == values).all())


def as_greys(values: np.ndarray) -> np.ndarray:
    """The grey colours of numbers (H, W) uint32, as `colour_value` gives them; above 255 a number that is no colour."""
    return np.where(values < 256, 65793 * values, VALUE_COUNT)


def as_number(value: int) -> str:
    """Describe a value for people."""
    return f"the value {value}"


def as_colour(value: int) -> str:
    """Describe a colour for people."""
    return f"the colour {list(value_colour(value))}"


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges for people: 255, 0, 1, 2 becomes "0 to 2 and 255"."""
    runs = _runs((number, 0) for number in sorted(numbers))
    return " and ".join(str(first) if first == last else f"{first} to {last}" for first, last, _ in runs)


def _runs(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """First and last of successive values of one label, and the label, from pairs of value and label in order."""
    runs: list[tuple[int, int, int]] = []
    for value, label in pairs:
        if runs and runs[-1][1:] == (value - 1, label):
            runs[-1] = (runs[-1][0], value, label)
        else:
            runs.append((value, value, label))
    return runs


def _palette_labels(indices: np.ndarray, palette: np.ndarray, source: object, table: LabelTable) -> np.ndarray:
    if int(indices.max(initial=0)) >= len(palette):
        raise ItemError(f"{source} has pixels beyond the end of its palette; save it anew", "unreadable file")
    try:
        return table.labels(palette[indices], source)
    except ItemError as error:
        raise ItemError(
            f"{error}. The file has a palette, which is read by its colours because the classes have colours. If its "
            "indices are the class ids, give data.classes without colours",
            "value of no class",
        ) from error
