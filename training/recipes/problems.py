"""Describe a validation error in the words of a recipe."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from dinov3_seg_ros.support.errors import nearest
from training.support.section import Section


def describe_problem(error: ValidationError, section: type[Section]) -> str:
    """Describe the first problem that pydantic found; for a typo, name the nearest key."""
    problem = error.errors()[0]
    if problem["type"] == "extra_forbidden":
        path, owner = _follow(problem["loc"][:-1], section)
        if owner is not None:
            key, known = str(problem["loc"][-1]), list(owner.model_fields)
            inside = f" in {'.'.join(path)}" if path else ""
            return f"unknown key '{key}'{inside}{nearest(key, known)}; the keys are: {', '.join(known)}"
    path, _ = _follow(problem["loc"], section)
    # For a key of several types pydantic reports one problem for each type.
    said = " or ".join(
        other["msg"].removeprefix("Value error, ")
        for other in error.errors()
        if _follow(other["loc"], section)[0] == path
    )
    return f"{'.'.join(path)}: {said}" if path else said


def _follow(location: Sequence[int | str], section: type[Section]) -> tuple[list[str], type[Section] | None]:
    """Translate pydantic's location of a problem into the keys that a user writes, and the section they lead to."""
    path, candidates = [], [section]
    for part in location:
        fields = [kind.model_fields[part] for kind in candidates if part in kind.model_fields]
        if fields:
            path.append(str(part))
            candidates = _sections_in(fields[0].annotation)
        elif isinstance(part, int):
            path.append(str(part))
        else:  # pydantic names the member of a union by its discriminator
            candidates = [kind for kind in candidates if kind.model_fields["name"].default == part]
    return path, candidates[0] if len(candidates) == 1 else None


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for argument in typing.get_args(annotation) for kind in _sections_in(argument)]
