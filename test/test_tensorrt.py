"""The TensorRT runtime and its engines, on stand-ins for TensorRT and CUDA (`stand_ins`) that need no GPU."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from bundles import made_backbone, write_tiny_bundle
from graphs import write_graphs

from dinov3_seg_ros.benchmark import choosing
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.doctor.__main__ import examine
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import measured
from dinov3_seg_ros.runtimes.choice import choose
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import (
    ExportError,
    ImageError,
    ParameterError,
    RuntimeFailedError,
    RuntimeUnavailableError,
)

pytestmark = pytest.mark.usefixtures("traced_once")

STAND_INS = Path(__file__).parent / "stand_ins"
SIZE = (64, 96)
_OURS = "dinov3_seg_ros.runtimes.tensorrt"


def forget_modules():
    for name in list(sys.modules):
        if name.split(".")[0] in ("tensorrt", "cuda") or name.startswith(_OURS):
            del sys.modules[name]


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """The stand-in for TensorRT, freshly imported, and an empty store for engines."""
    forget_modules()
    monkeypatch.syspath_prepend(STAND_INS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    yield importlib.import_module("tensorrt")
    forget_modules()


@pytest.fixture
def cuda(trt):
    return trt.cudart


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    one = write_tiny_bundle(folder / "one", name="one", geometry="stretch")
    two = write_tiny_bundle(folder / "two", name="two", num_classes=9, seed=3, geometry="stretch")
    for bundle in (one, two):
        write_graphs(bundle)
    write_graphs(one, "fp16")
    return one, two


@pytest.fixture
def bundles(originals, tmp_path):
    """Two bundles on one backbone with graphs in float32, the first in float16 too."""
    return [load_bundle(shutil.copytree(bundle.path, tmp_path / bundle.manifest.name)) for bundle in originals]


def picture(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.repeat(np.repeat(small, 16, axis=0), 20, axis=1)


def segmenter(*bundles, precision="fp32", **options):
    return Segmenter.from_bundle([bundle.path for bundle in bundles], "tensorrt", precision=precision, **options)


def labels(*bundles, **options):
    """TensorRT's labels of a picture; the runtime is closed again."""
    with contextlib.closing(segmenter(*bundles, **options)) as open_one:
        return open_one.segment([picture()])[0].labels


def expected(bundle, precision="fp32", seed=0):
    return Segmenter.from_bundle(bundle.path, "onnx", precision=precision).segment([picture(seed)])[0].labels


def store():
    return Path(os.environ["XDG_CACHE_HOME"], "dinov3_seg_ros", "engines")


