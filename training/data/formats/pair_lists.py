"""Lists of images and masks: a file for each split, with the paths of an image and of its mask in every line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading.content import read_text
from training.data.reading.paths import parent, path_parts
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.split_lists import split_lists
from training.data.reading.tree import Tree

_SEPARATOR = re.compile(r"[\s,;]+")


class PairLists(Format):
    """``train.lst``, ``val.lst`` and ``test.lst`` (or .txt, .csv) with ``image mask`` in every line, as in RELLIS-3D.

    The paths may begin above the folder or below it: what all of a list begin with may differ from what is here. The
    first line may be a head.
    """

    name = "pair_lists"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = next((found for found in _lists(tree) if found.place), None)
        return Match(Sure.PROBABLY, f"{found.name} lists images with their masks") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        for found in _lists(tree):
            wrong = next((row for row in found.rows if len(row) != 2), None)
            if wrong is not None:
                raise DatasetError(f"{tree.path(found.name)} has the line '{' '.join(wrong)}'; write: image mask")
            for row in found.rows:
                paths = (found.place or _Place(parent(found.name), 0)).paths(list(map(path_parts, row)))
                image, mask = (tree.path(tree.image_at(path) or path) for path in paths)
                samples.setdefault(found.split, []).append(Sample(image, mask))
        if not samples:
            raise DatasetError(f"{tree.root} holds no list such as train.lst with an image and a mask in every line")
        return LabelledFolder(find_classes(tree), samples, read_mask_file, masks=True)


class _List(NamedTuple):
    """A list: its file, its split, its rows, and where their paths begin; None where no row names two files here."""

    name: str
    split: Split
    rows: list[list[str]]
    place: _Place | None


def _lists(tree: Tree) -> Iterator[_List]:
    """Every list of which a row names two files, whether these are there or not."""
    for name, split in split_lists(tree):
        rows = [_SEPARATOR.split(line.strip()) for line in read_text(tree.path(name)).splitlines() if line.strip()]
        pairs = [list(map(path_parts, row)) for row in rows if _is_pair(row)]
        if pairs:
            has_head = not any(map(_is_file, rows[0]))
            yield _List(name, split, rows[has_head:], _place(tree, parent(name), pairs))


def _is_pair(row: Sequence[str]) -> bool:
    return len(row) == 2 and all(map(_is_file, row))


def _is_file(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


class _Place(NamedTuple):
    """Where the paths of a list begin: below a folder, without so many of their first names."""

    folder: str
    skipped: int

    def paths(self, pair: Sequence[Sequence[str]]) -> tuple[str, str]:
        """Image and mask of a line, relative to the root."""
        image, mask = ("/".join([*path_parts(self.folder), *parts[self.skipped :]]) for parts in pair)
        return image, mask


def _place(tree: Tree, folder: str, pairs: Sequence[Sequence[list[str]]]) -> _Place | None:
    """Where the paths of a list begin: in its folder, in the root, or else in the only other folder with both files.

    What all paths begin with may be above the folder. Only all paths tell that: else a file of another sequence, or
    the mask, could be taken for an image that is missing. None where no line names two files.
    """
    folders = [parts[:-1] for pair in pairs for parts in pair]
    common = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    places = [_Place(near, skipped) for skipped in range(common + 1) for near in dict.fromkeys([folder, ""])]
    for place in places:
        if any(_holds(tree, place, pair) for pair in pairs):
            return place
    for skipped in range(common + 1):
        for pair in pairs:
            end = pair[0][skipped:]
            folders_of = ("/".join(name.split("/")[: -len(end)]) for name in tree.images_ending("/".join(end)))
            others = [_Place(other, skipped) for other in folders_of]
            found = [place for place in others if _holds(tree, place, pair)]
            if len(found) == 1:
                return found[0]
    return None


def _holds(tree: Tree, place: _Place, pair: Sequence[Sequence[str]]) -> bool:
    return all(tree.image_at(path) for path in place.paths(pair))
