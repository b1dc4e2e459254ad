"""Bad and odd messages, as broken drivers, links and strangers would send them; reproducible by their number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dinov3_seg_ros.frames.encodings import INPUT_ENCODINGS
from dinov3_seg_ros.ros.cameras.messages import fill_image

HEIGHT, WIDTH = 48, 64


def good_image(header: Header, seed: int = 0) -> Image:
    """A frame that can be segmented."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return fill_image(Image(), pixels, "rgb8", header)


def good_compressed(header: Header, seed: int = 0) -> CompressedImage:
    """The same as PNG."""
    return CompressedImage(header=header, format="bgr8; png compressed bgr8", data=_file(".png", seed))


def good_calibration(header: Header) -> CameraInfo:
    """A calibration that fits both."""
    info = CameraInfo(header=header, height=HEIGHT, width=WIDTH, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [50.0, 0, 32, 0, 50, 24, 0, 0, 1]
    return info


def _file(suffix: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


Generator = np.random.Generator


def _wrong_encoding(image: Image, random: Generator) -> None:
    image.encoding = random.choice(["", "RGB8", "64FC7", "32FC1", "h264", "rgb8\x00", "ü" * 1000, "bayer_rggb12"])


def _other_encoding(image: Image, random: Generator) -> None:
    """Usually of another number of bytes; where not, it is a good frame."""
    image.encoding = random.choice(INPUT_ENCODINGS)


def _short_data(image: Image, random: Generator) -> None:
    del image.data[int(random.integers(0, len(image.data))) :]


def _long_data(image: Image, random: Generator) -> None:
    image.data.frombytes(bytes(int(random.integers(1, 5000))))


def _small_step(image: Image, random: Generator) -> None:
    image.step = int(random.integers(0, image.step))


def _other_size(image: Image, random: Generator) -> None:
    sizes = (0, 1, 7, HEIGHT - 1, 2**15, 2**31, 2**32 - 1)
    image.height, image.width = (int(random.choice(sizes)) for _ in range(2))


def _huge_step(image: Image, random: Generator) -> None:
    image.step = int(random.choice([2**16, 2**31, 2**32 - 1]))


def _odd_sides(image: Image, random: Generator) -> None:
    image.encoding = random.choice(["nv12", "nv21", "yuv422", "yuv422_yuy2"])
    image.height, image.width = HEIGHT - 1, WIDTH - 1


def _stamp_of_long_ago(message: Any, random: Generator) -> None:
    message.header.stamp.sec = int(random.choice([0, 1, -(2**31), 2**31 - 1]))
    message.header.stamp.nanosec = int(random.choice([0, 2**32 - 1]))


def _odd_header(message: Any, random: Generator) -> None:
    message.header.frame_id = random.choice(["", "/", "\n" * 100, "ü" * 10_000])


def _cut_short(message: CompressedImage, random: Generator) -> None:
    data = _file(random.choice([".png", ".jpg"]), 0)
    message.data = data[: int(random.integers(0, len(data) - 2))]


def _noise(message: CompressedImage, random: Generator) -> None:
    starts = (
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\x00\x10",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        b"GIF89a",
        b"RIFF",
    )
    message.data = starts[random.integers(len(starts))] + random.bytes(int(random.integers(0, 2000)))


def _flipped_bits(message: CompressedImage, random: Generator) -> None:
    data = bytearray(_file(random.choice([".png", ".jpg"]), 0))
    for place in random.integers(0, len(data), 20):
        data[place] ^= 1 << int(random.integers(8))
    message.data = bytes(data)


def _bomb(message: CompressedImage, random: Generator) -> None:
    data, side = _file(random.choice([".png", ".jpg"]), 0), int(random.choice([20_000, 60_000]))
    if data.startswith(b"\x89PNG"):
        side *= int(random.choice([1, 30_000]))
        message.data = data[:16] + struct.pack(">II", side, side) + data[24:]
    else:
        place = data.index(b"\xff\xc0") + 5
        message.data = data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]


def _other_format(message: CompressedImage, random: Generator) -> None:
    """The text is not believed, so this is a good frame."""
    message.format = random.choice(["", "jpeg", "h264", "ü" * 1000])


def _not_finite(info: CameraInfo, random: Generator) -> None:
    value = float(random.choice([np.nan, np.inf, -np.inf]))
    if random.integers(2):
        info.d = [value] * int(random.integers(1, 100))
    else:
        getattr(info, random.choice(["k", "p", "r"]))[int(random.integers(9))] = value


def _calibration_of_other_size(info: CameraInfo, random: Generator) -> None:
    info.height, info.width = (int(random.choice([0, 1, 2**31, 2**32 - 1])) for _ in range(2))
    info.roi.height, info.roi.width = (int(random.choice([0, 1, 2**32 - 1])) for _ in range(2))
    info.binning_x = int(random.choice([0, 1, 2**32 - 1]))


def _garbage_numbers(info: CameraInfo, random: Generator) -> None:
    info.k, info.p = random.normal(size=9) * 1e300, random.normal(size=12) * 1e300
    info.d = (random.normal(size=int(random.integers(0, 1000))) * 1e300).tolist()


_Spoil = Callable[[Any, Generator], None]
_RAW: tuple[_Spoil, ...] = (
    _wrong_encoding, _other_encoding, _short_data, _long_data, _small_step, _other_size, _huge_step, _odd_sides,
    _stamp_of_long_ago, _odd_header,
)  # fmt: skip
_COMPRESSED: tuple[_Spoil, ...] = (
    _cut_short, _noise, _flipped_bits, _bomb, _other_format, _stamp_of_long_ago, _odd_header,
)  # fmt: skip
_CALIBRATION: tuple[_Spoil, ...] = (_not_finite, _calibration_of_other_size, _garbage_numbers, _stamp_of_long_ago)


def bad_messages(kind: str, count: int) -> Iterator[Any]:
    """``count`` messages of one kind, ``raw``, ``compressed`` or ``calibration``, spoilt in one or two ways each."""
    make, ways = {
        "raw": (good_image, _RAW),
        "compressed": (good_compressed, _COMPRESSED),
        "calibration": (good_calibration, _CALIBRATION),
    }[kind]
    for number in range(count):
        random = np.random.default_rng(number)
        message = make(Header(frame_id=f"bad {number}"))
        ways[number % len(ways)](message, random)
        if number // len(ways) % 2:
            ways[random.integers(len(ways))](message, random)
        yield message
