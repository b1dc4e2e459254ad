"""From a frame to the network input (the canvas), and the window that leads back."""

from __future__ import annotations

import numpy as np
import pytest

from dinov3_seg_ros.frames.preprocessing import fill_canvas, nearest_in_aspect, place
from dinov3_seg_ros.options import GEOMETRIES
from dinov3_seg_ros.support.errors import ImageError, ParameterError

MEAN = (0.485, 0.456, 0.406)


def canvas_of(image, geometry, network_size=(96, 128), multiple=32):
    placement = place(image.shape[:2], geometry, network_size, multiple)
    canvas = np.full((*placement.canvas_size, 3), 7, np.uint8)
    fill_canvas(image, placement, MEAN, canvas)
    return canvas, placement


def test_stretch_covers_the_whole_network_size():
    canvas, placement = canvas_of(np.full((50, 300, 3), 200, np.uint8), "stretch")
    assert canvas.shape == (96, 128, 3)
    assert (canvas == 200).all()
    assert placement.window((6, 8)) == (0, 0, 6, 8)


def test_letterbox_keeps_the_aspect_and_pads_evenly_with_the_mean():
    canvas, placement = canvas_of(np.full((50, 200, 3), 200, np.uint8), "letterbox")
    assert (placement.height, placement.width) == (32, 128)
    assert (canvas[32:64] == 200).all()
    assert (canvas[:32] == np.rint(255 * np.array(MEAN))).all()
    assert (canvas[64:] == np.rint(255 * np.array(MEAN))).all()
    assert placement.window((12, 16)) == (4, 0, 4, 16)


def test_pad_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    canvas, placement = canvas_of(image, "pad")
    assert canvas.shape == (64, 96, 3)
    assert (canvas[7:57, 13:83] == image).all()
    assert placement.window((2, 3)) == (7 / 32, 13 / 32, 50 / 32, 70 / 32)


def test_native_rounds_the_frame_size_to_the_multiple():
    canvas, placement = canvas_of(np.zeros((470, 650, 3), np.uint8), "native")
    assert canvas.shape == (480, 640, 3)
    assert placement.window((15, 20)) == (0, 0, 15, 20)
    assert place((5, 5), "native", (96, 128), 32).canvas_size == (32, 32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_point_of_the_frame_lands_where_the_window_says(geometry):
    image = np.zeros((90, 170, 3), np.uint8)
    image[40:50, 100:120] = 255
    canvas, placement = canvas_of(image, geometry)
    bright = np.argwhere(canvas.mean(axis=2) > 180)
    centre = bright.mean(axis=0) + 0.5
    expected = (
        placement.top + 45 / 90 * placement.height,
        placement.left + 110 / 170 * placement.width,
    )
    assert np.abs(centre - expected).max() < 1.0


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((192, 256, 3), np.uint8)
    stripes[::2] = 254
    canvas, _ = canvas_of(stripes, "stretch")
    assert np.abs(canvas.astype(int) - 127).max() <= 1


def test_a_side_that_grows_is_interpolated_where_the_other_shrinks():
    image = np.zeros((192, 2, 3), np.uint8)
    image[:, 1] = 200
    canvas, _ = canvas_of(image, "stretch")
    assert np.abs(np.diff(canvas[48, :, 0].astype(int))).max() <= 5


SIZES = [(192, 320), (96, 128), (240, 320), (480, 640), (320, 240)]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [((720, 1280), (192, 320)), ((1280, 720), (320, 240)), ((1080, 1440), (480, 640)), ((250, 330), (240, 320))],
)
def test_a_frame_takes_the_size_nearest_to_its_shape_and_then_to_its_area(frame, expected):
    assert nearest_in_aspect(frame, SIZES) == expected
    assert nearest_in_aspect(frame, SIZES[::-1]) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_pixel_wide_frames_are_placed(size, geometry):
    canvas, placement = canvas_of(np.full((*size, 3), 9, np.uint8), geometry)
    assert placement.height >= 1
    assert placement.width >= 1
    assert canvas.shape[0] % 32 == canvas.shape[1] % 32 == 0


def test_a_network_size_that_is_no_multiple_is_refused():
    with pytest.raises(ParameterError, match="multiples of 32"):
        place((100, 100), "stretch", (100, 96), 32)


def test_an_unknown_geometry_is_refused_naming_the_known_ones():
    with pytest.raises(ParameterError, match="letterbox"):
        place((100, 100), "squash", (96, 96), 32)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), "image",
     np.zeros((0, 4, 3), np.uint8)],
)  # fmt: skip
def test_anything_but_an_rgb_image_is_refused(image):
    with pytest.raises(ImageError, match=r"uint8 RGB|at least one pixel"):
        fill_canvas(image, place((4, 4), "stretch", (32, 32), 32), MEAN, np.zeros((32, 32, 3), np.uint8))
