"""The doctor names what is wrong and what to do about it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from closed_folder import make_closed_folder
from exported_bundles import write_exported_bundle

from dinov3_seg_ros.doctor import __main__ as doctor
from dinov3_seg_ros.doctor import communication, computing, installation
from dinov3_seg_ros.doctor.findings import FAULT, OK, WARNING, surviving
from dinov3_seg_ros.support.cpu import Cpu


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundles") / "tiny", geometry="stretch")


def install(folder, name, version, module):
    """Write what tells Python that a distribution is installed."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text(f"{module}\n")


def findings(path):
    return {finding.subject: finding for finding in doctor.examine([path])}


def test_an_intact_bundle_and_its_graphs_are_described(exported):
    found = findings(exported.path)
    assert found["bundle tiny"].level == OK
    assert found["graphs of tiny"].detail == "ONNX, 64x96, fp32, compared with the model"
    assert "CPUExecutionProvider" in found["runtime onnx"].detail


def test_stale_graphs_are_a_warning_with_the_export_command(exported, tmp_path):
    other = write_exported_bundle(tmp_path / "other", geometry="stretch", seed=5)
    shutil.copytree(exported.path / "onnx", other.path / "onnx", dirs_exist_ok=True)
    found = findings(other.path)["graphs of tiny"]
    assert found.level == WARNING
    assert "another head" in found.detail
    assert found.remedy == f"python -m dinov3_seg_ros.export {other.path}"


def test_a_bundle_that_no_runtime_can_compute_is_a_fault(exported, tmp_path, monkeypatch):
    assert findings(exported.path)["runtime of tiny"].detail.startswith("onnx, ")
    monkeypatch.setitem(sys.modules, "transformers", None)  # as on a robot without PyTorch
    shutil.copytree(exported.path, tmp_path / "bare", ignore=shutil.ignore_patterns("onnx"))
    stale = write_exported_bundle(tmp_path / "stale", geometry="stretch", seed=5)
    shutil.copytree(exported.path / "onnx", stale.path / "onnx", dirs_exist_ok=True)
    for path, reason in ((tmp_path / "bare", "no exported graphs"), (stale.path, "another head")):
        found = findings(path)["runtime of tiny"]
        assert found.level == FAULT
        assert "no runtime can be used" in found.detail and reason in found.detail
        assert found.remedy.endswith(f"python -m dinov3_seg_ros.export {path}")


@pytest.mark.parametrize(
    ("form", "level", "detail", "remedy"),
    [
        ("triton", OK, "compiled (triton)", ""),
        ("torch", WARNING, "PyTorch operations: correct but slower", "pip install triton"),
    ],
)
def test_a_decode_not_compiled_for_the_gpu_is_a_warning(monkeypatch, form, level, detail, remedy):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "dinov3_seg_ros.decode.backend", lambda device="cpu", wait=False: {"cpu": "numba", "cuda": form}[device]
    )
    on_cpu, on_gpu = computing.decoders()
    assert on_cpu.level == OK
    assert (on_gpu.level, on_gpu.detail) == (level, detail)
    assert on_gpu.remedy.startswith(remedy) and bool(on_gpu.remedy) == bool(remedy)


def test_a_provider_without_its_gpu_is_no_warning(monkeypatch):
    from dinov3_seg_ros.runtimes.onnx import plugins

    reasons = {"Nvidia": "this machine has no driver of NVIDIA (libcuda.so)", "Other": "broken", "Usable": ""}
    monkeypatch.setattr(plugins, "register", lambda: reasons)
    monkeypatch.setattr(plugins, "devices", list)
    found = [finding for finding in computing.providers([]) if finding.subject == "execution provider"]
    assert [finding.level for finding in found] == [OK, WARNING]


def test_a_damaged_bundle_is_a_fault_and_gives_exit_code_1(exported, tmp_path, capsys):
    shutil.copytree(exported.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "head.safetensors").write_bytes(b"")
    assert doctor.main([str(tmp_path / "damaged")]) == 1
    assert "head.safetensors is damaged" in capsys.readouterr().out


def test_clean_removes_what_killed_processes_left_and_says_so(exported, tmp_path, monkeypatch, capsys):
    removed = tmp_path / "fastdds_port7411"
    monkeypatch.setattr(doctor, "remove_dead_segments", lambda: [removed])
    doctor.main([str(exported.path), "--clean"])
    assert f"removed  {removed}" in capsys.readouterr().out
    doctor.main([str(exported.path)])
    assert "removed" not in capsys.readouterr().out


