"""OpenVINO as a package of execution providers, for tests; on processors that its package does not list, wrapped."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from dinov3_seg_ros.runtimes.onnx import plugins
from dinov3_seg_ros.support.cpu import this_cpu

NAME = "OpenVINOExecutionProvider"


@contextlib.contextmanager
def loaded(folder):
    """Load the package for this process alone; skip where it cannot be."""
    package = pytest.importorskip("onnxruntime_ep_openvino", reason="onnxruntime-ep-openvino is not installed")
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} takes no packages of execution providers")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(plugins.SWITCH, raising=False)
        if "Intel" not in this_cpu().name:
            library = wrapped(Path(package.get_library_path()), folder)
            patch.setattr(package, "get_library_path", lambda: str(library))
        plugins._register_all.cache_clear()
        try:
            plugins.register()
            yield
        finally:
            with contextlib.suppress(Exception):
                onnxruntime.unregister_execution_provider_library(NAME)
            plugins._register_all.cache_clear()


def wrapped(library, folder):
    """Compile what makes the library take this processor for one of Intel."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("OpenVINO's package lists Intel's processors only, and there is no C compiler to wrap it")
    target, source = folder / "wrapped.so", Path(__file__).parent / "any_processor.c"
    command = [compiler, "-shared", "-fPIC", f'-DLIBRARY="{library}"', "-o", str(target), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return target
