"""What several test files share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def small_exported_bundle(tmp_path_factory):
    """A bundle of 32x32 pixels with its ONNX export, which takes seconds to make and nobody changes."""
    from bundles import write_exported_bundle

    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32))
