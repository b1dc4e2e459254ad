"""JPEG and PNG images to RGB."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dinov3_seg_ros.frames.encodings import check_size, quoted
from dinov3_seg_ros.options import MAX_PIXELS
from dinov3_seg_ros.support.errors import MessageError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def compressed_to_rgb(data: Buffer, description: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG or PNG file to (H, W, 3) uint8 RGB.

    The size is read from the header before anything is decoded: a file of a few bytes may claim to be gigabytes.
    An orientation tag is not applied: masks must line up with the picture as the camera's calibration knows it.

    Args:
        data: the file's bytes.
        description: what the sender says of it, for messages.
        max_pixels: larger images are refused.

    Raises:
        MessageError: neither JPEG nor PNG, no pixels or too many, or data that cannot be decoded.
    """
    content = np.frombuffer(data, np.uint8)
    described = f"compressed image ({content.size} bytes, {quoted(description)})"
    height, width = _compressed_size(content.data, described)
    check_size(height, width, max_pixels)
    try:
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise MessageError("damaged data", f"{described} is refused: {error.err}") from error
    if picture is None:
        raise MessageError("damaged data", f"{described} is damaged or cut short")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _compressed_size(data: memoryview, described: str) -> tuple[int, int]:
    """(height, width) as the header of a JPEG or PNG file says.

    PNG: width and height stand at fixed places of the first chunk. JPEG: in the first frame header (marker SOF), before
    which lie other segments, each with its length.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            width, height = struct.unpack(">II", data[16:24])
            return height, width
        if data[:3] != b"\xff\xd8\xff":
            raise MessageError("unknown format", f"{described} is neither JPEG nor PNG")
        place = 2
        while True:
            marker, length = struct.unpack(">HH", data[place : place + 4])
            # SOF0 to SOF15, without the three numbers in between that mean other things.
            if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
                return struct.unpack(">HH", data[place + 5 : place + 9])
            if marker == 0xFFFF:
                place += 1  # bytes 0xFF may fill up the space before a marker
            elif marker < 0xFFC0 or marker == 0xFFDA or length < 2:
                raise MessageError("damaged data", f"{described} has no JPEG frame header before its data")
            else:
                place += 2 + length
    except struct.error:
        raise MessageError("damaged data", f"{described} is cut short in its header") from None
