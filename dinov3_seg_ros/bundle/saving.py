"""Writing a bundle: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    BackboneSection,
    HeadSection,
    Manifest,
    required_files,
)
from dinov3_seg_ros.support.errors import BundleError
from dinov3_seg_ros.support.files import replacing_folder, sha256_of_file, write_json

if TYPE_CHECKING:
    import torch

    from dinov3_seg_ros.model.backbone import Backbone
    from dinov3_seg_ros.model.heads import Head


def save_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    head: Mapping[str, torch.Tensor],
    write_backbone: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write a bundle; a bundle that was at ``path`` is replaced once the new one is complete.

    Args:
        path: the bundle's folder.
        manifest: its description; ``files`` is filled in here.
        head: the head's state dict.
        write_backbone: called with the folder being written, for an ``embedded`` or ``delta`` backbone.

    Raises:
        BundleError: the manifest asks for files that were not written.
        OSError: the disk is full or not writable; the old bundle is still there.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with replacing_folder(path) as folder:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}, folder / HEAD_FILE)
        if write_backbone is not None:
            write_backbone(folder)
        files = {
            file.relative_to(folder).as_posix(): sha256_of_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        missing = [name for name in required_files(manifest) if name not in files]
        if missing:
            raise BundleError(
                f"{path}: a bundle with a backbone stored as '{manifest.backbone.storage}' needs {missing}"
            )
        manifest = manifest.model_copy(update={"files": files})
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return Bundle(path, manifest)


def describe_head(head: Head, name: str, variant: str | None = None, **options: Any) -> HeadSection:
    """Describe a head for the manifest.

    Args:
        head: the head.
        name, variant, options: the arguments by which `dinov3_seg_ros.model.heads.build_head` built it.
    """
    return HeadSection(name=name, variant=variant, options=options, reads_images=head.reads_images)


def describe_backbone(backbone: Backbone, **origin: Any) -> BackboneSection:
    """Describe a backbone for the manifest.

    Args:
        backbone: as the head reads it.
        origin: the section's fields that say where it comes from: ``storage``, ``source``, ``identity`` and
            ``base_identity``.
    """
    return BackboneSection(
        **origin,
        model_type=backbone.model.config.model_type,
        layers=backbone.layers,
        feature_norm=backbone.feature_norm,
        class_token=backbone.class_token,
        output_stride=backbone.output_stride,
        channels=backbone.channels,
        strides=backbone.strides,
        multiple=backbone.patch_multiple,
    )