def test_files_of_killed_processes_are_findings_with_the_remedy(tmp_path, monkeypatch):
    unfinished, stale = tmp_path / "fastdds_port7411", tmp_path / "fastdds_0123456789abcdef"
    stale.write_bytes(bytes(3 << 20))
    monkeypatch.setattr(communication, "unfinished_segments", lambda: [unfinished])
    monkeypatch.setattr(communication, "stale_segments", lambda: [stale])
    monkeypatch.setattr(communication, "stale_ports", list)
    found = list(communication.shared_memory())
    assert [(finding.level, finding.subject) for finding in found[:2]] == [
        (FAULT, "fastdds_port7411"),
        (WARNING, "/dev/shm"),
    ]
    assert "1 files (3 MB)" in found[1].detail
    assert all(finding.remedy == "python -m dinov3_seg_ros.doctor --clean" for finding in found[:2])


@pytest.mark.parametrize(("free_mb", "level"), [(127, WARNING), (128, OK)])
def test_too_little_room_in_shared_memory_is_a_warning(monkeypatch, free_mb, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free_mb << 20))
    *_, found = communication.shared_memory()
    assert (found.level, found.subject) == (level, "/dev/shm")
    assert f"{free_mb} MB free" in found.detail and ("--shm-size" in found.remedy) == (level == WARNING)


@pytest.mark.parametrize(
    ("name", "version", "is_old"),
    [("pydantic", "2.9.2", True), ("pydantic", "2.10.0", False), ("transformers", "4.57.1", True)],
)
def test_a_package_that_is_too_old_is_a_fault(tmp_path, monkeypatch, name, version, is_old):
    install(tmp_path, name, version, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    faults = {found.subject: found for found in installation.packages() if found.level == FAULT}
    assert list(faults) == [name] * is_old
    if is_old:
        assert faults[name].detail.startswith(f"{version}: too old, ")
        assert faults[name].remedy.startswith(f"pip install '{name}>=")


def test_caches_that_cannot_be_written_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "caches" not in {finding.subject for finding in computing.stores()}
    (tmp_path / "file").touch()
    closed = make_closed_folder(tmp_path / "closed", monkeypatch)
    for caches in (tmp_path / "file", closed / "home"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
        *_, found = computing.stores()
        assert (found.level, found.subject) == (WARNING, "caches")
        assert "made anew at every start" in found.detail and "XDG_CACHE_HOME" in found.remedy


@pytest.mark.parametrize(
    ("python", "level", "detail"),
    [
        ("{bin}/python3", OK, "starts {bin}/python3"),
        ("{tmp}/python3", FAULT, "starts {tmp}/python3, not this Python ({bin}/"),
        ("{tmp}/gone/python", FAULT, "starts {tmp}/gone/python, which does not exist"),
    ],
)
def test_an_executable_that_starts_another_python_is_a_fault(tmp_path, monkeypatch, python, level, detail):
    places = {"bin": Path(sys.executable).parent, "tmp": tmp_path}
    script = tmp_path / "install" / "lib" / "dinov3_seg_ros" / "segmentation_node"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{python.format(**places)}\nimport sys\n")
    (tmp_path / "python3").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "install"))
    (found,) = installation.executable()
    assert found.level == level and found.detail.startswith(f"{script} {detail.format(**places)}")
    assert found.remedy.endswith("then colcon build --packages-select dinov3_seg_ros") == (level == FAULT)


def test_an_environment_of_wheels_is_a_fault_where_ros_is_sourced(tmp_path, monkeypatch):
    wheels, sourced = tmp_path / "wheels", tmp_path / "opt"
    for folder in (wheels, sourced):
        (folder / "rclpy").mkdir(parents=True)
        (folder / "rclpy" / "__init__.py").touch()
    install(wheels, "ros-rclpy", "9.1.2", "rclpy")
    monkeypatch.delitem(sys.modules, "rclpy", raising=False)
    monkeypatch.setattr(sys, "path", [str(sourced), str(wheels)])
    (found,) = installation.ros()
    assert (found.level, found.subject) == (FAULT, "rclpy")
    assert str(sourced / "rclpy") in found.detail
    assert found.remedy == "open a terminal in which ROS is not sourced, or run make again in this one"


@pytest.mark.parametrize(
    ("in_environment", "is_managed", "remedy"),
    [
        (False, True, "activate the environment of docs/install.md"),
        (False, False, "pip install numpy"),
        (True, True, "pip install numpy"),
    ],
)
def test_no_remedy_is_a_pip_that_the_system_forbids(tmp_path, monkeypatch, in_environment, is_managed, remedy):
    if is_managed:
        (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path) if in_environment else sys.base_prefix)
    for name in ("numpy", "rclpy"):
        monkeypatch.setitem(sys.modules, name, None)
    found = {finding.subject: finding for finding in surviving([installation.packages, installation.ros])}
    assert (found["numpy"].level, found["numpy"].remedy) == (FAULT, remedy)
    assert ("pip install" in found["rclpy"].remedy) == ("pip install" in remedy)


