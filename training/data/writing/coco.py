"""Writes COCO instances: one JSON for all images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov3_seg_ros.frames.classes import Colour
from dinov3_seg_ros.support.files import write_json
from training.data.run_lengths import compressed, run_lengths
from training.data.writing.protocol import LabelWriter, ShapeKind
from training.data.writing.regions import Region

_FILE = "annotations.json"
# COCO's coordinates count from the corner of the first pixel.
_TO_CORNER = 0.5


class CocoWriter(LabelWriter):
    """``annotations.json``, whose image names are relative to ``images/``.

    Each region is one annotation, of one polygon or several; masks are compressed run lengths. See
    `training.data.formats.coco`.
    """

    def __init__(self, folder: Path, names: Sequence[str], palette: Sequence[Colour], shapes: ShapeKind) -> None:
        super().__init__(folder, names, palette, shapes)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """See `LabelWriter.add`."""
        image = len(self._images) + 1
        self._images.append({"id": image, "file_name": name, "height": size[0], "width": size[1]})
        for region in regions:
            (top, left), (height, width) = region.at, region.mask.shape
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image,
                    "category_id": region.label + 1,
                    "segmentation": self._segmentation(region, size),
                    "area": region.area,
                    "bbox": [left, top, width, height],
                    "iscrowd": 0,
                }
            )

    def finish(self) -> None:
        """See `LabelWriter.finish`."""
        categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(self.names, 1)]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        write_json(self.folder / _FILE, content)

    def _segmentation(self, region: Region, size: tuple[int, int]) -> Any:
        if self.shapes == "polygons":
            return [(polygon + _TO_CORNER).ravel().tolist() for polygon in region.polygons]
        whole = np.zeros(size, bool)
        (top, left), (height, width) = region.at, region.mask.shape
        whole[top : top + height, left : left + width] = region.mask
        return {"size": list(size), "counts": compressed(run_lengths(np.ascontiguousarray(whole.T)))}
