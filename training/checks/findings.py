"""Reads every item of a split, and keeps what tells whether one can train on it."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.frames.image_files import image_size, is_turned, orientation
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.checks.likeness import thumbnail
from training.data import DataSection, IncompleteError, SegmentationDataset, Split
from training.data.labelled_images import LabelledImages
from training.support.spread import spread

# So many masks, evenly spread, are compared by their palettes and by the values in them.
_COMPARED_MASKS = 24
# A larger share of images without a shape is told.
_FEW_EMPTY = 0.1


class RawMasks(NamedTuple):
    """What some masks of a split hold before they are read as classes.

    Attributes:
        pixels: how many pixels each value has that occurs, the least value first; None where a mask holds colours, or
            labels are no mask files.
        ignored: those of them that belong to no class.
        palettes_differ: two masks with palettes that disagree: name, name, index.
    """

    pixels: dict[int, int] | None = None
    ignored: Sequence[int] = ()
    palettes_differ: tuple[str, str, int] | None = None


@dataclass
class Findings:
    """The content of one split, and its problems.

    Attributes:
        class_names: empty where the split cannot be opened.
        empty_classes: classes to which the recipe leaves no pixel.
        count: number of its items.
        looked_at: number of items that were read.
        readable: number of those that training can use.
        pixels: (classes,) int64 pixels of each class.
        images: (classes,) int64 items in which each class occurs.
        ignored: number of pixels of no class.
        names: of the readable items, for people.
        contents: of the readable items, a hash of the image's pixels.
        masks: a hash of each mask that occurs.
        thumbnails: of the readable items, see `likeness.thumbnail`.
        raw: what masks hold before they are read as classes.
        spare_masks: masks without an image.
        labelled: the label files with an image in the folder of those masks, which may be of more splits.
        turned: images with mask files that EXIF turns or mirrors, which no size tells.
        unlabelled: number of images whose labels are shapes, and that have none.
        background_only: number of those of which all is of a class, since the background is.
        problems: kind -> one description for each.
    """

    class_names: list[str] = field(default_factory=list)
    empty_classes: frozenset[str] = frozenset()
    count: int = 0
    looked_at: int = 0
    readable: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    names: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    masks: set[bytes] = field(default_factory=set)
    thumbnails: list[np.ndarray] = field(default_factory=list)
    raw: RawMasks = field(default_factory=RawMasks)
    spare_masks: list[Path] = field(default_factory=list)
    labelled: frozenset[Path] = frozenset()
    turned: list[str] = field(default_factory=list)
    unlabelled: int = 0
    background_only: int = 0
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def total(self) -> int:
        """Number of pixels, with and without a class."""
        return int(self.pixels.sum()) + self.ignored

    def notes(self) -> list[str]:
        """What to look at, although it may be meant so."""
        notes = []
        if self.turned:
            notes.append(
                f"EXIF tags turn or mirror {len(self.turned)} images and leave their size, such as {self.turned[0]}; "
                "training and robot see them turned, so look whether their masks are turned too"
            )
        if self.background_only > _FEW_EMPTY * self.readable:
            notes.append(
                f"{self.background_only} of {self.readable} images have no shape and count as background; if nobody "
                "has labelled them yet, leave them out of the export"
            )
        return notes

    def occurring(self) -> list[str]:
        """The classes that have pixels."""
        return [name for name, pixels in zip(self.class_names, self.pixels, strict=True) if pixels]

    def never_occurring(self) -> list[str]:
        """The classes without a pixel that should have some."""
        without = (name for name, pixels in zip(self.class_names, self.pixels, strict=True) if pixels == 0)
        return [name for name in without if name not in self.empty_classes]


class _Item(NamedTuple):
    pixels: np.ndarray
    content: bytes
    mask: bytes
    thumbnail: np.ndarray
    turned: bool
    unlabelled: bool


def check_split(
    section: DataSection, split: Split, threads: int, console: Console, most: int | None = None
) -> Findings:
    """Read the items of a split.

    Args:
        section: the recipe's ``data``.
        split: train, val or test.
        threads: number of items read at once.
        console: shows the progress if it is a terminal.
        most: read so many items at most, evenly spread; None: all.
    """
    findings = Findings()
    try:
        data: SegmentationDataset | None = section.open(split)
    except IncompleteError as error:
        findings.problems["missing file"] += error.missing
        data = error.rest
    except DatasetError as error:
        findings.problems["cannot be opened"].append(str(error))
        return findings
    if data is None:
        return findings
    if isinstance(data, LabelledImages):
        findings.spare_masks, findings.labelled, findings.raw = data.spare_masks, data.labelled, _raw_masks(data)
    findings.empty_classes = section.empty_classes()
    _read_items(findings, data, split, threads, console, spread(len(data), most))
    return findings


def check_pseudo_labels(
    data: SegmentationDataset,
    threads: int,
    console: Console,
    most: int | None = None,
    section: DataSection | None = None,
) -> Findings:
    """Read the items that a teacher labelled; see `check_split`.

    Those whose files are validation images of ``section`` are read beyond ``most``.
    """
    findings = Findings()
    indices = spread(len(data), most)
    if section is not None and len(indices) < len(data):
        indices = sorted({*indices, *_validation_images(data, section)})
    _read_items(findings, data, "pseudo-labels", threads, console, indices)
    return findings


def _validation_images(data: SegmentationDataset, section: DataSection) -> list[int]:
    """Indices of the items whose image files are those of validation images."""
    with contextlib.suppress(DatasetError):  # reading the items will say why
        val = section.open("val")
        if isinstance(data, LabelledImages) and isinstance(val, LabelledImages):
            known = set(val.image_digests().values())
            return [index for index, digest in data.image_digests().items() if digest in known]
    return []


def _read_items(
    findings: Findings,
    data: SegmentationDataset,
    name: str,
    threads: int,
    console: Console,
    indices: Sequence[int],
) -> None:
    """Read items of a data set with a name for people."""
    findings.class_names = data.class_names
    findings.pixels, findings.images = np.zeros((2, len(data.class_names)), np.int64)
    findings.count = len(data)
    findings.looked_at = len(indices)
    with ThreadPoolExecutor(threads) as pool:
        items = pool.map(lambda index: _read(data, index), indices)
        shown = track(items, f"reading {name}", len(indices), console=console, disable=not console.is_terminal)
        for index, item in zip(indices, shown, strict=True):
            _add(findings, item, data.describe(index))


def _add(findings: Findings, item: _Item | DatasetError, name: str) -> None:
    if isinstance(item, DatasetError):
        findings.problems[item.fault if isinstance(item, ItemError) else "other"].append(str(item))
        return
    count = len(findings.class_names)
    findings.readable += 1
    findings.pixels += item.pixels[:count]
    findings.images += item.pixels[:count] > 0
    findings.ignored += int(item.pixels[count:].sum())
    findings.names.append(PurePath(name).as_posix())
    findings.contents.append(item.content)
    findings.masks.add(item.mask)
    findings.thumbnails.append(item.thumbnail)
    if item.turned:
        findings.turned.append(findings.names[-1])
    findings.unlabelled += item.unlabelled
    findings.background_only += item.unlabelled and not item.pixels[count:].any()


def _read(data: SegmentationDataset, index: int) -> _Item | DatasetError:
    """Return what is kept of an item, or its error."""
    try:
        image, mask = data.item(index)
    except DatasetError as error:
        return error
    pixels = np.bincount(mask.ravel(), minlength=len(data.class_names))
    unlabelled = int(pixels.max()) == mask.size and _has_no_shapes(data, index)
    turned = _is_turned_unseen(data, index)
    return _Item(pixels, _hash(image), _hash(mask), thumbnail(image), turned, unlabelled)


def _has_no_shapes(data: SegmentationDataset, index: int) -> bool:
    """Whether the labels of an image are shapes, and there is none: classes may be merged, so the mask does not tell.

    Raises:
        ItemError: they cannot be read.
    """
    return isinstance(data, LabelledImages) and data.mask_values is None and not data.pixels(index).values.any()


def _is_turned_unseen(data: SegmentationDataset, index: int) -> bool:
    """Whether EXIF turns an image so that its size stays, and a mask file that was made without it fits all the same.

    Tools that draw shapes turn the image as its tag says.
    """
    if not isinstance(data, LabelledImages) or data.mask_values is None:
        return False
    source = data.samples[index].source()
    if is_turned(source):
        height, width = image_size(source)
        return height == width
    return orientation(source) != 1


def _hash(array: np.ndarray) -> bytes:
    return hashlib.blake2b(str(array.shape).encode() + array.tobytes(), digest_size=16).digest()


def _raw_masks(data: LabelledImages) -> RawMasks:
    """What masks hold, from some of them; a mask that cannot be read is reported elsewhere."""
    kinds = data.mask_values
    pixels: Counter[int] | None = None if kinds is None or kinds.grey_colours else Counter()
    colour_of: dict[int, tuple[int, str]] = {}
    differ: tuple[str, str, int] | None = None
    for index in spread(len(data), _COMPARED_MASKS):
        try:
            mask = data.pixels(index)
        except DatasetError:
            continue
        values = mask.numbers(kinds is not None and kinds.bilevel_ones and kinds.names(1))
        present, counts = np.unique(values, return_counts=True)
        if mask.coloured:
            pixels = None
        elif pixels is not None:
            pixels.update(dict(zip(present.tolist(), counts.tolist(), strict=True)))
        if mask.palette is None or data.reads_palettes_by_colour:
            continue
        for value in present[present < len(mask.palette)].tolist():
            colour, first = colour_of.setdefault(value, (int(mask.palette[value]), data.describe(index)))
            if differ is None and colour != int(mask.palette[value]):
                differ = first, data.describe(index), value
    if pixels is None or kinds is None:
        return RawMasks(palettes_differ=differ)
    classes = [(first, last) for first, last, label in kinds.numbers if label != data.ignore_value]
    by_value = dict(sorted(pixels.items()))
    ignored = [value for value in by_value if not any(first <= value <= last for first, last in classes)]
    return RawMasks(by_value, ignored, differ)
