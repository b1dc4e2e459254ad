"""The mean and standard deviation that a backbone was trained with, where its checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from dinov3_seg_ros.support.errors import BackboneError
from dinov3_seg_ros.support.json_text import parse_json

#: Of the channels red, green and blue, for values 0..1.
Channels: TypeAlias = tuple[float, float, float]
#: Mean and standard deviation.
Normalisation: TypeAlias = tuple[Channels, Channels]

PREPROCESSOR_FILE = "preprocessor_config.json"

IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Of the DINOv3 backbones that Meta trained on satellite images (SAT-493M).
SATELLITE: Normalisation = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)

# Parts of the names of published checkpoints: the images that each was trained on, and the hash of the satellite file.
_BY_NAME = {"sat493m": SATELLITE, "eadcf0ff": SATELLITE, "lvd1689m": IMAGENET, "lvd142m": IMAGENET}
_VIT_L_CHANNELS = 1024


def read_preprocessor(path: Path) -> Normalisation | None:
    """The normalisation in a preprocessor_config.json; None where it does not normalise.

    Raises:
        BackboneError: the file cannot be read, or its mean or standard deviation is not three numbers 0..1.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content.get("do_normalize", True):
        return None
    return normalisation_of(content, ("image_mean", "image_std"), str(path))


def normalisation_of(content: Mapping[str, Any], keys: tuple[str, str], where: str) -> Normalisation | None:
    """The normalisation under two keys; None where one is absent.

    Raises:
        BackboneError: a value is not three numbers, or they are not of values 0..1; ``where`` names its source.
    """
    if any(content.get(key) is None for key in keys):
        return None
    try:
        mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (content[key] for key in keys))
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{where}: {keys[0]} and {keys[1]} must be three numbers each: {error}") from error
    if not (all(0.0 <= value <= 1.0 for value in mean + std) and min(std) > 0.0):
        raise BackboneError(
            f"{where}: {keys[0]} {list(mean)} and {keys[1]} {list(std)} are not of values 0..1, which the backbone "
            "gets; divide those of values 0..255 by 255"
        )
    return mean, std


def known_normalisation(name: str) -> Normalisation | None:
    """The normalisation of a published checkpoint, known by its name; None for others.

    Args:
        name: of the file, folder or repository.
    """
    return next((value for part, value in _BY_NAME.items() if part in name.lower()), None)


def probable_normalisation(tensors: Mapping[str, Tensor]) -> Normalisation | None:
    """The normalisation that tensors suggest where no name tells; None where they suggest none.

    Args:
        tensors: as published, in any layout.
    """
    # Of Meta's ViT-L files only the satellite one has this norm; of the web images, only the 7B has it. Another
    # training with Meta's code may have it too.
    norm = tensors.get("local_cls_norm.weight")
    return SATELLITE if norm is not None and tuple(norm.shape) == (_VIT_L_CHANNELS,) else None
