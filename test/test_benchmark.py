"""The benchmark command measures what it says, on a bundle with random weights."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from bundles import write_tiny_bundle
from ros_domain import claimed_domain

from dinov3_seg_ros import decode
from dinov3_seg_ros.benchmark import __main__ as command
from dinov3_seg_ros.benchmark import session
from dinov3_seg_ros.benchmark.__main__ import main
from dinov3_seg_ros.benchmark.baselines import NaivePipeline
from dinov3_seg_ros.benchmark.measurement import overlapped_rate, run_in_turn
from dinov3_seg_ros.benchmark.operations import backbone_gflop
from dinov3_seg_ros.benchmark.picture import draw_stages
from dinov3_seg_ros.benchmark.processor import gemm_gflops, gemm_type, peak_memory_mb, torch_gemm_gflops
from dinov3_seg_ros.benchmark.report import table
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.segmenter import limit_threads
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.resources import resource_path
from dinov3_seg_ros.support.timing import GPU_STAGES, STAGES, StageTimes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", geometry="stretch")


@pytest.fixture(scope="module", autouse=True)
def _gemm_rate_measured_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "gemm_gflops", functools.cache(gemm_gflops))
        yield


def test_all_stages_are_measured_and_labels_compared(bundle, tmp_path, capsys):
    file = tmp_path / "result.json"
    command = [str(bundle.path), "--frames", "3", "--frame-size", "96", "128", "--baseline", "--json", str(file)]
    assert main(command) == 0
    result = json.loads(file.read_text())
    assert list(result["stages_ms"]) == list(STAGES)
    assert result["stages_ms"]["message_in"] is None and result["stages_ms"]["message_out"] is None
    stages = [stage for stage in STAGES if not stage.startswith("message")]
    for measured in (result, *result["baselines"].values()):
        assert all(measured["stages_ms"][stage]["median"] > 0 for stage in stages)
        assert measured["outside_backbone"] > 0
    for other in result["baselines"].values():
        assert other["ratio"] == pytest.approx(other["total_ms"]["median"] / result["total_ms"]["median"], abs=0.01)
    assert result["baselines"]["naive PyTorch"]["equal_labels"] >= 0.9995
    assert result["baselines"]["dinov3_ros"]["equal_labels"] is None, "its head has weights of its own"
    assert result["classes_in_view"] == result["baselines"]["naive PyTorch"]["classes_in_view"] > 1
    said = f"peak memory {result['peak_memory_mb']} MB"
    assert f"{said} with the baselines in the same process" in table(result)
    assert f"{said};" in table({name: value for name, value in result.items() if name != "baselines"})
    reached = result["backbone"]["gflop"] / result["stages_ms"]["backbone"]["median"] * 1000.0
    assert result["backbone"]["gflops"] == pytest.approx(reached, rel=0.05)
    assert result["backbone"]["share_of_gemm"] == pytest.approx(reached / result["gemm_gflops"], rel=0.05, abs=1e-6)
    assert "times faster than the dinov3_ros pipeline" in capsys.readouterr().out


@pytest.mark.parametrize(("threads", "quota", "expected"), [(1, None, 1), (0, 1, 1), (3, None, 3)])
def test_the_baselines_have_the_threads_of_our_pipeline(threads, quota, expected, cores, monkeypatch, capsys):
    cores(6, quota)
    seen, run, of_opencv, of_torch = set(), NaivePipeline.run, cv2.getNumThreads(), torch.get_num_threads()
    monkeypatch.setattr(NaivePipeline, "run", lambda *given: seen.add(torch.get_num_threads()) or run(*given))
    monkeypatch.setattr(session, "gemm_gflops", lambda *_: None)
    arguments = f"--runtime onnx --geometry stretch --baseline --frames 1 --frame-size 96 128 --threads {threads}"
    try:
        assert main([str(resource_path("weights/demo")), *arguments.split()]) == 0
    finally:
        limit_threads(0)
        cv2.setNumThreads(of_opencv)
        torch.set_num_threads(of_torch)
    assert seen == {expected}
    assert "times faster than the naive PyTorch pipeline on the CPU; equal" in capsys.readouterr().out


def test_more_than_255_classes_are_compared_as_they_are(tmp_path):
    bundle, file = write_tiny_bundle(tmp_path / "tiny", geometry="stretch", num_classes=300), tmp_path / "result.json"
    command = [str(bundle.path), "--runtime", "torch", "--frames", "2", "--frame-size", "96", "128"]
    assert main([*command, "--baseline", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["baselines"]["naive PyTorch"]["equal_labels"] >= 0.9995


def test_the_network_size_and_operations_reported_are_those_of_the_canvas(bundle, tmp_path):
    file = tmp_path / "result.json"
    command = [str(bundle.path), "--runtime", "torch", "--geometry", "native", "--frame-size", "130", "200"]
    assert main([*command, "--frames", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["network_size"] == [128, 192]
    assert result["backbone"]["gflop"] == pytest.approx(backbone_gflop(bundle, (128, 192)), rel=1e-3)


def test_the_providers_asked_for_are_those_of_onnx_runtime(capsys):
    command = [str(resource_path("weights/demo")), "--runtime", "onnx", "--frames", "1"]
    assert main([*command, "--providers", "CPUExecutionProvider"]) == 0
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert main([*command, "--providers", "NoExecutionProvider", "CPUExecutionProvider"]) == 1
    assert "has no NoExecutionProvider" in capsys.readouterr().err


def test_a_wrong_frame_count_or_bundle_is_named(bundle, tmp_path, capsys):
    assert main([str(bundle.path), "--frames", "0"]) == 2
    assert "'0' is not a whole number of at least 1" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_counted_operations_equal_those_counted_by_hand(tmp_path):
    width, mlp, patch, blocks, registers = 32, 64, 16, 2, 4
    backbone = build_backbone(
        {
            "model_type": "dinov3_vit", "hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 2,
            "intermediate_size": mlp, "patch_size": patch, "num_register_tokens": registers,
        },
    )  # fmt: skip
    bundle = write_tiny_bundle(tmp_path / "vit", backbone=backbone)
    cells = (64 // patch) * (96 // patch)
    tokens = cells + 1 + registers
    block = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    multiply_adds = cells * 3 * patch * patch * width + blocks * block
    assert backbone_gflop(bundle, (64, 96)) == pytest.approx(2e-9 * multiply_adds, rel=1e-6)


def test_without_torch_the_table_says_that_nothing_was_counted(bundle, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.flop_counter", None)
    file = tmp_path / "result.json"
    assert main([str(bundle.path), "--frames", "1", "--frame-size", "96", "128", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["backbone"] is None
    assert "were not counted" in capsys.readouterr().out


class _OnAGpu:
    """A runtime that says of itself that it computes on a GPU, and times its copies."""

    device = "cuda:1"

    def __init__(self, runtime):
        self._runtime = runtime

    def __getattr__(self, name):
        return getattr(self._runtime, name)

    def start(self, canvases, heads):
        computed = self._runtime.start(canvases, heads)
        copies = {"upload": 0.001, "download": 0.002}
        return dataclasses.replace(computed, durations={**computed.durations, **copies})


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_a_gpu_reports_copies_gemm_rate_and_overlapped_frames(bundle, monkeypatch, tmp_path, capsys, rate):
    def on_a_gpu(self):
        segmenter = load(self)
        segmenter.runtime = _OnAGpu(segmenter.runtime)
        return segmenter

    load, asked = session.Session.load_segmenter, []
    monkeypatch.setattr(session.Session, "load_segmenter", on_a_gpu)
    monkeypatch.setattr(session, "gemm_gflops", lambda device, threads: asked.append(device) or rate)
    file = tmp_path / "result.json"
    assert main([str(bundle.path), "--frames", "2", "--frame-size", "96", "128", "--json", str(file)]) == 0
    result, said = json.loads(file.read_text()), capsys.readouterr().out
    assert asked == ["cuda:1"]
    assert result["gemm_type"] == "bfloat16"
    assert result["gemm_gflops"] == rate
    assert list(result["stages_ms"]) == list(GPU_STAGES)
    assert [result["stages_ms"][stage]["median"] for stage in ("upload", "download")] == [1.0, 2.0]
    assert result["overlapped_frames_per_second"] > 0
    assert "when the next frame starts before the previous one is finished" in said
    reached = result["backbone"]["gflops"]
    share = None if rate is None else pytest.approx(reached / rate, rel=0.05, abs=1e-6)
    assert result["backbone"]["share_of_gemm"] == share
    assert ("bfloat16 GEMM rate" in said) == (rate is not None)


def test_a_batch_is_timed_as_a_whole(bundle, monkeypatch, tmp_path, capsys):
    file, upsample = tmp_path / "result.json", decode.upsample_argmax
    monkeypatch.setattr(decode, "upsample_argmax", lambda *given: time.sleep(0.01) or upsample(*given))
    arguments = [str(bundle.path), "--frames", "2", "--frame-size", "96", "128", "--json", str(file)]
    assert main([*arguments, "--max-batch", "3"]) == 0
    batch = json.loads(file.read_text())
    assert "batches of 3" in capsys.readouterr().out
    total = batch["total_ms"]["median"]
    assert batch["stages_ms"]["decode"]["median"] >= 30, "three frames of 10 ms each"
    assert batch["frames_per_second"] == pytest.approx(3000 / total, rel=0.01)
    assert main(arguments) == 0
    one = json.loads(file.read_text())
    assert batch["backbone"]["gflop"] == pytest.approx(3 * one["backbone"]["gflop"], rel=1e-3)
    assert one["overlapped_frames_per_second"] is None


@pytest.mark.parametrize(
    "options", [["--max-batch", "0"], ["--max-batch", "2", "--baseline"], ["--max-batch", "2", "--ros"]]
)
def test_a_batch_beside_what_takes_single_frames_is_refused(bundle, options, capsys):
    assert main([str(bundle.path), *options]) == 2
    assert "--max-batch" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_a_gemm_rate_that_cannot_be_measured_is_said_and_none(end, monkeypatch, tmp_path, caplog):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho Traceback >&2\necho MemoryError >&2\n{end}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gemm_gflops() is None
    assert caplog.messages == ["the speed of cpu could not be measured, and is left out: MemoryError"]
    python.unlink()
    assert gemm_gflops() is None
    assert "No such file" in caplog.text


def test_the_gemm_rate_of_a_missing_gpu_is_none():
    if not torch.cuda.is_available():
        assert gemm_gflops("cuda") is None
    assert gemm_gflops("gpu:0") is None, "a device of ONNX Runtime alone"
    assert torch_gemm_gflops("cpu", side=64) > 0


def test_without_torch_the_baselines_say_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None)\n"
        "from dinov3_seg_ros.benchmark.__main__ import main\n"
        f"sys.exit(main([{str(resource_path('weights/demo'))!r}, '--baseline', '--frames', '1']))"
    )
    # A choice that was measured on this machine, and no longer holds, is a line too.
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 1
    assert "[torch]'" in run.stderr and "leave --baseline out" in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


@pytest.mark.parametrize("where", ["", "file/result.json"])
def test_an_unwritable_result_file_is_refused_before_measuring(bundle, where, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(bundle.path), "--frames", "1", "--json", str(tmp_path / where)]) == 1
    found = capsys.readouterr()
    assert "cannot be written" in found.err and "--json" in found.err
    assert found.out == ""


def test_a_result_may_go_to_a_pipe_in_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    command._check_can_write(pipe, "--json")
    with pytest.raises(OutputError, match=r"result\.json cannot be written"):
        command._check_can_write(tmp_path / "result.json", "--json")


def test_a_full_disk_still_prints_what_was_measured(bundle, monkeypatch, tmp_path, capsys):
    def write(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "write_json", write)
    arguments = [
        str(bundle.path),
        "--frames",
        "1",
        "--frame-size",
        "96",
        "128",
        "--json",
        str(tmp_path / "result.json"),
    ]
    assert main(arguments) == 1
    found = capsys.readouterr()
    assert "No space left on device" in found.err
    assert "frames per second" in found.out


def test_the_gemm_rate_uses_the_threads_asked_for():
    assert gemm_gflops("cpu", threads=1) > 0


def test_the_peak_memory_of_another_process_is_its_own():
    code = "block = bytearray(300_000_000); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 280 < peak_memory_mb(process.pid) < 400
        process.communicate(b"\n", timeout=30)


@pytest.mark.parametrize(("device", "kind"), [("cpu", "float32"), ("cuda", "bfloat16"), ("cuda:1", "bfloat16")])
def test_the_gemm_type_is_known_for_every_device(device, kind):
    assert gemm_type(device) == kind


class Constant:
    """A pipeline that gives every pixel one label, and notes what it was asked for."""

    def __init__(self, name, label, asked):
        self.name, self.knows_classes, self._label, self._asked = name, True, label, asked

    def run(self, frame):
        self._asked.append((self.name, int(frame[0, 0, 0])))
        labels = np.full(frame.shape[:2], self._label, np.uint8)
        labels[0] = 0
        return labels

    def forget(self):
        self._asked.clear()

    def stages_ms(self):
        return {"backbone": {"median": 10.0, "p95": 12.0}, "heads": {"median": 2.0, "p95": 2.0}}


def test_pipelines_take_turns_and_are_compared_with_the_first():
    asked = []
    frames = [np.full((4, 6, 3), value, np.uint8) for value in (0, 1)]
    first, second = run_in_turn([Constant("a", 1, asked), Constant("b", 2, asked)], frames, 3)
    # The last to forget is the last before the first measured frame.
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 0)]
    assert (first.equal_labels, second.equal_labels) == (1.0, 0.25)
    assert len(second.seconds) == 3
    assert second.classes_in_view == 2
    assert second.outside_backbone == pytest.approx(0.2)
    assert second.stages_ms["decode"] is None


def test_overlapped_turns_are_finished_while_the_next_one_starts():
    count, both = 3, threading.Barrier(2, timeout=30)

    class Meeting:
        """A pipeline whose turns end only while the next one starts."""

        def start(self, frame):
            number = next(numbers)
            if number:
                both.wait()
            return number

        def finish(self, started):
            finished.append(started)
            if started < count:
                both.wait()

    numbers, finished = itertools.count(), []
    assert overlapped_rate(Meeting(), [None], count) > 0
    assert finished == [0, 1, 2, 3]


def test_a_stage_in_parts_is_one_duration():
    times = StageTimes()
    with times.stage_in_parts("out") as part:
        with part():
            sum(range(1000))
        with times.stage("between"):
            sum(range(300_000))
        with part():
            sum(range(1000))
    summary = times.summary_ms()
    assert summary["out"]["median"] == summary["out"]["p95"], "there is one"
    assert 0 < summary["out"]["median"] < summary["between"]["median"]


def test_a_stage_that_another_thread_is_just_adding_is_left_out():
    class Watched(dict):
        def setdefault(self, name, seconds):
            found = super().setdefault(name, seconds)
            seen.append(times.summary_ms())
            return found

    times, seen = StageTimes(), []
    times._seconds = Watched()
    times.add("decode", 0.002)
    assert seen == [{}]
    assert times.summary_ms() == {"decode": {"median": 2.0, "p95": 2.0}}


def test_the_pictures_bars_are_as_long_as_the_times(tmp_path):
    stages = {"slow": 30.0, "fast": 10.0}
    pipelines = {
        name: {stage: {"median": ms} if stage == "backbone" else None for stage in STAGES}
        for name, ms in stages.items()
    }
    draw_stages(pipelines, tmp_path / "bars.png")
    picture = cv2.imread(str(tmp_path / "bars.png"))
    blue = (picture == (0xA7, 0x79, 0x4E)).all(axis=2)
    longest, shortest = (rows.sum(axis=1).max() for rows in np.array_split(blue[80:], 2))  # the legend is above
    assert longest / shortest == pytest.approx(3.0, rel=0.05)


def test_a_picture_of_an_unknown_format_is_refused_by_name(bundle, tmp_path, capsys):
    command = [str(bundle.path), "--frames", "1", "--frame-size", "96", "128", "--picture", str(tmp_path / "bars.xyz")]
    assert main(command) == 1
    found = capsys.readouterr()
    assert "bars.xyz cannot be written: matplotlib has no format 'xyz', only " in found.err and "png" in found.err
    assert found.out == "", "it is refused before anything is measured"


def test_without_ros_the_option_says_what_to_install(bundle, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "dinov3_seg_ros.benchmark.through_ros", raising=False)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert main([str(bundle.path), "--ros", "--frames", "1"]) == 1
    error = capsys.readouterr().err
    assert "source a distribution" in error
    assert len(error.splitlines()) == 1


def run_on_ros(*arguments):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    command = [sys.executable, "-m", "dinov3_seg_ros.benchmark", *arguments, "--ros"]
    with claimed_domain() as domain:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


@pytest.mark.ros
def test_the_demos_bundle_is_measured_through_a_real_node(tmp_path):
    file = tmp_path / "result.json"
    run = run_on_ros(str(resource_path("weights/demo")), "--frames", "4", "--json", str(file))
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(file.read_text())
    assert all(result["stages_ms"][stage]["median"] > 0 for stage in STAGES)
    assert result["pipeline"]["stages_ms"]["message_in"] is None
    ros = result["ros"]
    assert ros["equal_labels"] == 1.0, "the node's masks are the pipeline's"
    assert 0 < ros["latency_ms"]["mask"]["median"] <= ros["latency_ms"]["overlay"]["median"]
    # Both begin with the stamp and end with the arrival of the overlay, by two clocks.
    assert ros["latency_ms"]["overlay"]["median"] == pytest.approx(result["total_ms"]["median"], abs=10.0)
    outside = sum(result["stages_ms"][stage]["median"] for stage in STAGES if stage not in ("backbone", "heads"))
    assert ros["node_overhead_ms"] == pytest.approx(outside, abs=0.01)
    assert 0 < outside < result["total_ms"]["median"]
    assert ros["startup_s"] > 0
    assert "first mask" in run.stdout and "through ROS" in run.stdout


@pytest.mark.ros
def test_an_error_of_the_node_is_told_in_its_own_words():
    run = run_on_ros(str(resource_path("weights/demo")), "--network-size", "30", "30")
    assert run.returncode == 1
    assert "the node says" in run.stderr and "30" in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
