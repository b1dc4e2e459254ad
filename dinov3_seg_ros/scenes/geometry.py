"""Boxes and round bodies, gathered into the arrays that the renderer reads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dinov3_seg_ros.scenes.materials import Material
from dinov3_seg_ros.scenes.surfaces import ELLIPSOID, FRUSTUM, Quads, Solids
from dinov3_seg_ros.scenes.textures import SIZE

# Corner, first and second edge of each face of the cube [-1, 1]^3; the cross product of the edges points outwards, and
# the second edge points up on the four sides.
_FACE_CORNERS = np.array(((1, -1, -1), (-1, 1, -1), (1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, -1)), float)
_FACE_EDGES_U = np.array(((0, 2, 0), (0, -2, 0), (-2, 0, 0), (2, 0, 0), (2, 0, 0), (2, 0, 0)), float)
_FACE_EDGES_V = np.array(((0, 0, 2), (0, 0, 2), (0, 0, 2), (0, 0, 2), (0, 2, 0), (0, -2, 0)), float)


class Geometry:
    """Everything that stands in a scene."""

    def __init__(self) -> None:
        self.boxes: list[tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[Material, ...]]] = []
        self.solids: list[tuple[np.ndarray, np.ndarray, int, float, int, Material]] = []

    def part(self, label: int, x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Part:
        """Start an object of class ``label``, to be built in its own coordinates."""
        return Part(self, label, x, y, yaw)

    def room(
        self, half_x: float, half_y: float, height: float, labels: tuple[int, ...], materials: tuple[Material, ...]
    ) -> None:
        """Add the six faces of a room, seen from inside: walls at -x, +x, -y, +y, then floor and ceiling.

        A room is a box of negative size: mirroring a box in its centre turns its faces inside out.
        """
        axes = -np.diag((half_x, half_y, 0.5 * height))
        self.boxes.append((np.array((0.0, 0.0, 0.5 * height)), axes, labels, materials))

    def quads(self, rng: np.random.Generator) -> Quads:
        """Return the faces of all boxes; ``rng`` shifts their textures."""
        centres = np.stack([box[0] for box in self.boxes])
        axes = np.stack([box[1] for box in self.boxes])
        origin, edge_u, edge_v = (
            np.einsum("bij,fj->bfi", axes, part).reshape(-1, 3)
            for part in (_FACE_CORNERS, _FACE_EDGES_U, _FACE_EDGES_V)
        )
        origin += np.repeat(centres, 6, axis=0)
        normal = np.cross(edge_u, edge_v)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        texture, ramp, tile, emission = np.array([m for box in self.boxes for m in box[3]], float).T
        stretched = tile == 0.0
        lengths = np.stack((np.linalg.norm(edge_u, axis=1), np.linalg.norm(edge_v, axis=1)), axis=1)
        extent = np.where(stretched[:, None], 1.0, lengths / np.where(stretched, 1.0, tile)[:, None])
        shift = np.where(stretched[:, None], 0.0, rng.random(extent.shape))
        return Quads(
            origin,
            edge_u,
            edge_v,
            normal,
            np.concatenate((extent, shift), axis=1) * SIZE,
            texture.astype(np.int64),
            ramp.astype(np.int64),
            emission,
            np.array([label for box in self.boxes for label in box[2]], np.uint8),
        )

    def round_bodies(self) -> Solids:
        """Return all ellipsoids and frusta."""
        count = len(self.solids)
        from_unit = np.array([solid[1] for solid in self.solids]).reshape(count, 3, 3)
        materials = [solid[5] for solid in self.solids]
        return Solids(
            np.array([solid[0] for solid in self.solids]).reshape(count, 3),
            np.linalg.inv(from_unit),
            from_unit,
            np.array([solid[2] for solid in self.solids], np.int64),
            np.array([solid[3] for solid in self.solids], float),
            np.array([SIZE / (material.tile or 1.0) for material in materials], float),
            np.array([material.texture for material in materials], np.int64),
            np.array([material.ramp for material in materials], np.int64),
            np.array([material.emission for material in materials], float),
            np.array([solid[4] for solid in self.solids], np.uint8),
        )


class Part:
    """An object under construction: x to its right seen from behind, y to its front, z up, origin on the floor."""

    def __init__(self, geometry: Geometry, label: int, x: float, y: float, yaw: float) -> None:
        self._geometry = geometry
        self._label = int(label)
        cosine, sine = math.cos(yaw), math.sin(yaw)
        self._rotation: NDArray[np.float64] = np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
        self._position: NDArray[np.float64] = np.array((x, y, 0.0))

    def box(
        self,
        centre: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        turn: np.ndarray | None = None,
    ) -> None:
        """Add a box of full ``size`` at ``centre``; ``turn`` is a rotation (3, 3) about the centre."""
        axes = 0.5 * np.diag(size)
        if turn is not None:
            axes = turn @ axes
        self._geometry.boxes.append(
            (self._to_world(centre), self._rotation @ axes, (self._label,) * 6, (material,) * 6)
        )

    def ellipsoid(
        self,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        material: Material,
        turn: np.ndarray | None = None,
    ) -> None:
        """Add an ellipsoid with the half axes ``radii``; ``turn`` is a rotation (3, 3) about the centre."""
        axes = np.diag(radii).astype(float)
        if turn is not None:
            axes = turn @ axes
        self._add_solid(self._to_world(centre), self._rotation @ axes, ELLIPSOID, 0.0, material)

    def frustum(
        self,
        bottom: tuple[float, float, float],
        top: tuple[float, float, float],
        radius_bottom: float,
        radius_top: float,
        material: Material,
        depth: float = 1.0,
    ) -> None:
        """Add a round bar between two points, ``depth`` times as deep (along y) as wide (along x)."""
        axis = 0.5 * np.subtract(top, bottom)
        forward = np.array((0.0, axis[2], -axis[1]))
        length = math.hypot(axis[1], axis[2])
        forward = forward / length if length > 1e-6 else np.array((0.0, 1.0, 0.0))
        side = np.array(
            (forward[1] * axis[2] - forward[2] * axis[1], forward[2] * axis[0], -forward[1] * axis[0])
        ) / math.sqrt(axis @ axis)
        radius = 0.5 * (radius_bottom + radius_top)
        axes = np.stack((side * radius, forward * radius * depth, axis), axis=1)
        centre = 0.5 * np.add(top, bottom)
        taper = (radius_top - radius_bottom) / (radius_top + radius_bottom)
        self._add_solid(self._to_world(centre), self._rotation @ axes, FRUSTUM, taper, material)

    def _add_solid(self, centre: np.ndarray, axes: np.ndarray, kind: int, taper: float, material: Material) -> None:
        self._geometry.solids.append((centre, axes, kind, taper, self._label, material))

    def _to_world(self, point: ArrayLike) -> NDArray[np.float64]:
        return self._position + self._rotation @ np.asarray(point, np.float64)


def turn_about(axis: str, angle: float) -> np.ndarray:
    """Return the rotation (3, 3) by ``angle`` radians about "x", "y" or "z"."""
    cosine, sine = math.cos(angle), math.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = cosine
    rotation[i, j] = -sine
    rotation[j, i] = sine
    return rotation
