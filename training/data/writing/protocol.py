"""The protocol of writers of label formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from dinov3_seg_ros.frames.classes import Colour
from training.data.writing.regions import Region

#: How regions are written: ``polygons``, which people edit easily, or ``masks``, which are exact.
ShapeKind: TypeAlias = Literal["polygons", "masks"]

#: Folder of the images.
IMAGES = "images"
#: Label of regions of no class, as labelme writes it.
IGNORED_LABEL = "__ignore__"


class LabelWriter(ABC):
    """Writes the labels of images.

    Args:
        folder: where to write.
        names: labels that regions may have, in the order of their numbers.
        palette: RGB colour (0..255) of each.
        shapes: how regions are written.

    Attributes:
        is_file_of_each_image: whether the labels of an image are in a file of its name with another suffix.
    """

    is_file_of_each_image: ClassVar[bool] = False

    def __init__(self, folder: Path, names: Sequence[str], palette: Sequence[Colour], shapes: ShapeKind) -> None:
        self.folder, self.names, self.palette, self.shapes = folder, list(names), list(palette), shapes

    @abstractmethod
    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """Add an image.

        Args:
            name: of its file, relative to ``images/``.
            size: height and width, pixels.
            regions: in the order of drawing; later ones lie over earlier ones.

        Raises:
            OSError: a file cannot be written.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what all images share.

        Raises:
            OSError: a file cannot be written.
        """
