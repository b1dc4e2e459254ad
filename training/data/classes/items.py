"""How a recipe writes classes: for each a name, values, ranges or colours.

A class consists of *items*. An item is

- a whole number: a value of the masks;
- a range of values, such as ``"7-12"``;
- a colour, ``[r, g, b]`` or ``"#rrggbb"``;
- the name of a class that the folder itself names;
- ``rest``: all values that no other item covers.

A class may have one item or a list of them. A list of three numbers of 0 to 255 is a colour if all lists of numbers
of the classes are such; otherwise its numbers are values, as they are if one of them is written as a range:
``[7, 12, 13-13]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from dinov3_seg_ros.frames.classes import VALUE_COUNT, Colour, checked_line
from dinov3_seg_ros.frames.image_files import colour_value

_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_HEX_COLOUR = re.compile(r"#([0-9a-fA-F]{6})")
_REST = "rest"
_AUTO = "auto"


@dataclass
class Items:
    """What belongs to a class.

    Attributes:
        values: values of masks.
        colours: colours of masks, as `colour_value` gives them, the first of which is the class's own.
        names: classes that the folder names.
        rest: whether all that no other items cover belongs to it too.
    """

    values: list[int] = field(default_factory=list)
    colours: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rest: bool = False


def hexadecimal_colour(text: str) -> Colour | None:
    """The colour that a text ``#rrggbb`` stands for; None where it is none."""
    found = _HEX_COLOUR.fullmatch(text.strip())
    if found is None:
        return None
    red, green, blue = bytes.fromhex(found[1])
    return red, green, blue


def checked_name(name: Any) -> str:
    """The name of a class as it stands in YAML.

    Raises:
        ValueError: it is empty or holds control characters, or YAML did not take it for text.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"a class has the name {name!r}, which is no text: YAML takes no, off, yes and on for truth values, and "
            "null and numbers for themselves; put the names in quotes"
        )
    if not name.strip():
        raise ValueError("a class has an empty name; name it, or remove it")
    return checked_line(name)


def parse_classes(written: Any) -> dict[str, Items | None]:
    """The items of each class, in the order of their ids; None for a class of a mere list of names.

    Args:
        written: a list of names; a mapping from names to items; or a mapping from values to names.

    Raises:
        ValueError: it is something else, or an item cannot be understood.
    """
    if isinstance(written, Mapping) and written and all(_is_number(key) for key in written):
        written = _by_name(written)
    if isinstance(written, Mapping) and written:
        colours = _lists_are_colours(written.values())
        parsed: dict[str, Items | None] = {}
        for key, value in written.items():
            name = str(key)
            if name in parsed:
                raise ValueError(f"two classes have the name '{name}'; rename one, or remove it")
            parsed[name] = _items(value, f"the class '{name}'", name, colours)
        return parsed
    if isinstance(written, list | tuple) and written and all(isinstance(name, str) for name in written):
        for name in written:
            if written.count(name) > 1:
                raise ValueError(f"two classes have the name '{name}'; rename one, or remove it")
        return dict.fromkeys(written)
    raise ValueError("write a list of class names, or a mapping of names to values or colours, such as {road: [7, 12]}")


def parse_ignored(written: Any) -> Items | None:
    """The items of ``ignore``; None for ``auto``. A colour in a list stands in brackets of its own.

    Raises:
        ValueError: an item cannot be understood.
    """
    if written == _AUTO or written == [_AUTO]:
        return None
    return _items(written, "ignore", None, colours=False)


def _checked_names(written: Any) -> Any:
    """Refuse names that pydantic would not, or would take for something else."""
    names: list[Any] = []
    if isinstance(written, Mapping):
        names = [key for key in written if not _is_number(key)]
    elif isinstance(written, list | tuple):
        names = list(written)
    for name in names:
        checked_name(name)
    return written


def _checked_classes(written: Any) -> Any:
    if written is not None:
        parse_classes(written)
    return written


def _checked_ignored(written: Any) -> Any:
    parse_ignored(written)
    return written


#: Types of the keys ``classes`` and ``ignore`` of a recipe; the value stays as it was written.
WrittenClasses: TypeAlias = Annotated[
    dict[str | int, Any] | list[str] | None, BeforeValidator(_checked_names), AfterValidator(_checked_classes)
]
WrittenIgnored: TypeAlias = Annotated[Any, AfterValidator(_checked_ignored)]


def _by_name(written: Mapping[Any, Any]) -> dict[str, list[int]]:
    """Turn {7: road, 12: road} into {road: [7, 12]}, with colours impossible."""
    values: dict[str, list[Any]] = {}
    for value, name in written.items():
        if isinstance(name, int | list | tuple) and not isinstance(name, bool):
            raise ValueError(f"{value}: {name} is no name of a class; write {{VALUE: NAME}} or {{NAME: VALUE}}")
        values.setdefault(checked_name(name), []).append(int(value))
    # A list in the list keeps three values from being a colour.
    return {name: [f"{value}-{value}" for value in found] for name, found in values.items()}  # type: ignore[misc]


def _lists_are_colours(entries: Any) -> bool:
    """Whether every list of numbers among the entries is a colour."""
    lists = [entry for entry in entries if isinstance(entry, list | tuple) and all(map(_is_number, entry))]
    return all(len(entry) == 3 and all(int(number) <= 255 for number in entry) for entry in lists)


def _items(written: Any, owner: str, name: str | None, colours: bool) -> Items:
    items = Items()
    if written is None and name is not None:
        items.names.append(name)
    elif colours and isinstance(written, list | tuple) and all(map(_is_number, written)) and written:
        items.colours.append(_colour(written, owner))
    else:
        for item in written if isinstance(written, list | tuple) else [written]:
            _add(item, items, owner)
    return items


def _add(item: Any, items: Items, owner: str) -> None:
    if isinstance(item, list | tuple):
        items.colours.append(_colour(item, owner))
    elif _is_number(item):
        items.values.append(_value(int(item), owner))
    elif not isinstance(item, str):
        raise ValueError(
            f"{owner} has {item!r}; write values (7), ranges ('7-12'), colours ([r, g, b] or '#rrggbb'), names or rest"
        )
    elif found := _RANGE.fullmatch(item.strip()):
        first, last = (_value(int(number), owner) for number in found.groups())
        if last < first:
            raise ValueError(f"{owner} has the range {item}, which ends before it begins")
        items.values += range(first, last + 1)
    elif (colour := hexadecimal_colour(item)) is not None:
        items.colours.append(colour_value(colour))
    elif item == _REST:
        items.rest = True
    else:
        items.names.append(item)


def _colour(written: Sequence[Any], owner: str) -> int:
    numbers = [int(number) for number in written if _is_number(number)]
    if len(numbers) != 3 or len(written) != 3 or max(numbers) > 255:
        raise ValueError(f"{owner} has the colour {list(written)}; write it as [r, g, b], each of 0 to 255")
    colour: Colour = (numbers[0], numbers[1], numbers[2])
    return colour_value(colour)


def _value(number: int, owner: str) -> int:
    if number >= VALUE_COUNT:
        raise ValueError(f"{owner} has the value {number}; values of masks are below {VALUE_COUNT}")
    return number


def _is_number(item: Any) -> bool:
    """Whether an item is a number of at least 0; on a command line, numbers are words."""
    return (isinstance(item, int) and not isinstance(item, bool) and item >= 0) or (
        isinstance(item, str) and item.isdecimal()
    )
