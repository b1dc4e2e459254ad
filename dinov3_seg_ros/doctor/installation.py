"""Checks of the packages that are installed, ROS among them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dinov3_seg_ros.doctor.findings import ENVIRONMENT, FAULT, OK, WARNING, Finding, import_error, release
from dinov3_seg_ros.support.errors import SegmentationError
from dinov3_seg_ros.support.files import is_writable
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.resources import PACKAGE, console_script

#: The oldest releases of packages that often come from elsewhere, such as Debian, as in setup.py.
LEAST = {"pydantic": "2.10", "transformers": "5.4"}


def packages() -> Iterator[Finding]:
    """Check the packages that everything needs."""
    for module, distributions, remedy in (
        ("numpy", ["numpy"], "pip install numpy"),
        ("cv2", _builds_of("cv2"), how_to_install("cv-headless")),
        ("pydantic", ["pydantic"], f"pip install 'pydantic>={LEAST['pydantic']}'"),
    ):
        version = release(*distributions)
        error = import_error(module)
        if error:
            yield Finding(FAULT, module, f"cannot be imported: {error}", remedy)
        else:
            yield Finding(OK, module, version or "installed by the system")
    for distribution, least in LEAST.items():
        version = release(distribution)
        if version and _numbers(version) < _numbers(least):
            remedy = f"pip install '{distribution}>={least}'"
            yield Finding(FAULT, distribution, f"{version}: too old, {least} is needed", remedy)


def _builds_of(module: str) -> list[str]:
    """The installed distributions that hold a module, by name; pip lets them overwrite each other's."""
    return sorted(set(importlib.metadata.packages_distributions().get(module, ())))


def _numbers(version: str) -> list[int]:
    """Major and minor number of a version."""
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def conflicts() -> Iterator[Finding]:
    """Check for packages that overwrite each other."""
    remedy = "pip uninstall them all, then install the one you want"
    for module in ("cv2", "onnxruntime"):
        builds = _builds_of(module)
        if len(builds) > 1:
            found = "are installed together and overwrite each other's module"
            yield Finding(FAULT, ", ".join(builds), found, remedy)
    for build in _builds_of("cv2"):
        version = release(build)
        if version and _numbers(version) >= [5]:
            # Of another build, pip would install a second one.
            found = f"{version}: cv_bridge does not work with OpenCV 5"
            yield Finding(WARNING, build, found, f"pip install '{build}<5'")


def _log_folder() -> Path:
    """Where ROS writes its logs; without it no node starts."""
    folder = os.environ.get("ROS_LOG_DIR") or f"{os.environ.get('ROS_HOME') or '~/.ros'}/log"
    if folder.startswith("~"):  # ROS knows no other home than $HOME
        folder = (os.environ.get("HOME") or os.devnull) + folder[1:]
    return Path(folder)


def executable() -> Iterator[Finding]:
    """Check which Python the executable starts that launch files start."""
    try:
        script = Path(console_script("segmentation_node"))
    except SegmentationError:  # nothing is installed, as where the checkout is on PYTHONPATH
        return
    with open(script, "rb") as stream:
        python = Path(os.fsdecode(stream.readline()).removeprefix("#!").partition(" ")[0].strip())
    if not python.name.startswith("python"):  # pip starts a Python whose path is long by a shell
        return
    found = f"{script} starts {python}"
    if python.exists() and python.parent.resolve() == Path(sys.executable).parent.resolve():
        yield Finding(OK, "segmentation_node", found)
        return
    found += f", not this Python ({sys.executable})" if python.exists() else ", which does not exist"
    remedy = f"{ENVIRONMENT}, then colcon build --packages-select {PACKAGE}"
    yield Finding(FAULT, "segmentation_node", found, remedy)


def _mixed_rclpy() -> str:
    """The folder of the rclpy that is imported in place of this environment's wheel; empty where none is."""
    try:
        wheel = importlib.metadata.distribution("ros-rclpy").locate_file("rclpy")
    except importlib.metadata.PackageNotFoundError:
        return ""
    spec = importlib.util.find_spec("rclpy")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return str(folder) if folder and folder.resolve() != Path(str(wheel)).resolve() else ""


def ros() -> Iterator[Finding]:
    """Check rclpy and the messages."""
    if folder := _mixed_rclpy():
        yield Finding(
            FAULT,
            "rclpy",
            f"is that of {folder}, but this environment was made without ROS, from wheels; the two do not mix",
            "open a terminal in which ROS is not sourced, or run make again in this one",
        )
        return
    error = import_error("rclpy")
    if error:
        yield Finding(
            FAULT,
            "rclpy",
            f"cannot be imported: {error}",
            f"source /opt/ros/<distribution>/setup.bash, or {how_to_install('ros-kilted')}",
        )
        return
    yield Finding(OK, "rclpy", f"{release('rclpy') or ''} {os.environ.get('ROS_DISTRO', '(no distribution sourced)')}")
    logs = _log_folder()
    if not is_writable(logs):
        yield Finding(
            FAULT,
            "ROS logs",
            f"{logs} cannot be written, so no node can start",
            "export ROS_LOG_DIR=/tmp/log, or another folder that can",
        )
    from dinov3_seg_ros.ros.cameras.ports import NO_LABEL_INFO

    if NO_LABEL_INFO:
        yield Finding(
            WARNING,
            "vision_msgs",
            f"segmentation/label_info is not published (class names remain a parameter): {NO_LABEL_INFO}",
            "with ROS 2 installed: sudo apt install ros-$ROS_DISTRO-vision-msgs (PyPI has no build of it)",
        )
    else:
        yield Finding(OK, "vision_msgs", "installed")
