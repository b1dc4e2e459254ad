"""Cityscapes with its fine annotations, and other data in its layout."""

from __future__ import annotations

import dataclasses

from training.data.classes.lists import find_classes
from training.data.formats.folder import open_masks
from training.data.published.cityscapes import IMAGE_ENDING, MASK_ENDING, cityscapes_classes
from training.data.reading.protocol import NO_PATTERNS, Format, LabelledFolder, Match, Patterns, Sure
from training.data.reading.tree import Tree

_TRAIN_ID_ENDING = "_labelTrainIds.png"


class Cityscapes(Format):
    """``leftImg8bit/train/CITY/a_leftImg8bit.png`` with ``gtFine/train/CITY/a_gtFine_labelIds.png``.

    Without a list of classes they are Cityscapes' 19 that are evaluated: other labels are ignored, and the test images,
    whose labels are kept secret, are left out. CVAT's export in this layout has label_colors.txt. Where
    ``data.masks`` chooses ``*_labelTrainIds.png``, these hold train ids.
    """

    name = "cityscapes"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = next((name for name in tree.images if name.endswith(MASK_ENDING)), None)
        return Match(Sure.CERTAINLY, f"{found} is named as in Cityscapes") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        if patterns == NO_PATTERNS:
            patterns = Patterns(f"*{IMAGE_ENDING}", f"*{MASK_ENDING}")
        folder = open_masks(tree, patterns, find_classes(tree))
        if folder.classes.classes:
            return folder
        train_ids = any(sample.labels.name.endswith(_TRAIN_ID_ENDING) for sample in folder.all_samples())
        return dataclasses.replace(
            folder,
            classes=cityscapes_classes(train_ids),
            samples={split: own for split, own in folder.samples.items() if split != "test"},
        )
