"""Time every way to compute a bundle on this machine, and keep the fastest for later starts."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.bundle.loading import Bundle, check_shared_backbone, load_bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import measured
from dinov3_seg_ros.runtimes.choice import find_candidates, open_checked, runtime_options
from dinov3_seg_ros.runtimes.failures import is_out_of_memory
from dinov3_seg_ros.runtimes.protocol import Candidate, sizes_in_words
from dinov3_seg_ros.segmenter import limit_threads
from dinov3_seg_ros.support.errors import OutputError, RuntimeUnavailableError, SegmentationError, one_line

_logger = logging.getLogger(__name__)


def choose(paths: Sequence[Path], options: ComputeOptions) -> measured.KeptChoice:
    """Open each candidate in turn, compare it with the model, time it, and keep the fastest.

    All are timed at one size of network input. Those that are about as fast as the fastest are timed again, there and
    back, and then only these turns count.

    Args:
        paths: the bundles' folders; those that one node loads share a backbone pass, and are timed together.
        options: as the robot will have them; candidates that they rule out are not timed.

    Raises:
        BundleError, ParameterError: the bundle or the options cannot be used.
        RuntimeUnavailableError: nothing runs here; says why.
        OutputError: the choice cannot be written.
    """
    bundles = [load_bundle(path) for path in paths]
    check_shared_backbone(bundles)
    options = runtime_options(bundles, options)
    limit_threads(options.threads)
    by_runtime, reasons, _ = find_candidates(bundles, options)
    # What would be taken without a measurement comes first.
    every = [candidate for candidates in by_runtime.values() for candidate in candidates]
    candidates = sorted(every, key=lambda candidate: (candidate.is_measured_only, candidate.device == "cpu"))
    if not candidates:
        raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(reasons.values()))
    size = _shared_size(candidates, options.network_size or bundles[0].manifest.input.network_size)
    by_label = {candidate.label: candidate for candidate in candidates}
    found = {label: _time(candidate, bundles, options, size) for label, candidate in by_label.items()}
    close = measured.close_ones(list(found.values()))
    again = [_time(by_label[label], bundles, options, size) for label in (*close, *reversed(close))]
    found |= {label: _mean([figure for figure in again if figure.label == label]) for label in close}
    figures = list(found.values())
    best = measured.fastest([found[label] for label in close]) or measured.fastest(figures)
    if best is None:
        raise RuntimeUnavailableError("nothing runs here: " + "; ".join(f"{f.label}: {f.problem}" for f in figures))
    try:
        return measured.keep(bundles, options, best, figures)
    except OSError as error:
        raise OutputError(f"the choice cannot be kept: {error}; set XDG_CACHE_HOME to a folder that can") from error


def _time(
    candidate: Candidate, bundles: Sequence[Bundle], options: ComputeOptions, size: tuple[int, int]
) -> measured.Figure:
    heads = [bundle.manifest.name for bundle in bundles]
    if candidate.graphs is not None and size not in candidate.graphs:
        sizes = sizes_in_words(candidate.graphs)
        problem = f"it has no export for {size[0]}x{size[1]}, at which the others are timed, only for {sizes}"
        figure = measured.Figure(label=candidate.label, problem=problem)
    else:
        try:
            with contextlib.closing(open_checked(candidate, bundles, options)) as runtime:
                ms = measured.time_pass(runtime, size, options.max_batch, heads)
            figure = measured.Figure(label=candidate.label, ms=ms)
        except SegmentationError as error:
            figure = measured.Figure(label=candidate.label, problem=one_line(error))
    _logger.info("%s: %s", figure.label, figure.problem or f"{figure.ms} ms")
    return figure


def _mean(figures: Sequence[measured.Figure]) -> measured.Figure:
    """Of one candidate; what failed once is not used."""
    times = [figure.ms for figure in figures if figure.ms is not None]
    if len(times) < len(figures):
        return next(figure for figure in figures if figure.ms is None)
    return figures[0].model_copy(update={"ms": round(statistics.fmean(times), 3)})


def _shared_size(candidates: Sequence[Candidate], own: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that most candidates take; of several, the nearest to the bundle's own."""
    sizes = {own, *(size for candidate in candidates for size in candidate.graphs or ())}

    def rank(size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
        taking = sum(candidate.graphs is None or size in candidate.graphs for candidate in candidates)
        return -taking, abs(size[0] - own[0]) + abs(size[1] - own[1]), size

    return min(sizes, key=rank)


def table(choice: measured.KeptChoice) -> str:
    """Format a choice for people, the fastest first."""
    order = sorted(choice.figures, key=lambda figure: (figure.ms is None, figure.ms))
    width = max(len(figure.label) for figure in order)
    lines = [
        f"{figure.label:<{width}}  {f'{figure.ms:9.2f} ms' if figure.ms is not None else f'not used: {figure.problem}'}"
        for figure in order
    ]
    lines += ["", f"chosen, and kept for later starts: {choice.label}"]
    if any(is_out_of_memory(figure.problem) for figure in order):
        lines.append("memory was lacking; once there is more, run this again, so that what lacked it is timed too")
    return "\n".join(lines)
