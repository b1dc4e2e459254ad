"""The processor, as far as 8-bit graphs compute something else on another one."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict

# Products of 8-bit numbers are added up in 32 bits by these. Without any of them, ONNX Runtime adds pairs of them in 16
# bits on x86, where large ones saturate.
_ADDING_IN_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
#: What matters for 8-bit products, by the kernel's names.
FEATURES = ("avx2", "avx512f", *_ADDING_IN_32_BITS)


class Cpu(BaseModel):
    """A processor.

    Attributes:
        name: for people.
        architecture: as the kernel calls it.
        features: those of `FEATURES` that it has; None where they are unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    architecture: str
    features: tuple[str, ...] | None = None

    def is_as_exact_as(self, other: Cpu) -> bool:
        """Whether 8-bit products that were right on the other are right on this; False where that is unknown."""
        if self.architecture != other.architecture or self.features is None or other.features is None:
            return False
        return {*_ADDING_IN_32_BITS} & {*other.features} <= {*self.features}


@functools.cache
def this_cpu() -> Cpu:
    """The processor that this runs on; on Linux with its features."""
    return read_cpu(Path("/proc/cpuinfo"), platform.machine())


def read_cpu(path: Path, architecture: str) -> Cpu:
    """What a file like ``/proc/cpuinfo``, which may be missing, says of a processor."""
    try:
        pairs = [line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line]
    except OSError:
        pairs = []
    said = {name.strip(): value.strip() for name, value in pairs}
    flags = said.get("flags", said.get("Features"))
    features = None if flags is None else tuple(name for name in FEATURES if name in flags.split())
    return Cpu(name=said.get("model name") or architecture, architecture=architecture, features=features)
