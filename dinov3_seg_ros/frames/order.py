"""The order in which a camera took the images of a folder, by their names."""

from __future__ import annotations

import re
from decimal import Decimal

# Unix seconds have a fraction: 1700000000.25 goes before 1700000000.5, though scene_1.9 goes before scene_1.10.
_NUMBERS = re.compile(r"((?<!\d)\d{10}\.\d+|\d+)")


def order_key(name: str) -> list[str | Decimal]:
    """Sorting key of an image's name or path, in which numbers are compared as numbers: 9 goes before 10."""
    return [Decimal(part) if place % 2 else part for place, part in enumerate(_NUMBERS.split(name))]
