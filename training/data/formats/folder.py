"""Images and masks, in one folder or in several."""

from __future__ import annotations

from training.data.classes.lists import find_classes
from training.data.classes.map import SourceClasses
from training.data.reading.pairing import find_pairing, require_pairing
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sure, read_mask_file
from training.data.reading.tree import Tree


class Folder(Format):
    """Masks beside their images: in folders of their own, with endings of their own, or as ``x.png`` to ``x.jpg``.

    Folders named train, val or test anywhere in a path tell the split.
    """

    name = "folder"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        pairing = find_pairing(tree)
        if pairing is None:
            return None
        return Match(Sure.POSSIBLY, f"{len(pairing.pairs)} images with a mask of a matching name ({pairing.rule})")

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        return open_masks(tree, patterns, find_classes(tree))


def open_masks(tree: Tree, patterns: Patterns, classes: SourceClasses, ending: str | None = None) -> LabelledFolder:
    """Pair images and masks by their names; see `require_pairing`.

    Raises:
        DatasetError: see `require_pairing`.
    """
    pairing = require_pairing(tree, patterns, ending)
    spare = [tree.path(name) for name in pairing.spare]
    return LabelledFolder(classes, pairing.samples(tree), read_mask_file, spare, masks=True)
