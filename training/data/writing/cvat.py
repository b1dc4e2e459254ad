"""Writes CVAT's own format, "CVAT for images 1.1"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from dinov3_seg_ros.frames.classes import Colour
from dinov3_seg_ros.support.files import replacing_file, write_json
from training.data.run_lengths import run_lengths
from training.data.writing.protocol import LabelWriter, ShapeKind
from training.data.writing.regions import Region

_FILE, _LABELS_FILE = "annotations.xml", "cvat_labels.json"
# CVAT's coordinates count from the corner of the first pixel.
_TO_CORNER = 0.5


class CvatWriter(LabelWriter):
    """``annotations.xml`` for the upload into a task, and ``cvat_labels.json`` for the field "Raw" of its labels.

    Parts of one region have one ``group_id``. See `training.data.formats.cvat_images`.
    """

    def __init__(self, folder: Path, names: Sequence[str], palette: Sequence[Colour], shapes: ShapeKind) -> None:
        super().__init__(folder, names, palette, shapes)
        self._images: list[ElementTree.Element] = []

    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """See `LabelWriter.add`."""
        height, width = map(str, size)
        image = ElementTree.Element("image", id=str(len(self._images)), name=name, width=width, height=height)
        for number, region in enumerate(regions):
            shape = {"label": self.names[region.label], "source": "auto", "occluded": "0"}
            order = {"z_order": str(number)}
            if self.shapes == "masks":
                (top, left), (rows, columns) = region.at, region.mask.shape
                place = {"left": str(left), "top": str(top), "width": str(columns), "height": str(rows)}
                lengths = ", ".join(map(str, run_lengths(region.mask)))
                ElementTree.SubElement(image, "mask", {**shape, "rle": lengths, **place, **order})
                continue
            group = {"group_id": str(number + 1)} if len(region.polygons) > 1 else {}
            for polygon in region.polygons:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in (polygon + _TO_CORNER).tolist())
                ElementTree.SubElement(image, "polygon", {**shape, "points": points, **order, **group})
        self._images.append(image)

    def finish(self) -> None:
        """See `LabelWriter.finish`."""
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        ElementTree.SubElement(task, "size").text = str(len(self._images))
        ElementTree.SubElement(task, "mode").text = "annotation"
        labels = ElementTree.SubElement(task, "labels")
        colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.palette]
        for name, colour in zip(self.names, colours, strict=True):
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = name
            ElementTree.SubElement(label, "color").text = colour
            ElementTree.SubElement(label, "attributes")
        root.extend(self._images)
        ElementTree.indent(root)
        with replacing_file(self.folder / _FILE) as temporary:
            ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
        raw = [{"name": name, "color": c, "attributes": []} for name, c in zip(self.names, colours, strict=True)]
        write_json(self.folder / _LABELS_FILE, raw)
