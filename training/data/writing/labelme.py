"""Writes labelme's JSON files, one beside each image."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml

from dinov3_seg_ros.support.files import replacing_file, write_json
from training.data.writing.protocol import IGNORED_LABEL, IMAGES, LabelWriter
from training.data.writing.regions import Region

# Of labelme, whose files have had this form since.
_VERSION = "5.2.0"
_CLASSES_FILE = "classes.yaml"


class LabelmeWriter(LabelWriter):
    """``images/a.json`` beside ``images/a.jpg``, and ``classes.yaml``, which keeps the order of the classes.

    Parts of one region have one ``group_id``. See `training.data.formats.labelme`.
    """

    is_file_of_each_image = True

    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """See `LabelWriter.add`."""
        path = PurePosixPath(name).with_suffix(".json")
        shapes = [shape for number, region in enumerate(regions, 1) for shape in self._shapes(region, number)]
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": PurePosixPath(name).name,
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }
        write_json(self.folder / IMAGES / path, content)

    def finish(self) -> None:
        """See `LabelWriter.finish`."""
        names = [name for name in self.names if name != IGNORED_LABEL]
        with replacing_file(self.folder / _CLASSES_FILE) as temporary:
            temporary.write_text(yaml.safe_dump(names, allow_unicode=True), encoding="utf-8")

    def _shapes(self, region: Region, number: int) -> Iterator[dict[str, Any]]:
        shape: dict[str, Any] = {"label": self.names[region.label], "group_id": None, "description": "", "flags": {}}
        if self.shapes == "masks":
            (top, left), (height, width) = region.at, region.mask.shape
            picture = cv2.imencode(".png", region.mask.astype(np.uint8) * 255)[1].tobytes()
            corners = [[left, top], [left + width - 1, top + height - 1]]
            mask = base64.b64encode(picture).decode()
            yield {**shape, "shape_type": "mask", "points": corners, "mask": mask}
            return
        for polygon in region.polygons:
            group = number if len(region.polygons) > 1 else None
            yield {**shape, "shape_type": "polygon", "points": polygon.tolist(), "group_id": group, "mask": None}
