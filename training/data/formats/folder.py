"""Images and masks, in one folder or in several."""

from __future__ import annotations

import dataclasses

from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.classes.map import SourceClasses
from training.data.reading.pairing import find_pairing, require_pairing
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.split_lists import read_split_lists, split_lists
from training.data.reading.tree import Tree


class Folder(Format):
    """Masks beside their images: in folders of their own, with endings of their own, or as ``x.png`` to ``x.jpg``.

    Lists named train, val or test tell the split, or else folders of these names anywhere in a path.
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
        return _divided(tree, open_masks(tree, patterns, find_classes(tree)))


def open_masks(tree: Tree, patterns: Patterns, classes: SourceClasses, ending: str | None = None) -> LabelledFolder:
    """Pair images and masks by their names; see `require_pairing`.

    Raises:
        DatasetError: see `require_pairing`.
    """
    pairing = require_pairing(tree, patterns, ending)
    spare = [tree.path(name) for name in pairing.spare]
    return LabelledFolder(classes, pairing.samples(tree), read_mask_file, spare, masks=True)


def _divided(tree: Tree, folder: LabelledFolder) -> LabelledFolder:
    """Divide the samples as lists of the folder say.

    Images of no list stay in the split of their folders, if no list is of that split. Without a list of images for
    training, the others are for training.

    Raises:
        DatasetError: a list of images for training or validation names none of them, and nothing else tells that split.
    """
    path_of = {sample: sample.image.relative_to(tree.root).as_posix() for sample in folder.all_samples()}
    mask_of = {path: sample.labels.relative_to(tree.root).as_posix() for sample, path in path_of.items()}
    listed = read_split_lists(tree, split_lists(tree), mask_of)
    listed.check(tree, folder.samples, next(iter(path_of.values())))
    covered = set(listed.split_of.values())
    others: dict[Split | None, Split | None] = {own: None if own in covered else own for own in folder.samples}
    if covered and "train" not in {*covered, *folder.samples}:
        others[None] = "train"
    samples: dict[Split | None, list[Sample]] = {}
    for told, own_samples in folder.samples.items():
        for sample in own_samples:
            samples.setdefault(listed.split_of.get(path_of[sample], others[told]), []).append(sample)
    return dataclasses.replace(folder, samples=samples, absent=listed.absent)
