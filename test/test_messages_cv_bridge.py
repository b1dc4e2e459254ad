"""Conversions of images equal those of cv_bridge, wherever cv_bridge is right.

The tests need a Python with ROS's cv_bridge: the one that CV_BRIDGE_PYTHON names, else the system's. (``cv_bridge`` on
PyPI is another program.)
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_encodings import HEIGHT, WIDTH
from test_messages import message_of

from dinov3_seg_ros.frames.encodings import INPUT_ENCODINGS
from dinov3_seg_ros.ros.cameras.messages import read_image

PYTHON = os.environ.get("CV_BRIDGE_PYTHON", "/usr/bin/python3")
ORACLE = Path(__file__).with_name("cv_bridge_oracle.py")
# Some releases of cv_bridge do not know these encodings.
MAY_BE_UNKNOWN = {"nv12", "nv21", "nv24", "uyvy", "yuyv", "yuv422_yuy2"}
# cv_bridge refuses to convert these to colours. We read them as the camera drivers that send them mean them.
WITHOUT_COLOURS = {"8UC1", "8UC3", "8UC4", "16UC1"}
NUMBERS_OF_CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "8UC3": 3, "8UC4": 4, "yuv": 2, "yuyv": 2, "uyvy": 2}
BUFFER_ROWS = {"nv12": HEIGHT * 3 // 2, "nv21": HEIGHT * 3 // 2, "nv24": HEIGHT * 3}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Converts messages with cv_bridge: a list of pictures or error texts."""
    folder = tmp_path_factory.mktemp("cv_bridge")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*arguments):
        command = [PYTHON, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    try:
        missing = run("-c", "from cv_bridge.boost import cv_bridge_boost").returncode
    except OSError:
        missing = True
    if missing:
        pytest.skip(f"{PYTHON} has no cv_bridge of ROS; name a Python that has one in CV_BRIDGE_PYTHON")

    def convert(messages):
        given = {}
        for number, message in enumerate(messages):
            given[f"{number}"] = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)
            given[f"{number}_height"], given[f"{number}_width"] = message.height, message.width
            given[f"{number}_encoding"], given[f"{number}_big_endian"] = message.encoding, message.is_bigendian
        np.savez(folder / "given.npz", **given)
        finished = run(ORACLE, folder / "given.npz", folder / "found.npz")
        assert finished.returncode == 0, finished.stderr
        with np.load(folder / "found.npz") as found:
            return [
                found[f"{number}"] if f"{number}" in found.files else str(found[f"{number}_error"])
                for number in range(len(messages))
            ]

    return convert


def noise(encoding):
    """Random pixels in the layout of an encoding."""
    starts = [start for start in NUMBERS_OF_CHANNELS if encoding.startswith(start)]
    channels = [NUMBERS_OF_CHANNELS[max(starts, key=len)]] if starts else []
    kind = np.uint16 if "16" in encoding else np.uint8
    shape = (BUFFER_ROWS.get(encoding, HEIGHT), WIDTH, *channels)
    return np.random.default_rng(3).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("encoding", sorted({*INPUT_ENCODINGS} - WITHOUT_COLOURS))
def test_images_without_padding_equal_those_of_cv_bridge(oracle, encoding, big_endian):
    message = message_of(noise(encoding), encoding, big_endian=big_endian)
    (found,) = oracle([message])
    if encoding in MAY_BE_UNKNOWN and isinstance(found, str):
        assert "Unrecognized image encoding" in found
        pytest.skip("this cv_bridge does not know the encoding")
    assert isinstance(found, np.ndarray), found
    assert np.array_equal(read_image(message), found)


def test_padding_does_not_change_the_image(oracle):
    pixels = noise("rgb8")
    (expected,) = oracle([message_of(pixels, "rgb8")])
    assert np.array_equal(read_image(message_of(pixels, "rgb8", padding=6)), expected)
