"""Figures and tables as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def percent(fraction: float | None) -> str:
    """A score in percent, for people."""
    return "undefined" if fraction is None else f"{100 * fraction:.2f} %"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
