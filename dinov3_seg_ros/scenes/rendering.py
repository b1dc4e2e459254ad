"""A small software renderer: first which surface each pixel shows, then one shading pass."""

from __future__ import annotations

import math

import numpy as np

from dinov3_seg_ros.scenes.camera import FIELD_OF_VIEW, CameraPose
from dinov3_seg_ros.scenes.shading import gains_for, shade, tone_curve
from dinov3_seg_ros.scenes.surfaces import Model
from dinov3_seg_ros.scenes.visibility import draw_quads, draw_solids


def render_view(
    model: Model, pose: CameraPose, size: tuple[int, int], exposure: float, vignetting: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render a sharp picture without noise.

    Args:
        model: the scene.
        pose: the camera's pose.
        size: (height, width), pixels.
        exposure: factor on the light.
        vignetting: share of the light lost in the corners, 0..1.

    Returns:
        RGB uint8 (H, W, 3); mask uint8 (H, W), class ids; and depth float32 (H, W), metres along the camera's forward
        axis.
    """
    position, axes, rays = np.array((pose.x, pose.y, pose.z)), pose.axes(), _ray_field(pose, size)
    focal = _focal_length(size[1])
    inverse_depth = np.zeros(size, np.float32)
    surface = np.zeros(size, np.int32)
    quad_count = len(model.quads.label)
    planes = np.zeros((quad_count, 9))
    draw_quads(model.quads, position, axes, focal, rays, planes, inverse_depth, surface)
    draw_solids(model.solids, position, axes, focal, rays, quad_count, inverse_depth, surface)
    rgb = np.empty((*size, 3), np.uint8)
    mask = np.empty(size, np.uint8)
    gains = gains_for(size, exposure, vignetting)
    shade(model, position, rays, focal, planes, inverse_depth, surface, tone_curve(), gains, rgb, mask)
    return rgb, mask, 1.0 / inverse_depth


def _focal_length(width: int) -> float:
    """Focal length of the camera, pixels."""
    return 0.5 * width / math.tan(0.5 * FIELD_OF_VIEW)


def _ray_field(pose: CameraPose, size: tuple[int, int]) -> np.ndarray:
    """float64 (3, 3): the ray of pixel (row y, column x) is ``[0] + x * [1] + y * [2]``, with a forward part of 1."""
    height, width = size
    right, down, forward = pose.axes()
    focal = _focal_length(width)
    first = forward + (0.5 - 0.5 * width) / focal * right + (0.5 - 0.5 * height) / focal * down
    return np.stack((first, right / focal, down / focal))
