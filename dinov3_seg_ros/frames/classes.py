"""Class names, colours, and the mask value that stands for no class."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Byte = Annotated[int, Field(ge=0, le=255)]


class ClassesSection(BaseModel):
    """Class names and RGB colours, by class id."""

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
        """The mask value that stands for no class: 255, or 65535 where there are more than 255 classes."""
        return unlabelled_value(len(self.names))


def unlabelled_value(num_classes: int) -> int:
    """The mask value that stands for no class, of masks with so many classes."""
    return 255 if num_classes <= 255 else 65535
