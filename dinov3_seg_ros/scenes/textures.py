"""Procedural surface patterns, one bank for each split.

A texture has one channel: a pattern, not a colour. Each surface of a scene maps the pattern to its own colours, so no
texture has a colour that gives a class away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pattern = NDArray[np.floating[Any]]
"""Values about 0..1, (SIZE, SIZE)."""

SIZE = 256
"""Width and height of a texture, texels; a power of two."""

LEVELS = 8
"""Number of mip levels; level ``i`` has ``SIZE >> i`` texels a side."""

LEVEL_OFFSETS = np.cumsum([0] + [(SIZE >> level) ** 2 for level in range(LEVELS)]).astype(np.int64)
"""Where each level starts in a flattened pyramid; the last entry is the pyramid's length."""

_VARIANTS_PER_KIND = 5
_SEED_OF_SPLIT = {"train": 11, "val": 12}


class TextureBank(NamedTuple):
    """The textures of one split."""

    pyramids: NDArray[np.uint8]
    """uint8 (textures, texels): each row a flattened mip pyramid, see ``LEVEL_OFFSETS``."""

    kinds: tuple[str, ...]
    """The kind of each row, a key of ``PATTERNS``."""


@functools.cache
def texture_bank(split: str) -> TextureBank:
    """Draw the textures of ``split`` ("train" or "val"), once per process; takes about a quarter of a second."""
    pyramids = []
    kinds = []
    for kind_number, (kind, draw) in enumerate(PATTERNS.items()):
        for variant in range(_VARIANTS_PER_KIND):
            rng = np.random.default_rng((_SEED_OF_SPLIT[split], kind_number, variant))
            pyramids.append(_pyramid(draw(rng)))
            kinds.append(kind)
    bank = np.stack(pyramids)
    bank.setflags(write=False)
    return TextureBank(bank, tuple(kinds))


def _pyramid(pattern: Pattern) -> NDArray[np.uint8]:
    """The mip levels of a pattern, flattened one after the other."""
    level: cv2.typing.MatLike = np.clip(pattern, 0.0, 1.0).astype(np.float32)
    flat = []
    for _ in range(LEVELS):
        flat.append(np.rint(level.ravel() * 255.0).astype(np.uint8))
        level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.concatenate(flat)


def _texel_grid() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each texel, (SIZE, SIZE) each."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return y, x


def _smooth_noise(rng: np.random.Generator, cells_y: int, cells_x: int) -> Pattern:
    """Tileable noise 0..1 with ``cells_y`` by ``cells_x`` bumps."""
    grid = rng.random((cells_y, cells_x), dtype=np.float32)
    border = 3
    padded = np.pad(grid, border, mode="wrap")
    step_y, step_x = SIZE // cells_y, SIZE // cells_x
    large = cv2.resize(padded, None, fx=step_x, fy=step_y, interpolation=cv2.INTER_CUBIC)
    return large[border * step_y : border * step_y + SIZE, border * step_x : border * step_x + SIZE].clip(0.0, 1.0)


def _fractal_noise(rng: np.random.Generator, coarsest: int, octaves: int) -> Pattern:
    total = np.zeros((SIZE, SIZE), np.float32)
    weight = 0.0
    for octave in range(octaves):
        cells = coarsest << octave
        total += _smooth_noise(rng, cells, cells) * 0.5**octave
        weight += 0.5**octave
    noise: Pattern = (total / weight - 0.5) * 1.6 + 0.5
    return noise.clip(0.0, 1.0)


def _power_of_two(rng: np.random.Generator, low: int, high: int) -> int:
    return 1 << int(rng.integers(low, high + 1))


