"""Finds a checkpoint by an id of Hugging Face, timm or torch.hub: in the local caches, else on huggingface.co."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # re-exported

from dinov3_seg_ros.model.pretrained.files import (
    CONFIG_FILE,
    INDEX_FILE,
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    WEIGHTS_FILE,
    WEIGHTS_SUFFIXES,
    parts_of,
)
from dinov3_seg_ros.model.pretrained.normalisation import PREPROCESSOR_FILE
from dinov3_seg_ros.support.errors import BackboneError
from dinov3_seg_ros.support.hub import HUB_TIMEOUT_S, why_not_fetched

WEIGHTS_HELP = (
    "DINOv3's weights are gated: accept the licence at https://huggingface.co/{id} and run `hf auth login`, or "
    "download Meta's .pth file and give its path instead. See weights/README.md."
)
#: What Meta's DINOv3 is subject to.
DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"

_logger = logging.getLogger(__name__)

#: torch.hub's names of DINOv2 and DINOv3: the repository with the same weights, and the file's name in torch's own
#: cache, without hash and suffix.
TORCH_HUB = {
    **{
        f"dinov2_vit{letter}14{'_reg' * registers}": (
            f"facebook/dinov2-{'with-registers-' * registers}{size}",
            f"dinov2_vit{letter}14{'_reg4' * registers}_pretrain",
        )
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
        for registers in (False, True)
    },
    **{
        f"dinov3_{name.replace('-', '_')}": (
            f"facebook/dinov3-{name}-pretrain-lvd1689m",
            f"dinov3_{name.replace('-', '_')}_pretrain_lvd1689m",
        )
        for name in (
            *("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus"),
            *("convnext-tiny", "convnext-small", "convnext-base", "convnext-large"),
        )
    },
}
_TIMM_PREFIX = re.compile(r"hf[-_]hub:")
# timm's names of DINOv2, DINOv3 and EUPE; the tag behind the dot may be absent.
_TIMM_NAME = re.compile(r"(vit_\w+_dinov([23])\w*|convnext_\w+\.(dinov3|eupe))(\.?\w*)")
_TIMM_TAGS = {"2": ".lvd142m", "3": ".lvd1689m"}
# Meta's names of DINOv3, of files and of repositories; those of derived weights go on.
_META_NAME = re.compile(r"dinov3[_-](vit[a-z0-9]+|convnext[_-][a-z]+)[_-]pretrain[_-](lvd1689m|sat493m)(?![a-z0-9])")
# How the name of a published file ends: a hash, which DINOv2's files lack, and a suffix.
_FILE_END = re.compile(rf"(-[0-9a-f]{{8}})?({'|'.join(map(re.escape, WEIGHTS_SUFFIXES))})?$")
# Meta's own repositories, and timm's with the same weights; timm's EUPE has DINOv3's architecture.
_DINOV3 = re.compile(r"(facebook/dinov3-|timm/(vit|convnext)_\w+[._]dinov3(?!\w*\.eupe)).*")


@dataclass(frozen=True)
class Download:
    """The files of a checkpoint in a local cache.

    Attributes:
        repository: where they come from, for people.
        weights: one safetensors file, the index of several, or a ``.pth``.
        config: config.json; None where the repository has none, or the weights are a file of their own.
        preprocessor: preprocessor_config.json; None where there is none.
    """

    repository: str
    weights: Path
    config: Path | None = None
    preprocessor: Path | None = None


def find_by_id(source: str) -> Download:
    """The files of a checkpoint given by an id; downloads what no cache holds, and says so first.

    Args:
        source: ``owner/repository`` on Hugging Face, ``owner/repository/file``, timm's name (with ``hf_hub:`` or
            without), or torch.hub's (such as ``dinov2_vits14_reg``). No code is downloaded or run.

    Raises:
        BackboneError: there is no such checkpoint, it is gated, or it cannot be fetched.
    """
    if source in TORCH_HUB:
        repository, stem = TORCH_HUB[source]
        files = Path(torch.hub.get_dir(), "checkpoints").glob(f"{stem}*.pth")
        kept = sorted(file for file in files if _FILE_END.sub("", file.name) == stem)
        return Download(str(kept[0]), kept[0]) if kept else _from_repository(repository)
    repository, file = _parted(source)
    return _from_repository(repository) if file is None else Download(repository, _fetched(repository, file))


def is_path(source: str) -> bool:
    """Whether a source can only be the path of a file of weights. Three names may be a repository's, and a file's."""
    path = Path(os.path.expanduser(source))
    return path.suffix in WEIGHTS_SUFFIXES and (path.is_absolute() or source.startswith(".") or len(path.parts) < 3)


def repository_of(source: str) -> str | None:
    """The repository on Hugging Face that holds a published backbone; None where the source does not tell.

    Args:
        source: an id, as `find_by_id` takes it; or the path of a file with Meta's name, or of a folder with the name of
            Meta's repository, or of the weights in one; none of these under a longer name, such as that of fine-tuned
            weights. Nothing is read.
    """
    name = _own_name(source)
    stem = _FILE_END.sub("", name)
    of_meta = _META_NAME.fullmatch(stem)
    if of_meta:
        return f"facebook/dinov3-{of_meta[1].replace('_', '-')}-pretrain-{of_meta[2]}"
    for hub_name, (repository, file_stem) in TORCH_HUB.items():
        if source == hub_name or name == repository.partition("/")[2] or stem == file_stem:
            return repository
    # Path.exists raises where this user may not look.
    if is_path(source) or os.path.exists(os.path.expanduser(source)):
        return None
    repository, _ = _parted(source)
    with contextlib.suppress(hub_errors.HFValidationError):
        validate_repo_id(repository)
        return repository if "/" in repository else None
    return None


def is_known_by_form(repository: str) -> bool:
    """Whether what `repository_of` found is a repository for sure; others may be a folder that is not here."""
    return repository.startswith(("facebook/", "timm/"))


def is_dinov3(source: str) -> bool:
    """Whether a source is Meta's DINOv3, gated and subject to `DINOV3_LICENCE`, or by its name derived from it."""
    names = (source, repository_of(source) or source)
    return any(_META_NAME.match(_own_name(name)) or _DINOV3.fullmatch(name) for name in names)


