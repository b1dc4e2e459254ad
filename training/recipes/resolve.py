"""Replaces every "auto" of a recipe by its value for the backbone, the data and this machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.support.errors import RecipeError
from training.recipes.schema import Recipe
from training.support.processes import process_state


def resolve(recipe: Recipe, backbone: Backbone) -> Recipe:
    """The recipe with every "auto" replaced by its value on this machine.

    Args:
        recipe: as written.
        backbone: made from the recipe by `training.loop.model.make_backbone`.

    Raises:
        RecipeError: a trained backbone would be stored as a reference; or BatchNorm cannot be synchronised.
        ParameterError: windows of the evaluation would leave gaps.
    """
    choice = recipe.backbone
    trainable = backbone.trainable_blocks or "none"
    storage = choice.storage
    if storage == "auto":
        # A local folder may hold Meta's weights, which must not travel without their licence.
        storage = "embedded" if choice.config is not None else "reference" if trainable == "none" else "delta"
    if storage == "reference" and trainable != "none":
        raise RecipeError("backbone.storage is reference, but the backbone trains; use delta, embedded or auto")
    resolved = choice.model_copy(
        update={
            "layers": backbone.layers,
            "feature_norm": backbone.feature_norm,
            "trainable": trainable,
            "storage": storage,
            "source": choice.source if storage == "embedded" else lasting(choice.source),
        }
    )
    return recipe.model_copy(
        update={
            "data": recipe.data.resolved(),
            "backbone": resolved,
            "output": f"runs/{recipe.name}" if recipe.output == "auto" else recipe.output,
            "inference": recipe.inference.resolved(recipe.input.network_size),
            "batch_norm": _possible_batch_norm(recipe.batch_norm),
            "precision": _best_precision() if recipe.precision == "auto" else recipe.precision,
            "workers": _best_workers() if recipe.workers == "auto" else recipe.workers,
        }
    )


def lasting(source: str | None) -> str | None:
    """A local path as an absolute one, which the robot finds from any folder; other sources as they are."""
    if source is None or not Path(source).exists():
        return source
    return str(Path(source).resolve())


def _possible_batch_norm(wanted: str) -> str:
    several_gpus = process_state().num_processes > 1 and torch.cuda.is_available()
    if wanted == "synchronised" and not torch.cuda.is_available():
        raise RecipeError("batch_norm is synchronised, which needs CUDA; set it to process or frozen")
    if wanted == "auto":
        return "synchronised" if several_gpus else "process"
    return wanted


def _best_precision() -> str:
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"


def _best_workers() -> int:
    """Number of loading processes: one keeps up with a CPU; a GPU gets one for each core, up to 8."""
    return min(os.cpu_count() or 1, 8) if torch.cuda.is_available() else 1
