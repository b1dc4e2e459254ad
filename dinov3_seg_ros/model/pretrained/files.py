"""Reads the files of a checkpoint: JSON, safetensors in one or several parts, and PyTorch's ``.pth``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinov3_seg_ros.support.errors import BackboneError, first_of
from dinov3_seg_ros.support.json_text import parse_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
#: Lists the parts of weights that are stored in several files.
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".pth", ".pt")
SAFETENSORS_SUFFIX = ".safetensors"
#: A source that ends in one of these is meant as a file.
WEIGHTS_SUFFIXES = (*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, ".bin")

# Trainings store the backbone below one of these keys, and under these beginnings of names.
_WRAPPERS = ("teacher", "model_ema", "model", "state_dict", "backbone", "module")
_PREFIXES = ("_orig_mod.", "module.", "model.", "teacher.", "backbone.")
# Beside these lie heads and the network's other copies.
_BESIDE_OTHERS = ("teacher.", "backbone.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BackboneError: the file cannot be read, or holds something else.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"The backbone's configuration {path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BackboneError(f"The backbone's configuration {path} is not a JSON object.")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the weights of one safetensors file.

    Raises:
        BackboneError: the file is absent, damaged or incomplete.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"The backbone's weights {path} are damaged or incomplete ({error}); "
            "delete the file and fetch it again. See weights/README.md."
        ) from error


def parts_of(index: Path) -> list[str]:
    """Names of the files that a ``model.safetensors.index.json`` lists, sorted.

    Raises:
        BackboneError: it lists none.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BackboneError(f"{index} has no weight_map from tensors to files; fetch it again.")
    return sorted(set(names.values()))


def read_parts(index: Path) -> dict[str, Tensor]:
    """Read weights that are stored in several safetensors files beside their index.

    Raises:
        BackboneError: a part is absent, damaged, or lacks a tensor that the index promises.
    """
    names = parts_of(index)
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise BackboneError(
            f"{index.parent} lacks {len(absent)} of the {len(names)} parts of its weights: {', '.join(absent[:3])}. "
            "Fetch them again."
        )
    tensors = {key: tensor for name in names for key, tensor in read_safetensors(index.parent / name).items()}
    lacking = sorted(read_json(index)["weight_map"].keys() - tensors.keys())
    if lacking:
        raise BackboneError(
            f"The parts of {index} lack tensors that it lists: {first_of(lacking, 5)}. Fetch them again."
        )
    return tensors


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth`` file; where a training stored several dictionaries of them, one with a backbone.

    Only tensors are unpickled; a file that holds anything else is refused without running it.

    Raises:
        BackboneError: the file is damaged, or not a dictionary of tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file can raise anything.
        raise BackboneError(f"{path} cannot be read as PyTorch weights: {_why_unreadable(path)}.") from error
    tensors = _unwrapped(content)
    if tensors is None:
        raise BackboneError(
            f"{path} is not a state dict (a dictionary of tensors) but a {_outline(content)}. "
            "Give the backbone's own .pth file as it was published."
        )
    return tensors


def name_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity as float32; None where none does."""
    for name, tensor in tensors.items():
        values = tensor.float()
        # The sum is quick, and finite only where all values are; it alone may overflow.
        if not values.sum().isfinite() and not values.isfinite().all():
            return name
    return None


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut off what the wrappers of a training put before names; leave out heads that lie beside the backbone."""
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            kept = [name for name in tensors if name.startswith(prefix) or prefix not in _BESIDE_OTHERS]
            return without_prefixes({name.removeprefix(prefix): tensors[name] for name in kept})
    return tensors


def _unwrapped(content: object) -> dict[str, Tensor] | None:
    """The dictionary of tensors in ``content``; None where there is none."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    return next((found for key in _WRAPPERS if (found := _unwrapped(content.get(key))) is not None), None)


def _why_unreadable(path: Path) -> str:
    with open(path, "rb") as handle:
        start = handle.read(64).lstrip()
    if start.startswith(b"<"):
        return "it is a web page; the download link has probably expired, so ask Meta for a new one"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    return "it is damaged, incomplete, or holds code besides tensors (which is never run); download it again"


def _outline(content: object) -> str:
    if isinstance(content, dict):
        return f"dictionary with the keys {first_of(sorted(map(str, content)), 5)}"
    return type(content).__name__
