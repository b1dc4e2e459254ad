"""The table from the values of masks to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from training.data.base import ItemError
from training.data.pixels import value_colour


class LabelTable:
    """Table from the values of a mask to labels.

    Args:
        label_of: class id, or ignore value, of each allowed value; values below `VALUE_COUNT`.
        class_count: number of classes.
        name: describes a value for people, such as `as_number`.
        advice: what to do about a value that is not allowed; ends the error message.
        rest: label of all other values; None where they are not allowed.
    """

    def __init__(
        self,
        label_of: Mapping[int, int],
        class_count: int,
        name: Callable[[int], str],
        advice: str,
        rest: int | None = None,
    ) -> None:
        self._values = np.array(list(label_of), np.uint32)
        self._labels = np.array(list(label_of.values()), np.uint8 if class_count <= 255 else np.uint16)
        self._name, self._advice, self._rest = name, advice, rest

    def mapping(self) -> list[list[int]]:
        """Pairs of value and label, in the order of the values; the rest as the value -1."""
        pairs = [[int(self._values[index]), int(self._labels[index])] for index in np.argsort(self._values)]
        return pairs if self._rest is None else [*pairs, [-1, self._rest]]

    def covers(self, values: np.ndarray) -> bool:
        """Whether every value is allowed."""
        return self._rest is not None or bool(np.isin(values, self._values).all())

    def labels(self, values: np.ndarray, source: object) -> np.ndarray:
        """Labels (H, W), uint8 (uint16 above 255 classes), of the values (H, W) uint32 that ``source`` holds.

        Raises:
            ItemError: a value is not allowed.
        """
        # Zero means unknown; the last entry stands for everything beyond the largest value. The system provides zeros
        # only where they are touched, so that a table of 16 million colours costs little.
        wide = np.uint16 if self._labels.dtype == np.uint8 else np.uint32
        table = np.zeros(int(self._values.max(initial=0)) + 2, wide)
        if self._rest is not None:
            table[:] = self._rest + 1
        table[self._values] = self._labels.astype(wide) + 1
        found = table.take(values, mode="clip")
        if not found.all():
            row, column = np.argwhere(found == 0)[0]
            raise ItemError(
                f"{source} has {self._name(int(values[row, column]))} at row {row}, column {column}; {self._advice}",
                "value of no class",
            )
        return (found - 1).astype(self._labels.dtype)


def as_number(value: int) -> str:
    """Describe a value for people."""
    return f"the value {value}"


def as_colour(value: int) -> str:
    """Describe a colour for people."""
    return f"the colour {list(value_colour(value))}"


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges for people: 255, 0, 1, 2 becomes "0 to 2 and 255"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " and ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
