"""Predictions on a cluster: each partition goes through the loop that one process would use for all frames."""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import MANIFEST_FILE as BUNDLE_FILE
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.video import new_video
from dinov3_seg_ros.options import ComputeOptions, ValueRange
from dinov3_seg_ros.support.errors import BundleError, DatasetError
from dinov3_seg_ros.support.files import sha256_of_file
from training.cluster.arguments import ClusterSettings
from training.cluster.partitions import Partitions
from training.cluster.session import open_cluster
from training.evaluation.inference import open_segmenter
from training.prediction.inputs import Input, Part, open_input
from training.prediction.loop import Prediction, segment_frames
from training.prediction.outputs import MASKS, VIDEO_FILE, FrameWriter
from training.prediction.progress import frame_progress
from training.prediction.settings import PredictionSettings

# How to compute without another result.
_SAME_RESULT = {"threads"}


@dataclass(frozen=True)
class PredictionJob:
    """What the processes of a cluster need to know.

    Attributes:
        bundle: path or name; see `load_bundle`.
        bundle_digest: of its manifest.
        source, value_range, topics: see `open_input`.
        output: folder that all processes see.
        settings: what is computed and written.
        compute: how.
    """

    bundle: str
    bundle_digest: str
    source: str
    value_range: ValueRange
    topics: tuple[str, ...]
    output: str
    settings: PredictionSettings
    compute: ComputeOptions

    def run(self, size: int) -> dict[str, Any]:
        """What makes the job another one, for partitions of ``size`` frames; JSON types."""
        return {
            "bundle": self.bundle_digest,
            "input": self.source,
            "topics": list(self.topics),
            "value_range": self.value_range if isinstance(self.value_range, str) else list(self.value_range),
            "settings": self.settings.model_dump(mode="json"),
            "compute": self.compute.model_dump(mode="json", exclude=_SAME_RESULT),
            "partition": size,
        }


