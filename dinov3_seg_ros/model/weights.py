"""Backbones with the weights of a checkpoint, or with random ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.families import FAMILIES, BackboneModel, FeatureNorm, NormedConvNextBackbone
from dinov3_seg_ros.model.pretrained.files import name_not_finite
from dinov3_seg_ros.model.pretrained.reading import read_checkpoint
from dinov3_seg_ros.support.errors import BackboneError, first_of, one_line

# Published ResNet and DINOv2 checkpoints may carry the classifier they were trained with.
_CLASSIFIER_PREFIX = "classifier."


def load_backbone(
    source: str | os.PathLike[str],
    layers: Sequence[int] | None = None,
    feature_norm: FeatureNorm | None = None,
    class_token: bool = False,
    output_stride: int | None = None,
    changed: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Load a backbone, frozen, in evaluation mode, as float32 on the CPU.

    Args:
        source: a local folder or file, or an id of Hugging Face, timm or torch.hub; see
            `pretrained.reading.read_checkpoint`. A copy in a local cache is used without asking the network.
        layers: 0-based blocks (ViT) or stages (ConvNeXt, ResNet), negatives counting from the end; default the last.
        feature_norm: "final" applies the model's final LayerNorm, to all maps of a ViT or to the last stage of a
            ConvNeXt (as Meta's ``norm=True`` does); "none" does not. Default "final" for a ViT, "none" otherwise.
        class_token: append the class token of the same block to each map of a ViT. Each map then has twice the
            channels; the added ones are equal in every cell, and normalised as the map is.
        output_stride: the largest stride of a ResNet's stages, such as 8 or 16. Later stages are dilated instead, with
            the same weights. None: the architecture's own, 32.
        changed: tensors that take the place of the source's, named as in `Backbone.checkpoint_tensors`.

    Raises:
        BackboneError: the weights are absent, gated, damaged or not finite, do not fit their architecture, or the
            architecture, the layers, the norm, the class token or the stride are not supported.
    """
    checkpoint = read_checkpoint(source)
    tensors = {**checkpoint.tensors, **(changed or {})}
    model = _model_with_weights(checkpoint.config, tensors, checkpoint.where)
    backbone = Backbone(model, layers, feature_norm, class_token, output_stride).eval()
    backbone.normalisation = checkpoint.normalisation
    backbone.normalisation_is_certain = checkpoint.normalisation_is_certain
    return backbone


def build_backbone(
    config: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    feature_norm: FeatureNorm | None = None,
    class_token: bool = False,
    output_stride: int | None = None,
) -> Backbone:
    """Build a backbone with random weights, all of it trainable, in training mode.

    Args:
        config: a Hugging Face configuration, e.g. ``{"model_type": "dinov3_convnext", "depths": [...], ...}``.
        layers, feature_norm, class_token, output_stride: as for `load_backbone`.

    Raises:
        BackboneError: the configuration or one of the other arguments is not supported.
    """
    model_class, model_config = _parse_config(config, "the given configuration")
    model = model_class(model_config)  # type: ignore[arg-type] # the configuration is of the class's own type
    backbone = Backbone(model, layers, feature_norm, class_token, output_stride)
    backbone.freeze("all")
    return backbone


def _parse_config(config: Mapping[str, Any], where: str) -> tuple[type[BackboneModel], PreTrainedConfig]:
    """The model class and its configuration."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise BackboneError(
            f"The backbone from {where} is of the type {model_type!r}; supported are {', '.join(FAMILIES)}."
        )
    model_class = FAMILIES[model_type].model_class
    config_class = model_class.config_class
    assert config_class is not None
    # What all of transformers' models have in common is how they are loaded and run, which no file is to choose.
    own = config_class().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    try:
        model_config = config_class.from_dict({key: value for key, value in config.items() if key in own})
        with torch.device("meta"):  # a trial that takes no memory
            model_class(model_config)  # type: ignore[arg-type] # the configuration is of the class's own type
    except Exception as error:  # a value that does not fit can raise anything in transformers
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BackboneError(f"The {model_type} configuration from {where} is not valid: {reason}") from error
    return model_class, model_config


def _model_with_weights(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> BackboneModel:
    """A transformers backbone in which every weight comes from ``tensors``."""
    model_class, model_config = _parse_config(config, where)
    prefix = f"{model_class.base_model_prefix}."
    state = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER_PREFIX)
    }
    model: BackboneModel
    with _quiet_transformers():
        model, report = model_class.from_pretrained(  # type: ignore[misc] # typed without output_loading_info
            None,
            config=model_config,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing = set(report["missing_keys"])
    if isinstance(model, NormedConvNextBackbone) and {"layer_norm.weight", "layer_norm.bias"} <= missing:
        model.layer_norm = None
        missing -= {"layer_norm.weight", "layer_norm.bias"}
    _refuse_misfits(missing, report, where)
    if name := name_not_finite(model.state_dict()):
        raise BackboneError(
            f"The weights from {where} cannot be used: {name} holds values that are not finite. "
            "Fetch the checkpoint again, or train it again. See weights/README.md."
        )
    return model


def _refuse_misfits(missing: set[str], report: Mapping[str, Any], where: str) -> None:
    """Raise unless all weights were there and fit: transformers gives random values to the others."""
    wrong_shapes = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    complaints = [
        f"{len(names)} {what}: {first_of(sorted(names))}"
        for what, names in (
            ("missing", missing),
            ("unexpected", report["unexpected_keys"]),
            ("of a wrong shape", wrong_shapes),
        )
        if names
    ]
    if complaints:
        raise BackboneError(
            f"The weights from {where} do not fit their configuration. Tensors {'; '.join(complaints)}. "
            "Fetch the checkpoint again, or correct the configuration. See weights/README.md."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers'
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers'
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call] # transformers'
