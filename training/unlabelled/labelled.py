"""Images that have labels already, to be left out where images without labels are looked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dinov3_seg_ros.frames.image_files import ImageSource, StoredImage, ends_of_16_bits, read_image
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, decode_pixels
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.formats import detect
from training.data.image_values import image_values
from training.data.reading.protocol import NO_PATTERNS, LabelledFolder, Sample
from training.data.reading.tree import Tree, images_below

# Pillow's modes of images with one value for each pixel.
_MASK_MODES = ("1", "L", "P", "I", "I;16")


@dataclass
class Labelled:
    """Images that have labels.

    Attributes:
        images: each once, to be read again: those that lie in tables would fill the memory.
        notes: what the user should know.
    """

    images: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _digests: set[bytes] = field(default_factory=set)

    def has(self, pixels: np.ndarray, file: Path | None = None) -> bool:
        """Whether an image is equal to one of them, pixel by pixel.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            file: where it was read from. Two 16-bit images are equal if their files hold the same values, however
                these were scaled: with the range ``auto`` that depends on the images that were read before.

        Raises:
            DatasetError: the file can no longer be read.
        """
        if not self._digests:
            return False
        return not self._digests.isdisjoint(_digests(pixels, file))

    def add(self, sample: Sample, scale: ValueScale) -> None:
        """Add an image, unless it is equal to one of them.

        Args:
            sample: where it is.
            scale: of 16-bit values.

        Raises:
            DatasetError: it cannot be read.
        """
        source = sample.source()
        digests = _digests(read_image(source, scale), source)
        if self._digests.isdisjoint(digests):
            self.images.append(sample)
        self._digests |= digests


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
            samples = detect(tree)[0].open(tree, NO_PATTERNS).all_samples()
        except DatasetError as error:
            samples = [Sample(image, image) for image in images_below(folder)]
            found.notes.append(f"{error}. All {len(samples)} images in {folder} count as labelled")
        scale = ValueScale(value_range, ends=image_values(samples).ends)
        for sample in samples:
            found.add(sample, scale)
    return found


def mask_files(folder: Path) -> set[Path]:
    """The files below a folder that are masks of others; none where no format knows the folder.

    Further files of one channel in folders of masks are masks too, such as those of instances. A colour picture is no
    mask here: without a look at all of its colours it could be a second photo of the same name.
    """
    tree = Tree(folder)
    try:
        opened = detect(tree)[0].open(tree, NO_PATTERNS)
    except DatasetError:
        return set()
    images = {sample.image for sample in opened.all_samples()}
    masks = {path for path in _label_images(opened) if path not in images and _is_mask(path)}
    of_masks = {path.parent for path in masks} - {path.parent for path in images}
    beside = {path for path in map(tree.path, tree.images) if path.parent in of_masks and path not in images}
    return {path.resolve() for path in masks | {path for path in beside if _is_mask(path)}}


def _label_images(opened: LabelledFolder) -> set[Path]:
    paths = {*(sample.labels for sample in opened.all_samples()), *opened.spare, *opened.evidence}
    return {path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def _is_mask(path: Path) -> bool:
    """Whether an image file has one value for each pixel."""
    try:
        with Image.open(path) as image:
            return image.mode in _MASK_MODES
    except OSError:  # whoever reads it says what is wrong with it
        return False


def _digests(pixels: np.ndarray, source: ImageSource | None) -> set[bytes]:
    """What an image is recognised by: its pixels as they were read, and its 16-bit values."""
    found = {_digest(pixels)}
    if source is not None and ends_of_16_bits(source) is not None:
        content = source.content if isinstance(source, StoredImage) else source.read_bytes()
        found.add(_digest(decode_pixels(content, source)))
    return found


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
