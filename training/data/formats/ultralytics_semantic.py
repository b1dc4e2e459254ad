"""Ultralytics' layout for semantic segmentation: masks in a folder that a YAML file names by masks_dir."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from training.data.base import Split
from training.data.classes.lists import agreed, read_yaml_classes
from training.data.classes.map import SourceClass
from training.data.formats.folder import open_masks
from training.data.reading.content import read_head, read_yaml
from training.data.reading.protocol import NO_PATTERNS, Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.tree import Tree
from training.data.reading.yaml_splits import read_splits

_IGNORED = 255
_KEY = "masks_dir"
_HEAD = 1 << 20


class UltralyticsSemantic(Format):
    """``images/train/a.jpg`` with ``masks/train/a.png``; a YAML file has ``names`` and ``masks_dir``. 255: ignored.

    As in YOLO's format, it also names folders, or text files that list images, for each split.
    """

    name = "ultralytics_semantic"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _configurations(tree)
        return Match(Sure.CERTAINLY, f"{next(iter(found))} has masks_dir and names") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        found = _configurations(tree)
        if not found:
            return open_masks(tree, patterns, read_yaml_classes(tree.root / "data.yaml"))
        if patterns == NO_PATTERNS:
            patterns = Patterns("images", str(next(iter(found.values()))[_KEY]).strip("/"))
        classes = agreed([read_yaml_classes(tree.path(name)) for name in found])
        folder = open_masks(tree, patterns, dataclasses.replace(classes, ignored=SourceClass("", (_IGNORED,))))
        splits = read_splits(tree, found)
        samples: dict[Split | None, list[Sample]] = {}
        for sample in folder.all_samples():
            split = splits.of(sample.image.relative_to(tree.root).as_posix())
            samples.setdefault(split, []).append(sample)
        return dataclasses.replace(folder, samples=samples, absent=splits.absent)


def _configurations(tree: Tree) -> dict[str, Mapping[str, object]]:
    """The content of each YAML file that names a folder of masks."""
    found: dict[str, Mapping[str, object]] = {}
    for name in tree.with_suffix(".yaml", ".yml"):
        # Files of other programs are often no YAML that can be parsed, such as the calibrations that OpenCV writes.
        if _KEY.encode() not in read_head(tree.path(name), _HEAD):
            continue
        content = read_yaml(tree.path(name))
        if isinstance(content, dict) and _KEY in content and "names" in content:
            found[name] = content
    return found
