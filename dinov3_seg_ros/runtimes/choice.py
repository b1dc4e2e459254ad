"""Which runtime computes the network. Each is one module that satisfies the types in `protocol`.

To add a runtime, write a class that satisfies `RuntimeType` in a module of its own, add an entry to `RUNTIMES` with a
function that imports it, and add its name to `options.RuntimeName`. Modules are imported only when they are needed, so
a robot that uses one runtime does not need the libraries of the others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import FRAME_SIZED, RUNTIME_NAMES, ComputeOptions
from dinov3_seg_ros.runtimes import gate, measured
from dinov3_seg_ros.runtimes.failures import failure, runtime_failures
from dinov3_seg_ros.runtimes.protocol import Candidate, OpenedRuntime, Runtime, RuntimeType
from dinov3_seg_ros.runtimes.pytorch.candidates import torch_candidates
from dinov3_seg_ros.support.errors import (
    DisagreementError,
    ParameterError,
    RuntimeUnavailableError,
    SegmentationError,
)
from dinov3_seg_ros.support.installation import has_nvidias_driver, how_to_install

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

#: Device and precision of the PyTorch runtime in which it is the model that all others are compared with.
MODEL = ("cpu", "fp32")
# What the PyTorch runtime imports only when it loads a model.
_NEEDED_BY_TORCH = ("transformers", "safetensors")


class _Entry(NamedTuple):
    """How a runtime is imported, and the command that installs what it needs."""

    load: Callable[[], RuntimeType]
    installation: str


def _load_tensorrt() -> RuntimeType:
    from dinov3_seg_ros.runtimes.tensorrt.runtime import TensorRTRuntime

    return TensorRTRuntime


def _load_onnx() -> RuntimeType:
    from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime

    return OnnxRuntime


def _load_torch() -> RuntimeType:
    from dinov3_seg_ros.runtimes.pytorch.runtime import PyTorchRuntime

    if missing := _missing(*_NEEDED_BY_TORCH):
        raise ModuleNotFoundError(f"No module named '{missing}'")
    return PyTorchRuntime


#: By name; of two runtimes that use the same kind of device, the faster comes first.
RUNTIMES = {
    "tensorrt": _Entry(_load_tensorrt, f"{how_to_install('gpu')}; on a Jetson see docs/jetson.md"),
    "onnx": _Entry(_load_onnx, how_to_install("cpu")),
    "torch": _Entry(_load_torch, f"{how_to_install('torch')}, with Python 3.11 or newer"),
}


class _NotInstalledError(RuntimeUnavailableError):
    """The library of a runtime cannot be imported."""


def runtime_options(bundles: Sequence[Bundle], options: ComputeOptions) -> ComputeOptions:
    """Return options as runtimes take them: with the network size, or None where it follows the frames."""
    own = bundles[0].manifest.input
    one_size = (options.geometry or own.geometry) not in FRAME_SIZED
    size = options.network_size or own.network_size if one_size else None
    return options.model_copy(update={"network_size": size})


def open_runtime(
    bundles: Sequence[Bundle], options: ComputeOptions, avoid: Mapping[str, str] | None = None
) -> tuple[Runtime, str]:
    """Load bundles into the fastest runtime that can run here, or into the one that ``options.runtime`` names.

    What it computes has been compared with the PyTorch model (`gate`). Of several ways to compute, such as execution
    providers or precisions, the next best is tried where one cannot be loaded or computes something else.

    Args:
        bundles: at least one; they must be able to share a backbone pass.
        options: how to compute.
        avoid: runtimes that ``auto`` passes over, with the reason for each.

    Returns:
        The runtime, and why it is this one, for people.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, or has no exports or no device to run.
        BackboneError, BundleError, ExportError: the weights or exports cannot be loaded, or do not compute what the
            model computes.
    """
    if options.runtime != "auto":
        found = _runtime_type(options.runtime).candidates(bundles, options)
        choice = _measured({options.runtime: found}, bundles, options) or Choice(_taken(found), "asked for")
        if not choice.candidates:
            raise RuntimeUnavailableError(_why_not_taken(found, bundles, options))
        return _open_first(choice.candidates, bundles, options), choice.reason
    failed = dict(avoid or {})
    while True:
        choice = choose(bundles, options, failed)
        try:
            return _open_first(choice.candidates, bundles, options), choice.reason
        except ParameterError:  # an option that the user must correct
            raise
        except SegmentationError as error:
            # Keep the text only: the error's traceback would keep what was loaded so far, in GPU memory too.
            name = choice.runtime
            failed[name] = str(error)
            _logger.warning("the %s runtime cannot load the bundle; the next best is tried: %s", name, error)


class Choice(NamedTuple):
    """What ``auto`` takes.

    Attributes:
        candidates: the ways to compute of one runtime, best first.
        reason: why it is that runtime, for people.
    """

    candidates: Sequence[Candidate]
    reason: str

    @property
    def runtime(self) -> str:
        """The name of the runtime."""
        return self.candidates[0].runtime


def choose(bundles: Sequence[Bundle], options: ComputeOptions, failed: Mapping[str, str] | None = None) -> Choice:
    """Choose what was measured to be the fastest here, else a runtime that uses a GPU, else the first that runs.

    Args:
        bundles: what the runtime is to serve; no model is loaded.
        options: how to compute.
        failed: runtimes that are skipped, with the reason for each.

    Raises:
        RuntimeUnavailableError: no runtime can serve these bundles; gives the reason for each.
    """
    found, reasons, missing = find_candidates(bundles, options, failed)
    by_measurement = _measured(found, bundles, options, failed)
    if by_measurement:
        return by_measurement
    taken = {name: taken for name, all_of_it in found.items() if (taken := _taken(all_of_it))}
    reasons |= {name: _why_not_taken(found[name], bundles, options) for name in found if name not in taken}
    if not taken:
        raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(reasons.values()))
    devices = {name: candidates[0].device for name, candidates in taken.items()}
    best = next((name for name, device in devices.items() if device != "cpu"), next(iter(devices)))
    others = [f"{name} is not installed" if name in missing else f"{name}: {why}" for name, why in reasons.items()]
    others += [f"{name} would run on the {device.upper()}" for name, device in devices.items() if name != best]
    reason = f"{best} is the fastest that can run here on the {devices[best].upper()} ({'; '.join(others)})"
    return Choice(taken[best], reason)


def find_candidates(
    bundles: Sequence[Bundle], options: ComputeOptions, failed: Mapping[str, str] | None = None
) -> tuple[dict[str, Sequence[Candidate]], dict[str, str], list[str]]:
    """Find all ways to compute bundles here that ``options`` allow; no model is loaded.

    Returns:
        By runtime: its candidates, best first; why each other runtime cannot be used, those that are not installed
        last; and which these are.
    """
    found: dict[str, Sequence[Candidate]] = {}
    reasons, missing = dict(failed or {}), []
    allowed = RUNTIMES if options.runtime == "auto" else (options.runtime,)
    for name in [name for name in allowed if name not in reasons]:
        try:
            if name == "torch" and found and options.device in ("auto", "cpu") and _torch_has_no_gpu():
                found[name] = _torch_on_cpu(bundles, options)
            else:
                found[name] = _runtime_type(name).candidates(bundles, options)
        except RuntimeUnavailableError as error:
            reasons[name] = str(error)
            if isinstance(error, _NotInstalledError):
                missing.append(name)
    return found, dict(sorted(reasons.items(), key=lambda item: item[0] in missing)), missing


def open_checked(
    candidate: Candidate, bundles: Sequence[Bundle], options: ComputeOptions, *, may_be_unverified: bool = False
) -> Runtime:
    """Open a candidate, and compare it with the model before anything else is computed.

    Args:
        candidate: what to open.
        bundles: whose heads it serves.
        options: how to compute.
        may_be_unverified: whether it may be used, and be called unverified, where it cannot be compared.

    Raises:
        RuntimeUnavailableError: it cannot be used, or not without a comparison, which is not possible.
        ExportError: it does not compute what the model computes.
        RuntimeFailedError, BackboneError, BundleError, ExportError: it cannot be loaded or run.
    """
    for is_last in (False, True):
        runtime = _open(candidate)
        try:
            unverified = _compare(runtime, candidate, bundles, options)
            break
        except DisagreementError as error:
            if not runtime.refuse(error) or is_last:
                raise
            _logger.warning("%s; what was kept of it is deleted, and it is opened anew", error)
    if unverified and candidate.graphs is not None and not candidate.is_as_exported:
        if not may_be_unverified:
            runtime.close()
            raise RuntimeUnavailableError(
                f"{runtime.description} cannot be compared with the PyTorch model: {unverified}; or name its runtime "
                "to use it unverified"
            )
        runtime.description += f", unverified ({unverified})"
        _logger.warning("%s", runtime.description)
    return runtime


def _open(candidate: Candidate) -> OpenedRuntime:
    try:
        return candidate.open()
    except SegmentationError:  # says already what is to blame
        raise
    except Exception as error:  # the libraries' errors have no common base but Exception
        raise failure(candidate.label, error) from error


def _compare(runtime: OpenedRuntime, candidate: Candidate, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
    """Return why it cannot be compared; empty where it agrees. Closed after any error but DisagreementError."""
    try:
        with runtime_failures(runtime.description):
            size = options.network_size or bundles[0].manifest.input.network_size
            unverified = gate.check(runtime, candidate, bundles, size, options.max_batch)
            if not unverified or candidate.graphs is not None or (candidate.device, candidate.precision) == MODEL:
                return unverified
            _logger.info("no export holds a reference, so the model is computed on the CPU to compare with")
            device, precision = MODEL
            with contextlib.closing(_open_torch(bundles, options, device=device, precision=precision)) as model:
                gate.check_with_model(runtime, candidate, bundles, size, options.max_batch, model)
            return ""
    except DisagreementError:
        raise
    except BaseException:
        runtime.close()
        raise


def _measured(
    found: Mapping[str, Sequence[Candidate]],
    bundles: Sequence[Bundle],
    options: ComputeOptions,
    failed: Mapping[str, str] | None = None,
) -> Choice | None:
    """What a measurement on this machine chose of what was found; behind it, what its runtime takes without one."""
    choice = measured.kept(bundles, options) if found else None  # its log advises to measure
    if choice is None:
        return None
    for candidates in found.values():
        for candidate in candidates:
            if candidate.label == choice.label:
                others = [other for other in _taken(candidates) if other.label != candidate.label]
                return Choice([candidate, *others], choice.reason)
    if not failed:  # else the log has said what became of it
        _logger.warning(
            "%s was measured to be the fastest here, but its device, or the driver of that, is not found now; the "
            "usual order holds. If it is gone for good, measure again: %s",
            choice.label,
            measured.command(bundles, options),
        )
    return None


def _taken(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that need no measurement to be taken."""
    return [candidate for candidate in candidates if not candidate.is_measured_only]


