"""Which execution providers run on this machine, and on which of its devices."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.onnx_folder import HEAD_GRAPH, find_exports
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.onnx import plugins
from dinov3_seg_ros.runtimes.onnx.providers import (
    CPU,
    CUDA,
    INSTALLATION,
    LIBRARIES,
    OPENVINO,
    OPENVINO_BUILD,
    Provider,
    Use,
    provider,
)
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError
from dinov3_seg_ros.support.installation import how_to_install

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_ACCESS = "install that device's driver and give the user access to it (docs/accelerators.md)"

# Whether a provider of the build can be loaded on the GPU of a number; the answer holds for the whole process.
_loadable: dict[tuple[str, int], bool] = {}


@dataclass(frozen=True)
class Target:
    """An execution provider on one device.

    Attributes:
        provider: its rules.
        kind: of the device: ``cpu``, ``gpu``, ``npu`` or ``cuda``.
        number: of the device among those of its kind.
        listed: ONNX Runtime's ``OrtEpDevice``; None for a provider that is part of its build.
    """

    provider: Provider
    kind: str
    number: int = 0
    listed: Any = None

    @property
    def device(self) -> str:
        """The device as the option ``device`` names it, such as ``cpu``, ``gpu:0``, ``cuda:1``."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def is_host(self) -> bool:
        """Whether it is ONNX Runtime's own provider for CPUs."""
        return self.provider.name == CPU

    def use(self, precision: str = "fp32", threads: int = 0, cache: Path | None = None) -> Use:
        """Return what its rules are asked with."""
        said = None if self.listed is None else dict(self.listed.ep_metadata)
        return Use(self.kind, self.number, precision, threads, cache, said)

    def __str__(self) -> str:
        name = (self.listed.ep_metadata.get("FULL_DEVICE_NAME") or self.listed.device.vendor) if self.listed else ""
        if self.is_host:
            return CPU
        return f"{self.provider.name} on {self.device}{f' ({name})' if name else ''}"


#: ONNX Runtime's own provider for CPUs, which takes what others leave.
HOST_TARGET = Target(provider(CPU), "cpu")


def targets_of(options: ComputeOptions, bundles: Sequence[Bundle]) -> list[Target]:
    """Return the targets of one session, best first, where the user named providers.

    Args:
        options: ``providers`` is not empty.
        bundles: a graph of one of them tells whether a provider of the build loads.

    Raises:
        RuntimeUnavailableError: a provider is not installed, cannot be loaded, or has no such device.
    """
    return [_named(name, options, bundles, is_first=name == options.providers[0]) for name in options.providers]


def targets_here(options: ComputeOptions, bundles: Sequence[Bundle]) -> list[Target]:
    """Return the targets that serve ``options.device``, best first: CUDA, other GPUs, NPUs, CPUs.

    Raises:
        RuntimeUnavailableError: there are none.
    """
    kind, number = parse_device(options.device)
    found = [target for target in _listed() if kind in ("auto", target.kind) and number in (None, target.number)]
    for name in _of_build():
        rules = provider(name)
        target = Target(rules, rules.kinds[0], number or 0)
        fits = kind in ("auto", target.kind) or (kind, target.kind) == ("gpu", "cuda")
        is_wanted = rules.is_preferred or rules.gains(target.use(), asked=True)
        if fits and is_wanted and _loads(name, target.number, bundles):
            found.append(target)
    if not found:
        raise _no_device(options.device)
    return sorted(found, key=lambda target: ("cuda", "gpu", "npu", "cpu").index(target.kind))


def usable_providers(bundles: Sequence[Bundle]) -> list[str]:
    """Return the execution providers that load here, each with its devices, for people.

    Args:
        bundles: a graph of one of them is what is loaded; without any, all providers of the build are returned.
    """
    of_build = [name for name in _of_build() if name == CPU or _loads(name, 0, bundles)]
    return [str(target) for target in _listed()] + of_build


def unusable_providers(bundles: Sequence[Bundle]) -> list[str]:
    """Return the execution providers of this build that cannot be loaded here; see `usable_providers`."""
    return [name for name in _of_build() if not _loads(name, 0, bundles)]


def runs_here(name: str) -> bool:
    """Whether a provider is part of this build of ONNX Runtime, or a package lists a device of this machine for it."""
    return name in _of_build() or any(device.ep_name == name for device in plugins.devices())


def parse_device(device: str) -> tuple[str, int | None]:
    """Return kind and number of the option ``device``; None where it has no number."""
    kind, _, number = device.partition(":")
    return kind, int(number) if number else None


def _of_build() -> list[str]:
    """The providers of this build of ONNX Runtime, without those that packages bring."""
    brought = plugins.register()
    return [name for name in ort.get_available_providers() if name.partition(".")[0] not in brought]


def _listed() -> Iterator[Target]:
    """The devices that packages list. A device has one number, whichever provider uses it."""
    hardware: dict[str, list[Any]] = {"cpu": [], "gpu": [], "npu": []}
    for device in plugins.devices():
        kind = device.device.type.name.lower()
        found = hardware.setdefault(kind, [])
        identity = (device.device.vendor_id, device.device.device_id, tuple(sorted(device.device.metadata.items())))
        if identity not in found:
            found.append(identity)
        yield Target(provider(device.ep_name), kind, found.index(identity), device)


