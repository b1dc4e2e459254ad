"""What several test files share."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from robot_part import has_gpu, has_torch, needs_torch

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: more threads than cores only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# So that tests compute alike on every processor, in this process and in nodes; test_openvino.py switches them on.
os.environ.setdefault("DINOV3_SEG_ROS_PLUGINS", "off")

from dinov3_seg_ros import decode, scenes
from dinov3_seg_ros.ros.shared_memory import remove_dead_segments
from dinov3_seg_ros.support.files import locked

# Files whose tests share what takes seconds to make, such as traces, Ray or a process; each group runs in one process.
RUN_TOGETHER = {
    "test_benchmark": "benchmark",
    "test_decode_triton": "triton",
    "test_export": "exports",
    "test_gate": "exports",
    "test_heads": "exports",
    "test_openvino": "openvino",  # a process can load its library once
    "test_scenes": "scenes",
    "test_tensorrt": "exports",
    "test_training_cluster": "cluster",
    "test_training_feature_cache": "processes",
    "test_training_processes": "processes",
    "test_training_resume": "processes",
}


def pytest_sessionstart(session):
    _clean_shared_memory(session)
    if not hasattr(session.config, "workerinput"):  # while the workers start
        threading.Thread(target=_compile_kernels).start()


def pytest_sessionfinish(session):
    _clean_shared_memory(session)


def _clean_shared_memory(session):
    """Remove what nodes and cameras leave in shared memory when tests kill them, while no test runs."""
    if not hasattr(session.config, "workerinput"):
        remove_dead_segments()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """One process for each core, and one more: that of the tests with real nodes mostly waits."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item):
    """Let processes that only compute give way to the one with real nodes, which keep to times."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("ros"):
        _give_way()


@functools.cache
def _give_way():
    os.nice(5)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """Run the tests with real nodes one after the other, beside the rest: two nodes at once share too few cores.

    The same holds for tests on a GPU, which has one memory. Where there is none, they are skipped.
    """
    for item in items:
        group = RUN_TOGETHER.get(item.path.stem)
        if item.get_closest_marker("ros"):
            group = "ros"
        if item.get_closest_marker("gpu"):
            group = "gpu"
            item.add_marker(pytest.mark.skipif(not has_gpu(), reason="no CUDA GPU here"))
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_ignore_collect(collection_path):
    """Without PyTorch, leave out the modules that need it."""
    if collection_path.match("test_*.py") and not has_torch() and needs_torch(collection_path):
        return True
    return None


def pytest_report_header():
    """Say in the first lines what is left out."""
    left_out = 0 if has_torch() else sum(map(needs_torch, Path(__file__).parent.glob("test_*.py")))
    return f"PyTorch is not installed: {left_out} modules that need it are left out" if left_out else None


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache folder for the test alone: tables of a data set are copied into the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def small_exported_bundle(tmp_path_factory):
    """A bundle of 32x32 pixels that nobody changes."""
    from exported_bundles import write_exported_bundle

    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32))


@pytest.fixture(scope="session", autouse=True)
def _end_on_hangup():
    """Processes inherit what is ignored: under nohup, none would end as one whose terminal closes."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _compile_decode():
    """Compile the decode first, so that no test meets the change from NumPy to numba in its midst."""
    _compile_kernels()


def _compile_kernels():
    """Compile what numba compiles, half a minute of work, in one process; the others load it from numba's cache."""
    with locked(Path(tempfile.gettempdir()) / f"dinov3_seg_ros_tests_{os.getuid()}.lock"):
        for classes in (2, 256):  # labels of 8 bits, and of 16
            decode.upsample_argmax(np.zeros((1, classes, 1, 1), np.float32), (1, 1))
        decode.backend(wait=True)
        scenes.sample("val", 0, (16, 16))


@pytest.fixture
def cores(monkeypatch):
    """``cores(count, quota)``: as if the process could run on so many cores, for the time of ``quota`` of them."""

    def set_cores(count, quota=None):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(count)), raising=False)
        monkeypatch.setattr("dinov3_seg_ros.support.cpu.cpu_quota", lambda: quota)

    return set_cores


@pytest.fixture(scope="session")
def operators_listed_once():
    """PyTorch's exporter lists the operators that it knows once, and not in each export, which takes half a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def _traces(operators_listed_once):
    import torch.onnx
    from traced_once import TracesOnce

    return TracesOnce(torch.onnx.export)


@pytest.fixture(scope="module")
def traced_once(_traces):
    """Trace equal networks once; see `traced_once.TracesOnce`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", _traces)
        yield


@pytest.fixture(scope="session")
def engine_builder(tmp_path_factory):
    """NVIDIA's own parser and builder, which need no GPU: ``build(graph)`` returns ``bytes`` or an ``error``."""
    from benchmarks.tensorrt_builds import EngineBuilder, UnavailableError

    try:
        builder = EngineBuilder(tmp_path_factory.mktemp("tensorrt"))
    except UnavailableError as error:
        pytest.skip(f"TensorRT's builder is not installed: {error}")
    with contextlib.closing(builder):
        yield builder
