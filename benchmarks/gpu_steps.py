"""What benchmarks/gpu.py measures. It runs each step by this file, in a process of its own.

    python benchmarks/gpu_steps.py STEP --log FILE --work FOLDER [--cpu]

A step adds its rows to the log as they are measured, one JSON object in each line.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
#: Exit code of a step that cannot be run here; its row says why.
NOT_RUN = 3
MODELS = ("vits16plus", "convnext_tiny")
NUMBER_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
#: Frames whose labels are compared with the model's; of the first few also the logits, which are large.
COMPARED, COMPARED_LOGITS = 8, 2
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: of PyTorch.
        is_rehearsal: whether there is no GPU, so that figures mean nothing.
        network_size, frame_size: (height, width), pixels.
        classes, in_view: of the head, and how many of them a frame shows, about.
        batches: frames in a pass.
        turns: passes that are measured.
        side: of the matrices that are multiplied.
    """

    device: str
    is_rehearsal: bool
    network_size: tuple[int, int]
    frame_size: tuple[int, int]
    classes: int
    in_view: int
    batches: tuple[int, ...]
    turns: int
    side: int


FULL = Scale("cuda", False, (640, 640), (480, 640), 134, 12, (1, 8), 30, 8192)
TINY = Scale("cpu", True, (64, 64), (48, 64), 12, 4, (1, 2), 2, 64)


class NotRunError(Exception):
    """Why a step cannot be run here."""


