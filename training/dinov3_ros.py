"""Read and write segmentation heads in the form of dinov3_ros.

https://github.com/Raessan/dinov3_ros takes heads from https://github.com/Raessan/semantic_segmentation_dinov3 (Rafael
Escarabajal, 2025): weights as the state dict of its ``ASPPDecoder``, which has the names of our plain ASPP head, and a
text file with one class name a line. Its node stretches every frame to one square size and reads the last block that
it computes, after the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.model.heads import Head, build_head
from dinov3_seg_ros.support.errors import ExportError, HeadError, first_of
from dinov3_seg_ros.support.files import sha256_of_file
from training.support.writing import save_with_torch

#: Paths in the folder dinov3_toolkit/head_segmentation of dinov3_ros.
WEIGHTS_FILE, CLASS_NAMES_FILE = "weights/model.pth", "class_names.txt"
#: Holds the values for dinov3_bringup/config/params.yaml of dinov3_ros.
PARAMETERS_FILE = "params.yaml"

#: Input of the published head.
NETWORK_SIZE, GEOMETRY = (640, 640), "stretch"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HEAD, VARIANT = "aspp", "plain"
_PATCH_SIZE = 16


def read_class_names(path: Path) -> list[str]:
    """Read the names of the classes, in the order of their ids.

    Raises:
        HeadError: the file cannot be read, or a name is empty or occurs twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise HeadError(f"the class names {path} cannot be read: {error}") from error
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            wrong = f"names '{name}' a second time" if name else "is empty"
            raise HeadError(f"line {number} of {path} {wrong}; each line must hold the name of one class")
    return names


def read_head(path: Path, class_count: int) -> Head:
    """Read a head from its weights, in evaluation mode.

    Only tensors are unpickled. A file with anything else is refused, and no code in it runs.

    Args:
        path: the .pth file.
        class_count: how many classes it should have.

    Raises:
        HeadError: the file cannot be read, or holds something else.
    """
    tensors = _read_tensors(path)
    first, last = (_shape(tensors, f"{layer}.weight") for layer in ("initial.0", "classifier"))
    if len(first) != 4 or len(last) != 4:
        raise HeadError(
            f"{path} is not the head of semantic_segmentation_dinov3, which starts with initial.0.weight and ends with "
            f"classifier.weight; it holds {first_of(tensors) or 'nothing'}"
        )
    if last[0] != class_count:
        raise HeadError(
            f"{path} has {last[0]} classes, but {class_count} names were given; give the class names that belong to it"
        )
    head = build_head(HEAD, first[1], _PATCH_SIZE, class_count, variant=VARIANT)
    try:
        head.load_weights(tensors)
    except HeadError as error:
        raise HeadError(
            f"{path} is not the head of semantic_segmentation_dinov3: {error}. Give the "
            "model.pth that its training wrote"
        ) from error
    return head.eval()


def write_plugin(manifest: Manifest, head: Head, folder: Path) -> list[str]:
    """Write the weights, class names and parameters of a head for dinov3_ros.

    Args:
        manifest: of the bundle that ``head`` belongs to.
        head: a plain ASPP head.
        folder: must exist.

    Returns:
        Instructions and warnings for the user.

    Raises:
        ExportError: dinov3_ros cannot run the head.
        OSError: the disk is full or not writable.
    """
    _require_runnable(manifest)
    (folder / WEIGHTS_FILE).parent.mkdir()
    # dinov3_ros loads a bare state dict.
    tensors = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
    save_with_torch(tensors, folder / WEIGHTS_FILE)
    (folder / CLASS_NAMES_FILE).write_text("\n".join(manifest.classes.names), encoding="utf-8")
    notes = (
        "Set these in dinov3_bringup/config/params.yaml, beside the paths of weights and class names.",
        f"The head was trained on the features of {manifest.backbone.source}.",
        *manifest.licences,
    )
    content = yaml.safe_dump({"dinov3_node": {"ros__parameters": _parameters(manifest)}}, sort_keys=False)
    (folder / PARAMETERS_FILE).write_text("".join(f"# {note}\n" for note in notes) + content, encoding="utf-8")
    advice = [
        f"copy {CLASS_NAMES_FILE} and {WEIGHTS_FILE} to dinov3_toolkit/head_segmentation of dinov3_ros, and set what "
        f"{PARAMETERS_FILE} says in its dinov3_bringup/config/params.yaml; its model_head.py and utils.py stay as they "
        "are"
    ]
    if manifest.input.geometry != GEOMETRY:
        advice.append(
            f"the head was trained on frames laid out by {manifest.input.geometry}; dinov3_ros stretches them, so "
            "expect less of it there"
        )
    return advice


def origin(path: Path) -> dict[str, str]:
    """The origin of an imported head, for the bundle's recipe."""
    return {"project": "semantic_segmentation_dinov3", "file": path.name, "sha256": sha256_of_file(path)}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise HeadError(f"there is no file {path}; give the path of the head's model.pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise HeadError(
            f"{path} cannot be read as PyTorch weights: it is damaged, no .pth file at all (a Git LFS pointer?), or "
            "holds code besides tensors, which is never run; download it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        held = f"a dictionary with {first_of(content)}" if isinstance(content, dict) else type(content).__name__
        raise HeadError(f"{path} is not a state dict (names and tensors) but {held}; give the head's own model.pth")
    return content


def _require_runnable(manifest: Manifest) -> None:
    head, backbone, size = manifest.head, manifest.backbone, manifest.input.network_size
    obstacles = (
        (
            (head.name, head.variant) != (HEAD, VARIANT),
            f"its head is {head.name} ({head.variant or 'default'}); only {HEAD} ({VARIANT}) has the architecture that "
            "dinov3_ros knows",
        ),
        (
            backbone.model_type != "dinov3_vit",
            f"its backbone is a {backbone.model_type}; dinov3_ros runs DINOv3's ViTs",
        ),
        (
            backbone.storage != "reference",
            f"its backbone is stored as '{backbone.storage}'; dinov3_ros loads the weights that Meta publishes",
        ),
        (backbone.class_token, "its head reads the class token, which dinov3_ros does not give"),
        (size[0] != size[1], f"its network size is {size[0]}x{size[1]}; dinov3_ros makes every frame a square"),
        (
            any(name.splitlines() != [name.strip()] for name in manifest.classes.names),
            f"{CLASS_NAMES_FILE} cannot hold a class name with blanks around it or of several lines",
        ),
    )
    for stands, obstacle in obstacles:
        if stands:
            raise ExportError(f"bundle '{manifest.name}' cannot become a head of dinov3_ros: {obstacle}")


def _parameters(manifest: Manifest) -> dict[str, Any]:
    backbone, side = manifest.backbone, manifest.input.network_size[0]
    return {
        "img_size": side,
        "patch_size": backbone.strides[0],
        "img_mean": list(manifest.input.mean),
        "img_std": list(manifest.input.std),
        # The node reads the last block that it computes.
        "dino_model": {"n_layers": backbone.layers[0] + 1, "embed_dim": backbone.channels[0]},
        # Logits at half of the image's size, as published: the node enlarges them twice.
        "segmentation_model": {"target_size": side // 2},
    }


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()
