"""Class names, their colours, the mask value that stands for no class, and how mask files hold the classes."""

from __future__ import annotations

import colorsys
import re
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

#: Red, green and blue, 0..255.
Colour: TypeAlias = tuple[int, int, int]
Byte = Annotated[int, Field(ge=0, le=255)]
_Label = Annotated[int, Field(ge=0, le=65535)]
#: Values of masks are below this: three bytes, as colours have.
VALUE_COUNT = 2**24
_Value = Annotated[int, Field(ge=0, lt=VALUE_COUNT)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def checked_line(text: str) -> str:
    """Return a text; raise ValueError where it holds control characters, which logs and terminals would obey."""
    if _CONTROL.search(text):
        raise ValueError(f"{text!r} holds control characters, such as line breaks; remove them")
    return text


class ClassesSection(BaseModel):
    """Class names and RGB colours, by class id; the section ``classes`` of a bundle.

    Attributes:
        names: at least one, each once, none empty or with control characters.
        palette: one RGB colour (0..255) for each name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Annotated[list[Annotated[str, AfterValidator(checked_line)]], Field(min_length=1)]
    palette: list[tuple[Byte, Byte, Byte]]

    @model_validator(mode="after")
    def _one_colour_each(self) -> ClassesSection:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} names but {len(self.palette)} colours")
        if not all(name.strip() for name in self.names):
            raise ValueError("a class has an empty name")
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        return self

    @property
    def unlabelled(self) -> int:
        """The mask value that stands for no class, see `unlabelled_value`."""
        return unlabelled_value(len(self.names))


class MaskValues(BaseModel):
    """How mask files hold the classes; the section ``masks`` of a bundle.

    A label is a class id or the unlabelled value.

    Attributes:
        numbers: first and last of successive numbers that have one label, and the label.
        colours: red, green, blue and label of each colour; None where masks of colours cannot be read.
        rest: label of everything else; None where that is an error.
        grey_numbers: whether masks of colours whose channels are equal hold numbers although classes have colours.
        grey_colours: whether masks of one channel hold grey colours, not numbers.
        bilevel_ones: whether white in masks of one bit is the number 1, where that has a label; else it is 255.
        resize: whether a mask of another size than its image is resized to it, by nearest neighbour.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    numbers: list[tuple[_Value, _Value, _Label]]
    colours: list[tuple[Byte, Byte, Byte, _Label]] | None = None
    rest: _Label | None = None
    grey_numbers: bool = False
    grey_colours: bool = False
    bilevel_ones: bool = True
    resize: bool = False

    def names(self, number: int) -> bool:
        """Whether a number has a label of its own, not that of the rest."""
        return any(first <= number <= last for first, last, _ in self.numbers)

    @classmethod
    def of_ids(cls, class_count: int) -> MaskValues:
        """Masks that hold the class ids, and the unlabelled value."""
        unlabelled = unlabelled_value(class_count)
        ids = [(index, index, index) for index in range(class_count)]
        return cls(numbers=[*ids, (unlabelled, unlabelled, unlabelled)])


def unlabelled_value(num_classes: int) -> int:
    """The mask value that stands for no class: 255 (uint8 masks) for up to 255 classes, else 65535 (uint16)."""
    return 255 if num_classes <= 255 else 65535


def label_type(num_classes: int) -> type[np.unsignedinteger]:
    """The type of labels and masks: uint8 for up to 255 classes, else uint16; see `unlabelled_value`."""
    return np.uint8 if num_classes <= 255 else np.uint16


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Return ``count`` distinct RGB colours (0..255).

    Neighbours in the list differ most: their hues are one golden section apart.
    """
    colours = []
    for index in range(count):
        hue = (index * 0.618034) % 1.0
        saturation, value = (0.75, 0.55, 0.9)[index % 3], (0.95, 0.8, 0.65)[(index // 3) % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
