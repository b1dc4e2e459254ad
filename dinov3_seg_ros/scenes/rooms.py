"""Rooms: their size and materials, the robot's path through them, and the places of objects."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.scenes import furniture
from dinov3_seg_ros.scenes.furniture import Piece
from dinov3_seg_ros.scenes.geometry import Geometry
from dinov3_seg_ros.scenes.labels import Label
from dinov3_seg_ros.scenes.lighting import FloorPlan, Lighting, Source
from dinov3_seg_ros.scenes.materials import Material, Painter
from dinov3_seg_ros.scenes.surfaces import Model
from dinov3_seg_ros.scenes.textures import texture_bank

ROBOT_RADIUS = 0.55
"""Least distance between the robot's path and objects, metres."""

_PATH_POINTS = 256
_PLAN_STEP = 0.05
_TRIES = 25
_SCENE_SEED_OF_SPLIT = {"train": 101, "val": 202}
# In training some objects have any colour, so that shapes are learnt too (domain randomisation).
_ODD_COLOURS = {"train": 0.05, "val": 0.0}


class Room(NamedTuple):
    """A furnished room."""

    model: Model
    path: NDArray[np.float64]
    """(points, 2): a closed path through the room, x and y in metres."""
    exposure: float
    """Factor on the light that gives a picture of medium brightness."""


class _Spot(NamedTuple):
    x: float
    y: float
    yaw: float


def furnish(split: str, index: int) -> Room:
    """Make room ``index`` of ``split``. The same arguments give the same room."""
    rng = np.random.default_rng((_SCENE_SEED_OF_SPLIT[split], index))
    bank = texture_bank(split)
    return _Builder(rng, Painter(rng, bank, _ODD_COLOURS[split])).build(bank.pyramids)


