"""Images in every encoding and layout become the same RGB picture; what does not add up is refused."""

from __future__ import annotations

import struct
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dinov3_seg_ros.frames.encodings import INPUT_ENCODINGS, mask_encoding
from dinov3_seg_ros.ros.messages import fill_image, fill_jpeg, fill_png, read_compressed_image, read_image
from dinov3_seg_ros.support.errors import MessageError

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


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("encoding", INPUT_ENCODINGS)
def test_every_encoding_gives_the_picture_back(encoding, padding):
    rgb = smooth_rgb()
    result = read_image(message_of(encoded(rgb, encoding), encoding, padding=padding))
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
    little, big = (read_image(message_of(pixels, encoding, big_endian=flag)) for flag in (False, True))
    assert np.array_equal(little, big)


@pytest.mark.parametrize(
    ("change", "fault", "message"),
    [
        ({"encoding": "32FC1"}, "unknown encoding", "encoding '32FC1' is not supported"),
        ({"height": 0}, "no pixels", "empty"),
        ({"width": 0}, "no pixels", "empty"),
        ({"step": WIDTH * 3 - 1}, "step too small", "step is 143 bytes"),
        ({"height": HEIGHT + 1}, "wrong length of data", "data holds"),
        ({"data": array("B", bytes(10))}, "wrong length of data", "data holds 10 bytes"),
        ({"data": array("B", bytes(HEIGHT * WIDTH * 3 + 1))}, "wrong length of data", "data holds"),
        ({"height": 2**31, "width": 2**31, "step": 2**32 - 1}, "too many pixels", "raise max_pixels"),
        ({"encoding": "nv12", "step": WIDTH, "height": 31}, "odd size", "even sides"),
        ({"encoding": "yuyv", "width": 47}, "odd size", "even sides"),
    ],
)
def test_inconsistent_images_are_refused_under_the_name_of_the_fault(change, fault, message):
    image = message_of(smooth_rgb(), "rgb8")
    for name, value in change.items():
        setattr(image, name, value)
    with pytest.raises(MessageError, match=message) as caught:
        read_image(image)
    assert caught.value.fault == fault


def test_a_thin_strip_counts_as_the_network_input_it_would_become():
    strip = message_of(np.zeros((1, 3000), np.uint8), "mono8", height=1, width=3000)
    assert read_image(strip, max_pixels=64 * 3000).shape == (1, 3000, 3)
    with pytest.raises(MessageError, match="claims 3000x1"):
        read_image(strip, max_pixels=64 * 3000 - 1)


def test_a_png_is_read_exactly_and_a_jpeg_closely():
    bgr = smooth_rgb()[:, :, ::-1]
    for suffix, tolerance in ((".png", 0), (".jpg", 20)):
        data = array("B", cv2.imencode(suffix, bgr)[1].tobytes())
        result = read_compressed_image(SimpleNamespace(format=suffix, data=data))
        assert np.abs(result.astype(int) - smooth_rgb()).max() <= tolerance


def compressed(data):
    return SimpleNamespace(format="png", data=array("B", bytes(data)))


def picture_file(suffix, size=(HEIGHT, WIDTH)):
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))[1].tobytes()


def claiming(data, height, width):
    """The same JPEG or PNG file, its header claiming another size."""
    if data.startswith(b"\x89PNG"):
        return data[:16] + struct.pack(">II", width, height) + data[24:]
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "unknown format"),
        (b"no image at all", "unknown format"),
        (b"RIFF0000WEBPVP8 ", "unknown format"),
        (picture_file(".png")[:20], "damaged data"),
        (picture_file(".png")[:200], "damaged data"),
        (picture_file(".jpg")[:30], "damaged data"),
        (picture_file(".jpg")[:-100], "damaged data"),
        (b"\xff\xd8\xff\xe0\x00\x00" + bytes(100), "damaged data"),
        (b"\xff\xd8" + b"\xff" * 100, "damaged data"),
        (b"\xff\xd8\xff\xda\x00\x08" + bytes(100), "damaged data"),
        (claiming(picture_file(".png"), 0, 48), "no pixels"),
        (claiming(picture_file(".png"), 60_000, 60_000), "too many pixels"),
        (claiming(picture_file(".jpg"), 60_000, 60_000), "too many pixels"),
    ],
)
def test_damaged_compressed_data_is_refused_under_its_faults_name(data, fault):
    with pytest.raises(MessageError) as caught:
        read_compressed_image(compressed(data))
    assert caught.value.fault == fault


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(suffix, monkeypatch):
    bomb = compressed(cv2.imencode(suffix, np.zeros((2000, 2000, 3), np.uint8))[1].tobytes())
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(MessageError, match="claims 2000x2000"):
        read_compressed_image(bomb, max_pixels=2000 * 1999)


def test_a_jpeg_with_metadata_before_its_frame_header_is_read():
    data = picture_file(".jpg")
    comment = b"\xff\xff\xff\xfe\x00\x04ab"
    assert read_compressed_image(compressed(data[:2] + comment + data[2:])).shape == (HEIGHT, WIDTH, 3)


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


def test_a_long_text_from_a_topic_is_quoted_in_part():
    image = message_of(smooth_rgb(), "rgb8")
    image.encoding = 10_000 * "x"
    with pytest.raises(MessageError, match=r"encoding 'x{40}\.\.\.' is not supported") as caught:
        read_image(image)
    assert len(str(caught.value)) < 1000
    with pytest.raises(MessageError, match="neither JPEG nor PNG") as caught:
        read_compressed_image(SimpleNamespace(format=10_000 * "x", data=b"none of them"))
    assert len(str(caught.value)) < 1000
