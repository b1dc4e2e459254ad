"""The colour of every pixel: texture, light and tone of the surface that it shows."""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dinov3_seg_ros.scenes.surfaces import FRUSTUM, Model
from dinov3_seg_ros.scenes.textures import LEVEL_OFFSETS, LEVELS, SIZE

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_inlined = njit(cache=True, nogil=True, error_model="numpy", inline="always")

_TONE_STEPS = 4096
_BRIGHTEST = 4.0


@functools.lru_cache(maxsize=1)
def tone_curve() -> np.ndarray:
    """Grey levels uint8 (steps,) for linear light from 0 to ``_BRIGHTEST``, with a soft shoulder."""
    light = np.linspace(0.0, _BRIGHTEST, _TONE_STEPS)
    compressed = light * (1.0 + light / 9.0) / (1.0 + light)
    return np.rint(255.0 * np.clip(compressed * 1.35, 0.0, 1.0) ** (1.0 / 2.2)).astype(np.uint8)


def gains_for(size: tuple[int, int], exposure: float, vignetting: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain of each row and each column; the product of both is the steps of the tone curve per unit of light.

    The product of two parabolas is close to the radial fall-off of a lens, and costs one multiplication per pixel.
    """
    height, width = size
    y = (np.arange(height) + 0.5 - 0.5 * height) / math.hypot(height, width) * 2.0
    x = (np.arange(width) + 0.5 - 0.5 * width) / math.hypot(height, width) * 2.0
    steps_per_light = (_TONE_STEPS - 1) / _BRIGHTEST
    rows = exposure * steps_per_light * (1.0 - vignetting * y * y)
    return rows.astype(np.float32), (1.0 - vignetting * x * x).astype(np.float32)


@_compiled
def shade(
    model: Model,
    position: np.ndarray,
    rays: np.ndarray,
    focal: float,
    planes: np.ndarray,
    inverse_depth: np.ndarray,
    surface: np.ndarray,
    curve: np.ndarray,
    gains: tuple[np.ndarray, np.ndarray],
    rgb: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Colour every pixel by the surface that it shows. Pixels of one surface in a row are coloured together."""
    height, width = surface.shape
    quad_count = model.quads.label.shape[0]
    for y in range(height):
        first = 0
        while first < width:
            index = surface[y, first]
            last = first + 1
            while last < width and surface[y, last] == index:
                last += 1
            if index < quad_count:
                mask[y, first:last] = model.quads.label[index]
                _shade_quad_run(model, planes[index], index, y, first, last, curve, gains, rgb)
            else:
                solid = index - quad_count
                mask[y, first:last] = model.solids.label[solid]
                _shade_solid_run(model, position, rays, focal, solid, y, first, last, inverse_depth, curve, gains, rgb)
            first = last


@_inlined
def _shade_quad_run(
    model: Model,
    plane: np.ndarray,
    index: int,
    y: int,
    first: int,
    last: int,
    curve: np.ndarray,
    gains: tuple[np.ndarray, np.ndarray],
    rgb: np.ndarray,
) -> None:
    quads, grid = model.quads, model.quad_light
    texels_u, texels_v, shift_u, shift_v = quads.texels[index]
    pyramid = model.textures[quads.texture[index]]
    ramp = model.ramps[quads.ramp[index]]
    w0, wx = plane[0] + plane[2] * y, plane[1]
    u0, ux = plane[3] + plane[5] * y, plane[4]
    v0, vx = plane[6] + plane[8] * y, plane[7]
    determinant = (
        plane[0] * (plane[4] * plane[8] - plane[5] * plane[7])
        - plane[3] * (plane[1] * plane[8] - plane[2] * plane[7])
        + plane[6] * (plane[1] * plane[5] - plane[2] * plane[4])
    )
    area = abs(determinant) * texels_u * texels_v
    columns, rows, start = grid.columns[index], grid.rows[index], grid.start[index]
    red, green, blue = model.tint
    for x in range(first, last):
        depth = 1.0 / (w0 + wx * x)
        u = min(max((u0 + ux * x) * depth, 0.0), 1.0)
        v = min(max((v0 + vx * x) * depth, 0.0), 1.0)
        value = _texture_value(pyramid, u * texels_u + shift_u, v * texels_v + shift_v, area * depth * depth * depth)
        grid_u, grid_v = np.float32(u * (columns - 1)), np.float32(v * (rows - 1))
        column, row = min(int(grid_u), columns - 2), min(int(grid_v), rows - 2)
        part_u, part_v = grid_u - np.float32(column), grid_v - np.float32(row)
        corner = start + row * columns + column
        near = grid.values[corner] + (grid.values[corner + 1] - grid.values[corner]) * part_u
        corner += columns
        far = grid.values[corner] + (grid.values[corner + 1] - grid.values[corner]) * part_u
        brightness = near + (far - near) * part_v
        colour = ramp[int(value)]
        gain = brightness * gains[0][y] * gains[1][x]
        rgb[y, x, 0] = curve[min(int(colour[0] * gain * red), _TONE_STEPS - 1)]
        rgb[y, x, 1] = curve[min(int(colour[1] * gain * green), _TONE_STEPS - 1)]
        rgb[y, x, 2] = curve[min(int(colour[2] * gain * blue), _TONE_STEPS - 1)]


@_inlined
def _shade_solid_run(
    model: Model,
    position: np.ndarray,
    rays: np.ndarray,
    focal: float,
    index: int,
    y: int,
    first: int,
    last: int,
    inverse_depth: np.ndarray,
    curve: np.ndarray,
    gains: tuple[np.ndarray, np.ndarray],
    rgb: np.ndarray,
) -> None:
    solids = model.solids
    to_unit, taper = solids.to_unit[index], solids.taper[index]
    is_frustum = solids.kind[index] == FRUSTUM
    pyramid = model.textures[solids.texture[index]]
    ramp = model.ramps[solids.ramp[index]]
    texels = solids.texels[index]
    from_unit = solids.from_unit[index]
    girth = math.sqrt(from_unit[0, 0] ** 2 + from_unit[1, 0] ** 2 + from_unit[2, 0] ** 2)
    length = math.sqrt(from_unit[0, 2] ** 2 + from_unit[1, 2] ** 2 + from_unit[2, 2] ** 2)
    around, along = girth * texels, length * texels
    faces = model.solid_light[index]
    red, green, blue = model.tint
    offset = position - solids.centre[index]
    point = np.empty(3)
    for x in range(first, last):
        depth = 1.0 / inverse_depth[y, x]
        for axis in range(3):
            world = offset[0] + depth * (rays[0, 0] + rays[1, 0] * x + rays[2, 0] * y)
            point[axis] = to_unit[axis, 0] * world
            world = offset[1] + depth * (rays[0, 1] + rays[1, 1] * x + rays[2, 1] * y)
            point[axis] += to_unit[axis, 1] * world
            world = offset[2] + depth * (rays[0, 2] + rays[1, 2] * x + rays[2, 2] * y)
            point[axis] += to_unit[axis, 2] * world
        slope_x, slope_y, slope_z = point[0], point[1], point[2]
        if is_frustum:
            if abs(point[2]) > 0.9999:
                slope_x, slope_y = 0.0, 0.0
            else:
                slope_z = -taper * (1.0 + taper * point[2])
        normal_x = to_unit[0, 0] * slope_x + to_unit[1, 0] * slope_y + to_unit[2, 0] * slope_z
        normal_y = to_unit[0, 1] * slope_x + to_unit[1, 1] * slope_y + to_unit[2, 1] * slope_z
        normal_z = to_unit[0, 2] * slope_x + to_unit[1, 2] * slope_y + to_unit[2, 2] * slope_z
        square_x, square_y, square_z = normal_x * normal_x, normal_y * normal_y, normal_z * normal_z
        brightness = (
            square_x * faces[1 if normal_x > 0.0 else 0]
            + square_y * faces[3 if normal_y > 0.0 else 2]
            + square_z * faces[5 if normal_z > 0.0 else 4]
        ) / (square_x + square_y + square_z)
        texels_per_pixel = texels * depth / focal
        value = _texture_value(
            pyramid,
            math.atan2(point[1], point[0]) * around,
            point[2] * along,
            texels_per_pixel * texels_per_pixel * 1.5,
        )
        colour = ramp[int(value)]
        gain = brightness * gains[0][y] * gains[1][x]
        rgb[y, x, 0] = curve[min(int(colour[0] * gain * red), _TONE_STEPS - 1)]
        rgb[y, x, 1] = curve[min(int(colour[1] * gain * green), _TONE_STEPS - 1)]
        rgb[y, x, 2] = curve[min(int(colour[2] * gain * blue), _TONE_STEPS - 1)]


@_inlined
def _texture_value(pyramid: NDArray[np.uint8], s: float, t: float, texels_per_pixel: float) -> float:
    """Interpolate a texture at texel (s, t) of its finest level: 0..255, from the level that suits a pixel's area."""
    level, scale = 0, 1.0
    while texels_per_pixel > 2.0 and level < LEVELS - 1:
        texels_per_pixel *= 0.25
        scale *= 0.5
        level += 1
    side = SIZE >> level
    start = LEVEL_OFFSETS[level]
    s, t = s * scale - 0.5, t * scale - 0.5
    floor_s, floor_t = math.floor(s), math.floor(t)
    part_s, part_t = np.float32(s - floor_s), np.float32(t - floor_t)
    left, row = floor_s & (side - 1), floor_t & (side - 1)
    right, next_row = (left + 1) & (side - 1), (row + 1) & (side - 1)
    row, next_row = start + row * side, start + next_row * side
    upper = pyramid[row + left] + (np.float32(pyramid[row + right]) - np.float32(pyramid[row + left])) * part_s
    lower = (
        pyramid[next_row + left]
        + (np.float32(pyramid[next_row + right]) - np.float32(pyramid[next_row + left])) * part_s
    )
    value: float = upper + (lower - upper) * part_t
    return value
