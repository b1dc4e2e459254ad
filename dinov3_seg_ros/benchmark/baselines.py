"""Two PyTorch pipelines that `timed_pipeline.OurPipeline` is compared with."""

from __future__ import annotations

from abc import abstractmethod

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinov3_seg_ros.benchmark.timed_pipeline import TimedPipeline, blend_class_by_class
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.frames.preprocessing import resize
from dinov3_seg_ros.model.heads import Head, build_head
from dinov3_seg_ros.support.timing import StageTimes


class _EagerPipeline(TimedPipeline):
    """Frames stretched, float preprocessing in NumPy, eager PyTorch in float32, one blend for each class."""

    def __init__(self, bundle: Bundle, size: tuple[int, int]) -> None:
        super().__init__(StageTimes())
        manifest = bundle.manifest
        self._size, self._palette = size, manifest.classes.palette
        self._label_type = np.uint8 if len(manifest.classes.names) <= 255 else np.uint16
        self._mean, self._std = np.array(manifest.input.mean), np.array(manifest.input.std)
        self._read = list(range(len(manifest.backbone.layers)))
        self._backbone, self._head = bundle.load_backbone(), self._make_head(bundle).eval()

    @torch.inference_mode()
    def run(self, frame: np.ndarray) -> np.ndarray:
        """See `FramePipeline.run`."""
        with self.times.stage("preprocess"):
            resized = resize(frame, self._size).astype(np.float32) / 255.0
            image = torch.from_numpy(((resized - self._mean) / self._std).transpose(2, 0, 1)[None]).float()
        with self.times.stage("backbone"):
            maps = self._backbone(image)
        with self.times.stage("heads"):
            logits = self._head([maps[index] for index in self._read], image)
        with self.times.stage("decode"):
            labels = self._decode(logits, frame.shape[:2])
        with self.times.stage("overlay"):
            blend_class_by_class(frame, labels, self._palette)
        return labels

    @abstractmethod
    def _make_head(self, bundle: Bundle) -> Head:
        """Build the head that is measured."""

    @abstractmethod
    def _decode(self, logits: Tensor, frame_size: tuple[int, int]) -> np.ndarray:
        """Return labels (H, W) of logits (1, C, h, w)."""


class NaivePipeline(_EagerPipeline):
    """The bundle's own head; logits interpolated to the frame, softmax, argmax."""

    name = "naive PyTorch"

    def _make_head(self, bundle: Bundle) -> Head:
        return bundle.load_head()

    def _decode(self, logits: Tensor, frame_size: tuple[int, int]) -> np.ndarray:
        full = F.interpolate(logits, size=frame_size, mode="bilinear", align_corners=False)
        return full.softmax(dim=1).argmax(dim=1)[0].numpy().astype(self._label_type)


class Dinov3RosPipeline(_EagerPipeline):
    """The steps of dinov3_ros with the heads of https://github.com/Raessan/semantic_segmentation_dinov3.

    Its plain ASPP head; logits interpolated to half of the network's size, then to all of it; softmax, argmax; the
    labels enlarged to the frame. The head has random weights here, which take the same time.
    """

    name = "dinov3_ros"
    knows_classes = False

    def _make_head(self, bundle: Bundle) -> Head:
        backbone = bundle.manifest.backbone
        self._read, classes = [len(backbone.layers) - 1], len(bundle.manifest.classes.names)
        return build_head("aspp", backbone.channels[-1:], backbone.strides[-1:], classes, variant="plain")

    def _decode(self, logits: Tensor, frame_size: tuple[int, int]) -> np.ndarray:
        height, width = self._size
        half = F.interpolate(logits, size=(height // 2, width // 2), mode="bilinear", align_corners=False)
        full = F.interpolate(half, size=(height, width), mode="bilinear", align_corners=False)
        labels = full.softmax(dim=1).argmax(dim=1)[0].numpy().astype(self._label_type)
        return cv2.resize(labels, frame_size[::-1], interpolation=cv2.INTER_NEAREST)
