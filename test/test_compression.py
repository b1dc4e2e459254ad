"""JPEG and PNG files become RGB; damaged files and files that claim too many pixels are refused."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from full_disk import full_disk
from test_encodings import HEIGHT, WIDTH, encoded, mosaic, smooth_rgb

from dinov3_seg_ros.frames.compression import compressed_to_rgb, write_picture
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.errors import MessageError, OutputError


def test_a_png_is_read_exactly_and_a_jpeg_closely():
    bgr = smooth_rgb()[:, :, ::-1]
    for suffix, tolerance in ((".png", 0), (".jpg", 20)):
        result = compressed_to_rgb(cv2.imencode(suffix, bgr)[1].tobytes())
        assert np.abs(result.astype(int) - smooth_rgb()).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_mosaic_is_known_by_its_format(suffix, pattern):
    data = cv2.imencode(suffix, mosaic(smooth_rgb(), pattern), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    kind = {".png": "png", ".jpg": "jpeg"}[suffix]
    inner = (slice(2, -2), slice(2, -2))
    result = compressed_to_rgb(data, f"bayer_{pattern}8; {kind} compressed ")
    assert np.abs(result[inner].astype(int) - smooth_rgb()[inner]).max() <= 15


@pytest.mark.parametrize("form", ["bayer_rggb8; jpeg compressed mono8", "mono8; jpeg compressed mono8", "png", ""])
def test_a_grey_picture_stays_grey(form):
    picture = cv2.cvtColor(smooth_rgb(), cv2.COLOR_RGB2GRAY)
    result = compressed_to_rgb(cv2.imencode(".png", picture)[1].tobytes(), form)
    assert np.array_equal(result, np.dstack(3 * [picture]))


def test_a_mosaic_that_the_camera_has_interpolated_keeps_its_colours():
    data = cv2.imencode(".png", smooth_rgb()[..., ::-1])[1].tobytes()
    assert np.array_equal(compressed_to_rgb(data, "bayer_rggb8; png compressed bgr8"), smooth_rgb())


@pytest.mark.parametrize("form", ["mono16; png compressed ", "bayer_gbrg16; png compressed ", "rgb16; png compressed "])
def test_a_png_of_a_12_bit_sensor_gives_the_same_picture(form):
    encoding = form.partition(";")[0]
    picture = encoded(smooth_rgb(), encoding.replace("16", "8"))
    stored = picture[..., ::-1] if picture.ndim == 3 else picture
    eight = compressed_to_rgb(cv2.imencode(".png", stored)[1].tobytes(), form.replace("16", "8"))
    twelve = compressed_to_rgb(cv2.imencode(".png", stored.astype(np.uint16) * 16)[1].tobytes(), form)
    assert np.abs(twelve.astype(int) - eight).max() <= 2


def test_compressed_depth_is_refused_unless_its_range_is_given():
    depth = cv2.imencode(".png", np.full((HEIGHT, WIDTH), 3000, np.uint16))[1].tobytes()
    with pytest.raises(MessageError, match="depth images"):
        compressed_to_rgb(depth, "16UC1; png compressed ")
    with pytest.raises(MessageError, match="depth images"):
        compressed_to_rgb(bytes(12) + depth, "32FC1; compressedDepth png")
    assert compressed_to_rgb(depth, "16UC1; png compressed ", scale=ValueScale("full")).shape == (HEIGHT, WIDTH, 3)


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
        compressed_to_rgb(data)
    assert caught.value.fault == fault


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(suffix, monkeypatch):
    bomb = cv2.imencode(suffix, np.zeros((2000, 2000, 3), np.uint8))[1].tobytes()
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(MessageError, match="claims 2000x2000"):
        compressed_to_rgb(bomb, max_pixels=2000 * 1999)


def test_a_picture_is_not_turned_as_its_orientation_tag_says():
    data = picture_file(".jpg")
    orientation = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # by a quarter
    tagged = data[:2] + struct.pack(">2sH6s", b"\xff\xe1", 8 + len(orientation), b"Exif\0\0") + orientation + data[2:]
    assert cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR).shape == (WIDTH, HEIGHT, 3)
    assert np.array_equal(compressed_to_rgb(tagged), compressed_to_rgb(data))


def test_a_jpeg_with_metadata_before_its_frame_header_is_read():
    data = picture_file(".jpg")
    comment = b"\xff\xff\xff\xfe\x00\x04ab"
    assert compressed_to_rgb(data[:2] + comment + data[2:]).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("name", "size", "said"), [
    ("a.jpg", (1, 65501), "a.jpg cannot be written: JPEG holds at most 65500 pixels a side; the picture has 65501x1"),
    ("a.PNG", (1000001, 1), "a.PNG cannot be written: PNG holds at most 1000000 pixels a side"),
])  # fmt: skip
def test_a_picture_too_large_for_its_format_is_refused_with_the_limit(name, size, said, tmp_path, capfd):
    with pytest.raises(OutputError, match=said):
        write_picture(tmp_path / name, np.zeros(size, np.uint8))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == "", "OpenCV says nothing"


def test_a_full_disk_leaves_the_picture_that_was_there(tmp_path):
    path = tmp_path / "mask.png"
    write_picture(path, np.zeros((8, 8), np.uint8))
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_picture(path, np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    assert not cv2.imread(str(path), cv2.IMREAD_UNCHANGED).any()
    assert list(tmp_path.iterdir()) == [path]


def test_a_jpeg_that_lacks_a_part_of_its_data_is_decoded_as_far_as_it_goes(capfd):
    whole = picture_file(".jpg")
    cut = compressed_to_rgb(whole[: len(whole) * 2 // 3] + b"\xff\xd9")
    assert cut.shape == compressed_to_rgb(whole).shape
    assert "Corrupt JPEG data" in capfd.readouterr().err, "as docs/troubleshooting.md says"


def test_an_unknown_format_is_told_with_what_to_do_and_a_long_description_in_part():
    with pytest.raises(MessageError, match="neither JPEG nor PNG; let the driver send one of these, or read") as caught:
        compressed_to_rgb(b"none of them", 10_000 * "x")
    assert len(str(caught.value)) < 1000
