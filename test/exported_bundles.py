"""Small bundles in the form of an export, made without PyTorch: what a robot gets, for tests that a robot can run."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from graphs import write_graphs

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    BackboneSection,
    HeadSection,
    InputSection,
    Manifest,
)
from dinov3_seg_ros.frames.classes import ClassesSection, default_palette
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.files import sha256_of_file, write_json


def write_exported_bundle(
    path: Path,
    *,
    name: str = "tiny",
    num_classes: int = 5,
    class_names: Sequence[str] = (),
    network_size: tuple[int, int] = (64, 96),
    geometry: str = "letterbox",
    seed: int = 1,
    value_range: ValueRange = "auto",
) -> Bundle:
    """Write a bundle whose ONNX graphs have random weights; its labels vary over the picture.

    It holds no weights but those in the graphs. Bundles of any seed share one backbone.
    """
    names = list(class_names) or [f"class_{i}" for i in range(num_classes)]
    path.mkdir(parents=True)
    _write_empty_safetensors(path / HEAD_FILE, {"seed": str(seed)})
    manifest = Manifest(
        name=name,
        backbone=BackboneSection(
            storage="reference", source="random weights", identity="0" * 64, model_type="dinov3_convnext",
            layers=[1, 2, 3], feature_norm="none", channels=[16, 24, 32], strides=[8, 16, 32], multiple=32,
        ),
        input=InputSection(
            network_size=network_size, geometry=geometry, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
            value_range=value_range,
        ),
        classes=ClassesSection(names=names, palette=default_palette(len(names))),
        head=HeadSection(name="aspp"),
        files={HEAD_FILE: sha256_of_file(path / HEAD_FILE)},
    )  # fmt: skip
    write_json(path / MANIFEST_FILE, manifest.model_dump(mode="json"))
    bundle = load_bundle(path)
    write_graphs(bundle, size=network_size, head_seed=seed)
    return bundle


def _write_empty_safetensors(path: Path, metadata: dict[str, str]) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
