"""Names and colours of classes, in the order of their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dinov3_seg_ros.errors import DatasetError
from dinov3_seg_ros.overlay import default_palette
from training.datasets.base import Colour

Classes: TypeAlias = dict[str, Colour] | list[str]

_FOLDER = Path(__file__).parent / "classes"


def known_classes(name: str) -> dict[str, Colour]:
    """The classes of a published data set: training/datasets/classes/<name>.yaml."""
    return read_classes(_FOLDER / f"{name}.yaml")


def read_classes(path: Path) -> Classes:
    """A YAML file with a list of class names, or a mapping of names to colours [r, g, b].

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path} cannot be read as YAML: {error}") from error
    return _checked(content, path)


def names_and_colours(classes: Classes) -> tuple[list[str], list[Colour]]:
    """Class names and colours of either form."""
    if isinstance(classes, dict):
        return list(classes), list(classes.values())
    return list(classes), default_palette(len(classes))


def _checked(classes: Any, path: Path) -> Classes:
    if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
        return classes
    if isinstance(classes, dict) and classes:
        try:
            colours = {str(name): tuple(map(int, colour)) for name, colour in classes.items()}
        except (TypeError, ValueError):
            colours = {}
        if colours and all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in colours.values()):
            return colours
    raise DatasetError(
        f"{path} must hold a list of class names, or a mapping of names to colours [r, g, b] of 0 to 255"
    )
