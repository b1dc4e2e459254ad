"""Segment images, a folder of images, a recording, a video or a webcam's stream with a bundle.

``python -m training.predict BUNDLE INPUT [--output FOLDER] [--runtime auto] [--cluster auto] [--key value ...]``

An image gives masks/NAME.png, which holds the class id of each pixel, and overlays/NAME.jpg; so does each image of a
recording, named by topic and stamp. A video or webcam gives masks/NUMBER.png and overlay.mp4. summary.json says what
was segmented, how fast, and what could not be read. Ctrl-C ends a stream and keeps what was written.

With --cluster the frames are divided among many processes, on this machine or on a Ray cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, load_bundle
from dinov3_seg_ros.bundle.manifest import MANIFEST_FILE, Manifest
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.frames.video import new_video
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.command_line import (
    DONE,
    FAILED,
    INTERRUPTED,
    UsageError,
    add_flags,
    read_flags,
    run_command,
)
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import check_outside, write_json
from training.cluster.arguments import ClusterSettings, add_cluster_arguments, read_cluster_arguments
from training.cluster.partitions import Partitions
from training.cluster.prediction import PredictionJob, bundle_digest, predict_on_cluster
from training.evaluation.inference import AveragingSegmenter, open_segmenter
from training.prediction.inputs import Source, open_input
from training.prediction.loop import Prediction, segment_frames
from training.prediction.outputs import SUMMARY_FILE, VIDEO_FILE, FrameWriter
from training.prediction.progress import frame_progress
from training.prediction.settings import PredictionSettings
from training.recipes.overrides import SettingsParser, apply_overrides
from training.support.writing import add_output, new_folder, writing


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
    done = Prediction()
    total = source.count if settings.frames is None else min(settings.frames, source.count or settings.frames)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(frame_progress(console))
        task = progress.add_task("segmenting", total=total)
        video = None
        if settings.overlays and source.rate is not None:
            video = stack.enter_context(new_video(output / VIDEO_FILE, settings.video_rate(source.rate)))
        writer = FrameWriter(output, manifest, settings, video)

        def advance() -> None:
            progress.update(task, completed=done.frames + len(done.unreadable))

        try:
            segment_frames(segmenter, source, writer, settings, done, advance)
        except KeyboardInterrupt:
            if not done.frames:
                raise
            done.interrupted = True
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
    parser.add_argument(
        "input", metavar="INPUT", help="image, folder of images, recording (rosbag2), video file, or number of a webcam"
    )
    add_output(parser, "predictions")
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="of images in a recording (default: the only one)"
    )
    add_cluster_arguments(parser)
    add_flags(parser, ComputeOptions)

    def work(words: list[str]) -> int:
        options, overrides = parser.parse_settings(words)
        settings, compute = apply_overrides(PredictionSettings(), overrides), read_flags(ComputeOptions, options)
        cluster = read_cluster_arguments(options)
        if cluster is not None:
            return _predict_on_cluster(options, settings, compute, cluster)
        with new_folder(options.output):
            return _predict(options, settings, compute)

    return run_command(parser, work, arguments, "no summary was written; --resume goes on with a run on a cluster")


def _predict(options: argparse.Namespace, settings: PredictionSettings, compute: ComputeOptions) -> int:
    """Segment what the command line names, write the summary and print it; return the exit code."""
    check_outside(options.output, options.input)
    bundle = load_bundle(options.bundle)
    value_range = chosen_range(settings.value_range, bundle.manifest.input.value_range)
    opened = open_input(options.input, value_range, options.topics)
    settings.check_rate(opened.rate)
    source = opened.source()
    with contextlib.closing(open_segmenter(bundle, settings.inference, compute)) as segmenter:
        done = predict(segmenter, bundle.manifest, source, options.output, settings, Console(markup=False))
        return _conclude(options, bundle.manifest, settings, compute, done, segmenter.runtime.description)


def _predict_on_cluster(
    options: argparse.Namespace, settings: PredictionSettings, compute: ComputeOptions, cluster: ClusterSettings
) -> int:
    """The same on a cluster."""
    if settings.frames is not None:
        raise UsageError("--frames is for a short look, which one process takes; leave out --cluster")
    check_outside(options.output, options.input)
    bundle, output = load_bundle(options.bundle), options.output.absolute()
    job = PredictionJob(
        # A shipped bundle and one on the Hub are found by their names on each machine.
        bundle=_absolute(options.bundle) if (options.bundle / MANIFEST_FILE).exists() else str(options.bundle),
        bundle_digest=bundle_digest(bundle),
        source=_absolute(options.input),
        value_range=chosen_range(settings.value_range, bundle.manifest.input.value_range),
        topics=tuple(options.topics),
        output=str(output),
        settings=settings,
        compute=compute,
    )
    partitions = Partitions(output, beside=(SUMMARY_FILE, VIDEO_FILE))
    with partitions.alone():
        found = predict_on_cluster(job, partitions, cluster, Console(markup=False))
        if found is None:
            unreadable = _unreadable_before(options.output)
            print(f"{options.output} is complete, {len(unreadable)} skipped; nothing was left to do")
            return FAILED if unreadable else DONE
        code = _conclude(options, bundle.manifest, settings, compute, *found)
        partitions.remove()
    return code


def _absolute(name: str | Path) -> str:
    """A path as all machines see it; what is no path, such as a webcam's number, stays."""
    return str(Path(name).absolute() if Path(name).exists() else name)


def _unreadable_before(output: Path) -> dict[str, str]:
    """What the summary of a complete run says could not be read; nothing where its user has removed the summary.

    Raises:
        OutputError: there is a file that is no summary.
    """
    path = output / SUMMARY_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["unreadable"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is no summary any more ({error!r}); remove it, or segment into another folder"
        ) from error


def _conclude(
    options: argparse.Namespace,
    manifest: Manifest,
    settings: PredictionSettings,
    compute: ComputeOptions,
    done: Prediction,
    runtime: str,
) -> int:
    """Write the summary and print it; return the exit code."""
    summary = {
        "bundle": str(options.bundle),
        "input": options.input,
        "runtime": runtime,
        **done.summary(),
        "settings": {**settings.model_dump(mode="json"), **compute.model_dump(mode="json")},
        "classes": manifest.classes.names,
    }
    with writing(options.output):
        write_json(options.output / SUMMARY_FILE, summary)
    for reason in done.unreadable.values():
        print(f"skipped: {reason}", file=sys.stderr)
    speeds = f"{summary['frames_per_second']} frames/s, segmenting alone {summary['segmenting_frames_per_second']}; "
    print(
        f"{done.frames} segmented ({speeds if done.frames else ''}{runtime}), {len(done.unreadable)} skipped; written "
        f"to {options.output}"
    )
    if done.interrupted:
        return INTERRUPTED
    return FAILED if done.unreadable else DONE


if __name__ == "__main__":
    sys.exit(main())
