"""A ROS 2 graph on this machine, for commands that start the node themselves. Does not import rclpy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinov3_seg_ros.ros.signals import end_on_hangup
from dinov3_seg_ros.ros.transport import (
    LOCAL_PROFILE,
    LOCALHOST_ONLY,
    PROFILE,
    is_humble,
    prepare_process,
    profile_variable,
)
from dinov3_seg_ros.support.resources import resource_path


def prepare() -> None:
    """Set up this process, and those it starts, for a graph that stays on this machine; before ``rclpy.init``.

    Call in the main thread: SIGTERM raises KeyboardInterrupt from now on, and so does SIGINT, even where it was
    ignored, as in what a script runs in the background: rclpy takes it all the same.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # rclpy's own handler calls it after its work
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    chosen = prepare_process(profile=LOCAL_PROFILE if is_humble() else PROFILE)
    if is_humble():  # it does not read that variable
        name, _, value = chosen.partition("=")
        if Path(value).resolve() == resource_path(PROFILE).resolve():
            os.environ[profile_variable()] = str(resource_path(LOCAL_PROFILE))
        elif name == "RMW_IMPLEMENTATION":  # with this one, Fast DDS would have no room for images
            os.environ.setdefault(LOCALHOST_ONLY, "1")


def node_command(namespace: str, parameters: Mapping[str, Any]) -> list[str]:
    """The command that runs the segmentation node with parameters; those that are None keep their defaults."""
    given = {name: value for name, value in parameters.items() if value is not None}
    settings = [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
    return [sys.executable, "-m", "dinov3_seg_ros.node", *ros_arguments(namespace, *settings)]


def ros_arguments(namespace: str, *settings: str) -> list[str]:
    """The ROS arguments that put a process's nodes into a namespace."""
    return ["--ros-args", "-r", f"__ns:=/{namespace}", *settings]


def last_words(log: Path) -> str:
    """The last line of a process's log, for messages."""
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "nothing"


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in a file; at the end send it SIGINT, as Ctrl-C would.

    From now on SIGHUP ends this process as SIGTERM does, and what it runs with it.
    """
    end_on_hangup()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