@pytest.mark.ros
def test_a_folder_for_logs_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    pytest.importorskip("rclpy", reason="no ROS 2 here", exc_type=ImportError)
    (tmp_path / "file").touch()
    for variable in ("ROS_LOG_DIR", "ROS_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert "ROS logs" not in {finding.subject for finding in installation.ros()}
    assert next(installation.ros()).level == OK
    for variable in ("ROS_LOG_DIR", "ROS_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "file/home"))
        (found,) = (finding for finding in installation.ros() if finding.subject == "ROS logs")
        assert found.level == FAULT and "no node can start" in found.detail and "ROS_LOG_DIR" in found.remedy
        monkeypatch.delenv(variable)
    # Nor does ROS look for the home of a user that HOME does not name.
    assert [finding.level for finding in installation.ros() if finding.subject == "ROS logs"] == [FAULT]


def test_the_doctor_runs_where_no_library_can_be_imported():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('numpy', 'cv2', 'pydantic', 'rclpy', 'torch')))\n"
        "from dinov3_seg_ros.doctor.__main__ import main\n"
        "sys.exit(main([]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert all(f"fault    {name} " in run.stdout for name in ("numpy", "cv2", "pydantic", "rclpy")), run.stdout
    assert "fault    doctor" not in run.stdout, "each is told once"
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        (("onnxruntime", "onnxruntime-openvino"), ["onnxruntime, onnxruntime-openvino"]),
        (("onnxruntime-openvino", "onnxruntime-gpu"), ["onnxruntime-gpu, onnxruntime-openvino"]),
        (("opencv-python", "opencv-python-headless", "onnxruntime"), ["opencv-python, opencv-python-headless"]),
        (("opencv-python-headless", "opencv-contrib-python"), ["opencv-contrib-python, opencv-python-headless"]),
        (("onnxruntime", "onnxruntime-migraphx"), ["onnxruntime, onnxruntime-migraphx"]),
        (("onnxruntime", "onnxruntime-of-tomorrow"), ["onnxruntime, onnxruntime-of-tomorrow"]),
        (("onnxruntime",), []),
        (("opencv-contrib-python", "onnxruntime-training"), []),
    ],
)
def test_packages_that_hold_the_same_module_are_a_fault(tmp_path, monkeypatch, installed, named):
    for name in installed:
        install(tmp_path, name, "1.24", "cv2" if name.startswith("opencv") else "onnxruntime")
    install(tmp_path, "onnxruntime-ep-plugin", "1.24", "onnxruntime_ep_plugin")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert [found.subject for found in installation.conflicts() if found.level == FAULT] == named


@pytest.mark.parametrize("build", ["opencv-python", "opencv-python-headless", "opencv-contrib-python"])
def test_opencv_5_is_replaced_by_the_same_build(tmp_path, monkeypatch, build):
    install(tmp_path, build, "5.0.1", "cv2")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (found,) = installation.conflicts()
    assert (found.level, found.subject, found.remedy) == (WARNING, build, f"pip install '{build}<5'")


def test_a_processor_that_multiplies_bf16_is_told_of_openvino_unless_it_runs_here(exported, monkeypatch):
    # As it is on AMD, where the package is installed and lists no device.
    monkeypatch.setattr("dinov3_seg_ros.runtimes.onnx.targets.runs_here", lambda name: False)
    processor = Cpu(name="A processor", architecture="x86_64", features=("amx_bf16",))
    monkeypatch.setattr("dinov3_seg_ros.support.cpu.this_cpu", lambda: processor)
    found = {finding.subject: finding for finding in computing.providers([exported.path])}
    assert "multiplies bf16, which needs OpenVINO" in found["processor"].detail
    assert "[openvino]" in found["processor"].remedy and "[cpu-openvino]" in found["processor"].remedy
    assert found["fastest runtime"].remedy.endswith(f"benchmark {exported.path} --choose")
    monkeypatch.setattr("dinov3_seg_ros.runtimes.onnx.targets.runs_here", lambda name: True)
    found = {finding.subject: finding for finding in computing.providers([exported.path])}
    assert (found["processor"].detail, found["processor"].remedy) == ("A processor: multiplies bf16", "")
    missing = {"onnx": "onnxruntime is not installed", "torch": None, "tensorrt": None}
    monkeypatch.setattr("dinov3_seg_ros.runtimes.choice.available_runtimes", lambda: missing)
    found = {finding.subject: finding for finding in computing.providers([exported.path])}
    assert "which needs OpenVINO" in found["processor"].detail and "[openvino]" in found["processor"].remedy
