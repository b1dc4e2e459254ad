"""benchmarks/gpu.py keeps what was measured, whatever ends it, and goes on from there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
#: benchmarks/gpu.py with steps that need no GPU; what a step does stands in its name.
PROGRAM = """
import subprocess, sys
import gpu
from gpu_steps import Step

gpu._LEAST_S = 1.0
gpu.STEPS = {name: Step(None, 60) for name in ("works", "lacks", "crashes", "hangs", "also works")}
gpu.start = lambda name, log, options: subprocess.Popen(
    [sys.executable, sys.argv[0], name, str(log)], start_new_session=True)
sys.exit(gpu.main())
"""
STEP = """
import os, sys, time
from pathlib import Path
from gpu_steps import NOT_RUN, add_row

name, log = sys.argv[1], Path(sys.argv[2])
if name == "lacks":
    add_row(log, {"step": name, "not_run": "a package is missing"})
    sys.exit(NOT_RUN)
add_row(log, {"step": name, "matrix_rate": name, "gflops": 1000.0})
if name == "hangs":
    time.sleep(600)
if name == "crashes":
    os.abort()
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Start the program with some steps; return its process and its JSON file."""
    monkeypatch.setenv("PYTHONPATH", f"{BENCHMARKS}:{BENCHMARKS.parent}")
    (tmp_path / "step.py").write_text(STEP)
    file = tmp_path / "a new folder" / "gpu.json"

    def start(*steps, options=()):
        program = f"import sys; sys.argv[0] = {str(tmp_path / 'step.py')!r}\n{PROGRAM}"
        words = ["--json", str(file), "--work", str(tmp_path), "--steps", *steps, *options]
        return subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True), file

    return start


def ended(process, file):
    output, _ = process.communicate(timeout=60)
    return process.returncode, json.loads(file.read_text()), output


def test_a_crash_costs_its_own_step_alone_and_a_lack_says_why(command):
    code, found, output = ended(*command("works", "lacks", "crashes", "also works"))
    steps = found["steps"]
    assert code == 1
    assert [step["status"] for step in steps.values()] == ["done", "not run", "failed: exit code -6", "done"]
    assert steps["lacks"]["rows"] == [{"not_run": "a package is missing"}]
    assert steps["crashes"]["rows"] == [{"matrix_rate": "crashes", "gflops": 1000.0}], "measured before"
    assert "a package is missing" in output
    assert found["machine"]["rehearsal"] is False and "numpy" in found["starts"][0]["versions"]
    assert "--steps" in found["starts"][0]["command"]


def test_after_sigterm_what_was_measured_is_kept_and_the_rest_runs_later(command):
    process, file = command("works", "hangs", "also works")
    log, until = file.with_suffix(".jsonl"), time.monotonic() + 60
    while '"matrix_rate": "hangs"' not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, found, output = ended(process, file)
    assert code == 1 and "the same command goes on from here" in output
    assert {name: step["status"] for name, step in found["steps"].items()} == {
        "works": "done", "hangs": "cut off", "also works": "no time was left",
    }  # fmt: skip
    assert found["steps"]["hangs"]["rows"] == [{"matrix_rate": "hangs", "gflops": 1000.0}]
    with open(log, "a") as file_of_rows:
        file_of_rows.write('{"step": "works", "matrix_ra')  # as a power cut leaves it
    code, found, output = ended(*command("works", "also works"))
    assert code == 0
    assert "== works" not in output and "== also works: done" in output
    assert [len(step["rows"]) for step in found["steps"].values()] == [1, 1]
    assert len(found["starts"]) == 2


def test_a_hang_ends_with_the_time_for_all(command):
    code, found, _ = ended(*command("hangs", "works", options=["--minutes", "0.03"]))
    assert code == 1
    assert [step["status"] for step in found["steps"].values()] == ["cut off after 2 s", "no time was left"]


def test_a_log_of_another_machine_is_refused_and_again_replaces_it(command):
    ended(*command("works"))
    process, file = command("works", options=["--cpu"])  # a rehearsal's figures are not a GPU's
    before = file.read_text()
    process.communicate(timeout=60)
    assert process.returncode == 1 and file.read_text() == before
    code, found, _ = ended(*command("works", options=["--cpu", "--again"]))
    assert code == 0 and len(found["starts"]) == 1
