"""Reads image and mask files as arrays, without interpretation of their values; needs Pillow, which reads palettes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from dinov3_seg_ros.frames.classes import Colour
from dinov3_seg_ros.frames.sources import HEAD_BYTES, decode_pixels, decode_rgb, may_have_16_bits
from dinov3_seg_ros.frames.value_range import ValueEnds, ValueScale
from dinov3_seg_ros.support.errors import DatasetError, ItemError

#: Version of `read_image` and `read_mask`. Raise it when they give other pixels for the same file.
READING_VERSION = 5

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

# Modes of Pillow whose pixels are numbers, not colours.
_NUMBER_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")
_COLOUR_MODES = ("RGB", "RGBA")
# What Pillow makes of several channels of 16 bits.
_MODES_OF_8_BITS = (*_COLOUR_MODES, "LA")
# Names of Pillow.
# Those whose pixels are never approximate.
_MASK_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
_LOSSY_COMPRESSIONS = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WEBP"}
_PALETTE_MODES = ("P", "PA")
_ALPHA_MODES = ("LA", "RGBA", "PA")
# The value of a colour is its scalar product with these.
_COLOUR_WEIGHTS = np.array([1, 256, 65536], np.uint32)
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS_PER_SAMPLE = 0x0100, 0x0101, 0x0102
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)


class StoredImage(NamedTuple):
    """An image that lies inside another file.

    Attributes:
        content: what would be the image's own file.
        name: for messages.
    """

    content: bytes
    name: str

    def __str__(self) -> str:
        return self.name


#: Where an image is read from.
ImageSource: TypeAlias = Path | StoredImage


class MaskPixels(NamedTuple):
    """The pixels of a mask.

    Attributes:
        values: (H, W) uint32: numbers; where ``coloured``, colours as `colour_value` gives them.
        coloured: whether the values are colours.
        palette: (n,) uint32 colours of the numbers 0 to n - 1, where the file has a palette.
        bilevel: whether the file has one bit for each pixel. Its values are 0 and 255, black and white, as in the file
            of 8 bits that a program for smaller files may have made it from.
    """

    values: np.ndarray
    coloured: bool = False
    palette: np.ndarray | None = None
    bilevel: bool = False

    def numbers(self, bilevel_ones: bool) -> np.ndarray:
        """The values as numbers (H, W) uint32.

        Args:
            bilevel_ones: whether white of a file of one bit is 1, not 255.
        """
        return self.values // 255 if self.bilevel and bilevel_ones else self.values


def colour_value(colour: Colour) -> int:
    """The number that stands for an RGB colour: R + 256 G + 65536 B."""
    return int(np.dot(colour, _COLOUR_WEIGHTS))


def value_colour(value: int) -> Colour:
    """The RGB colour that a number stands for, see `colour_value`."""
    return value % 256, value // 256 % 256, value // 65536


def read_image(source: ImageSource, scale: ValueScale | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, turned as its EXIF tag says; an alpha channel is dropped.

    Args:
        source: where it is.
        scale: of all images that belong together, for 16-bit values; None learns it from this image alone.

    Raises:
        ItemError: the file is no image, is cut short, or has more than 16 bits per channel; or the range of its 16-bit
            values cannot be told.
    """
    with _picture(source) as picture:
        if _has_16_bits(source):
            picture.load()  # OpenCV takes a file that is cut short, and Pillow keeps 8 bits of a colour
            try:
                return decode_rgb(_content(source), source, scale or ValueScale(source=str(source)))
            except DatasetError as error:
                raise ItemError(str(error), "unreadable file") from error
        if picture.mode.startswith(("I", "F")):
            raise ItemError(
                f"{source} has more than 16 bits per channel (mode {picture.mode}); convert it to 8 or 16 bits",
                "unreadable file",
            )
        if not isinstance(picture, TiffImageFile) and _orientation(picture) != 1:  # a TIFF Pillow turns as it loads it
            picture = ImageOps.exif_transpose(picture)
        return np.array(picture.convert("RGB"))


def ends_of_16_bits(source: ImageSource) -> ValueEnds | None:
    """Where the values of a 16-bit image lie; None for images of other depths.

    Raises:
        ItemError: it is no image.
        DatasetError: it cannot be decoded.
        OSError: its file cannot be read.
    """
    if not _has_16_bits(source):
        return None
    return ValueEnds.of(decode_pixels(_content(source), source))


