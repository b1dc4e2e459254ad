"""Which surface each pixel shows: an inverse-depth buffer, and one surface id per pixel.

The inverse depth of a plane is affine in the image, and so are its texture coordinates divided by the depth. A pixel
belongs to the surface with the largest inverse depth, and picture and mask are both read from that one decision.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dinov3_seg_ros.scenes.surfaces import FRUSTUM, Quads, Solids

_compiled = njit(cache=True, nogil=True, error_model="numpy")

# Adjacent faces share an edge, but each rounds its own copy. This overlap leaves no pixel between them open.
_EDGE_OVERLAP = 1e-7


@_compiled
def draw_quads(
    quads: Quads,
    position: np.ndarray,
    axes: np.ndarray,
    focal: float,
    rays: np.ndarray,
    planes: np.ndarray,
    inverse_depth: np.ndarray,
    surface: np.ndarray,
) -> None:
    """Draw every quad that faces the camera into ``inverse_depth`` and ``surface`` (H, W).

    ``planes`` (Q, 9) is filled with the affine forms (first, step in x, step in y) of 1/z, u/z and v/z.
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
def draw_solids(
    solids: Solids,
    position: np.ndarray,
    axes: np.ndarray,
    focal: float,
    rays: np.ndarray,
    first_id: int,
    inverse_depth: np.ndarray,
    surface: np.ndarray,
) -> None:
    """Draw every ellipsoid and frustum: intersect it with the ray of each pixel in its bounding box."""
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
def _affine(vector: np.ndarray, rays: np.ndarray) -> tuple[float, float, float]:
    """Return ``vector . ray`` at the first pixel, and its steps in x and y."""
    return (
        vector[0] * rays[0, 0] + vector[1] * rays[0, 1] + vector[2] * rays[0, 2],
        vector[0] * rays[1, 0] + vector[1] * rays[1, 1] + vector[2] * rays[1, 2],
        vector[0] * rays[2, 0] + vector[1] * rays[2, 1] + vector[2] * rays[2, 2],
    )


@_compiled
def _bounds(
    corners: np.ndarray, position: np.ndarray, axes: np.ndarray, focal: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """Return the rows and columns that the corners (N, 3) span: top, bottom, left, right; ends exclusive."""
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
    """Narrow the columns ``first <= x < last`` to those where ``value + step * x >= 0``."""
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
def _hit_ball(sx: float, sy: float, sz: float, rx: float, ry: float, rz: float) -> float:
    """Return the depth at which the ray s + depth * r enters the unit ball; negative if it misses."""
    a = rx * rx + ry * ry + rz * rz
    b = sx * rx + sy * ry + sz * rz
    c = sx * sx + sy * sy + sz * sz - 1.0
    root = b * b - a * c
    if root < 0.0:
        return -1.0
    return (-b - math.sqrt(root)) / a


@_compiled
def _hit_frustum(sx: float, sy: float, sz: float, rx: float, ry: float, rz: float, taper: float) -> float:
    """Return the depth at which the ray s + depth * r enters the frustum; negative if it misses."""
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
