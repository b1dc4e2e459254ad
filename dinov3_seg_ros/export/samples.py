"""The images that graphs are compared on: the user's own, with their masks, or synthetic ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dinov3_seg_ros import scenes
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.frames.classes import MaskValues
from dinov3_seg_ros.frames.image_files import MASK_SUFFIXES, read_image, read_mask
from dinov3_seg_ros.frames.mask_labels import MaskLabels, fit_to_image
from dinov3_seg_ros.frames.sources import find_images, scale_of_all
from dinov3_seg_ros.support.errors import ParameterError

_ROOMS = 4

#: An image (H, W, 3) uint8 RGB, and for each bundle, by its name, the class ids (H, W) of its mask, if there is one.
Sample: TypeAlias = tuple[np.ndarray, Mapping[str, np.ndarray]]


class Samples:
    """Images to compare on, read anew each time that they are gone through: there may be more than memory holds.

    Args:
        entries: one for each image, in order.
        read: reads the samples of such entries, one after the other.
    """

    def __init__(self, entries: Sequence[Any], read: Callable[[Iterable[Any]], Iterator[Sample]]) -> None:
        self._entries, self._read = entries, read

    def __iter__(self) -> Iterator[Sample]:
        return self._read(self._entries)

    def spread(self, number: int) -> Samples:
        """Return at most this many of them, spread evenly over all: neighbours may be frames of one drive."""
        places = np.linspace(0, len(self._entries) - 1, min(number, len(self._entries))).round()
        return Samples([self._entries[int(place)] for place in places], self._read)


def open_samples(images: Path | None, masks: Path | None, bundles: Sequence[Bundle]) -> Samples:
    """Find the images to compare on, the user's sorted by path.

    Args:
        images: folder of images; None: synthetic ones.
        masks: folder of their masks, ``a.png`` or ``a_mask.png`` for the image ``a.jpg``; it may be that of the images.
            Each bundle reads them as its training did.
        bundles: whose classes the masks hold.

    Raises:
        ParameterError: a folder or a mask is missing.
        DatasetError: the folder holds no image; or, while reading, a file cannot be read, or a mask has a value that is
            no class of a bundle.
    """
    if images is None:
        if masks is not None:
            raise ParameterError("masks were given without images; name their images with --images")
        return Samples(_synthetic_images(), lambda chosen: ((image, {}) for image in chosen))
    for folder in (images, masks):
        if folder is not None and not folder.is_dir():
            raise ParameterError(f"{folder}: there is no such folder; give the folder of the images or of their masks")
    mask_of: Mapping[Path, Path | None] = dict.fromkeys(find_images(images))
    if masks is not None:
        # One folder may be spelt in two ways, and an image is not its own mask.
        mask_of = _masks_of(list(mask_of), images if masks.samefile(images) else masks)
    reading = {bundle.manifest.name: _MaskReading(bundle) for bundle in bundles}
    scale = scale_of_all(mask_of, bundles[0].manifest.input.value_range, str(images))

    def read(chosen: Iterable[tuple[Path, Path | None]]) -> Iterator[Sample]:
        for file, mask in chosen:
            image = read_image(file, scale)
            size = image.shape[0], image.shape[1]
            yield image, {} if mask is None else {name: own(mask, file, size) for name, own in reading.items()}

    return Samples(list(mask_of.items()), read)


class _MaskReading:
    """Reads masks as the training of a bundle did."""

    def __init__(self, bundle: Bundle) -> None:
        class_count = len(bundle.manifest.classes.names)
        values = bundle.manifest.masks or MaskValues.of_ids(class_count)
        self._labels, self._resize = MaskLabels.of_values(values, class_count), values.resize

    def __call__(self, mask: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
        """Class ids and the unlabelled value, of the image's size (height, width)."""
        return fit_to_image(self._labels.labels(read_mask(mask), mask), size, self._resize, mask, image)


def _masks_of(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The mask of each image; masks among the files are left out.

    Raises:
        ParameterError: an image has none.
    """
    named: dict[str, list[Path]] = {}
    listed = sorted(path for path in folder.iterdir() if path.suffix.lower() in MASK_SUFFIXES and path.is_file())
    for path in sorted(listed, key=lambda path: MASK_SUFFIXES.index(path.suffix.lower())):
        named.setdefault(path.stem, []).append(path)
    found = {file: _find_mask(file, named) for file in files}
    masks = set(found.values())
    missing = next((file for file, mask in found.items() if mask is None and file not in masks), None)
    if missing is not None:
        raise ParameterError(
            f"{folder} holds no mask {missing.stem} or {missing.stem}_mask ({', '.join(MASK_SUFFIXES)}) for {missing}; "
            "give masks of the images' names"
        )
    return {file: mask for file, mask in found.items() if mask is not None and file not in masks}


def _find_mask(image: Path, named: Mapping[str, Sequence[Path]]) -> Path | None:
    """The first mask of an image's name, among the files by their stems.

    Where images and masks share a folder, the first of two files of a name is the mask of the second.
    """
    named_alike = itertools.takewhile(lambda path: path != image, named.get(image.stem, ()))
    return next(itertools.chain(named_alike, named.get(f"{image.stem}_mask", ())), None)


def _synthetic_images() -> list[np.ndarray]:
    """Generate images for when the user gives none: rendered rooms, noise and even grey; (480, 640, 3) uint8 RGB."""
    rooms = [scenes.sample("val", room * scenes.VIEWS_PER_SCENE, (480, 640))[0] for room in range(_ROOMS)]
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    return [*rooms, noise, np.full_like(noise, 128)]
