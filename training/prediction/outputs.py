"""What is written of a frame: mask, confidence, overlay."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.overlay import blend_overlay, to_bgr
from dinov3_seg_ros.frames.video import Video
from dinov3_seg_ros.segmenter import Segmentation
from training.prediction.settings import PredictionSettings
from training.support.writing import writing

MASKS, CONFIDENCES, OVERLAYS, VIDEO_FILE = "masks", "confidence", "overlays", "overlay.mp4"
SUMMARY_FILE = "summary.json"


class FrameWriter:
    """Writes the wanted outputs of frames; each file is written whole or not at all.

    Args:
        folder: for the files.
        manifest: of the bundle that segments the frames.
        settings: what to write.
        video: takes the overlays; None: they become JPEG files.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, settings: PredictionSettings, video: Video | None = None
    ) -> None:
        self._folder, self._classes, self._settings, self._video = folder, manifest.classes, settings, video

    def write(self, name: str, image: np.ndarray, segmentation: Segmentation) -> None:
        """Write one frame.

        Args:
            name: relative path without suffix.
            image: (H, W, 3) uint8 RGB.
            segmentation: its labels have the image's size.

        Raises:
            OutputError: a file cannot be written.
        """
        if self._settings.masks:
            _write_picture(self._folder / MASKS / f"{name}.png", segmentation.labels)
        if self._settings.confidence:
            _write_picture(self._folder / CONFIDENCES / f"{name}.png", segmentation.confidence)
        if self._settings.overlays:
            self.write_overlay(name, image, segmentation.labels)

    def write_overlay(self, name: str, image: np.ndarray, labels: np.ndarray) -> None:
        """Write the overlay of one frame; see `write`.

        Args:
            name, image: see `write`.
            labels: (H, W) class ids.
        """
        names = self._classes.names if self._settings.names else None
        overlay = to_bgr(blend_overlay(image, labels, self._classes.palette, alpha=self._settings.alpha, names=names))
        if self._video is None:
            _write_picture(self._folder / OVERLAYS / f"{name}.jpg", overlay)
        else:
            self._video.write(overlay)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    with writing(path):
        write_picture(path, picture)
