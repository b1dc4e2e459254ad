"""Reads a checkpoint, wherever it lies and whatever its layout, as a configuration and tensors in Hugging Face form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dinov3_seg_ros.model.pretrained.dinov2 import convert_dinov2, is_dinov2
from dinov3_seg_ros.model.pretrained.files import (
    CONFIG_FILE,
    INDEX_FILE,
    SAFETENSORS_SUFFIX,
    WEIGHTS_FILE,
    WEIGHTS_SUFFIXES,
    read_json,
    read_parts,
    read_safetensors,
    read_state_dict,
    without_prefixes,
)
from dinov3_seg_ros.model.pretrained.hub import find_by_id, is_path, repository_of
from dinov3_seg_ros.model.pretrained.hugging_face import config_of, is_hugging_face
from dinov3_seg_ros.model.pretrained.meta_dinov3 import convert_meta_dinov3, is_meta_dinov3
from dinov3_seg_ros.model.pretrained.normalisation import (
    PREPROCESSOR_FILE,
    Normalisation,
    known_normalisation,
    normalisation_of,
    probable_normalisation,
    read_preprocessor,
)
from dinov3_seg_ros.model.pretrained.timm import is_timm_dinov3, timm_to_meta
from dinov3_seg_ros.support.errors import BackboneError, first_of


@dataclass(frozen=True)
class Checkpoint:
    """A backbone's weights in Hugging Face form.

    Attributes:
        config: as in config.json.
        tensors: by Hugging Face's names.
        where: where they came from, for people.
        normalisation: of the images that it was trained on; None where nothing tells.
        normalisation_is_certain: whether files or names tell it; the tensors alone only suggest one.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    where: str
    normalisation: Normalisation | None = None
    normalisation_is_certain: bool = True


def read_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a folder with config.json and model.safetensors, in one or several parts; a ``.pth``, ``.pt`` or
            ``.safetensors`` file; or an id, see `hub.find_by_id`.

    Raises:
        BackboneError: it is absent, damaged, gated, or of an unknown layout.
    """
    path = Path(os.path.expanduser(source))  # Path.expanduser raises for an unknown user
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read(path, _if_file(path.with_name(CONFIG_FILE)), _if_file(path.with_name(PREPROCESSOR_FILE)))
    absent = f"There is no file {path}" if path.is_absolute() else f"There is no file {path} in {Path.cwd()}"
    if is_path(str(source)):
        raise BackboneError(
            f"{absent}. Download the backbone's .pth from Meta "
            "(https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/) to that path, or give the path "
            "where it lies. See weights/README.md."
        )
    try:
        found = find_by_id(str(source))
    except BackboneError as error:
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise
        raise BackboneError(f"{absent}. Nor can it be fetched from Hugging Face: {error}") from error
    return _read(found.weights, found.config, found.preprocessor, found.repository)


def convert(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a state dict of any known layout to a Hugging Face configuration and state dict.

    Raises:
        BackboneError: the layout is unknown, or a tensor is missing or does not belong to it.
    """
    if is_timm_dinov3(tensors):
        tensors = timm_to_meta(tensors)
    if is_meta_dinov3(tensors):
        return convert_meta_dinov3(tensors)
    if is_dinov2(tensors):
        return convert_dinov2(tensors)
    if is_hugging_face(tensors):
        return config_of(tensors), dict(tensors)
    raise BackboneError(f"not a DINOv2 or DINOv3 backbone in a layout of Meta, timm or Hugging Face. {_hint(tensors)}")


def _read_folder(folder: Path) -> Checkpoint:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() and (folder / INDEX_FILE).is_file():
        weights = folder / INDEX_FILE
    absent = [file.name for file in (folder / CONFIG_FILE, weights) if not file.is_file()]
    if absent:
        raise BackboneError(
            f"The folder {folder} has no {' and no '.join(absent)}; a backbone in Hugging Face form is a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}. See weights/README.md."
        )
    return _read(weights, folder / CONFIG_FILE, _if_file(folder / PREPROCESSOR_FILE), str(folder))


def _read(weights: Path, config: Path | None, preprocessor: Path | None, where: str | None = None) -> Checkpoint:
    """Read a checkpoint's files."""
    where = where or str(weights)
    # The configuration comes first: it is small, and a damaged one is found before the weights are read.
    written = {} if config is None else read_json(config)
    tensors = _read_tensors(weights)
    # What lies beside a file with a name of its own may be of another file, so a published name goes before it.
    has_own_name = weights.name not in (WEIGHTS_FILE, INDEX_FILE)
    is_published = has_own_name and repository_of(weights.name) is not None
    normalisation = known_normalisation(weights.name) if is_published else None
    if normalisation is None and preprocessor is not None:
        normalisation = read_preprocessor(preprocessor)
    if normalisation is None and isinstance(written.get("pretrained_cfg"), dict):
        normalisation = normalisation_of(written["pretrained_cfg"], ("mean", "std"), str(config))
    normalisation = normalisation or known_normalisation(where)
    of_images = normalisation or probable_normalisation(tensors), normalisation is not None
    # timm's config.json says nothing of the architecture.
    if written and "pretrained_cfg" not in written and (not has_own_name or is_hugging_face(tensors)):
        return Checkpoint(written, tensors, where, *of_images)
    try:
        return Checkpoint(*convert(tensors), where, *of_images)
    except BackboneError as error:
        raise BackboneError(f"{where}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.name == INDEX_FILE:
        tensors = read_parts(path)
    else:
        tensors = read_safetensors(path) if path.suffix == SAFETENSORS_SUFFIX else read_state_dict(path)
    return without_prefixes(tensors)


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _hint(tensors: Mapping[str, Tensor]) -> str:
    """What else the tensors look like."""
    if "conv1.weight" in tensors and any(name.startswith("transformer.resblocks.") for name in tensors):
        return "It looks like Meta's Perception Encoder, which transformers has no backbone for."
    if "pos_embed" in tensors:
        return "It looks like an ordinary ViT: DINOv2 has LayerScale (blocks.0.ls1.gamma)."
    return f"Its tensors are named {first_of(sorted(tensors), 5)}."
