"""Classes of two sides, such as 'left lane' and 'right lane', which trade places when an image is mirrored."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LEFT = re.compile(r"(?<![a-z])left(?![a-z])", re.IGNORECASE)


def opposite_sides(names: Sequence[str]) -> list[tuple[int, int]]:
    """The ids of each class of the left side and of its counterpart.

    Args:
        names: of all classes, by id; upper and lower case are the same.
    """
    ids = {name.casefold(): index for index, name in enumerate(names)}
    twins = [_LEFT.sub("right", name).casefold() for name in names]
    return [
        (index, ids[twin])
        for index, (name, twin) in enumerate(zip(names, twins, strict=True))
        if twin != name.casefold() and twin in ids
    ]
