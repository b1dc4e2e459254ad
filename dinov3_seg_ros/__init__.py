"""Semantic segmentation for ROS 2 from one frozen DINOv3 backbone.

The public names are loaded on first use: importing the package alone imports none of torch, onnxruntime, rclpy and cv2.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov3_seg_ros.bundle.loading import load_bundle
    from dinov3_seg_ros.decode import upsample_argmax
    from dinov3_seg_ros.model.heads import build_head
    from dinov3_seg_ros.model.weights import load_backbone
    from dinov3_seg_ros.segmenter import Segmenter

# ONNX Runtime, from 1.29 on, reports its use to its makers unless this is set when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
__all__ = ["Segmenter", "build_head", "load_backbone", "load_bundle", "upsample_argmax"]
if importlib.util.find_spec("torch") is None:  # else `import *` and `help` would fail
    __all__.remove("build_head")
    __all__.remove("load_backbone")

_HOMES = {
    "Segmenter": "dinov3_seg_ros.segmenter",
    "build_head": "dinov3_seg_ros.model.heads",
    "load_backbone": "dinov3_seg_ros.model.weights",
    "load_bundle": "dinov3_seg_ros.bundle.loading",
    "upsample_argmax": "dinov3_seg_ros.decode",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from dinov3_seg_ros.support.installation import how_to_install

        extra = "cv-headless" if error.name == "cv2" else "torch"
        raise ImportError(f"{name} needs {error.name}: {how_to_install(extra)}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
