"""The environment of a process that sends images over ROS 2. Call before ``rclpy.init``.

By default Fast DDS uses 512 KB of shared memory, less than one 640x480 colour image, so best-effort images are dropped
between processes. `configure_transport` points it to the profile in ``config/``, unless the user has chosen a
transport: processes with different transports may not see each other at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

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

SHARED_MEMORY = Path("/dev/shm")
# Major releases of rclpy, by distribution; later ones differ in nothing that matters here.
_RELEASES = {"humble": 3, "iron": 4, "jazzy": 7}
# A healthy process sizes a segment microseconds after it has created the file.
_UNFINISHED_AFTER_S = 10.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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
    if middleware and not is_fast_dds(middleware):
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


def is_fast_dds(middleware: str) -> bool:
    """Whether a value of ``RMW_IMPLEMENTATION`` names Fast DDS, the default."""
    return not middleware or "fastrtps" in middleware


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


def unfinished_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Port segments of Fast DDS that are empty because their process was killed while it created them.

    Every later process that opens one waits without end, inside ``rclpy.init`` or the first node.
    """
    found = []
    for path in sorted(folder.glob("fast*_port*")):
        # Lock files are always empty. Another process may remove a file meanwhile.
        with contextlib.suppress(OSError):
            if _is_old(path) and path.stat().st_size == 0 and not path.name.endswith(("_el", "_sl")):
                found.append(path)
    return found


def stale_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Data segments of Fast DDS, and their lock files, of processes that were killed; each takes 32 MB or more.

    A living process holds the lock file ``<segment>_el``; ``fastdds shm clean`` decides by it too.
    """
    found = []
    for lock in sorted(folder.glob("fast*_el")):
        segment = lock.with_name(lock.name.removesuffix("_el"))
        if "_port" not in lock.name and _is_free(lock):
            found += [path for path in (segment, lock) if path.exists()]
    return found


def stale_ports(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Port segments of Fast DDS that no process reads, with their lock files and semaphores.

    A process that was killed may have left a port in any state. A new process in the same domain takes it over.
    """
    found = []
    for port in sorted(folder.glob("fast*_port*")):
        if port.name.endswith(("_el", "_sl")):
            continue
        locks = [port.with_name(f"{port.name}{ending}") for ending in ("_el", "_sl")]
        locks = [lock for lock in locks if lock.exists()]
        # A reader holds one of the locks. A new port may not be held yet.
        if _is_old(port) and all(_is_free(lock) for lock in locks):
            semaphore = port.with_name(f"sem.{port.name}_mutex")
            found += [port, *locks, *([semaphore] if semaphore.exists() else [])]
    return found


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _UNFINISHED_AFTER_S
    except OSError:  # another process has removed it
        return False


def _is_free(lock: Path) -> bool:
    """Whether no process holds a lock file; a new one may not be held yet."""
    try:
        if not _is_old(lock):
            return False
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def warn_of_unfinished_segments() -> None:
    """Name each of `unfinished_segments` on standard error; without that, a process that waits for one just hangs."""
    for path in unfinished_segments():
        print(
            f"warning: {path} was left unfinished by a killed process, and ROS nodes may wait for it without end; "
            "remove it with: python -m dinov3_seg_ros.doctor --clean",
            file=sys.stderr,
        )


def remove_dead_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Remove what killed processes left of shared memory; return the files that this user could remove."""
    removed = []
    for path in sorted({*unfinished_segments(folder), *stale_segments(folder), *stale_ports(folder)}):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(path)
    return removed


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
