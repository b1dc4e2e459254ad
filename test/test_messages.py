"""Messages are read with all their fields, and filled so that they are read back unchanged."""

from __future__ import annotations

import sys
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_encodings import HEIGHT, WIDTH, smooth_rgb

from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.ros.cameras.messages import fill_image, fill_jpeg, fill_png, read_compressed_image, read_image
from dinov3_seg_ros.support.errors import MessageError


def message_of(pixels, encoding, *, height=HEIGHT, width=WIDTH, padding=0, big_endian=False):
    """A stand-in with sensor_msgs/Image's fields, its rows padded with noise."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big_endian else "<u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    noise = np.random.default_rng(0).integers(0, 256, (rows.shape[0], padding), np.uint8)
    rows = np.hstack((rows, noise))
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=big_endian, step=rows.shape[1],
        data=array("B", rows.tobytes()),
    )  # fmt: skip


@pytest.mark.parametrize("big_endian", [False, True])
def test_an_image_is_read_with_its_own_step_and_byte_order(big_endian):
    pixels = smooth_rgb().astype(np.uint16) * 257
    message = message_of(pixels, "rgb16", padding=10, big_endian=big_endian)
    assert np.array_equal(read_image(message), smooth_rgb())


def test_an_image_that_cannot_be_read_is_refused():
    image = message_of(smooth_rgb(), "rgb8", height=HEIGHT + 1)
    with pytest.raises(MessageError, match="data holds"):
        read_image(image)
    with pytest.raises(MessageError, match="the limit is 100"):
        read_image(message_of(smooth_rgb(), "rgb8"), max_pixels=100)
    with pytest.raises(MessageError, match="'jpeg'"):
        read_compressed_image(SimpleNamespace(format="jpeg", data=array("B", b"none")))


def test_an_image_filled_and_read_back_is_the_same():
    for pixels in (smooth_rgb(), smooth_rgb()[:, ::2], smooth_rgb()[..., 0].copy()):
        header = object()
        encoding = "rgb8" if pixels.ndim == 3 else "mono8"
        message = fill_image(SimpleNamespace(data=array("B")), pixels, encoding, header)
        assert message.header is header
        assert (message.height, message.width) == pixels.shape[:2]
        assert message.step == pixels.shape[1] * (3 if pixels.ndim == 3 else 1)
        result = read_image(message)
        assert np.array_equal(result if pixels.ndim == 3 else result[..., 0], pixels)


def test_a_mask_of_many_classes_is_sent_with_sixteen_bits():
    labels = np.array([[0, 300], [65535, 7]], np.uint16)
    message = fill_image(SimpleNamespace(data=array("B")), labels, mask_encoding(labels), None)
    assert (message.encoding, message.step) == ("mono16", 4)
    assert message.is_bigendian == (sys.byteorder == "big")
    assert np.array_equal(np.frombuffer(message.data, np.uint16).reshape(2, 2), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_compressed_mask_keeps_every_value(dtype):
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH), dtype)
    header = object()
    message = fill_png(SimpleNamespace(data=array("B")), labels, header)
    assert message.header is header
    assert message.format == f"{mask_encoding(labels)}; png compressed"
    assert np.array_equal(cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED), labels)


def test_a_compressed_picture_is_a_jpeg_of_the_quality_asked_for():
    bgr = smooth_rgb()[:, :, ::-1]
    small, large = (fill_jpeg(SimpleNamespace(data=array("B")), bgr, quality, None) for quality in (20, 95))
    assert len(small.data) < len(large.data)
    assert np.abs(read_compressed_image(large).astype(int) - smooth_rgb()).max() <= 20
