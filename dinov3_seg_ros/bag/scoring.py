"""Score a bundle against the ground truth in a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dinov3_seg_ros.bag.images import (
    FrameName,
    ImageReader,
    Skipped,
    choose_topics,
    deserialised,
    image_topics,
    name_of_frame,
)
from dinov3_seg_ros.bag.message_types import LABEL_INFO, known_types
from dinov3_seg_ros.bag.recordings import Track, messages_of, open_recording, untracked
from dinov3_seg_ros.bag.truth import truth_topics
from dinov3_seg_ros.frames.encodings import quoted
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.frames.sources import decode_pixels
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.ros.endpoints.image_types import IMAGE
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, MessageError, nearest
from dinov3_seg_ros.support.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Reader
    from rosbags.typesys.store import Typestore

# Labels of true masks that stand for no class of the bundle: unlabelled pixels, and values without a meaning.
_NO_CLASS, _UNKNOWN = 65535, -1
_ADVICE = "make the masks with the bundle's recipe: python -m training.export_masks RECIPE"
_DTYPES = {"mono8": np.uint8, "8UC1": np.uint8, "mono16": np.uint16, "16UC1": np.uint16}


@dataclass
class Score:
    """The outcome.

    Attributes:
        matrix: counts of all pixels with a true class.
        frames: number of images that were compared.
        skipped: images and true masks that could not be.
    """

    matrix: ConfusionMatrix
    frames: int = 0
    skipped: Skipped = field(default_factory=Skipped)


def score(
    segmenter: Segmenter,
    source: Path,
    topics: Sequence[str] = (),
    options: PublishOptions | None = None,
    track: Track = untracked,
) -> Score:
    """Segment the images that have a true mask of exactly their stamp, and compare.

    The true masks lie on the topics that `truth.truth_topics` names. Their classes are found in the bundle by name
    where the recording has the names, otherwise by id.

    Args:
        segmenter: of one bundle.
        source: folder (or single file) of a rosbag2.
        topics: of the images; none: all that have ground truth.
        options: how images are read. With temporal smoothing, images without ground truth are segmented too.
        track: see `recordings.Track`.

    Raises:
        DatasetError: the recording cannot be read, has no ground truth for these topics, or its classes are not those
            of the bundle; or nothing could be compared.
    """
    options, (manifest,) = options or PublishOptions(), segmenter.manifests.values()
    names, done = manifest.classes.names, Score(ConfusionMatrix(len(manifest.classes.names)))
    with open_recording(source) as reader:
        truth_of = _find_truths(reader.connections, topics)
        truths = _read_truths(reader, source, truth_of, names, done.skipped)
        comparison = _Comparison(segmenter, truths, options.temporal_smoothing, done)
        value_range = chosen_range(options.value_range, segmenter.value_range)
        images = ImageReader(known_types(), list(truth_of), options.max_pixels, value_range)
        connections = [connection for connection in reader.connections if connection.topic in truth_of]
        count = sum(connection.msgcount for connection in connections)
        for connection, recorded, raw in track(messages_of(reader, source, connections), count):
            try:
                message = images.message(connection, raw)
                name = name_of_frame(connection.topic, message.header, recorded)
                if comparison.wants(name):
                    comparison.add(name, images.rgb(connection, message))
                else:
                    images.pass_over(connection, message)
            except MessageError as error:
                done.skipped.add(error.fault, f"{connection.topic} at {recorded} ns: {error}")
        comparison.finish()
    if not done.frames:
        raise DatasetError(
            f"no image of {source} could be compared with a true mask; {'; '.join(done.skipped.lines())}"
        )
    return done


class _Comparison:
    """Segments images in batches, and compares them with their true masks.

    Args:
        segmenter: of one bundle.
        truths: the true masks (H, W), as PNG; each is used once.
        smoothing: weight of previous frames.
        done: gains the outcome.
    """

    def __init__(self, segmenter: Segmenter, truths: dict[FrameName, bytes], smoothing: float, done: Score) -> None:
        self._segmenter, self._truths, self._smoothing, self._done = segmenter, truths, smoothing, done
        self._smoothers: dict[str, TemporalSmoother] = {}
        self._batch: list[tuple[FrameName, np.ndarray]] = []

    def wants(self, name: FrameName) -> bool:
        """Whether an image must be segmented."""
        return name in self._truths or bool(self._smoothing)

    def add(self, name: FrameName, rgb: np.ndarray) -> None:
        """Take the next image, (H, W, 3) uint8 RGB."""
        self._batch.append((name, rgb))
        if len(self._batch) == self._segmenter.max_batch:
            self._compare_batch()

    def finish(self) -> None:
        """Compare the rest, and count the true masks that no image came for."""
        self._compare_batch()
        for name in self._truths:
            self._done.skipped.add("no readable image for a true mask", f"{name.topic}, stamp {name.stamp} ns")

    def _compare_batch(self) -> None:
        batch, self._batch = self._batch, []
        found = self._segmenter.segment([rgb for _, rgb in batch])
        for (name, rgb), result in zip(batch, found, strict=True):
            if self._smoothing:
                smoother = self._smoothers.setdefault(name.topic, TemporalSmoother(self._smoothing))
                result = result.smoothed(smoother, rgb, 1e-9 * name.stamp)
            content = self._truths.pop(name, None)
            if content is None:
                continue
            truth = decode_pixels(content, name)
            if truth.shape != rgb.shape[:2]:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (truth.shape, rgb.shape)]
                self._done.skipped.add("sizes differ", f"{name}: the true mask is {sizes[0]}, the image {sizes[1]}")
                continue
            (head,) = result.heads.values()
            self._done.matrix.update(truth, head.labels)
            self._done.frames += 1


def _find_truths(connections: Sequence[Connection], topics: Sequence[str]) -> dict[str, str]:
    """The topic of the true masks for each topic of images.

    Raises:
        DatasetError: there is none for a topic, or two share one.
    """
    existing = {connection.topic for connection in connections if connection.msgtype == IMAGE}
    chosen = choose_topics(connections, topics) if topics else image_topics(connections)
    truth_of = {topic: truth_topics(topic)[0] for topic in chosen}
    found = {topic: truth for topic, truth in truth_of.items() if truth in existing}
    missing = [topic for topic in topics if topic not in found]
    if missing or not found:
        lacking = f" for {missing[0]}" if missing else ""
        wanted = f"on {truth_of[missing[0]]}" if missing else "such as /front/segmentation/truth for /front/image"
        raise DatasetError(
            f"the recording has no true masks{lacking}, {wanted}; put them in with: python -m dinov3_seg_ros.bag insert"
        )
    if len(set(found.values())) < len(found):
        raise DatasetError(
            f"several topics of images have the same true masks; name one of each namespace with --topics: "
            f"{', '.join(found)}"
        )
    return found


def _read_truths(
    reader: Reader, source: Path, truth_of: Mapping[str, str], names: Sequence[str], skipped: Skipped
) -> dict[FrameName, bytes]:
    """The true masks (H, W) with the bundle's class ids, as PNG of 16 bits: all of a recording fit into memory.

    Raises:
        DatasetError: their classes are not those of the bundle.
    """
    types, truths = known_types(), {}
    image_of = {truth: image for image, truth in truth_of.items()}
    lookups = _read_lookups(reader, source, types, truth_of, names)
    connections = [c for c in reader.connections if c.topic in image_of and c.msgtype == IMAGE]
    for connection, recorded, raw in messages_of(reader, source, connections):
        topic = connection.topic
        try:
            message = deserialised(types, IMAGE, raw)
            name = name_of_frame(image_of[topic], message.header, recorded)
            mask = _read_truth(message)
        except MessageError as error:
            skipped.add(error.fault, f"{topic} at {recorded} ns: {error}")
            continue
        labels = np.where(mask == np.iinfo(mask.dtype).max, _NO_CLASS, lookups[topic][mask])
        if (labels == _UNKNOWN).any():
            raise DatasetError(
                f"{topic} at {name.stamp} ns has the value {mask[labels == _UNKNOWN][0]}, which is none of the "
                f"{len(names)} classes of the bundle; {_ADVICE}"
            )
        truths[name] = cv2.imencode(".png", labels.astype(np.uint16))[1].tobytes()
    return truths


def _read_lookups(
    reader: Reader, source: Path, types: Typestore, truth_of: Mapping[str, str], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """For the true masks of each topic: the bundle's class id, or `_UNKNOWN`, for each value (65536,).

    Raises:
        DatasetError: a class is none of the bundle's.
    """
    class_maps = {truth: dict(enumerate(names)) for truth in truth_of.values()}
    truth_of_info = {truth_topics(image)[1]: truth for image, truth in truth_of.items()}
    infos = [c for c in reader.connections if c.topic in truth_of_info and c.msgtype == LABEL_INFO]
    for connection, _, raw in messages_of(reader, source, infos) if infos else ():
        try:
            entries = deserialised(types, LABEL_INFO, raw).class_map
        except MessageError as error:
            raise DatasetError(f"{connection.topic}: {error}") from error
        class_maps[truth_of_info[connection.topic]] = {entry.class_id: entry.class_name for entry in entries}
    lookups = {}
    for topic, class_map in class_maps.items():
        lookups[topic] = np.full(1 << 16, _UNKNOWN, np.int32)
        for value, name in class_map.items():
            if name not in names:
                raise DatasetError(
                    f"the true masks on {topic} have the class '{name}', which the bundle lacks"
                    f"{nearest(name, names)}; {_ADVICE}"
                )
            lookups[topic][value] = names.index(name)
    return lookups


def _read_truth(message: Any) -> np.ndarray:
    """The pixels (H, W) of a true mask, uint8 or uint16.

    Raises:
        MessageError: it is no mask.
    """
    dtype, size = _DTYPES.get(message.encoding), (message.height, message.width)
    if dtype is None or 0 in size or message.step < size[1] * np.dtype(dtype).itemsize:
        raise MessageError("no mask", f"a true mask is {quoted(message.encoding)} of {size[1]}x{size[0]} pixels")
    if len(message.data) != message.step * size[0]:
        raise MessageError("wrong length of data", f"a true mask holds {len(message.data)} bytes")
    order = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    mask: np.ndarray = np.ndarray(size, order, message.data, 0, (message.step, order.itemsize)).astype(dtype)
    return mask
