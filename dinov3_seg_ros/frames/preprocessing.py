"""From a frame of any size to the network input, and the way back.

The code calls the network input a *canvas*: a uint8 RGB array (H, W, 3), or (N, H, W, 3) for a batch, on which a frame
is laid out as its geometry says. The runtime normalises it. `training` uses this same module, so that the network sees
the same on the robot as in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dinov3_seg_ros.options import GEOMETRIES
from dinov3_seg_ros.support.errors import ImageError, ParameterError
from dinov3_seg_ros.support.option_values import number_pair


@dataclass(frozen=True)
class Placement:
    """The position of a frame on its canvas. All lengths are in pixels.

    Attributes:
        frame_size: (height, width) of the frame.
        canvas_size: (height, width) of the canvas.
        top: first row of the canvas that the frame covers.
        left: first column of the canvas that the frame covers.
        height: rows of the canvas that the frame covers.
        width: columns of the canvas that the frame covers.
    """

    frame_size: tuple[int, int]
    canvas_size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    def window(self, map_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Rectangle (top, left, height, width) of the frame in a map of (h, w) cells that covers the whole canvas.

        The decode reads the map through this window, so labels return to the frame without being resized.
        """
        rows, columns = map_size[0] / self.canvas_size[0], map_size[1] / self.canvas_size[1]
        return self.top * rows, self.left * columns, self.height * rows, self.width * columns


def place(frame_size: tuple[int, int], geometry: str, network_size: tuple[int, int], multiple: int) -> Placement:
    """Choose the canvas of a frame, and the frame's position on it.

    Args:
        frame_size: (height, width) of the frame, pixels, at least 1.
        geometry: one of `GEOMETRIES`.
        network_size: (height, width) of the canvas for ``stretch`` and ``letterbox``. The other geometries derive the
            canvas from the frame.
        multiple: both sides of the canvas are multiples of this (patch size or coarsest stride).

    Raises:
        ParameterError: the geometry is unknown, or the network size is not such a multiple.
    """
    check_geometry(geometry, network_size, multiple)
    frame_height, frame_width = frame_size
    if geometry == "stretch":
        return Placement(frame_size, network_size, 0, 0, *network_size)
    if geometry == "native":
        height, width = (max(round(side / multiple), 1) * multiple for side in frame_size)
        return Placement(frame_size, (height, width), 0, 0, height, width)
    if geometry == "pad":
        canvas_height, canvas_width = (-(-side // multiple) * multiple for side in frame_size)
        height, width = frame_size
    else:
        canvas_height, canvas_width = network_size
        scale = min(canvas_height / frame_height, canvas_width / frame_width)
        height = min(max(round(frame_height * scale), 1), canvas_height)
        width = min(max(round(frame_width * scale), 1), canvas_width)
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    return Placement(frame_size, (canvas_height, canvas_width), top, left, height, width)


def mask_size(size: str | tuple[int, int], placement: Placement) -> tuple[int, int]:
    """Return the (height, width) in pixels of the labels of a frame; see `segmenter.Segmenter.segment`.

    Raises:
        ParameterError: the size is none of those that `segmenter.Segmenter.segment` takes.
    """
    if isinstance(size, str):
        pair = {"source": placement.frame_size, "network": (placement.height, placement.width)}.get(size)
    else:
        pair = number_pair(size)
    if pair is None or min(pair) < 1:
        raise ParameterError(f"unknown mask size {size!r}; use 'source', 'network' or (height, width)")
    return pair


def nearest_in_aspect(frame_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the one of the canvas ``sizes`` with the aspect ratio nearest to the frame's.

    Args:
        frame_size: (height, width) of the frame.
        sizes: (height, width) of each canvas, at least one. Among equal aspect ratios the nearest area wins.
    """
    frame_height, frame_width = frame_size

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        height, width = size
        aspect = abs(math.log(height * frame_width / (width * frame_height)))
        return round(aspect, 6), abs(math.log(height * width / (frame_height * frame_width)))

    return min(sizes, key=distance)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to (height, width): by averaging if it shrinks, else bilinearly."""
    # INTER_AREA averages pixels when it shrinks an image, but only repeats them when it enlarges one.
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def check_geometry(geometry: str, network_size: tuple[int, int], multiple: int) -> None:
    """Raise ParameterError unless ``geometry`` is known and ``network_size`` fits ``multiple``."""
    if geometry not in GEOMETRIES:
        raise ParameterError(f"unknown geometry '{geometry}'; use one of: {', '.join(GEOMETRIES)}")
    if len(network_size) != 2 or any(side < 1 or side % multiple for side in network_size):
        raise ParameterError(
            f"network size {tuple(network_size)} does not fit the backbone: height and width must be positive "
            f"multiples of {multiple}"
        )


def fill_canvas(image: np.ndarray, placement: Placement, mean: Sequence[float], canvas: np.ndarray) -> None:
    """Write a frame onto its canvas, resized and padded as ``placement`` says.

    Args:
        image: (H, W, 3) uint8 RGB, with the size ``placement.frame_size``.
        placement: from `place`.
        mean: the mean of each channel that normalisation subtracts, 0..1. The padding is round(255 * mean), so it is
            zero for the network.
        canvas: (canvas height, canvas width, 3) uint8, overwritten.

    Raises:
        ImageError: the image is not a uint8 RGB array with the placement's size.
    """
    check_image(image)
    if image.shape[:2] != placement.frame_size:
        raise ImageError(f"the image is {image.shape[:2]}, but its placement was made for {placement.frame_size}")
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    if (placement.height, placement.width) != placement.canvas_size:
        canvas[:] = np.rint(255.0 * np.asarray(mean)).astype(np.uint8)
    if (placement.height, placement.width) == placement.frame_size:
        canvas[rows, columns] = image
    else:
        canvas[rows, columns] = resize(image, (placement.height, placement.width))


def check_image(image: np.ndarray) -> None:
    """Raise ImageError unless ``image`` is a non-empty (H, W, 3) uint8 array."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        described = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"an image must be a uint8 RGB array of shape (height, width, 3); got {described}")
    if 0 in image.shape:
        raise ImageError(f"an image must have at least one pixel; got shape {image.shape}")
