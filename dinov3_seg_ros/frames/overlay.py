"""Pictures of a segmentation: class colours, blended over the image, with class names."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

#: Regions are searched in a mask reduced to about this many pixels on its shorter side, which is enough to place names.
_PLACEMENT_SIDE = 120
#: Classes with a smaller share of the picture get no name: the text would cover more than the region.
_LEAST_NAMED_SHARE = 0.004


def colour_mask(
    labels: np.ndarray, palette: Sequence[tuple[int, int, int]], unlabelled: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """Colour labels (H, W) uint8 or uint16 as RGB (H, W, 3) uint8; ``unlabelled`` colours those beyond the palette."""
    table: NDArray[np.uint8] = np.empty((65536 if labels.dtype == np.uint16 else 256, 3), np.uint8)
    table[:] = unlabelled
    table[: len(palette)] = palette
    if labels.dtype == np.uint16:
        coloured: NDArray[np.uint8] = table[labels]
        return coloured
    return cv2.applyColorMap(np.ascontiguousarray(labels), table[:, None, :])


def blend_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
    alpha: float = 0.5,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Blend class colours over an image. The cost does not depend on the number of classes.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        labels: (h, w) uint8 or uint16; resized to the image by nearest neighbour.
        palette: RGB colour (0..255) of each class id. The image shows unchanged where a label lies beyond it
            (unlabelled).
        alpha: weight of the colours, 0..1.
        names: class names, by class id. Each is written inside the largest region of its class; None writes none.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    height, width = image.shape[:2]
    if labels.shape != (height, width):
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(colour_mask(labels, palette), alpha, image, 1.0 - alpha, 0.0)
    unlabelled = (labels >= len(palette)).view(np.uint8)
    if cv2.countNonZero(unlabelled):
        cv2.copyTo(image, unlabelled, blended)
    if names:
        _write_names(blended, labels, names)
    return blended


def to_bgr(picture: np.ndarray) -> np.ndarray:
    """Convert RGB to BGR, (H, W, 3) uint8."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def _write_names(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """Write the name of each class in view into its largest region of ``picture``, in place."""
    step = max(min(labels.shape) // _PLACEMENT_SIDE, 1)
    small = np.ascontiguousarray(labels[step // 2 :: step, step // 2 :: step])
    counts = np.bincount(small.reshape(-1), minlength=len(names))[: len(names)]
    scale = max(picture.shape[0] / 960.0, 0.35)
    for label in np.flatnonzero(counts >= _LEAST_NAMED_SHARE * small.size).tolist():
        x, y = _innermost_point_of_largest_region(small == label)
        _write_centred(picture, names[label], (x * step + step // 2, y * step + step // 2), scale)


def _innermost_point_of_largest_region(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the point of a non-empty mask (h, w) bool that is farthest from the edge of its largest region."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    # The border counts as outside, which keeps names away from the edge of the picture.
    region = cv2.copyMakeBorder((components == largest).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    y, x = np.unravel_index(int(np.argmax(cv2.distanceTransform(region, cv2.DIST_L2, 3))), region.shape)
    return int(x) - 1, int(y) - 1


def _write_centred(picture: np.ndarray, text: str, centre: tuple[int, int], scale: float) -> None:
    thickness = max(round(scale * 1.6), 1)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    x = min(max(centre[0] - width // 2, 1), max(picture.shape[1] - width - 1, 1))
    y = min(max(centre[1] + height // 2, height + 1), picture.shape[0] - 2)
    for colour, extra in (((0, 0, 0), 2), ((255, 255, 255), 0)):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness + extra, cv2.LINE_AA)
