"""What differs between two nested settings."""

from __future__ import annotations

from typing import Any


def differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Differences of two nested mappings: (dotted key, value before, value after); None for an absent key."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in {**before, **after}
            for difference in differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        return differences(dict(enumerate(before)), dict(enumerate(after)), prefix)
    return [] if before == after else [(prefix, before, after)]
