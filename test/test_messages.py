"""Images in every encoding and layout become the same RGB picture; what does not add up is refused."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dinov3_seg_ros.errors import ImageError
from dinov3_seg_ros.messages import INPUT_ENCODINGS, compressed_to_rgb, fill_image, image_to_rgb, mask_encoding

HEIGHT, WIDTH = 32, 48


def smooth_rgb():
    """A smooth picture: chroma subsampling and Bayer mosaics lose little of it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.dstack((rows * 6 + 20, columns * 4 + 20, 200 - rows * 3 - columns)).astype(np.uint8)


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
        return pixels.astype(np.uint16) * 256 + 77

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


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("encoding", INPUT_ENCODINGS)
def test_every_encoding_gives_the_picture_back(encoding, padding):
    rgb = smooth_rgb()
    result = image_to_rgb(message_of(encoded(rgb, encoding), encoding, padding=padding))
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


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_rggb16"])
def test_big_endian_data_gives_the_same_picture(encoding):
    pixels = encoded(smooth_rgb(), encoding)
    little, big = (image_to_rgb(message_of(pixels, encoding, big_endian=flag)) for flag in (False, True))
    assert np.array_equal(little, big)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1' is not supported"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
        ({"step": WIDTH * 3 - 1}, "step is 143 bytes"),
        ({"height": HEIGHT + 1}, "data holds"),
        ({"data": array("B", bytes(10))}, "data holds 10 bytes"),
        ({"data": array("B", bytes(HEIGHT * WIDTH * 3 + 1))}, "data holds"),
        ({"height": 2**31, "width": 2**31, "step": 2**32 - 1}, "step is"),
        ({"encoding": "nv12", "step": WIDTH, "height": 31}, "even sides"),
        ({"encoding": "yuyv", "width": 47}, "even sides"),
    ],
)
def test_what_does_not_add_up_is_refused(change, message):
    image = message_of(smooth_rgb(), "rgb8")
    for name, value in change.items():
        setattr(image, name, value)
    with pytest.raises(ImageError, match=message):
        image_to_rgb(image)


def test_a_png_is_read_exactly_and_a_jpeg_closely():
    bgr = smooth_rgb()[:, :, ::-1]
    for suffix, tolerance in ((".png", 0), (".jpg", 20)):
        data = array("B", cv2.imencode(suffix, bgr)[1].tobytes())
        result = compressed_to_rgb(SimpleNamespace(format=suffix, data=data))
        assert np.abs(result.astype(int) - smooth_rgb()).max() <= tolerance


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"no image at all"])
def test_damaged_compressed_data_is_refused(data):
    with pytest.raises(ImageError, match="damaged"):
        compressed_to_rgb(SimpleNamespace(format="png", data=array("B", data)))


def test_an_image_filled_and_read_back_is_the_same():
    for pixels in (smooth_rgb(), smooth_rgb()[:, ::2], smooth_rgb()[..., 0].copy()):
        header = object()
        encoding = "rgb8" if pixels.ndim == 3 else "mono8"
        message = fill_image(SimpleNamespace(data=array("B")), pixels, encoding, header)
        assert message.header is header
        assert (message.height, message.width) == pixels.shape[:2]
        assert message.step == pixels.shape[1] * (3 if pixels.ndim == 3 else 1)
        result = image_to_rgb(message)
        assert np.array_equal(result if pixels.ndim == 3 else result[..., 0], pixels)


def test_a_mask_of_many_classes_is_sent_with_sixteen_bits():
    labels = np.array([[0, 300], [65535, 7]], np.uint16)
    message = fill_image(SimpleNamespace(data=array("B")), labels, mask_encoding(labels), None)
    assert (message.encoding, message.step) == ("mono16", 4)
    assert np.array_equal(np.frombuffer(message.data, np.uint16).reshape(2, 2), labels)
