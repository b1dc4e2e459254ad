"""Views of scenes: single ones for a data set, and a drive through rooms for a camera stream."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator

import numpy as np

from dinov3_seg_ros.scenes.camera import CameraEffects, CameraPose
from dinov3_seg_ros.scenes.camera_flaws import add_camera_flaws
from dinov3_seg_ros.scenes.rendering import render_view
from dinov3_seg_ros.scenes.rooms import furnish
from dinov3_seg_ros.support.errors import DatasetError

SPLITS: tuple[str, ...] = ("train", "val")
"""The splits. They share no room and no texture."""

VIEWS_PER_SCENE = 4
"""Consecutive indices of ``sample`` that show the same room."""

SECONDS_PER_SCENE = 6.0
"""Time that ``walk`` spends in one room."""

RENDERER_VERSION = 1
"""Version of the pictures. Raise it when ``sample`` gives other pixels: caches of rendered scenes depend on it."""

_SPEED = 0.6  # of the robot, metres per second
# The camera looks at a point of the path so many metres ahead. Less would let it look along the walls.
_LOOK_AHEAD = 2.6
_SMALLEST_SIDE, _LARGEST_SIDE = 16, 4096


class Scene:
    """A furnished room and the robot's path through it.

    Making one takes about 20 ms. It never changes, so threads may share it.

    Args:
        split: one of ``SPLITS``.
        index: number of the room, 0 and up.

    Raises:
        DatasetError: an argument is out of range.
    """

    def __init__(self, split: str, index: int) -> None:
        self.split = _checked_split(split)
        self.index = _checked_index(index)
        self._room = furnish(split, index)
        rng = np.random.default_rng((303 + SPLITS.index(split), index))
        path = self._room.path
        legs = np.linalg.norm(np.roll(path, -1, axis=0) - path, axis=1)
        self._distances = np.concatenate(((0.0,), np.cumsum(legs)))
        self._closed_path = np.concatenate((path, path[:1]))
        self._start = rng.uniform(0.0, self._distances[-1])
        self._height = rng.uniform(0.5, 1.35)
        self._sway = rng.uniform(0.15, 0.45)
        self._sway_seconds = rng.uniform(5.0, 9.0)
        self._phase = rng.uniform(0.0, 2 * math.pi)
        self._pitch = math.radians(rng.uniform(-6.0, 4.0)) - 0.06 * (self._height - 0.5)

    @property
    def lap_seconds(self) -> float:
        """Time until the robot is back at its start, seconds."""
        return float(self._distances[-1]) / _SPEED

    def camera_at(self, t_seconds: float) -> CameraPose:
        """Return the camera's pose after ``t_seconds`` of driving. It is smooth in time, and never inside an object."""
        distance = self._start + _SPEED * t_seconds
        x, y = self._position(distance)
        ahead_x, ahead_y = self._position(distance + _LOOK_AHEAD)
        swing = 2 * math.pi * t_seconds / self._sway_seconds + self._phase
        return CameraPose(
            x,
            y,
            self._height + 0.004 * math.sin(9.0 * t_seconds),
            math.atan2(ahead_y - y, ahead_x - x) + self._sway * math.sin(swing),
            self._pitch + math.radians(1.5) * math.sin(0.7 * swing),
            math.radians(0.8) * math.sin(1.3 * swing),
        )

    def render(
        self, pose: CameraPose, size: tuple[int, int] = (480, 640), effects: CameraEffects | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render the view of a camera.

        Args:
            pose: a pose inside the room, such as one from ``camera_at``.
            size: (height, width), pixels.
            effects: exposure, noise and blur of the camera; default: those of a good camera. Exposure 1 suits the room.

        Returns:
            Picture uint8 (H, W, 3), RGB; and mask uint8 (H, W), class ids 0..len(CLASS_NAMES) - 1.

        Raises:
            DatasetError: ``size`` is not two whole numbers from 16 to 4096.
        """
        size = _checked_size(size)
        effects = effects or CameraEffects()
        exposure = effects.exposure * self._room.exposure
        rgb, mask, _ = render_view(self._room.model, pose, size, exposure, effects.vignetting)
        noise_seed = zlib.crc32(np.array(pose, np.float64).tobytes())
        return add_camera_flaws(rgb, effects, noise_seed), mask

    def _position(self, distance: float) -> tuple[float, float]:
        distance %= self._distances[-1]
        x, y = (float(np.interp(distance, self._distances, coordinate)) for coordinate in self._closed_path.T)
        return x, y


def sample(split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Render one image of the data set: room ``index // VIEWS_PER_SCENE`` from a random place on the robot's path.

    Args:
        split: "train" or "val".
        index: 0 and up; there is no last one.
        size: (height, width), pixels.

    Returns:
        Picture uint8 (H, W, 3), RGB; and mask uint8 (H, W), class ids 0..len(CLASS_NAMES) - 1.

    Raises:
        DatasetError: an argument is out of range.
    """
    scene = _recent_scene(_checked_split(split), _checked_index(index) // VIEWS_PER_SCENE)
    rng = np.random.default_rng((505 + SPLITS.index(split), index))
    pose = scene.camera_at(rng.uniform(0.0, scene.lap_seconds))
    pose = pose._replace(
        z=rng.uniform(0.4, 1.4),
        yaw=pose.yaw + rng.normal(0.0, 0.6),
        pitch=math.radians(rng.uniform(-13.0, 11.0)),
        roll=math.radians(rng.normal(0.0, 1.5)),
    )
    motion = rng.normal(0.0, 4.0, 2) * (1.0, 0.3) if rng.random() < 0.15 else (0.0, 0.0)
    effects = CameraEffects(
        exposure=math.exp(rng.normal(0.0, 0.25)),
        vignetting=rng.uniform(0.0, 0.35),
        noise=rng.uniform(0.5, 5.0),
        blur=rng.uniform(0.4, 1.4),
        motion=tuple(motion),
    )
    return scene.render(pose, size, effects)


def walk(split: str, index: int, size: tuple[int, int], rate_hz: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Render an endless drive through one room after the other, ``SECONDS_PER_SCENE`` in each.

    Args:
        split: "train" or "val".
        index: the first room, 0 and up.
        size: (height, width), pixels.
        rate_hz: pictures per second of driving. The iterator does not wait; the caller sets the real pace.

    Returns:
        An iterator over pictures and masks as from ``Scene.render``.

    Raises:
        DatasetError: an argument is out of range; raised by the call itself, not by the iterator.
    """
    split, index, size = _checked_split(split), _checked_index(index), _checked_size(size)
    if not (math.isfinite(rate_hz) and rate_hz > 0.0):
        raise DatasetError(f"rate_hz is {rate_hz!r}; give the pictures per second as a number above 0, such as 10.0")
    return _drive(split, index, size, rate_hz)


def _drive(split: str, index: int, size: tuple[int, int], rate_hz: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    frames_per_scene = max(1, round(SECONDS_PER_SCENE * rate_hz))
    while True:
        scene = Scene(split, index)
        for frame in range(frames_per_scene):
            yield scene.render(scene.camera_at(frame / rate_hz), size)
        index += 1


@functools.lru_cache(maxsize=8)
def _recent_scene(split: str, index: int) -> Scene:
    return Scene(split, index)


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise DatasetError(f"there is no split {split!r}; use one of: {', '.join(SPLITS)}")
    return split


def _checked_index(index: int) -> int:
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or index < 0:
        raise DatasetError(f"the index is {index!r}; give a whole number of at least 0")
    return int(index)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
        is_whole = (height, width) == tuple(size)
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole or not all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE for side in (height, width)):
        raise DatasetError(
            f"the size is {size!r}; give height and width as whole numbers "
            f"from {_SMALLEST_SIDE} to {_LARGEST_SIDE}, such as (480, 640)"
        )
    return height, width
