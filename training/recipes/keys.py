"""The keys of a section that a command line can change, such as ``optimizer.lr``, and what their values may be."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from training.support.section import Section

#: Stands for the position of a section in a list, where none is given.
POSITION = "N"
#: Stands for the name of an entry in a mapping whose entries no schema knows, such as the options of a head.
ENTRY = "NAME"

_NONE = type(None)
_WORDS_OF_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "TRUE|FALSE", _NONE: "null", Any: "VALUE"}

#: What annotations hold: a class, or a form such as ``tuple[int, int]``, which has no class of its own.
Kind = Any


class Key(NamedTuple):
    """One key.

    Attributes:
        name: as in a recipe, with dots.
        kinds: what its value may be.
        description: of the section's field.
        value: the present one; None where there is none.
    """

    name: str
    kinds: tuple[Kind, ...]
    description: str
    value: Any

    @property
    def placeholder(self) -> str:
        """What a value looks like, for people."""
        return "|".join(_placeholder(kind) for kind in self.kinds)


def list_keys(section: Section | type[Section], prefix: str = "") -> Iterator[Key]:
    """All keys of a section, in the order of its fields.

    Args:
        section: a class for the keys of every section that it may hold, or an instance for those that it does hold.
        prefix: begins every name.
    """
    model = section if isinstance(section, type) else type(section)
    for name, field in model.model_fields.items():
        present = None if isinstance(section, type) else getattr(section, name)
        kinds, path = _members(field.annotation), f"{prefix}{name}"
        values = _value_kinds(kinds)
        if values:
            default = field.get_default() if isinstance(section, type) and not field.is_required() else present
            yield Key(path, values, field.description or "", default)
        if any(_is_open_mapping(kind) for kind in kinds):
            yield Key(f"{path}.{ENTRY}", (Any,), field.description or "", None)
        if isinstance(section, type):
            yield from _of_classes(kinds, path)
        elif isinstance(present, Section):
            yield from list_keys(present, f"{path}.")
        elif isinstance(present, list | tuple):
            for position, item in enumerate(present):
                if isinstance(item, Section):
                    yield from list_keys(item, f"{path}.{position}.")


def find_kinds(section: type[Section], name: str) -> tuple[Kind, ...]:
    """What the value of a key may be in any section of a class; empty where there is no such key.

    Args:
        section: the class.
        name: of the key, with ``-`` or ``_``.
    """
    kinds: tuple[Kind, ...] = (section,)
    for part in name.replace("-", "_").split("."):
        kinds = tuple(kind for parent in kinds for kind in _follow(parent, part))
    return _value_kinds(kinds)


def value_count(kinds: Sequence[Kind]) -> int | None:
    """How many words make a value; None where that is open."""
    lengths = {_length(kind) for kind in kinds if kind is not _NONE}
    return lengths.pop() if len(lengths) == 1 else None


def value_of(words: Sequence[str], kinds: Sequence[Kind]) -> Any:
    """The value that words stand for, for pydantic to convert and check.

    Args:
        words: at least one.
        kinds: what the value may be.

    Raises:
        ValueError: there are several words, and no list is possible.
    """
    several = [kind for kind in kinds if _length(kind) != 1]
    if len(words) > 1:
        if not several:
            raise ValueError("it takes one value")
        return list(words)
    literals = [value for kind in kinds if _origin(kind) is typing.Literal for value in typing.get_args(kind)]
    if words[0] in literals:
        return words[0]
    if words[0] in ("null", "None") and _NONE in kinds:
        return None
    only_lists = all(kind in several or kind is _NONE or _origin(kind) is typing.Literal for kind in kinds)
    return list(words) if several and only_lists else words[0]


def _of_classes(kinds: Sequence[Kind], path: str) -> Iterator[Key]:
    """The keys of every section that a field may hold, each name once."""
    found: dict[str, Key] = {}
    for kind in kinds:
        for prefix, model in [(f"{path}.", kind), *((f"{path}.{POSITION}.", item) for item in _item_kinds(kind))]:
            if _is_section(model):
                for key in list_keys(model, prefix):
                    found.setdefault(key.name, key)
    yield from found.values()


def _follow(kind: Kind, part: str) -> tuple[Kind, ...]:
    if _is_section(kind):
        return _members(kind.model_fields[part].annotation) if part in kind.model_fields else ()
    if part.isdecimal():
        return tuple(item for item in _item_kinds(kind) if _is_section(item))
    return (Any,) if _is_open_mapping(kind) and part.isidentifier() else ()


def _members(annotation: Kind) -> tuple[Kind, ...]:
    """The members of a union; anything else is its own only member."""
    origin = _origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for member in typing.get_args(annotation) for kind in _members(member))
    return (annotation,)


def _value_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Those kinds that words can stand for; empty where nothing is left to choose."""
    found = tuple(kind for kind in kinds if _is_value(kind))
    # null alone, and the name of a section, which is its only one, are for the file to say.
    choices = {value for kind in found for value in typing.get_args(kind) if _origin(kind) is typing.Literal}
    is_open = any(_origin(kind) is not typing.Literal and kind is not _NONE for kind in found)
    return found if is_open or len(choices) > 1 else ()


def _is_value(kind: Kind) -> bool:
    if _origin(kind) is typing.Literal:
        return True
    if _length(kind) != 1:
        return all(item in _WORDS_OF_TYPES for item in _item_kinds(kind))
    return kind in _WORDS_OF_TYPES


def _length(kind: Kind) -> int | None:
    """How many words make a value of this kind; None for any number."""
    if kind is Any or _origin(kind) is list:
        return None
    if _origin(kind) is not tuple:
        return 1
    items = typing.get_args(kind)
    return None if Ellipsis in items else len(items)


def _origin(kind: object) -> Any:
    """The form of an annotation, such as ``tuple`` for ``tuple[int, int]``; None for a class."""
    return typing.get_origin(kind)


def _item_kinds(kind: Kind) -> tuple[Kind, ...]:
    """What the items of a list or tuple may be."""
    if _origin(kind) not in (list, tuple):
        return ()
    return tuple(member for item in typing.get_args(kind) if item is not Ellipsis for member in _members(item))


def _is_section(kind: Kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _is_open_mapping(kind: Kind) -> bool:
    return _origin(kind) is dict and typing.get_args(kind)[1] is Any


def _placeholder(kind: Kind) -> str:
    if _origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if _length(kind) == 1 or kind is Any:
        return _WORDS_OF_TYPES[kind]
    items = [_WORDS_OF_TYPES[item] for item in _item_kinds(kind)]
    return " ".join(items) if _length(kind) else f"{items[0]} ..."
