"""Test and measure everything that a GPU runs: one command, the most worthwhile steps first.

    python benchmarks/gpu.py --json gpu.json              # on a machine with a GPU: 4 minutes at most
    python benchmarks/gpu.py --json gpu.json              # again: goes on where it was cut off
    python benchmarks/gpu.py --json dry_run.json --cpu    # a rehearsal: every step that needs no GPU, tiny sizes

Steps (`gpu_steps.py`): the tests that are marked ``gpu``, those of the decode's kernel first; the rates at which the
card multiplies matrices; ViT-S+/16 and ConvNeXt-T with random weights, 134 classes and frames of 640x480 in PyTorch, in
bf16, fp16 and fp32, in batches of 1 and 8, with and without CUDA graphs and compiled, each turn alone and overlapped
with the next; then ONNX Runtime on CUDA, TensorRT for RTX and TensorRT, where their packages are installed.

Each step runs in a process of its own with a time limit, so a hang or a crash costs that step alone. Rows go to
``gpu.jsonl`` beside the JSON file as they are measured. The JSON file is written at the end, also after Ctrl-C, SIGTERM
or the time limit. A step that could not run says why. What is done is not run again; ``--again`` starts anew. The exit
code is 1 where a step was cut off or failed, or a test failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_steps import NOT_RUN, REHEARSED, ROOT, STEPS, add_row, read_log

from dinov3_seg_ros.support.cpu import this_cpu
from dinov3_seg_ros.support.files import write_json

# A step that gets less time than this would only start.
_LEAST_S = 5.0
_PACKAGES = ("torch", "triton", "transformers", "numpy", "numba", "onnx", "onnxruntime", "onnxruntime-gpu",
             "onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt", "cuda-python")  # fmt: skip
#: What a frame should take on a data-centre card, and the share of its matrix rate that the backbone should reach.
AIM_MS, AIM_SHARE = 2.0, 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="result (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=4.0, help="time for all steps (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="rehearse without a GPU, in tiny sizes")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--steps", nargs="+", choices=[*STEPS, *REHEARSED], help="only these")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "dinov3_seg_ros_gpu", help="folder for bundles"
    )
    parser.add_argument(
        "--onnxruntime-gpu", type=Path, metavar="FOLDER",
        help="where pip put onnxruntime-gpu (pip install --target), if it must not replace onnxruntime",
    )  # fmt: skip
    options = parser.parse_args()
    names = options.steps or [*STEPS, *(REHEARSED if options.cpu else ())]
    # A rehearsal may run beside other work.
    limits = {name: (STEPS | REHEARSED)[name].limit_s * (5 if options.cpu else 1) for name in names}
    log = options.json.with_suffix(".jsonl")
    if options.again:
        log.unlink(missing_ok=True)
    for folder in (options.work, log.parent):
        folder.mkdir(parents=True, exist_ok=True)

    try:
        begin(log, machine(options.cpu))
        with _sigterm_raises():
            run(limits, log, 60 * options.minutes, lambda name: start(name, log, options))
    except KeyboardInterrupt:
        print("cut off; the same command goes on from here")
    found = result(log, names)
    write_json(options.json, found)
    print(f"\n{summary(found)}\n{options.json}")
    steps = found["steps"].values()
    is_over = all(step["status"] in ("done", "not run") for step in steps)
    return 0 if is_over and not any(row.get("failed") for step in steps for row in step["rows"]) else 1


def start(name: str, log: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a step in a process, and a process group, of its own."""
    arguments = [name, "--log", str(log), "--work", str(options.work), *(["--cpu"] if options.cpu else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if options.onnxruntime_gpu and name.startswith("onnx-cuda"):
        paths.insert(0, str(options.onnxruntime_gpu))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_steps.py"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )


def run(
    limits: Mapping[str, float], log: Path, seconds: float, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    """Run the steps that are not done yet, in order, until the time is over.

    Args:
        limits: name of each step -> the seconds after which it is cut off.
        log: where steps add their rows, and this adds how each step ended.
        seconds: for all of them.
        start: starts a step, which ends with 0, or with `NOT_RUN` where its row says why it cannot run here.
    """
    end = time.monotonic() + seconds
    for name, limit in limits.items():
        if _status(read_log(log), name) == "done":
            continue
        left = min(limit, end - time.monotonic())
        if left < _LEAST_S:
            return
        print(f"\n== {name}", flush=True)
        add_row(log, {"step": name, "begins": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        began, ended = time.monotonic(), "cut off"
        process = start(name)
        try:
            code = process.wait(left)
            ended = {0: "done", NOT_RUN: "not run"}.get(code, f"failed: exit code {code}")
        except subprocess.TimeoutExpired:
            ended = f"cut off after {left:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it has started itself too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            add_row(log, {"step": name, "ended": ended, "seconds": round(time.monotonic() - began, 1)})
            print(f"== {name}: {ended}", flush=True)


def begin(log: Path, here: dict[str, Any]) -> None:
    """Add to the log by what command and on which machine it goes on; a log of another machine is refused."""
    before = next((row["machine"] for row in read_log(log) if "machine" in row), here["machine"])
    if before != here["machine"]:
        sys.exit(f"{log} is of another machine, {before}, and this one is {here['machine']}; use another --json, or "
                 "--again to replace it")  # fmt: skip
    add_row(log, here)


def machine(is_rehearsal: bool) -> dict[str, Any]:
    """Return what figures depend on: card and driver, processor, and the releases of the libraries."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        cards = []
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "machine": {"cards": cards, "processor": this_cpu().model_dump(mode="json"), "rehearsal": is_rehearsal},
        "versions": versions,
        "command": sys.argv,
    }


def result(log: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return what the log holds: the machine, each start of the command, and rows by step; of a step its last run."""
    rows = read_log(log)
    starts = [row for row in rows if "machine" in row]
    steps = {}
    for name in names:
        own = [row for row in _last_run(rows, name) if "step" in row]
        seconds = next((row["seconds"] for row in own if "ended" in row), None)
        kept = [{key: value for key, value in row.items() if key != "step"} for row in own if "ended" not in row]
        steps[name] = {"status": _status(rows, name), "seconds": seconds, "rows": kept[1:]}
    return {
        "machine": starts[0]["machine"] if starts else None,
        "starts": [{key: start[key] for key in ("versions", "command")} for start in starts],
        "aims": {"ms_per_frame_in_batches_of_1": AIM_MS, "share_of_matrix_rate_in_bf16_in_batches_of_8": AIM_SHARE},
        "steps": steps,
    }


def summary(found: Mapping[str, Any]) -> str:
    """Format a result for people."""
    lines = []
    for name, step in found["steps"].items():
        took = "" if step["seconds"] is None else f", {step['seconds']} s"
        lines.append(f"{name}: {step['status']}{took}")
        lines += [f"    {line}" for row in step["rows"] for line in _lines(row)]
    return "\n".join(lines)


def _lines(row: Mapping[str, Any]) -> list[str]:
    if "tests" in row:
        counts = ", ".join(f"{row[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return [f"{row['tests']}: {counts}", *(f"    {failure}" for failure in row["failures"])]
    if "matrix_rate" in row:
        return [f"{row['matrix_rate']}: {row['gflops'] / 1000:.2f} TFLOP/s"]
    if "ms_per_frame" not in row:
        return [row.get("not_run") or row.get("error", "")]
    share = row["share_of_matrix_rate"]
    graphs = {True: ", CUDA graphs", False: ", no CUDA graphs", None: ""}[row.get("cuda_graphs")]
    graphs += ", compiled" if row.get("compile") else ""
    times = f"{row['ms_per_frame']} ms a frame, {row['overlapped_ms_per_frame']} overlapped"
    rate = "" if share is None else f"backbone {share:.0%} of the matrix rate, "
    return [f"batch {row['batch']}{graphs}: {times}; {rate}equal labels {row['equal_labels']:.3%}"]


def _last_run(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of a step from its last beginning."""
    own = [row for row in rows if row.get("step") == name]
    first = max((index for index, row in enumerate(own) if "begins" in row), default=0)
    return own[first:]


def _status(rows: Sequence[dict[str, Any]], name: str) -> str:
    own = _last_run(rows, name)
    if not own:
        return "no time was left"
    return next((str(row["ended"]) for row in own if "ended" in row), "cut off")


@contextlib.contextmanager
def _sigterm_raises():
    """Let SIGTERM end the work as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
