"""A trained model on disk: the one thing that passes from training to the robot.

A bundle is a folder::

    bundle.json                  `Manifest`
    head.safetensors             the head's weights
    backbone/                    config.json + model.safetensors, when the backbone is the project's own
    backbone_delta.safetensors   only the tensors that training changed, when a published backbone was fine-tuned

The manifest names the SHA-256 of every other file. Only JSON and safetensors are read; no pickle is ever loaded.
Importing this module imports no torch; `Bundle.load_backbone` and `Bundle.load_head` do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from dinov3_seg_ros.errors import BundleError, HeadError, ParameterError
from dinov3_seg_ros.files import replacing_folder, sha256_of_file, write_json
from dinov3_seg_ros.preprocessing import check_geometry

if TYPE_CHECKING:
    import torch

    from dinov3_seg_ros.backbone import Backbone
    from dinov3_seg_ros.heads import Head

SCHEMA_VERSION = 1
MANIFEST_FILE = "bundle.json"
HEAD_FILE = "head.safetensors"
BACKBONE_FOLDER = "backbone"
DELTA_FILE = "backbone_delta.safetensors"
#: What a bundle may be called: it becomes part of topics.
NAME_PATTERN = r"^[a-z][a-z0-9_]*$"

Byte = Annotated[int, Field(ge=0, le=255)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSection(_Section):
    """Which backbone the head was trained on, and which of its maps it reads.

    Attributes:
        storage: ``embedded`` (in the bundle's own folder), ``reference`` (``source``, unchanged) or ``delta``
            (``source`` plus the tensors in `DELTA_FILE`).
        source: Hugging Face id or path of the backbone; for an embedded one, where it came from.
        identity: SHA-256 of the weights and architecture that the head was trained on.
        base_identity: the same for ``source`` before the delta is applied; None without a delta.
        model_type: Hugging Face's name of the architecture, such as ``dinov3_vit``.
        layers: 0-based blocks (ViT) or stages, in the order the head reads them.
        feature_norm, class_token, output_stride: see `dinov3_seg_ros.backbone.load_backbone`.
        channels, strides: of each of these maps.
        multiple: what the network's height and width must be multiples of.
    """

    storage: Literal["embedded", "reference", "delta"]
    source: str
    identity: str
    base_identity: str | None = None
    model_type: str
    layers: list[int]
    feature_norm: str
    class_token: bool = False
    output_stride: int | None = None
    channels: list[int]
    strides: list[int]
    multiple: Annotated[int, Field(ge=1)]


class InputSection(_Section):
    """How a frame becomes the network's input: see `dinov3_seg_ros.preprocessing`. Mean and std are in 0..1."""

    network_size: tuple[int, int]
    geometry: str
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class ClassesSection(_Section):
    """Class names and RGB colours, by class id."""

    names: Annotated[list[str], Field(min_length=1)]
    palette: list[tuple[Byte, Byte, Byte]]

    @model_validator(mode="after")
    def _one_colour_each(self) -> ClassesSection:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} names but {len(self.palette)} colours")
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        return self

    @property
    def unlabelled(self) -> int:
        """The mask value that stands for no class: 255, or 65535 where there are more than 255 classes."""
        return unlabelled_value(len(self.names))


def unlabelled_value(num_classes: int) -> int:
    """The mask value that stands for no class, of masks with so many classes."""
    return 255 if num_classes <= 255 else 65535


class HeadSection(_Section):
    """Arguments of `dinov3_seg_ros.heads.build_head`."""

    name: str
    variant: str | None = None
    options: dict[str, Any] = {}


class TrainingSection(_Section):
    """Where the weights come from: for people to read; nothing on the robot depends on it."""

    recipe: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    git_revision: str | None = None


