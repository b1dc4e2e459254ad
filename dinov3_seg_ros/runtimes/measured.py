"""``auto`` by measurement: every way to compute that passes the gate is timed once, and the fastest is kept.

``python -m dinov3_seg_ros.benchmark BUNDLE --choose`` measures. A choice is kept in `store_folder`, by what was asked
for and for which weights. Later starts take it at once, unless the machine or a release has changed since.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dinov3_seg_ros import decode
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.onnx_folder import find_exports
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import gate
from dinov3_seg_ros.runtimes.failures import runtime_failures
from dinov3_seg_ros.runtimes.protocol import Runtime
from dinov3_seg_ros.support.command_line import write_flags
from dinov3_seg_ros.support.cpu import this_cpu, usable_cores
from dinov3_seg_ros.support.errors import one_line
from dinov3_seg_ros.support.files import cache_folder, sha256_of_json, write_json

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

# At least so many passes, and for at least so many seconds: a processor's or GPU's clock takes a second to settle.
_WARM_UP, _WARM_UP_S = 3, 1.0
_TIMED, _TIMED_S = 5, 2.0
# What comes first without a measurement stays unless another is faster by this share, which noise may bring.
_WORTH_IT = 0.03
# Those that take less than so many times as long as the fastest are timed again: the first turns are taken one after
# the other, while a machine gets warm and clocks lower.
_CLOSE = 1.3
# What NVIDIA's driver says of itself and of each card; on a Jetson there is no such folder.
_NVIDIA = Path("/proc/driver/nvidia")
# What tells Jetson modules and their releases apart. Docker hides the first from a container; the cores differ too.
_MODEL, _TEGRA_RELEASE = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
_PREFIXES = ("onnxruntime", "openvino", "tensorrt", "torch", "nvidia-cudnn")


class Figure(BaseModel):
    """What was measured of one candidate.

    Attributes:
        label: `Candidate.label`.
        ms: the median time of a pass through backbone, heads and decode, milliseconds; None where it was not used.
        problem: why it was not used; empty where it was timed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    ms: float | None = None
    problem: str = ""


class KeptChoice(BaseModel):
    """A choice on disk.

    Attributes:
        asked: what was asked for, and for which weights and exports.
        machine: `machine`, when it was measured.
        label: of the candidate that was chosen.
        date: of the measurement, ISO 8601.
        figures: of all candidates, in the order in which they were tried.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    asked: dict[str, Any]
    machine: dict[str, Any]
    label: str
    date: str
    figures: list[Figure]

    @property
    def reason(self) -> str:
        """Why it was chosen, for people."""
        timed = sorted((f for f in self.figures if f.ms is not None), key=lambda figure: figure.ms or 0.0)
        figures = ", ".join(f"{figure.label}: {figure.ms} ms" for figure in timed)
        return f"{self.label} was measured to be the best here on {self.date[:10]} ({figures})"


def store_folder() -> Path:
    """Where choices are kept: the folder ``choices`` of the user's caches."""
    return cache_folder("choices")


def machine() -> dict[str, Any]:
    """Return what a measurement depends on: board, processor, cores, GPUs, their driver, releases of the libraries."""
    cards = [card.read_text(errors="replace") for card in sorted(_NVIDIA.glob("gpus/*/information"))]
    lines = [line.partition(":") for card in cards for line in card.splitlines()]
    return {
        "board": _said_by(_MODEL),
        "tegra_release": _said_by(_TEGRA_RELEASE),
        "processor": this_cpu().model_dump(mode="json"),
        "cores": usable_cores(),
        "driver": _said_by(_NVIDIA / "version").partition("\n")[0],
        "gpus": [value.strip() for name, _, value in lines if name == "Model"],
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "releases": dict(_releases()),
    }


def kept(bundles: Sequence[Bundle], options: ComputeOptions) -> KeptChoice | None:
    """Return the choice that was measured for bundles and options on this machine, as it is now; None without one."""
    asked = _asked(bundles, options)
    path = _path(asked)
    try:
        choice = KeptChoice.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        _logger.info(
            "which runtime and precision are the fastest here has not been measured, so the usual order holds; to "
            "measure it once: %s",
            command(bundles, options),
        )
        return None
    except (OSError, ValueError) as error:
        _logger.warning("%s cannot be read and is left out: %s", path, one_line(error))
        return None
    if choice.asked != asked:
        return None
    if choice.machine != machine():
        _logger.warning(
            "the runtime that was measured to be the fastest (%s) was measured on another machine, or with other "
            "releases; measure again: %s",
            choice.label,
            command(bundles, options),
        )
        return None
    return choice


