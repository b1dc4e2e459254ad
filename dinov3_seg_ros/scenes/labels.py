"""The classes of the indoor scenes and the colours that show them."""

from __future__ import annotations

import enum


class Label(enum.IntEnum):
    """Class id of a pixel, as it stands in a mask."""

    FLOOR = 0
    WALL = 1
    CEILING = 2
    DOOR = 3
    WINDOW = 4
    TABLE = 5
    CHAIR = 6
    CABINET = 7
    PERSON = 8
    PLANT = 9
    BOX = 10


CLASS_NAMES: tuple[str, ...] = tuple(label.name.lower() for label in Label)
"""Name of each class; the position is the class id."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 100, 160),
    (170, 170, 170),
    (235, 225, 190),
    (150, 85, 40),
    (90, 190, 250),
    (240, 140, 30),
    (230, 60, 60),
    (40, 90, 200),
    (250, 80, 200),
    (50, 170, 60),
    (250, 220, 50),
)
"""RGB colour (0..255) of each class, in the order of ``CLASS_NAMES``."""
