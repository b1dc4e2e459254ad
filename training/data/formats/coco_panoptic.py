"""COCO panoptic, with categories of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.frames.image_files import MaskPixels
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import classes_of_shapes
from training.data.formats.coco import begins_like_coco
from training.data.reading.content import read_head
from training.data.reading.panoptic import PanopticMasks, read_panoptic
from training.data.reading.paths import parent, split_of, split_of_file, stem
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, ReadLabels, Sample, Sure
from training.data.reading.tree import Tree

# The JSON begins with images, so that what tells it apart may stand far behind.
_MARK = b'"segments_info"'
_LOOKED_AT = 1 << 24
_PREFIX = "panoptic_"


class CocoPanoptic(Format):
    """A JSON whose annotations have ``segments_info``, and a PNG of segment ids for each image.

    Class 0 is the background: pixels in no segment. The other classes follow in the order of the category ids.

    Kirillov et al., Panoptic Segmentation, 2019, arXiv:1801.00868.
    """

    name = "coco_panoptic"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _files(tree)
        return Match(Sure.CERTAINLY, f"{found[0]} has segments_info") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        files = _files(tree)
        if not files:
            raise DatasetError(f"{tree.root} holds no JSON whose annotations have segments_info")
        panoptics = [read_panoptic(tree.path(name)) for name in files]
        names = (name for panoptic in panoptics for _, name in sorted(panoptic.categories.items()))
        classes = classes_of_shapes(names, files[0])
        value_of = classes.value_of
        samples: dict[Split | None, list[Sample]] = {}
        for position, (name, panoptic) in enumerate(zip(files, panoptics, strict=True)):
            images = tree.find_images((image for image, _ in panoptic.files), name)
            masks = tree.find_images((mask for _, mask in panoptic.files), name, [stem(name)])
            for index, (image, mask) in enumerate(panoptic.files):
                found, labels = images[index], masks[index] or f"{stem(name)}/{mask}"
                # Of images that are PNG files too, the mask has the name.
                path = found if found not in (None, labels) else f"{parent(name)}/{image}".strip("/")
                sample = Sample(tree.path(path), tree.path(labels), (position, index), written=image)
                samples.setdefault(split_of_file(name) or split_of(path), []).append(sample)
        readers = [
            PanopticMasks(panoptic, {key: value_of[name] for key, name in panoptic.categories.items()})
            for panoptic in panoptics
        ]
        return LabelledFolder(classes, samples, _Readers(readers), evidence=[tree.path(name) for name in files])


class _Readers:
    """Reads the masks of several files; the entry of a sample is the number of its file, and its position in it."""

    def __init__(self, readers: Sequence[PanopticMasks]) -> None:
        self._readers = list(readers)

    def __call__(self, sample: Sample) -> MaskPixels:
        position, index = sample.entry
        read: ReadLabels = self._readers[position]
        return read(sample._replace(entry=index))


def _files(tree: Tree) -> list[str]:
    return [name for name in tree.with_suffix(".json") if _is_panoptic(tree.path(name))]


def _is_panoptic(path: Path) -> bool:
    return begins_like_coco(path) and (path.name.startswith(_PREFIX) or _MARK in read_head(path, _LOOKED_AT))
