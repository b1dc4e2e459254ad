"""The protocol of formats: how labels lie in a folder, and how they are read."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

from dinov3_seg_ros.frames.image_files import ImageSource, MaskPixels, StoredImage, read_mask
from training.data.base import Split
from training.data.classes.map import SourceClasses
from training.data.reading.tree import Tree


class Sure(enum.IntEnum):
    """How sure a format is that a folder is of its kind."""

    POSSIBLY = 1
    PROBABLY = 2
    CERTAINLY = 3


class Match(NamedTuple):
    """What a format says of a folder that it can read.

    Attributes:
        sure: how sure it is.
        why: what was found in the folder, for people.
    """

    sure: Sure
    why: str


class Sample(NamedTuple):
    """One image and its labels.

    Attributes:
        image: file of the image.
        labels: file that holds the labels: a mask, or a file of shapes.
        entry: the image's part of ``labels``, already read, where that file holds the labels of several images.
        content: reads the image where it lies inside another file; then ``image`` is only its name. It is given how
            many of the first bytes are wanted, -1 for all; it can be pickled, and raises ItemError.
        written: how ``labels`` names the image, where it names several.
    """

    image: Path
    labels: Path
    entry: Any = None
    content: Callable[[int], bytes] | None = None
    written: str = ""

    def source(self) -> ImageSource:
        """Where the image is read from.

        Raises:
            ItemError: it lies inside another file, which cannot be read.
        """
        return self.image if self.content is None else StoredImage(self.content(-1), str(self.image))

    def files(self) -> list[Path]:
        """The files that must be there."""
        return [self.image, self.labels] if self.content is None else [self.labels]


#: Reads the labels of a sample; raises ItemError. It goes to the processes that load data, so it can be pickled.
ReadLabels: TypeAlias = Callable[[Sample], MaskPixels]


@dataclass
class LabelledFolder:
    """What a format found in a folder.

    Attributes:
        classes: the classes that the folder names.
        samples: of each split that the folder tells apart, in a fixed order; under None those of no split.
        read: reads the labels of one sample.
        spare: label files without an image.
        unlabelled: number of images without labels, which are left out.
        absent: number of images that lists name and that are not there.
        masks: whether the labels are masks, whose values stand for classes.
        evidence: further files that decide how labels look, such as one that lists the categories.
        boxes: number of regions that have a box alone, which is filled.
    """

    classes: SourceClasses
    samples: Mapping[Split | None, Sequence[Sample]]
    read: ReadLabels
    spare: list[Path] = field(default_factory=list)
    unlabelled: int = 0
    absent: int = 0
    masks: bool = False
    evidence: list[Path] = field(default_factory=list)
    boxes: int = 0

    def all_samples(self) -> list[Sample]:
        """The samples of all splits."""
        return [sample for own in self.samples.values() for sample in own]


class Patterns(NamedTuple):
    """Which files are images and which are masks, as `Tree.matching` takes it; None: the format's own rule."""

    images: str | None = None
    masks: str | None = None


NO_PATTERNS = Patterns()


class Format(ABC):
    """One way in which labels lie in a folder.

    Each has a module of its own in `training.data.formats`, where the registry finds it.

    Attributes:
        name: value of ``data.format``.
    """

    name: ClassVar[str]

    @abstractmethod
    def detect(self, tree: Tree) -> Match | None:
        """How sure it is that the folder is of this format, and why; None where it is not."""

    def nearly(self, tree: Tree) -> str | None:
        """Why a folder that no format knows is not of this one, although it looks like it; None where it does not."""
        return None

    @abstractmethod
    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """Find classes and samples.

        Raises:
            DatasetError: something is missing, or contradicts the format.
        """


def count_unlabelled(tree: Tree, samples: Mapping[Split | None, Sequence[Sample]]) -> int:
    """Number of images that no sample is of."""
    labelled = {sample.image for own in samples.values() for sample in own}
    return sum(tree.path(name) not in labelled for name in tree.images)


def read_mask_file(sample: Sample) -> MaskPixels:
    """Labels of a sample whose labels are a mask file; a `ReadLabels`."""
    return read_mask(sample.labels)
