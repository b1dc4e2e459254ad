"""The data set of image files with labels; see `training.data.base.SegmentationDataset`."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.image_files import READING_VERSION, MaskPixels, image_size, read_image
from dinov3_seg_ros.frames.mask_labels import fit_to_image
from dinov3_seg_ros.frames.value_range import FULL_RANGE, ValueScale
from dinov3_seg_ros.support.errors import DatasetError, first_of
from training.data.base import IncompleteError
from training.data.classes.map import ClassMap
from training.data.contents import Contents, digest_files
from training.data.reading.protocol import ReadLabels, Sample, read_mask_file


class LabelledImages:
    """Image files, each with labels in a file; see `training.data.base.SegmentationDataset`.

    Args:
        root: folder of the data set; names in `contents` are relative to it.
        samples: files of each item.
        class_map: turns values of masks into class ids.
        read: reads the labels of a sample.
        spare_masks: label files without an image.
        resize_masks: whether a mask of another size than its image is resized to it, by nearest neighbour.
        evidence: further files that decide how labels look, such as one that lists the categories.
        masks: whether the labels are masks whose values stand for classes.
        value_range: the 16-bit values that become 0 and 255 in the images.
        labels: of images in the folder of the spare files, whether they exist or not; None: those of the samples.

    Attributes:
        samples, spare_masks: as given.
        labelled: those of the labels that exist; empty where no file is spare.
    """

    def __init__(
        self,
        root: str | Path,
        samples: Sequence[Sample],
        class_map: ClassMap,
        read: ReadLabels = read_mask_file,
        spare_masks: Sequence[Path] = (),
        resize_masks: bool = False,
        evidence: Sequence[Path] = (),
        masks: bool = True,
        value_range: tuple[int, int] = FULL_RANGE,
        labels: Iterable[Path] | None = None,
    ) -> None:
        self.spare_masks = list(spare_masks)
        labels = labels if labels is not None else (sample.labels for sample in samples)
        self.labelled = frozenset(path for path in labels if self.spare_masks and path.is_file())
        self.class_names, self.palette = class_map.names, class_map.palette
        self.ignore_value = unlabelled_value(len(self.class_names))
        self._root, self._class_map, self._read, self._resize = Path(root), class_map, read, resize_masks
        self.mask_values = class_map.masks.values(resize_masks) if masks else None
        self._evidence, self._value_range = list(evidence), value_range
        self._take(samples)

    def _take(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        self._names_differ = len({sample.image.name for sample in self.samples}) == len(self.samples)

    def with_samples(self, samples: Sequence[Sample]) -> LabelledImages:
        """The data set with these samples in place of its own."""
        other = copy.copy(self)
        other._take(samples)
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def describe(self, index: int) -> str:
        """File name of an item's image; with its folders where others have the same name."""
        image = self.samples[index].image
        return image.name if self._names_differ else os.path.relpath(image, self._root)

    def contents(self) -> Contents:
        """See `SegmentationDataset.contents`."""
        settings = {
            "reading": READING_VERSION,
            "classes": self.class_names,
            "labels": self._class_map.masks.values(self._resize).model_dump(mode="json"),
            # How often an item is listed: the digests below have each file once.
            "repeated": {
                os.path.relpath(image, self._root): count
                for image, count in Counter(sample.image for sample in self.samples).items()
                if count > 1
            },
            **({"value_range": list(self._value_range)} if self._value_range != FULL_RANGE else {}),
        }
        inside = [sample for sample in self.samples if sample.content is not None]
        if inside:  # several splits may share a file, which holds the images of all
            settings["inside"] = [os.path.relpath(sample.image, self._root) for sample in inside]
        files = dict.fromkeys(path for sample in self.samples for path in sample.files())
        files.update(dict.fromkeys(self._evidence))
        return Contents(settings, self._digests(files))

    def image_digests(self) -> dict[int, str]:
        """SHA-256 of the image file of each item, by its index; without images that lie inside other files.

        Raises:
            DatasetError: a file cannot be read.
        """
        images = {index: sample.image for index, sample in enumerate(self.samples) if sample.content is None}
        digests = self._digests(dict.fromkeys(images.values()))
        return {index: digests[os.path.relpath(image, self._root)] for index, image in images.items()}

    def _digests(self, paths: Iterable[Path]) -> dict[str, str]:
        try:
            return digest_files(self._root, paths)
        except OSError as error:
            raise DatasetError(f"a file of the data set cannot be read ({error}); check data.root") from error

    @property
    def reads_palettes_by_colour(self) -> bool:
        """Whether masks with a palette are read by its colours, not by its indices."""
        return self._class_map.masks.colours is not None

    def pixels(self, index: int) -> MaskPixels:
        """The labels of an item as its file holds them.

        Raises:
            ItemError: they cannot be read.
        """
        return self._read(self.samples[index])

    def mask(self, index: int) -> np.ndarray:
        """See `SegmentationDataset.mask`; unless masks are resized, of the file's own size."""
        sample = self.samples[index]
        mask = self._labels(sample)
        if not self._resize:
            return mask
        source = sample.source()
        return fit_to_image(mask, image_size(source), True, sample.labels, source)

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationDataset.item`."""
        sample = self.samples[index]
        source = sample.source()
        image = read_image(source, ValueScale(self._value_range))
        size = image.shape[0], image.shape[1]
        return image, fit_to_image(self._labels(sample), size, self._resize, sample.labels, source)

    def _labels(self, sample: Sample) -> np.ndarray:
        return self._class_map.masks.labels(self._read(sample), sample.labels)


def complete(data: LabelledImages) -> LabelledImages:
    """The data set, once all its files exist.

    Raises:
        IncompleteError: some files are absent; the message names the first of them.
    """
    samples = data.samples
    names_in = {folder: _names_in(folder) for folder in {path.parent for sample in samples for path in sample.files()}}
    missing = [[path for path in sample.files() if path.name not in names_in[path.parent]] for sample in samples]
    whole = [sample for sample, absent in zip(samples, missing, strict=True) if not absent]
    if len(whole) == len(samples):
        return data
    files = [str(path) for paths in missing for path in paths]
    raise IncompleteError(
        f"{len(samples) - len(whole)} of {len(samples)} images have no mask, or are absent themselves; there is no "
        f"{first_of(files)}",
        files,
        data.with_samples(whole),
    )


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
