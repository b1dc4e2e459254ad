"""Segment images, a folder of images, a video or a webcam's stream with a bundle.

``python -m training.predict BUNDLE INPUT [--output FOLDER] [--runtime auto] [--key value ...]``

An image gives masks/NAME.png, which holds the class id of each pixel, and overlays/NAME.jpg. A video or webcam gives
masks/NUMBER.png and overlay.mp4. summary.json says what was segmented, how fast, and what could not be read. Ctrl-C
ends a stream and keeps what was written.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, load_bundle
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.image_files import read_image
from dinov3_seg_ros.frames.overlay import blend_overlay, to_bgr
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, find_images, open_source, video_rate
from dinov3_seg_ros.frames.value_range import ValueScale, chosen_range
from dinov3_seg_ros.options import ComputeOptions, ValueRange
from dinov3_seg_ros.segmenter import Segmentation, Segmenter
from dinov3_seg_ros.support.command_line import DONE, FAILED, INTERRUPTED, add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import replacing_file, write_json
from training.evaluation.flicker import Flicker
from training.evaluation.inference import AveragingSegmenter, Inference, open_segmenter
from training.recipes.overrides import SettingsParser, apply_overrides
from training.reports.video import Video, new_video
from training.support.output import check_free, writing
from training.support.section import Section

MASKS, CONFIDENCES, OVERLAYS, VIDEO_FILE = "masks", "confidence", "overlays", "overlay.mp4"
SUMMARY_FILE = "summary.json"

# Of a stream that does not state its rate.
_FRAMES_PER_SECOND = 10.0


class PredictionSettings(Section):
    """The settings that the command line can change."""

    inference: Inference = Inference()
    """Which views of each image are averaged."""
    masks: bool = True
    """Whether to write the class id of each pixel, as PNG: 8 bits up to 255 classes, else 16."""
    confidence: bool = False
    """Whether to write round(255 * the largest softmax probability) of each pixel, as PNG."""
    overlays: bool = True
    """Whether to write the classes' colours over the image: as JPEG, or as a video."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the colours in overlays."""
    names: bool = True
    """Whether overlays carry the names of the classes."""
    rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Frames per second of the video that is written; auto: of the video that is read, of a webcam 10."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """The most that is segmented; null: all."""
    temporal_smoothing: Annotated[float, Field(ge=0, le=0.95)] = 0.0
    """Of a video or webcam: the weight of previous frames, as the node's parameter of this name."""
    flicker: bool = False
    """Whether to measure how much the labels of a video or webcam flicker; takes longer than segmenting."""
    value_range: ValueRange = "auto"
    """Which values of 16-bit images are black and white: auto (the bundle's; else 0 and the largest of the sensor's,
    learned as they come), full (0 and 65535) or two numbers."""


@dataclass
class Source:
    """Named frames.

    Attributes:
        frames: name (a relative path without suffix) and RGB image (H, W, 3) uint8.
        count: their probable number; None if unknown.
        rate: frames per second of a stream; None for independent images.
        unreadable: path of each image that cannot be read -> reason; filled while frames are taken.
    """

    frames: Iterator[tuple[str, np.ndarray]]
    count: int | None
    rate: float | None = None
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass
class Prediction:
    """The outcome of a run.

    Attributes:
        frames: number of segmented frames.
        seconds: their duration with reading and writing, without the start.
        segmenting_seconds: the part from image to labels.
        unreadable: path of each file that could not be read -> reason.
        interrupted: whether the user ended the run.
        flicker: share of pixels whose label changes where the picture does not; None if it was not measured.
    """

    frames: int = 0
    seconds: float = 0.0
    segmenting_seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    flicker: float | None = None

    def summary(self) -> dict[str, Any]:
        """The content of the JSON file. Rates are in frames per second, None if there was no frame."""
        rates = {
            "frames_per_second": self.seconds,
            "segmenting_frames_per_second": self.segmenting_seconds,
        }
        return {
            "frames": self.frames,
            **{name: round(self.frames / seconds, 2) if self.frames else None for name, seconds in rates.items()},
            "flicker": self.flicker,
            "interrupted": self.interrupted,
            "unreadable": self.unreadable,
        }


