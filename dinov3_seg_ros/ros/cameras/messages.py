"""sensor_msgs/Image and CompressedImage to and from arrays, and stamps to seconds.

Works on the messages of rclpy and of rosbags alike, and imports neither. cv_bridge is not used: it reads padded rows
wrongly, and its compiled part breaks under NumPy 2.
"""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np

from dinov3_seg_ros.frames.compression import compressed, compressed_to_rgb
from dinov3_seg_ros.frames.encodings import mask_encoding, pixels_to_rgb
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.option_checks import MAX_PIXELS


def read_image(message: Any, max_pixels: int = MAX_PIXELS, scale: ValueScale | None = None) -> np.ndarray:
    """Pixels of a sensor_msgs/Image as (H, W, 3) uint8 RGB; see `pixels_to_rgb`.

    Raises:
        MessageError: the message cannot be read.
    """
    size = message.height, message.width
    return pixels_to_rgb(message.data, message.encoding, size, message.step, message.is_bigendian, max_pixels, scale)


def read_compressed_image(message: Any, max_pixels: int = MAX_PIXELS, scale: ValueScale | None = None) -> np.ndarray:
    """Pixels of a sensor_msgs/CompressedImage as (H, W, 3) uint8 RGB; see `compressed_to_rgb`.

    Raises:
        MessageError: the message cannot be read.
    """
    return compressed_to_rgb(message.data, message.format, max_pixels, scale)


def seconds_of(stamp: Any) -> float:
    """A builtin_interfaces/Time in seconds."""
    return float(stamp.sec + 1e-9 * stamp.nanosec)


def fill_image(message: Any, array: np.ndarray, encoding: str, header: Any) -> Any:
    """Fill a new sensor_msgs/Image with a tight-packed array and a header; return it.

    Args:
        message: a new sensor_msgs.msg.Image.
        array: (H, W) or (H, W, C), uint8 or uint16.
        encoding: the name of its layout.
        header: std_msgs/Header, used as it is.
    """
    message.header = header
    message.height, message.width = array.shape[:2]
    message.encoding = encoding
    message.is_bigendian = sys.byteorder == "big"
    message.step = array[0].nbytes
    # Only frombytes on the message's own array avoids rclpy's check of every byte.
    message.data.frombytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return message


def fill_jpeg(message: Any, picture: np.ndarray, quality: int, header: Any) -> Any:
    """Fill a new sensor_msgs/CompressedImage with a picture as JPEG; return it.

    Args:
        message: a new sensor_msgs.msg.CompressedImage.
        picture: (H, W, 3) uint8 BGR.
        quality: 1..100.
        header: std_msgs/Header, used as it is.

    Raises:
        MessageError: JPEG cannot hold so large a picture.
    """
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return _fill_compressed(message, picture, ".jpg", parameters, "bgr8; jpeg compressed bgr8", header)


def fill_png(message: Any, labels: np.ndarray, header: Any) -> Any:
    """Fill a new sensor_msgs/CompressedImage with a mask as PNG, which keeps every value; return it.

    Args:
        message: a new sensor_msgs.msg.CompressedImage.
        labels: (H, W) uint8 or uint16.
        header: std_msgs/Header, used as it is.

    Raises:
        MessageError: PNG cannot hold so large a mask.
    """
    return _fill_compressed(message, labels, ".png", [], f"{mask_encoding(labels)}; png compressed", header)


def _fill_compressed(
    message: Any, array: np.ndarray, suffix: str, parameters: list[int], form: str, header: Any
) -> Any:
    message.header, message.format = header, form
    message.data.frombytes(compressed(array, suffix, parameters))
    return message