class Step(NamedTuple):
    """What a step measures, and the seconds after which it is cut off."""

    rows: Callable[[Context], Iterator[dict[str, Any]]]
    limit_s: float


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        scale: how large everything is.
        work: folder for bundles, which later steps use again.
        log: rows of all steps so far.
    """

    scale: Scale
    work: Path
    log: Path


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log. The last is left out where it was being written when the power went."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a log, on a line of its own even behind a broken one."""
    with open(path, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        broken = file.read() not in (b"", b"\n")
        file.write((b"\n" if broken else b"") + json.dumps(row, allow_nan=False).encode() + b"\n")


def run_tests(context: Context, *names: str) -> Iterator[dict[str, Any]]:
    """Run the tests that are marked ``gpu`` of each file. The rehearsal runs those for which no GPU is needed too."""
    import pytest

    for name in names:
        outcomes = _Outcomes()
        path = str(ROOT / "test" / name)
        chosen = ["-k", "whole_map"] if context.scale.is_rehearsal and "triton" in name else ["-m", "gpu"]
        code = pytest.main([path, *chosen, "-rs", "--tb=short", "-p", "no:cacheprovider"], plugins=[outcomes])
        yield {"tests": name, **outcomes.counts, "failures": outcomes.failures}
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest could not run {name}: {pytest.ExitCode(code).name}")


class _Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failures.append(f"{report.nodeid}: {str(report.longrepr).splitlines()[-1]}")


def matrix_rates(context: Context) -> Iterator[dict[str, Any]]:
    """Measure what the card multiplies, which the shares in later rows refer to."""
    from dinov3_seg_ros.benchmark.processor import torch_gemm_gflops

    for precision, number_type in NUMBER_TYPES.items():
        rate = torch_gemm_gflops(context.scale.device, number_type, context.scale.side)
        if rate is None:
            raise NotRunError("PyTorch finds no CUDA GPU")
        yield {"matrix_rate": precision, "gflops": round(rate, 1)}


class Prepared(NamedTuple):
    """A bundle with random weights, and what its model computes in fp32 on the CPU.

    Attributes:
        bundle: its folder.
        frames: (N, H, W, 3) uint8 RGB.
        labels: of `COMPARED` frames, (N, H, W).
        logits: of `COMPARED_LOGITS` frames, (N, C, h, w).
        gflop: of a backbone pass for a frame.
    """

    bundle: Path
    frames: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    gflop: float


def prepare(context: Context, model: str) -> Prepared:
    """Make a bundle, unless an earlier step did."""
    from random_models import random_bundle

    from dinov3_seg_ros.benchmark.measurement import synthetic_frames
    from dinov3_seg_ros.benchmark.operations import backbone_gflop
    from dinov3_seg_ros.bundle.loading import load_bundle
    from dinov3_seg_ros.segmenter import Segmenter
    from dinov3_seg_ros.support.files import replacing_folder

    scale = context.scale
    folder = context.work / f"{model}-{'x'.join(map(str, scale.network_size))}"
    if not folder.exists():
        frames = synthetic_frames(scale.frame_size, COMPARED)
        with replacing_folder(folder) as made:
            path = random_bundle(
                made / model, model, scale.network_size, frames, scale.classes, "aspp", in_view=scale.in_view
            )
            with contextlib.closing(Segmenter.from_bundle(path, "torch", device="cpu")) as segmenter:
                found = segmenter.segment(frames)
            np.savez(
                made / "reference.npz",
                frames=frames,
                labels=[one.labels for one in found],
                logits=np.concatenate([_logits(one) for one in found[:COMPARED_LOGITS]]),
                gflop=backbone_gflop(load_bundle(path), scale.network_size),
            )
    with np.load(folder / "reference.npz") as kept:
        return Prepared(folder / model, kept["frames"], kept["labels"], kept["logits"], float(kept["gflop"]))


def in_pytorch(context: Context, model: str, precision: str) -> Iterator[dict[str, Any]]:
    """Measure the PyTorch runtime as it is, without CUDA graphs, and in bf16 also compiled, which takes long."""
    made = prepare(context, model)
    options = {"runtime": "torch", "device": context.scale.device, "precision": precision}
    compiled = [{"cuda_graphs": True, "compile": True}] if precision == "bf16" else []
    for batch in context.scale.batches:
        for how in ({"cuda_graphs": True}, {"cuda_graphs": False}, *compiled):
            yield {"model": model, **measure(context, made, batch, **options, **how)}


def exported(context: Context, model: str, precision: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Measure another runtime; it is compared with the model's reference before its first frame (`runtimes.gate`)."""
    import onnxruntime as ort

    from dinov3_seg_ros.runtimes.choice import available_runtimes
    from dinov3_seg_ros.runtimes.onnx.plugins import register

    missing = available_runtimes()[options["runtime"]]
    for provider in options.get("providers", ()):
        if provider not in {*ort.get_available_providers(), *register()}:
            missing = f"neither ONNX Runtime {ort.__version__} nor a package beside it brings {provider}"
    if missing:
        raise NotRunError(missing)
    from dinov3_seg_ros.export.exporter import ExportOptions, export
    from dinov3_seg_ros.support.files import replacing_folder

    made = prepare(context, model)
    # In a copy: a bundle with an export is compared with its reference by the PyTorch runtime too.
    folder = made.bundle.with_name(f"{model}-{precision}")
    if not folder.exists():
        with replacing_folder(folder) as copy:
            shutil.copytree(made.bundle, copy, dirs_exist_ok=True)
            export([copy], ExportOptions(precision=precision, least_labels=0.0))
    for batch in context.scale.batches:
        found = measure(context, made._replace(bundle=folder), batch, precision=precision, **options)
        yield {"model": model, **found}


def measure(context: Context, made: Prepared, batch: int, **options: Any) -> dict[str, Any]:
    """Open a runtime, compare it with the model, and time it: stages, whole turns, overlapped turns.

    Returns:
        ``stages_ms`` and ``total_ms`` are medians and 95th percentiles of a turn of ``batch`` frames.
    """
    from dinov3_seg_ros.benchmark.measurement import overlapped_rate, run_in_turn
    from dinov3_seg_ros.benchmark.timed_pipeline import OurPipeline
    from dinov3_seg_ros.runtimes.agreement import Difference
    from dinov3_seg_ros.segmenter import Segmenter

    frames, turns = list(made.frames), context.scale.turns
    row = {"batch": batch, **options}
    with contextlib.closing(Segmenter.from_bundle(made.bundle, max_batch=batch, **options)) as segmenter:
        found = [one for first in range(0, COMPARED, batch) for one in segmenter.segment(frames[first : first + batch])]
        equal = np.mean([np.mean(one.labels == labels) for one, labels in zip(found, made.labels, strict=True)])
        difference = Difference()
        for one, logits in zip(found, made.logits, strict=False):
            difference.update(logits, _logits(one)[0])
        pipeline = OurPipeline(segmenter, batch=batch)
        (times,) = run_in_turn([pipeline], frames, turns)
        rate = overlapped_rate(pipeline, frames, turns)
        description = segmenter.runtime.description
    gflops = batch * made.gflop / times.stage_ms("backbone") * 1000
    rates = {row["matrix_rate"]: row["gflops"] for row in read_log(context.log) if "matrix_rate" in row}
    multiplied = rates.get(options["precision"])
    return {
        **row,
        "runtime": description,
        "equal_labels": round(float(equal), 6),
        "cosine_of_logits": round(difference.cosine, 7),
        "stages_ms": {stage: found for stage, found in times.stages_ms.items() if found},
        "total_ms": times.total_ms,
        "ms_per_frame": round(times.total_ms["median"] / batch, 3),
        "overlapped_ms_per_frame": round(1000 / rate / batch, 3),
        "backbone_gflops": round(gflops, 1),
        "share_of_matrix_rate": multiplied and round(gflops / multiplied, 4),
    }


def _logits(segmentation: Any) -> np.ndarray:
    (head,) = segmentation.heads.values()
    return np.asarray(head.logits if isinstance(head.logits, np.ndarray) else head.logits.cpu())


def _bind(rows: Callable[..., Iterator[dict[str, Any]]], *arguments: Any, limit_s: float = 40, **options: Any) -> Step:
    return Step(lambda context: rows(context, *arguments, **options), limit_s)


#: In their order of worth. The limits of a few allow for a first start: compiling kernels, making bundles and exports.
STEPS: dict[str, Step] = {
    "decode-tests": _bind(run_tests, "test_decode_triton.py", limit_s=75),
    "matrix-rates": _bind(matrix_rates, limit_s=30),
    "torch-vits16plus-bf16": _bind(in_pytorch, "vits16plus", "bf16", limit_s=150),
    "runtime-tests": _bind(run_tests, "test_pytorch_runtime.py"),
    "tests": _bind(run_tests, "test_gpu.py", limit_s=180),
    "torch-vits16plus-fp16": _bind(in_pytorch, "vits16plus", "fp16"),
    "torch-vits16plus-fp32": _bind(in_pytorch, "vits16plus", "fp32"),
    "torch-convnext_tiny-bf16": _bind(in_pytorch, "convnext_tiny", "bf16", limit_s=120),
    "torch-convnext_tiny-fp16": _bind(in_pytorch, "convnext_tiny", "fp16"),
    "torch-convnext_tiny-fp32": _bind(in_pytorch, "convnext_tiny", "fp32"),
}
for _model in MODELS:
    STEPS |= {
        f"onnx-cuda-{_model}": _bind(
            exported, _model, "fp16", runtime="onnx", providers=["CUDAExecutionProvider"], limit_s=80
        ),
        f"rtx-{_model}": _bind(
            exported, _model, "fp16", runtime="onnx", providers=["NvTensorRTRTXExecutionProvider"], limit_s=150
        ),
        f"tensorrt-{_model}": _bind(exported, _model, "fp16", runtime="tensorrt", limit_s=120),
    }
#: What stands for a GPU's runtimes in the rehearsal, beside them.
REHEARSED: dict[str, Step] = {
    "onnx-cpu-vits16plus": _bind(
        exported, "vits16plus", "fp32", runtime="onnx", providers=["CPUExecutionProvider"], limit_s=180
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=[*STEPS, *REHEARSED])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if sys.platform == "linux":  # a step that outlives gpu.py would keep the GPU busy
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from dinov3_seg_ros.support.errors import RuntimeUnavailableError, one_line

    context = Context(TINY if options.cpu else FULL, options.work, options.log)
    try:
        for row in (STEPS | REHEARSED)[options.step].rows(context):
            add_row(options.log, {"step": options.step, **row})
            print(json.dumps(row), flush=True)
    except (NotRunError, RuntimeUnavailableError) as error:
        add_row(options.log, {"step": options.step, "not_run": one_line(error)})
        return NOT_RUN
    except Exception as error:
        add_row(options.log, {"step": options.step, "error": f"{type(error).__name__}: {one_line(error)}"})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
