"""Some of many, evenly spread."""

from __future__ import annotations


def spread(count: int, most: int | None) -> list[int]:
    """Indices of at most ``most`` items, evenly spread over ``count``; None: of all."""
    if most is None or count <= most:
        return list(range(count))
    return [(2 * place + 1) * count // (2 * most) for place in range(most)]
