"""Images that a teacher labelled (`training.distill`), beside those that people labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dinov3_seg_ros.frames.classes import Colour, MaskValues, unlabelled_value
from dinov3_seg_ros.frames.image_files import colour_value
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import SegmentationDataset
from training.data.classes.map import ClassMap, SourceClass, SourceClasses, number_map
from training.data.contents import Contents
from training.data.image_values import image_values
from training.data.labelled_images import LabelledImages, complete
from training.data.reading.content import laid_out_like, read_json
from training.data.reading.protocol import Sample
from training.support.section import Folder, Section

#: Written last, so that a folder without it is not complete.
PSEUDO_FILE = "pseudo_labels.json"
IMAGES, MASKS = "images", "masks"
#: Before the names of such images where they stand beside others.
PSEUDO_PREFIX = "pseudo-labels/"


class PseudoLabels(Section):
    """Images that a teacher labelled, which the student trains on too; `training.distill` writes them.

    Dong-Hyun Lee: Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks,
    2013.
    """

    root: Folder | None = None
    """Folder that training.distill wrote; null: the labelled images alone."""
    labelled_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the training samples that people labelled. Where these are few, each is drawn several times in an
    epoch, every time with other random changes."""

    def join(self, labelled: SegmentationDataset, value_range: ValueRange = "auto") -> SegmentationDataset:
        """A training split together with the teacher's images; the split alone where there is no folder.

        Args:
            labelled: the training split.
            value_range: which values of 16-bit images are black and white.

        Raises:
            DatasetError: the folder is not complete, or has other classes.
        """
        if self.root is None:
            return labelled
        return JoinedImages(labelled, open_pseudo_labels(Path(self.root), labelled, value_range), self.labelled_share)


class JoinedImages:
    """Labelled images, then the teacher's; see `training.data.base.SegmentationDataset`.

    Args:
        labelled, taught: the two parts, with the same classes.
        labelled_share: of the samples that training draws, 0..1.

    Attributes:
        taught: as given.
        repeats: how often each image is drawn, (images,), at least 1.
    """

    def __init__(self, labelled: SegmentationDataset, taught: SegmentationDataset, labelled_share: float) -> None:
        self.class_names: list[str] = labelled.class_names
        self.palette: list[Colour] = labelled.palette
        self.ignore_value: int = labelled.ignore_value
        self.mask_values: MaskValues | None = labelled.mask_values
        self.taught, self._parts = taught, (labelled, taught)
        weights = (labelled_share / len(labelled), (1 - labelled_share) / len(taught))
        both = np.repeat([weight / min(weights) for weight in weights], [len(labelled), len(taught)])
        self.repeats: NDArray[np.float64] = both

    def repeats_by(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """`repeats` where the images of each part are drawn by factors (images,), and the share of each part stays."""
        labelled, taught = np.split(factors, [len(self._parts[0])])
        repeats = self.repeats * np.concatenate([labelled / labelled.mean(), taught / taught.mean()])
        return np.asarray(repeats / repeats.min())

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationDataset.item`."""
        part, own = self._place(index)
        return part.item(own)

    def mask(self, index: int) -> np.ndarray:
        """See `SegmentationDataset.mask`."""
        part, own = self._place(index)
        return part.mask(own)

    def describe(self, index: int) -> str:
        """See `SegmentationDataset.describe`."""
        part, own = self._place(index)
        return part.describe(own)

    def contents(self) -> Contents:
        """See `SegmentationDataset.contents`."""
        labelled, taught = (part.contents() for part in self._parts)
        files = {**labelled.files, **{f"{PSEUDO_PREFIX}{name}": digest for name, digest in taught.files.items()}}
        return Contents({**labelled.settings, "pseudo_labels": dict(taught.settings)}, files)

    def _place(self, index: int) -> tuple[SegmentationDataset, int]:
        labelled, taught = self._parts
        return (labelled, index) if index < len(labelled) else (taught, index - len(labelled))


def open_pseudo_labels(root: Path, labelled: SegmentationDataset, value_range: ValueRange) -> LabelledImages:
    """The images that a teacher labelled.

    Args:
        root: folder that `training.distill` wrote.
        labelled: a data set with the same classes.
        value_range: which values of 16-bit images are black and white.

    Raises:
        DatasetError: the folder is not complete, or has other classes; a file is missing.
    """
    path = root / PSEUDO_FILE
    if not path.is_file():
        raise DatasetError(
            f"pseudo_labels.root is {root}, which holds no {PSEUDO_FILE}; give a folder that training.distill has "
            "written to its end"
        )
    content: dict[str, Any] = read_json(path)
    with laid_out_like("what training.distill writes", path):
        names = list(content["classes"])
        samples = [Sample(root / IMAGES / entry["image"], root / MASKS / entry["mask"]) for entry in content["images"]]
    if names != labelled.class_names:
        raise DatasetError(
            f"the teacher of {root} has other classes than the data set: {names} and {labelled.class_names}; label the "
            "images again by a bundle with these classes in this order"
        )
    values = image_values(samples).range(value_range)
    return complete(LabelledImages(root, samples, _class_ids(names, labelled.palette), value_range=values))


def _class_ids(names: Sequence[str], palette: Sequence[Colour]) -> ClassMap:
    """Masks that hold class ids and the unlabelled value."""
    entries = [
        SourceClass(name, (index,), (colour_value(colour),))
        for index, (name, colour) in enumerate(zip(names, palette, strict=True))
    ]
    ignored = SourceClass("", (unlabelled_value(len(names)),))
    return number_map(SourceClasses(tuple(entries), "the teacher", ignored))
