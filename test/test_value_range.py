"""16-bit images of sensors with fewer bits look as the same picture in 8 bits does."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest

from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.support.errors import MessageError, ParameterError
from dinov3_seg_ros.support.option_checks import parse_value_range


def grey(height=24, width=32, brightest=250):
    return np.linspace(0, brightest, height * width).reshape(height, width).astype(np.uint8)


def in_bits(picture, bits):
    """The picture as a sensor of so many bits gives it, right-aligned in 16."""
    return np.rint(picture * ((2**bits - 1) / 255)).astype(np.uint16)


def difference(scale, values, picture):
    return np.abs(scale.to_8_bits(values).astype(int) - picture).max()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
def test_the_first_image_of_a_sensor_has_the_pictures_values(bits, shape):
    picture = np.broadcast_to(grey()[(..., None) if len(shape) == 3 else ...], shape)
    assert difference(ValueScale(), in_bits(picture, bits), picture) <= 1


def test_a_dark_image_in_a_stream_stays_dark():
    scale = ValueScale()
    scale.to_8_bits(in_bits(grey(), 12))
    for brightest in (60, 10, 1):
        assert difference(scale, in_bits(grey(brightest=brightest), 12), grey(brightest=brightest)) <= 1


def test_a_stream_that_begins_dark_is_right_once_it_is_bright():
    scale = ValueScale()
    scale.to_8_bits(np.zeros((24, 32), np.uint16))
    scale.to_8_bits(in_bits(grey(brightest=30), 12))
    assert difference(scale, in_bits(grey(), 12), grey()) <= 1


@pytest.mark.parametrize(("first", "then"), [(16, 10), (16, 12), (14, 10), (10, 12), (12, 16)])
def test_another_sensor_on_the_same_topic_is_noticed_at_once(first, then):
    scale = ValueScale()
    scale.to_8_bits(in_bits(grey(), first))
    assert difference(scale, in_bits(grey(), then), grey()) <= 1


def thermal(height=24, width=32):
    """An image of a thermal camera; 98 % of its values lie between 28016 and 29976."""
    return 28000 + 8 * grey(height, width).astype(np.uint16)


@pytest.mark.parametrize(
    "before",
    [
        (),
        (in_bits(grey(), 12),),
        (np.zeros((24, 32), np.uint16),),
        (thermal(), np.zeros((24, 32), np.uint16)),
        (thermal(), np.full((24, 32), 65535, np.uint16)),
        (thermal(), np.arange(24 * 32).reshape(24, 32).astype(np.uint16)),
    ],
    ids=["nothing", "another camera", "zeros", "zeros later", "white later", "almost black later"],
)
def test_values_of_a_thermal_camera_are_refused_until_a_range_is_given(before):
    scale, kelvins = ValueScale(), thermal()
    for image in before:
        with contextlib.suppress(MessageError):
            scale.to_8_bits(image)
    for _ in range(2):
        with pytest.raises(MessageError, match=r"between 28016 and 29976, .* value_range:=\[28016, 29976\]") as caught:
            scale.to_8_bits(kelvins)
        assert caught.value.fault == "value range unknown"
    scale.choice = (28000, 30040)
    assert difference(scale, kelvins, grey()) <= 1
    scale.choice = "full"
    assert len(np.unique(scale.to_8_bits(kelvins))) < 20


@pytest.mark.parametrize("where", [(5, 7), (0, ...), (-1, ...)], ids=["a pixel", "first row", "last row"])
@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize("size", [(256, 320), (512, 640), (1440, 2560)])
def test_a_dead_pixel_or_a_row_of_other_data_does_not_hide_a_thermal_camera(where, value, size):
    image = thermal(*size)
    image[where] = value
    with pytest.raises(MessageError, match=r"between 280\d\d and 29\d\d\d,"):
        ValueScale().to_8_bits(image)


@pytest.mark.parametrize("level", [0, 30000, 65535])
def test_an_image_of_one_value_is_no_thermal_image(level):
    assert (ValueScale().to_8_bits(np.full((4, 4), level, np.uint16)) == round(level / 257)).all()


def test_values_beyond_a_given_range_are_black_or_white():
    values = np.array([[0, 99, 100, 150, 200, 201, 65535]], np.uint16)
    assert ValueScale((100, 200)).to_8_bits(values).tolist() == [[0, 0, 0, 128, 255, 255, 255]]


def test_opacity_tells_nothing_of_the_sensor():
    picture = np.dstack((in_bits(np.dstack(3 * [grey()]), 10), np.full(grey().shape, 65535, np.uint16)))
    assert np.abs(ValueScale().to_8_bits(picture)[..., :3].astype(int) - grey()[..., None]).max() <= 1


def test_what_was_learned_is_logged_once_with_its_source(caplog):
    caplog.set_level(logging.INFO)
    scale = ValueScale(source="front/image")
    for bits in (12, 12, 16, 12, 16):
        scale.to_8_bits(in_bits(grey(), bits))
    first, second = caplog.messages
    assert "on front/image have 12 significant bits: values from 0 to 4095 become 0 to 255" in first
    assert "16 significant bits" in second
    ValueScale("full").to_8_bits(in_bits(grey(), 12))
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [("auto", "auto"), ("full", "full"), ("0,4095", (0, 4095)), ("[100, 4095]", (100, 4095)), ([0, 1023], (0, 1023))],
)
def test_a_range_is_a_word_or_two_numbers(given, meant):
    assert PublishOptions(value_range=given).value_range == meant


@pytest.mark.parametrize("given", ["", "12", "0,65536", "9,9", [5, 1], [-1, 5], [1, 2, 3], "low,high", 7, None])
def test_a_range_that_cannot_be_is_refused(given):
    with pytest.raises(ParameterError, match=r"value_range is .*; use auto, full, or two whole numbers"):
        parse_value_range(given)
