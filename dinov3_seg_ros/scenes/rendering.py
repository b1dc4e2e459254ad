"""A small software renderer: inverse-depth buffer, one surface id per pixel, then one shading pass.

The inverse depth of a plane is affine in the image, and so are its texture coordinates divided by the depth. A pixel
belongs to the surface with the largest inverse depth, and picture and mask are both read from that one decision.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from numba import njit

from dinov3_seg_ros.scenes.camera import FIELD_OF_VIEW, CameraEffects, CameraPose
from dinov3_seg_ros.scenes.geometry import FRUSTUM, Quads, Solids
from dinov3_seg_ros.scenes.textures import LEVEL_OFFSETS, LEVELS, SIZE

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_inlined = njit(cache=True, nogil=True, error_model="numpy", inline="always")

_TONE_STEPS = 4096
_BRIGHTEST = 4.0
_NOISE_TILE = 1024
# Adjacent faces meet in one edge, of which each rounds its own; this much overlap leaves no pixel between them.
_EDGE_OVERLAP = 1e-7


class QuadLight(NamedTuple):
    """Light on each quad, on a grid of its own spread over the whole face."""

    start: np.ndarray
    """int64 (Q,): where the grid begins in ``values``."""
    columns: np.ndarray
    """int64 (Q,): grid points along u, at least 2."""
    rows: np.ndarray
    """int64 (Q,): grid points along v, at least 2."""
    values: np.ndarray
    """float32 (points,): row by row, one grid after the other."""


class Model(NamedTuple):
    """A scene as the renderer needs it."""

    quads: Quads
    solids: Solids
    quad_light: QuadLight
    solid_light: np.ndarray
    """float32 (S, 6): light that falls on each solid from -x, +x, -y, +y, -z and +z."""
    textures: np.ndarray
    """uint8 (textures, texels): mip pyramids."""
    ramps: np.ndarray
    """float32 (ramps, 256, 3): linear-light RGB for each texture value."""
    tint: np.ndarray
    """float32 (3,): colour of the light."""


def render_view(
    model: Model, pose: CameraPose, size: tuple[int, int], exposure: float, vignetting: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a sharp picture without noise.

    Returns RGB uint8 (H, W, 3); mask uint8 (H, W), class ids; and depth float32 (H, W), metres along the camera's
    forward axis.
    """
    position, axes, rays = np.array((pose.x, pose.y, pose.z)), pose.axes(), _ray_field(pose, size)
    focal = _focal_length(size[1])
    inverse_depth = np.zeros(size, np.float32)
    surface = np.zeros(size, np.int32)
    quad_count = len(model.quads.label)
    planes = np.zeros((quad_count, 9))
    _draw_quads(model.quads, position, axes, focal, rays, planes, inverse_depth, surface)
    _draw_solids(model.solids, position, axes, focal, rays, quad_count, inverse_depth, surface)
    rgb = np.empty((*size, 3), np.uint8)
    mask = np.empty(size, np.uint8)
    gains = _gains(size, exposure, vignetting)
    _shade(model, position, rays, focal, planes, inverse_depth, surface, _tone_curve(), gains, rgb, mask)
    return rgb, mask, 1.0 / inverse_depth


def add_camera_flaws(rgb: np.ndarray, effects: CameraEffects, seed: int) -> np.ndarray:
    """Blur a sharp picture uint8 (H, W, 3) and add noise, chosen by ``seed``; may change ``rgb``."""
    scale = rgb.shape[1] / 640.0
    kernel = _motion_kernel(effects.motion[0] * scale, effects.motion[1] * scale)
    if kernel is not None:
        rgb = cv2.filter2D(rgb, -1, kernel, borderType=cv2.BORDER_REFLECT)
    if effects.blur > 0.0:
        rgb = cv2.GaussianBlur(rgb, (3, 3) if effects.blur * scale < 0.8 else (7, 7), max(0.3, effects.blur * scale))
    if effects.noise > 0.0:
        _add_noise(rgb, _noise_tile(), effects.noise, seed)
    return rgb


def _focal_length(width: int) -> float:
    return 0.5 * width / math.tan(0.5 * FIELD_OF_VIEW)


def _ray_field(pose: CameraPose, size: tuple[int, int]) -> np.ndarray:
    """float64 (3, 3): the ray of pixel (row y, column x) is ``[0] + x * [1] + y * [2]``, with a forward part of 1."""
    height, width = size
    right, down, forward = pose.axes()
    focal = _focal_length(width)
    first = forward + (0.5 - 0.5 * width) / focal * right + (0.5 - 0.5 * height) / focal * down
    return np.stack((first, right / focal, down / focal))


