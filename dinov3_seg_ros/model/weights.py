"""Where a backbone's weights come from: a Hugging Face id, a local folder, or one of Meta's DINOv3 .pth files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # re-exported
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.families import FAMILIES, BackboneModel, FeatureNorm, NormedConvNextBackbone
from dinov3_seg_ros.model.meta_checkpoint import read_meta_checkpoint
from dinov3_seg_ros.support.errors import BackboneError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_HELP = (
    "DINOv3's weights are gated: accept the licence at https://huggingface.co/{id} and run `hf auth login`, or "
    "download Meta's .pth file and give its path instead. See weights/README.md."
)

_META_SUFFIXES = (".pth", ".pt")
_HUB_TIMEOUT_S = 10.0
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
        source: a Hugging Face id, a local folder in Hugging Face form, or one of Meta's DINOv3 .pth files. A copy in
            the local Hugging Face cache is used without asking the network.
        layers: 0-based blocks (ViT) or stages (ConvNeXt, ResNet), negatives counting from the end; default the last.
        feature_norm: "final" applies the model's final LayerNorm, to all maps of a ViT or to the last stage of a
            ConvNeXt (as Meta's ``norm=True`` does); "none" does not. Default "final" for a ViT, "none" otherwise.
        class_token: append the class token of the same block to each map of a ViT. Each map then has twice the
            channels; the added ones are equal in every cell, and normalised as the map is.
        output_stride: the largest stride of a ResNet's stages, such as 8 or 16. Later stages are dilated instead, with
            the same weights. None: the architecture's own, 32.
        changed: tensors that take the place of the source's, named as in `Backbone.checkpoint_tensors`.

    Raises:
        BackboneError: the weights are absent, gated or damaged, do not fit their architecture, or the architecture,
            the layers, the norm, the class token or the stride are not supported.
    """
    config, tensors, where = _read_source(source)
    if changed:
        tensors = {**tensors, **changed}
    model = _model_with_weights(config, tensors, where)
    return Backbone(model, layers, feature_norm, class_token, output_stride).eval()


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


def _read_source(source: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Configuration, weights under Hugging Face's names, and in words where they came from."""
    path = Path(source).expanduser()
    if path.is_file() or path.suffix in _META_SUFFIXES:
        return *read_meta_checkpoint(path), str(path)
    if path.is_dir():
        files = [path / CONFIG_FILE, path / WEIGHTS_FILE]
        _require_files(files, path)
    else:
        files = [Path(_cached_or_downloaded(str(source), name)) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return _read_json(files[0]), _read_safetensors(files[1]), str(source)


def _require_files(files: Sequence[Path], folder: Path) -> None:
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BackboneError(
            f"The folder {folder} has no {' and no '.join(absent)}; a backbone in Hugging Face form is a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}. See weights/README.md."
        )


def _cached_or_downloaded(repository: str, name: str) -> str:
    """Path of a repository's file in the Hugging Face cache, fetched into it when it is not there yet."""
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError as error:
        raise BackboneError(
            f"{repository!r} is no folder, no file and no Hugging Face id such as "
            "facebook/dinov3-vits16plus-pretrain-lvd1689m. See weights/README.md."
        ) from error
    with contextlib.suppress(hub_errors.LocalEntryNotFoundError):
        return hf_hub_download(repository, name, local_files_only=True)
    try:
        # Fails at once where hf_hub_download alone would try again and again, with a warning each time.
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_HUB_TIMEOUT_S)
        return hf_hub_download(repository, name)
    except Exception as error:
        raise BackboneError(
            f"The backbone {repository!r} {_why_not_fetched(error, name)}. {WEIGHTS_HELP.format(id=repository)}"
        ) from error


def _why_not_fetched(error: Exception, name: str) -> str:
    if isinstance(error, hub_errors.GatedRepoError):
        return "is gated and this machine has no access to it"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return "does not exist on Hugging Face (or is private), nor is there a local path of that name"
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        return f"has no {name} on Hugging Face"
    if isinstance(error, hub_errors.HfHubHTTPError):
        return f"was refused by Hugging Face ({_one_line(error)})"
    return (
        "is no local path, is not in the local cache, and Hugging Face cannot be reached "
        f"({type(error).__name__}: {_one_line(error)})"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"The backbone's configuration {path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BackboneError(f"The backbone's configuration {path} is not a JSON object.")
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"The backbone's weights {path} are damaged or incomplete ({error}); "
            "delete the file and fetch it again. See weights/README.md."
        ) from error


def _parse_config(config: Mapping[str, Any], where: str) -> tuple[type[BackboneModel], PreTrainedConfig]:
    """The model class and its configuration."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise BackboneError(
            f"The backbone from {where} is of the type {model_type!r}; supported are {', '.join(FAMILIES)}."
        )
    model_class = FAMILIES[model_type].model_class
    config_class = model_class.config_class
    assert config_class is not None
    try:
        return model_class, config_class.from_dict(dict(config))
    except (hub_errors.StrictDataclassError, TypeError, ValueError) as error:
        raise BackboneError(f"The {model_type} configuration from {where} is not valid: {_one_line(error)}") from error


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
    return model


def _refuse_misfits(missing: set[str], report: Mapping[str, Any], where: str) -> None:
    """Raise unless all weights were there and fit: transformers gives random values to the others."""
    wrong_shapes = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    complaints = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
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
