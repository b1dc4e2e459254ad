"""The order in which a camera took the images of a folder, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TypeVar

_Item = TypeVar("_Item")

# Unix seconds have a fraction: 1700000000.25 goes before 1700000000.5, though scene_1.9 goes before scene_1.10.
_NUMBERS = re.compile(r"((?<!\d)\d{10}\.\d+|\d+)")
_WHOLE_NUMBERS = re.compile(r"(\d+)")
_WITH_NANOSECONDS = re.compile(r"(?<!\d)\d{10}\.\d{9}(?!\d)")


def in_order(items: Iterable[_Item], name_of: Callable[[_Item], str]) -> list[_Item]:
    """Sort items by their names or paths, in which numbers are compared as numbers: 9 goes before 10.

    A name may be a time stamp, its seconds and nanoseconds as whole numbers or as a decimal number. Where any has nine
    digits after the point, all have nanoseconds there, from which zeros at the front may be gone.
    """
    items = list(items)
    numbers = _WHOLE_NUMBERS if any(_WITH_NANOSECONDS.search(name_of(item)) for item in items) else _NUMBERS

    def key(item: _Item) -> list[str | Decimal]:
        return [Decimal(part) if place % 2 else part for place, part in enumerate(numbers.split(name_of(item)))]

    return sorted(items, key=key)