def open_input(source: str, value_range: ValueRange = "auto") -> Source:
    """Find the frames of an image, a folder of images (and of its subfolders), a video file or a webcam's number.

    Args:
        source: path or number.
        value_range: which values of 16-bit images are black and white.

    Raises:
        DatasetError: there is nothing to segment, or two images would have the same mask.
    """
    path = Path(source)
    if path.is_dir():
        return _images(find_images(path, recursive=True), path, value_range)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return _images([path], path.parent, value_range)
    rate, count = video_rate(path) if path.is_file() else (None, None)
    rate = rate or _FRAMES_PER_SECOND
    frames = open_source(source)
    return Source(((f"{number:06d}", image) for number, (image, _) in enumerate(frames)), count, rate)


def predict(
    segmenter: Segmenter | AveragingSegmenter,
    manifest: Manifest,
    source: Source,
    output: Path,
    settings: PredictionSettings,
    console: Console,
) -> Prediction:
    """Segment the frames of a source and write the wanted outputs; each file is written whole or not at all.

    Args:
        segmenter: of one bundle.
        manifest: of that bundle.
        source: its frames are consumed.
        output: folder for the files.
        settings: what to write; ``inference`` is the segmenter's and not read here.
        console: shows the progress if it is a terminal.

    Raises:
        DatasetError: a stream cannot be opened or gives no frame.
        KeyboardInterrupt: before the first frame; later it ends the run, and the files are kept.
        OutputError: something cannot be written.
    """
    segmenter.warm_up()
    done = Prediction(unreadable=source.unreadable)
    total = source.count if settings.frames is None else min(settings.frames, source.count or settings.frames)
    is_stream = source.rate is not None
    smoother = TemporalSmoother(settings.temporal_smoothing) if is_stream and settings.temporal_smoothing else None
    flicker = Flicker() if is_stream and settings.flicker else None
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(_progress(console))
        task = progress.add_task("segmenting", total=total)
        video = None
        if settings.overlays and source.rate is not None:
            rate = source.rate if settings.rate == "auto" else settings.rate
            video = stack.enter_context(new_video(output / VIDEO_FILE, rate))
        started = time.perf_counter()
        try:
            frames = itertools.islice(source.frames, settings.frames)
            while batch := list(itertools.islice(frames, segmenter.max_batch)):
                before = time.perf_counter()
                segmentations = segmenter.segment([image for _, image in batch])
                if smoother is not None and source.rate is not None:
                    segmentations = [
                        segmentation.smoothed(smoother, image, (done.frames + number) / source.rate)
                        for number, ((_, image), segmentation) in enumerate(zip(batch, segmentations, strict=True))
                    ]
                for segmentation in segmentations:
                    if settings.confidence:
                        _ = segmentation.confidence  # read first, it gives the labels as well
                    _ = segmentation.labels
                done.segmenting_seconds += time.perf_counter() - before
                for (name, image), segmentation in zip(batch, segmentations, strict=True):
                    _write(name, image, segmentation, manifest, output, settings, video)
                    if flicker is not None:
                        flicker.update(image, segmentation.labels)
                    done.frames += 1
                    progress.update(task, completed=done.frames + len(done.unreadable))
        except KeyboardInterrupt:
            if not done.frames:
                raise
            done.interrupted = True
        done.seconds = time.perf_counter() - started
        done.flicker = flicker.share() if flicker is not None else None
        if source.rate is not None and not done.frames:
            raise DatasetError("the stream gives no frame; is the file whole, and is the webcam free?")
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where something could not be read."""
    parser = SettingsParser(
        "training.predict",
        __doc__,
        "BUNDLE INPUT [--output FOLDER] [--key value ...]",
        PredictionSettings,
        lambda _, overrides: apply_overrides(PredictionSettings(), overrides),
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("input", metavar="INPUT", help="image, folder of images, video file, or number of a webcam")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        metavar="FOLDER",
        help="must be new or empty (default: %(default)s)",
    )
    add_flags(parser, ComputeOptions)

    def work(words: list[str]) -> int:
        options, overrides = parser.parse_settings(words)
        return _predict(options, apply_overrides(PredictionSettings(), overrides), read_flags(ComputeOptions, options))

    return run_command(parser, work, arguments, "no summary was written")


def _predict(options: argparse.Namespace, settings: PredictionSettings, compute: ComputeOptions) -> int:
    """Segment what the command line names, write the summary and print it; return the exit code."""
    check_free(options.output, "--output")
    manifest = load_bundle(options.bundle).manifest
    source = open_input(options.input, chosen_range(settings.value_range, manifest.input.value_range))
    segmenter = open_segmenter(options.bundle, settings.inference, compute)
    done = predict(segmenter, manifest, source, options.output, settings, Console())
    summary = {
        "bundle": str(options.bundle),
        "input": options.input,
        "runtime": segmenter.runtime.description,
        **done.summary(),
        "settings": {**settings.model_dump(mode="json"), **compute.model_dump(mode="json")},
        "classes": manifest.classes.names,
    }
    with writing(options.output):
        write_json(options.output / SUMMARY_FILE, summary)
    for reason in done.unreadable.values():
        print(f"skipped: {reason}", file=sys.stderr)
    speeds = f"{summary['frames_per_second']} frames/s, segmenting alone {summary['segmenting_frames_per_second']}"
    print(
        f"{done.frames} segmented ({speeds}; {summary['runtime']}), {len(done.unreadable)} skipped; "
        f"written to {options.output}"
    )
    if done.interrupted:
        return INTERRUPTED
    return FAILED if done.unreadable else DONE


def _images(paths: Sequence[Path], root: Path, value_range: ValueRange) -> Source:
    """The images below a folder. Whether one can be read shows when it is taken."""
    path_of: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in path_of:
            raise DatasetError(f"{path_of[name]} and {path.name} would have the same mask; rename one of them")
        path_of[name] = path
    source = Source(iter(()), len(path_of))
    source.frames = _readable(path_of, source.unreadable, ValueScale(value_range))
    return source


def _readable(
    path_of: dict[str, Path], unreadable: dict[str, str], scale: ValueScale
) -> Iterator[tuple[str, np.ndarray]]:
    for name, path in path_of.items():
        try:
            image = read_image(path, scale)
        except DatasetError as error:
            unreadable[str(path)] = str(error)
        else:
            yield name, image


def _write(
    name: str,
    image: np.ndarray,
    segmentation: Segmentation,
    manifest: Manifest,
    output: Path,
    settings: PredictionSettings,
    video: Video | None,
) -> None:
    """Write the wanted outputs of one frame."""
    if settings.masks:
        _write_picture(output / MASKS / f"{name}.png", segmentation.labels)
    if settings.confidence:
        _write_picture(output / CONFIDENCES / f"{name}.png", segmentation.confidence)
    if settings.overlays:
        names = manifest.classes.names if settings.names else None
        overlay = to_bgr(
            blend_overlay(image, segmentation.labels, manifest.classes.palette, alpha=settings.alpha, names=names)
        )
        if video is None:
            _write_picture(output / OVERLAYS / f"{name}.jpg", overlay)
        else:
            video.write(overlay)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a grey or BGR picture, in the format that the suffix names."""
    # imwrite does not report a full disk.
    _, encoded = cv2.imencode(path.suffix, picture)
    with writing(path), replacing_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} frames/s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    sys.exit(main())
