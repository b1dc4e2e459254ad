"""Writers of label formats, for labelling tools; `training.data.formats` reads back what they write.

A writer gets the regions of one image after the other (`regions.find_regions`) and writes files into a folder in which
the images lie under ``images/``.
"""

from __future__ import annotations

from training.data.writing.coco import CocoWriter
from training.data.writing.cvat import CvatWriter
from training.data.writing.labelme import LabelmeWriter
from training.data.writing.protocol import LabelWriter

#: Writers by the name of their tool or format.
WRITERS: dict[str, type[LabelWriter]] = {"labelme": LabelmeWriter, "coco": CocoWriter, "cvat": CvatWriter}

__all__ = ["WRITERS", "LabelWriter"]