def stored(suffix=".engine"):
    return sorted(store().glob(f"*{suffix}"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_and_confidence_equal_those_of_onnx_runtime(trt, bundles, precision):
    reference = Segmenter.from_bundle(bundles[0].path, "onnx", precision=precision).segment([picture()])[0]
    result = segmenter(bundles[0], precision=precision).segment([picture()])[0]
    assert len(np.unique(reference.labels)) > 2
    assert np.array_equal(result.labels, reference.labels)
    assert np.array_equal(result.confidence, reference.confidence)


def test_an_image_guided_head_reads_the_network_input_without_a_copy(trt, tmp_path):
    backbone = made_backbone("dinov3_convnext", [1, 2, 3])
    bundle = write_tiny_bundle(tmp_path / "guided", backbone=backbone, geometry="stretch", detail=True)
    export([bundle.path], ExportOptions(precision="fp32"))
    guided = segmenter(bundle)
    found = guided.segment([picture()])[0].labels
    assert len(np.unique(found)) > 1
    assert (found == expected(bundle)).mean() >= 0.9995
    network = guided.runtime._networks[SIZE]
    assert network.heads[bundle.manifest.name].tensors["canvases"] is network.backbone.tensors["canvases"]


def test_a_measurement_may_choose_what_auto_does_not_take(trt, bundles, monkeypatch):
    for precision in ("bf16", "int8_qdq"):
        write_graphs(bundles[0], precision)
    options = ComputeOptions(runtime="tensorrt")
    monkeypatch.setattr(measured, "time_pass", lambda runtime, *_: 1.0 if "bf16" in runtime.description else 9.0)
    assert segmenter(bundles[0], precision="auto").runtime.description.endswith("fp16")
    choice = choosing.choose([bundles[0].path], options)
    assert [figure.label.split(", ")[-1] for figure in choice.figures] == ["fp16", "fp32", "bf16", "int8_qdq"]
    assert segmenter(bundles[0], precision="auto").runtime.description.endswith("bf16")


def test_exports_that_only_a_measurement_takes_are_measured_too(trt, bundles, monkeypatch):
    bundle = bundles[0]
    shutil.rmtree(bundle.path / "onnx")
    write_graphs(bundle, "bf16")
    command = rf"python -m dinov3_seg_ros\.benchmark {bundle.path} --choose --runtime tensorrt"
    with pytest.raises(RuntimeUnavailableError, match=rf"tensorrt on cuda:0 \(.*\), bf16.* or measure it: {command}"):
        segmenter(bundle, precision="auto")
    choice = choose([bundle], ComputeOptions())
    assert choice.runtime == "torch" and "tensorrt: there is only what a measurement may choose" in choice.reason
    monkeypatch.setattr(measured, "time_pass", lambda *_: 1.0)
    assert choosing.choose([bundle.path], ComputeOptions(runtime="tensorrt")).label.endswith("bf16")
    assert segmenter(bundle, precision="auto").runtime.description.endswith("bf16")


def test_the_description_names_release_gpu_and_precision(trt, bundles):
    assert segmenter(bundles[0]).runtime.description == "TensorRT 10.13.3.9, Stand-in GPU (cuda:0), fp32"


@pytest.mark.parametrize("version", ["10.0.1", "11.1.0.106", "without the flag"])
def test_every_release_takes_the_types_of_the_graph(trt, bundles, version, monkeypatch):
    if version == "without the flag":
        monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", SimpleNamespace())
    else:
        monkeypatch.setattr(trt, "__version__", version)
    labels(bundles[0])
    strongly_typed = 0 if version == "without the flag" else 1 << 1
    assert {build.flags for build in trt.built} == {strongly_typed}
    assert not any(trt.BuilderFlag.TF32 in build.config.flags for build in trt.built)


def test_several_heads_share_one_backbone_run(trt, bundles):
    both = segmenter(*bundles)
    both.segment([picture()])
    trt.runs.clear()
    result = both.segment([picture(1)])[0]
    assert len(trt.runs) == 3
    assert len({id(engine) for engine in trt.runs}) == 3
    for bundle in bundles:
        assert np.array_equal(result.heads[bundle.manifest.name].labels, expected(bundle, seed=1))


def test_one_engine_serves_every_batch_size_up_to_max_batch(trt, bundles):
    several = segmenter(bundles[0], max_batch=3)
    for count in (3, 1, 2, 1, 3):
        results = several.segment([picture(seed) for seed in range(count)])
        for seed, result in enumerate(results):
            assert np.array_equal(result.labels, expected(bundles[0], seed=seed))
    assert len(trt.built) == 2
    assert trt.built[0].config.profile.shapes["canvases"] == [[1, *SIZE, 3], [3, *SIZE, 3], [3, *SIZE, 3]]
    with pytest.raises(ParameterError, match="4 frames came at once, but max_batch is 3"):
        several.runtime.start(np.zeros((4, *SIZE, 3), np.uint8), [])
    with pytest.raises(ImageError, match="no engine for network inputs of 32x32 pixels; there are: 64x96"):
        several.runtime.start(np.zeros((1, 32, 32, 3), np.uint8), [])


def test_further_batch_sizes_take_no_further_gpu_memory(trt, cuda, bundles):
    several = segmenter(bundles[0], max_batch=3)
    taken = sum(size for size, _ in cuda.device.values())
    for count in (3, 1, 2):
        several.segment([picture(seed) for seed in range(count)])
    assert sum(size for size, _ in cuda.device.values()) == taken


def test_contexts_that_cannot_share_memory_have_their_own(trt, cuda, bundles, monkeypatch):
    monkeypatch.delattr(trt.IExecutionContext, "set_device_memory")  # as in 10.0
    several = segmenter(bundles[0], max_batch=2)
    for count in (1, 2):
        results = several.segment([picture(seed) for seed in range(count)])
        assert np.array_equal(results[-1].labels, expected(bundles[0], seed=count - 1))


def test_frames_after_the_first_replay_cuda_graphs(trt, cuda, bundles):
    warm = segmenter(bundles[0])
    warm.segment([picture()])
    cuda.launches.clear()
    assert np.array_equal(warm.segment([picture(1)])[0].labels, expected(bundles[0], seed=1))
    assert len(cuda.launches) == 2


def test_an_engine_that_cannot_be_captured_runs_without_a_cuda_graph(trt, cuda, bundles, caplog):
    trt.behaviour.capturable = False
    for seed in (0, 1):
        plain = segmenter(bundles[0])
        assert np.array_equal(plain.segment([picture(seed)])[0].labels, expected(bundles[0], seed=seed))
    assert not cuda.launches
    assert "one/backbone.onnx runs without a CUDA graph" in caplog.text
    assert "operation not permitted when stream is capturing" in caplog.text


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_engines_run_on_the_gpu_of_the_number_asked_for(trt, cuda, bundles, device, index):
    """In every thread: CUDA keeps a current GPU for each, and the stand-ins refuse to run on another's streams."""
    cuda.gpu.count = 2
    chosen = segmenter(bundles[0], device=device, max_batch=2)
    assert chosen.runtime.device == f"cuda:{index}"
    assert f"(cuda:{index})" in chosen.runtime.description
    with ThreadPoolExecutor(1) as starter, ThreadPoolExecutor(1) as finisher:
        for count in (1, 2, 1):
            frames = [picture(seed) for seed in range(count)]
            started = starter.submit(chosen.start, frames).result(timeout=60)
            results = finisher.submit(started.finish).result(timeout=60)
            for seed, result in enumerate(results):
                assert np.array_equal(result.labels, expected(bundles[0], seed=seed))
        assert {cuda.devices[address] for address in cuda.device} == {index}
        finisher.submit(chosen.close).result(timeout=60)
    assert not cuda.device and not cuda.host and not cuda.objects


def test_a_gpu_number_that_does_not_exist_is_refused(trt, cuda, bundles):
    cuda.gpu.count = 2
    with pytest.raises(RuntimeUnavailableError, match="'cuda:2' was asked for, but CUDA finds 2 GPUs, numbered from 0"):
        segmenter(bundles[0], device="cuda:2")


def canvases(seed):
    return np.resize(picture(seed), (1, *SIZE, 3))


def logits_alone(bundle, seed):
    runtime = Segmenter.from_bundle(bundle.path, "onnx", precision="fp32").runtime
    return runtime.start(canvases(seed), ["one"]).logits()["one"]


@pytest.mark.parametrize("late", [None, 0, 1, 2])
def test_overlapping_computations_have_their_own_logits(trt, cuda, bundles, late):
    runtime = segmenter(bundles[0]).runtime
    cuda.gpu.late = late
    given, started = canvases(0), []
    for seed in range(5):
        given[:] = canvases(seed)  # the caller may use its array again at once
        started.append(runtime.start(given, ["one"]))
    for seed, computation in enumerate(started):
        np.testing.assert_array_equal(computation.logits()["one"], logits_alone(bundles[0], seed))
        seconds = computation.seconds()
        assert list(seconds) == ["upload", "backbone", "heads", "download"]
        assert min(seconds.values()) >= 0


def test_only_the_third_computation_in_flight_waits_for_the_first(trt, cuda, bundles):
    runtime = segmenter(bundles[0]).runtime
    for seed in range(2):  # the first two record CUDA graphs
        runtime.start(canvases(seed), ["one"]).logits()
    trt.runs.clear()
    started = [runtime.start(canvases(seed), ["one"]) for seed in range(2)]
    assert trt.runs == []
    started.append(runtime.start(canvases(2), ["one"]))
    assert len(trt.runs) == 2
    runtime.close()


def test_reading_overwritten_feature_maps_is_an_error(trt, bundles):
    runtime = segmenter(bundles[0]).runtime
    old, new = (runtime.start(canvases(seed), []) for seed in range(2))
    reference = Segmenter.from_bundle(bundles[0].path, "onnx", precision="fp32").runtime.start(canvases(1), [])
    for name, found in new.maps().items():
        np.testing.assert_array_equal(found, reference.maps()[name])
    with pytest.raises(ParameterError, match="overwritten by a later frame's"):
        old.maps()


def test_a_wait_that_fails_drops_its_own_frame_only(trt, cuda, bundles, monkeypatch):
    broken = segmenter(bundles[0])
    broken.segment([picture()])
    started = [broken.start([picture(seed)]) for seed in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "cudaEventSynchronize", lambda event: (cuda.cudaError_t.cudaErrorInvalidValue,))
        started.append(broken.start([picture(2)]))  # which waits for the first
    started += [broken.start([picture(seed)]) for seed in (3, 4)]
    for _ in range(2):
        with pytest.raises(RuntimeFailedError, match="failed: InvalidValue"):
            started[0].finish()
    for seed in (1, 2, 3, 4):
        assert np.array_equal(started[seed].finish()[0].labels, expected(bundles[0], seed=seed))


def test_frames_of_two_network_sizes_in_turn_overlap(trt, bundles):
    write_graphs(bundles[0], size=(96, 64))
    upright = np.ascontiguousarray(picture().transpose(1, 0, 2))
    both = segmenter(bundles[0], geometry="native")
    frames = [picture(), upright] * 2
    for frame in frames:
        both.segment([frame])
    trt.runs.clear()
    started = [both.start([frame]) for frame in frames]
    assert trt.runs == [], "two of each size have room"
    assert [one.finish()[0].labels.shape for one in started] == [frame.shape[:2] for frame in frames]


def test_closing_releases_engines_and_contexts_at_once(trt, cuda, bundles):
    """Not only at Python's next garbage collection: the memory is the GPU's."""
    runtime = segmenter(*bundles, max_batch=2).runtime
    for batch in (1, 2):
        runtime.start(np.concatenate(batch * [canvases(0)]), ["one", "two"])
    held = [weakref.ref(held) for each in runtime._executions for held in (each._engine, *each._contexts.values())]
    assert len(held) == 3 * 3
    gc.collect()
    gc.disable()
    try:
        runtime.close()
        trt.runs.clear(), cuda.launches.clear()  # the stand-ins' notes refer to engines
        assert [reference for reference in held if reference() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_closing_waits_for_computations_in_flight(trt, bundles, in_flight, monkeypatch):
    runtime = segmenter(bundles[0]).runtime
    runtime.start(canvases(0), ["one"]).logits()
    trt.runs.clear()
    for seed in range(in_flight):
        runtime.start(canvases(seed), ["one"])
    execution, ended = runtime._executions[0], []
    close = execution.close
    monkeypatch.setattr(execution, "close", lambda: ended.append(len(trt.runs)) or close())
    runtime.close()
    assert ended == [2 * in_flight], "before the first context is released"


def test_closing_frees_all_memory_streams_and_events(trt, cuda, bundles):
    open_one = segmenter(*bundles, max_batch=2)
    open_one.segment([picture(), picture(1)])
    open_one.segment([picture()])
    assert cuda.device and cuda.host and cuda.objects
    open_one.close()
    open_one.close()
    assert not cuda.device and not cuda.host and not cuda.objects


def test_engines_are_built_once_and_found_again(trt, bundles):
    first = labels(*bundles)
    assert len(trt.built) == len(stored()) == 3
    killed = stored()[0].with_name(f".{stored()[0].stem}.k1ll3d__.engine")
    stored()[0].rename(killed)  # as of a process that was killed while it wrote this one
    assert np.array_equal(labels(*bundles), first)
    assert not killed.exists() and len(stored()) == 3 and len(trt.built) == 4
    # Another head on the same backbone needs only its own engine.
    assert np.array_equal(labels(bundles[1]), expected(bundles[1]))
    assert len(trt.built) == 4


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def flip(content):
    content[len(content) // 2] ^= 4
    return content


def swap(_trt, _cuda, _bundle):
    one, other = stored()
    for suffix in (".engine", ".json"):
        shutil.copy(other.with_suffix(suffix), one.with_suffix(suffix))


DAMAGE = {
    "a truncated engine": lambda *_: rewrite(stored()[0], lambda content: content[:-100]),
    "an empty engine": lambda *_: rewrite(stored()[0], lambda _: b""),
    "a flipped bit": lambda *_: rewrite(stored()[0], flip),
    "another graph's engine": swap,
    "no record": lambda *_: stored(".json")[0].unlink(),
    "half a record": lambda *_: rewrite(stored(".json")[0], lambda content: content[:50]),
    "a record that is no object": lambda *_: rewrite(stored(".json")[0], lambda _: b"[]"),
    "another release of TensorRT": lambda trt, *_: setattr(trt, "__version__", "11.0.0.1"),
    "another GPU": lambda _, cuda, __: setattr(cuda.gpu, "name", b"Other GPU"),
    "another compute capability": lambda _, cuda, __: setattr(cuda.gpu, "minor", 9),
    "another number of multiprocessors": lambda _, cuda, __: setattr(cuda.gpu, "multiprocessors", 8),
    "another size of memory": lambda _, cuda, __: setattr(cuda.gpu, "memory", 2 << 30),
    "another graph": lambda _, __, bundle: write_graphs(bundle, seed=5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_engine_that_does_not_fit_is_built_anew_and_never_loaded(trt, cuda, bundles, damage):
    labels(bundles[0])
    built = len(trt.built)
    DAMAGE[damage](trt, cuda, bundles[0])
    trt.deserialised.clear()
    # The stand-in fails on bytes that are no engine, or only part of one.
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(trt.built) > built
    assert len(trt.deserialised) == 2
    built = len(trt.built)
    labels(bundles[0])
    assert len(trt.built) == built


def test_an_engine_that_tensorrt_refuses_to_load_is_built_anew(trt, bundles, caplog, monkeypatch):
    labels(bundles[0])
    # As after an update of the driver, which changes neither version nor GPU.
    monkeypatch.setattr(trt, "_gpu", lambda: "the same, but different")
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(trt.built) == 4
    assert "IRuntime::deserializeCudaEngine: Error Code 1: Serialization; it is built anew" in caplog.text


def test_another_batch_size_is_another_engine(trt, bundles):
    labels(bundles[0])
    labels(bundles[0], max_batch=2)
    labels(bundles[0])
    assert len(trt.built) == 4


def test_two_processes_at_once_build_each_engine_once_without_torch(trt, bundles, tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "import numpy as np; from dinov3_seg_ros.segmenter import Segmenter\n"
        "import dinov3_seg_ros.runtimes.tensorrt.runtime\n"
        "print('ready', flush=True); input()\n"
        f"segmenter = Segmenter.from_bundle({str(bundles[0].path)!r}, 'tensorrt', precision='fp32')\n"
        "print(segmenter.segment([np.zeros((50, 60, 3), np.uint8)])[0].labels.shape)"
    )
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(STAND_INS), str(root)]),
        "STAND_IN_BUILDS": str(tmp_path / "builds"),
        "STAND_IN_BUILD_SECONDS": "1.5",  # long enough for the other process to build as well, if nothing stops it
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(2):
            processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        stop = threading.Timer(120, lambda: [process.kill() for process in processes])
        stop.start()
        stack.callback(stop.cancel)
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.communicate(timeout=120)[0] for process in processes] == ["(50, 60)\n"] * 2
    assert len((tmp_path / "builds").read_text().splitlines()) == len(stored()) == 2


def test_engines_stay_in_memory_where_the_store_cannot_be_written(trt, bundles, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundles[0].path / "bundle.json"))
    for _ in range(2):
        assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(trt.built) == 4
    assert "the engine stays in memory and will be built again" in caplog.text
    assert "Not a directory" in caplog.text


@contextlib.contextmanager
def no_room_for(what, monkeypatch):
    """A disk that is full when an engine is written, or when its record is."""
    if what == "record":

        def write_json(path, value):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(importlib.import_module("dinov3_seg_ros.runtimes.tensorrt.store"), "write_json", write_json)
        yield
        monkeypatch.undo()
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("what", ["engine", "record"])
def test_a_full_disk_leaves_no_part_of_an_engine(trt, bundles, caplog, what):
    with pytest.MonkeyPatch.context() as monkeypatch, no_room_for(what, monkeypatch):
        assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert "the engine stays in memory" in caplog.text
    assert {path.suffix for path in store().iterdir()} == {".lock"}
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(stored()) == 2


def test_an_unreadable_graph_is_an_error_in_the_parsers_words(trt, cuda, bundles):
    write_graphs(bundles[0], head_operator="NonMaxSuppression")
    with pytest.raises(
        ExportError,
        match=r"cannot read .*head\.onnx: no importer registered for op \(node odd, operator NonMaxSuppression\)",
    ):
        segmenter(bundles[0])
    assert not cuda.device and not cuda.objects


def test_a_failed_build_or_load_is_an_error_in_tensorrts_words(trt, bundles):
    trt.behaviour.buildable = False
    with pytest.raises(ExportError, match=r"could not build an engine of .*backbone\.onnx: .*Could not find any impl"):
        segmenter(bundles[0])
    (refused,) = stored(".refused")
    trt.behaviour.buildable, trt.behaviour.loadable = True, False
    with pytest.raises(ExportError, match=r"could not build an engine .* \(found at an earlier start"):
        segmenter(bundles[0])
    refused.unlink()
    with pytest.raises(ExportError, match=r"cannot load the engine that it built .* Error Code 1: Serialization"):
        segmenter(bundles[0])
    assert stored() == []


FAILING_GPU = pytest.mark.parametrize(
    "said",
    [
        "CUDA error 2: out of memory",
        "[E] Error Code 1: Cuda Runtime (unspecified launch failure)",
        "cudaError 35: CUDA driver version is insufficient for CUDA runtime version",
    ],
)


def fail_with(trt, said):
    """What a method of TensorRT does that fails with a message."""

    def fail(maker, *_arguments):
        maker._logger.log(trt.ILogger.Severity.ERROR, said)

    return fail


@FAILING_GPU
def test_a_build_that_the_gpu_let_down_is_tried_again(trt, bundles, said, monkeypatch):
    with monkeypatch.context() as failing:
        failing.setattr(trt.Builder, "build_serialized_network", fail_with(trt, said))
        with pytest.raises(RuntimeUnavailableError, match=re.escape(f"{said}; this may pass")):
            segmenter(bundles[0])
    assert not stored(".refused")
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))


