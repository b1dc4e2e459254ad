"""The encodings of sensor_msgs/Image, and how each becomes RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dinov3_seg_ros.options import MAX_PIXELS
from dinov3_seg_ros.support.errors import MessageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

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

#: Encodings of sensor_msgs/Image that `pixels_to_rgb` reads.
INPUT_ENCODINGS = tuple(_ENCODINGS)


def pixels_to_rgb(
    data: Buffer,
    encoding: str,
    size: tuple[int, int],
    step: int,
    is_bigendian: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Convert the pixels of an image buffer to (H, W, 3) uint8 RGB.

    The buffer is read in place, with its own step, so padded rows come out right. 16-bit values are scaled to 8 bits.
    For ``rgb8`` the result may be a view of the buffer.

    Args:
        data: the bytes of all rows.
        encoding: one of `INPUT_ENCODINGS`.
        size: (height, width), pixels.
        step: bytes from one row to the next.
        is_bigendian: the byte order of 16-bit values.
        max_pixels: larger images are refused.

    Raises:
        MessageError: unknown encoding, no pixels or too many, or a step or length of data that does not fit the size.
    """
    if encoding not in _ENCODINGS:
        raise MessageError(
            "unknown encoding",
            f"image encoding {quoted(encoding)} is not supported; the camera driver must publish one of: "
            f"{', '.join(INPUT_ENCODINGS)}",
        )
    layout, (height, width) = _ENCODINGS[encoding], size
    check_size(height, width, max_pixels)
    if (layout.channels == 2 and width % 2) or (layout.buffer_rows == 1.5 and (width % 2 or height % 2)):
        raise MessageError("odd size", f"an image of encoding '{encoding}' must have even sides; got {width}x{height}")
    itemsize = np.dtype(layout.dtype).itemsize
    row_bytes = width * layout.channels * itemsize
    rows = int(height * layout.buffer_rows)
    if step < row_bytes:
        raise MessageError(
            "step too small", f"step is {step} bytes, but a row of {width} '{encoding}' pixels takes {row_bytes}"
        )
    length = memoryview(data).nbytes
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
    return layout.to_rgb(np.ndarray(shape, dtype, data, 0, strides))


def quoted(text: str) -> str:
    """A message's text, as far as it may go into logs: whoever publishes chooses its length."""
    return f"'{text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + '...'}'"


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise MessageError("no pixels", f"the image is empty: {width}x{height}")
    if max(height, _LEAST_COUNTED_SIDE) * max(width, _LEAST_COUNTED_SIDE) > max_pixels:
        raise MessageError(
            "too many pixels",
            f"the image claims {width}x{height} pixels, and no more than {max_pixels} are taken; if that is what the "
            "camera sends, raise max_pixels",
        )


def mask_encoding(labels: np.ndarray) -> str:
    """The encoding of a mask: ``mono8``, or ``mono16`` for uint16 labels."""
    return "mono16" if labels.dtype == np.uint16 else "mono8"
