"""Generate the messages that have no wheel (bond, vision_msgs) into the environment that runs this, for the tests.

    .venv/bin/python tools/generate_messages.py

The definitions are in ``tools/messages/``. Where ROS itself brings a package, nothing is generated, and that one is
used. Needs the wheels of rosidl's generators and a compiler for C and C++; without a compiler it says what is not
tested, and exits with 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

MESSAGES = Path(__file__).resolve().parent / "messages"
_PREFIX = Path(sys.prefix)
# What Fast DDS needs of a message: how it is serialised, and what it consists of.
_TYPESUPPORTS = ["rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"]
_LIBRARIES = (
    "rosidl_runtime_c",
    "rosidl_typesupport_c",
    "rosidl_typesupport_fastrtps_c",
    "rosidl_typesupport_fastrtps_cpp",
    "rosidl_typesupport_introspection_c",
    "rcpputils",
    "rcutils",
    "fastcdr",
    "std_msgs__rosidl_generator_c",
    "std_msgs__rosidl_generator_py",
    "std_msgs__rosidl_typesupport_c",
    "std_msgs__rosidl_typesupport_fastrtps_c",
    "std_msgs__rosidl_typesupport_introspection_c",
)


def main() -> int:
    """Generate what is missing; 0, unless a generator or the compiler fails."""
    wanted = [folder for folder in sorted(MESSAGES.iterdir()) if not _works(folder.name)]
    if not wanted:
        return 0
    compilers = [compiler for compiler in (os.environ.get("CXX"), "g++", "clang++") if compiler]
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    names = " and ".join(folder.name for folder in wanted)
    if not (_PREFIX / "include" / "rosidl_runtime_c").exists():
        packages = " ".join(f"ros-$ROS_DISTRO-{folder.name.replace('_', '-')}" for folder in wanted)
        print(
            f"{_PREFIX.name}: {names} are not installed, so Nav2's bond and label_info are not tested: "
            f"sudo apt install {packages}",
            file=sys.stderr,
        )
        return 0
    if compiler is None:
        print(
            f"{_PREFIX.name}: {names} cannot be made here, since there is no C++ compiler (sudo apt install g++); the "
            "tests of Nav2's bond and of label_info are skipped",
            file=sys.stderr,
        )
        return 0
    os.environ["AMENT_PREFIX_PATH"] = str(_PREFIX)  # where the generators look for their templates
    for folder in wanted:
        with tempfile.TemporaryDirectory() as temporary:
            try:
                _compile(folder.name, _generate(folder, Path(temporary)), compiler)
            except (ImportError, LookupError, subprocess.CalledProcessError) as error:
                print(f"{_PREFIX.name}: {folder.name} cannot be made: {error}", file=sys.stderr)
                return 1
    unusable = [folder.name for folder in wanted if not _works(folder.name)]
    if unusable:
        print(f"{_PREFIX.name}: {' and '.join(unusable)} were made, but cannot be loaded", file=sys.stderr)
        return 1
    print(f"{_PREFIX.name}: made the messages of {names}", flush=True)
    return 0


def _works(package: str) -> bool:
    """Whether a package's messages can be used; in a process of its own, since a broken build may not unload."""
    test = (
        "import importlib\nfrom rclpy.type_support import check_for_type_support\n"
        f"module = importlib.import_module('{package}.msg')\n"
        "[check_for_type_support(kind) for kind in vars(module).values() if isinstance(kind, type)]"
    )
    return subprocess.run([sys.executable, "-c", test], capture_output=True).returncode == 0


def _generate(folder: Path, output: Path) -> Path:
    """Write the sources of a package's messages below ``output``; return the folder they are in."""
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    package, share = folder.name, [str(_PREFIX / "share")]
    target = output / package
    idl = target / "idl" / "msg"
    idl.mkdir(parents=True)
    files = []
    for path in sorted(folder.glob("msg/*.msg")):
        convert_msg_to_idl(folder, package, path.relative_to(folder), idl)
        files.append(f"{idl.parent}:msg/{path.stem}.idl")
    hashes = HashTypeDescription("hash").generate_type_hashes(package, files, share, target)
    GenerateC("c").generate(package, files, share, target, hashes)
    GenerateFastRTPSCTypesupport("fastrtps_c").generate(package, files, share, target)
    GenerateIntrospectionCTypesupport("introspection_c").generate(package, files, share, target)
    GenerateCTypesupport("c", typesupport_implementations=_TYPESUPPORTS).generate(package, files, share, target)
    GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]).generate(package, files, share, target)
    return target


def _compile(package: str, sources: Path, compiler: str) -> None:
    """Compile everything into one extension module, and install it with its Python into the environment."""
    import numpy as np

    include = [
        sources.parent,
        _PREFIX / "include",
        *(_PREFIX / "include").iterdir(),
        sysconfig.get_path("include"),
        np.get_include(),
    ]
    flags = ["-O1", "-fPIC", "-w", *(f"-I{folder}" for folder in include)]
    objects = []
    for source in sorted((*sources.rglob("*.c"), *sources.rglob("*.cpp"))):
        objects.append(source.with_suffix(source.suffix + ".o"))
        language = ["-x", "c", "-std=gnu11"] if source.suffix == ".c" else ["-std=c++17"]
        subprocess.run([compiler, *language, *flags, "-c", source, "-o", objects[-1]], check=True)
    target = Path(sysconfig.get_path("purelib")) / package
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    module = target / f"{package}_s__rosidl_typesupport_c{sysconfig.get_config_var('EXT_SUFFIX')}"
    libraries = [f"-l{name}" for name in _LIBRARIES]
    link = ["-shared", *objects, f"-L{_PREFIX / 'lib'}", f"-Wl,-rpath,{_PREFIX / 'lib'}", *libraries, "-o", module]
    subprocess.run([compiler, *link], check=True)
    (target / "__init__.py").touch()
    for name in _TYPESUPPORTS:  # each is looked for in a library of its own
        library = _PREFIX / "lib" / f"lib{package}__{name}.so"
        library.unlink(missing_ok=True)
        library.symlink_to(module)
    shutil.copytree(sources / "msg", target / "msg", ignore=lambda _, names: [n for n in names if n[-3:] != ".py"])


if __name__ == "__main__":
    sys.exit(main())