@FAILING_GPU
def test_an_engine_that_the_gpu_let_down_is_kept(trt, bundles, said, monkeypatch):
    labels(bundles[0])
    with monkeypatch.context() as failing:
        failing.setattr(trt.Runtime, "deserialize_cuda_engine", fail_with(trt, said))
        with pytest.raises(RuntimeUnavailableError, match=re.escape(f".engine: {said}; this may pass")):
            segmenter(bundles[0])
    assert len(stored()) == 2 and not stored(".refused")
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(trt.built) == 2


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_a_gpu_that_tensorrt_cannot_use_is_told_in_its_words(trt, bundles, kind, monkeypatch):
    labels(bundles[0])

    def fail(_maker, logger):
        logger.log(trt.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(getattr(trt, kind), "__init__", fail)
    with pytest.raises(RuntimeUnavailableError, match=r"cannot use the GPU: CUDA initialization failure .*nvidia-smi"):
        segmenter(bundles[0], max_batch=1 if kind == "Runtime" else 2)


def test_an_interrupted_build_is_cancelled_and_nothing_is_remembered(trt, bundles, monkeypatch):
    build, results = trt.Builder.build_serialized_network, []

    def interrupted(builder, network, config):
        os.kill(os.getpid(), signal.SIGINT)
        limit = time.monotonic() + 10.0
        while config.progress_monitor.step_complete("Tactics", 0) and time.monotonic() < limit:
            time.sleep(0.01)
        results.append(build(builder, network, config))
        return results[-1]

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs aside ignore it
    with monkeypatch.context() as slow:
        slow.setattr(trt.Builder, "build_serialized_network", interrupted)
        with pytest.raises(KeyboardInterrupt):
            segmenter(bundles[0])
        signal.signal(signal.SIGINT, handler)
        limit = time.monotonic() + 10.0
        while not results and time.monotonic() < limit:
            time.sleep(0.01)
    assert results == [None], "the build has ended, without an engine"
    assert not stored(".refused")
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))


