"""Replaces every "auto" of a recipe by its value for the backbone, the data and this machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.model.heads import head_options
from dinov3_seg_ros.model.pretrained.normalisation import IMAGENET
from dinov3_seg_ros.support.cpu import this_cpu, usable_cores
from dinov3_seg_ros.support.errors import RecipeError
from training.recipes.schema import HeadChoice, NetworkInput, Recipe
from training.support.processes import local_process_count, process_state

if TYPE_CHECKING:
    from dinov3_seg_ros.model.backbone import Backbone

_logger = logging.getLogger(__name__)

# The option that makes a head image-guided, and the head that takes it without being told.
_DETAIL, _GUIDED_BY_DEFAULT = "detail", "aspp"
# Published files round mean and standard deviation to three digits or more.
_SAME_NORMALISATION = 1e-3


def resolve(recipe: Recipe, backbone: Backbone) -> Recipe:
    """The recipe with every "auto" replaced by its value on this machine.

    That of ``inference.stride`` stays: the bundle may be evaluated at another network size.

    Args:
        recipe: as written.
        backbone: made from the recipe by `training.loop.model.make_backbone`.

    Raises:
        RecipeError: a trained backbone would be stored as a reference; the recipe's mean or standard deviation are not
            those of the weights; or BatchNorm cannot be synchronised.
        ParameterError: windows of the evaluation would leave gaps.
        HeadError: there is no such head.
        BundleError: the bundle that the head starts from cannot be read.
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
    recipe.inference.stride_of(recipe.input.network_size)  # gaps are told before the training
    return recipe.model_copy(
        update={
            "data": recipe.data.resolved(),
            "input": _normalised(recipe.input, backbone, choice.source),
            "backbone": resolved,
            "head": _with_detail(recipe.head, backbone),
            "output": str(output_folder(recipe)),
            "batch_norm": _possible_batch_norm(recipe.batch_norm),
            "precision": _best_precision() if recipe.precision == "auto" else recipe.precision,
            "workers": _best_workers() if recipe.workers == "auto" else recipe.workers,
        }
    )


def output_folder(recipe: Recipe) -> Path:
    """The folder that a training by a recipe writes."""
    return Path("runs", recipe.name) if recipe.output == "auto" else Path(recipe.output)


def _with_detail(choice: HeadChoice, backbone: Backbone) -> HeadChoice:
    """The head's options with ``detail`` decided, which for the ASPP head is "auto" by default.

    A backbone that gives maps of one stride only, as a ViT does, has lost the fine detail that the image still has. A
    head that starts from another bundle's has the same branches.
    """
    wanted = choice.options.get(_DETAIL)
    if _DETAIL not in head_options(choice.name, choice.variant) or wanted not in (None, "auto"):
        return choice
    if choice.start_from is not None:
        decided = load_bundle(choice.start_from).manifest.head.reads_images
    else:
        decided = (wanted == "auto" or choice.name == _GUIDED_BY_DEFAULT) and len(set(backbone.strides)) == 1
    if wanted is None and not decided:
        return choice
    return choice.model_copy(update={"options": {**choice.options, _DETAIL: decided}})


def _normalised(network: NetworkInput, backbone: Backbone, source: str | None) -> NetworkInput:
    """The network input with mean and standard deviation of the backbone's weights, else of ImageNet.

    What the weights only suggest, the recipe may overrule.

    Raises:
        RecipeError: the recipe has others than the weights were certainly trained with.
    """
    own = dict(zip(("mean", "std"), backbone.normalisation or IMAGENET, strict=True))
    is_certain = backbone.normalisation is not None and backbone.normalisation_is_certain
    is_guessed = backbone.normalisation is not None and not is_certain and "auto" in (network.mean, network.std)
    if is_guessed and process_state().is_main_process:
        _logger.warning(
            "warning: nothing says which mean and standard deviation the weights from %s were trained with; their "
            "tensors look like those of Meta's satellite model, whose numbers are taken; for others set input.mean and "
            "input.std",
            source,
        )
    for key, value in own.items():
        written = getattr(network, key)
        if written != "auto" and not is_certain:
            own[key] = written
        elif written != "auto" and not np.allclose(written, value, atol=_SAME_NORMALISATION):
            raise RecipeError(
                f"input.{key} is {list(written)}, but the weights from {source} were trained with {list(value)}; "
                "remove input.mean and input.std from the recipe, which then takes those of the weights"
            )
    return network.model_copy(update=own)


def lasting(source: str | None) -> str | None:
    """A local path as an absolute one, which any user finds from any folder; other sources as they are."""
    path = os.path.expanduser(source or "")
    return os.path.realpath(path) if os.path.exists(path) else source


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
    return "bf16" if this_cpu().multiplies_bf16 else "fp32"


def _best_workers() -> int:
    """Number of loading processes: one keeps up with a CPU; a GPU gets its share of the cores, 1 to 8."""
    return min(max(usable_cores() // local_process_count(), 1), 8) if torch.cuda.is_available() else 1
