"""Checks of the transport of images, and of the shared memory that it uses."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dinov3_seg_ros.doctor.findings import FAULT, OK, WARNING, Finding, size_of
from dinov3_seg_ros.ros.shared_memory import SHARED_MEMORY, stale_ports, stale_segments, unfinished_segments
from dinov3_seg_ros.ros.transport import (
    PROFILE_VARIABLES,
    SMALL_TRANSPORTS,
    chosen_transport,
    our_setting,
    profile_variable,
)

# The profile takes 32 MB for each process: a camera, the node and a viewer make three.
_LEAST_SHARED_MEMORY_MB = 128
# With --network=host too, Fast DDS takes container and host for one machine, and sends through shared memory.
_CONTAINER = "--ipc=host (with --network=host), or --shm-size=512m where all its peers run in the same container"
_CLEAN = "python -m dinov3_seg_ros.doctor --clean"


def transport() -> Iterator[Finding]:
    """Check what carries images."""
    chosen = chosen_transport({**os.environ, "RMW_IMPLEMENTATION": _middleware()})
    name, _, value = chosen.partition("=")
    if name == "RMW_IMPLEMENTATION":
        yield Finding(OK, "DDS", f"{value}: set its own buffers for images (see its documentation)")
    elif not chosen:
        yield Finding(
            WARNING,
            "DDS profile",
            "the node sets its own; your camera driver and viewers use the default, which loses best-effort images",
            f"export {our_setting()}",
        )
    elif name in PROFILE_VARIABLES and not Path(value).is_file():
        yield Finding(FAULT, "DDS profile", f"{value} does not exist", f"correct or unset {name}")
    elif name in PROFILE_VARIABLES and name != profile_variable():
        yield Finding(
            WARNING,
            "DDS profile",
            f"{chosen}: this distribution does not read that variable, and the node changes nothing",
            f"export {profile_variable()}={value}, or unset {name}",
        )
    elif name in SMALL_TRANSPORTS:
        # With LARGE_DATA or UDPv4, hardly any 640x480 colour image arrived with best effort.
        yield Finding(
            WARNING,
            "DDS profile",
            f"the node keeps {chosen}, which loses best-effort images",
            f"let the camera driver publish reliably, or for all processes: unset {name}; "
            f"export {our_setting(SMALL_TRANSPORTS[name])}",
        )
    else:
        yield Finding(OK, "DDS profile", f"{value} (from {name})" if value else name)


def _middleware() -> str:
    """The middleware that rclpy takes here; empty where it has none."""
    if chosen := os.environ.get("RMW_IMPLEMENTATION"):
        return chosen
    with contextlib.suppress(Exception):  # a finding of its own
        from rclpy.utilities import get_rmw_implementation_identifier

        return str(get_rmw_implementation_identifier())
    return ""


def shared_memory() -> Iterator[Finding]:
    """Check the room in shared memory, and what killed processes left there."""
    if not SHARED_MEMORY.is_dir() or not os.access(SHARED_MEMORY, os.W_OK):
        yield Finding(
            WARNING,
            str(SHARED_MEMORY),
            "absent or not writable: images travel over UDP, which is slower",
            f"in a container, start it with {_CONTAINER}",
        )
        return
    for path in unfinished_segments():
        yield Finding(
            FAULT, path.name, "left unfinished by a killed process: ROS nodes wait for it without end", _CLEAN
        )
    stale = stale_segments() + stale_ports()
    if stale:
        megabytes = sum(size_of(path) for path in stale) >> 20
        yield Finding(
            WARNING, str(SHARED_MEMORY), f"{len(stale)} files ({megabytes} MB) of killed processes are left", _CLEAN
        )
    free_mb = shutil.disk_usage(SHARED_MEMORY).free >> 20
    if free_mb < _LEAST_SHARED_MEMORY_MB:
        yield Finding(
            WARNING,
            str(SHARED_MEMORY),
            f"only {free_mb} MB free, and each process takes 32 MB",
            f"{_CLEAN}; in a container, start it with {_CONTAINER}",
        )
    else:
        yield Finding(OK, str(SHARED_MEMORY), f"{free_mb} MB free")