def _bricks(rng: np.random.Generator, rows: int, columns: int, joint: int, shift: float) -> Pattern:
    """Rectangles of slightly different tones, with dark joints; ``shift`` moves every second row by a share of one."""
    y, x = _texel_grid()
    row = y * rows // SIZE
    moved = (x + (row % 2) * int(shift * SIZE / columns)) % SIZE
    column = moved * columns // SIZE
    tone = 0.75 + rng.uniform(0.02, 0.25) * (rng.random((rows, columns)) - 0.5)
    pattern: Pattern = tone[row, column]
    in_joint = (y % (SIZE // rows) < joint) | (moved % (SIZE // columns) < joint)
    pattern[in_joint] = rng.uniform(0.0, 0.4)
    return pattern + 0.08 * (_fractal_noise(rng, 16, 2) - 0.5)


def _brick_wall(rng: np.random.Generator) -> Pattern:
    rows = _power_of_two(rng, 3, 4)
    return _bricks(rng, rows, rows // 2, joint=int(rng.integers(2, 4)), shift=0.5)


def _tiles(rng: np.random.Generator) -> Pattern:
    count = _power_of_two(rng, 1, 3)
    return _bricks(rng, count, count, joint=int(rng.integers(2, 5)), shift=0.0)


def _planks(rng: np.random.Generator) -> Pattern:
    rows = _power_of_two(rng, 2, 3)
    grain = _smooth_noise(rng, _power_of_two(rng, 5, 6), 4)
    return _bricks(rng, rows, _power_of_two(rng, 0, 1), joint=2, shift=0.5) + 0.3 * (grain - 0.5)


def _wood_grain(rng: np.random.Generator) -> Pattern:
    y = _texel_grid()[0] / SIZE
    warp = _smooth_noise(rng, 4, 2) * rng.uniform(0.5, 1.5)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (y * rng.integers(4, 10) + warp))
    return 0.25 + 0.5 * rings + 0.25 * _smooth_noise(rng, 64, 4)


def _stripes(rng: np.random.Generator) -> Pattern:
    axis = int(rng.integers(2))
    position = _texel_grid()[axis] * _power_of_two(rng, 2, 4) / SIZE % 1.0
    width = rng.uniform(0.2, 0.7)
    return 0.15 + 0.7 * (position < width) + 0.05 * _fractal_noise(rng, 16, 2)


def _checks(rng: np.random.Generator) -> Pattern:
    count = _power_of_two(rng, 1, 3) * 2
    y, x = (axis * count // SIZE for axis in _texel_grid())
    return 0.15 + 0.65 * ((x + y) % 2) + 0.1 * _fractal_noise(rng, 8, 3)


def _plaid(rng: np.random.Generator) -> Pattern:
    bands = _power_of_two(rng, 3, 4)
    across, along = (np.repeat(rng.random(bands), SIZE // bands) for _ in range(2))
    return 0.5 * (across[:, None] + along[None, :])


def _dots(rng: np.random.Generator) -> Pattern:
    count = _power_of_two(rng, 2, 3)
    y, x = (axis * count / SIZE % 1.0 - 0.5 for axis in _texel_grid())
    distance = np.hypot(x, y)
    return 0.2 + 0.6 * np.clip((rng.uniform(0.2, 0.4) - distance) * 20.0, 0.0, 1.0)


def _cloudy(rng: np.random.Generator) -> Pattern:
    return _fractal_noise(rng, _power_of_two(rng, 1, 3), 4)


def _carpet(rng: np.random.Generator) -> Pattern:
    fine = _smooth_noise(rng, 128, 128)
    return 0.2 + 0.4 * fine + 0.4 * _fractal_noise(rng, 4, 3)


def _speckle(rng: np.random.Generator) -> Pattern:
    threshold = rng.uniform(0.55, 0.7)
    chips = np.clip((_smooth_noise(rng, 64, 64) - threshold) * 8.0, 0.0, 1.0)
    dark = np.clip((_smooth_noise(rng, 32, 32) - threshold - 0.1) * 8.0, 0.0, 1.0)
    pattern: Pattern = 0.5 + 0.4 * chips - 0.4 * dark
    return pattern


def _weave(rng: np.random.Generator) -> Pattern:
    count = _power_of_two(rng, 4, 5)
    y, x = (axis * count / SIZE for axis in _texel_grid())
    over = (np.floor(x) + np.floor(y)) % 2
    thread = np.where(over == 0, np.abs(x % 1.0 - 0.5), np.abs(y % 1.0 - 0.5))
    pattern: Pattern = 0.85 - 0.9 * thread * rng.uniform(0.5, 1.0) + 0.1 * _fractal_noise(rng, 8, 2)
    return pattern


def _plain(rng: np.random.Generator) -> Pattern:
    return 0.5 + rng.uniform(0.02, 0.1) * (_fractal_noise(rng, 4, 5) - 0.5)


def _outdoors(rng: np.random.Generator) -> Pattern:
    """A view from a window, upright with its first row at the bottom: sky, hills or houses, ground."""
    x = np.arange(SIZE)
    height = (np.arange(SIZE) / SIZE)[:, None]
    view: Pattern = np.broadcast_to(0.7 + 0.3 * height, (SIZE, SIZE)).copy()
    view -= 0.12 * np.clip(_fractal_noise(rng, 4, 4) - 0.5, 0.0, 1.0)
    for layer, tone in enumerate((0.55, 0.42)):
        if rng.random() < 0.5:
            columns = int(rng.integers(5, 11))
            skyline = rng.uniform(0.25, 0.75, columns)[x * columns // SIZE]
        else:
            skyline = 0.3 + 0.4 * _smooth_noise(rng, 2, int(rng.choice((4, 8))))[0]
        covered = height < skyline[None, :] * (1.0 - 0.35 * layer)
        view[covered] = tone
    ground = height[:, 0] < rng.uniform(0.1, 0.2)
    view[ground] = 0.2
    return view + 0.06 * (_fractal_noise(rng, 16, 3) - 0.5)


PATTERNS: dict[str, Callable[[np.random.Generator], Pattern]] = {
    "brick": _brick_wall,
    "tiles": _tiles,
    "planks": _planks,
    "wood": _wood_grain,
    "stripes": _stripes,
    "checks": _checks,
    "plaid": _plaid,
    "dots": _dots,
    "cloudy": _cloudy,
    "carpet": _carpet,
    "speckle": _speckle,
    "weave": _weave,
    "plain": _plain,
    "outdoors": _outdoors,
}
"""Each kind of pattern and the function that draws one: float (SIZE, SIZE), about 0..1."""
