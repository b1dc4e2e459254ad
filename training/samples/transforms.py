"""From a labelled image to a training canvas: paired turn, scale, crop and flip; changes of colour; blur and noise.

The canvas is the network input: uint8 RGB, (H, W, 3). Without augmentation an image is laid on it as the robot's frames
are (`dinov3_seg_ros.frames.preprocessing`). Masks are resampled by nearest neighbour and padded with the ignore value,
so that a mask holds labelled values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from dinov3_seg_ros.frames.preprocessing import place, resize
from training.support.section import Section

NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the smallest comes first; got {ends[0]:g} before {ends[1]:g}")
    return ends


Range: TypeAlias = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_in_order)]
PositiveRange: TypeAlias = Annotated[tuple[Positive, Positive], AfterValidator(_in_order)]

#: Version of what a sample looks like. Raise it when `training_canvas` gives other pixels for the same arguments, also
#: through `preprocessing` or `randomness`: cached features of samples are kept under it.
SAMPLES_VERSION = 1

# Rec. 601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_CROP_TRIES = 10


class Augmentation(Section):
    """Random changes to a training image, in the order of these settings; each is off by default.

    A change draws no random number while it is off, so that a new kind of change leaves the images of earlier recipes
    as they are.
    """

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn about the image's middle, degrees, either way; corners from outside the image are padded."""
    rotate_probability: Probability = 1.0
    """Probability of turning at all."""
    scale: PositiveRange | None = None
    """Smallest and largest size, as a factor of the size on the robot; drawn evenly in the logarithm. A larger image
    is cropped at random, a smaller one is placed at random and padded."""
    crop: tuple[int, int] | None = None
    """Height and width of the training canvas where it is not the network size."""
    crop_class_limit: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a crop's labelled pixels that no class should reach; up to ten crops are drawn to find one. Known as
    cat_max_ratio elsewhere."""
    flip: Probability = 0.0
    """Probability of swapping left and right, also of classes such as ``left lane`` and ``right lane``."""
    colour_probability: Probability = 1.0
    """Probability of changing colours at all: brightness, contrast, saturation, hue and grey."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift of all channels, as a part of the full range."""
    contrast: Range | None = None
    """Smallest and largest factor of the distance from mid-grey."""
    saturation: Range | None = None
    """Smallest and largest factor of the distance from the pixel's own grey."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, as a part of the colour circle."""
    grey: Probability = 0.0
    """Probability of taking all colour away."""
    blur: NotNegative = 0.0
    """Largest standard deviation of a Gaussian blur, canvas pixels; drawn evenly from 0."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest standard deviation of Gaussian noise, as a part of the full range; drawn evenly from 0."""


