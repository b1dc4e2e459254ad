"""Figures as people read them."""

from __future__ import annotations


def percent(fraction: float | None) -> str:
    """A score in percent, for people."""
    return "undefined" if fraction is None else f"{100 * fraction:.2f} %"
