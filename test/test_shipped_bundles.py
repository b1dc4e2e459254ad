"""The bundles that come with the package: found by their names, small, and usable without PyTorch."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from exported_bundles import write_exported_bundle

from dinov3_seg_ros.bundle.loading import SHIPPED, load_bundle
from dinov3_seg_ros.bundle.onnx_folder import find_exports
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import BundleError
from dinov3_seg_ros.support.resources import resource_path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bundle_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # holds no bundle
    bundle = load_bundle(name)
    assert (bundle.path, bundle.manifest.name) == (resource_path(f"weights/{name}"), name)


def test_a_bundle_of_ones_own_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write_exported_bundle(tmp_path / "demo")
    assert load_bundle("demo").manifest == own.manifest


def test_a_name_of_no_bundle_is_answered_with_the_shipped_ones():
    with pytest.raises(BundleError, match=f"no such folder.*: {', '.join(SHIPPED)}$"):
        load_bundle("dmeo")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bundle_is_small_and_runs_without_torch(name):
    bundle = load_bundle(name)
    exports, refused = find_exports(bundle)
    assert refused == []
    assert [export.manifest.precision for export in exports if export.manifest.verified] == ["fp32"]
    assert exports[0].manifest.network_size == bundle.manifest.input.network_size
    sizes = [file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()]
    assert sum(sizes) <= 12e6 and max(sizes) <= 9e6


def painted_corridor(height=480, width=640):
    """An (H, W, 3) uint8 RGB picture of a corridor: bright walls, a darker tiled floor below the middle."""
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), (190, 195, 188), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    floor = rows > height * 0.55 + 0.12 * np.abs(columns - width / 2)
    image[floor] = (128, 134, 130)
    image[floor & ((rows + columns) % 90 < 2)] = (96, 100, 98)
    return np.clip(image + random.normal(0, 3, image.shape), 0, 255).astype(np.uint8), floor


def test_the_corridors_bundle_tells_a_painted_floor_from_the_walls():
    image, floor = painted_corridor()
    with contextlib.closing(Segmenter.from_bundle("corridor", runtime="onnx")) as segmenter:
        found = segmenter.segment([image])[0]
    names = load_bundle("corridor").manifest.classes.names
    is_floor = found.labels == names.index("road")
    assert found.labels.shape == image.shape[:2] and found.labels.max() < len(names)
    assert is_floor[floor].mean() > 0.8
    assert is_floor[: len(image) // 3].mean() < 0.1