class PredictionWorker:
    """Segments the frames of one partition after the other, in one process.

    Args:
        job: of all processes.

    Raises:
        SegmentationError: bundle or input cannot be opened here.
    """

    def __init__(self, job: PredictionJob) -> None:
        self._input = open_input(job.source, job.value_range, job.topics)
        self._settings = job.settings
        if self._input.rate is not None:  # the video is drawn when all masks are there
            masks = job.settings.masks or job.settings.overlays
            self._settings = job.settings.model_copy(update={"masks": masks, "overlays": False})
        bundle = _load_checked(job)
        self._manifest = bundle.manifest
        self._segmenter = open_segmenter(bundle, job.settings.inference, job.compute)
        self._segmenter.warm_up()
        self._partitions = Partitions(Path(job.output))

    def process(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do the partition of a task; see `Worker.process`. The result has what its manifest says in short."""
        part, done, began = Part.from_json(task["part"]), Prediction(), time.time()
        with self._partitions.writing(task["number"], str(part)) as new:
            writer = FrameWriter(new.folder, self._manifest, self._settings)
            segment_frames(self._segmenter, self._input.source(part), writer, self._settings, done)
            new.facts = {
                "frames": done.frames,
                "segmenting_seconds": round(done.segmenting_seconds, 3),
                "flicker": done.flicker,
                "unreadable": done.unreadable,
                "runtime": self._segmenter.runtime.description,
                "host": socket.gethostname(),
            }
        return {
            "frames": done.frames,
            "unreadable": len(done.unreadable),
            "segmenting_seconds": done.segmenting_seconds,
            "began": began,
            "ended": time.time(),
        }


def predict_on_cluster(
    job: PredictionJob, partitions: Partitions, cluster: ClusterSettings, console: Console
) -> tuple[Prediction, str] | None:
    """Segment an input on many processes; the files are those that one process would write.

    A run that was interrupted, however that was, goes on with ``cluster.resume``.

    Args:
        job: bundle, input and output, as all processes see them.
        partitions: of the output folder; held by this process.
        cluster: the processes.
        console: shows the progress if it is a terminal.

    Returns:
        The outcome, and what computed, for people; None where the run was complete before.

    Raises:
        ClusterError, RuntimeUnavailableError: the cluster cannot be used, or a worker cannot go on.
        DatasetError: there is nothing to segment, it cannot be divided, or it is no stream and should be smoothed.
        OutputError: the output folder holds something else, or cannot be written.
        KeyboardInterrupt: what is done is kept.
    """
    settings, manifest = job.settings, _load_checked(job).manifest
    source = open_input(job.source, job.value_range, job.topics)
    settings.check_rate(source.rate)
    parts = source.parts(cluster.partition)
    if settings.temporal_smoothing or settings.flicker:
        parts = [Part()]  # each frame depends on those before
    run = {**job.run(cluster.partition), "files": source.digest(), "partitions": len(parts)}
    if partitions.begin(run, cluster.resume):
        return None
    done = _compute(job, cluster, source, parts, partitions, console)
    contents = [partitions.manifest(number) for number in range(len(parts))]
    if source.rate is not None and not sum(content["frames"] for content in contents):
        raise DatasetError("the stream gives no frame; is the file whole?")
    if source.rate is not None and settings.overlays:
        _draw_video(job, source, manifest, partitions, contents)
    for name in partitions.join(len(parts), lambda file: settings.masks or not file.startswith(f"{MASKS}/")):
        key, reason = source.repeated(name)
        done.unreadable[key] = reason
        done.frames -= 1
    for content in contents:
        done.frames += content["frames"]
        done.flicker = content["flicker"]
        done.unreadable.update(content["unreadable"])
    return done, ", ".join(Counter(content["runtime"] for content in contents))


def _compute(
    job: PredictionJob,
    cluster: ClusterSettings,
    source: Input,
    parts: Sequence[Part],
    partitions: Partitions,
    console: Console,
) -> Prediction:
    """Compute the partitions that are left; return their durations."""
    left = partitions.left(len(parts))
    done = Prediction()
    if not left:
        return done
    count = source.count() if len(left) == len(parts) else None
    with (
        open_cluster(cluster.address, cluster.processes, job.compute.threads) as opened,
        frame_progress(console) as progress,
    ):
        pool = opened.pool(cluster.processes, job.compute.threads, job.compute.device != "cpu")
        pool = dataclasses.replace(pool, processes=min(pool.processes, len(left)))
        of_pool = dataclasses.replace(job, compute=job.compute.model_copy(update={"threads": pool.threads}))
        tasks = [{"number": number, "part": dataclasses.asdict(parts[number])} for number in left]
        shown = progress.add_task(f"segmenting ({pool.processes} processes)", total=count)
        began, ended = math.inf, 0.0
        for result in opened.run(PredictionWorker, of_pool, tasks, pool):
            done.timed_frames += result["frames"]
            done.segmenting_seconds += result["segmenting_seconds"] / pool.processes
            began, ended = min(began, result["began"]), max(ended, result["ended"])
            done.seconds = ended - began
            progress.advance(shown, result["frames"] + result["unreadable"])
    return done


def _draw_video(
    job: PredictionJob, source: Input, manifest: Manifest, partitions: Partitions, contents: Sequence[dict[str, Any]]
) -> None:
    """Draw the masks of a stream over its frames; a video can only be written from its beginning."""
    output = Path(job.output)
    if (output / VIDEO_FILE).exists() or source.rate is None:
        return
    owners = {file: content["partition"] for content in contents for file in content["files"]}
    path = output / VIDEO_FILE
    with new_video(path, job.settings.video_rate(source.rate)) as video:
        writer = FrameWriter(output, manifest, job.settings, video)
        for name, image in source.source().frames:
            file = f"{MASKS}/{name}.png"
            labels = cv2.imread(str(partitions.find(file, owners[file])), cv2.IMREAD_UNCHANGED)
            assert labels is not None  # the partition's manifest says that the file is there
            writer.write_overlay(name, image, labels)


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of a bundle's manifest, which holds those of its files."""
    return sha256_of_file(bundle.path / BUNDLE_FILE)


def _load_checked(job: PredictionJob) -> Bundle:
    """Load the job's bundle.

    Raises:
        BundleError: it is another bundle on this machine.
    """
    bundle = load_bundle(job.bundle)
    if bundle_digest(bundle) != job.bundle_digest:
        raise BundleError(
            f"'{job.bundle}' is another bundle on {socket.gethostname()} than where the command was started; give all "
            "machines the same"
        )
    return bundle
