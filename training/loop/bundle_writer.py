"""Writes the model in training to bundles on disk."""

from __future__ import annotations

import copy
import functools
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dinov3_seg_ros.bundle.manifest import (
    BACKBONE_FOLDER,
    DELTA_FILE,
    FROM_SCRATCH,
    CalibrationSection,
    InputSection,
    Manifest,
    TrainingSection,
)
from dinov3_seg_ros.bundle.saving import describe_backbone, describe_head, save_bundle
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from training.data import SegmentationDataset
from training.loop.model import SegmentationModel
from training.recipes.schema import Recipe
from training.support.writing import writing

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class BundleWriter:
    """Writes the bundles of one training.

    Args:
        recipe: with every "auto" resolved.
        model: as training starts. An embedded frozen backbone is rounded to its storage type, so that the head trains
            on the features that the robot will compute.
        data: source of class names and palette.

    Attributes:
        first_identity: identity of the backbone as training starts, after rounding.
    """

    def __init__(self, recipe: Recipe, model: SegmentationModel, data: SegmentationDataset) -> None:
        self._recipe, self._model, self._data = recipe, model, data
        self._storage, self._dtype = recipe.backbone.storage, _DTYPES[recipe.backbone.storage_dtype]
        backbone = model.backbone
        if self._storage == "embedded" and not _trains(backbone):
            _round_weights(backbone, self._dtype)
        self.first_identity = backbone_identity(backbone)
        self._first_tensors: dict[str, Tensor] = {}
        if self._storage == "delta":
            self._first_tensors = {name: tensor.clone() for name, tensor in backbone.checkpoint_tensors().items()}

    def manifest(self, metrics: dict[str, Any] | None = None) -> Manifest:
        """Manifest of the model as it is now."""
        return self._describe(self._stored_backbone(), metrics or {})

    def save(self, path: Path, metrics: dict[str, Any]) -> None:
        """Write the model as it is now. The bundle replaces ``path`` only once it is complete.

        Where ``metrics`` hold a calibration, its temperature is folded into the head that is written.

        Raises:
            OutputError: the bundle cannot be written.
        """
        backbone = self._stored_backbone()

        def write_backbone(folder: Path) -> None:
            if self._storage == "embedded":
                save_backbone(backbone, folder / BACKBONE_FOLDER, self._dtype)
            elif self._storage == "delta":
                save_file(self._changed_tensors(), folder / DELTA_FILE)

        fitted = metrics.get("calibration") if self._recipe.calibrate else None
        metrics = {name: value for name, value in metrics.items() if name != "calibration"}
        head, calibration = self._model.head, None
        if fitted is not None:
            head = copy.deepcopy(head)
            head.scale_logits(1 / fitted["temperature"])
            calibration = CalibrationSection(data=self._recipe.data.name, split="val", images=len(self._data), **fitted)
        manifest = self._describe(backbone, metrics, calibration)
        with writing(path):
            save_bundle(path, manifest, head.state_dict(), write_backbone)

    def _describe(
        self, backbone: Backbone, metrics: dict[str, Any], calibration: CalibrationSection | None = None
    ) -> Manifest:
        recipe = self._recipe
        return Manifest(
            name=recipe.name,
            description=recipe.description,
            backbone=describe_backbone(
                backbone,
                storage=self._storage,
                source=recipe.backbone.source or f"{FROM_SCRATCH}{recipe.name}",
                identity=backbone_identity(backbone) if _trains(self._model.backbone) else self.first_identity,
                base_identity=self.first_identity if self._storage == "delta" else None,
            ),
            input=InputSection(**recipe.input.model_dump(), value_range=recipe.data.robot_value_range()),
            classes=ClassesSection(names=self._data.class_names, palette=self._data.palette),
            masks=self._data.mask_values,
            head=describe_head(self._model.head, recipe.head.name, recipe.head.variant, **recipe.head.options),
            calibration=calibration,
            training=TrainingSection(
                recipe=recipe.model_dump(mode="json"), metrics=metrics, git_revision=git_revision()
            ),
            licences=list(recipe.licences),
        )

    def _stored_backbone(self) -> Backbone:
        """The backbone as a reader of the bundle gets it, rounded to its storage type."""
        backbone = self._model.backbone
        if self._storage == "embedded" and _trains(backbone) and self._dtype != torch.float32:
            backbone = copy.deepcopy(backbone)
            _round_weights(backbone, self._dtype)
        return backbone

    def _changed_tensors(self) -> dict[str, Tensor]:
        return {
            name: tensor.cpu().contiguous()
            for name, tensor in self._model.backbone.checkpoint_tensors().items()
            if not torch.equal(tensor.cpu(), self._first_tensors[name])
        }


@functools.cache
def git_revision() -> str | None:
    """Commit of the working tree that this code runs from, with "-dirty" where it has changes; None outside of one."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _trains(backbone: Backbone) -> bool:
    return backbone.trainable_blocks != 0


@torch.no_grad()
def _round_weights(backbone: Backbone, dtype: torch.dtype) -> None:
    # Of buffers only those that are stored: a reader makes the others, such as rotary frequencies, anew.
    for tensor in backbone.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
