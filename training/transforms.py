"""From a labelled image to a training canvas: paired scale, crop and flip, and changes of colour.

What is not augmented goes the way the robot's frames go (`dinov3_seg_ros.preprocessing`). Masks are resampled by
nearest neighbour and padded with the ignore value, so that no mask holds a value that nobody labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import cv2
import numpy as np
from pydantic import Field

from dinov3_seg_ros.preprocessing import place
from training.section import Section

Range: TypeAlias = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]

# Rec. 601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Augmentation(Section):
    """Random changes to a training image; each is off by default."""

    scale: Range | None = None
    """Smallest and largest size, as a factor of the size the robot would show; drawn evenly in the logarithm. What
    exceeds the canvas is cropped at random, what falls short is placed at random and padded."""
    crop: tuple[int, int] | None = None
    """Height and width of the training canvas where it is not the network size."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of swapping left and right."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift of all channels, as a part of the full range."""
    contrast: Range | None = None
    """Smallest and largest factor of the distance from mid-grey."""
    saturation: Range | None = None
    """Smallest and largest factor of the distance from the pixel's own grey."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, as a part of the colour circle."""
    grey: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of taking all colour away."""


@dataclass(frozen=True)
class CanvasSettings:
    """How a frame is laid on the training canvas; see `dinov3_seg_ros.preprocessing`.

    Attributes:
        network_size, geometry, multiple: see `preprocessing.place`.
        size: (height, width) of the training canvas.
        mean: of the normalisation, 0..1; images are padded with it.
        ignore_value: masks are padded with it.
    """

    network_size: tuple[int, int]
    size: tuple[int, int]
    geometry: str
    multiple: int
    mean: Sequence[float]
    ignore_value: int


def training_canvas(
    image: np.ndarray,
    mask: np.ndarray,
    settings: CanvasSettings,
    augmentation: Augmentation,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Augment a labelled image and lay it on a canvas.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) class ids.
        random: where every random number comes from.

    Returns:
        Canvas (*settings.size, 3) uint8 and its mask (*settings.size), of the type of ``mask``.
    """
    height, width = _scaled_size(image.shape[:2], settings, augmentation, random)
    image, mask, top, left = _resampled_part(image, mask, (height, width), settings, augmentation, random)
    if random.random() < augmentation.flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
        left = settings.size[1] - left - image.shape[1]
    image = change_colours(np.ascontiguousarray(image), augmentation, random)
    canvas = np.empty((*settings.size, 3), np.uint8)
    canvas[:] = np.rint(255.0 * np.asarray(settings.mean)).astype(np.uint8)
    canvas_mask = np.full(settings.size, settings.ignore_value, mask.dtype)
    rows, columns = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
    canvas[rows, columns] = image
    canvas_mask[rows, columns] = mask
    return canvas, canvas_mask


def change_colours(image: np.ndarray, augmentation: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation, hue and greyness of an (H, W, 3) uint8 RGB image; returns a new one."""
    shift = random.uniform(-augmentation.brightness, augmentation.brightness) * 255.0
    contrast = random.uniform(*augmentation.contrast) if augmentation.contrast else 1.0
    saturation = random.uniform(*augmentation.saturation) if augmentation.saturation else 1.0
    if random.random() < augmentation.grey:
        saturation = 0.0
    if augmentation.hue:
        image = _turn_hue(image, random.uniform(-augmentation.hue, augmentation.hue))
    # All three are linear in the colours of a pixel: one matrix does them in one pass.
    matrix = contrast * (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.tile(_LUMA, (3, 1)))
    offset = np.full((3, 1), 127.5 * (1 - contrast) + shift, np.float32)
    return cv2.transform(image, np.hstack([matrix, offset]).astype(np.float32))


def _turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # one byte is the full circle: overflow is what is wanted
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _scaled_size(
    frame_size: tuple[int, int], settings: CanvasSettings, augmentation: Augmentation, random: np.random.Generator
) -> tuple[int, int]:
    """Size of the whole frame in canvas pixels."""
    placement = place(frame_size, settings.geometry, settings.network_size, settings.multiple)
    if augmentation.scale is None:
        return placement.height, placement.width
    scale = np.exp(random.uniform(*np.log(augmentation.scale)))
    return max(round(placement.height * scale), 1), max(round(placement.width * scale), 1)


def _resampled_part(
    image: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    settings: CanvasSettings,
    augmentation: Augmentation,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Resample to ``size`` what the canvas shows of the frame; also where on the canvas its top left corner lies.

    The frame is cut before it is resampled: at large scales most of it would be computed for nothing.
    """
    axes = [
        _visible(frame, scaled, canvas, augmentation.scale is not None, random)
        for frame, scaled, canvas in zip(image.shape[:2], size, settings.size, strict=True)
    ]
    (row, rows, top, height), (column, columns, left, width) = axes
    image = image[row : row + rows, column : column + columns]
    mask = mask[row : row + rows, column : column + columns]
    if (height, width) != mask.shape:
        shrinks = height <= rows and width <= columns
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask, top, left


def _visible(
    frame: int, scaled: int, canvas: int, place_at_random: bool, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Along one axis: first pixel and number of pixels of the frame that show, and where and how long on the canvas."""
    slack = canvas - scaled
    if slack >= 0:
        start = int(random.integers(slack + 1)) if place_at_random else slack // 2
        return 0, frame, start, scaled
    hidden = int(random.integers(-slack + 1))
    first = min(round(hidden * frame / scaled), frame - 1)
    count = min(max(round(canvas * frame / scaled), 1), frame - first)
    return first, count, 0, canvas
