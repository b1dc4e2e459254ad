"""The order in which a camera took the images of a folder, by their names."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"(\d+)")


def order_key(name: str) -> list[str | int]:
    """Sorting key of an image's name or path, in which numbers are compared as numbers: 9 goes before 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(_NUMBERS.split(name))]
