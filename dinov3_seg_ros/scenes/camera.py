"""The robot's camera: its pose and its flaws."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

FIELD_OF_VIEW = math.radians(70.0)
"""Horizontal field of view, radians."""


class CameraPose(NamedTuple):
    """Position and direction of the camera in a scene."""

    x: float
    """Metres."""
    y: float
    """Metres."""
    z: float
    """Height above the floor, metres."""
    yaw: float
    """Direction of view in the plane, radians from +x towards +y."""
    pitch: float = 0.0
    """Radians, positive looks up."""
    roll: float = 0.0
    """Radians, positive turns the camera clockwise."""

    def axes(self) -> np.ndarray:
        """float64 (3, 3): unit vectors to the right, down and forward of the image, in world coordinates."""
        cos_yaw, sin_yaw = math.cos(self.yaw), math.sin(self.yaw)
        cos_pitch, sin_pitch = math.cos(self.pitch), math.sin(self.pitch)
        forward = np.array((cos_yaw * cos_pitch, sin_yaw * cos_pitch, sin_pitch))
        level_right = np.array((sin_yaw, -cos_yaw, 0.0))
        level_down = np.cross(forward, level_right)
        cos_roll, sin_roll = math.cos(self.roll), math.sin(self.roll)
        right = cos_roll * level_right + sin_roll * level_down
        down = cos_roll * level_down - sin_roll * level_right
        return np.stack((right, down, forward))


class CameraEffects(NamedTuple):
    """Exposure and flaws of a real camera."""

    exposure: float = 1.0
    """Factor on the light."""
    vignetting: float = 0.15
    """Share of the light lost in the corners, 0..1."""
    noise: float = 2.0
    """Standard deviation of the noise, grey levels."""
    blur: float = 0.6
    """Standard deviation of the optical blur, pixels in a picture 640 wide."""
    motion: tuple[float, float] = (0.0, 0.0)
    """Movement of the picture during the exposure, pixels right and down in a picture 640 wide."""
