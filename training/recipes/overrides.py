"""Settings on the command line: ``--optimizer.lr 1e-3`` changes a key of a recipe, or of any other section."""

from __future__ import annotations

import contextlib
import io
import operator
import re
import warnings
from collections.abc import Sequence
from typing import TypeVar

import tyro
import yaml
from pydantic import ValidationError

from dinov3_seg_ros.support.errors import RecipeError
from training.recipes.problems import describe_problem
from training.recipes.schema import Recipe
from training.support.section import Section

# Mappings whose keys are those of another module's function or class.
_FREE_KEY = re.compile(r"--(head\.options|backbone\.config)\.(\w+)")
AnySection = TypeVar("AnySection", bound=Section)


def separated(overrides: Sequence[str]) -> list[str]:
    """The words of a command line with ``--key=value`` in two, ``--key`` and ``value``."""
    return [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]


def apply_overrides(section: AnySection, overrides: Sequence[str], advice: str = "") -> AnySection:
    """A copy of a section with command-line overrides applied; ``--help`` among them prints the keys and exits.

    Args:
        section: a `Recipe` or any other section.
        overrides: such as ``["--optimizer.lr", "1e-3"]``.
        advice: what to do about a key that the section does not have, or not for such a value.

    Raises:
        RecipeError: unknown key or wrong value.
    """
    if not overrides:
        return section
    if "--help" in overrides:
        return _parse(section, overrides)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return _parse(section, overrides)
    except SystemExit:
        raise RecipeError(f"cannot use {' '.join(overrides)}\n{complaint.getvalue()}{advice}") from None
    except ValidationError as error:
        raise RecipeError(f"cannot use {' '.join(overrides)}: {describe_problem(error, type(section))}") from error


def apply_free_overrides(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """Write overrides of keys that no schema knows, such as a head's options, into the recipe; return the others."""
    others, words = [], list(overrides)
    while words:
        word = words.pop(0)
        match = _FREE_KEY.fullmatch(word)
        if match is None:
            others.append(word)
            continue
        values = []
        while words and not words[0].startswith("--"):
            values.append(yaml.safe_load(words.pop(0)))
        path, key = match.groups()
        settings = operator.attrgetter(path)(recipe)
        if settings is None:
            raise RecipeError(f"cannot use {word}: the recipe has no {path}")
        settings[key] = values[0] if len(values) == 1 else values
    return others


def _parse(section: AnySection, overrides: Sequence[str]) -> AnySection:
    # Every option is "--key value": no subcommands where a recipe chooses between sections, no flags.
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the names of subcommands, which are not used
        return tyro.cli(type(section), default=section, args=list(overrides), config=config)
