"""Ultralytics' layout for semantic segmentation: masks in a folder that a YAML file names by masks_dir."""

from __future__ import annotations

import dataclasses

from training.data.classes.lists import agreed, read_yaml_classes
from training.data.classes.map import SourceClass
from training.data.formats.folder import open_masks
from training.data.reading.protocol import NO_PATTERNS, Format, LabelledFolder, Match, Patterns, Sure
from training.data.reading.tree import Tree, read_head, read_yaml

_IGNORED = 255
_KEY = "masks_dir"
_HEAD = 1 << 20


class UltralyticsSemantic(Format):
    """``images/train/a.jpg`` with ``masks/train/a.png``; a YAML file has ``names`` and ``masks_dir``. 255: ignored."""

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
            patterns = Patterns("images", next(iter(found.values())).strip("/"))
        classes = agreed([read_yaml_classes(tree.path(name)) for name in found])
        return open_masks(tree, patterns, dataclasses.replace(classes, ignored=SourceClass("", (_IGNORED,))))


def _configurations(tree: Tree) -> dict[str, str]:
    """The folder of masks that each YAML file names."""
    found = {}
    for name in tree.with_suffix(".yaml", ".yml"):
        # Files of other programs are often no YAML that can be parsed, such as the calibrations that OpenCV writes.
        if _KEY.encode() not in read_head(tree.path(name), _HEAD):
            continue
        content = read_yaml(tree.path(name))
        if isinstance(content, dict) and _KEY in content and "names" in content:
            found[name] = str(content[_KEY])
    return found
