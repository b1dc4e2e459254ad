"""The encodings of sensor_msgs/Image, and the conversion of each to RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.errors import MessageError
from dinov3_seg_ros.support.option_checks import MAX_PIXELS

if TYPE_CHECKING:
    from array import array

#: The bytes of a message's field ``data``: an array of rclpy, or a NumPy array of rosbags.
ImageData: TypeAlias = "bytes | bytearray | memoryview | array[int] | np.ndarray"

# A strip of one row still becomes a network input of at least one patch or stride in height.
_LEAST_COUNTED_SIDE = 64
_MOST_QUOTED = 40


@dataclass(frozen=True)
class _Encoding:
    """Memory layout of an encoding, and its conversion to RGB.

    Attributes:
        dtype: of one channel of one pixel.
        channels: values for each pixel in a row of the buffer.
        to_rgb: pixels (rows, W) or (rows, W, channels), scaled to uint8 -> (H, W, 3) uint8 RGB.
        buffer_rows: rows of the buffer for each row of the picture: 1.5 in planar YUV 4:2:0; in 4:4:4 it is 3, since
            a row of CbCr is as long as two of Y.
    """

    dtype: type[np.generic]
    channels: int
    to_rgb: Callable[[np.ndarray], np.ndarray]
    buffer_rows: float = 1.0


def _cvt(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


# OpenCV converts NV12 and NV21 with the video range of ITU-R BT.601 (Y 16..235), but has no such conversion for 4:4:4.
_YUV_TO_RGB = np.array(
    [
        [1.164, 0.0, 1.596, -16 * 1.164 - 128 * 1.596],
        [1.164, -0.392, -0.813, -16 * 1.164 + 128 * (0.392 + 0.813)],
        [1.164, 2.017, 0.0, -16 * 1.164 - 128 * 2.017],
    ]
)


def _nv24_to_rgb(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 3, pixels.shape[1]
    # Padded rows have twice as many bytes of padding in the plane of CbCr (Linux, "Semi-Planar YUV Formats").
    strides = (2 * pixels.strides[0], 2, 1)
    chroma = np.lib.stride_tricks.as_strided(pixels[height:], (height, width, 2), strides, writeable=False)
    return cv2.transform(np.dstack((pixels[:height], chroma)), _YUV_TO_RGB)


# ROS names a pattern by its first two rows. So do these aliases of OpenCV; its older two-letter names do not.
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
    "mono16": _Encoding(np.uint16, 1, _cvt(cv2.COLOR_GRAY2RGB)),
    "16UC1": _Encoding(np.uint16, 1, _cvt(cv2.COLOR_GRAY2RGB)),
    "rgb16": _Encoding(np.uint16, 3, np.ascontiguousarray),
    "bgr16": _Encoding(np.uint16, 3, _cvt(cv2.COLOR_BGR2RGB)),
    "rgba16": _Encoding(np.uint16, 4, _cvt(cv2.COLOR_RGBA2RGB)),
    "bgra16": _Encoding(np.uint16, 4, _cvt(cv2.COLOR_BGRA2RGB)),
    "uyvy": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_UYVY)),
    "yuv422": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_UYVY)),
    "yuyv": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_YUYV)),
    "yuv422_yuy2": _Encoding(np.uint8, 2, _cvt(cv2.COLOR_YUV2RGB_YUYV)),
    "nv21": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_YUV2RGB_NV21), buffer_rows=1.5),
    "nv12": _Encoding(np.uint8, 1, _cvt(cv2.COLOR_YUV2RGB_NV12), buffer_rows=1.5),
    "nv24": _Encoding(np.uint8, 1, _nv24_to_rgb, buffer_rows=3.0),
    **{f"{name}8": _Encoding(np.uint8, 1, _cvt(code)) for name, code in _BAYER.items()},
    **{f"{name}16": _Encoding(np.uint16, 1, _cvt(code)) for name, code in _BAYER.items()},
}

#: The encodings of sensor_msgs/Image that `pixels_to_rgb` reads.
INPUT_ENCODINGS = tuple(_ENCODINGS)
#: Those whose values are scaled to 8 bits.
ENCODINGS_OF_16_BITS = tuple(name for name, layout in _ENCODINGS.items() if layout.dtype is np.uint16)


def pixels_to_rgb(
    data: ImageData,
    encoding: str,
    size: tuple[int, int],
    step: int,
    is_bigendian: bool = False,
    max_pixels: int = MAX_PIXELS,
    scale: ValueScale | None = None,
) -> np.ndarray:
    """Convert the pixels of an image buffer to (H, W, 3) uint8 RGB.

    The buffer is read in place with its own step, so padded rows are read correctly. For ``rgb8`` the result may be a
    view of the buffer.

    Args:
        data: the bytes of all rows.
        encoding: one of `INPUT_ENCODINGS`.
        size: (height, width), pixels.
        step: bytes from the start of one row to the start of the next.
        is_bigendian: whether 16-bit values have their high byte first.
        max_pixels: images with more pixels raise MessageError.
        scale: of the stream, for 16-bit values; None learns it from this image alone.

    Raises:
        MessageError: the encoding is unknown or that of depth, the image is empty or too large, step or length of the
            data do not fit its size, or the range of 16-bit values cannot be told.
    """
    scale = scale or ValueScale()
    refuse_depth(encoding, scale)
    if encoding not in _ENCODINGS:
        raise MessageError(
            "unknown encoding",
            f"image encoding {quoted(encoding)} is not supported; the camera driver must publish one of: "
            f"{', '.join(INPUT_ENCODINGS)}",
        )
    layout, (height, width) = _ENCODINGS[encoding], size
    check_size(height, width, max_pixels)
    if (layout.channels == 2 and width % 2) or (layout.buffer_rows == 1.5 and (width % 2 or height % 2)):
        raise MessageError(
            "odd size", f"an image with encoding '{encoding}' must have even sides; got {width}x{height}"
        )
    itemsize = np.dtype(layout.dtype).itemsize
    row_bytes = width * layout.channels * itemsize
    rows = int(height * layout.buffer_rows)
    if step < row_bytes:
        raise MessageError(
            "step too small", f"step is {step} bytes, but a row of {width} '{encoding}' pixels needs {row_bytes}"
        )
    length = data.nbytes if isinstance(data, np.ndarray) else memoryview(data).nbytes
    if length != step * rows:
        raise MessageError(
            "wrong length of data",
            f"data holds {length} bytes, but {rows} rows of {step} bytes are {step * rows} "
            f"({width}x{height} '{encoding}')",
        )
    dtype = np.dtype(layout.dtype).newbyteorder(">" if is_bigendian else "<")
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (step, layout.channels * itemsize)
    if layout.channels > 1:
        shape, strides = (*shape, layout.channels), (*strides, itemsize)
    pixels = np.ndarray(shape, dtype, data, 0, strides)
    if step % itemsize:
        pixels = np.ascontiguousarray(pixels)  # OpenCV refuses rows that begin within a value
    if itemsize == 2:
        pixels = scale.to_8_bits(pixels.astype(np.uint16, copy=False))  # OpenCV reads only the machine's byte order
    return layout.to_rgb(pixels)


def refuse_depth(encoding: str, scale: ValueScale) -> None:
    """Raise MessageError for depth: 32FC1, and 16UC1 unless the user or the bundle has chosen a range."""
    if encoding not in ("16UC1", "32FC1") or (encoding == "16UC1" and scale.choice != "auto"):
        return
    remedy = "remap 'image' to the camera's colour or infrared image"
    if encoding == "16UC1":
        remedy += (
            ". If this is a picture, say which values are black and white: set value_range to full, or to two numbers "
            "such as [0, 4095]"
        )
    raise MessageError("depth image", f"encoding '{encoding}' is that of depth images; {remedy}")


def bayer_to_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray | None:
    """Interpolate the colours of a Bayer mosaic.

    Args:
        pixels: (H, W) uint8.
        encoding: such as ``bayer_rggb8`` or ``bayer_rggb16``.

    Returns:
        (H, W, 3) uint8 RGB; None where the encoding is not that of a mosaic.
    """
    code = _BAYER.get(encoding.removesuffix("16").removesuffix("8"))
    return None if code is None else cv2.cvtColor(pixels, code)


def quoted(text: str) -> str:
    """Quote a text that came with a message, shortened and with control characters escaped, since it goes to logs."""
    return repr(text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}...")


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise MessageError for an image without pixels or with more than ``max_pixels``.

    Each side counts as at least 64 pixels, since a thin strip becomes a network input of at least one patch.
    """
    if height < 1 or width < 1:
        raise MessageError("no pixels", f"the image is empty: {width}x{height}")
    if max(height, _LEAST_COUNTED_SIDE) * max(width, _LEAST_COUNTED_SIDE) > max_pixels:
        raise MessageError(
            "too many pixels",
            f"the image claims {width}x{height} pixels, but the limit is {max_pixels}; if the camera does send such "
            "images, raise max_pixels",
        )


def mask_encoding(labels: np.ndarray) -> str:
    """Encoding of a mask in sensor_msgs/Image: ``mono8``, or ``mono16`` for uint16 labels."""
    return "mono16" if labels.dtype == np.uint16 else "mono8"