def _why_not_taken(candidates: Sequence[Candidate], bundles: Sequence[Bundle], options: ComputeOptions) -> str:
    """Say why none of a runtime's candidates is taken, and what the user can do."""
    labels = "; ".join(candidate.label for candidate in candidates)
    return (
        f"there is only what a measurement may choose ({labels}); name its precision and its device or provider, or "
        f"measure it: {measured.command(bundles, options)}"
    )


def _open_first(candidates: Sequence[Candidate], bundles: Sequence[Bundle], options: ComputeOptions) -> Runtime:
    """Open the first candidate that can be loaded and agrees with the model; the last one's error is raised.

    Only the last, and only of a runtime that the user named, may be unverified.
    """
    *others, last = candidates
    for candidate in others:
        try:
            return open_checked(candidate, bundles, options)
        except ParameterError:
            raise
        except SegmentationError as error:
            _logger.warning("%s is not used; the next best is tried: %s", candidate.label, error)
    return open_checked(last, bundles, options, may_be_unverified=options.runtime != "auto")


def _open_torch(bundles: Sequence[Bundle], options: ComputeOptions, **chosen: str) -> OpenedRuntime:
    """Open the PyTorch runtime with some options chosen otherwise."""
    return _runtime_type("torch").candidates(bundles, options.model_copy(update=chosen))[0].open()