def _own_name(source: str) -> str:
    """The name of a file or folder; of weights in a folder, the folder's, since they are all called the same."""
    path = Path(source)
    return path.parent.name if path.name in (WEIGHTS_FILE, INDEX_FILE) else path.name


def _parted(source: str) -> tuple[str, str | None]:
    """The repository that an id of Hugging Face or timm names, and the file in it if the id names one."""
    source = _TIMM_PREFIX.sub("", source)
    timm_name = _TIMM_NAME.fullmatch(source)
    if timm_name:
        return f"timm/{source}{'' if '.' in source else _TIMM_TAGS[timm_name[2]]}", None
    parts = source.split("/", 2)
    if len(parts) == 3 and parts[2].endswith((*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX)):
        return "/".join(parts[:2]), parts[2]
    return source, None


def _from_repository(repository: str) -> Download:
    weights = _cached(repository, WEIGHTS_FILE) or _cached(repository, INDEX_FILE)
    # What describes cached weights is not asked for again, so that a machine without network starts at once.
    preprocessor = _cached(repository, PREPROCESSOR_FILE)
    if weights is None:
        weights = _if_present(repository, WEIGHTS_FILE) or _if_present(repository, INDEX_FILE)
        if weights is None:
            raise BackboneError(
                f"The backbone {repository!r} has no {WEIGHTS_FILE} on Hugging Face. "
                f"{WEIGHTS_HELP.format(id=repository)} If its weights are in another file, name that: "
                f"{repository}/FILE."
            )
        preprocessor = _if_present(repository, PREPROCESSOR_FILE)
    if weights.name == INDEX_FILE:
        for part in parts_of(weights):
            _fetched(repository, part)
    return Download(repository, weights, _if_present(repository, CONFIG_FILE), preprocessor)


def _if_present(repository: str, name: str) -> Path | None:
    """A file of a repository, fetched if need be; None where the repository has none."""
    try:
        return _fetched(repository, name)
    except _AbsentError:
        return None


def _cached(repository: str, name: str) -> Path | None:
    """A file of a repository in the Hugging Face cache; None where it is not there."""
    with contextlib.suppress(hub_errors.LocalEntryNotFoundError, hub_errors.HFValidationError):
        return Path(hf_hub_download(repository, name, local_files_only=True))
    return None


class _AbsentError(BackboneError):
    """The repository exists and lacks the file."""


def _fetched(repository: str, name: str) -> Path:
    """Path of a repository's file in the Hugging Face cache, fetched into it when it is not there yet."""
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError as error:
        where = "" if os.path.isabs(repository) else f" in {os.getcwd()}"
        raise BackboneError(
            f"{repository!r} is no folder and no file{where}, no Hugging Face id such as "
            "facebook/dinov3-vits16plus-pretrain-lvd1689m, and no name of timm or torch.hub such as "
            "vit_small_patch16_dinov3 or dinov2_vits14_reg. See weights/README.md."
        ) from error
    cached = _cached(repository, name)
    if cached is not None:
        return cached
    try:
        # Fails at once where hf_hub_download alone would try again and again, with a warning each time.
        url = hf_hub_url(repository, name)
        size = get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S).size
        _logger.warning("downloading %s (%s)", url, "size unknown" if size is None else f"{size / 1e6:.1f} MB")
        return Path(hf_hub_download(repository, name))
    except Exception as error:
        kind = _AbsentError if isinstance(error, hub_errors.RemoteEntryNotFoundError) else BackboneError
        raise kind(
            f"The backbone {repository!r} {why_not_fetched(error, name)}. {WEIGHTS_HELP.format(id=repository)}"
        ) from error
