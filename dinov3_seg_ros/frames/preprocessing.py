"""Geometry only: from any RGB image to the uint8 canvas that the network sees, and the way back.

Normalising is the runtime's work. `training` uses this same module, so that the robot sees what training saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dinov3_seg_ros.options import GEOMETRIES
from dinov3_seg_ros.support.errors import ImageError, ParameterError


@dataclass(frozen=True)
class Placement:
    """Where a frame lies on its canvas. All lengths are in pixels.

    Attributes:
        frame_size: (height, width) of the frame.
        canvas_size: (height, width) of the canvas.
        top, left, height, width: the rectangle of the canvas that the frame covers.
    """

    frame_size: tuple[int, int]
    canvas_size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    def window(self, map_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The frame's rectangle (top, left, height, width) in cells of a (h, w) map that covers the whole canvas."""
        rows, columns = map_size[0] / self.canvas_size[0], map_size[1] / self.canvas_size[1]
        return self.top * rows, self.left * columns, self.height * rows, self.width * columns


def place(frame_size: tuple[int, int], geometry: str, network_size: tuple[int, int], multiple: int) -> Placement:
    """Decide where a frame lies on the canvas.

    Args:
        frame_size: (height, width) of the frame, pixels, at least 1.
        geometry: one of `GEOMETRIES`.
        network_size: (height, width) of the canvas for ``stretch`` and ``letterbox``; a multiple of ``multiple``.
            The other geometries derive their canvas from the frame.
        multiple: what both sides of the canvas must be multiples of (patch size or coarsest stride).

    Raises:
        ParameterError: unknown geometry, or a network size that is not a multiple.
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


def nearest_in_aspect(frame_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of the canvas sizes (height, width), the one whose aspect ratio is nearest the frame's; of several, the one of
    the nearest area."""
    frame_height, frame_width = frame_size

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        height, width = size
        aspect = abs(math.log(height * frame_width / (width * frame_height)))
        return round(aspect, 6), abs(math.log(height * width / (frame_height * frame_width)))

    return min(sizes, key=distance)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 at another (height, width): averaged where it shrinks, else bilinear."""
    # INTER_AREA averages what it drops when it shrinks; when it enlarges it would only repeat pixels.
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
    """Write a frame into its canvas, resized and padded as ``placement`` says.

    Args:
        image: (H, W, 3) uint8 RGB, of ``placement.frame_size``.
        placement: from `place`.
        mean: the normalisation's mean of each channel, 0..1; padding is round(255 * mean), so that it is zero to
            the network.
        canvas: (canvas height, canvas width, 3) uint8, overwritten.

    Raises:
        ImageError: the image is not (H, W, 3) uint8 of the placement's size.
    """
    check_image(image)
    if image.shape[:2] != placement.frame_size:
        raise ImageError(f"the image is {image.shape[:2]} and its placement was made for {placement.frame_size}")
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
