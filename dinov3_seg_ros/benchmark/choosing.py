"""Time every way to compute a bundle on this machine, and keep the fastest for later starts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.bundle.loading import check_shared_backbone, load_bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import measured
from dinov3_seg_ros.runtimes.choice import find_candidates, open_checked, runtime_options
from dinov3_seg_ros.segmenter import limit_threads
from dinov3_seg_ros.support.errors import OutputError, RuntimeUnavailableError, SegmentationError

_logger = logging.getLogger(__name__)


def choose(paths: Sequence[Path], options: ComputeOptions) -> measured.KeptChoice:
    """Open each candidate in turn, compare it with the model, time it, and keep the fastest.

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
    found, reasons, _ = find_candidates(bundles, options)
    if options.runtime != "auto":
        found = {name: candidates for name, candidates in found.items() if name == options.runtime}
    # What would be taken without a measurement comes first.
    every = [candidate for candidates in found.values() for candidate in candidates]
    candidates = sorted(every, key=lambda candidate: (candidate.is_measured_only, candidate.device == "cpu"))
    if not candidates:
        raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(reasons.values()))
    figures = []
    heads = [bundle.manifest.name for bundle in bundles]
    for candidate in candidates:
        try:
            with contextlib.closing(open_checked(candidate, bundles, options)) as runtime:
                size = options.network_size or (runtime.sizes or [bundles[0].manifest.input.network_size])[0]
                ms = measured.time_pass(runtime, size, options.max_batch, heads)
            figures.append(measured.Figure(label=candidate.label, ms=ms))
        except SegmentationError as error:
            figures.append(measured.Figure(label=candidate.label, problem=" ".join(str(error).split())))
        _logger.info("%s: %s", figures[-1].label, figures[-1].problem or f"{figures[-1].ms} ms")
    label = measured.fastest(figures)
    if label is None:
        raise RuntimeUnavailableError("nothing runs here: " + "; ".join(f"{f.label}: {f.problem}" for f in figures))
    try:
        return measured.keep(bundles, options, label, figures)
    except OSError as error:
        raise OutputError(f"the choice cannot be kept: {error}; set XDG_CACHE_HOME to a folder that can") from error


def table(choice: measured.KeptChoice) -> str:
    """Format a choice for people, the fastest first."""
    order = sorted(choice.figures, key=lambda figure: (figure.ms is None, figure.ms))
    width = max(len(figure.label) for figure in order)
    lines = [
        f"{figure.label:<{width}}  {f'{figure.ms:9.2f} ms' if figure.ms is not None else f'not used: {figure.problem}'}"
        for figure in order
    ]
    return "\n".join([*lines, "", f"chosen, and kept for later starts: {choice.label}"])