def _named(name: str, options: ComputeOptions, bundles: Sequence[Bundle], is_first: bool) -> Target:
    rules = provider(name)
    kind, number = parse_device(options.device)
    of_package = [target for target in _listed() if target.provider.name == name]
    if of_package:
        order = {kind: index for index, kind in enumerate(rules.kinds)}
        of_package.sort(key=lambda target: order.get(target.kind, len(order)))
        fitting = [t for t in of_package if kind in ("auto", t.kind) and number in (None, t.number)]
        if not fitting and is_first:
            has = ", ".join(target.device for target in of_package)
            raise RuntimeUnavailableError(
                f"{name} was asked for on device '{options.device}', but it has: {has}; correct 'device', or {_ACCESS}"
            )
        return (fitting or of_package)[0]
    reason = plugins.register().get(name)
    if reason is not None:
        raise RuntimeUnavailableError(f"{name} is installed, but {reason or _lists_none(name)}")
    available = _of_build()
    if name not in available:
        remedy = INSTALLATION.get(name, "it may be a package of its own, called onnxruntime-ep-...")
        raise RuntimeUnavailableError(
            f"this build of ONNX Runtime has no {name}; it has: {', '.join(available)}. {remedy}"
        )
    if kind == "gpu" and "cuda" in rules.kinds:
        kind = "cuda"
    if kind == "auto" or (not is_first and kind not in rules.kinds):
        kind, number = rules.kinds[0], None
    if kind not in rules.kinds:
        raise RuntimeUnavailableError(
            f"{name} was asked for on device '{options.device}', but it computes on: {', '.join(rules.kinds)}"
        )
    if not _loads(name, number or 0, bundles):
        raise _not_loaded(name, Target(rules, kind, number or 0).device)
    return Target(rules, kind, number or 0)


def _lists_none(name: str) -> str:
    if name == OPENVINO:
        return (
            "its package lists only devices of Intel, and this machine has none; on another x86 processor "
            f"{OPENVINO_BUILD}"
        )
    return "it finds no device that it can use on this machine"


def _no_device(device: str) -> RuntimeUnavailableError:
    kind = parse_device(device)[0]
    if kind == "cuda" and CUDA in ort.get_available_providers():
        return _not_loaded(CUDA, device)
    if kind == "cuda":
        return RuntimeUnavailableError(
            f"device '{device}' was asked for, but this build of ONNX Runtime has no CUDA; install "
            "onnxruntime-gpu in place of onnxruntime, or use device 'cpu'"
        )
    listed = ", ".join(str(target) for target in _listed()) or "none"
    remedy = f"install the package of its provider, such as by {how_to_install('openvino')} or {how_to_install('rtx')}"
    if "" in plugins.register().values():
        remedy = f"{_ACCESS}; or {remedy}"
    return RuntimeUnavailableError(
        f"device '{device}' was asked for, but ONNX Runtime lists no such device (it lists: {listed}); {remedy}, or "
        "use device 'cpu'"
    )


def _loads(name: str, gpu: int, bundles: Sequence[Bundle]) -> bool:
    """Return whether a session uses a provider that the build has: its libraries may be missing, or its GPU.

    The head's graph of any export is what a session is opened for: it is small, and no weights of the backbone load.
    """
    if name == CPU:
        return True
    if (name, gpu) not in _loadable:
        graph = _any_head(bundles)
        if graph is None:
            return True  # nothing can run on it in any case; the caller says so when it looks for the exports
        _loadable[name, gpu] = _session_uses(name, gpu, graph)
        if not _loadable[name, gpu]:
            _logger.warning(
                "this build of ONNX Runtime has %s, which cannot be loaded here and is not used; to use it, %s",
                name,
                _libraries(name),
            )
    return _loadable[name, gpu]


def _any_head(bundles: Sequence[Bundle]) -> Path | None:
    """Return the first head graph of any precision and size that is not damaged."""
    for bundle in bundles:
        for export in find_exports(bundle)[0]:
            with contextlib.suppress(ExportError):
                return export.graph(HEAD_GRAPH)
    return None


def _session_uses(name: str, gpu: int, graph: Path) -> bool:
    # ONNX Runtime says on standard output, in many lines, what is missing.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN where pip installs them
            ort.preload_dlls()
        rules = provider(name)
        options = rules.options(Use(rules.kinds[0], gpu))
        try:
            session = ort.InferenceSession(graph, providers=[(name, options), (CPU, {})])
            return bool(session.get_providers()[0] == name)
        except Exception:  # ONNX Runtime's errors have no common base but Exception
            return False


def _not_loaded(name: str, device: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{name} was asked for on device '{device}'. This build of ONNX Runtime has it, but it could not be loaded "
        f"(see its message above); {_libraries(name)}; or use another device or provider"
    )


def _libraries(name: str) -> str:
    return LIBRARIES.get(name, "install the libraries that this release of it needs")
