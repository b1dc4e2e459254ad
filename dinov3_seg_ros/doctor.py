"""Find what keeps an installation from its first mask, and name one remedy for each finding.

``python -m dinov3_seg_ros.doctor [BUNDLE ...] [--clean]``
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_seg_ros.ros.transport import (
    PROFILE_VARIABLES,
    SHARED_MEMORY,
    chosen_transport,
    our_setting,
    profile_variable,
    remove_dead_segments,
    stale_ports,
    stale_segments,
    unfinished_segments,
)
from dinov3_seg_ros.support.command_line import DONE, FAILED, CommandParser, run_command
from dinov3_seg_ros.support.errors import SegmentationError
from dinov3_seg_ros.support.resources import resource_path

if TYPE_CHECKING:
    from dinov3_seg_ros.bundle.loading import Bundle

OK, WARNING, FAULT = "ok", "warning", "fault"
# The profile takes 32 MB for each process: a camera, the node and a viewer make three.
_LEAST_SHARED_MEMORY_MB = 128
_CLEAN = "python -m dinov3_seg_ros.doctor --clean"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `OK`, `WARNING` or `FAULT`.
        subject: what was checked.
        detail: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    level: str
    subject: str
    detail: str
    remedy: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where there is a fault."""
    parser = CommandParser("dinov3_seg_ros.doctor", __doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="bundles to check (default: the demo)")
    parser.add_argument(
        "--clean", action="store_true", help=f"first remove what killed processes left in {SHARED_MEMORY}"
    )

    def work(words: list[str]) -> int:
        options = parser.parse_command(words)
        if options.clean:
            for path in remove_dead_segments():
                print(f"removed  {path}")
        faults = 0
        for finding in examine(options.bundles):
            _print(finding)
            faults += finding.level == FAULT
        print(f"\n{faults or 'no'} fault{'' if faults == 1 else 's'}")
        return FAILED if faults else DONE

    return run_command(parser, work, arguments)


def examine(bundles: Sequence[Path] = ()) -> Iterator[Finding]:
    """Check everything; ``bundles`` default to the demo's."""
    yield Finding(OK, "Python", f"{platform.python_version()} ({sys.executable})")
    for check in (_packages, _conflicts, _ros, _transport, _shared_memory):
        yield from _surviving(check)
    yield from _surviving(lambda: _runtimes(bundles))
    for check in (_engines, _decode):
        yield from _surviving(check)
    yield from _surviving(lambda: _bundles(bundles))


def _print(finding: Finding) -> None:
    print(f"{finding.level:<8} {finding.subject:<24} {finding.detail}")
    if finding.remedy:
        print(f"{'':<8} {'':<24} -> {finding.remedy}")


def _surviving(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check. An error in the check is a finding too, and does not end the others."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            FAULT, "doctor", f"{type(error).__name__}: {error}", "correct the faults above, then run the doctor again"
        )


def _packages() -> Iterator[Finding]:
    for module, distributions, remedy in (
        ("numpy", ("numpy",), "pip install numpy"),
        ("cv2", ("opencv-python", "opencv-python-headless"), "pip install 'dinov3_seg_ros[cv-headless]'"),
        ("pydantic", ("pydantic",), "pip install 'pydantic>=2'"),
    ):
        version = _version(*distributions)
        error = _import_error(module)
        if error:
            yield Finding(FAULT, module, f"cannot be imported: {error}", remedy)
        else:
            yield Finding(OK, module, version or "installed by the system")
    transformers = _version("transformers")
    if transformers and int(transformers.split(".")[0]) < 5:
        yield Finding(FAULT, "transformers", f"{transformers}: too old for DINOv3", "pip install 'transformers>=5'")


def _conflicts() -> Iterator[Finding]:
    for one, other, remedy in (
        ("opencv-python", "opencv-python-headless", "pip uninstall both, then install the one you want"),
        ("onnxruntime", "onnxruntime-gpu", "pip uninstall both, then install the one you want"),
    ):
        if _version(one) and _version(other):
            yield Finding(FAULT, f"{one}, {other}", "both are installed and overwrite each other's module", remedy)
    opencv = _version("opencv-python", "opencv-python-headless") or "0"
    if int(opencv.split(".")[0]) >= 5:
        yield Finding(
            WARNING, "opencv", f"{opencv}: cv_bridge does not work with OpenCV 5", "pip install 'opencv-python<5'"
        )