@pytest.mark.parametrize(
    "warning",
    [
        "Skipping tactic 0 due to insufficient memory on requested size of 9 detected for tactic 0x00000000000003e8.",
        "[MemUsageChange] Tactic Device request: 9MB Available: 5MB. Device memory is insufficient to use tactic.",
    ],
)
def test_a_build_that_left_out_tactics_for_want_of_memory_is_tried_again(trt, bundles, warning, monkeypatch):
    build = trt.Builder.build_serialized_network

    def short_of_memory(builder, network, config):
        builder._logger.log(trt.ILogger.Severity.WARNING, warning)
        return build(builder, network, config)

    with monkeypatch.context() as full:
        full.setattr(trt.Builder, "build_serialized_network", short_of_memory)
        trt.behaviour.buildable = False
        with pytest.raises(RuntimeUnavailableError, match=r"for want of memory: .*Could not find any implementation"):
            segmenter(bundles[0])
        assert not stored(".refused")
        trt.behaviour.buildable = True
        assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    trt.behaviour.buildable = False
    with pytest.raises(ExportError, match=r"head\.onnx: \[E\] Error Code 10"):
        segmenter(bundles[1])
    assert len(stored(".refused")) == 1, "memory was lacking in earlier builds only"


@pytest.mark.parametrize("spoil", [np.negative, lambda value: np.full_like(value, np.nan), lambda value: value + 3])
def test_an_engine_that_computes_something_else_is_deleted(trt, cuda, bundles, spoil):
    trt.behaviour.spoil = spoil
    with pytest.raises(ExportError, match=r"what the PyTorch model computes: feature map layer_1 has cosine"):
        segmenter(bundles[0])
    assert stored(".refused") and len(stored()) == 1, "the head's, which was not at fault"
    assert not cuda.device and not cuda.host and not cuda.objects
    built = len(trt.built)
    trt.behaviour.spoil = None
    with pytest.raises(ExportError, match=r"layer_1 has cosine .* \(found at an earlier start; delete .*\.refused"):
        segmenter(bundles[0])
    assert len(trt.built) == built, "what fails is not built at each start"
    stored(".refused")[0].unlink()
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))