@dataclass(frozen=True)
class CanvasSettings:
    """How an image is laid on the training canvas; see `dinov3_seg_ros.frames.preprocessing`.

    Attributes:
        network_size, geometry, multiple: see `preprocessing.place`.
        size: (height, width) of the training canvas.
        mean: of the normalisation, 0..1; images are padded with it.
        ignore_value: masks are padded with it.
        sides: pairs of class ids that trade places when the image is mirrored; see `opposite_sides`.
    """

    network_size: tuple[int, int]
    size: tuple[int, int]
    geometry: str
    multiple: int
    mean: Sequence[float]
    ignore_value: int
    sides: Sequence[tuple[int, int]] = ()

    @property
    def padding_colour(self) -> tuple[int, int, int]:
        """RGB, 0..255; zero to the network."""
        red, green, blue = np.rint(255.0 * np.asarray(self.mean)).astype(int).tolist()
        return red, green, blue


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
        random: source of every random number.

    Returns:
        Canvas (*settings.size, 3) uint8 and its mask (*settings.size), of the type of ``mask``.
    """
    if augmentation.rotate and _happens(augmentation.rotate_probability, random):
        image, mask = _rotate(image, mask, random.uniform(-augmentation.rotate, augmentation.rotate), settings)
    height, width = _scaled_size(image.shape[:2], settings, augmentation, random)
    image, mask, top, left = _resampled_part(image, mask, (height, width), settings, augmentation, random)
    if random.random() < augmentation.flip:
        image, mask = image[:, ::-1], _mirrored(mask, settings.sides)
        left = settings.size[1] - left - image.shape[1]
    image = np.ascontiguousarray(image)
    if _happens(augmentation.colour_probability, random):
        image = change_colours(image, augmentation, random)
    if augmentation.blur:
        # Never 0, from which OpenCV would choose a deviation of its own.
        image = cv2.GaussianBlur(image, (0, 0), augmentation.blur * (1.0 - random.random()))
    if augmentation.noise:
        deviation = 255.0 * random.uniform(0.0, augmentation.noise)
        noisy = image + deviation * random.standard_normal(image.shape, np.float32)
        image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    canvas = np.empty((*settings.size, 3), np.uint8)
    canvas[:] = settings.padding_colour
    canvas_mask = np.full(settings.size, settings.ignore_value, mask.dtype)
    rows, columns = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
    canvas[rows, columns] = image
    canvas_mask[rows, columns] = mask
    return canvas, canvas_mask


def _mirrored(mask: np.ndarray, sides: Sequence[tuple[int, int]]) -> np.ndarray:
    seen = mask[:, ::-1]
    mirrored: np.ndarray = seen.copy()
    for left, right in sides:
        mirrored[seen == left], mirrored[seen == right] = right, left
    return mirrored


def change_colours(image: np.ndarray, augmentation: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an (H, W, 3) uint8 RGB image at random; returns a new one."""
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
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # one byte is the full circle: overflow is intended
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _happens(probability: float, random: np.random.Generator) -> bool:
    """Decide by a random number, drawn only where the outcome is open."""
    return probability == 1.0 or random.random() < probability


def _rotate(
    image: np.ndarray, mask: np.ndarray, degrees: float, settings: CanvasSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Turn image and mask anticlockwise about their middle; both keep their size, corners are padded."""
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return (
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=settings.padding_colour),
        cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=settings.ignore_value),
    )


def _scaled_size(
    frame_size: tuple[int, int], settings: CanvasSettings, augmentation: Augmentation, random: np.random.Generator
) -> tuple[int, int]:
    """Height and width of the whole frame, canvas pixels."""
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
    """Resample the part of the frame that the canvas shows, as if the whole frame had ``size``.

    The frame is cut before it is resampled: at large scales most of the work would be wasted.

    Returns:
        Image and mask of that part, and the row and column of its top left corner on the canvas.
    """
    limit = augmentation.crop_class_limit
    for _ in range(1 if limit is None else _CROP_TRIES):
        (row, rows, top, height), (column, columns, left, width) = (
            _visible(frame, scaled, canvas, augmentation.scale is not None, random)
            for frame, scaled, canvas in zip(image.shape[:2], size, settings.size, strict=True)
        )
        mask_part = mask[row : row + rows, column : column + columns]
        if limit is None or _largest_share(mask_part, settings.ignore_value) < limit:
            break
    image, mask = image[row : row + rows, column : column + columns], mask_part
    if (height, width) != mask.shape:
        image = resize(image, (height, width))
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask, top, left


def _largest_share(mask: np.ndarray, ignore_value: int) -> float:
    """Share of the most frequent class among the labelled pixels; 1 where none is labelled."""
    counts = np.bincount(mask.ravel(), minlength=ignore_value + 1)
    counts[ignore_value] = 0
    labelled = counts.sum()
    return counts.max() / labelled if labelled else 1.0


def _visible(
    frame: int, scaled: int, canvas: int, place_at_random: bool, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Along one axis: first pixel and number of visible pixels of the frame, then start and length on the canvas."""
    slack = canvas - scaled
    if slack >= 0:
        start = int(random.integers(slack + 1)) if place_at_random else slack // 2
        return 0, frame, start, scaled
    hidden = int(random.integers(-slack + 1))
    first = min(round(hidden * frame / scaled), frame - 1)
    count = min(max(round(canvas * frame / scaled), 1), frame - first)
    return first, count, 0, canvas
