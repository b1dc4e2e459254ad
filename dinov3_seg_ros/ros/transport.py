"""The environment of a process that sends images over ROS 2. Call before ``rclpy.init``.

By default Fast DDS uses 512 KB of shared memory, less than one 640x480 colour image, so best-effort images are dropped
between processes. `configure_transport` points it to the profile in ``config/``, unless the user has chosen a
transport: processes with different transports may not see each other at all.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from dinov3_seg_ros.ros.shared_memory import warn_of_unfinished_segments
from dinov3_seg_ros.support.resources import resource_path

PROFILE = "config/fastdds.xml"
#: The same for processes that talk to others on this machine alone; for Humble, which has no other way to that.
LOCAL_PROFILE = "config/fastdds_localhost.xml"
#: Kilted and later read the first and warn about the second; earlier distributions read only the second.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
#: Variables by which a user chooses how Fast DDS sends. A profile would overrule those that name no profile.
TRANSPORT_VARIABLES = (
    *PROFILE_VARIABLES,
    "RMW_FASTRTPS_USE_QOS_FROM_XML",
    "FASTDDS_BUILTIN_TRANSPORTS",
    "ROS2_EASY_MODE",
)
#: Keeps a node on this machine. Humble adds a transport for it, but keeps those of a profile, which leave the machine.
LOCALHOST_ONLY = "ROS_LOCALHOST_ONLY"
#: Choices that leave no room for an image in shared memory, and the profile of ours that does the same with room.
SMALL_TRANSPORTS = {"FASTDDS_BUILTIN_TRANSPORTS": PROFILE, LOCALHOST_ONLY: LOCAL_PROFILE}
# Fast DDS reads them in the working directory.
_PROFILES_HERE = ("DEFAULT_FASTDDS_PROFILES.xml", "DEFAULT_FASTRTPS_PROFILES.xml")

# Major releases of rclpy, by distribution; later ones differ in nothing that matters here.
_RELEASES = {"humble": 3, "iron": 4, "jazzy": 7}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def prepare_process(profile: str = PROFILE) -> str:
    """Do all that a process which sends images needs before ``rclpy.init``; see `configure_transport`."""
    chosen = configure_transport(profile=profile)
    warn_of_unfinished_segments()
    keep_freed_memory()
    return chosen


def configure_transport(environment: MutableMapping[str, str] = os.environ, profile: str = PROFILE) -> str:
    """Give this process, and those it starts, enough shared memory for images, unless the user has chosen a transport.

    Args:
        environment: of the process.
        profile: `PROFILE` or `LOCAL_PROFILE`.

    Returns:
        What decides: a setting of the user's, as from `chosen_transport`, or ``VARIABLE=PATH`` of our profile.
    """
    if chosen := chosen_transport(environment):
        return chosen
    environment[profile_variable()] = str(resource_path(profile))
    return our_setting(profile)


def chosen_transport(environment: Mapping[str, str] = os.environ) -> str:
    """The setting by which the user has chosen how messages are sent, such as ``VARIABLE=value``; empty for none.

    Our own profile counts as one where it has been set, as in a process that another one of ours has started.
    """
    middleware = environment.get("RMW_IMPLEMENTATION", "")
    if middleware and "fastrtps" not in middleware:  # other than the default
        return f"RMW_IMPLEMENTATION={middleware}"
    for name in (profile_variable(), *TRANSPORT_VARIABLES):  # the one that is read goes before one that is not
        if environment.get(name):
            return f"{name}={environment[name]}"
    if environment.get("SKIP_DEFAULT_XML_FILE") != "1":
        for local in map(Path, _PROFILES_HERE):
            if local.is_file():
                return str(local.absolute())
    if is_humble() and environment.get(LOCALHOST_ONLY) == "1":
        return f"{LOCALHOST_ONLY}=1"
    return ""


def our_setting(profile: str = PROFILE) -> str:
    """``VARIABLE=PATH``: what makes Fast DDS use a profile in ``config/``."""
    return f"{profile_variable()}={resource_path(profile)}"


def remedy_for_lost_images(middleware: str, environment: Mapping[str, str] = os.environ) -> str:
    """What to do where images are lost on their way from the publisher, in a sentence without a full stop.

    Args:
        middleware: the one that runs, as rclpy names it: without ``RMW_IMPLEMENTATION``, it is the one installed.
        environment: of the process.
    """
    chosen = chosen_transport({**environment, "RMW_IMPLEMENTATION": middleware})
    name, _, value = chosen.partition("=")
    if name in PROFILE_VARIABLES and name != profile_variable():
        return f"start publisher and node with {profile_variable()}={value}: this distribution does not read {name}"
    if not chosen or Path(value).resolve() in [resource_path(ours).resolve() for ours in (PROFILE, LOCAL_PROFILE)]:
        return f"start the publisher with {chosen or our_setting()}, or let it publish reliably"
    if name == "RMW_IMPLEMENTATION":
        return f"give {value} larger buffers, here and for the publisher, as its documentation says"
    if name in SMALL_TRANSPORTS:
        ours = our_setting(SMALL_TRANSPORTS[name])
        return f"let the publisher be reliable, or unset {name} everywhere and set {ours} instead"
    return f"let the publisher be reliable, or give the transport room for several images: {chosen} decides"


def profile_variable() -> str:
    """The environment variable that the installed distribution reads the profile's path from."""
    return PROFILE_VARIABLES[_release() <= _RELEASES["jazzy"]]


def is_humble() -> bool:
    """Whether the installed distribution is Humble."""
    return _release() <= _RELEASES["humble"]


def _release() -> int:
    """Major release of rclpy."""
    try:
        return int(importlib.metadata.version("rclpy").split(".")[0])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return _RELEASES.get(os.environ.get("ROS_DISTRO", ""), sys.maxsize)


def keep_freed_memory() -> bool:
    """Make glibc keep image-sized buffers instead of returning them to the kernel after each frame.

    Otherwise every multi-megabyte buffer is mapped, zeroed and unmapped for each image.

    Returns:
        False where the C library has no ``mallopt``.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 256 << 20))
