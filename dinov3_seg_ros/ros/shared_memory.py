"""What killed processes leave of Fast DDS's shared memory: found, named and removed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# A healthy process sizes a segment microseconds after it has created the file.
_UNFINISHED_AFTER_S = 10.0


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
