"""Names and colours of classes, from the files in which data sets and tools keep them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dinov3_seg_ros.frames.classes import Colour
from dinov3_seg_ros.frames.image_files import colour_value
from dinov3_seg_ros.support.errors import DatasetError
from training.data.classes.items import checked_name, hexadecimal_colour
from training.data.classes.map import SourceClass, SourceClasses
from training.data.reading.content import read_csv, read_json, read_text, read_yaml
from training.data.reading.tree import Tree

#: Name of the class of what no shape covers.
BACKGROUND = "background"
# labelme's names for what is no object, and for what is not to be learnt.
_BACKGROUND_NAMES = ("_background_", "__background__")
_IGNORED_NAMES = ("__ignore__", "_ignore_")

_FOLDER = Path(__file__).parent
_SEPARATORS = re.compile(r"[\s,;:]+")
_NUMBERED = re.compile(r"(\d+)[.)]?[\s,;:=][\s,;:=-]*(.+)")
# Words of a line that is the head of columns.
_HEAD_WORDS = {"id", "index", "value", "name"}


def known_classes(name: str) -> dict[str, Colour]:
    """Classes of a published data set, from training/data/classes/<name>.yaml."""
    return {key: (colour[0], colour[1], colour[2]) for key, colour in read_yaml(_FOLDER / f"{name}.yaml").items()}


def published_classes(
    name: str, values: Sequence[int | None], ignored: Iterable[int] = (), ignored_colours: Iterable[Colour] = ()
) -> SourceClasses:
    """Classes of a published data set whose masks hold numbers.

    Args:
        name: see `known_classes`.
        values: the number of each class; None for a class of which no pixel is.
        ignored, ignored_colours: numbers and colours of no class.
    """
    entries = [
        SourceClass(key, () if value is None else (value,), (colour_value(colour),))
        for (key, colour), value in zip(known_classes(name).items(), values, strict=True)
    ]
    of_no_class = SourceClass("", tuple(ignored), tuple(map(colour_value, ignored_colours)))
    return SourceClasses(tuple(entries), f"the data set {name}", of_no_class)


def find_classes(tree: Tree) -> SourceClasses:
    """The classes that a file of the folder names; none where there is no such file.

    Raises:
        DatasetError: the file holds something else, or another file of its name differs.
    """
    found = _listed(tree)
    return agreed(found) if found else SourceClasses()


def agreed(lists: Sequence[SourceClasses]) -> SourceClasses:
    """The classes of several lists for labels of the same kind, such as those of two exports side by side.

    Raises:
        DatasetError: two of them differ, so that one value or colour would mean two classes.
    """
    first = lists[0]
    other = next((listed for listed in lists if set(listed.classes) != set(first.classes)), None)
    if other is not None:
        entry = next(iter(set(first.classes) ^ set(other.classes)))
        raise DatasetError(
            f"{first.origin} and {other.origin} differ in the names, values or colours of classes, such as "
            f"'{entry.name}'; make them the same, with their labels, or train on one of the two folders"
        )
    return first


def _listed(tree: Tree) -> list[SourceClasses]:
    """What the files of the surest name list, those nearest to the root first."""
    for file_name, read in READERS.items():
        found = tree.named(file_name)
        if found:
            return [read(tree.path(name)) for name in found]
    return []


def classes_of_shapes(names: Iterable[str], origin: str) -> SourceClasses:
    """Classes of shapes that have names, of which each may be there more than once: the background, then these.

    Args:
        names: in the order of the classes.
        origin: where they stand, for messages.
    """
    return SourceClasses.of_names(list(dict.fromkeys([BACKGROUND, *names])), origin, drawn=True)


def drawn_classes(tree: Tree, labels: Iterable[str], origin: str) -> SourceClasses:
    """Classes of shapes that have labels: the background, those that files of the folder name, then the others.

    Args:
        tree: the folder.
        labels: of all shapes; the others follow in the order of the alphabet.
        origin: where they stand, for messages.
    """
    listed = [entry.name for found in _listed(tree) for entry in found.classes]
    return classes_of_shapes([*listed, *sorted(labels)], origin)


def plain_name(name: str) -> str:
    """The name of a class without the underscores that labelme puts around the background's."""
    return BACKGROUND if name in _BACKGROUND_NAMES else name


