"""sensor_msgs/Image and CompressedImage to and from arrays.

The pixels of a message are read in place, with its own step, so that padded rows come out right; the one copy is the
conversion to RGB. cv_bridge is not used: it reads padded rows wrongly, and its compiled part breaks under NumPy 2.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dinov3_seg_ros.errors import MessageError

#: The most pixels of a frame, unless the user says otherwise: 8K UHD has as many.
MAX_PIXELS = 1 << 25
# A thin strip becomes a canvas of at least one patch or stride in height.
_LEAST_COUNTED_SIDE = 64
_MOST_QUOTED = 40


@dataclass(frozen=True)
class _Encoding:
    """How an encoding lies in memory, and how it becomes RGB."""

    dtype: type[np.generic]
    channels: int
    to_rgb: Callable[[np.ndarray], np.ndarray]
    # Rows of the buffer for each row of the picture: planar YUV 4:2:0 has one and a half, 4:4:4 three.
    buffer_rows: float = 1.0


def _cvt(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """65535 becomes 255, rounded, as cv_bridge does it."""
    return cv2.convertScaleAbs(pixels.astype(np.uint16, copy=False), alpha=255 / 65535)


def _cvt_16(code: int) -> Callable[[np.ndarray], np.ndarray]:
    # OpenCV reads nothing but the machine's own byte order.
    return lambda pixels: _to_8_bits(cv2.cvtColor(pixels.astype(np.uint16, copy=False), code))


# OpenCV has no conversion for 4:4:4 in the video range (ITU-R BT.601, Y 16..235) that it uses for NV12 and NV21.
_YUV_TO_RGB = np.array(
    [
        [1.164, 0.0, 1.596, -16 * 1.164 - 128 * 1.596],
        [1.164, -0.392, -0.813, -16 * 1.164 + 128 * (0.392 + 0.813)],
        [1.164, 2.017, 0.0, -16 * 1.164 - 128 * 2.017],
    ]
)


def _nv24_to_rgb(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 3, pixels.shape[1]
    chroma = pixels[height:].reshape(height, width, 2)
    return cv2.transform(np.dstack((pixels[:height], chroma)), _YUV_TO_RGB)


# These aliases name a pattern as ROS does, by its first two rows; OpenCV's older two-letter ones do not.
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerRGGB2RGB,
    "bayer_bggr": cv2.COLOR_BayerBGGR2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGBRG2RGB,
    "bayer_grbg": cv2.COLOR_BayerGRBG2RGB,
}

_ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(np.uint8, 3, np.ascontiguousarray),
    "8UC3": _Encoding(np.uint8, 3, _cvt(cv2.COLOR_BGR2RGB)),
    "bgr8": _Encoding(np.uint8, 3, _cvt(cv2.COLOR_BGR2RGB)),
    "rgba8": _Encoding(np.uint8, 4, _cvt(cv2.COLOR_RGBA2RGB)),
    "8UC4": _Encoding(np.uint8, 4, _cvt(cv2.COLOR_BGRA2RGB)),
    "bgra8": _Encoding(np.uint8, 4, _cvt(cv2.COLOR_BGRA2RGB)),
    "mono8": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_GRAY2RGB)),
    "8UC1": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_GRAY2RGB)),
    "mono16": _Encoding(np.uint16, 1, _cvt_16(cv2.COLOR_GRAY2RGB)),
    "16UC1": _Encoding(np.uint16, 1, _cvt_16(cv2.COLOR_GRAY2RGB)),
    "rgb16": _Encoding(np.uint16, 3, _to_8_bits),
    "bgr16": _Encoding(np.uint16, 3, _cvt_16(cv2.COLOR_BGR2RGB)),
    "rgba16": _Encoding(np.uint16, 4, _cvt_16(cv2.COLOR_RGBA2RGB)),
    "bgra16": _Encoding(np.uint16, 4, _cvt_16(cv2.COLOR_BGRA2RGB)),
    "uyvy": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_UYVY)),
    "yuv422": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_UYVY)),
    "yuyv": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_YUYV)),
    "yuv422_yuy2": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_YUYV)),
    "nv21": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_YUV2RGB_NV21), buffer_rows=1.5),
    "nv12": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_YUV2RGB_NV12), buffer_rows=1.5),
    "nv24": _Encoding(np.uint8, 1, _nv24_to_rgb, buffer_rows=3.0),
    **{f"{name}8": _Encoding(np.uint8, 1, _cvt(code)) for name, code in _BAYER.items()},
    **{f"{name}16": _Encoding(np.uint16, 1, _cvt_16(code)) for name, code in _BAYER.items()},
}

#: Encodings of sensor_msgs/Image that `image_to_rgb` reads.
INPUT_ENCODINGS = tuple(_ENCODINGS)


def image_to_rgb(message: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of a sensor_msgs/Image as (H, W, 3) uint8 RGB.

    Padded rows and big-endian data are honoured; 16-bit values are scaled to 8. For ``rgb8`` the result may be
    a view of the message.

    Raises:
        MessageError: unknown encoding, no pixels or too many, or a step or length of data that does not fit the size.
    """
    if message.encoding not in _ENCODINGS:
        raise MessageError(
            "unknown encoding",
            f"image encoding {_quoted(message.encoding)} is not supported; the camera driver must publish one of: "
            f"{', '.join(INPUT_ENCODINGS)}",
        )
    encoding = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    _check_size(height, width, max_pixels)
    if (encoding.channels == 2 and width % 2) or (encoding.buffer_rows == 1.5 and (width % 2 or height % 2)):
        raise MessageError(
            "odd size", f"an image of encoding '{message.encoding}' must have even sides; got {width}x{height}"
        )
    itemsize = np.dtype(encoding.dtype).itemsize
    row_bytes = width * encoding.channels * itemsize
    rows = int(height * encoding.buffer_rows)
    if step < row_bytes:
        raise MessageError(
            "step too small",
            f"step is {step} bytes, but a row of {width} '{message.encoding}' pixels takes {row_bytes}",
        )
    if len(message.data) != step * rows:
        raise MessageError(
            "wrong length of data",
            f"data holds {len(message.data)} bytes, but {rows} rows of {step} bytes are {step * rows} "
            f"({width}x{height} '{message.encoding}')",
        )
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    shape, strides = (rows, width), (step, encoding.channels * itemsize)
    if encoding.channels > 1:
        shape, strides = (*shape, encoding.channels), (*strides, itemsize)
    return encoding.to_rgb(np.ndarray(shape, dtype, message.data, 0, strides))


