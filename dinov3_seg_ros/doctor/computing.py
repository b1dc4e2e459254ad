"""Checks of what computes: runtimes, execution providers, engines, the decode."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_seg_ros.doctor.findings import FAULT, OK, WARNING, Finding, demo_bundle, size_of
from dinov3_seg_ros.support.errors import SegmentationError
from dinov3_seg_ros.support.installation import has_nvidias_driver, how_to_install

if TYPE_CHECKING:
    from dinov3_seg_ros.bundle.loading import Bundle


def runtimes(bundles: Sequence[Path]) -> Iterator[Finding]:
    """Check which runtimes can be used."""
    from dinov3_seg_ros.runtimes.choice import RUNTIMES, available_runtimes

    reasons = available_runtimes()
    usable = [name for name in RUNTIMES if reasons[name] is None]
    for name, reason in reasons.items():
        is_fine = reason is None or (name == "tensorrt" and not has_nvidias_driver())
        yield Finding(OK if is_fine else WARNING, f"runtime {name}", reason or _abilities(name, bundles))
    if not usable:
        yield Finding(FAULT, "runtimes", "none can be used", how_to_install("torch"))


def providers(paths: Sequence[Path]) -> Iterator[Finding]:
    """Check the execution providers that are packages of their own, and what was measured to be the fastest."""
    from dinov3_seg_ros.options import ComputeOptions
    from dinov3_seg_ros.runtimes import measured
    from dinov3_seg_ros.runtimes.choice import available_runtimes, runtime_options
    from dinov3_seg_ros.runtimes.onnx.providers import CUDA, INSTALLATION, LIBRARIES, OPENVINO
    from dinov3_seg_ros.support.cpu import this_cpu

    bundles = _loaded(paths)
    openvino = False
    if available_runtimes()["onnx"] is None:
        from dinov3_seg_ros.runtimes.onnx import plugins
        from dinov3_seg_ros.runtimes.onnx.targets import runs_here, unusable_providers

        openvino = runs_here(OPENVINO)
        for name, reason in plugins.register().items():
            if plugins.NVIDIAS_DRIVER in reason:
                yield Finding(OK, "execution provider", f"{name} is not used: {reason}")
            elif reason:
                yield Finding(WARNING, "execution provider", f"{name}: {reason}", "see docs/accelerators.md")
        if has_nvidias_driver() and CUDA in unusable_providers(bundles):
            found = f"{CUDA} cannot be loaded, so ONNX Runtime does not use this machine's GPU"
            yield Finding(WARNING, "execution provider", found, LIBRARIES[CUDA])
    processor = this_cpu()
    if not processor.multiplies_bf16:
        yield Finding(OK, "processor", processor.name)
    elif openvino:
        yield Finding(OK, "processor", f"{processor.name}: multiplies bf16")
    else:
        found = f"{processor.name}: multiplies bf16, which needs OpenVINO"
        yield Finding(OK, "processor", found, INSTALLATION[OPENVINO])
    for bundle in bundles:
        choice = measured.kept([bundle], runtime_options([bundle], ComputeOptions()))
        if choice is None:
            command = f"python -m dinov3_seg_ros.benchmark {bundle.path} --choose"
            yield Finding(OK, "fastest runtime", f"not measured for {bundle.manifest.name}", command)
        else:
            yield Finding(OK, "fastest runtime", choice.reason)


def stores() -> Iterator[Finding]:
    """Check the folders in which compiled graphs, networks and choices are kept, and whether they can be written."""
    from dinov3_seg_ros.support.files import cache_folder, is_writable

    for name in ("graphs", "compiled", "choices"):
        folder = cache_folder(name)
        if os.path.isdir(folder):  # Path.is_dir raises where this user may not look
            size = sum(size_of(path) for path in folder.rglob("*") if path.is_file()) >> 20
            yield Finding(OK, f"kept in {name}", f"{size} MB in {folder}")
        else:
            yield Finding(OK, f"kept in {name}", f"none in {folder}")
    folder = cache_folder("graphs").parent
    if not is_writable(folder):
        yield Finding(
            WARNING,
            "caches",
            f"{folder} cannot be written: what is compiled or built for this machine is made anew at every start",
            "set XDG_CACHE_HOME to a folder that can",
        )


def engines() -> Iterator[Finding]:
    """Check the GPU and TensorRT's engines."""
    from dinov3_seg_ros.runtimes.choice import available_runtimes

    if available_runtimes()["tensorrt"] is not None:
        return
    from dinov3_seg_ros.runtimes.tensorrt.cuda import find_gpu
    from dinov3_seg_ros.runtimes.tensorrt.store import ENGINE_SUFFIX, REFUSAL_SUFFIX, Refusal, damaged, store_folder

    try:
        gpu = find_gpu()
        yield Finding(OK, "GPU", f"{gpu.name}, compute capability {gpu.capability}")
    except SegmentationError as error:
        yield Finding(WARNING, "GPU", str(error), "install NVIDIA's driver, or pass the GPU into the container")
    folder = store_folder()
    files = sorted(folder.iterdir()) if os.path.isdir(folder) else []
    engines = [path for path in files if path.suffix == ENGINE_SUFFIX]
    megabytes = sum(engine.stat().st_size for engine in engines) >> 20
    yield Finding(OK, "TensorRT engines", f"{len(engines)} in {folder}, {megabytes} MB")
    for engine in engines:
        if damaged(engine):
            yield Finding(WARNING, "TensorRT engine", f"{engine} is damaged; it is rebuilt when it is needed")
    for path in (path for path in files if path.suffix == REFUSAL_SUFFIX):
        with contextlib.suppress(OSError, ValueError):  # one that is damaged does not count
            refusal = Refusal.model_validate_json(path.read_bytes())
            found = f"no start builds one of {refusal.graph}: {refusal.reason}"
            yield Finding(WARNING, "TensorRT engine", found, f"correct the cause, then delete {path} to try again")


def decoders() -> Iterator[Finding]:
    """Check what decodes the logits."""
    from dinov3_seg_ros import decode

    if decode.backend(wait=True) == "numba":
        yield Finding(OK, "decode", "compiled (numba)")
    else:
        yield Finding(WARNING, "decode", "NumPy: correct but slower", "pip install numba")
    if not _torch_has_cuda():
        return
    if decode.backend("cuda") == "triton":
        yield Finding(OK, "decode on the GPU", "compiled (triton)")
    else:
        yield Finding(
            WARNING,
            "decode on the GPU",
            "PyTorch operations: correct but slower",
            "pip install triton, and a C compiler, which it needs: sudo apt install gcc",
        )


def _abilities(runtime: str, bundles: Sequence[Path]) -> str:
    if runtime != "onnx":
        return "can be used"
    from dinov3_seg_ros.runtimes.onnx.targets import usable_providers

    return f"can be used, with {', '.join(usable_providers(_loaded(bundles)))}"


def _loaded(paths: Sequence[Path]) -> list[Bundle]:
    """Load bundles, by default the demo, up to the first that cannot be; `integrity` reports that one."""
    from dinov3_seg_ros.bundle.loading import load_bundle

    loaded: list[Bundle] = []
    with contextlib.suppress(SegmentationError):
        loaded.extend(load_bundle(path) for path in paths or [demo_bundle()])
    return loaded


def _torch_has_cuda() -> bool:
    from dinov3_seg_ros.runtimes.choice import available_runtimes

    if available_runtimes()["torch"] is not None:
        return False
    import torch

    return torch.cuda.is_available()
