"""Uploads a bundle to the Hugging Face Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library, which releases change

from dinov3_seg_ros.bundle.hub import HubId
from dinov3_seg_ros.bundle.manifest import BACKBONE_FOLDER, DELTA_FILE, HEAD_FILE, MANIFEST_FILE
from dinov3_seg_ros.bundle.onnx_folder import EXPORTS_FOLDER
from dinov3_seg_ros.support.errors import SegmentationError, SharingError, one_line
from training.sharing.hub_card import LICENCES_FILE, hub_card, licence_notes
from training.sharing.shareable import PICTURES_FOLDER, Shareable

_CARD_FILE = "README.md"
_OWN_FOLDERS = tuple(f"{folder}/" for folder in (BACKBONE_FOLDER, EXPORTS_FOLDER, PICTURES_FOLDER))
_OWN_FILES = (MANIFEST_FILE, HEAD_FILE, DELTA_FILE, _CARD_FILE, LICENCES_FILE)


def push(shared: Shareable, hub_id: HubId, private: bool = False) -> str:
    """Upload a bundle; the repository and the branch are made where they are absent.

    What an earlier bundle left in the repository and this one does not have is removed in the same commit; git keeps
    it. Files that no bundle has, such as a page of the owner, stay.

    Args:
        shared: what to upload.
        hub_id: the repository, and its branch.
        private: whether the repository has to be private.

    Returns:
        The commit's SHA-1.

    Raises:
        SharingError: this machine may not write the repository, the repository holds something else or is public though
            it should be private, the Hub cannot be reached, or the upload fails. No file of the repository has changed.
    """
    api = HfApi()
    with _explaining(hub_id):
        api.create_repo(hub_id.repository, private=True if private else None, exist_ok=True)
        branches = {branch.name for branch in api.list_repo_refs(hub_id.repository).branches}
        new_branch = hub_id.revision if hub_id.revision not in (None, *branches) else None
        found = api.model_info(hub_id.repository, revision=None if new_branch else hub_id.revision)
        there = {file.rfilename for file in found.siblings or ()}
        if private and not found.private:
            raise SharingError(
                f"{hub_id.repository} exists and is public, and --private was asked for; nothing was uploaded. Make it "
                f"private at https://huggingface.co/{hub_id.repository}/settings, or name another repository"
            )
        foreign = sorted(name for name in there if name not in (*_OWN_FILES, ".gitattributes"))
        if MANIFEST_FILE not in there and foreign:
            raise SharingError(
                f"{hub_id} holds something else than a bundle ({', '.join(foreign[:3])}); nothing was uploaded. Name "
                "another repository"
            )
        texts = {
            MANIFEST_FILE: json.dumps(shared.bundle.manifest.model_dump(mode="json"), indent=2) + "\n",
            LICENCES_FILE: "\n".join(licence_notes(shared)) + "\n",
            _CARD_FILE: hub_card(shared, hub_id),
        }
        stale = sorted(
            name
            for name in there - set(shared.files) - set(texts)
            if name in _OWN_FILES or name.startswith(_OWN_FOLDERS)
        )
        if new_branch is not None:
            api.create_branch(hub_id.repository, branch=new_branch, exist_ok=True)
        commit = api.create_commit(
            hub_id.repository,
            [
                *(CommitOperationAdd(name, str(path)) for name, path in shared.files.items()),
                *(CommitOperationAdd(name, text.encode()) for name, text in texts.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Upload the bundle {shared.bundle.manifest.name}",
            revision=hub_id.revision,
        )
    return str(commit.oid)


@contextlib.contextmanager
def _explaining(hub_id: HubId) -> Iterator[None]:
    """Turn what huggingface_hub raises into a SharingError."""
    try:
        yield
    except SegmentationError:
        raise
    except Exception as error:  # they have no common base but Exception
        raise SharingError(f"{hub_id} was not written: {_why(error, hub_id)}") from error


def _why(error: Exception, hub_id: HubId) -> str:
    status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else None
    if status == 401:
        return "Hugging Face does not know you; run `hf auth login` with a token that may write"
    if status == 403:
        owner = hub_id.repository.partition("/")[0]
        return f"your token may not write to {owner}; run `hf auth login` with one that may, or name another owner"
    if status is not None or isinstance(error, ValueError):
        return f"Hugging Face refuses it ({one_line(error)})"
    if isinstance(error, RuntimeError):  # names the file whose upload failed; its cause says why
        reasons = [one_line(reason) for reason in (error, error.__cause__) if isinstance(reason, Exception)]
        return f"the upload failed ({' '.join(reasons)}); try again"
    what = f"{type(error).__name__}: {one_line(error)}"
    # An OSError of the network names no file.
    if isinstance(error, HTTPError) or (isinstance(error, OSError) and error.filename is None):
        return f"Hugging Face cannot be reached ({what}); try again with a connection"
    return f"the upload failed ({what})"