def _ros() -> Iterator[Finding]:
    error = _import_error("rclpy")
    if error:
        yield Finding(
            FAULT,
            "rclpy",
            f"cannot be imported: {error}",
            "source /opt/ros/<distribution>/setup.bash, or pip install 'dinov3_seg_ros[ros-kilted]'",
        )
        return
    yield Finding(OK, "rclpy", f"{_version('rclpy') or ''} {os.environ.get('ROS_DISTRO', '(no distribution sourced)')}")
    from dinov3_seg_ros.ros.ports import HAS_LABEL_INFO

    if not HAS_LABEL_INFO:
        yield Finding(
            WARNING,
            "vision_msgs",
            "not usable: segmentation/label_info is not published (class names remain a parameter)",
            "with ROS 2 installed: sudo apt install ros-$ROS_DISTRO-vision-msgs (PyPI has no build of it)",
        )
    else:
        yield Finding(OK, "vision_msgs", "installed")


def _transport() -> Iterator[Finding]:
    chosen = chosen_transport()
    name, _, value = chosen.partition("=")
    export = f"export {our_setting()}"
    if name == "RMW_IMPLEMENTATION":
        yield Finding(OK, "DDS", f"{value}: set its own buffers for images (see its documentation)")
    elif not chosen:
        yield Finding(
            WARNING,
            "DDS profile",
            "the node sets its own; your camera driver and viewers use the default, which loses best-effort images",
            export,
        )
    elif name in PROFILE_VARIABLES and not Path(value).is_file():
        yield Finding(FAULT, "DDS profile", f"{value} does not exist", f"correct or unset {name}")
    elif name in PROFILE_VARIABLES and not os.environ.get(profile_variable()):
        yield Finding(
            WARNING,
            "DDS profile",
            f"{chosen}: this distribution does not read that variable, and the node changes nothing",
            f"export {profile_variable()}={value}, or unset {name}",
        )
    elif name == "FASTDDS_BUILTIN_TRANSPORTS":
        # With LARGE_DATA or UDPv4, hardly any 640x480 colour image arrived with best effort.
        yield Finding(
            WARNING,
            "DDS profile",
            f"the node keeps {chosen}, which loses best-effort images",
            f"let the camera driver publish reliably, or for all processes: unset {name}; {export}",
        )
    else:
        yield Finding(OK, "DDS profile", f"{value} (from {name})" if value else name)


def _shared_memory() -> Iterator[Finding]:
    if not SHARED_MEMORY.is_dir() or not os.access(SHARED_MEMORY, os.W_OK):
        yield Finding(
            WARNING,
            str(SHARED_MEMORY),
            "absent or not writable: images travel over UDP, which is slower",
            "in a container, start it with --ipc=host or --shm-size=512m",
        )
        return
    for path in unfinished_segments():
        yield Finding(
            FAULT, path.name, "left unfinished by a killed process: ROS nodes wait for it without end", _CLEAN
        )
    stale = stale_segments() + stale_ports()
    if stale:
        megabytes = sum(_size_of(path) for path in stale) >> 20
        yield Finding(
            WARNING, str(SHARED_MEMORY), f"{len(stale)} files ({megabytes} MB) of killed processes are left", _CLEAN
        )
    free_mb = shutil.disk_usage(SHARED_MEMORY).free >> 20
    if free_mb < _LEAST_SHARED_MEMORY_MB:
        yield Finding(
            WARNING,
            str(SHARED_MEMORY),
            f"only {free_mb} MB free, and each process takes 32 MB",
            f"{_CLEAN}; in a container, start it with --shm-size=512m",
        )
    else:
        yield Finding(OK, str(SHARED_MEMORY), f"{free_mb} MB free")


def _runtimes(bundles: Sequence[Path]) -> Iterator[Finding]:
    from dinov3_seg_ros.runtimes.choice import RUNTIMES, available_runtimes

    reasons = available_runtimes()
    usable = [name for name in RUNTIMES if reasons[name] is None]
    for name, reason in reasons.items():
        yield Finding(OK if reason is None else WARNING, f"runtime {name}", reason or _abilities(name, bundles))
    if not usable:
        yield Finding(FAULT, "runtimes", "none can be used", "pip install 'dinov3_seg_ros[torch]'")


