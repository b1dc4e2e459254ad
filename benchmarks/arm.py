"""Run what a robot runs on aarch64 under emulation, and compare it with this machine.

    sudo env "PATH=$PATH" python benchmarks/arm.py --json arm.json

The doctor, the Segmenter on ONNX Runtime, the decode with confidence and the overlay, for the demo's bundle. It needs
root, debootstrap and QEMU (Debian: debootstrap qemu-user-static), Debian's packages and PyPI; the folder `--root` is
used again. Emulation says what Arm code computes, not how fast.

Debian's arm64 packages are unpacked, not installed, so nothing of the system has to run while it is made. The program
runs in a chroot without /proc, where ONNX Runtime would crash QEMU, and without binfmt, so it starts no processes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SUITE, QEMU = "bookworm", "/usr/bin/qemu-aarch64-static"
# The robot's packages, in the versions of constraints.txt.
PACKAGES = ("numpy", "pydantic", "pyyaml", "numba", "onnxruntime", "opencv-python-headless")
BUNDLE = "weights/demo"
# Float sums differ in their order, and so do a few labels at edges; the gate asks for as much.
LEAST = 0.9995


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "dinov3_seg_ros_arm64")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        compute(options.inside)
        return 0
    missing = [name for name in ("debootstrap", QEMU, "dpkg-deb", "unshare") if not shutil.which(name)]
    if missing or os.geteuid():
        sys.exit(f"needs root and: {', '.join(missing) or 'nothing else'}")
    make_root(options.root)
    found = run(options.root, options.frames)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["equal_labels"] >= LEAST and found["equal_labels_of_the_same_logits"] == 1.0 else 1


def make_root(root: Path) -> None:
    """Make a folder with a Debian for arm64, Python and the robot's packages; whatever is there is kept."""
    packages = root / "opt" / "packages"
    if packages.exists():
        return
    if not (root / "usr/bin/python3").is_symlink():
        unpack_system(root)
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)]
    packages.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages.parent) as folder:
        target = Path(folder) / "packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"--python-version={version}"]
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *platforms, *constraints, "--target", str(target), *PACKAGES], check=True)
        target.rename(packages)


def unpack_system(root: Path) -> None:
    """Unpack a Debian for arm64 with Python, and QEMU."""
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", "--include=python3", SUITE, str(root)]
    subprocess.run(command, check=True)
    for archive in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as content:
            unpack = ["tar", "-x", "--keep-directory-symlink", "-C", root]
            subprocess.run(unpack, stdin=content.stdout, check=True)
    shutil.copy(QEMU, root / QEMU[1:])


def run(root: Path, count: int) -> dict[str, Any]:
    """Compute the same frames here and there; return how far they agree."""
    from dinov3_seg_ros.benchmark.measurement import synthetic_frames

    place = root / "checkout"
    shutil.rmtree(place, ignore_errors=True)
    for name in ("dinov3_seg_ros", "benchmarks", "config", BUNDLE):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    given = {"frames": np.stack(synthetic_frames((480, 640), count))}
    environment = {"PYTHONPATH": "/checkout:/opt/packages", "PATH": "/usr/bin:/bin", "HOME": "/", "LC_ALL": "C.UTF-8"}
    emulate = ["unshare", f"--root={root}", "--wd=/checkout", QEMU, "/usr/bin/python3", "benchmarks/arm.py", "--inside"]
    with tempfile.TemporaryDirectory() as folder:
        here = results([sys.executable, __file__, "--inside", folder], os.environ, Path(folder), given)
    # There also what went into the network here is computed, and what came out of it decoded: each step by itself.
    given |= {name: here[name] for name in ("canvas", "logits")}
    return compare(here, results([*emulate, "/checkout/results"], environment, place / "results", given))


def results(command: list[str], environment: Mapping[str, str], folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run `compute` by a command; return what it wrote into a folder."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "given.npz", **given)
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    with np.load(folder / "results.npz") as arrays:
        return {**arrays, **json.loads((folder / "said.json").read_text())}


def compare(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Return how far the results of two machines agree: shares of equal elements, and largest differences."""
    from dinov3_seg_ros.runtimes.agreement import Difference

    def equal(name: str) -> float:
        return float(np.mean(here[name] == there[name]))

    def levels(name: str) -> int:
        return int(np.abs(here[name].astype(int) - there[name]).max())

    logits = Difference()
    logits.update(here["logits"], there["logits"])
    return {
        "machines": [here["machine"], there["machine"]],
        "runtimes": [here["runtime"], there["runtime"]],
        "frames": len(here["labels"]),
        "classes_in_view": len(np.unique(here["labels"])),
        "equal_network_inputs": equal("canvas"),
        "largest_difference_of_network_inputs": levels("canvas"),
        "logits": logits.record(),
        "equal_labels": equal("labels"),
        "largest_difference_of_confidence": levels("confidence"),
        "equal_overlay": equal("overlay"),
        "equal_labels_of_the_same_network_inputs": equal("network_labels"),
        "equal_labels_of_the_same_logits": equal("decoded_labels"),
        "largest_difference_of_confidence_of_the_same_logits": levels("decoded_confidence"),
        "doctor": there["doctor"],
    }


def compute(folder: Path) -> None:
    """Compute the frames in a folder, on whatever machine this is, and write the results beside them."""
    from dinov3_seg_ros import decode
    from dinov3_seg_ros.doctor.__main__ import main as doctor
    from dinov3_seg_ros.frames.overlay import blend_overlay
    from dinov3_seg_ros.frames.preprocessing import resize
    from dinov3_seg_ros.segmenter import Segmenter

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        doctor([BUNDLE])
    with np.load(folder / "given.npz") as arrays:
        given = dict(arrays)
    found: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    with contextlib.closing(Segmenter.from_bundle(BUNDLE, "onnx", device="cpu")) as segmenter:
        runtime = f"{segmenter.runtime.description}; decode: {decode.backend(wait=True)}"
        (manifest,) = segmenter.manifests.values()
        for index, frame in enumerate(given["frames"]):
            (head,) = segmenter.segment([frame])[0].heads.values()
            own = resize(frame, manifest.input.network_size)
            found["canvas"].append(own)
            # Frames of the network's size are not resized.
            canvas = given["canvas"][index] if "canvas" in given else own
            found["network_labels"].append(segmenter.segment([canvas])[0].labels)
            found["logits"].append(head.logits)
            found["labels"].append(head.labels)
            found["confidence"].append(head.confidence)
            found["overlay"].append(blend_overlay(frame, head.labels, manifest.classes.palette, 0.5))
            logits = given["logits"][index] if "logits" in given else head.logits
            labels, confidence = decode.upsample_argmax_confidence(logits, frame.shape[:2], head.window)
            found["decoded_labels"].append(labels[0])
            found["decoded_confidence"].append(confidence[0])
    np.savez(folder / "results.npz", **{name: np.stack(arrays) for name, arrays in found.items()})
    lines = {"machine": platform.machine(), "runtime": runtime, "doctor": said.getvalue().splitlines()}
    (folder / "said.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    sys.exit(main())
