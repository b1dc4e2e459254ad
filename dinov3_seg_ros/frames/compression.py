"""JPEG and PNG images to RGB, and pictures to files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.frames.encodings import ImageData, bayer_to_rgb, check_size, quoted, refuse_depth
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.errors import MessageError, OutputError
from dinov3_seg_ros.support.files import replacing_file
from dinov3_seg_ros.support.option_checks import MAX_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"
# The most pixels a side that OpenCV writes; asked for more, it prints lines of its own.
_MOST_PIXELS = {".jpg": ("JPEG", 65_500), ".png": ("PNG", 1_000_000)}
_AS_IT_IS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


def compressed_to_rgb(
    data: ImageData, description: str = "", max_pixels: int = MAX_PIXELS, scale: ValueScale | None = None
) -> np.ndarray:
    """Decode a JPEG or PNG file to (H, W, 3) uint8 RGB.

    The size is read from the header before anything is decoded: a file of a few bytes may claim gigabytes of pixels.
    An orientation tag is ignored: masks must line up with the picture for which the camera was calibrated.

    Args:
        data: the bytes of the file.
        description: the message's field ``format``, in image_transport's form ``ENCODING; jpeg compressed TARGET``.
            Nothing else tells a Bayer mosaic from a grey picture, or depth from a picture.
        max_pixels: images with more pixels raise MessageError.
        scale: of the stream, for 16-bit values; None learns it from this image alone.

    Raises:
        MessageError: the data are neither JPEG nor PNG, are damaged, or hold depth, or an image that is empty or too
            large, or whose range of 16-bit values cannot be told.
    """
    scale = scale or ValueScale()
    encoding, _, converted = (part.strip() for part in description.partition(";"))
    refuse_depth(encoding, scale)
    content = np.frombuffer(data, np.uint8)
    described = f"compressed image ({content.size} bytes, {quoted(description)})"
    height, width = compressed_size(content.data, described)
    check_size(height, width, max_pixels)
    try:
        picture = cv2.imdecode(content, _AS_IT_IS)
    except cv2.error as error:
        raise MessageError("damaged data", f"{described} cannot be decoded: {error.err}") from error
    if picture is None:
        raise MessageError("damaged data", f"{described} is damaged or truncated")
    if picture.dtype == np.uint16:
        picture = scale.to_8_bits(picture)
    if picture.ndim == 3:
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    # image_transport names what it converted the image to; with JPEG that is grey even for a mosaic.
    mosaic = None if "mono" in converted else bayer_to_rgb(picture, encoding)
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if mosaic is None else mosaic


def compressed(picture: np.ndarray, suffix: str, parameters: Sequence[int] = ()) -> NDArray[np.uint8]:
    """The bytes of a file with a picture.

    Args:
        picture: (H, W) grey or (H, W, 3) BGR.
        suffix: names the format: .jpg or .png, in upper or lower case.
        parameters: of OpenCV's ``imencode``.

    Raises:
        MessageError: the format cannot hold so large a picture.
    """
    (height, width), (name, most) = picture.shape[:2], _MOST_PIXELS[suffix.lower()]
    if max(height, width) > most:
        details = f"{name} holds at most {most} pixels a side; the picture has {width}x{height}"
        raise MessageError("picture too large", details)
    return cv2.imencode(suffix, picture, parameters)[1]


def write_picture(path: Path, picture: np.ndarray, durable: bool = True) -> None:
    """Write a picture whole or not at all, in the format that the suffix names.

    Args:
        path: the file; its folder is made if missing.
        picture: see `compressed`.
        durable: see `replacing_file`.

    Raises:
        OSError: it cannot be written, for one to a full disk, which imwrite does not report.
        OutputError: the format cannot hold so large a picture.
    """
    try:
        content = compressed(picture, path.suffix)
    except MessageError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    with replacing_file(path, durable) as temporary:
        temporary.write_bytes(content.tobytes())


def has_16_bits(data: memoryview) -> bool:
    """Whether a file is a PNG of 16 bits; its first chunk, which lies at a fixed place, says so."""
    return bytes(data[:8]) == _PNG and bytes(data[24:25]) == b"\x10"


def compressed_size(data: memoryview, described: str) -> tuple[int, int]:
    """Read (height, width) from the header of a JPEG or PNG file.

    A PNG file has them at fixed places in its first chunk. A JPEG file has them in its first frame header (marker SOF),
    after other segments that each state their length, and ends with a marker of its own.
    """
    try:
        if bytes(data[:8]) == _PNG and bytes(data[12:16]) == b"IHDR":
            width, height = struct.unpack(">II", data[16:24])
            return height, width
        if bytes(data[:3]) != b"\xff\xd8\xff":
            raise MessageError(
                "unknown format",
                f"{described} is neither JPEG nor PNG; let the driver send one of these, or read its raw topic",
            )
        place = 2
        while True:
            marker, length = struct.unpack(">HH", data[place : place + 4])
            # SOF0 to SOF15; three numbers in this range are other markers.
            if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
                height, width = struct.unpack(">HH", data[place + 5 : place + 9])
                # OpenCV before 4.11 decodes what is there, and fills the rest with grey.
                if b"\xff\xd9" not in bytes(data[place:]):
                    raise MessageError("damaged data", f"{described} is truncated: it has no end-of-image marker")
                return height, width
            if marker == 0xFFFF:
                place += 1  # a marker may be preceded by any number of fill bytes 0xFF
            elif marker < 0xFFC0 or marker == 0xFFDA or length < 2:
                raise MessageError("damaged data", f"{described} has no JPEG frame header before its data")
            else:
                place += 2 + length
    except struct.error:
        raise MessageError("damaged data", f"{described} is truncated in its header") from None
