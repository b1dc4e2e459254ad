"""Overlays show class colours over the image, and class names inside their regions."""

from __future__ import annotations

import numpy as np
import pytest

from dinov3_seg_ros.frames.classes import default_palette
from dinov3_seg_ros.frames.overlay import blend_overlay, colour_mask

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_alpha_weights_the_class_colours():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.tile(np.arange(3, dtype=np.uint8), (4, 2))
    overlay = blend_overlay(image, labels, PALETTE, alpha=0.4)
    expected = np.rint(0.4 * np.array(PALETTE)[labels] + 0.6 * image)
    assert np.abs(overlay.astype(int) - expected).max() <= 1
    assert (image == 100).all(), "the image itself is not changed"


@pytest.mark.parametrize(("dtype", "unlabelled"), [(np.uint8, 255), (np.uint16, 65535)])
def test_unlabelled_pixels_show_the_image(dtype, unlabelled):
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    labels = np.full((5, 5), unlabelled, dtype)
    labels[0, 0] = 1
    overlay = blend_overlay(image, labels, PALETTE, alpha=1.0)
    assert tuple(overlay[0, 0]) == PALETTE[1]
    assert np.array_equal(overlay[1:], image[1:])


def test_unlabelled_pixels_show_the_image_where_the_palette_is_full():
    image = np.full((5, 5, 3), 100, np.uint8)
    overlay = blend_overlay(image, np.full((5, 5), 255, np.uint8), default_palette(255))
    assert np.array_equal(overlay, image)


def test_smaller_labels_are_resized_to_the_image():
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    overlay = blend_overlay(np.zeros((40, 60, 3), np.uint8), labels, PALETTE, alpha=1.0)
    assert tuple(overlay[5, 50]) == PALETTE[1]
    assert tuple(overlay[35, 5]) == PALETTE[2]


def test_a_name_is_written_inside_the_largest_region_of_its_class():
    labels = np.zeros((240, 320), np.uint8)
    # Two regions whose common centroid lies between them, in another class.
    labels[20:220, 10:110] = 1
    labels[90:130, 270:310] = 1
    image = np.zeros((240, 320, 3), np.uint8)
    plain = blend_overlay(image, labels, PALETTE)
    named = blend_overlay(image, labels, PALETTE, names=["", "cup", ""])
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert rows.size
    assert (rows >= 20).all() and (rows < 220).all()
    assert (columns >= 10).all() and (columns < 110).all()


def test_the_default_palette_is_distinct_for_150_classes():
    assert len(set(default_palette(150))) == 150


def test_a_16_bit_mask_is_coloured():
    palette = default_palette(300)
    labels = np.array([[299, 0]], np.uint16)
    assert [tuple(c) for c in colour_mask(labels, palette)[0]] == [palette[299], palette[0]]


@pytest.mark.parametrize("size", [(2160, 9), (9, 2160), (1, 1), (2000, 1)])
def test_names_on_one_pixel_wide_images_raise_no_error(size):
    image = np.zeros((*size, 3), np.uint8)
    overlay = blend_overlay(image, np.ones(size, np.uint8), PALETTE, alpha=1.0, names=["a", "b", "c"])
    assert (overlay == PALETTE[1]).all(-1).any()
