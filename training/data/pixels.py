"""Reads image and mask files as arrays, without interpretation of their values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from training.data.base import Colour, ItemError

#: Version of `read_image` and `read_mask`. Raise it when they give other pixels for the same file.
READING_VERSION = 1

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

#: Values of a mask are below this: three bytes, as colours have.
VALUE_COUNT = 2**24

# Modes of Pillow whose pixels are numbers, not colours.
_NUMBER_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")
_COLOUR_MODES = ("RGB", "RGBA")
_PALETTE_MODES = ("P", "PA")
_ALPHA_MODES = ("LA", "RGBA", "PA")
# The value of a colour is its scalar product with these.
_COLOUR_WEIGHTS = np.array([1, 256, 65536], np.uint32)
_EXIF_ORIENTATION = 0x0112
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)


class MaskPixels(NamedTuple):
    """The pixels of a mask.

    Attributes:
        values: (H, W) uint32: numbers; where ``coloured``, colours as `colour_value` gives them.
        coloured: whether the values are colours.
        palette: (n,) uint32 colours of the numbers 0 to n - 1, where the file has a palette.
    """

    values: np.ndarray
    coloured: bool = False
    palette: np.ndarray | None = None


def colour_value(colour: Colour) -> int:
    """The number that stands for an RGB colour: R + 256 G + 65536 B."""
    return int(np.dot(colour, _COLOUR_WEIGHTS))


def value_colour(value: int) -> Colour:
    """The RGB colour that a number stands for, see `colour_value`."""
    return value % 256, value // 256 % 256, value // 65536


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, turned as its EXIF tag says; an alpha channel is dropped.

    Raises:
        ItemError: the file is no image, is cut short, or has more than 8 bits per channel.
    """
    with _picture(path) as picture:
        return rgb_pixels(picture, path)


def rgb_pixels(picture: Image.Image, source: Path | str) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of an open picture, turned as its EXIF tag says.

    Raises:
        ItemError: it has more than 8 bits per channel.
    """
    if picture.mode.startswith(("I", "F")):
        raise ItemError(
            f"{source} has more than 8 bits per pixel (mode {picture.mode}); convert it to 8 bits, as the robot's "
            "images have",
            "unreadable file",
        )
    if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return np.array(picture.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width that `read_image` gives, pixels, from the file's header.

    Raises:
        ItemError: the file is no image.
    """
    with _picture(path) as picture:
        width, height = picture.size
        return (width, height) if _is_turned(picture) else (height, width)


def is_turned(path: Path) -> bool:
    """Whether the EXIF tag of an image file turns it by a quarter, so that height and width change places."""
    with _picture(path) as picture:
        return _is_turned(picture)


def has_alpha(path: Path) -> bool:
    """Whether an image file has an alpha channel.

    Raises:
        ItemError: the file is no image.
    """
    with _picture(path) as picture:
        return picture.mode in _ALPHA_MODES


def read_mask(path: Path) -> MaskPixels:
    """Read a mask file; an alpha channel is dropped.

    Raises:
        ItemError: the file cannot be read, or is no picture that a mask may be.
    """
    with _picture(path) as picture:
        return mask_pixels(picture, path)


def mask_pixels(picture: Image.Image, source: Path | str) -> MaskPixels:
    """The pixels of an open picture as those of a mask.

    Raises:
        ItemError: its mode is none that a mask may have.
    """
    if picture.mode in _COLOUR_MODES:
        return MaskPixels(np.array(picture)[..., :3] @ _COLOUR_WEIGHTS, coloured=True)
    if picture.mode in _PALETTE_MODES:
        pixels = np.array(picture)
        palette = np.array(picture.getpalette("RGB") or [], np.uint32).reshape(-1, 3)
        return MaskPixels(
            (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.uint32), palette=palette @ _COLOUR_WEIGHTS
        )
    if picture.mode in _NUMBER_MODES:
        pixels = np.array(picture)
        return MaskPixels((pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.uint32))
    raise ItemError(f"{source} is a picture of mode {picture.mode}, which no mask should have", "unreadable file")


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """Open an image file for a ``with`` block; errors of Pillow become an ItemError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError(
            f"{path} cannot be read as an image ({error}); replace it, or remove it and its partner", "unreadable file"
        ) from error


def _is_turned(picture: Image.Image) -> bool:
    return picture.getexif().get(_EXIF_ORIENTATION, 1) in _TURNED_BY_A_QUARTER
