"""Roboflow's "Semantic Segmentation Masks"."""

from __future__ import annotations

from training.data.classes.lists import agreed, read_pixel_values
from training.data.formats.folder import open_masks
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sure
from training.data.reading.tree import Tree

_NAMES = "_classes.csv"
_ENDING = "_mask.png"


class RoboflowMasks(Format):
    """``train/a.jpg`` with ``train/a_mask.png`` and ``train/_classes.csv``, likewise ``valid`` and ``test``."""

    name = "roboflow_masks"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = tree.named(_NAMES)
        if not found or not any(name.endswith(_ENDING) for name in tree.images):
            return None
        return Match(Sure.CERTAINLY, f"{found[0]} names the values of masks *{_ENDING}")

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        classes = agreed([read_pixel_values(tree.path(name)) for name in tree.named(_NAMES)])
        return open_masks(tree, patterns, classes, _ENDING)
