"""The light in a room, computed once per scene for points on every surface."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dinov3_seg_ros.scenes.surfaces import QuadLight, Quads, Solids

_SIX_DIRECTIONS = np.array(((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)), float)
_GRID_STEP = 0.15
_MOST_GRID_POINTS = 96
_SHADE_HEIGHT = 0.5


class Source(NamedTuple):
    """A lamp or a window."""

    position: tuple[float, float, float]
    """World coordinates, metres."""
    strength: float
    """Light on a surface that faces it from nearby."""
    reach: float
    """Metres at which it has halved."""


class FloorPlan(NamedTuple):
    """The grid of a floor map: cell (row, column) is at x = column * step - half_x, y = row * step - half_y."""

    half_x: float
    half_y: float
    step: float
    """Metres between cells."""

    def blank(self, dtype: DTypeLike) -> np.ndarray:
        """An empty map of this floor."""
        return np.zeros((int(2 * self.half_y / self.step) + 1, int(2 * self.half_x / self.step) + 1), dtype)

    def cells(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (N, 2), metres, to columns and rows of the map (N, 2)."""
        origin: NDArray[np.float64] = np.array((self.half_x, self.half_y))
        return (points + origin) / self.step

    def read(self, values: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Interpolate a map under the points (N, 2): (N,)."""
        if not len(points):  # an empty room; OpenCV raises an error for no points
            return np.zeros(0, np.float32)
        columns, rows = self.cells(points).astype(np.float32).T
        found = cv2.remap(values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return found.ravel().astype(np.float32, copy=False)


class Lighting:
    """Ambient light, lamps, sun on the floor, and shade around and under objects."""

    def __init__(
        self,
        sources: list[Source],
        ambient: float,
        bias: NDArray[np.float64],
        plan: FloorPlan,
        footprints: NDArray[np.float32],
        sunlit: NDArray[np.float32],
    ) -> None:
        """Gather what lights a room.

        Args:
            sources: lamps and windows.
            ambient: light from everywhere.
            bias: (3,), how much more ambient light falls on surfaces that face along each axis.
            plan: the grid of both maps.
            footprints: 0..1, where objects stand.
            sunlit: 0 and up, sunlight through windows.
        """
        self._sources = sources
        self._ambient = ambient
        self._bias = bias
        self._plan = plan
        wide, narrow = (cv2.GaussianBlur(footprints, (0, 0), metres / plan.step) for metres in (0.22, 0.06))
        self._shade = 0.45 * wide + 0.3 * narrow
        self._sunlit = sunlit * (1.0 - footprints)

    def at(self, points: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the light (N,), 0 and up, on surfaces at ``points`` (N, 3) that face along ``normals`` (N, 3)."""
        light: NDArray[np.float64] = self._ambient * (1.0 + normals @ self._bias)
        for source in self._sources:
            towards = np.asarray(source.position) - points
            distance = np.maximum(np.linalg.norm(towards, axis=1), 0.15)
            facing = np.einsum("ij,ij->i", towards, normals) / distance
            wrapped = np.clip(0.8 * facing + 0.2, 0.0, 1.0)
            light += source.strength * wrapped / (1.0 + (distance / source.reach) ** 2)
        shade = self._plan.read(self._shade, points[:, :2])
        light *= 1.0 - shade * np.exp(-points[:, 2] / _SHADE_HEIGHT)
        on_floor = (points[:, 2] < 0.03) & (normals[:, 2] > 0.9)
        return light + on_floor * self._plan.read(self._sunlit, points[:, :2])

    def on_quads(self, quads: Quads) -> QuadLight:
        """Compute the light on a grid over each quad; quads that shine get their own emission."""
        sizes = np.stack((np.linalg.norm(quads.edge_u, axis=1), np.linalg.norm(quads.edge_v, axis=1)))
        columns, rows = np.clip(np.ceil(sizes / _GRID_STEP), 1, _MOST_GRID_POINTS - 1).astype(np.int64) + 1
        shines = quads.emission > 0.0
        is_small = sizes.max(axis=0) < 4 * _GRID_STEP
        columns[shines | is_small] = rows[shines | is_small] = 2
        counts = columns * rows
        start = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(owner)) - start[owner]
        u = (place % columns[owner]) / (columns[owner] - 1)
        v = (place // columns[owner]) / (rows[owner] - 1)
        points = quads.origin[owner] + u[:, None] * quads.edge_u[owner] + v[:, None] * quads.edge_v[owner]
        values = np.where(shines[owner], quads.emission[owner], self.at(points, quads.normal[owner]))
        return QuadLight(start, columns, rows, values.astype(np.float32))

    def on_solids(self, solids: Solids) -> NDArray[np.float32]:
        """Compute the light on each solid from six sides, (S, 6) in the order -x, +x, -y, +y, -z, +z."""
        points = np.repeat(solids.centre, 6, axis=0)
        light = self.at(points, np.tile(_SIX_DIRECTIONS, (len(solids.centre), 1))).reshape(-1, 6)
        shines = solids.emission > 0.0
        light[shines] = solids.emission[shines, None]
        return light.astype(np.float32)