def is_ignored_name(name: str) -> bool:
    """Whether a name stands for what is not to be learnt, as labelme and its relatives write it."""
    return name in _IGNORED_NAMES


def read_yaml_classes(path: Path) -> SourceClasses:
    """Classes of a YAML file: a list of names, a mapping of names to colours [r, g, b] or "#rrggbb" or to values, or
    Ultralytics' ``names``.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    content = read_yaml(path)
    if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
        content = content["names"]
        if isinstance(content, dict):
            try:
                entries = [SourceClass(str(name), (int(value),)) for value, name in content.items()]
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{path}: `names` must map numbers to names ({error})") from error
            _check_names(content.values(), path)
            return SourceClasses(tuple(entries), str(path))
    if isinstance(content, dict) and content:
        _check_names(content, path)
        entries = [_entry(str(name), value, index, path) for index, (name, value) in enumerate(content.items())]
        return SourceClasses(tuple(entries), str(path))
    if isinstance(content, list) and content and not any(isinstance(name, list | dict) for name in content):
        _check_names(content, path)
        return SourceClasses.of_names(list(map(str, content)), str(path))
    raise DatasetError(
        f"{path} must hold a list of class names, or a mapping of names to colours [r, g, b] of 0 to 255"
    )


def read_text_classes(path: Path) -> SourceClasses:
    """Classes of a text file, one in a line: a name; a name and a colour; or a colour and a name.

    A colour is three numbers, or ``#rrggbb`` behind the name. Any other ``#`` begins a comment. Where every line begins
    with one more whole number, no two the same, these are the values; a first line of heads is skipped then. Otherwise
    values count from 0, without ``__ignore__``, as labelme counts them.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    lines: list[tuple[str, Colour | None]] = []
    for line in read_text(path).splitlines():
        text, _, comment = line.partition("#")
        if text.strip():
            lines.append((text.strip(), hexadecimal_colour("#" + comment.partition("#")[0])))
    numbered = [_value_and_rest(text) for text, _ in lines]
    if numbered and numbered[0] is None and not _HEAD_WORDS.isdisjoint(re.findall("[a-z]+", lines[0][0].casefold())):
        numbered = numbered[1:]
    of_value = dict(filter(None, numbered))
    if of_value and len(of_value) == len(numbered):
        lines = [(rest, colour) for rest, (_, colour) in zip(of_value.values(), lines[-len(numbered) :], strict=True)]
    else:
        of_value = {}
    entries: list[tuple[str, Colour | None]] = []
    for text, colour in lines:
        parts = _parts(text)
        numbers = [part.isdecimal() for part in parts]
        if len(parts) >= 4 and all(numbers[-3:]):
            entries.append((" ".join(parts[:-3]), _colour(parts[-3:], parts[0], path)))
        elif len(parts) >= 4 and all(numbers[:3]):
            entries.append((" ".join(parts[3:]), _colour(parts[:3], parts[3], path)))
        elif colour is not None:
            entries.append((" ".join(parts), colour))
        else:
            entries.append((text, None))
    return _of_entries(entries, path, of_value)


def _value_and_rest(text: str) -> tuple[int, str] | None:
    """The value before a name in a line, and the rest of the line; None where there is none.

    Three numbers before a name are its colour, and numbers alone are no name.
    """
    found = _NUMBERED.fullmatch(text)
    if found is None:
        return None
    parts = _parts(found[2])
    leading = len(list(itertools.takewhile(str.isdecimal, parts)))
    return None if leading in (2, len(parts)) else (int(found[1]), found[2])


def _parts(text: str) -> list[str]:
    return [part for part in _SEPARATORS.split(text) if part]


