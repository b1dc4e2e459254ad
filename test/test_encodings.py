"""Buffers in every encoding become the same RGB image; buffers that contradict their size are refused."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest

from dinov3_seg_ros.frames.encodings import INPUT_ENCODINGS, pixels_to_rgb
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.errors import MessageError

HEIGHT, WIDTH = 32, 48


def smooth_rgb():
    """A smooth picture: chroma subsampling and Bayer mosaics lose little of it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.dstack((rows * 6 + 20, columns * 4 + 20, 200 - rows * 3 - columns)).astype(np.uint8)


def padded(rows, padding):
    """The bytes of rows, each followed by noise."""
    noise = np.random.default_rng(0).integers(0, 256, (rows.shape[0], padding), np.uint8)
    return np.hstack((rows, noise)).tobytes()


def buffer_of(pixels, encoding, padding=0, is_bigendian=False):
    """The arguments of `pixels_to_rgb` for an image of HEIGHT x WIDTH; its rows are padded with noise."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if is_bigendian else "<u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    data = padded(rows, padding)
    if encoding == "nv24":  # a row of the second plane is twice as long, and so is its padding
        data = padded(rows[:HEIGHT], padding) + padded(rows[HEIGHT:].reshape(HEIGHT, -1), 2 * padding)
    return {
        "data": array("B", data), "encoding": encoding, "size": (HEIGHT, WIDTH), "step": rows.shape[1] + padding,
        "is_bigendian": is_bigendian,
    }  # fmt: skip


def yuv_planes(rgb):
    """Full-resolution Y and half-resolution U, V of a picture, by OpenCV's planar conversion."""
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    pixels = HEIGHT * WIDTH
    luma = planar[:pixels].reshape(HEIGHT, WIDTH)
    u, v = planar[pixels:].reshape(2, HEIGHT // 2, WIDTH // 2)
    return luma, u, v


def mosaic(rgb, pattern):
    """The Bayer mosaic of a picture; ``pattern`` names the colours of the first two rows, as ROS does."""
    channel = {"r": 0, "g": 1, "b": 2}
    out = np.empty(rgb.shape[:2], rgb.dtype)
    for index, colour in enumerate(pattern):
        out[index // 2 :: 2, index % 2 :: 2] = rgb[index // 2 :: 2, index % 2 :: 2, channel[colour]]
    return out


def encoded(rgb, encoding):
    """The picture in an encoding, written here independently of the code under test."""
    bgr, alpha = rgb[..., ::-1], np.full((HEIGHT, WIDTH, 1), 9, np.uint8)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    luma, u, v = yuv_planes(rgb)
    wide_u, wide_v = (np.repeat(plane, 2, axis=0) for plane in (u, v))
    full_u, full_v = (np.repeat(plane, 2, axis=1) for plane in (wide_u, wide_v))
    chroma = np.stack((wide_u, wide_v), axis=2).reshape(HEIGHT, WIDTH)

    def wide(pixels):
        return pixels.astype(np.uint16) * 257 - 77 * (pixels > 0).astype(np.uint16)

    forms = {
        "rgb8": rgb, "bgr8": bgr, "8UC3": bgr,
        "rgba8": np.dstack((rgb, alpha)), "bgra8": np.dstack((bgr, alpha)), "8UC4": np.dstack((bgr, alpha)),
        "mono8": grey, "8UC1": grey, "mono16": wide(grey), "16UC1": wide(grey),
        "rgb16": wide(rgb), "bgr16": wide(bgr),
        "rgba16": wide(np.dstack((rgb, alpha))), "bgra16": wide(np.dstack((bgr, alpha))),
        "uyvy": np.dstack((chroma, luma)), "yuv422": np.dstack((chroma, luma)),
        "yuyv": np.dstack((luma, chroma)), "yuv422_yuy2": np.dstack((luma, chroma)),
        "nv12": np.vstack((luma, np.stack((u, v), axis=2).reshape(-1, WIDTH))),
        "nv21": np.vstack((luma, np.stack((v, u), axis=2).reshape(-1, WIDTH))),
        "nv24": np.vstack((luma, np.stack((full_u, full_v), axis=2).reshape(-1, WIDTH))),
    }  # fmt: skip
    for pattern in ("rggb", "bggr", "gbrg", "grbg"):
        forms[f"bayer_{pattern}8"] = mosaic(rgb, pattern)
        forms[f"bayer_{pattern}16"] = wide(mosaic(rgb, pattern))
    return forms[encoding]


@pytest.mark.parametrize("padding", [0, 1, 10])
@pytest.mark.parametrize("encoding", INPUT_ENCODINGS)
def test_every_encoding_gives_the_picture_back(encoding, padding):
    rgb = smooth_rgb()
    scale = ValueScale("full")
    result = pixels_to_rgb(**buffer_of(encoded(rgb, encoding), encoding, padding), scale=scale)
    assert result.shape == (HEIGHT, WIDTH, 3)
    assert result.dtype == np.uint8
    expected = rgb
    if encoding in ("mono8", "8UC1", "mono16", "16UC1"):
        expected = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    lossy = encoding.startswith(("bayer", "nv", "yu", "uyvy"))
    inner = (slice(2, -2), slice(2, -2)) if encoding.startswith("bayer") else ...
    difference = np.abs(result[inner].astype(int) - expected[inner].astype(int)).max()
    # The tolerance is far below what swapped channels, patterns or a shifted row would give.
    assert difference <= (12 if lossy else 0)


@pytest.mark.parametrize("encoding", [name for name in INPUT_ENCODINGS if name.endswith("16") and name != "16UC1"])
@pytest.mark.parametrize("factor", [4, 16, 257])
def test_a_sensor_of_fewer_bits_gives_the_same_picture(encoding, factor):
    picture = encoded(smooth_rgb(), encoding.replace("16", "8"))
    eight = pixels_to_rgb(**buffer_of(picture, encoding.replace("16", "8")))
    sixteen = pixels_to_rgb(**buffer_of(picture.astype(np.uint16) * factor, encoding))
    assert np.abs(sixteen.astype(int) - eight).max() <= 2


def test_depth_is_refused_unless_its_range_is_given():
    depth = buffer_of(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH), "16UC1")
    with pytest.raises(MessageError, match=r"'16UC1' is that of depth images; .* set value_range to full") as caught:
        pixels_to_rgb(**depth)
    assert caught.value.fault == "depth image"
    assert pixels_to_rgb(**depth, scale=ValueScale((0, HEIGHT * WIDTH))).max() == 255


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_rggb16"])
def test_big_endian_data_gives_the_same_picture(encoding):
    pixels = encoded(smooth_rgb(), encoding)
    little, big = (pixels_to_rgb(**buffer_of(pixels, encoding, is_bigendian=flag)) for flag in (False, True))
    assert np.array_equal(little, big)


@pytest.mark.parametrize(
    ("change", "fault", "message"),
    [
        ({"encoding": "64FC7"}, "unknown encoding", "encoding '64FC7' is not supported"),
        ({"encoding": "32FC1"}, "depth image", "'32FC1' is that of depth images; remap 'image' to the camera's colour"),
        ({"size": (0, WIDTH)}, "no pixels", "empty"),
        ({"size": (HEIGHT, 0)}, "no pixels", "empty"),
        ({"step": WIDTH * 3 - 1}, "step too small", "step is 143 bytes"),
        ({"size": (HEIGHT + 1, WIDTH)}, "wrong length of data", "data holds"),
        ({"data": array("B", bytes(10))}, "wrong length of data", "data holds 10 bytes"),
        ({"data": array("B", bytes(HEIGHT * WIDTH * 3 + 1))}, "wrong length of data", "data holds"),
        ({"size": (2**31, 2**31), "step": 2**32 - 1}, "too many pixels", "raise max_pixels"),
        ({"encoding": "nv12", "step": WIDTH, "size": (31, WIDTH)}, "odd size", "even sides"),
        ({"encoding": "yuyv", "size": (HEIGHT, 47)}, "odd size", "even sides"),
    ],
)
def test_inconsistent_images_are_refused_under_the_name_of_the_fault(change, fault, message):
    with pytest.raises(MessageError, match=message) as caught:
        pixels_to_rgb(**{**buffer_of(smooth_rgb(), "rgb8"), **change})
    assert caught.value.fault == fault


def test_a_thin_strip_counts_as_the_network_input_it_would_become():
    strip = {"data": bytes(3000), "encoding": "mono8", "size": (1, 3000), "step": 3000}
    assert pixels_to_rgb(**strip, max_pixels=64 * 3000).shape == (1, 3000, 3)
    with pytest.raises(MessageError, match="claims 3000x1"):
        pixels_to_rgb(**strip, max_pixels=64 * 3000 - 1)


def test_control_characters_of_an_encoding_name_are_escaped():
    with pytest.raises(MessageError, match=r"encoding 'rgb8\\n\\x1b\[2J café' is not supported"):
        pixels_to_rgb(**buffer_of(smooth_rgb(), "rgb8\n\x1b[2J café"))


def test_a_long_encoding_name_is_quoted_in_part():
    with pytest.raises(MessageError, match=r"encoding 'x{40}\.\.\.' is not supported") as caught:
        pixels_to_rgb(**buffer_of(smooth_rgb(), 10_000 * "x"))
    assert len(str(caught.value)) < 1000
