"""Recognises, by their names, images that belong together: versions of one image, and frames of one video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from dinov3_seg_ros.support.errors import DatasetError

# Roboflow names each version <name>_<suffix>.rf.<hash>.<suffix>.
_ROBOFLOW = re.compile(r"(?P<source>.+)_(jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9a-zA-Z]{16,}", re.IGNORECASE)
# Label Studio puts such a prefix before the names of images that somebody uploaded, or that it downloaded.
_UPLOADED = re.compile(r"(?P<prefix>[0-9a-f]{8}-|[0-9a-f]{6}__)(?P<name>.+)")
# Unix seconds with a fraction are one number.
_NUMBERED = re.compile(r"(?P<video>.*?)(?P<frame>(?<!\d)\d{10}\.\d+|\d+)\D{0,12}")
# Where any name has nine digits behind the seconds, all have nanoseconds there, perhaps without zeros at the front.
_NANOSECONDS = re.compile(r"(?<!\d)\d{10}[._-]\d{9}(?!\d)")
_WITH_NANOSECONDS = re.compile(r"(?P<video>.*?)(?P<frame>(?<!\d)\d{10}[._-]\d+|\d+)\D{0,12}")
# A date and a time of day, perhaps with a fraction: the images of a day are one video. A number of other length behind
# the seconds is that of a frame, in a video that is named by its start.
_CLOCK = re.compile(
    r"(?P<video>.*?(?<!\d)(19|20)\d\d(?P<in_date>[-_.:]?)[01]\d(?P=in_date)[0-3]\d[-_. T])"
    r"(?P<frame>[0-2]\d(?P<in_time>[-_.:]?)[0-5]\d(?P=in_time)[0-5]\d(\.\d+|[-_,:](\d{3}|\d{6}|\d{9}))?)\D{0,12}"
)


class Origin(NamedTuple):
    """What an image's name tells of where it comes from.

    Attributes:
        group: the video, sequence or other group; images of one group look alike.
        source: the image that this one is a version of; its own name where it is none.
        frame: its number or time in the group, as the name has it; `in_order` sorts them. None where the name
            has none.
    """

    group: str
    source: str
    frame: str | None


def origins_of(names: Sequence[str], pattern: str | None = None) -> list[Origin]:
    """Where images come from.

    Args:
        names: paths of the images, relative to one folder, with ``/``, without the last suffix and folders of splits.
        pattern: a regular expression that matches in each name; its first parentheses, else all that it matches, name
            the group. None: videos and sequences are told by a number or time at the end of the name, and by the
            folder.

    Raises:
        DatasetError: the pattern is no regular expression, or does not match in a name.
    """
    sources = [source_of(name) for name in names]
    stems = _own_stems(sources)
    numbered = _WITH_NANOSECONDS if any(map(_NANOSECONDS.search, stems.values())) else _NUMBERED
    found = {source: _CLOCK.fullmatch(stem) or numbered.fullmatch(stem) for source, stem in stems.items()}
    origins = [_by_name(source, found[source]) for source in sources]
    if pattern is None:
        return origins
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"data.group is '{pattern}', which is no regular expression: {error}") from error
    return [origin._replace(group=_group(name, expression)) for name, origin in zip(names, origins, strict=True)]


def source_of(name: str) -> str:
    """The name of the image that an image is a version of, by Roboflow's naming; else the name itself."""
    folder, stem = _parted(name)
    version = _ROBOFLOW.fullmatch(stem)
    # A version at the folder's root must get the very name of its original.
    return (PurePath(folder) / version["source"]).as_posix() if version else name


def _own_stems(sources: Sequence[str]) -> dict[str, str]:
    """Of each source, the stem that its image had before Label Studio put a prefix before it."""
    stems = {source: _parted(source)[1] for source in sources}
    uploaded = {source: found for source, stem in stems.items() if (found := _UPLOADED.fullmatch(stem))}
    prefixes = {found["prefix"] for found in uploaded.values()}
    # Label Studio draws one for each image; what many images share names their video, and digits alone are a date.
    if len(prefixes) > len(uploaded) / 2 and not all(prefix.rstrip("-_").isdecimal() for prefix in prefixes):
        stems |= {source: found["name"] for source, found in uploaded.items()}
    return stems


def _by_name(source: str, numbered: re.Match[str] | None) -> Origin:
    if numbered is None:
        return Origin(source, source, None)
    return Origin(f"{_parted(source)[0]}/{numbered['video']}", source, numbered["frame"])


def _group(name: str, expression: re.Pattern[str]) -> str:
    found = expression.search(name)
    if found is None:
        raise DatasetError(f"data.group is '{expression.pattern}', which does not match in the image name '{name}'")
    return found[1] if expression.groups and found[1] is not None else found[0]


def _parted(name: str) -> tuple[str, str]:
    path = PurePath(name)
    return path.parent.as_posix(), path.name
