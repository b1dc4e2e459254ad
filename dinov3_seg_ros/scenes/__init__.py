"""Synthetic indoor scenes as the camera of a moving robot sees them, rendered on the fly with exact masks.

A scene is a furnished room and a path through it. Everything is a pure function of its arguments: the same split, index
and size give the same bytes in every run, process and thread on one machine. Colours hint at the class, as in real
rooms, but do not determine it: objects take colours that are usual for their kind, and kinds share most of them.

    scene = Scene("val", 3)
    rgb, mask = scene.render(scene.camera_at(2.5), size=(480, 640))
"""

from __future__ import annotations

from dinov3_seg_ros.scenes.camera import FIELD_OF_VIEW, CameraEffects, CameraPose
from dinov3_seg_ros.scenes.labels import CLASS_NAMES, PALETTE, Label
from dinov3_seg_ros.scenes.views import (
    RENDERER_VERSION,
    SECONDS_PER_SCENE,
    SPLITS,
    VIEWS_PER_SCENE,
    Scene,
    sample,
    walk,
)

__all__ = [
    "CLASS_NAMES",
    "FIELD_OF_VIEW",
    "PALETTE",
    "RENDERER_VERSION",
    "SECONDS_PER_SCENE",
    "SPLITS",
    "VIEWS_PER_SCENE",
    "CameraEffects",
    "CameraPose",
    "Label",
    "Scene",
    "sample",
    "walk",
]
