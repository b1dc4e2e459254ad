"""What of a bundle may be shared: its files, and its manifest as others read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.onnx_folder import EXPORT_FILE, LICENCES_FILE, REFERENCE_FILE, REPORT_FILE, find_exports
from dinov3_seg_ros.model.identity import backbone_identity
from dinov3_seg_ros.model.pretrained.hub import is_dinov3, is_known_by_form, repository_of
from dinov3_seg_ros.model.weights import load_backbone
from dinov3_seg_ros.support.errors import ExportError, SharingError
from dinov3_seg_ros.support.hub import HUB_TIMEOUT_S, why_not_fetched
from training.loop.run_folder import BEST, CURVES_FILE, PREDICTIONS_FILE, RECIPE_FILE

#: Folder of the pictures in a repository.
PICTURES_FOLDER = "pictures"


@dataclass(frozen=True)
class Shareable:
    """What is uploaded of a bundle.

    Attributes:
        bundle: with the manifest as others read it: without paths of this machine.
        files: by their paths in the repository, those on this machine; without the manifest.
        backbone: repository of the backbone that the head was trained on; None where it is the bundle's own.
        gated: whether access to that repository has to be asked for.
        is_of_meta: whether the backbone is subject to the DINOv3 License: Meta's own, or by a name derived from it.
        notes: what is left out, and why, for people.
    """

    bundle: Bundle
    files: Mapping[str, Path]
    backbone: str | None = None
    gated: bool = False
    is_of_meta: bool = False
    notes: list[str] = field(default_factory=list)


def prepare(
    bundle: Bundle, backbone: str | None = None, licence: str | None = None, pictures: bool = True
) -> Shareable:
    """Choose what of a bundle may be shared. The Hub is asked whether the backbone is gated.

    A bundle on a gated backbone, or on one derived from Meta's, is shared as its head alone (and, of a fine-tuned
    backbone, the tensors that changed): no export, since it holds the backbone's weights.

    Args:
        bundle: as it is on disk.
        backbone: id on Hugging Face under which others get the backbone, where the bundle names a path.
        licence: what the weights of the bundle are subject to; added to the notes that it carries.
        pictures: whether to share images of the user: the pictures of the run folder that the bundle lies in, and the
            exports whose reference holds any.

    Raises:
        SharingError: the bundle carries weights of a gated backbone, or of unknown licence; or it names a backbone that
            others cannot get.
        BackboneError: ``backbone`` cannot be loaded.
    """
    section, notes = bundle.manifest.backbone, []
    source = backbone or section.source
    repository = repository_of(source)
    if backbone is not None:
        _require_same(bundle, backbone)
    gated = repository is not None and _is_gated(repository, is_needed=section.storage != "embedded")
    if gated is None:
        repository, gated = None, False  # the name is that of something else, such as a folder that is no longer there
    is_of_meta = is_dinov3(source) or is_dinov3(section.source)  # another name does not free weights from their terms
    is_head_alone = gated or is_of_meta
    if section.storage == "embedded":
        _check_embedded(bundle, (repository or section.source) if is_head_alone else None, licence)
    elif repository is None:
        embed = "; if not, train it again with --backbone.storage embedded, so that the bundle holds its backbone"
        raise SharingError(
            f"{bundle.path} is on the backbone '{source}', which others do not have; if Hugging Face has it, name its "
            f"id with --backbone OWNER/NAME{'' if is_of_meta else embed}"
        )
    files = {name: bundle.path / name for name in bundle.manifest.files}
    exports, refused = find_exports(bundle)
    if is_head_alone and exports:
        why = "which is gated" if gated else "which by their name are derived from Meta's DINOv3"
        notes.append(f"the exports are left out: they hold the weights of {repository}, {why}. Make them on each robot")
    for export in () if is_head_alone else exports:
        folder = export.folder.relative_to(bundle.path).as_posix()
        if not pictures and export.has_reference and export.manifest.user_images is not False:
            holds = "holds" if export.manifest.user_images else "may hold"
            notes.append(
                f"left out: {folder}, whose {REFERENCE_FILE} {holds} two of your images; export it again without "
                "--images to share it"
            )
            continue
        read = [name for name in export.manifest.files if not name.startswith("fused.")]
        try:
            files |= {f"{folder}/{name}": export.graph(name) for name in read}
        except ExportError as error:
            notes.append(f"left out: {folder}: {error}")
            continue
        unread = sorted(set(export.manifest.files) - set(read))
        notes += [f"left out: {folder}/{name}, which robots do not read" for name in unread]
        described = [name for name in (EXPORT_FILE, REPORT_FILE, LICENCES_FILE) if (export.folder / name).is_file()]
        files |= {f"{folder}/{name}": export.folder / name for name in described}
    notes += [f"left out: {reason}" for reason in refused]
    if pictures:
        files |= _pictures(bundle)
    # An embedded backbone is described by where it came from; others load one that is not in the bundle.
    if section.storage == "embedded":
        source = _without_folder(section.source, repository)
    else:
        source = _without_folder(source, repository, repository)
    manifest = bundle.manifest.model_copy(
        update={
            "backbone": section.model_copy(update={"source": source}),
            "training": bundle.manifest.training.model_copy(
                update={"recipe": _without_paths(bundle.manifest.training.recipe, repository)}
            ),
            "licences": [*bundle.manifest.licences, *([licence] if licence else [])],
        }
    )
    return Shareable(Bundle(bundle.path, manifest), files, repository, gated, is_of_meta, notes)


def _check_embedded(bundle: Bundle, gated: str | None, licence: str | None) -> None:
    if gated is not None:
        raise SharingError(
            f"{bundle.path} holds the weights of {gated}, which are gated or derived from gated ones: they may not be "
            "passed on. Train it with backbone.storage reference (delta, where a part of the backbone trains): the "
            "bundle then names the backbone, and others load it with their own access"
        )
    if not bundle.manifest.licences and licence is None:
        raise SharingError(
            f"{bundle.path} holds the weights of a backbone, and names no licence under which they may be shared; name "
            "it with --licence, such as --licence apache-2.0, or with the recipe's key licences"
        )


def _require_same(bundle: Bundle, repository: str) -> None:
    section = bundle.manifest.backbone
    expected = section.base_identity or section.identity
    if backbone_identity(load_backbone(repository)) != expected:
        raise SharingError(
            f"--backbone {repository} is not the backbone that {bundle.path} was trained on (its identity is another); "
            f"name the id of {section.source}"
        )


def _is_gated(repository: str, is_needed: bool) -> bool | None:
    """Whether access to a repository has to be asked for: Meta's is known, of others the Hub is asked.

    None where there is no such repository, and none is needed.
    """
    if is_known_by_form(repository) and is_dinov3(repository):
        return True
    try:
        return bool(HfApi().model_info(repository, timeout=HUB_TIMEOUT_S).gated)
    except hub_errors.GatedRepoError:
        return True
    except Exception as error:
        if not is_needed and isinstance(error, hub_errors.RepositoryNotFoundError):
            return None
        raise SharingError(
            f"whether others can load the backbone {repository} cannot be told: it "
            f"{why_not_fetched(error, 'description')}; name its id on Hugging Face with --backbone"
        ) from error


def _pictures(bundle: Bundle) -> dict[str, Path]:
    """Pictures that the training of a bundle has drawn; those of predictions are of the best model."""
    run = bundle.path.resolve().parent
    if not (run / RECIPE_FILE).is_file():
        return {}
    names = (PREDICTIONS_FILE, CURVES_FILE) if bundle.path.resolve().name == BEST else (CURVES_FILE,)
    return {f"{PICTURES_FOLDER}/{name}": run / name for name in names if (run / name).is_file()}


# Keys of a recipe whose values are paths, also those that look like ids on Hugging Face; the last is transformers'.
_PATHS = {"root", "output", "folder", "cache", "start_from", "_name_or_path"}


def _without_paths(value: Any, backbone: str | None, key: str = "") -> Any:
    """A recipe without the folders of this machine, which tell others nothing but the names of its user and project."""
    if key == "classes":  # its keys are names of classes
        return value
    if isinstance(value, dict):
        return {name: _without_paths(part, backbone, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part, backbone, key) for part in value]
    if not isinstance(value, str):
        return value
    if key == "source":
        return _without_folder(value, backbone)
    return Path(value).name if key in _PATHS else value


def _without_folder(source: str, backbone: str | None, of_path: str | None = None) -> str:
    """A backbone's source as others read it: an id as it is, also that of a file in a repository; no path.

    Args:
        source: may be an id, or a path that looks like one.
        backbone: the bundle's, which is a repository.
        of_path: what takes the place of a path; by default its name alone.
    """
    repository = repository_of(source)
    is_id = (
        repository is not None
        and source.rpartition(":")[2].startswith(repository)  # behind timm's "hf_hub:"
        and (repository == backbone or is_known_by_form(repository))
    )
    return source if is_id else of_path or Path(source).name