class Manifest(_Section):
    """The content of ``bundle.json``.

    Attributes:
        name: a ROS name token; names the topics of a further head.
        files: SHA-256 of every other file, by its path in the bundle; filled in by `save_bundle`.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    backbone: BackboneSection
    input: InputSection
    classes: ClassesSection
    head: HeadSection
    training: TrainingSection = TrainingSection()
    licences: list[str] = []
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files have been checked.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
    """

    path: Path
    manifest: Manifest

    def load_backbone(self, layers: Sequence[int] | None = None) -> Backbone:
        """Load the frozen backbone the head was trained on.

        Args:
            layers: the maps wanted, when other heads share the backbone; default those of this head.

        Raises:
            BundleError: it is not the one the head was trained on.
            BackboneError: its weights are missing or unreadable.
        """
        from dinov3_seg_ros.backbone import backbone_identity, load_backbone

        section = self.manifest.backbone
        source = str(self.path / BACKBONE_FOLDER) if section.storage == "embedded" else section.source
        changed = None
        if section.storage == "delta":
            self._require_identity(backbone_identity(load_backbone(source)), section.base_identity, source)
            changed = self._read_tensors(DELTA_FILE)
        backbone = load_backbone(
            source,
            layers=layers or section.layers,
            feature_norm=section.feature_norm,
            class_token=section.class_token,
            output_stride=section.output_stride,
            changed=changed,
        )
        self._require_identity(backbone_identity(backbone), section.identity, source)
        return backbone

    def load_head(self) -> Head:
        """Build the head and load its weights, in eval mode.

        Raises:
            BundleError: its weights do not fit its description.
        """
        from dinov3_seg_ros.heads import build_head

        section, backbone = self.manifest.head, self.manifest.backbone
        try:
            head = build_head(
                section.name,
                backbone.channels,
                backbone.strides,
                len(self.manifest.classes.names),
                variant=section.variant,
                **section.options,
            )
            head.load_weights(self._read_tensors(HEAD_FILE))
        except HeadError as error:
            raise BundleError(
                f"{self.path / HEAD_FILE} does not fit head '{section.name}' as {MANIFEST_FILE} describes it: {error}"
            ) from error
        return head.eval()

    def _read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path / name)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.path / name} cannot be read as safetensors: {error}") from error

    def _require_identity(self, found: str, expected: str | None, source: str) -> None:
        if found != expected:
            raise BundleError(
                f"{self.path}: the backbone at {source} is not the one this head was trained on (its identity is "
                f"{found[:12]}, the manifest says {str(expected)[:12]}); use the backbone that the recipe names"
            )


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle: schema, presence and SHA-256 of every file. Weights are not loaded yet.

    Raises:
        BundleError: names the file and the reason.
    """
    path = Path(path).expanduser()
    manifest_path = path / MANIFEST_FILE
    if not path.is_dir():
        raise BundleError(
            f"{path}: there is no such folder; give the folder of a bundle (one that holds {MANIFEST_FILE})"
        )
    try:
        content = json.loads(manifest_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST_FILE}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest_path} cannot be read as JSON: {error}; copy the bundle again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{manifest_path}: schema_version is {version!r}, this release reads {SCHEMA_VERSION}; "
            "install the release that wrote the bundle, or train it again"
        )
    try:
        manifest = Manifest.model_validate(content)
        check_geometry(manifest.input.geometry, manifest.input.network_size, manifest.backbone.multiple)
    except (ValidationError, ParameterError) as error:
        raise BundleError(f"{manifest_path}: {_first_problem(error)}") from error
    for name in required_files(manifest):
        if name not in manifest.files:
            raise BundleError(f"{manifest_path}: 'files' does not list {name}")
    for name, digest in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the bundle again")
        if sha256_of_file(file) != digest:
            raise BundleError(
                f"{file} is damaged or was changed: its SHA-256 differs from the one in {MANIFEST_FILE}; "
                "copy the bundle again (with git, check that the file is not a Git LFS pointer)"
            )
    return Bundle(path, manifest)


def required_files(manifest: Manifest) -> list[str]:
    """Paths, in the bundle, of the weights that a bundle of this manifest must hold."""
    return {
        "embedded": [HEAD_FILE, f"{BACKBONE_FOLDER}/config.json", f"{BACKBONE_FOLDER}/model.safetensors"],
        "reference": [HEAD_FILE],
        "delta": [HEAD_FILE, DELTA_FILE],
    }[manifest.backbone.storage]


def save_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    head: Mapping[str, torch.Tensor],
    write_backbone: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write a bundle; what was at ``path`` is replaced only once the new one is complete.

    Args:
        path: the bundle's folder.
        manifest: its description; ``files`` is filled in here.
        head: the head's state dict.
        write_backbone: called with the folder being written, for an ``embedded`` or ``delta`` backbone.

    Raises:
        BundleError: the manifest asks for files that were not written.
        OSError: the disk is full or not writable; the old bundle is still there.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with replacing_folder(path) as folder:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}, folder / HEAD_FILE)
        if write_backbone is not None:
            write_backbone(folder)
        files = {
            file.relative_to(folder).as_posix(): sha256_of_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        missing = [name for name in required_files(manifest) if name not in files]
        if missing:
            raise BundleError(
                f"{path}: a bundle with a backbone stored as '{manifest.backbone.storage}' needs {missing}"
            )
        manifest = manifest.model_copy(update={"files": files})
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return Bundle(path, manifest)


def describe_backbone(backbone: Backbone, **origin: Any) -> BackboneSection:
    """The manifest's section on a backbone.

    Args:
        backbone: as the head reads it.
        origin: the fields that tell where it comes from: ``storage``, ``source``, ``identity``, ``base_identity``.
    """
    return BackboneSection(
        **origin,
        model_type=backbone.model.config.model_type,
        layers=backbone.layers,
        feature_norm=backbone.feature_norm,
        class_token=backbone.class_token,
        output_stride=backbone.output_stride,
        channels=backbone.channels,
        strides=backbone.strides,
        multiple=backbone.patch_multiple,
    )


def check_shared_backbone(bundles: list[Bundle]) -> None:
    """Raise BundleError, naming the field, unless all bundles can be served by one pass of one backbone."""
    first = bundles[0]
    for other in bundles[1:]:
        for section, field in (
            ("backbone", "identity"),
            ("backbone", "feature_norm"),
            ("backbone", "class_token"),
            ("backbone", "output_stride"),
            ("input", "network_size"),
            ("input", "geometry"),
            ("input", "mean"),
            ("input", "std"),
        ):
            a, b = (getattr(getattr(bundle.manifest, section), field) for bundle in (first, other))
            if a != b:
                raise BundleError(
                    f"{first.path} and {other.path} cannot share a backbone pass: {section}.{field} is {a} in one and "
                    f"{b} in the other; run them in two nodes, or train the heads alike"
                )
    names = [bundle.manifest.name for bundle in bundles]
    for name in names:
        if names.count(name) > 1:
            raise BundleError(
                f"two of the bundles are named '{name}'; names must differ, since topics are named by them"
            )


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


__all__ = [
    "BackboneSection",
    "Bundle",
    "ClassesSection",
    "HeadSection",
    "InputSection",
    "Manifest",
    "TrainingSection",
    "check_shared_backbone",
    "describe_backbone",
    "load_bundle",
    "save_bundle",
]