def _torch_on_cpu(bundles: Sequence[Bundle], options: ComputeOptions) -> list[Candidate]:
    """The candidates of PyTorch where there is no GPU, without importing PyTorch."""
    return torch_candidates(options.precision, "cpu", lambda name: _open_torch(bundles, options, precision=name))


def _torch_has_no_gpu() -> bool:
    """Whether PyTorch, which takes seconds to import, can run and have no GPU: neither driver is installed."""
    if "torch" in sys.modules or _missing("torch", *_NEEDED_BY_TORCH) or os.path.exists("/dev/kfd"):
        return False
    return not has_nvidias_driver()


def _missing(*modules: str) -> str | None:
    """The first of these modules that is not installed."""
    return next((name for name in modules if importlib.util.find_spec(name) is None), None)


def available_runtimes() -> dict[str, str | None]:
    """Return, for every runtime name but ``auto``, None when it can be used, else the reason why not."""
    reasons: dict[str, str | None] = {}
    for name in RUNTIME_NAMES[1:]:
        try:
            _runtime_type(name)
            reasons[name] = None
        except RuntimeUnavailableError as error:
            reasons[name] = str(error)
    return reasons


def _runtime_type(name: str) -> RuntimeType:
    entry = RUNTIMES[name]
    try:
        return entry.load()
    except (ImportError, OSError) as error:  # a broken build of a library fails to load its shared objects
        remedy = f"install it into the environment that runs the node: {entry.installation}"
        if name == "tensorrt" and not has_nvidias_driver():
            remedy = "it needs an NVIDIA GPU, and this machine has no driver of NVIDIA"
        raise _NotInstalledError(f"runtime '{name}' is not installed ({error}); {remedy}") from error
