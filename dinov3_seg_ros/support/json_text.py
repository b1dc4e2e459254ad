"""Reads JSON that others have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON text.

    Args:
        object_hook: see `json.loads`.

    Raises:
        ValueError: it is no JSON, or is nested more deeply than Python can read; the message is one line.
    """
    try:
        return json.loads(text, object_hook=object_hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