def test_a_wrong_engine_leaves_those_of_other_sizes(trt, bundles):
    write_graphs(bundles[0], size=(96, 64))
    trt.behaviour.spoil = lambda value: -value if value.shape[2] > value.shape[3] else value  # of upright inputs
    with pytest.raises(ExportError, match="feature map layer_1 has cosine"):
        segmenter(bundles[0], geometry="native")
    assert len(stored(".refused")) == 1 and len(stored()) == 3
    trt.behaviour.spoil = None
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))
    assert len(trt.built) == 4


def test_a_refused_engine_is_tried_again_with_another_release(trt, bundles, monkeypatch):
    trt.behaviour.spoil = np.negative
    with pytest.raises(ExportError, match="layer_1 has cosine"):
        segmenter(bundles[0])
    trt.behaviour.spoil = None
    monkeypatch.setattr(trt, "__version__", "11.1.0.106")
    assert np.array_equal(labels(bundles[0]), expected(bundles[0]))


def test_a_stored_engine_that_computes_something_else_is_built_anew_once(trt, bundles, caplog):
    labels(bundles[0])
    assert len(trt.built) == 2
    trt.behaviour.spoil = np.negative  # as after an update of the driver
    with pytest.raises(ExportError, match="layer_1 has cosine"):
        segmenter(bundles[0])
    assert len(trt.built) == 3
    assert "it is opened anew" in caplog.text
    assert len(stored(".refused")) == 1


