"""One clear message when results cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dinov3_seg_ros.errors import OutputError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, a failure to write ``path`` becomes an OutputError. What is written must replace ``path`` atomically."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be written ({error}); what was there before is unchanged. Free some space, or write to "
            "another folder"
        ) from error
