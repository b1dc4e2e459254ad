"""ADE20K, as the Scene Parsing Benchmark distributes it."""

from __future__ import annotations

import re

from training.data.formats.folder import open_masks
from training.data.published.ade20k import ade20k_classes
from training.data.reading.protocol import NO_PATTERNS, Format, LabelledFolder, Match, Patterns, Sure
from training.data.reading.tree import Tree

_MASK = re.compile(r"(.*/)?annotations/(training|validation)/ADE_(train|val)_\d{8}\.png")


class Ade20k(Format):
    """``annotations/training/ADE_train_00000001.png`` and its like: 0 is ignored, 1 to 150 are the classes."""

    name = "ade20k"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = next(filter(_MASK.fullmatch, tree.images), None)
        return Match(Sure.CERTAINLY, f"{found} is named as in ADE20K") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        if patterns == NO_PATTERNS:
            patterns = Patterns("images", "annotations")
        return open_masks(tree, patterns, ade20k_classes())