def command(bundles: Sequence[Bundle], options: ComputeOptions) -> str:
    """Return the command that measures what a start with these bundles and options asks for."""
    own = {**ComputeOptions().model_dump(), "network_size": bundles[0].manifest.input.network_size}
    given = {name: value for name, value in options.model_dump(exclude_none=True).items() if value != own[name]}
    paths = [str(bundle.path) for bundle in bundles]
    return shlex.join(["python", "-m", "dinov3_seg_ros.benchmark", *paths, "--choose", *write_flags(given)])


def keep(bundles: Sequence[Bundle], options: ComputeOptions, label: str, figures: Sequence[Figure]) -> KeptChoice:
    """Write down what was measured.

    Raises:
        OSError: it cannot be written.
    """
    asked = _asked(bundles, options)
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    choice = KeptChoice(asked=asked, machine=machine(), label=label, date=date, figures=list(figures))
    write_json(_path(asked), choice.model_dump(mode="json"))
    return choice


def close_ones(figures: Sequence[Figure]) -> list[str]:
    """Return the labels of those that are about as fast as the fastest; empty where there is none beside it."""
    timed = {figure.label: figure.ms for figure in figures if figure.ms is not None}
    near = [label for label, ms in timed.items() if ms < _CLOSE * min(timed.values())]
    return near if len(near) > 1 else []


def fastest(figures: Sequence[Figure]) -> str | None:
    """Return the label of the fastest; of the first that runs, where none is clearly faster; None if none runs."""
    timed = {figure.label: figure.ms for figure in figures if figure.ms is not None}
    if not timed:
        return None
    first, best = next(iter(timed)), min(timed, key=lambda label: timed[label])
    return best if timed[best] < (1 - _WORTH_IT) * timed[first] else first


def time_pass(runtime: Runtime, size: tuple[int, int], batch: int, heads: Sequence[str]) -> float:
    """Return the median time of a pass through backbone, heads and decode in milliseconds, after warming up.

    The decode of the labels is a part of it, since each runtime leaves the logits where it computes. Frames are decoded
    one by one, as the node does.

    Args:
        runtime: what to time.
        size: (height, width) of the network input, pixels.
        batch: frames in a pass.
        heads: names of the heads.

    Raises:
        RuntimeFailedError: it fails.
    """
    canvases = np.resize(gate.artificial_canvases(size), (batch, *size, 3))

    def run() -> float:
        start = time.perf_counter()
        computation = runtime.start(canvases, heads)
        computation.seconds()  # which the node reads too
        for logits in computation.logits().values():
            for index in range(batch):
                labels = decode.upsample_argmax(logits[index : index + 1], size)
                if not isinstance(labels, np.ndarray):
                    labels.cpu()
        return time.perf_counter() - start

    with runtime_failures(runtime.description):
        decode.backend(runtime.logits_device, wait=True)
        _repeated(run, _WARM_UP, _WARM_UP_S)
        return round(1000 * statistics.median(_repeated(run, _TIMED, _TIMED_S)), 3)


def _repeated(run: Callable[[], float], least: int, seconds: float) -> list[float]:
    """What ``run`` returned, each time that it was called."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < until:
        found.append(run())
    return found


def _asked(bundles: Sequence[Bundle], options: ComputeOptions) -> dict[str, Any]:
    """What decides which candidates there are, and what they compute."""
    together = [
        {
            "weights": [bundle.manifest.backbone.identity, bundle.manifest.files],
            "exports": [export.manifest.files for export in find_exports(bundle)[0]],
        }
        for bundle in bundles
    ]
    in_any_order = sorted(together, key=lambda one: json.dumps(one, sort_keys=True))
    restricting = options.model_dump(mode="json", exclude={"geometry"})
    asked: dict[str, Any] = json.loads(json.dumps({"bundles": in_any_order, "options": restricting}))
    return asked


def _said_by(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return path.read_text(errors="replace").strip("\0\n")
    except OSError:
        return ""


def _path(asked: dict[str, Any]) -> Path:
    return store_folder() / f"{sha256_of_json(asked)}.json"


def _releases() -> Iterator[tuple[str, str]]:
    """Name and release of each installed package that a measurement depends on."""
    names = {distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions()}
    for name in sorted({name.lower().replace("_", "-") for name in names}):
        if name.startswith(_PREFIXES):
            # An interrupted pip leaves the description of a package that is not there.
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                yield name, importlib.metadata.version(name)
