"""What several test files share."""

from __future__ import annotations

import pytest

from dinov3_seg_ros import decode
from dinov3_seg_ros.ros.transport import remove_dead_segments


@pytest.fixture(scope="session")
def small_exported_bundle(tmp_path_factory):
    """A bundle of 32x32 pixels with its ONNX export, which takes seconds to make and nobody changes."""
    from bundles import write_exported_bundle

    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32))


@pytest.fixture(scope="session", autouse=True)
def _clean_shared_memory():
    """Remove what nodes and cameras leave in shared memory when tests kill them."""
    remove_dead_segments()
    yield
    remove_dead_segments()


@pytest.fixture(scope="session", autouse=True)
def _compile_decode():
    """Compile the decode first, so that no test meets the change from NumPy to numba in its midst."""
    decode.backend(wait=True)