def image_size(source: ImageSource) -> tuple[int, int]:
    """Height and width that `read_image` gives, pixels, from the file's header.

    Raises:
        ItemError: the file is no image.
    """
    with _picture(source) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImageFile):  # whose size Pillow turns itself, from version 11 on
            width, height = picture.tag_v2[_TIFF_WIDTH], picture.tag_v2[_TIFF_HEIGHT]
        return (width, height) if _orientation(picture) in _TURNED_BY_A_QUARTER else (height, width)


def orientation(source: ImageSource) -> int:
    """EXIF's orientation of an image, 1 to 8; 1: it is seen as it is stored.

    Raises:
        ItemError: the file is no image.
    """
    with _picture(source) as picture:
        return _orientation(picture)


def is_turned(source: ImageSource) -> bool:
    """Whether the EXIF tag of an image turns it by a quarter, so that height and width change places."""
    return orientation(source) in _TURNED_BY_A_QUARTER


def has_alpha(source: ImageSource) -> bool:
    """Whether an image has an alpha channel.

    Raises:
        ItemError: the file is no image.
    """
    with _picture(source) as picture:
        return picture.mode in _ALPHA_MODES


def read_mask(source: ImageSource) -> MaskPixels:
    """Read a mask; an alpha channel is dropped.

    Raises:
        ItemError: the file cannot be read, or is no picture that a mask may be.
    """
    with _picture(source) as picture:
        inside = _LOSSY_COMPRESSIONS.get(str(picture.info.get("compression")))
        if picture.format not in _MASK_FORMATS or inside:
            kind = f"{picture.format} with {inside} inside" if inside else picture.format
            raise ItemError(f"{source} is {kind}, which may change values; export the masks as PNG", "unreadable file")
        if picture.mode in _MODES_OF_8_BITS and _has_16_bits(source):
            picture.load()  # OpenCV takes a file that is cut short
            return _numbers_of_16_bits(source)
        return _mask_pixels(picture, source)


def _numbers_of_16_bits(source: ImageSource) -> MaskPixels:
    """The numbers of a mask with several channels of 16 bits, of which Pillow keeps 8."""
    pixels = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(_content(source), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ItemError(f"{source} has 16 bits per channel and cannot be decoded; save it anew", "unreadable file")
    colours = pixels[..., :3] if pixels.ndim == 3 else pixels[..., np.newaxis]
    if (colours != colours[..., :1]).any():
        raise ItemError(
            f"{source} holds colours of 16 bits per channel; save colours with 8 bits, and numbers as grey",
            "unreadable file",
        )
    return MaskPixels(colours[..., 0].astype(np.uint32))


def _mask_pixels(picture: Image.Image, source: object) -> MaskPixels:
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
        numbers = (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.uint32)
        return MaskPixels(255 * numbers, bilevel=True) if picture.mode == "1" else MaskPixels(numbers)
    raise ItemError(f"{source} is a picture of mode {picture.mode}, which no mask should have", "unreadable file")


@contextlib.contextmanager
def _picture(source: ImageSource) -> Iterator[Image.Image]:
    """Open an image for a ``with`` block; errors of Pillow become an ItemError."""
    try:
        if isinstance(source, Path) and not source.is_file() and source.exists():
            raise OSError("it is no file")  # a pipe would have to be waited for
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source.content)) as picture:
            picture.filename = ""  # else Pillow maps it into memory, and reads a grey TIFF wrongly that is to be turned
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError(
            f"{source} cannot be read as an image ({error}); replace it, or remove it and its partner",
            "unreadable file",
        ) from error


def _has_16_bits(source: ImageSource) -> bool:
    """Whether an image has 16 bits per channel, from its header; Pillow's mode does not tell it of colours."""
    start = _content(source, HEAD_BYTES)
    if not may_have_16_bits(start):
        return False
    with _picture(source) as picture:
        return not isinstance(picture, TiffImageFile) or set(picture.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ())) == {16}


def _content(source: ImageSource, size: int = -1) -> bytes:
    """The bytes of an image's file, or the first ``size`` of them."""
    if isinstance(source, StoredImage):
        return source.content if size < 0 else source.content[:size]
    with source.open("rb") as file:
        return file.read(size)


def _orientation(picture: Image.Image) -> int:
    found = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return found if found in range(1, 9) else 1
