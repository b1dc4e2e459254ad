"""Lists of images and masks: a file for each split, with the paths of an image and of its mask in every line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.tree import Tree, parent, read_text, split_named, stem

_SUFFIXES = (".lst", ".txt", ".csv")
_SEPARATOR = re.compile(r"[\s,;]+")


class PairLists(Format):
    """``train.lst``, ``val.lst`` and ``test.lst`` (or .txt, .csv) with ``image mask`` in every line, as in RELLIS-3D.

    The paths may begin above the folder or below it.
    """

    name = "pair_lists"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = next(iter(_pairs(tree)), None)
        return Match(Sure.PROBABLY, f"{found[0]} lists images with their masks") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        for name, split, image, mask in _pairs(tree):
            files = (tree.path(tree.find_image(path, [parent(name), ""]) or path) for path in (image, mask))
            samples.setdefault(split, []).append(Sample(next(files), next(files)))
        if not samples:
            raise DatasetError(f"{tree.root} holds no list such as train.lst with an image and a mask in every line")
        return LabelledFolder(find_classes(tree), samples, read_mask_file, masks=True)


def _pairs(tree: Tree) -> Iterator[tuple[str, Split, str, str]]:
    """List, split, image and mask of every line; nothing of files whose first line names no two files of the folder."""
    for name in tree.with_suffix(*_SUFFIXES):
        split = split_named(stem(name).rpartition("/")[2])
        if split is None:
            continue
        lines = [_SEPARATOR.split(line.strip()) for line in read_text(tree.path(name)).splitlines() if line.strip()]
        if lines and len(lines[0]) == 2 and all(tree.find_image(path, [parent(name), ""]) for path in lines[0]):
            for line in lines:
                if len(line) != 2:
                    raise DatasetError(f"{tree.path(name)} has the line '{' '.join(line)}'; write: image mask")
                yield name, split, line[0], line[1]
