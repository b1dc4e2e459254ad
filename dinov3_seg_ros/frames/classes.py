"""Class names, their colours, and the mask value that stands for no class."""

from __future__ import annotations

import colorsys
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Byte = Annotated[int, Field(ge=0, le=255)]


class ClassesSection(BaseModel):
    """Class names and RGB colours, by class id; the section ``classes`` of a bundle.

    Attributes:
        names: at least one, each once.
        palette: one RGB colour (0..255) for each name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Annotated[list[str], Field(min_length=1)]
    palette: list[tuple[Byte, Byte, Byte]]

    @model_validator(mode="after")
    def _one_colour_each(self) -> ClassesSection:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} names but {len(self.palette)} colours")
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        return self

    @property
    def unlabelled(self) -> int:
        """The mask value that stands for no class, see `unlabelled_value`."""
        return unlabelled_value(len(self.names))


def unlabelled_value(num_classes: int) -> int:
    """The mask value that stands for no class: 255 (uint8 masks) for up to 255 classes, else 65535 (uint16)."""
    return 255 if num_classes <= 255 else 65535


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
