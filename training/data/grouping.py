"""Recognises, by their names, images that belong together: versions of one image, and frames of one video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from dinov3_seg_ros.support.errors import DatasetError

# Roboflow names each version <name>_<suffix>.rf.<hash>.<suffix>.
_ROBOFLOW = re.compile(r"(?P<source>.+)_(jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9a-zA-Z]{16,}", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<video>.*?)(?P<frame>\d+)\D{0,12}")


class Origin(NamedTuple):
    """What an image's name tells of where it comes from.

    Attributes:
        group: the video, sequence or other group; images of one group look alike.
        source: the image that this one is a version of; its own name where it is none.
        frame: number in the group; None where the name has none.
    """

    group: str
    source: str
    frame: int | None


def origins_of(names: Sequence[str], pattern: str | None = None) -> list[Origin]:
    """Where images come from.

    Args:
        names: paths of the images, relative to one folder, with ``/``, without the last suffix and folders of splits.
        pattern: a regular expression that matches in each name; its first parentheses, else all that it matches, name
            the group. None: videos and sequences are told by a number at the end of the name, and by the folder.

    Raises:
        DatasetError: the pattern is no regular expression, or does not match in a name.
    """
    if pattern is None:
        return [_by_name(name) for name in names]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"data.group is '{pattern}', which is no regular expression: {error}") from error
    return [_by_pattern(name, expression) for name in names]


def source_of(name: str) -> str:
    """The name of the image that an image is a version of, by Roboflow's naming; else the name itself."""
    folder, stem = _parted(name)
    version = _ROBOFLOW.fullmatch(stem)
    # A version at the folder's root must get the very name of its original.
    return (PurePath(folder) / version["source"]).as_posix() if version else name


def _by_name(name: str) -> Origin:
    source = source_of(name)
    folder, stem = _parted(source)
    numbered = _NUMBERED.fullmatch(stem)
    if numbered is None:
        return Origin(source, source, None)
    return Origin(f"{folder}/{numbered['video']}", source, int(numbered["frame"]))


def _by_pattern(name: str, expression: re.Pattern[str]) -> Origin:
    found = expression.search(name)
    if found is None:
        raise DatasetError(f"data.group is '{expression.pattern}', which does not match in the image name '{name}'")
    origin = _by_name(name)
    return Origin(found[1] if expression.groups and found[1] is not None else found[0], origin.source, origin.frame)


def _parted(name: str) -> tuple[str, str]:
    path = PurePath(name)
    return path.parent.as_posix(), path.name
