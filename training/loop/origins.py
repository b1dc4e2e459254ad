"""What a training started from, by content: a resumed training must start from the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from safetensors.torch import save
from torch import nn

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import write_json
from training.data import SegmentationDataset
from training.data.contents import Contents
from training.data.labelled_images import LabelledImages
from training.recipes.schema import Recipe
from training.support.text import say

if TYPE_CHECKING:
    from training.loop.bundle_writer import BundleWriter

ORIGINS_FILE = "origins.json"


@dataclass(frozen=True)
class Origins:
    """Content of everything that a recipe names by a path, which may since have been moved, or replaced.

    Attributes:
        data: content of the data set, by split.
        backbone: identity of the weights that the backbone starts with; None for random weights.
        head: SHA-256 of the weights that the head starts with; None for random weights.
    """

    data: Mapping[str, Contents]
    backbone: str | None
    head: str | None

    def changes_since(self, before: Origins) -> list[str]:
        """What differs from an earlier state and changes the weights, for people; empty where nothing does."""
        changed = self.data["train"].changes_since(before.data["train"])
        changes = [f"the train split of its data set changed ({changed})"] if changed else []
        if self.backbone != before.backbone:
            changes.append("backbone.source holds other weights")
        if self.head != before.head:
            changes.append("head.start_from holds other weights")
        return changes

    def validation_changes_since(self, before: Origins) -> str:
        """What differs from an earlier state in the validation split, for people; empty where nothing does."""
        return self.data["val"].changes_since(before.data["val"])


def find_origins(
    recipe: Recipe, data: Mapping[str, SegmentationDataset], bundles: BundleWriter, head: nn.Module
) -> Origins:
    """Origins of a training that has not taken a step yet; reads the files of the data set (`Contents`).

    Args:
        recipe: resolved.
        data: the data set, by split.
        bundles: knows the backbone as training starts.
        head: as training starts.

    Raises:
        DatasetError: a file of the data set cannot be read.
    """
    backbone = None if recipe.backbone.source is None else bundles.first_identity
    head_digest = None
    if recipe.head.start_from is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
        head_digest = hashlib.sha256(save(tensors)).hexdigest()
    return Origins({split: part.contents() for split, part in data.items()}, backbone, head_digest)


def write_origins(path: Path, origins: Origins) -> None:
    """Write a file, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    data = {split: {"settings": contents.settings, "files": contents.files} for split, contents in origins.data.items()}
    write_json(path, {"data": data, "backbone": origins.backbone, "head": origins.head})


def read_origins(path: Path) -> Origins:
    """Read a file that `write_origins` wrote.

    Raises:
        OutputError: the file is absent or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data = {split: Contents(part["settings"], part["files"]) for split, part in content["data"].items()}
        return Origins({split: data[split] for split in ("train", "val")}, content["backbone"], content["head"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} is absent or damaged ({error}), so that nothing tells which data the training had. Put it back, "
            "or train again into another folder"
        ) from error


def count_trained_on(bundle: Bundle, data: SegmentationDataset, console: Console) -> int | None:
    """Count the images that a bundle was trained on, by the content of their files; warn of them.

    Returns:
        None where nothing tells: the bundle does not lie in the folder of its training, or the images are no files.

    Raises:
        DatasetError: a file of the data set cannot be read.
    """
    path = bundle.path.resolve().parent / ORIGINS_FILE
    if not isinstance(data, LabelledImages) or not path.is_file():
        return None
    try:
        trained = set(read_origins(path).data["train"].files.values())
    except OutputError:  # the scores do not depend on it
        return None
    digests = data.image_digests()
    if len(digests) < len(data):
        return None
    count = sum(digest in trained for digest in digests.values())
    if count:
        said = f"{count} of {len(data)} images were trained on by {bundle.path}, which knows them better than new ones"
        say(console, f"warning: {said}", "yellow")
    return count