def read_labelmap(path: Path) -> SourceClasses:
    """Classes of CVAT's labelmap.txt: ``name:r,g,b:parts:actions`` in each line.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    entries = []
    for line in read_text(path).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().rsplit(":", 3) if line.count(":") >= 3 else [line.strip(), ""]
        colour = _colour(parts[1].split(","), parts[0], path) if parts[1] else None
        entries.append((parts[0], colour))
    return _of_entries(entries, path)


def read_pixel_values(path: Path) -> SourceClasses:
    """Classes of Roboflow's _classes.csv, whose lines are ``Pixel Value, Class``.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    rows = [[cell.strip() for cell in row] for row in read_csv(path)]
    entries = []
    for row in rows[1:]:
        if len(row) < 2 or not row[0].isdecimal():
            raise DatasetError(f"{path} has the line '{', '.join(row)}'; lines must be: pixel value, class")
        entries.append(SourceClass(", ".join(row[1:]), (int(row[0]),)))
    _check_names([entry.name for entry in entries], path)
    return SourceClasses(tuple(entries), str(path))


def read_colour_table(path: Path) -> SourceClasses:
    """Classes of a class_dict.csv, whose columns are name, r, g and b.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    rows = [[cell.strip() for cell in row] for row in read_csv(path)]
    if any(len(row) < 4 for row in rows):
        raise DatasetError(f"{path} must have the columns name, r, g and b")
    return _of_entries([(row[0], _colour(row[1:4], row[0], path)) for row in rows[1:]], path)


def read_id_names(path: Path) -> SourceClasses:
    """Classes of an id2label.json, as Hugging Face's models have it: ``{"0": "name"}``.

    Raises:
        DatasetError: the file holds something else, or two classes have the same name.
    """
    content = read_json(path)
    try:
        entries = [SourceClass(str(name), (int(value),)) for value, name in content.items()]
    except (AttributeError, ValueError) as error:
        raise DatasetError(f"{path} must map values to names ({error})") from error
    _check_names([entry.name for entry in entries], path)
    return SourceClasses(tuple(entries), str(path))


#: Reader of each file of classes, the surest names first.
READERS: dict[str, Callable[[Path], SourceClasses]] = {
    "classes.yaml": read_yaml_classes,
    "classes.yml": read_yaml_classes,
    "id2label.json": read_id_names,
    "_classes.csv": read_pixel_values,
    "labelmap.txt": read_labelmap,
    "class_dict.csv": read_colour_table,
    "class_names.txt": read_text_classes,
    "classes.txt": read_text_classes,
    "label_colors.txt": read_text_classes,
    "RUGD_annotation-colormap.txt": read_text_classes,
    "codes.txt": read_text_classes,
    "labels.txt": read_text_classes,
}


def _of_entries(entries: Sequence[tuple[str, Colour | None]], path: Path, values: Iterable[int] = ()) -> SourceClasses:
    """Classes by their values, or by their positions where none are given; with the colours of those that have one."""
    kept = [
        (plain_name(name), colour, value)
        for (name, colour), value in itertools.zip_longest(entries, values)
        if not is_ignored_name(name)
    ]
    if not kept:
        raise DatasetError(f"{path} names no class")
    _check_names([name for name, _, _ in kept], path)
    return SourceClasses(
        tuple(
            SourceClass(name, (index if value is None else value,), () if colour is None else (colour_value(colour),))
            for index, (name, colour, value) in enumerate(kept)
        ),
        str(path),
    )


def _entry(name: str, value: Any, index: int, path: Path) -> SourceClass:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return SourceClass(name, (value,))
    return SourceClass(name, (index,), (colour_value(_colour(value, name, path)),))


def _check_names(names: Iterable[Any], path: Path) -> None:
    found = list(map(str, names))
    for written in names:
        if isinstance(written, int) and not isinstance(written, bool):
            continue  # a name all the same
        try:
            checked_name(written)
        except ValueError as error:
            raise DatasetError(f"{path} cannot be used: {error}") from error
    for name in found:
        if found.count(name) > 1:
            raise DatasetError(f"{path} gives the name '{name}' to two classes; rename one, or remove it")


def _colour(value: Any, name: str, path: Path) -> Colour:
    hexadecimal = hexadecimal_colour(value) if isinstance(value, str) else None
    try:
        red, green, blue = map(int, hexadecimal or value)
    except (TypeError, ValueError):
        red = green = blue = -1
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise DatasetError(f"{path} gives '{name}' the colour {value}; write it as [r, g, b], each of 0 to 255")
    return red, green, blue
