"""The items of a data set through a bundle, to be compared with their true masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.segmenter import HeadSegmentation, Segmenter
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import check_outside
from training.data import SegmentationDataset
from training.data.base import DataSettings
from training.evaluation.inference import AveragingSegmenter

#: Of image files, which do not say when they were taken.
FRAMES_PER_SECOND = 10.0

OnPrediction = Callable[[int, np.ndarray, np.ndarray, HeadSegmentation], None]


def check_classes(bundle: Bundle, data: SegmentationDataset) -> None:
    """Raise DatasetError unless a bundle has the classes of the data set."""
    classes = bundle.manifest.classes.names
    if data.class_names != classes:
        raise DatasetError(
            f"the data set's classes are not those of {bundle.path}: {data.class_names} and {classes}; "
            "take a data set with the same classes in the same order"
        )


def check_outside_data(output: Path, section: DataSettings) -> None:
    """Raise OutputError where a folder that is written would lie in the folder of a data set."""
    root = getattr(section, "root", None)  # synthetic scenes have none
    if root is not None:
        check_outside(output, root)


def segment_all(
    segmenter: Segmenter | AveragingSegmenter,
    data: SegmentationDataset,
    indices: Iterable[int],
    on_prediction: OnPrediction,
    smoother: TemporalSmoother | None = None,
) -> None:
    """Segment items of a data set.

    Args:
        segmenter: of a bundle with the classes of ``data``, in the same order.
        data: the data set.
        indices: of the items, in the order of their time where they are smoothed.
        on_prediction: called with index, image, true mask and result of each, which has the size of the mask.
        smoother: smooths the results over time, as of a camera with `FRAMES_PER_SECOND`.

    Raises:
        DatasetError: an item cannot be read.
    """
    rest, numbers = iter(indices), itertools.count()
    while batch := list(itertools.islice(rest, segmenter.max_batch)):
        items = [data.item(index) for index in batch]
        found = segmenter.segment([image for image, _ in items])
        for index, (image, truth), segmentation in zip(batch, items, found, strict=True):
            if smoother is not None:
                segmentation = segmentation.smoothed(smoother, image, next(numbers) / FRAMES_PER_SECOND)
            on_prediction(index, image, truth, next(iter(segmentation.heads.values())))