def test_engines_are_compared_without_onnx_runtime(trt, bundles, monkeypatch):
    reference = expected(bundles[0])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    opened = segmenter(bundles[0])
    assert "unverified" not in opened.runtime.description
    assert np.array_equal(opened.segment([picture()])[0].labels, reference)
    trt.behaviour.spoil = np.negative
    with pytest.raises(ExportError, match="layer_1 has cosine"):
        segmenter(bundles[0], max_batch=2)


def test_auto_takes_no_engine_that_cannot_be_compared(trt, cuda, bundles):
    write_graphs(bundles[0], reference=False)
    shutil.rmtree(bundles[0].path / "onnx" / "64x96-fp16")
    chosen = Segmenter.from_bundle(bundles[0].path)
    assert chosen.runtime.name == "onnx"
    assert "cannot be compared with the PyTorch model" in chosen.runtime_reason
    assert not cuda.device and not cuda.objects, "it is closed"
    named = segmenter(bundles[0])
    assert "fp32, unverified (the export holds no reference" in named.runtime.description


def test_feature_maps_in_bfloat16_are_read_as_float32(trt):
    execution = importlib.import_module(f"{_OURS}.execution")
    values = np.array([[1.5, -0.0078125, 2.0**100]], np.float32)

    def copy(array, address):
        array[:] = values.view(np.uint32) >> 16

    stream = SimpleNamespace(from_gpu=copy, wait=lambda: None)
    assert np.array_equal(execution.Tensor(0, (3,), trt.DataType.BF16).read(stream, 1), values)


