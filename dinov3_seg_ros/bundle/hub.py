"""Bundles on the Hugging Face Hub: fetched into its own cache, and found there without a network.

Only the bundle's files and its exports are fetched; nothing of them is run. Importing this module does not import
huggingface_hub, the extra ``hub``.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov3_seg_ros.bundle.manifest import MANIFEST_FILE
from dinov3_seg_ros.support import files
from dinov3_seg_ros.support.errors import BundleError, one_line
from dinov3_seg_ros.support.hub import HUB_TIMEOUT_S, why_not_fetched
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.json_text import parse_json

_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(r"(.+)/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/([0-9a-f]{40})/(.+)")
#: Files of a repository beside those that the manifest lists: the exports, but for graphs of other programs.
_EXPORTS, _NOT_NEEDED = "onnx/*/*", "onnx/*/fused.onnx*"

#: Seconds to wait for the answer whether there is a newer commit: less, since the robot waits to start.
_NEWER_S = 2.0

_logger = logging.getLogger(__name__)
_fetched: dict[HubId, Path] = {}
_fetched_again: set[Path] = set()


@dataclass(frozen=True)
class HubId:
    """Where a bundle lies on the Hub.

    Attributes:
        repository: ``owner/name``.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_hub_id(text: str) -> HubId | None:
    """Read ``owner/name`` or ``owner/name@revision``; None for any other text, such as a path that is no id."""
    found = _ID.fullmatch(text)
    return HubId(found[1], found[2]) if found else None


def fetch_bundle(hub_id: HubId, files_of: Callable[[Path], Iterable[str]]) -> Path:
    """Fetch what is not in the Hub's cache yet, and return the folder there.

    The Hub is asked once in each process, so that a node keeps its model until it is started again; and not at all for
    a commit that is in the cache. Where the Hub cannot be asked, the copy in the cache is taken, with a warning.

    Args:
        hub_id: the bundle.
        files_of: gets the folder as soon as its manifest is there; returns the paths of the bundle's other files, or
            raises BundleError where it is no manifest.

    Raises:
        BundleError: there is no such bundle, this machine may not read it, or it cannot be fetched; says what to do.
    """
    kept = _fetched.get(hub_id)
    if kept is not None and (kept / MANIFEST_FILE).is_file():
        return kept
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise BundleError(
            f"{hub_id}: there is no such folder; if it is the name of a bundle on Hugging Face, install the extra hub "
            f"first: {how_to_install('hub')}"
        ) from error
    repository, revision, cached = hub_id.repository, hub_id.revision, None
    try:
        found = hub.try_to_load_from_cache(repository, MANIFEST_FILE, revision=revision)
        cached = folder = Path(found).parent if isinstance(found, str) else None
        is_commit = _COMMIT.fullmatch(revision or "") is not None
        if folder is None or not is_commit:
            commit = _commit_of(hub_id, None if cached is None else _NEWER_S)
            if folder is None or folder.name != commit:
                _logger.warning("fetching the bundle %s from Hugging Face", hub_id)
            folder = Path(hub.hf_hub_download(repository, MANIFEST_FILE, revision=commit)).parent
        names = list(files_of(folder))
        fetch = functools.partial(
            hub.snapshot_download,
            repository,
            revision=folder.name,  # the commit: all files are of the same one
            allow_patterns=[*names, _EXPORTS],
            ignore_patterns=_NOT_NEEDED,
        )
        # Asks nobody for a commit that is here, even where a copied cache lacks huggingface_hub's list of its files.
        is_here = is_commit and cached is not None and all((folder / name).is_file() for name in names)
        try:
            fetch(local_files_only=is_here)
        except LocalEntryNotFoundError:
            if not is_here:
                raise
            fetch()  # exports are missing
        if not is_commit:  # the branch leads to this commit in the cache only now that all of it is there
            hub.hf_hub_download(repository, MANIFEST_FILE, revision=revision)
    except BundleError:
        raise
    except Exception as error:
        why = why_not_fetched(error, MANIFEST_FILE, is_cached=cached is not None)
        if cached is None:
            raise BundleError(f"The bundle '{hub_id}' {why}. {_remedy(error, hub_id)}") from error
        folder = cached
        _logger.warning("using the bundle %s of the local cache (commit %s): it %s", hub_id, folder.name[:12], why)
    _fetched[hub_id] = folder
    return folder


def why_not_whole(path: Path, digest: str, listed_in: str, otherwise: str) -> str:
    """`files.why_not_whole` for a file of a bundle; one that is damaged in the Hub's cache is fetched again first."""
    again = how_to_get_again(path, otherwise)
    why = files.why_not_whole(path, digest, listed_in, again)
    if why and _fetch_again(path):
        why = files.why_not_whole(path, digest, listed_in, again)
    return why


def read_json(path: Path) -> Any:
    """Read a JSON file of a bundle; one that is damaged in the Hub's cache is fetched again first."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        if not _fetch_again(path):
            raise
        return parse_json(path.read_text(encoding="utf-8"))


def how_to_get_again(path: Path, otherwise: str) -> str:
    """What brings a damaged file of a bundle: ``otherwise``, but where it lies in the Hub's cache."""
    found = _CACHED.fullmatch(str(path))
    if found is None:
        return otherwise
    return (
        f"remove the local copy (hf cache rm model/{found['owner']}/{found['name']}) and load it again with a network "
        "connection; if that does not help, have it pushed again (python -m training.push)"
    )


def _fetch_again(path: Path) -> bool:
    """Fetch a file that was damaged in the Hub's cache, which is not safe from power cuts; once in each process."""
    found = _CACHED.fullmatch(str(path))
    if found is None or path in _fetched_again:
        return False
    _fetched_again.add(path)
    cache, owner, name, commit, file = found.groups()
    try:
        import huggingface_hub as hub

        _commit_of(HubId(f"{owner}/{name}", commit), HUB_TIMEOUT_S)
        _logger.warning("fetching %s from Hugging Face again: the local copy is damaged", path)
        hub.hf_hub_download(f"{owner}/{name}", file, revision=commit, cache_dir=cache, force_download=True)
    except Exception as error:
        _logger.warning("%s was not fetched again: %s", path, one_line(error))
        return False
    return True


def _commit_of(hub_id: HubId, limit_s: float | None) -> str | None:
    """Ask the Hub for the commit of a bundle, in a thread: the look-up of the Hub's address has no time-out."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(hub_id.repository, MANIFEST_FILE, revision=hub_id.revision)
    answer: Future[str | None] = Future()

    def ask() -> None:
        try:
            # Fails at once where hf_hub_download alone would try again and again, with a warning each time.
            answer.set_result(get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S).commit_hash)
        except Exception as error:
            answer.set_exception(error)

    asking = threading.Thread(target=ask, name="ask the Hub", daemon=True)
    asking.start()
    asking.join(limit_s)
    if asking.is_alive():
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return answer.result()


def _remedy(error: Exception, hub_id: HubId) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub_id.repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"Ask for access at {page} and run `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "Correct the name of the folder or repository; for a private repository run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"Name a branch, tag or commit of {page}."
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "Name a repository that `python -m training.push` has written."
    return (
        "If you meant a folder, correct its path. Try again with a network connection; from then on it is read from "
        "the local cache."
    )
