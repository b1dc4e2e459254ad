"""Figures, tables and messages as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console


def percent(fraction: float | None) -> str:
    """A score in percent, for people."""
    return "undefined" if fraction is None else f"{100 * fraction:.2f} %"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a message on a line of its own, as it is: rich would wrap, colour and interpret it."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)
