"""The processor, in so far as it decides what exports compute, and how fast."""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

# These instructions accumulate products of 8-bit numbers in 32 bits. Without any of them, ONNX Runtime on x86 adds
# pairs of products in 16 bits, where large ones saturate.
_ADDING_IN_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
# These multiply matrices of bfloat16.
_MULTIPLYING_BF16 = ("amx_bf16", "avx512_bf16")
#: The features that matter, by the names that the kernel gives them.
FEATURES = ("avx2", "avx512f", *_ADDING_IN_32_BITS, *_MULTIPLYING_BF16)


class Cpu(BaseModel):
    """A processor, as an export records the one that it was verified on.

    Attributes:
        name: for people.
        architecture: as the kernel calls it, such as ``x86_64``.
        features: those of `FEATURES` that it has; None where they are unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    architecture: str
    features: tuple[str, ...] | None = None

    @property
    def multiplies_bf16(self) -> bool:
        """Whether it has instructions for bfloat16 (AMX or AVX512-BF16); False where unknown."""
        return bool({*_MULTIPLYING_BF16} & {*(self.features or ())})

    def is_as_exact_as(self, other: Cpu) -> bool:
        """Whether 8-bit products that are exact on ``other`` are exact on this processor; False where unknown."""
        if self.architecture != other.architecture or self.features is None or other.features is None:
            return False
        return {*_ADDING_IN_32_BITS} & {*other.features} <= {*self.features}


def usable_cores() -> int:
    """Number of cores that the process may use at once; see `allowed_cores` and `cpu_quota`."""
    quota = cpu_quota()
    return allowed_cores() if quota is None else min(allowed_cores(), quota)


def allowed_cores() -> int:
    """Number of cores that the process may run on; ``taskset`` and cpusets may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota_threads() -> int:
    """Return how many threads to ask of a library that heeds cpusets but no quota: 0 for as many as it likes."""
    usable = usable_cores()
    return usable if usable < allowed_cores() else 0


def cpu_quota(
    groups: str | os.PathLike[str] = "/proc/self/cgroup", mounted: str | os.PathLike[str] = "/sys/fs/cgroup"
) -> int | None:
    """The time that control groups grant the process (``docker --cpus``, systemd's ``CPUQuota``).

    More threads than that are stopped together, in each period, when they have used up the time.

    Args:
        groups: the file that names the process's groups.
        mounted: where they are mounted, of version 1, 2 or both.

    Returns:
        In whole cores, rounded up, the least of the process's groups and those above; None where none sets a limit.
    """
    try:
        lines = Path(groups).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    found = [quota for line in lines for folder in _group_folders(line, Path(mounted)) if (quota := _quota(folder))]
    return min(found, default=None)


def _group_folders(line: str, mounted: Path) -> Iterator[Path]:
    """A group that may limit the time, as a line of ``/proc/self/cgroup`` names it, and all groups above it.

    In a container the line may name a folder of the host. Then the topmost folder here is the container's group.
    """
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    top = mounted / "cpu" if controllers else mounted
    parts = [part for part in path.split("/") if part]
    for count in range(len(parts) + 1):
        yield top.joinpath(*parts[:count])


def _quota(folder: Path) -> int | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return max(math.ceil(int(quota) / int(period)), 0) or None  # -1 sets no limit
        except (OSError, ValueError, ZeroDivisionError):  # neither do a missing file and "max"
            continue
    return None


def onnx_runtime_threads(threads: int) -> int:
    """Return the number of threads to ask ONNX Runtime for.

    For 0 it starts one for each core of the machine, and binds each to its core, also where the process may use only
    some cores (``taskset``, ``docker --cpuset-cpus``, systemd's ``CPUAffinity``) or some of their time.

    Args:
        threads: as the option ``threads``; 0 for one per core.
    """
    if threads:
        return threads
    allowed = usable_cores()
    return allowed if allowed < (os.cpu_count() or 1) else 0


@functools.cache
def this_cpu() -> Cpu:
    """The processor of this machine. Its features are known on Linux alone."""
    return read_cpu(Path("/proc/cpuinfo"), platform.machine())


def read_cpu(path: Path, architecture: str) -> Cpu:
    """Read a processor's name and features.

    Args:
        path: a file like ``/proc/cpuinfo``; where it is missing, the features are unknown.
        architecture: from `platform.machine`.
    """
    try:
        pairs = [line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line]
    except OSError:
        pairs = []
    said = {name.strip(): value.strip() for name, value in pairs}
    flags = said.get("flags", said.get("Features"))
    features = None if flags is None else tuple(name for name in FEATURES if name in flags.split())
    return Cpu(name=said.get("model name") or architecture, architecture=architecture, features=features)
