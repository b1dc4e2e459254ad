"""COCO with panoptic annotations."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import DataSettings, ItemError, Split
from training.data.class_lists import known_classes
from training.data.files import FileDataset, LabelTable, Pair, find_parts, open_pairs, read_mask_values

_UNLABELLED = 0  # segment id of pixels in no segment, and class id of the background


class CocoPanopticData(DataSettings):
    """COCO panoptic: 134 classes, 118,287 training images and 5,000 for validation.

    ``root`` has train2017, val2017, annotations/panoptic_train2017.json, annotations/panoptic_val2017.json and the
    folders panoptic_train2017 and panoptic_val2017, in annotations or beside it. Class 0 is the background; 1 to 80
    are the things and 81 to 133 the stuff, in the order of COCO's category ids. Crowds are of their category.

    Kirillov et al., Panoptic Segmentation, 2019, arXiv:1801.00868; Lin et al., Microsoft COCO, 2014, arXiv:1405.0312.
    """

    name: Literal["coco_panoptic"] = "coco_panoptic"
    root: str
    """Folder that holds train2017, val2017 and annotations."""
    background: Literal["class", "ignore"] = "class"
    """What unlabelled pixels are: class 0, or ignored; then no pixel is of class 0."""

    def open(self, split: Split) -> FileDataset:
        """See `DataSettings.open`."""
        panoptic = f"panoptic_{split}2017"
        images, masks, annotations = find_parts(
            "COCO panoptic",
            self.root,
            (f"{split}2017", f"images/{split}2017"),
            (f"annotations/{panoptic}", panoptic),
            (f"annotations/{panoptic}.json",),
        )
        classes = known_classes("coco_panoptic")
        segments = _read_segments(annotations, annotations.stat().st_mtime_ns)
        unlabelled = 0 if self.background == "class" else unlabelled_value(len(classes))
        pairs = [Pair(images / image, masks / mask) for image, mask in segments.files]
        return open_pairs(self.root, pairs, classes, PanopticMasks(segments, len(classes), unlabelled))

    def empty_classes(self) -> frozenset[str]:
        """See `DataSettings.empty_classes`."""
        return frozenset(("background",) if self.background == "ignore" else ())


class Segments(NamedTuple):
    """The part of a panoptic JSON that training needs.

    Attributes:
        path: the JSON file.
        files: names of image and mask, in the order of the image ids.
        position: of each mask's name in ``files``.
        first: (n + 1,) where each mask's segments begin in the next two.
        ids: (m,) segment ids, uint32.
        class_ids: (m,) class of each segment, uint8.
    """

    path: Path
    files: list[tuple[str, str]]
    position: dict[str, int]
    first: np.ndarray
    ids: np.ndarray
    class_ids: np.ndarray


class PanopticMasks:
    """Reads PNG files whose pixels hold segment ids as R + 256 G + 65536 B.

    Args:
        segments: the class of each segment.
        class_count: number of classes.
        unlabelled: label of the pixels in no segment.
    """

    def __init__(self, segments: Segments, class_count: int, unlabelled: int) -> None:
        self._segments, self._class_count, self._unlabelled = segments, class_count, unlabelled

    def __call__(self, path: Path) -> np.ndarray:
        """See `training.data.files.MaskReader`."""
        values, coloured = read_mask_values(path)
        if not coloured:
            raise ItemError(
                f"{path} is no colour image, as COCO's panoptic masks are; replace it by COCO's own", "unreadable file"
            )
        segments = self._segments
        index = segments.position[path.name]
        own = slice(segments.first[index], segments.first[index + 1])
        label_of = dict(zip(segments.ids[own].tolist(), segments.class_ids[own].tolist(), strict=True))
        advice = f"which {segments.path} does not list for it: replace both by COCO's own"
        table = LabelTable(label_of | {_UNLABELLED: self._unlabelled}, self._class_count, _as_segment, advice)
        return table.labels(values, path)

    def mapping(self) -> dict[str, Any]:
        """See `training.data.files.MaskReader.mapping`."""
        segments = self._segments
        digest = hashlib.sha256(json.dumps(segments.files).encode())
        for part in (segments.first, segments.ids, segments.class_ids):
            digest.update(part.tobytes())
        return {"segments": digest.hexdigest(), "unlabelled": self._unlabelled}


def _as_segment(value: int) -> str:
    return f"the segment {value}"


@functools.lru_cache(maxsize=4)
def _read_segments(path: Path, _modified: int) -> Segments:
    """Parse a panoptic JSON, once in a process while it stays as it is; COCO's largest has 1.3 million segments.

    Raises:
        DatasetError: the file cannot be read, or is no such JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_without_details)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}; get it anew from cocodataset.org") from error
    try:
        return _segments(content, path)
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"{path} is not laid out like COCO's panoptic JSON ({error!r}); get it anew from cocodataset.org"
        ) from error


def _segments(content: dict[str, Any], path: Path) -> Segments:
    class_of = _class_of_category(content["categories"], path)
    image_names = {image["id"]: image["file_name"] for image in content["images"]}
    masks = sorted(content["annotations"], key=operator.itemgetter("image_id"))
    segments = [segment for mask in masks for segment in mask["segments_info"]]
    return Segments(
        path,
        [(image_names[mask["image_id"]], mask["file_name"]) for mask in masks],
        {mask["file_name"]: index for index, mask in enumerate(masks)},
        np.cumsum([0, *(len(mask["segments_info"]) for mask in masks)]),
        np.array([segment for segment, _ in segments], np.uint32),
        np.array([class_of[category] for _, category in segments], np.uint8),
    )


def _without_details(entry: dict[str, Any]) -> dict[str, Any] | tuple[int, int]:
    """Reduce a segment to its id and category while the JSON is parsed: boxes and areas would fill the memory."""
    return (entry["id"], entry["category_id"]) if "category_id" in entry else entry


def _class_of_category(categories: list[dict[str, Any]], path: Path) -> dict[int, int]:
    class_ids = {name: index for index, name in enumerate(known_classes("coco_panoptic"))}
    unknown = [category["name"] for category in categories if category["name"] not in class_ids]
    if unknown:
        raise DatasetError(f"{path} has the category '{unknown[0]}', which is none of COCO panoptic's 133")
    return {category["id"]: class_ids[category["name"]] for category in categories}