class _Builder:
    """Builds one room. ``taken`` is a map of the floor that is non-zero where nothing more can stand."""

    def __init__(self, rng: np.random.Generator, painter: Painter) -> None:
        self.rng = rng
        self.painter = painter
        self.geometry = Geometry()
        self.half_x, self.half_y = rng.uniform(2.5, 3.7), rng.uniform(2.4, 3.3)
        self.height = rng.uniform(2.4, 3.0)
        self.plan = FloorPlan(self.half_x, self.half_y, _PLAN_STEP)
        self.taken = self.plan.blank(np.uint8)
        self.footprints = self.plan.blank(np.float32)
        self.sunlit = self.plan.blank(np.float32)
        self.sources: list[Source] = []
        self.free_walls: list[tuple[int, float, float]] = []

    def build(self, textures: np.ndarray) -> Room:
        rng = self.rng
        self._add_shell()
        self._hang_lamps()
        path = self._draw_path()
        openings = [furniture.door] * int(rng.integers(1, 4)) + [furniture.window] * int(rng.integers(1, 4))
        for make in openings:
            self._add_to_wall(make(self.painter))
        for _ in range(int(rng.integers(2, 4))):
            self._add_table_with_chairs()
        for _ in range(int(rng.integers(2, 4))):
            self._add_along_wall(furniture.cabinet(self.painter))
        standing = [furniture.person] * int(rng.integers(2, 5)) + [furniture.plant] * int(rng.integers(2, 4))
        standing += [furniture.box] * int(rng.integers(2, 5)) + [furniture.chair] * int(rng.integers(2, 4))
        for choice in rng.permutation(len(standing)):
            self._add_anywhere(standing[choice](self.painter))
        lighting = Lighting(
            self.sources,
            rng.uniform(0.3, 0.6),
            rng.uniform(-0.2, 0.2, 3),
            self.plan,
            self.footprints,
            self.sunlit,
        )
        quads, solids = self.geometry.quads(rng), self.geometry.round_bodies()
        quad_light = lighting.on_quads(quads)
        ramps = self.painter.ramps
        warmth = rng.uniform(-0.2, 0.2)
        tint = np.array((1.0 + warmth, 1.0 + rng.uniform(-0.04, 0.04), 1.0 - warmth), np.float32)
        model = Model(quads, solids, quad_light, lighting.on_solids(solids), textures, ramps, tint)
        return Room(model, path, rng.uniform(0.24, 0.4) / _mean_brightness(model))

    def _add_shell(self) -> None:
        rng, painter = self.rng, self.painter
        wall = painter.any(tile=(0.8, 2.0), plain=0.5, usual_for=Label.WALL)
        walls = [wall] * 4
        if rng.random() < 0.4:
            walls[int(rng.integers(4))] = painter.any(tile=(0.8, 2.0), usual_for=Label.WALL)
        floor = painter.any(tile=(0.8, 2.2), plain=0.2, usual_for=Label.FLOOR)
        ceiling = painter.any(tile=(0.8, 2.4), plain=0.6, usual_for=Label.CEILING)
        labels = (Label.WALL,) * 4 + (Label.FLOOR, Label.CEILING)
        self.geometry.room(self.half_x, self.half_y, self.height, labels, (*walls, floor, ceiling))
        if rng.random() < 0.8:
            self._add_skirting(painter.darker(wall, rng.uniform(0.4, 0.7)) if rng.random() < 0.5 else painter.plain())
        if rng.random() < 0.4:
            size = (rng.uniform(1.2, 2.4), rng.uniform(1.2, 2.4), 0.012)
            self.geometry.part(Label.FLOOR, yaw=rng.uniform(0, math.pi)).box((0, 0, 0.0), size, painter.any())

    def _add_skirting(self, material: Material) -> None:
        tall = self.rng.uniform(0.07, 0.14)
        for side in (-1, 1):
            part = self.geometry.part(Label.WALL)
            part.box((side * self.half_x, 0, 0.5 * tall), (0.03, 2 * self.half_y, tall), material)
            part.box((0, side * self.half_y, 0.5 * tall), (2 * self.half_x, 0.03, tall), material)

    def _hang_lamps(self) -> None:
        rng = self.rng
        lamp, rim = self.painter.lamp(), self.painter.plain()
        columns, rows = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        is_round = rng.random() < 0.5
        size = (rng.uniform(0.5, 1.2), rng.uniform(0.3, 0.6))
        strength = rng.uniform(0.7, 1.5) / math.sqrt(columns * rows)
        part = self.geometry.part(Label.CEILING)
        for x in np.linspace(-1, 1, columns + 2)[1:-1] * self.half_x:
            for y in np.linspace(-1, 1, rows + 2)[1:-1] * self.half_y:
                if is_round:
                    part.frustum((x, y, self.height - 0.08), (x, y, self.height), 0.26, 0.28, lamp)
                else:
                    part.box((x, y, self.height - 0.02), (size[0] + 0.1, size[1] + 0.1, 0.04), rim)
                    part.box((x, y, self.height - 0.03), (*size, 0.04), lamp)
                self.sources.append(Source((x, y, self.height - 0.1), strength, rng.uniform(1.5, 3.0)))

    def _draw_path(self) -> np.ndarray:
        """Draw the path, a wavy closed loop; the floor within the robot's width becomes taken."""
        rng = self.rng
        angle = np.linspace(0.0, 2 * math.pi, _PATH_POINTS, endpoint=False) * rng.choice((-1.0, 1.0))
        waves = 1.0 + sum(
            rng.uniform(0.0, 0.1) * np.cos(order * angle + rng.uniform(0, 2 * math.pi)) for order in (2, 3)
        )
        west, east, south, north = rng.uniform(0.95, 1.75, 4)
        reach_x, reach_y = self.half_x - 0.5 * (west + east), self.half_y - 0.5 * (south + north)
        path = np.stack((reach_x * waves * np.cos(angle), reach_y * waves * np.sin(angle)), axis=1)
        path += 0.5 * np.array((west - east, south - north))
        line = np.rint(self.plan.cells(path)).astype(np.int32)
        cv2.polylines(self.taken, [line], True, 1, 2 * round(ROBOT_RADIUS / _PLAN_STEP))
        return path

    def _wall_spot(self, piece: Piece, off_wall: float) -> tuple[_Spot, int, tuple[float, float]]:
        """Choose a place at a random wall; return it, the wall's number, and the stretch of wall covered."""
        wall = int(self.rng.integers(4))
        along, across = (self.half_y, self.half_x) if wall < 2 else (self.half_x, self.half_y)
        room = along - 0.5 * piece.width - 0.08
        position = self.rng.uniform(-room, room)
        depth = across - off_wall
        stretch = (position - 0.5 * piece.width - 0.05, position + 0.5 * piece.width + 0.05)
        spots = (
            _Spot(-depth, position, -0.5 * math.pi),
            _Spot(depth, position, 0.5 * math.pi),
            _Spot(position, -depth, 0.0),
            _Spot(position, depth, math.pi),
        )
        return spots[wall], wall, stretch

    def _is_free_wall(self, wall: int, stretch: tuple[float, float]) -> bool:
        return all(wall != other or stretch[1] < begin or stretch[0] > end for other, begin, end in self.free_walls)

    def _add_to_wall(self, piece: Piece) -> None:
        """Put a door or a window into a wall, and keep the place in front of it free."""
        for _ in range(_TRIES):
            spot, wall, stretch = self._wall_spot(piece, 0.0)
            if not self._is_free_wall(wall, stretch):
                continue
            self.free_walls.append((wall, *stretch))
            self._place(piece, spot)
            into_x, into_y = -math.sin(spot.yaw), math.cos(spot.yaw)
            if piece.label == Label.DOOR:
                keep_clear = _Spot(spot.x + 0.35 * into_x, spot.y + 0.35 * into_y, spot.yaw)
                cv2.fillConvexPoly(self.taken, self._outline(keep_clear, piece.width, 0.7), 1)
            else:
                self.sources.append(
                    Source(
                        (spot.x + 0.3 * into_x, spot.y + 0.3 * into_y, piece.height - 0.5),
                        self.rng.uniform(0.2, 0.9),
                        self.rng.uniform(1.0, 2.5),
                    )
                )
                if self.rng.random() < 0.5:
                    self._let_sun_in(spot, piece)
            return

    def _let_sun_in(self, spot: _Spot, piece: Piece) -> None:
        """Draw the sunlight that falls through a window onto the floor, in two panes."""
        slope, drift = self.rng.uniform(0.5, 1.3), self.rng.uniform(-0.8, 0.8)
        patch = np.zeros_like(self.sunlit)
        for begin, end in ((-0.45, -0.03), (0.03, 0.45)):
            corners = []
            for x, z in ((begin, 0.8), (end, 0.8), (end, piece.height), (begin, piece.height)):
                forward = z * slope
                corners.append((x * piece.width + z * drift, forward))
            outline = self._to_cells(spot, np.array(corners))
            cv2.fillConvexPoly(patch, outline, 1.0)
        self.sunlit = np.maximum(self.sunlit, self.rng.uniform(0.4, 1.2) * cv2.GaussianBlur(patch, (0, 0), 1.2))

    def _add_along_wall(self, piece: Piece) -> None:
        for _ in range(_TRIES):
            spot, wall, stretch = self._wall_spot(piece, 0.5 * piece.depth + 0.03)
            if self._is_free_wall(wall, stretch) and self._is_free(spot, piece, self.taken):
                self.free_walls.append((wall, *stretch))
                self._place(piece, spot)
                return

    def _add_anywhere(self, piece: Piece) -> _Spot | None:
        """Put an object at a random free place; None if none is found."""
        rng = self.rng
        margin = 0.5 * min(piece.width, piece.depth) + 0.1
        for _ in range(_TRIES):
            x = rng.uniform(margin - self.half_x, self.half_x - margin)
            y = rng.uniform(margin - self.half_y, self.half_y - margin)
            spot = _Spot(x, y, rng.uniform(0, 2 * math.pi))
            if self._is_free(spot, piece, self.taken):
                self._place(piece, spot)
                return spot
        return None

    def _add_table_with_chairs(self) -> None:
        table = furniture.table(self.painter)
        taken_by_others = self.taken.copy()
        spot = self._add_anywhere(table)
        if spot is None:
            return
        cosine, sine = math.cos(spot.yaw), math.sin(spot.yaw)
        seats = (-0.26, 0.26) if table.width > 1.45 else (0.0,)
        for side in (-1, 1):
            for seat in seats:
                if self.rng.random() < 0.25:
                    continue
                chair = furniture.chair(self.painter)
                along = seat * table.width + self.rng.uniform(-0.05, 0.05)
                away = side * (0.5 * table.depth + self.rng.uniform(0.05, 0.3))
                facing = spot.yaw + (math.pi if side > 0 else 0.0) + self.rng.uniform(-0.3, 0.3)
                place = _Spot(spot.x + along * cosine - away * sine, spot.y + along * sine + away * cosine, facing)
                if self._is_free(place, chair, taken_by_others):
                    self._place(chair, place)

    def _outline(self, spot: _Spot, width: float, depth: float) -> NDArray[np.int32]:
        x, y = 0.5 * width, 0.5 * depth
        return self._to_cells(spot, np.array(((-x, -y), (x, -y), (x, y), (-x, y))))

    def _to_cells(self, spot: _Spot, corners: NDArray[np.float64]) -> NDArray[np.int32]:
        cosine, sine = math.cos(spot.yaw), math.sin(spot.yaw)
        points = corners @ np.array(((cosine, sine), (-sine, cosine))) + (spot.x, spot.y)
        return np.rint(self.plan.cells(points)).astype(np.int32)

    def _is_free(self, spot: _Spot, piece: Piece, taken: np.ndarray) -> bool:
        cells = self._outline(spot, piece.width, piece.depth)
        left, top, width, height = cv2.boundingRect(cells)
        if left < 0 or top < 0 or left + width > taken.shape[1] or top + height > taken.shape[0]:
            return False
        if taken[top + height // 2, left + width // 2]:
            return False
        own = cv2.fillConvexPoly(np.zeros_like(taken), cells, 1)
        return not (own & taken).any()

    def _place(self, piece: Piece, spot: _Spot) -> None:
        piece.build(self.geometry.part(piece.label, spot.x, spot.y, yaw=spot.yaw))
        if piece.label not in (Label.DOOR, Label.WINDOW):
            outline = self._outline(spot, piece.width, piece.depth)
            cv2.fillConvexPoly(self.taken, outline, 1)
            shadow = 0.6 if piece.label in (Label.TABLE, Label.CHAIR, Label.PLANT) else 1.0
            drawn = cv2.fillConvexPoly(np.zeros_like(self.footprints), outline, shadow)
            self.footprints = np.maximum(self.footprints, drawn)


def _mean_brightness(model: Model) -> float:
    """Mean light reflected by the six faces of the room."""
    total = 0.0
    for face in range(6):
        start, count = model.quad_light.start[face], model.quad_light.columns[face] * model.quad_light.rows[face]
        reflectance = float(model.ramps[model.quads.ramp[face], 128].mean())
        total += reflectance * float(model.quad_light.values[start : start + count].mean())
    return total / 6.0