def test_a_head_of_another_type_than_the_feature_maps_is_refused(trt, bundles):
    write_graphs(bundles[0], head_type="fp16")
    with pytest.raises(ExportError, match=r"reads layer_1 as DataType\.HALF .*the backbone gives DataType\.FLOAT"):
        segmenter(bundles[0])


def test_an_engine_of_other_classes_than_the_bundle_names_is_refused(trt, bundles):
    content = json.loads((bundles[0].path / "bundle.json").read_text())
    for kind in ("names", "palette"):
        content["classes"][kind].pop()
    (bundles[0].path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(ExportError, match=r"head\.onnx computes 5 classes, but bundle\.json names 4"):
        segmenter(bundles[0])


def test_an_engine_that_reads_other_layers_than_the_bundle_names_is_refused(trt, bundles):
    content = json.loads((bundles[0].path / "bundle.json").read_text())
    for kind in ("layers", "channels", "strides"):
        content["backbone"][kind].pop()
    (bundles[0].path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(ExportError, match=r"head\.onnx reads layer_3, but backbone\.layers in bundle\.json is \["):
        segmenter(bundles[0])


def test_options_that_tensorrt_cannot_serve_are_refused_with_the_reason(trt, cuda, bundles):
    for device in ("cpu", "npu", "npu:1"):
        said = f"device '{device}' was asked for, but TensorRT computes on GPUs only; set device to cuda, or runtime"
        with pytest.raises(RuntimeUnavailableError, match=said):
            segmenter(bundles[0], device=device)
    with pytest.raises(RuntimeUnavailableError, match="--precision int8_qdq"):
        segmenter(bundles[0], precision="int8")
    with pytest.raises(RuntimeUnavailableError, match=r"no exported graphs of bf16 .*dinov3_seg_ros\.export"):
        segmenter(bundles[0], precision="bf16")
    with pytest.raises(ParameterError, match="precision is 'fp8'; use one of: auto, fp32"):
        segmenter(bundles[0], precision="fp8")
    cuda.gpu.memory = 1000
    with pytest.raises(RuntimeUnavailableError, match=r"cudaMalloc failed: .*MemoryAllocation.*smaller network size"):
        segmenter(bundles[0])
    assert not cuda.device and not cuda.host and not cuda.objects
    cuda.gpu.count = 0
    with pytest.raises(RuntimeUnavailableError, match="CUDA finds none"):
        segmenter(bundles[0])
    cuda.gpu.count = None
    with pytest.raises(RuntimeUnavailableError, match=r"no GPU can be used: Failed to dlopen libcuda\.so\.1"):
        segmenter(bundles[0])


def test_auto_takes_tensorrt_and_half_precision_where_there_is_a_gpu(trt, cuda, bundles):
    chosen = Segmenter.from_bundle(bundles[0].path)
    assert chosen.runtime.description == "TensorRT 10.13.3.9, Stand-in GPU (cuda:0), fp16"
    assert chosen.runtime_reason.startswith("tensorrt is the fastest that can run here on the CUDA:0")
    assert Segmenter.from_bundle(bundles[1].path).runtime.description.endswith("fp32")
    cuda.gpu.count = 0
    assert Segmenter.from_bundle(bundles[0].path).runtime.name == "onnx"


def test_auto_falls_back_to_onnx_where_an_engine_computes_something_else(trt, cuda, bundles):
    trt.behaviour.spoil = np.negative
    chosen = Segmenter.from_bundle(bundles[0].path, precision="fp32")
    assert chosen.runtime.name == "onnx"
    assert chosen.runtime_reason.startswith("onnx is the fastest that can run here on the CPU (tensorrt: ")
    assert "does not compute what the PyTorch model computes" in chosen.runtime_reason
    assert not cuda.device and not cuda.host and not cuda.objects
    assert np.array_equal(chosen.segment([picture()])[0].labels, expected(bundles[0]))


def test_a_tensorrt_before_10_is_refused(trt, bundles, monkeypatch):
    monkeypatch.setattr(trt, "__version__", "8.6.1")
    with pytest.raises(RuntimeUnavailableError, match=r"TensorRT 8\.6\.1 is too old; 10 or newer is needed"):
        segmenter(bundles[0])


def test_a_long_build_logs_its_progress_in_percent(trt, bundles, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dinov3_seg_ros.runtimes.tensorrt")
    builder = importlib.import_module("dinov3_seg_ros.runtimes.tensorrt.builder")
    monkeypatch.setattr(builder, "_SECONDS_BETWEEN_MESSAGES", 0.0)
    labels(bundles[0])
    lines = [record.getMessage() for record in caplog.records if "%" in record.getMessage()]
    shares = [int(line.split()[-2]) for line in lines if "backbone.onnx" in line]
    assert lines[0] == "building 64x96-fp32/backbone.onnx: Building Engine, 12 %"
    assert shares == sorted(shares) and shares[-1] == 100


def test_progress_is_logged_at_most_every_few_seconds(trt, bundles, caplog):
    caplog.set_level(logging.INFO, "dinov3_seg_ros.runtimes.tensorrt")
    labels(bundles[0])
    assert not [record for record in caplog.records if "%" in record.getMessage()]


def test_the_doctor_reports_gpu_engines_and_graphs(trt, cuda, bundles):
    labels(bundles[0])
    stored()[0].write_bytes(b"")
    (bundles[1].path / "onnx" / "64x96-fp32" / "head.onnx").write_bytes(b"")
    found = [(f.level, f.subject, f.detail) for f in examine([bundle.path for bundle in bundles])]
    assert ("ok", "runtime tensorrt", "can be used") in found
    assert ("ok", "GPU", "Stand-in GPU, compute capability 8.7") in found
    assert ("ok", "graphs of one", "ONNX, 64x96, fp16, compared with the model") in found
    assert any(level == "ok" and detail.startswith("2 in ") for level, _, detail in found)
    assert any(level == "warning" and detail.startswith(str(stored()[0])) for level, _, detail in found)
    assert any(level == "warning" and "head.onnx is damaged" in detail for level, _, detail in found)


def test_the_doctor_reports_engines_that_are_not_built_again(trt, cuda, bundles):
    trt.behaviour.buildable = False
    with pytest.raises(ExportError):
        segmenter(bundles[0])
    (refused,) = stored(".refused")
    refused.with_name("damaged.refused").touch()
    (found,) = (finding for finding in examine([bundles[0].path]) if ".refused" in finding.remedy)
    assert (found.level, found.subject) == ("warning", "TensorRT engine")
    assert "backbone.onnx" in found.detail and "Could not find any implementation" in found.detail
    assert found.remedy == f"correct the cause, then delete {refused} to try again"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle with its ONNX export."""
    backbone, folder = made_backbone("dinov3_convnext", [1, 2, 3]), tmp_path_factory.mktemp("exported")
    bundle = write_tiny_bundle(folder / "tiny", backbone=backbone, network_size=SIZE, geometry="stretch")
    export([bundle.path], ExportOptions())
    return bundle


def test_the_export_builds_engines_and_compares_them_with_the_model(trt, exported, capsys, tmp_path):
    from dinov3_seg_ros.export.__main__ import main

    cv2.imwrite(str(tmp_path / "picture.png"), picture(2))
    assert main([str(exported.path), "--engine", "--images", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "# Engines of tiny, 64x96, fp32" in said
    assert "on 1 images, TensorRT 10.13.3.9, Stand-in GPU (cuda:0), fp32." in said
    assert len(trt.built) == len(stored()) == len(stored(".md")) == 2
    reference = Segmenter.from_bundle(exported.path, "torch").segment([picture()])[0].labels
    assert (labels(exported) == reference).mean() > 0.9995
    assert len(trt.built) == 2


def test_the_parser_reads_graphs_quantised_for_tensorrt(trt, tmp_path, capsys):
    from dinov3_seg_ros.export.__main__ import main

    # Biases start at 0, and the graph would leave them out: these are others.
    backbone = made_backbone("dinov3_convnext", [1, 2, 3])
    bundle = write_tiny_bundle(tmp_path / "tiny", backbone=backbone, network_size=SIZE, geometry="stretch")
    assert main([str(bundle.path), "--engine", "--precision", "int8_qdq", "--least-labels", "0.8"]) == 0
    assert "# Engines of tiny, 64x96, int8_qdq" in capsys.readouterr().out


def test_engines_that_differ_from_the_model_fail_the_export(trt, exported, capsys):
    from dinov3_seg_ros.export import exporter
    from dinov3_seg_ros.export.__main__ import main

    trt.behaviour.spoil = np.negative
    options = exporter.ExportOptions(engine=True)
    job = exporter._Job([exported], SIZE, options)
    with pytest.raises(
        ExportError, match=r"engines do not compute what the model computes: feature map .* the verified graphs kept"
    ):
        job.build_engines()
    assert stored() == stored(".json") == []
    assert main([str(exported.path), "--engine", "--precision", "int8"]) == 1
    assert "--precision int8_qdq" in capsys.readouterr().err