def _abilities(runtime: str, bundles: Sequence[Path]) -> str:
    if runtime != "onnx":
        return "can be used"
    from dinov3_seg_ros.bundle.loading import load_bundle
    from dinov3_seg_ros.runtimes.onnx import usable_providers

    loaded: list[Bundle] = []
    with contextlib.suppress(SegmentationError):  # `_bundles` reports it
        loaded.extend(load_bundle(path) for path in bundles or [_demo_bundle()])
    return f"can be used, with {', '.join(usable_providers(loaded))}"


def _engines() -> Iterator[Finding]:
    from dinov3_seg_ros.runtimes.choice import available_runtimes

    if available_runtimes()["tensorrt"] is not None:
        return
    from dinov3_seg_ros.runtimes.tensorrt.cuda import find_gpu
    from dinov3_seg_ros.runtimes.tensorrt.store import ENGINE_SUFFIX, damaged, store_folder

    try:
        gpu = find_gpu()
        yield Finding(OK, "GPU", f"{gpu.name}, compute capability {gpu.capability}")
    except SegmentationError as error:
        yield Finding(WARNING, "GPU", str(error), "install NVIDIA's driver, or pass the GPU into the container")
    folder = store_folder()
    engines = sorted(folder.glob(f"*{ENGINE_SUFFIX}"))
    megabytes = sum(engine.stat().st_size for engine in engines) >> 20
    yield Finding(OK, "TensorRT engines", f"{len(engines)} in {folder}, {megabytes} MB")
    for engine in engines:
        if damaged(engine):
            yield Finding(WARNING, "TensorRT engine", f"{engine} is damaged; it is rebuilt when it is needed")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        yield Finding(
            WARNING,
            "TensorRT engines",
            f"{nearest} cannot be written: engines are rebuilt at every start",
            "set XDG_CACHE_HOME to a folder that can",
        )


def _decode() -> Iterator[Finding]:
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


def _torch_has_cuda() -> bool:
    from dinov3_seg_ros.runtimes.choice import available_runtimes

    if available_runtimes()["torch"] is not None:
        return False
    import torch

    return torch.cuda.is_available()


def _bundles(paths: Sequence[Path]) -> Iterator[Finding]:
    from dinov3_seg_ros.bundle.loading import load_bundle

    for path in paths or [_demo_bundle()]:
        try:
            bundle = load_bundle(path)
        except SegmentationError as error:
            yield Finding(FAULT, "bundle", str(error), "see weights/README.md")
            continue
        manifest = bundle.manifest
        yield Finding(
            OK,
            f"bundle {manifest.name}",
            f"{manifest.head.name} head, {len(manifest.classes.names)} classes, on {manifest.backbone.model_type} "
            f"({manifest.backbone.storage}); files are whole",
        )
        if manifest.backbone.storage != "embedded":
            yield _external_backbone(bundle)
        yield from _exports(bundle)


def _demo_bundle() -> Path:
    return resource_path("weights/demo")


def _exports(bundle: Bundle) -> Iterator[Finding]:
    from dinov3_seg_ros.bundle.exports import find_exports

    subject = f"graphs of {bundle.manifest.name}"
    usable, refused = find_exports(bundle)
    for export in usable:
        size = "x".join(map(str, export.manifest.network_size))
        reservation = export.reservation
        verified = f"used only when asked for: {reservation}" if reservation else "compared with the model"
        try:
            for graph in export.manifest.files:
                export.graph(graph)
        except SegmentationError as error:
            refused.append(str(error))
            continue
        yield Finding(OK, subject, f"ONNX, {size}, {export.manifest.precision}, {verified}")
    for reason in refused:
        yield Finding(WARNING, subject, reason, f"python -m dinov3_seg_ros.export {bundle.path}")
    if not usable and not refused:
        yield Finding(OK, subject, "none", f"python -m dinov3_seg_ros.export {bundle.path}")


def _external_backbone(bundle: Bundle) -> Finding:
    subject = f"backbone of {bundle.manifest.name}"
    if _import_error("torch") or _import_error("transformers"):
        return Finding(OK, subject, f"{bundle.manifest.backbone.source} (not checked: PyTorch is not installed)")
    try:
        bundle.load_backbone()
    except SegmentationError as error:
        return Finding(FAULT, subject, str(error), "weights/README.md says how to get it")
    return Finding(OK, subject, f"{bundle.manifest.backbone.source} is the one the head was trained on")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process removed it
        return 0


def _import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # a broken build fails to load its shared objects
        return str(error)
    return ""


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


if __name__ == "__main__":
    sys.exit(main())
