"""Names and colours of classes, in the order of their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dinov3_seg_ros.frames.classes import default_palette
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Colour

Classes: TypeAlias = dict[str, Colour] | list[str]

_FOLDER = Path(__file__).parent / "classes"


def known_classes(name: str) -> dict[str, Colour]:
    """Classes of a published data set, from training/data/classes/<name>.yaml.

    Raises:
        DatasetError: the file gives a class no colour.
    """
    path = _FOLDER / f"{name}.yaml"
    classes = read_classes(path)
    if isinstance(classes, list):
        raise DatasetError(f"{path} must give every class a colour: write a mapping of names to [r, g, b]")
    return classes


def read_classes(path: Path) -> Classes:
    """Read a YAML file with a list of class names, or a mapping of names to colours [r, g, b].

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: the file holds something else; see `checked_classes`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path} cannot be read as YAML: {error}") from error
    return checked_classes(content, str(path))


def checked_classes(classes: Any, source: str) -> Classes:
    """Return classes written by a person, after checking that a bundle can hold them.

    Args:
        classes: a list of names, or a mapping of names to colours.
        source: where they were written, for messages.

    Raises:
        DatasetError: the value is something else, a colour is out of 0..255, or two classes have the same name.
    """
    if isinstance(classes, dict):
        names = [str(name) for name in classes]
    elif isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        names = classes
    else:
        names = []
    if not names:
        raise DatasetError(
            f"{source} must hold a list of class names, or a mapping of names to colours [r, g, b] of 0 to 255"
        )
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"{source} gives the name '{name}' to two classes; rename one, or remove it")
    if names is classes:
        return classes
    return {name: _checked_colour(value, name, source) for name, value in zip(names, classes.values(), strict=True)}


def names_and_colours(classes: Classes) -> tuple[list[str], list[Colour]]:
    """Names and colours of classes in either form; names alone get the default palette."""
    if isinstance(classes, dict):
        return list(classes), list(classes.values())
    return list(classes), default_palette(len(classes))


def _checked_colour(value: Any, name: str, source: str) -> Colour:
    try:
        red, green, blue = map(int, value)
    except (TypeError, ValueError):
        red = green = blue = -1
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise DatasetError(f"{source} gives '{name}' the colour {value}; write it as [r, g, b], each of 0 to 255")
    return red, green, blue
