"""The Hugging Face Hub: how long to wait for it, and what it means when it refuses.

Importing this module does not import huggingface_hub, which a robot may lack.
"""

from __future__ import annotations

import errno
import os

from dinov3_seg_ros.support.errors import one_line

#: Seconds to wait for an answer.
HUB_TIMEOUT_S = 10.0

_DISK_FAULTS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)


def why_not_fetched(error: Exception, name: str, *, is_cached: bool = False) -> str:
    """What kept a file of a repository from being fetched, as the rest of a sentence about the repository.

    Args:
        error: what huggingface_hub raised.
        name: of the file.
        is_cached: whether the local cache holds an earlier copy of it.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "is gated and this machine has no access to it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"does not exist on Hugging Face (or is private), nor is there such a path in {os.getcwd()}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision on Hugging Face"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"has no {name} on Hugging Face"
    if isinstance(error, errors.HfHubHTTPError):
        return f"was refused by Hugging Face ({one_line(error)})"
    if isinstance(error, errors.HFValidationError):
        return f"has a name that Hugging Face does not allow ({one_line(error)})"
    if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
        return f"cannot be stored in the local cache ({one_line(error)})"
    unreachable = f"cannot be reached on Hugging Face ({type(error).__name__}: {one_line(error)})"
    return unreachable if is_cached else f"is no path in {os.getcwd()}, is not in the local cache, and {unreachable}"
