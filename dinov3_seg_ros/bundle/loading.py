"""Reading a bundle, and checking it before anything is computed; see `manifest` for what it holds.

Importing this module imports no torch; `Bundle.load_backbone` and `Bundle.load_head` do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dinov3_seg_ros.bundle.hub import fetch_bundle, how_to_get_again, parse_hub_id, read_json, why_not_whole
from dinov3_seg_ros.bundle.manifest import (
    BACKBONE_FOLDER,
    DELTA_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Manifest,
    first_problem,
    other_version,
    required_files,
)
from dinov3_seg_ros.frames.preprocessing import check_geometry
from dinov3_seg_ros.support.errors import BundleError, HeadError, ParameterError
from dinov3_seg_ros.support.resources import resource_path

if TYPE_CHECKING:
    import torch

    from dinov3_seg_ros.model.backbone import Backbone
    from dinov3_seg_ros.model.heads import Head

#: Names of the bundles that come with the package, in its folder ``weights``.
SHIPPED = ("demo", "corridor")
#: How commands describe an argument that `load_bundle` takes.
BUNDLE_HELP = "folder of the bundle, a shipped one's name, or OWNER/NAME[@REVISION] on Hugging Face"
# Where the folder of a training has its bundle.
_OF_A_RUN = "best"
_MOST_SHOWN = 200
_AGAIN = "copy the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files have been checked.

    Attributes:
        path: its folder, absolute, since the program may change its own.
        manifest: what it says of itself.
    """

    path: Path
    manifest: Manifest

    def load_backbone(self, layers: Sequence[int] | None = None) -> Backbone:
        """Load the frozen backbone that the head was trained on.

        Args:
            layers: the wanted maps, when other heads share the backbone; by default those of this head.

        Raises:
            BundleError: its identity is not that of the backbone the head was trained on.
            BackboneError: its weights are missing, unreadable or not finite.
        """
        from dinov3_seg_ros.model.identity import backbone_identity
        from dinov3_seg_ros.model.weights import load_backbone

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
        """Build the head and load its weights, in evaluation mode.

        Raises:
            BundleError: its description cannot be used here, or its weights do not fit it or are not finite.
        """
        from dinov3_seg_ros.model.heads import build_head

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
        except HeadError as error:
            raise BundleError(
                f"{self.path / MANIFEST_FILE}: {error}; or use an ONNX export of the bundle, which needs no code of it"
            ) from error
        try:
            head.load_weights(self._read_tensors(HEAD_FILE))
        except HeadError as error:
            raise BundleError(
                f"{self.path / HEAD_FILE} does not fit head '{section.name}' as {MANIFEST_FILE} describes it: {error}"
            ) from error
        if head.reads_images != section.reads_images:
            raise BundleError(
                f"{self.path / MANIFEST_FILE}: head.reads_images is {str(section.reads_images).lower()}, but a head "
                f"'{section.name}' with these options {'reads' if head.reads_images else 'does not read'} the image; "
                "correct it, or train the head again"
            )
        return head.eval()

    def _read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from dinov3_seg_ros.model.pretrained.files import name_not_finite

        try:
            tensors = load_file(self.path / name)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.path / name} cannot be read as safetensors: {error}") from error
        if damaged := name_not_finite(tensors):
            raise BundleError(f"{self.path / name}: {damaged} holds values that are not finite; train the bundle again")
        return tensors

    def _require_identity(self, found: str, expected: str | None, source: str) -> None:
        if found != expected:
            raise BundleError(
                f"{self.path}: the backbone at {source} is not the one this head was trained on (its identity is "
                f"{found[:12]}, the manifest says {str(expected)[:12]}); use the backbone that the recipe names"
            )


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle: its schema, and presence and SHA-256 of every file. No weights are loaded.

    Args:
        path: the bundle's folder; or the name of a bundle that comes with the package, such as ``demo``, where no
            bundle lies in a folder of that name; or, where there is no such folder, ``owner/name`` or
            ``owner/name@revision`` of a bundle on the Hugging Face Hub, see `hub.fetch_bundle`.

    Raises:
        BundleError: names the file and the reason.
    """
    given = os.fspath(path)
    try:
        folder = _folder(Path(given).expanduser())
        hub_id = None if folder.exists() else parse_hub_id(given)
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # the latter for the home of an unknown user
        shown = f"{given[:_MOST_SHOWN]}..." if len(given) > _MOST_SHOWN else given
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"the bundle {shown} cannot be read: {reason}; give the path of a folder") from error
    if hub_id is not None:
        return _load(fetch_bundle(hub_id, lambda folder: _read_manifest(folder).files))
    if not is_folder:
        fault = f"this is a file in the folder {folder.parent}" if is_file else "there is no such folder"
        raise BundleError(
            f"{folder}: {fault}; give the folder of a bundle (one that holds {MANIFEST_FILE}), "
            f"OWNER/NAME of one on Hugging Face, or the name of one that comes with the package: {', '.join(SHIPPED)}"
        )
    return _load(folder)


def _load(path: Path) -> Bundle:
    manifest = _read_manifest(path)
    for name, digest in manifest.files.items():
        if why := why_not_whole(path / name, digest, MANIFEST_FILE, _AGAIN):
            raise BundleError(why)
    return Bundle(path.absolute(), manifest)


def _read_manifest(path: Path) -> Manifest:
    manifest_path = path / MANIFEST_FILE
    again = how_to_get_again(manifest_path, _AGAIN)
    try:
        content = read_json(manifest_path)
    except FileNotFoundError:
        meant = path / _OF_A_RUN
        hint = f"; did you mean {meant}?" if (meant / MANIFEST_FILE).exists() else ""
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST_FILE}{hint}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest_path} cannot be read as JSON: {error}; {again}") from error
    if fault := other_version(content, SCHEMA_VERSION, "bundle", "train it again"):
        raise BundleError(f"{manifest_path}: {fault}")
    try:
        manifest = Manifest.model_validate(content)
        check_geometry(manifest.input.geometry, manifest.input.network_size, manifest.backbone.multiple)
    except ValidationError as error:
        raise BundleError(f"{manifest_path}: {first_problem(error)}") from error
    except ParameterError as error:
        raise BundleError(f"{manifest_path}: {error}") from error
    for name in required_files(manifest):
        if name not in manifest.files:
            raise BundleError(f"{manifest_path}: 'files' does not list {name}")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{manifest_path}: 'files' lists {name}, which lies outside of the bundle; {again}")
    return manifest


def _folder(path: Path) -> Path:
    """The folder of a bundle that is given by its path, or by its name among those of the package."""
    if str(path) in SHIPPED and not (path / MANIFEST_FILE).exists():
        return resource_path(f"weights/{path}")
    return path


def check_shared_backbone(bundles: list[Bundle]) -> None:
    """Check that one pass of one backbone can serve all bundles.

    Raises:
        BundleError: it cannot; names the field that differs.
    """
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
            ("input", "value_range"),
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
                f"two of the bundles are named '{name}'; give them different names, which their topics need"
            )


def shared_layers(bundles: Sequence[Bundle]) -> list[int]:
    """The layers of the backbone that the heads of all bundles read, in ascending order."""
    return sorted({layer for bundle in bundles for layer in bundle.manifest.backbone.layers})
