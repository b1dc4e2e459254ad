"""Settings on the command line: ``--optimizer.lr 1e-3`` changes a key of a recipe, or of any other section."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from dinov3_seg_ros.support.command_line import CommandParser, UsageError
from dinov3_seg_ros.support.errors import RecipeError, SegmentationError, nearest
from dinov3_seg_ros.support.yaml_text import parse_yaml
from training.recipes.keys import ENTRY, find_kinds, list_keys, value_count, value_of
from training.recipes.problems import describe_problem
from training.support.section import Section

AnySection = TypeVar("AnySection", bound=Section)


class OverrideError(RecipeError, UsageError):
    """A setting on the command line that cannot be used."""


class SettingsParser(CommandParser):
    """A parser that takes, beside its own options, every key of a section as one.

    A key takes one word, or as many as its value has items. ``-`` and ``_`` mean the same in it.

    Args:
        module, documentation, usage: see `CommandParser`.
        schema: the section.
        read_section: gives the section whose values ``--help`` shows, from the parsed arguments and the overrides;
            None where the keys are shown alone.
    """

    def __init__(
        self,
        module: str,
        documentation: str | None,
        usage: str,
        schema: type[Section],
        read_section: Callable[[argparse.Namespace, list[str]], Section] | None = None,
    ) -> None:
        super().__init__(module, documentation, usage)
        self._schema, self._read_section = schema, read_section

    def value_count(self, option: str) -> int | None:
        """See `CommandParser.value_count`."""
        if option in self.known_options():
            return super().value_count(option)
        kinds = find_kinds(self._schema, option[2:])
        if not kinds:
            known = [*self.known_options(), *(f"--{key.name}" for key in list_keys(self._schema))]
            raise UsageError(
                f"unknown option {option}{nearest(option, known)}; --help lists all. What it does not list, such as "
                "the name of an optimizer or a loss, must be written in the recipe"
            )
        return value_count(kinds)

    def parse_settings(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The arguments of a command line, and the overrides, for `apply_overrides`.

        Raises:
            UsageError: what is wrong with it.
        """
        options, positionals = self.split(words)
        known = self.known_options()
        own = [option for option in options if option[0] in known]
        overrides = [word for option in options if option[0] not in known for word in option]
        return self.parse_split(own, positionals), overrides

    def show_help(self, words: Sequence[str]) -> None:
        """Print the options and the keys, with the values that they have after ``words``."""
        shown: Section | type[Section] = self._schema
        if self._read_section is not None:
            with contextlib.suppress(SegmentationError):  # the keys alone help as well
                shown = self._read_section(*self.parse_settings(words))
        group, label = self.add_argument_group("keys"), "default" if isinstance(shown, type) else "now"
        for key in list_keys(shown):
            value = "" if key.value in (None, "", ()) else f" ({label}: {_shown(key.value)})"
            text = f"{' '.join(key.description.split())}{value}".replace("%", "%%")
            group.add_argument(f"--{key.name}", metavar=key.placeholder, help=text or " ")
        self.print_help()


def separated(overrides: Sequence[str]) -> list[str]:
    """The words of overrides with ``--key=value`` in two, ``--key`` and ``value``."""
    return [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]


def apply_overrides(section: AnySection, overrides: Sequence[str], advice: str = "") -> AnySection:
    """A copy of a section with command-line overrides applied.

    Args:
        section: a `Recipe` or any other section.
        overrides: such as ``["--optimizer.lr", "1e-3"]``, each key followed by its words.
        advice: what to do about a key that the section does not have.

    Raises:
        OverrideError: unknown key or wrong value.
    """
    if not overrides:
        return section
    content = section.model_dump()
    for key, words in _grouped(overrides):
        content = _with_value(section, content, key, words, advice)
    try:
        return type(section).model_validate(content)
    except ValidationError as error:
        raise OverrideError(f"cannot use {' '.join(overrides)}: {describe_problem(error, type(section))}") from error


def _grouped(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    for word in separated(overrides):
        if word.startswith("--"):
            groups.append((word, []))
        elif groups:
            groups[-1][1].append(word)
        else:
            raise OverrideError(f"cannot use {word}: it belongs to no key; write --key {word}")
    return groups


def _with_value(section: Section, content: dict[str, Any], key: str, words: list[str], advice: str) -> dict[str, Any]:
    """The content of a section with one key changed."""
    name = key[2:].replace("-", "_")
    known = {found.name: found.kinds for found in list_keys(section)}
    parent, _, entry = name.rpartition(".")
    if not words:
        raise OverrideError(f"{key} has no value; give one")
    if name in known:
        try:
            value = value_of(words, known[name])
        except ValueError as error:
            raise OverrideError(f"cannot use {key} {' '.join(words)}: {error}") from error
    elif f"{parent}.{ENTRY}" in known and entry.isidentifier():
        try:
            values = [parse_yaml(word) for word in words]
        except ValueError as error:
            raise OverrideError(f"cannot use {key} {' '.join(words)}: it is no YAML ({error})") from error
        value = values[0] if len(values) == 1 else values
    else:
        hint = nearest(key, [f"--{other}" for other in known])
        raise OverrideError(f"unknown key {key}{hint}{f'; {advice}' if advice else ''}")
    changed: dict[str, Any] = _replaced(content, name.split("."), value, key)
    return changed


def _replaced(content: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """The content of a section, list or mapping with the value at a path in it replaced."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if content is None:
        raise OverrideError(f"cannot use {key}: what holds it is null; write it in the recipe")
    if isinstance(content, list | tuple):
        position = int(first)
        return [_replaced(item, rest, value, key) if i == position else item for i, item in enumerate(content)]
    return {**content, first: _replaced(content.get(first), rest, value, key)}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
