"""The package's own files and executables are found in a checkout and in an installation."""

from __future__ import annotations

import pytest

from dinov3_seg_ros.support.errors import SegmentationError
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.resources import console_script, resource_path


@pytest.mark.parametrize("name", ["config/fastdds.xml", "launch/seg.launch.py", "weights/demo/bundle.json"])
def test_files_of_the_package_are_found(name):
    assert resource_path(name).is_file()


def test_files_are_found_in_the_share_folder_of_a_ros_workspace(tmp_path, monkeypatch):
    installed = tmp_path / "share" / "dinov3_seg_ros" / "config" / "only_here.yaml"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert resource_path("config/only_here.yaml") == installed


def test_a_missing_file_is_reported_with_the_folders_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(SegmentationError, match=f"'config/none' .*{tmp_path}/share/dinov3_seg_ros.*install"):
        resource_path("config/none")


def test_executables_are_found_where_colcon_puts_them(tmp_path, monkeypatch):
    script = tmp_path / "lib" / "dinov3_seg_ros" / "segmentation_node"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert console_script("segmentation_node") == str(script)
    with pytest.raises(SegmentationError, match="executable 'no_such_node'"):
        console_script("no_such_node")


def test_an_extra_is_installed_from_the_checkout_there_and_else_from_a_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert how_to_install("bag") == "pip install './src/dinov3_seg_ros[bag]'"
    monkeypatch.chdir(resource_path("setup.py").parent)
    assert how_to_install("bag") == "pip install '.[bag]'"
