"""A consumer of the node's topics that measures what arrives and keeps pictures."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from dinov3_seg_ros import scenes
from dinov3_seg_ros.demo.colour_baseline import ColourClassifier
from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.overlay import to_bgr
from dinov3_seg_ros.frames.video import Video
from dinov3_seg_ros.ros.cameras.messages import read_image, seconds_of
from dinov3_seg_ros.ros.endpoints.qos import OUTPUT_QOS
from dinov3_seg_ros.ros.endpoints.sequence import stamp_of
from dinov3_seg_ros.support.errors import DatasetError, OutputError, first_of
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from dinov3_seg_ros.support.timing import summarise_ms

_OUTPUTS = ("masks", "confidences", "overlays")
_FRAMES_REMEMBERED = 64
_PICTURE_EVERY = 40
# The files that `Recorder` writes: `overlay_0020.png`.
_PICTURE = re.compile(r"overlay_\d{4,}\.png")
# The colour classifier is slow and not the subject of the demo: every eighth frame is enough for its score.
_COLOUR_EVERY = 8


class Recorder(Node):
    """Subscribes to a camera, its true masks and the node's outputs, and compares them frame by frame.

    Args:
        namespace: of the topics.
        class_names: names of the classes.
        colours: a fitted colour classifier to score too; None for none.
        output: folder for pictures, frame and overlay side by side.
        video: gets the overlays.
        masks: folder of the user's true masks; None for those of the synthetic rooms.

    Attributes:
        heard_node: whether the node has said anything about itself.
        fault: what the node says keeps it from its work; empty for nothing.
    """

    def __init__(
        self,
        namespace: str,
        class_names: list[str],
        colours: ColourClassifier | None,
        output: Path,
        video: Video,
        masks: Path | None = None,
    ) -> None:
        super().__init__("recorder", namespace=namespace)
        self._names, self._colours, self._output, self._video = class_names, colours, output, video
        self._folder_of_masks, self._true_values = masks, set[int]()
        self._has_other_classes = False
        self._frames: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._truths: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._masks: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._scores = ConfusionMatrix(len(class_names))
        self._colour_scores = ConfusionMatrix(len(class_names))
        # Headers of outputs that came before their frame.
        self._headers: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._latencies_s: list[float] = []
        self._arrivals_s: list[float] = []
        self._counts = dict.fromkeys(("images", *_OUTPUTS, "scored", "headers_altered"), 0)
        self._matched = 0
        # The recorder must see every frame, or its count of drops means nothing.
        deep = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, "image", self._on_image, deep)
        self.create_subscription(Image, "ground_truth", self._on_truth, OUTPUT_QOS)
        self.create_subscription(Image, "segmentation/mask", self._on_mask, OUTPUT_QOS)
        self.create_subscription(Image, "segmentation/confidence", self._on_confidence, OUTPUT_QOS)
        self.create_subscription(Image, "segmentation/overlay", self._on_overlay, OUTPUT_QOS)
        self.heard_node, self.fault = False, ""
        self._observed = f"{namespace}/segmentation"
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    @property
    def node_subscribes(self) -> bool:
        """Whether the node has subscribed to the camera, as this recorder has."""
        return self.count_subscribers("image") > 1

    @property
    def received(self) -> bool:
        """Whether any mask has arrived."""
        return self._counts["masks"] > 0

    @property
    def doubt(self) -> str:
        """Why true masks are not compared, or may be none of class ids; empty for no reason."""
        if self._has_other_classes:
            return (
                "the bundle's classes are not those of the synthetic rooms, so its masks are not scored; for a score, "
                "give your own images and masks with --source and --masks"
            )
        if self._true_values != {0, 255}:
            return ""
        return (
            f"the masks in {self._folder_of_masks} hold nothing but 0 and 255: only pixels of '{self._names[0]}' are "
            "scored, and 255 stands for no class; if 255 means a class, write its id in its place"
        )

    def summary(self) -> dict[str, Any]:
        """What was measured.

        ``unmatched`` counts outputs whose frame did not arrive here: it was lost on its way, or the output's stamp was
        altered. ``miou`` is over the received masks whose true mask is known. ``latency_ms`` is from the stamp of a
        frame to the arrival of its mask in this process.
        """
        seconds = self._arrivals_s[-1] - self._arrivals_s[0] if len(self._arrivals_s) > 1 else 0.0
        return {
            **self._counts,
            "unmatched": sum(self._counts[output] for output in _OUTPUTS) - self._matched,
            "dropped": self._counts["images"] - self._counts["masks"],
            "fps": round((len(self._arrivals_s) - 1) / seconds, 2) if seconds else None,
            "latency_ms": summarise_ms(self._latencies_s) if self._latencies_s else None,
            **self._scores.summary(self._names),
            "colour_classifier_miou": self._colour_scores.summary(self._names)["miou"],
        }

    def _on_image(self, message: Image) -> None:
        self._counts["images"] += 1
        _remember(self._frames, stamp_of(message.header), message)
        for header in self._headers.pop(stamp_of(message.header), ()):
            self._check_header(header)

    def _on_truth(self, message: Image) -> None:
        truth = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)
        if self._folder_of_masks is not None:
            self._check_truth(truth, self._folder_of_masks)
        elif not are_of_rooms(self._names):
            self._has_other_classes = True
            return
        _remember(self._truths, stamp_of(message.header), truth)
        self._score(stamp_of(message.header))

    def _on_mask(self, message: Image) -> None:
        now = time.time()
        self._counts["masks"] += 1
        self._arrivals_s.append(now)
        self._latencies_s.append(now - seconds_of(message.header.stamp))
        self._check_header(message.header)
        mask = np.frombuffer(message.data, np.uint8 if message.encoding == "mono8" else np.uint16)
        _remember(self._masks, stamp_of(message.header), mask.reshape(message.height, message.width))
        self._score(stamp_of(message.header))

    def _on_confidence(self, message: Image) -> None:
        self._counts["confidences"] += 1
        self._check_header(message.header)

    def _on_overlay(self, message: Image) -> None:
        self._counts["overlays"] += 1
        self._check_header(message.header)
        overlay = to_bgr(read_image(message))
        self._video.write(overlay)
        frame = self._frames.get(stamp_of(message.header))
        if frame is not None and self._counts["overlays"] % _PICTURE_EVERY == _PICTURE_EVERY // 2:
            path = self._output / f"overlay_{self._counts['overlays']:04d}.png"
            try:
                write_picture(path, np.hstack((to_bgr(read_image(frame)), overlay)))
            except OSError as error:
                raise OutputError(f"{path} cannot be written ({error}); choose another folder with --output") from error

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._observed:
                self.heard_node = True
                if status.level == DiagnosticStatus.ERROR:
                    self.fault = status.message

    def _check_header(self, header: Any) -> None:
        """Compare an output's header with its frame's, when both are here, in whichever order they came."""
        stamp = stamp_of(header)
        if stamp in self._frames:
            self._matched += 1
            self._counts["headers_altered"] += self._frames[stamp].header != header
        else:
            _remember(self._headers, stamp, [*self._headers.get(stamp, ()), header])

    def _check_truth(self, truth: np.ndarray, folder: Path) -> None:
        """Raise DatasetError where a mask of the user's holds more than class ids."""
        values = np.flatnonzero(np.bincount(truth.ravel())).tolist()
        none = unlabelled_value(len(self._names))
        if wrong := [value for value in values if value >= len(self._names) and value != none]:
            raise DatasetError(
                f"a mask in {folder} holds {first_of(wrong)}, which are no classes of the bundle: its classes are 0 to "
                f"{len(self._names) - 1}, and {none} stands for no class; give masks of class ids"
            )
        self._true_values.update(values)

    def _score(self, stamp: tuple[int, int]) -> None:
        """Score a frame when its true and its received mask are here, in whichever order they came."""
        if stamp not in self._truths or stamp not in self._masks:
            return
        truth, mask = self._truths.pop(stamp), self._masks.pop(stamp)
        self._scores.update(truth, mask)
        self._counts["scored"] += 1
        if self._colours is not None and stamp in self._frames and self._counts["scored"] % _COLOUR_EVERY == 1:
            self._colour_scores.update(truth, self._colours.predict(read_image(self._frames[stamp])))


def are_of_rooms(class_names: Sequence[str]) -> bool:
    """Whether classes are those of the synthetic rooms, so that masks of them can be compared with the rooms' own."""
    return tuple(class_names) == tuple(scenes.CLASS_NAMES)


def remove_pictures(folder: Path) -> None:
    """Remove the pictures that a recorder kept in a folder before, which would stand among the new ones."""
    for path in folder.iterdir():
        if _PICTURE.fullmatch(path.name):
            path.unlink()


def _remember(frames: OrderedDict[tuple[int, int], Any], stamp: tuple[int, int], value: Any) -> None:
    frames[stamp] = value
    while len(frames) > _FRAMES_REMEMBERED:
        frames.popitem(last=False)
