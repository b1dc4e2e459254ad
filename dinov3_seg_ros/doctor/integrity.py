"""Checks of bundles, their exports, their backbones, and what would compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_seg_ros.doctor.findings import FAULT, OK, WARNING, Finding, demo_bundle, import_error
from dinov3_seg_ros.support.errors import SegmentationError

if TYPE_CHECKING:
    from dinov3_seg_ros.bundle.loading import Bundle


def bundles_and_exports(paths: Sequence[Path]) -> Iterator[Finding]:
    """Check bundles, by default the demo, their exports, their backbones, and what the node would take for each."""
    from dinov3_seg_ros.bundle.loading import load_bundle

    for path in paths or [demo_bundle()]:
        try:
            bundle = load_bundle(path)
        except SegmentationError as error:
            yield Finding(FAULT, "bundle", str(error), "see weights/README.md")
            continue
        manifest = bundle.manifest
        yield Finding(
            OK,
            f"bundle {manifest.name}",
            f"{manifest.head.name} head, {len(manifest.classes.names)} classes, on {manifest.backbone.model_type} "
            f"({manifest.backbone.storage}); files are whole",
        )
        if manifest.backbone.storage != "embedded":
            yield _external_backbone(bundle)
        yield from _exports(bundle)
        yield _choice(bundle)


def _exports(bundle: Bundle) -> Iterator[Finding]:
    from dinov3_seg_ros.bundle.onnx_folder import find_exports

    subject = f"graphs of {bundle.manifest.name}"
    usable, refused = find_exports(bundle)
    for export in usable:
        size = "x".join(map(str, export.manifest.network_size))
        reservation = export.reservation
        verified = f"used only when asked for: {reservation}" if reservation else "compared with the model"
        try:
            for graph in export.manifest.files:
                export.graph(graph)
        except SegmentationError as error:
            refused.append(str(error))
            continue
        yield Finding(OK, subject, f"ONNX, {size}, {export.manifest.precision}, {verified}")
    for reason in refused:
        yield Finding(WARNING, subject, reason, f"python -m dinov3_seg_ros.export {bundle.path}")
    if not usable and not refused:
        yield Finding(OK, subject, "none", f"python -m dinov3_seg_ros.export {bundle.path}")


def _external_backbone(bundle: Bundle) -> Finding:
    subject = f"backbone of {bundle.manifest.name}"
    if import_error("torch") or import_error("transformers"):
        return Finding(OK, subject, f"{bundle.manifest.backbone.source} (not checked: PyTorch is not installed)")
    try:
        bundle.load_backbone()
    except SegmentationError as error:
        return Finding(FAULT, subject, str(error), "weights/README.md says how to get it")
    return Finding(OK, subject, f"{bundle.manifest.backbone.source} is the one the head was trained on")


def _choice(bundle: Bundle) -> Finding:
    """What ``auto`` takes for a bundle alone; nothing is loaded."""
    from dinov3_seg_ros.options import ComputeOptions
    from dinov3_seg_ros.runtimes.choice import choose, runtime_options

    subject = f"runtime of {bundle.manifest.name}"
    try:
        best = choose([bundle], runtime_options([bundle], ComputeOptions())).candidates[0]
    except SegmentationError as error:
        remedy = f"where PyTorch is installed: python -m dinov3_seg_ros.export {bundle.path}"
        return Finding(FAULT, subject, str(error), remedy)
    return Finding(OK, subject, best.label)
