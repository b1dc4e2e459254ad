"""CVAT's "Segmentation mask 1.1"."""

from __future__ import annotations

from training.data.classes.lists import agreed, read_labelmap
from training.data.formats.voc_folders import open_voc
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sure
from training.data.reading.tree import Tree

_NAMES = "labelmap.txt"


class CvatMask(Format):
    """Pascal VOC's folders, whose masks have the colours of ``labelmap.txt``; ``ImageSets`` tells the splits."""

    name = "cvat_mask"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = tree.named(_NAMES)
        if not found or not any("/SegmentationClass/" in f"/{name}" for name in tree.images):
            return None
        return Match(Sure.CERTAINLY, f"{found[0]} gives the colours of the masks in SegmentationClass")

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        return open_voc(tree, patterns, agreed([read_labelmap(tree.path(name)) for name in tree.named(_NAMES)]))
