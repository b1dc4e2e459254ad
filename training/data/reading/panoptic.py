"""COCO's panoptic form: a PNG of segment ids for each image, and a JSON with the category of each segment."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.frames.image_files import MaskPixels, read_mask
from dinov3_seg_ros.frames.mask_labels import LabelTable
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from dinov3_seg_ros.support.json_text import parse_json
from training.data.reading.content import as_text, check_ids, laid_out_like, read_once
from training.data.reading.protocol import Sample

_UNLABELLED = 0  # segment id of pixels in no segment, and their value in the masks that are read


class Panoptic(NamedTuple):
    """The part of a panoptic JSON that training needs.

    Attributes:
        path: the JSON file.
        categories: name of each category, by its id.
        files: names of image and mask, in the order of the image ids.
        first: (n + 1,) where each mask's segments begin in the next two.
        ids: (m,) segment ids, uint32.
        category_ids: (m,) category of each segment, int32.
    """

    path: Path
    categories: Mapping[int, str]
    files: list[tuple[str, str]]
    first: np.ndarray
    ids: np.ndarray
    category_ids: np.ndarray


class PanopticMasks:
    """Reads PNG files whose pixels hold segment ids as R + 256 G + 65536 B; the entry of a sample is its position.

    The values that it gives are 0 for pixels in no segment, and those of ``value_of``.

    Args:
        panoptic: the segments of each mask.
        value_of: value of each category, 1 to 65535.
    """

    def __init__(self, panoptic: Panoptic, value_of: Mapping[int, int]) -> None:
        self._panoptic, self._value_of = panoptic, dict(value_of)

    def __call__(self, sample: Sample) -> MaskPixels:
        """See `training.data.reading.protocol.ReadLabels`."""
        mask, panoptic = read_mask(sample.labels), self._panoptic
        if not mask.coloured:
            raise ItemError(
                f"{sample.labels} is no colour image, as COCO's panoptic masks are; replace it by COCO's own",
                "unreadable file",
            )
        own = slice(panoptic.first[sample.entry], panoptic.first[sample.entry + 1])
        values = (self._value_of[category] for category in panoptic.category_ids[own].tolist())
        value_of_segment = dict(zip(panoptic.ids[own].tolist(), values, strict=True))
        advice = f"which {panoptic.path} does not list for it: replace both by COCO's own"
        # More than 255 classes, because any number of categories may be there.
        table = LabelTable(value_of_segment | {_UNLABELLED: 0}, 256, _as_segment, advice)
        return MaskPixels(table.labels(mask.values, sample.labels).astype(np.uint32))


@read_once
def read_panoptic(path: Path) -> Panoptic:
    """Parse a panoptic JSON; COCO's largest has 1.3 million segments.

    Raises:
        DatasetError: the file cannot be read, or is no such JSON.
    """
    with laid_out_like("COCO's panoptic JSON", path):
        try:
            content = parse_json(path.read_text(encoding="utf-8"), _without_details)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read as JSON: {error}; get it anew") from error
        return _panoptic(content, path)


def _panoptic(content: dict[str, Any], path: Path) -> Panoptic:
    for key in ("categories", "images"):
        check_ids(content[key], key)
    image_names = {image["id"]: as_text(image["file_name"]) for image in content["images"]}
    masks = sorted(content["annotations"], key=operator.itemgetter("image_id"))
    segments = [segment for mask in masks for segment in mask["segments_info"]]
    categories = {category["id"]: as_text(category["name"]) for category in content["categories"]}
    unknown = next((category for _, category in segments if category not in categories), None)
    if unknown is not None:
        raise DatasetError(f"{path} has a segment of the category {unknown}, which it does not list; get it anew")
    return Panoptic(
        path,
        categories,
        [(image_names[mask["image_id"]], as_text(mask["file_name"])) for mask in masks],
        np.cumsum([0, *(len(mask["segments_info"]) for mask in masks)]),
        np.array([segment for segment, _ in segments], np.uint32),
        np.array([category for _, category in segments], np.int32),
    )


def _without_details(entry: dict[str, Any]) -> dict[str, Any] | tuple[int, int]:
    """Reduce a segment to its id and category while the JSON is parsed: boxes and areas would fill the memory."""
    return (entry["id"], entry["category_id"]) if "category_id" in entry else entry


def _as_segment(value: int) -> str:
    return f"the segment {value}"
