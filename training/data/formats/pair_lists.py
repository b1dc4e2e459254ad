"""Lists of images and masks: a file for each split, with the paths of an image and of its mask in every line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.split_lists import split_lists
from training.data.reading.tree import Tree, parent, read_text

_SEPARATOR = re.compile(r"[\s,;]+")


class PairLists(Format):
    """``train.lst``, ``val.lst`` and ``test.lst`` (or .txt, .csv) with ``image mask`` in every line, as in RELLIS-3D.

    The paths may begin above the folder or below it. The first line may be a head.
    """

    name = "pair_lists"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        for name, _, rows in _lists(tree):
            if any(_is_pair(row) and all(_find(tree, name, path) for path in row) for row in rows):
                return Match(Sure.PROBABLY, f"{name} lists images with their masks")
        return None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        for name, split, rows in _lists(tree):
            for row in rows:
                if len(row) != 2:
                    raise DatasetError(f"{tree.path(name)} has the line '{' '.join(row)}'; write: image mask")
                image, mask = (tree.path(_find(tree, name, path) or path) for path in row)
                samples.setdefault(split, []).append(Sample(image, mask))
        if not samples:
            raise DatasetError(f"{tree.root} holds no list such as train.lst with an image and a mask in every line")
        return LabelledFolder(find_classes(tree), samples, read_mask_file, masks=True)


def _lists(tree: Tree) -> Iterator[tuple[str, Split, list[list[str]]]]:
    """Name, split and rows of every list of which a row names two files, whether these are there or not."""
    for name, split in split_lists(tree):
        rows = [_SEPARATOR.split(line.strip()) for line in read_text(tree.path(name)).splitlines() if line.strip()]
        if any(map(_is_pair, rows)):
            yield name, split, rows if any(map(_is_file, rows[0])) else rows[1:]


def _find(tree: Tree, name: str, path: str) -> str | None:
    return tree.find_image(path, [parent(name), ""])


def _is_pair(row: Sequence[str]) -> bool:
    return len(row) == 2 and all(map(_is_file, row))


def _is_file(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)
