"""Make a virtual environment of this project, or complete one whose pins have changed. Standard library only.

    python3 tools/environment.py .venv train test cpu cv-headless ros-kilted

With a ROS distribution sourced, its own rclpy is used in place of the wheels named by a ``ros-`` extra.
``TORCH_INDEX=URL`` takes torch from that package index, for example PyTorch's own index of CPU builds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDS_TORCH = {"torch", "export", "train", "test-torch"}
# They hold the module of the extra cpu, so none can be put over another.
BUILDS = {"cpu-openvino", "gpu"}


def main() -> None:
    """Bring the environment named by the first argument to the extras named by the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the environment lies, relative to the checkout")
    parser.add_argument("extras", nargs="+", help="extras of setup.py")
    parser.add_argument(
        "--optional", nargs="+", default=[], metavar="EXTRA", help="extras that are left out where they cannot be had"
    )
    parser.add_argument(
        "--constraints", default="constraints.txt", help="file of exact versions (default: %(default)s)"
    )
    arguments = parser.parse_args()
    folder, extras, constraints = ROOT / arguments.folder, sorted(arguments.extras), ROOT / arguments.constraints
    if NEEDS_TORCH & set(extras) and sys.version_info < (3, 11):
        sys.exit(f"{folder.name}: DINOv3 in PyTorch needs Python 3.11 or newer (transformers 5); this is "
                 f"{sys.version.split()[0]}. Name another: make PYTHON=python3.11 ...")  # fmt: skip
    ros_is_sourced = bool(os.environ.get("ROS_DISTRO")) and _imports_rclpy()
    if ros_is_sourced:
        extras = [extra for extra in extras if not extra.startswith("ros-")]
    stamp, wanted = folder / "stamp", _stamp(folder, [*extras, *arguments.optional], constraints, ros_is_sourced)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"{folder.name}: installing {', '.join(extras)} (this happens once)", flush=True)
    kind = wanted.partition("\n")[0]
    if not (folder / "bin" / "python").exists() or (stamp.exists() and stamp.read_text().partition("\n")[0] != kind):
        _create(folder, ros_is_sourced)
        stamp.write_text(kind)  # what it is made from, in case the installation is cut off
    if NEEDS_TORCH & set(extras):
        index = os.environ.get("TORCH_INDEX")
        _pip(folder, _pinned("torch", constraints), *(("--index-url", index) if index else ()))
    _pip(folder, "-c", str(constraints), "-e", f"{ROOT}[{','.join(extras)}]")
    for extra in arguments.optional:
        if _run_pip(folder, "-c", str(constraints), "-e", f"{ROOT}[{extra}]"):
            print(f"{folder.name}: {extra} cannot be installed here; what needs it is skipped", flush=True)
    stamp.write_text(wanted)


def _stamp(folder: Path, extras: list[str], constraints: Path, ros_is_sourced: bool) -> str:
    """Two lines: the second changes with the content of the environment, the first with what it is made from.

    The first has the folder's path: the scripts in an environment name it, so none can be moved.
    """
    content = [path.read_bytes() for path in (ROOT / "setup.py", constraints)]
    content += [",".join(extras).encode(), os.environ.get("TORCH_INDEX", "").encode()]
    words = ["sourced" if ros_is_sourced else "wheels", f"{sys.version_info.major}.{sys.version_info.minor}"]
    kind = "-".join([*words, *sorted(BUILDS & {*extras})])
    return f"{kind} {folder}\n" + hashlib.sha256(b"\0".join(content)).hexdigest()


def _create(folder: Path, with_system_packages: bool) -> None:
    try:
        venv.create(folder, with_pip=True, system_site_packages=with_system_packages, clear=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(folder, ignore_errors=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(f"{folder.name}: Python's venv module is incomplete; on Debian and Ubuntu: "
                 f"sudo apt install python{version}-venv")  # fmt: skip


def _pinned(name: str, constraints: Path) -> str:
    return next(line for line in constraints.read_text().splitlines() if line.startswith(f"{name}=="))


def _run_pip(folder: Path, *arguments: str) -> int:
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command).returncode


def _pip(folder: Path, *arguments: str) -> None:
    if _run_pip(folder, *arguments):
        sys.exit(f"{folder.name}: pip install failed; see its message above, then run the same command again")


def _imports_rclpy() -> bool:
    return subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
