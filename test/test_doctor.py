"""The doctor names what is wrong and what to do about it."""

from __future__ import annotations

import shutil

import pytest
from bundles import write_tiny_bundle

from dinov3_seg_ros import doctor
from dinov3_seg_ros.export.exporter import ExportOptions, export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", geometry="stretch")
    export([bundle.path], ExportOptions())
    return bundle


def findings(path):
    return {finding.subject: finding for finding in doctor.examine([path])}


def test_a_whole_bundle_and_its_graphs_are_described(exported):
    found = findings(exported.path)
    assert found["bundle tiny"].level == doctor.OK
    assert found["graphs of tiny"].detail == "ONNX, 64x96, fp32, compared with the model"
    assert "CPUExecutionProvider" in found["runtime onnx"].detail


def test_stale_graphs_are_a_warning_with_the_command_that_renews_them(exported, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", geometry="stretch", seed=5)
    shutil.copytree(exported.path / "onnx", other.path / "onnx")
    found = findings(other.path)["graphs of tiny"]
    assert found.level == doctor.WARNING
    assert "another head" in found.detail
    assert found.remedy == f"python -m dinov3_seg_ros.export {other.path}"


@pytest.mark.parametrize(("form", "level"), [("triton", doctor.OK), ("torch", doctor.WARNING)])
def test_a_gpu_whose_decode_is_not_compiled_is_a_warning(monkeypatch, form, level):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "dinov3_seg_ros.decode.backend", lambda device="cpu", wait=False: {"cpu": "numba", "cuda": form}[device]
    )
    on_cpu, on_gpu = doctor._decode()
    assert on_cpu.level == doctor.OK
    assert on_gpu.level == level
    assert on_gpu.detail == "compiled (triton)" or "triton" in on_gpu.remedy


def test_a_damaged_bundle_is_a_fault_and_the_exit_status(exported, tmp_path, capsys):
    shutil.copytree(exported.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "head.safetensors").write_bytes(b"")
    assert doctor.main([str(tmp_path / "damaged")]) == 1
    assert "head.safetensors is damaged" in capsys.readouterr().out
