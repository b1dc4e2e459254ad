"""The benchmark command measures what it says, on a bundle of made-up weights."""

from __future__ import annotations

import json

import pytest
from bundles import write_tiny_bundle

from dinov3_seg_ros.benchmark.__main__ import main
from dinov3_seg_ros.timing import STAGES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", geometry="stretch")


def test_every_stage_of_all_pipelines_is_measured_and_labels_are_compared(bundle, tmp_path, capsys):
    file = tmp_path / "result.json"
    command = [str(bundle.path), "--frames", "3", "--frame-size", "96", "128", "--baseline", "--json", str(file)]
    assert main(command) == 0
    result = json.loads(file.read_text())
    assert list(result["stages_ms"]) == list(STAGES)
    assert result["stages_ms"]["message_in"] is None and result["stages_ms"]["message_out"] is None
    stages = [stage for stage in STAGES if not stage.startswith("message")]
    for measured in (result, *result["baselines"].values()):
        assert all(measured["stages_ms"][stage]["median"] > 0 for stage in stages)
    assert result["baselines"]["textbook"]["equal_labels"] >= 0.9995
    assert "times faster than predecessor" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(bundle, tmp_path, capsys):
    assert main([str(bundle.path), "--frames", "0"]) == 1
    assert "measure at least one" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().err