@functools.lru_cache(maxsize=1)
def _tone_curve() -> np.ndarray:
    """uint8 (steps,): grey level for linear light from 0 to ``_BRIGHTEST``, with a soft shoulder."""
    light = np.linspace(0.0, _BRIGHTEST, _TONE_STEPS)
    compressed = light * (1.0 + light / 9.0) / (1.0 + light)
    return np.rint(255.0 * np.clip(compressed * 1.35, 0.0, 1.0) ** (1.0 / 2.2)).astype(np.uint8)


def _gains(size: tuple[int, int], exposure: float, vignetting: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the tone curve for a unit of light at (y, x): the product of the first at y and the second at x.

    The product of two parabolas is close to the radial fall-off of a lens, and costs one multiplication a pixel.
    """
    height, width = size
    y = (np.arange(height) + 0.5 - 0.5 * height) / math.hypot(height, width) * 2.0
    x = (np.arange(width) + 0.5 - 0.5 * width) / math.hypot(height, width) * 2.0
    steps_per_light = (_TONE_STEPS - 1) / _BRIGHTEST
    rows = exposure * steps_per_light * (1.0 - vignetting * y * y)
    return rows.astype(np.float32), (1.0 - vignetting * x * x).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    return np.random.default_rng(5).standard_normal(_NOISE_TILE * _NOISE_TILE).astype(np.float32)


def _motion_kernel(right: float, down: float) -> np.ndarray | None:
    """Weights of a straight smear, or None where it is shorter than a pixel."""
    length = math.hypot(right, down)
    if length < 1.0:
        return None
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    start = (round(16 * (reach - right / 2)), round(16 * (reach - down / 2)))
    end = (round(16 * (reach + right / 2)), round(16 * (reach + down / 2)))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, 4)
    return kernel / kernel.sum()


@_compiled
def _affine(vector: np.ndarray, rays: np.ndarray) -> tuple[float, float, float]:
    """Value of ``vector . ray`` at the first pixel, and its steps in x and y."""
    return (
        vector[0] * rays[0, 0] + vector[1] * rays[0, 1] + vector[2] * rays[0, 2],
        vector[0] * rays[1, 0] + vector[1] * rays[1, 1] + vector[2] * rays[1, 2],
        vector[0] * rays[2, 0] + vector[1] * rays[2, 1] + vector[2] * rays[2, 2],
    )


@_compiled
def _bounds(
    corners: np.ndarray, position: np.ndarray, axes: np.ndarray, focal: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """Rows and columns that the corners (N, 3) span: top, bottom, left, right, the ends exclusive."""
    left, right, top, bottom = 1e9, -1e9, 1e9, -1e9
    slope_x, slope_y = 0.5 * width / focal, 0.5 * height / focal
    behind, past_left, past_right, above, below = 0, 0, 0, 0, 0
    for corner in corners:
        offset = corner - position
        x = offset[0] * axes[0, 0] + offset[1] * axes[0, 1] + offset[2] * axes[0, 2]
        y = offset[0] * axes[1, 0] + offset[1] * axes[1, 1] + offset[2] * axes[1, 2]
        depth = offset[0] * axes[2, 0] + offset[1] * axes[2, 1] + offset[2] * axes[2, 2]
        past_left += x < -slope_x * depth
        past_right += x > slope_x * depth
        above += y < -slope_y * depth
        below += y > slope_y * depth
        if depth < 0.02:
            behind += 1
        else:
            left, right = min(left, x / depth * focal), max(right, x / depth * focal)
            top, bottom = min(top, y / depth * focal), max(bottom, y / depth * focal)
    if max(behind, past_left, past_right, above, below) == len(corners):
        return 0, 0, 0, 0
    if behind > 0:
        return 0, height, 0, width
    middle_x, middle_y = 0.5 * width - 0.5, 0.5 * height - 0.5
    return (
        int(min(max(math.floor(top + middle_y), 0), height)),
        int(min(max(math.floor(bottom + middle_y) + 2, 0), height)),
        int(min(max(math.floor(left + middle_x), 0), width)),
        int(min(max(math.floor(right + middle_x) + 2, 0), width)),
    )


@_compiled
def _narrow(value: float, step: float, first: int, last: int) -> tuple[int, int]:
    """The part of the columns ``first <= x < last`` where ``value + step * x >= 0``."""
    if abs(step) < 1e-14:
        if value < 0.0:
            return 0, 0
        return first, last
    root = -value / step
    if step > 0.0:
        if root > first:
            first = last if root > last else math.ceil(root)
    elif root < last:
        last = first if root < first else min(last, math.floor(root) + 1)
    return first, last


@_compiled
def _draw_quads(
    quads: Quads,
    position: np.ndarray,
    axes: np.ndarray,
    focal: float,
    rays: np.ndarray,
    planes: np.ndarray,
    inverse_depth: np.ndarray,
    surface: np.ndarray,
) -> None:
    """Draw every quad that faces the camera.

    Fills ``planes`` (Q, 9) with the affine forms (first, step in x, step in y) of 1/z, u/z and v/z.
    """
    height, width = surface.shape
    corners = np.empty((4, 3))
    for index in range(quads.label.shape[0]):
        origin, edge_u, edge_v = quads.origin[index], quads.edge_u[index], quads.edge_v[index]
        normal = quads.normal[index]
        offset = position - origin
        distance = offset[0] * normal[0] + offset[1] * normal[1] + offset[2] * normal[2]
        if distance <= 1e-6:
            continue
        corners[0] = origin
        corners[1] = origin + edge_u
        corners[2] = origin + edge_v
        corners[3] = corners[1] + edge_v
        top, bottom, left, right = _bounds(corners, position, axes, focal, height, width)
        if top >= bottom or left >= right:
            continue
        uu, uv, vv = 0.0, 0.0, 0.0
        for axis in range(3):
            uu += edge_u[axis] * edge_u[axis]
            uv += edge_u[axis] * edge_v[axis]
            vv += edge_v[axis] * edge_v[axis]
        scale = 1.0 / (uu * vv - uv * uv)
        dual_u = (edge_u * vv - edge_v * uv) * scale
        dual_v = (edge_v * uu - edge_u * uv) * scale
        offset_u = offset[0] * dual_u[0] + offset[1] * dual_u[1] + offset[2] * dual_u[2]
        offset_v = offset[0] * dual_v[0] + offset[1] * dual_v[1] + offset[2] * dual_v[2]
        w0, wx, wy = _affine(normal * (-1.0 / distance), rays)
        u0, ux, uy = _affine(dual_u, rays)
        v0, vx, vy = _affine(dual_v, rays)
        u0, ux, uy = u0 + offset_u * w0, ux + offset_u * wx, uy + offset_u * wy
        v0, vx, vy = v0 + offset_v * w0, vx + offset_v * wx, vy + offset_v * wy
        planes[index, 0], planes[index, 1], planes[index, 2] = w0, wx, wy
        planes[index, 3], planes[index, 4], planes[index, 5] = u0, ux, uy
        planes[index, 6], planes[index, 7], planes[index, 8] = v0, vx, vy
        for y in range(top, bottom):
            w, u, v = w0 + wy * y, u0 + uy * y, v0 + vy * y
            margin, margin_x = _EDGE_OVERLAP * w, _EDGE_OVERLAP * wx
            first, last = _narrow(w - 1e-4, wx, left, right)
            first, last = _narrow(u + margin, ux + margin_x, first, last)
            first, last = _narrow(w - u + margin, wx - ux + margin_x, first, last)
            first, last = _narrow(v + margin, vx + margin_x, first, last)
            first, last = _narrow(w - v + margin, wx - vx + margin_x, first, last)
            for x in range(first, last):
                candidate = np.float32(w + wx * x)
                nearer = candidate > inverse_depth[y, x]
                inverse_depth[y, x] = candidate if nearer else inverse_depth[y, x]
                surface[y, x] = index if nearer else surface[y, x]


@_compiled
def _draw_solids(
    solids: Solids,
    position: np.ndarray,
    axes: np.ndarray,
    focal: float,
    rays: np.ndarray,
    first_id: int,
    inverse_depth: np.ndarray,
    surface: np.ndarray,
) -> None:
    """Draw every ellipsoid and frustum by intersecting the ray of each pixel in its bounding box."""
    height, width = surface.shape
    corners = np.empty((8, 3))
    for index in range(solids.label.shape[0]):
        to_unit, from_unit = solids.to_unit[index], solids.from_unit[index]
        is_frustum = solids.kind[index] == FRUSTUM
        taper = solids.taper[index]
        reach = 1.0 + abs(taper)
        for corner in range(8):
            x = reach if corner & 1 else -reach
            y = reach if corner & 2 else -reach
            z = 1.0 if corner & 4 else -1.0
            for axis in range(3):
                corners[corner, axis] = (
                    solids.centre[index, axis]
                    + from_unit[axis, 0] * x
                    + from_unit[axis, 1] * y
                    + from_unit[axis, 2] * z
                )
        top, bottom, left, right = _bounds(corners, position, axes, focal, height, width)
        if top >= bottom or left >= right:
            continue
        offset = position - solids.centre[index]
        start_x = to_unit[0, 0] * offset[0] + to_unit[0, 1] * offset[1] + to_unit[0, 2] * offset[2]
        start_y = to_unit[1, 0] * offset[0] + to_unit[1, 1] * offset[1] + to_unit[1, 2] * offset[2]
        start_z = to_unit[2, 0] * offset[0] + to_unit[2, 1] * offset[1] + to_unit[2, 2] * offset[2]
        x0, xx, xy = _affine(to_unit[0], rays)
        y0, yx, yy = _affine(to_unit[1], rays)
        z0, zx, zy = _affine(to_unit[2], rays)
        for y in range(top, bottom):
            for x in range(left, right):
                ray_x = x0 + xx * x + xy * y
                ray_y = y0 + yx * x + yy * y
                ray_z = z0 + zx * x + zy * y
                if is_frustum:
                    depth = _hit_frustum(start_x, start_y, start_z, ray_x, ray_y, ray_z, taper)
                else:
                    depth = _hit_ball(start_x, start_y, start_z, ray_x, ray_y, ray_z)
                if depth > 0.0:
                    candidate = np.float32(1.0 / depth)
                    if candidate > inverse_depth[y, x]:
                        inverse_depth[y, x] = candidate
                        surface[y, x] = first_id + index


@_compiled
def _hit_ball(sx: float, sy: float, sz: float, rx: float, ry: float, rz: float) -> float:
    """Depth where the ray s + depth * r enters the unit ball; negative where it does not."""
    a = rx * rx + ry * ry + rz * rz
    b = sx * rx + sy * ry + sz * rz
    c = sx * sx + sy * sy + sz * sz - 1.0
    root = b * b - a * c
    if root < 0.0:
        return -1.0
    return (-b - math.sqrt(root)) / a


@_compiled
def _hit_frustum(sx: float, sy: float, sz: float, rx: float, ry: float, rz: float, taper: float) -> float:
    """Depth where the ray s + depth * r enters the frustum; negative where it does not."""
    start_radius, ray_radius = 1.0 + taper * sz, taper * rz
    a = rx * rx + ry * ry - ray_radius * ray_radius
    b = sx * rx + sy * ry - start_radius * ray_radius
    c = sx * sx + sy * sy - start_radius * start_radius
    root = b * b - a * c
    if root < 0.0:
        return -1.0
    side = (-b - math.sqrt(root)) / a
    if side > 0.0 and abs(sz + side * rz) <= 1.0:
        return side
    end = -1.0 if rz > 0.0 else 1.0
    depth = (end - sz) / rz
    x, y, radius = sx + depth * rx, sy + depth * ry, 1.0 + taper * end
    return depth if x * x + y * y <= radius * radius else -1.0


@_inlined
def _texture_value(pyramid: np.ndarray, s: float, t: float, texels_per_pixel: float) -> float:
    """Value 0..255 of a texture at texel (s, t) of its finest level, at the level that suits the area of a pixel."""
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
    return upper + (lower - upper) * part_t


@_compiled
def _shade(
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
    """Colour every pixel by the surface it shows, run by run of one surface in a row."""
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


@_compiled
def _add_noise(rgb: np.ndarray, tile: np.ndarray, deviation: float, seed: int) -> None:
    """Add noise from ``tile`` in place; each row starts somewhere else in it, by ``seed``."""
    flat = rgb.reshape(rgb.shape[0], -1)
    strength = np.float32(deviation)
    state = np.uint64(seed)
    for y in range(flat.shape[0]):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        start = np.int64(state >> np.uint64(33)) % (tile.size - flat.shape[1])
        for x in range(flat.shape[1]):
            value = np.float32(flat[y, x]) + strength * tile[start + x] + np.float32(0.5)
            flat[y, x] = np.uint8(min(max(value, np.float32(0.0)), np.float32(255.0)))