def compressed_to_rgb(message: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of a sensor_msgs/CompressedImage (JPEG or PNG) as (H, W, 3) uint8 RGB.

    The size is read from the header before anything is decoded: a file of a few bytes may claim to be gigabytes.
    An orientation tag is not applied: masks must line up with the picture as the camera's calibration knows it.

    Raises:
        MessageError: neither JPEG nor PNG, no pixels or too many, or data that cannot be decoded.
    """
    data = np.frombuffer(message.data, np.uint8)
    described = f"compressed image ({data.size} bytes, {_quoted(message.format)})"
    height, width = _compressed_size(data.data, described)
    _check_size(height, width, max_pixels)
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise MessageError("damaged data", f"{described} is refused: {error.err}") from error
    if picture is None:
        raise MessageError("damaged data", f"{described} is damaged or cut short")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _quoted(text: str) -> str:
    """A message's text, as far as it may go into logs: whoever publishes chooses its length."""
    return f"'{text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + '...'}'"


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise MessageError("no pixels", f"the image is empty: {width}x{height}")
    if max(height, _LEAST_COUNTED_SIDE) * max(width, _LEAST_COUNTED_SIDE) > max_pixels:
        raise MessageError(
            "too many pixels",
            f"the image claims {width}x{height} pixels, and no more than {max_pixels} are taken; if that is what the "
            "camera sends, raise max_pixels",
        )


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


def fill_image(message: Any, array: np.ndarray, encoding: str, header: Any) -> Any:
    """Fill a freshly made sensor_msgs/Image with a tight-packed array and a header, taken as it is; return it.

    Args:
        message: a new sensor_msgs.msg.Image.
        array: (H, W) or (H, W, C), uint8 or uint16.
        encoding: the name of its layout.
        header: std_msgs/Header.
    """
    message.header = header
    message.height, message.width = array.shape[:2]
    message.encoding = encoding
    message.is_bigendian = sys.byteorder == "big"
    message.step = array[0].nbytes
    # frombytes on the message's own array is the one way past rclpy's check of each single byte.
    message.data.frombytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return message


def mask_encoding(labels: np.ndarray) -> str:
    """The encoding of a mask: ``mono8``, or ``mono16`` for uint16 labels."""
    return "mono16" if labels.dtype == np.uint16 else "mono8"


def fill_jpeg(message: Any, picture: np.ndarray, quality: int, header: Any) -> Any:
    """Fill a freshly made sensor_msgs/CompressedImage with a picture as JPEG; return it.

    Args:
        message: a new sensor_msgs.msg.CompressedImage.
        picture: (H, W, 3) uint8 BGR, at most 65500 pixels a side.
        quality: 1..100.
        header: std_msgs/Header, taken as it is.
    """
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return _fill_compressed(message, picture, ".jpg", parameters, "bgr8; jpeg compressed bgr8", header)


def fill_png(message: Any, labels: np.ndarray, header: Any) -> Any:
    """Fill a freshly made sensor_msgs/CompressedImage with a mask as PNG, which keeps every value; return it.

    Args:
        message: a new sensor_msgs.msg.CompressedImage.
        labels: (H, W) uint8 or uint16.
        header: std_msgs/Header, taken as it is.
    """
    return _fill_compressed(message, labels, ".png", [], f"{mask_encoding(labels)}; png compressed", header)


def _fill_compressed(
    message: Any, array: np.ndarray, suffix: str, parameters: list[int], form: str, header: Any
) -> Any:
    message.header, message.format = header, form
    message.data.frombytes(cv2.imencode(suffix, array, parameters)[1])
    return message
