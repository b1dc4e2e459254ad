"""Images that have labels already, to be left out where images without labels are looked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dinov3_seg_ros.frames.image_files import ImageSource, read_image
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, find_images
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.formats import detect
from training.data.reading.protocol import NO_PATTERNS
from training.data.reading.tree import Tree

# Pillow's modes of images with one value for each pixel.
_MASK_MODES = ("1", "L", "P", "I", "I;16")


@dataclass
class Labelled:
    """Images that have labels.

    Attributes:
        images: by a digest of their pixels, each once: (H, W, 3) uint8 RGB is read again from here.
        notes: what the user should know.
    """

    images: dict[bytes, ImageSource] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __contains__(self, pixels: np.ndarray) -> bool:
        """Whether an image is equal to one of them, pixel by pixel."""
        return bool(self.images) and _digest(pixels) in self.images


def find_labelled(folders: Iterable[Path], value_range: ValueRange = "auto") -> Labelled:
    """The images with labels in some folders, of any format that `training.data.formats` knows.

    In a folder that cannot be read as labelled, every image counts, and a note says so.

    Raises:
        DatasetError: there is no such folder, or no image in it; or an image cannot be read.
    """
    found = Labelled()
    for folder in folders:
        tree = Tree(folder)
        try:
            sources = [sample.source() for sample in detect(tree)[0].open(tree, NO_PATTERNS).all_samples()]
        except DatasetError as error:
            sources = [*find_images(folder, recursive=True)]
            found.notes.append(f"{error}. All {len(sources)} images in {folder} count as labelled")
        scale = ValueScale(value_range)
        found.images |= {_digest(read_image(source, scale)): source for source in sources}
    return found


def mask_files(folder: Path) -> set[Path]:
    """The files below a folder that are masks of others; none where no format knows the folder.

    A colour picture is no mask here: without a look at all of its colours it could be a second photo of the same name.
    """
    tree = Tree(folder)
    try:
        samples = detect(tree)[0].open(tree, NO_PATTERNS).all_samples()
    except DatasetError:
        return set()
    labels = {sample.labels for sample in samples if sample.labels != sample.image}
    return {path.resolve() for path in labels if path.suffix.lower() in IMAGE_SUFFIXES and _is_mask(path)}


def _is_mask(path: Path) -> bool:
    """Whether an image file has one value for each pixel."""
    try:
        with Image.open(path) as image:
            return image.mode in _MASK_MODES
    except OSError:  # whoever reads it says what is wrong with it
        return False


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
