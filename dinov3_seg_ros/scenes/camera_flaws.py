"""Blur, motion and noise: what a real camera adds to a sharp picture."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from dinov3_seg_ros.scenes.camera import CameraEffects

_NOISE_TILE = 1024


def add_camera_flaws(rgb: np.ndarray, effects: CameraEffects, seed: int) -> np.ndarray:
    """Blur a sharp picture and add noise.

    Args:
        rgb: (H, W, 3) uint8; may be overwritten.
        effects: blur, motion and noise; exposure and vignetting belong to the rendering.
        seed: chooses the noise.
    """
    scale = rgb.shape[1] / 640.0
    kernel = _motion_kernel(effects.motion[0] * scale, effects.motion[1] * scale)
    if kernel is not None:
        rgb = cv2.filter2D(rgb, -1, kernel, borderType=cv2.BORDER_REFLECT)
    if effects.blur > 0.0:
        rgb = cv2.GaussianBlur(rgb, (3, 3) if effects.blur * scale < 0.8 else (7, 7), max(0.3, effects.blur * scale))
    if effects.noise > 0.0:
        _add_noise(rgb, _noise_tile(), effects.noise, seed)
    return rgb


@functools.lru_cache(maxsize=1)
def _noise_tile() -> NDArray[np.float32]:
    """Normal noise with deviation 1, drawn once: drawing it anew for each picture takes longer than rendering."""
    return np.random.default_rng(5).standard_normal(_NOISE_TILE * _NOISE_TILE).astype(np.float32)


def _motion_kernel(right: float, down: float) -> NDArray[np.float32] | None:
    """Weights of a straight smear of ``right`` by ``down`` pixels, or None if it is shorter than a pixel."""
    length = math.hypot(right, down)
    if length < 1.0:
        return None
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    start = (round(16 * (reach - right / 2)), round(16 * (reach - down / 2)))
    end = (round(16 * (reach + right / 2)), round(16 * (reach + down / 2)))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, 4)
    kernel /= kernel.sum()
    return kernel


@njit(cache=True, nogil=True, error_model="numpy")
def _add_noise(rgb: np.ndarray, tile: np.ndarray, deviation: float, seed: int) -> None:
    """Add noise from ``tile`` in place. Each row starts at a place in it that follows from ``seed``."""
    flat = rgb.reshape(rgb.shape[0], -1)
    strength = np.float32(deviation)
    state = np.uint64(seed)
    for y in range(flat.shape[0]):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        start = np.int64(state >> np.uint64(33)) % (tile.size - flat.shape[1])
        for x in range(flat.shape[1]):
            value = np.float32(flat[y, x]) + strength * tile[start + x] + np.float32(0.5)
            flat[y, x] = np.uint8(min(max(value, np.float32(0.0)), np.float32(255.0)))
