"""What setup.py, package.xml, the pins, the containers and the workflow say about each other."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from dinov3_seg_ros.bundle.loading import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
#: Distributions whose module has another name.
MODULES = {
    "cuda-python": "cuda", "onnxruntime-gpu": "onnxruntime", "opencv-python": "cv2", "opencv-python-headless": "cv2",
    "pillow": "PIL", "pyyaml": "yaml",
}  # fmt: skip
#: Packages of the system that answer for a distribution in package.xml.
ROSDEP_KEYS = {"opencv": "python3-opencv", "pyyaml": "python3-yaml"}
#: What `make` never installs here, so that nothing can be pinned: other hardware, OpenCV with windows, ROS itself.
NOT_INSTALLED = {"gpu", "cv", "ros-kilted", "ros-jazzy"}
#: Not tested with the lowest versions; packages of execution providers need a newer ONNX Runtime than the lowest.
TOOLS = {"test", "test-torch", "test-tensorrt", "lint", "openvino", "cpu-openvino", "rtx"}
BLOCKED = ("torch", "transformers", "safetensors")


class StandInDevelop:
    """setuptools' command, which writes the scripts of the package."""

    script_dir: str | None = None

    def run(self):
        if self.script_dir:
            Path(self.script_dir, "segmentation_node").write_text("#!/usr/bin/python3\nimport sys\n")


@pytest.fixture
def build(monkeypatch):
    """Return what setup.py passes to setuptools.setup."""
    given = {}
    stand_in = types.SimpleNamespace(setup=given.update, find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    monkeypatch.setitem(sys.modules, "setuptools.command", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "setuptools.command.develop", types.SimpleNamespace(develop=StandInDevelop))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


@pytest.fixture(scope="module")
def package():
    return ElementTree.parse(ROOT / "package.xml").getroot()


def requirements(build, *extras):
    texts = [*build["install_requires"], *(text for extra in extras for text in build["extras_require"][extra])]
    return [Requirement(text) for text in texts]


def pins(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    assert all([part.operator for part in pin.specifier] == ["=="] for pin in pinned), "only exact versions"
    return {canonical(pin.name): Version(next(iter(pin.specifier)).version) for pin in pinned}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(*folders):
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.partition(".")[0])
    return modules - sys.stdlib_module_names - {"dinov3_seg_ros", "training"}


def ros_packages(package):
    return {entry.text for kind in ("exec_depend", "test_depend") for entry in package.iter(kind)}


def test_package_xml_setup_py_and_the_citation_agree(build, package):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (build["version"], build["license"])
    assert package.findtext("license") == build["license"]
    assert package.findtext("version") == build["version"]
    assert package.findtext("name") == build["name"]
    assert package.findtext("description") == build["description"]
    assert package.find("maintainer").get("email") == build["maintainer_email"]


def test_every_module_that_is_imported_is_declared(build, package):
    declared = {MODULES.get(canonical(r.name), r.name) for r in requirements(build, *build["extras_require"])}
    undeclared = imported_modules("dinov3_seg_ros", "training", "launch") - declared - ros_packages(package)
    assert not undeclared


def test_package_xml_names_every_package_that_the_node_cannot_do_without(build, package):
    names = [canonical(requirement.name) for requirement in requirements(build)] + ["opencv"]
    missing = {ROSDEP_KEYS.get(name, f"python3-{name}") for name in names} - ros_packages(package)
    assert not missing


def test_the_marker_of_typed_packages_is_shipped(build):
    assert "py.typed" in build["package_data"][build["name"]]
    assert (ROOT / build["name"] / "py.typed").exists()


def test_every_bundle_that_comes_with_the_package_is_installed(build):
    installed = {file for _, files in build["data_files"] for file in files}
    for name in SHIPPED:
        assert {f"weights/{name}/bundle.json", f"weights/{name}/head.safetensors"} <= installed
        assert any(file.startswith(f"weights/{name}/onnx/") for file in installed)


def test_every_direct_requirement_is_pinned_within_its_range(build):
    pinned = pins("constraints.txt")
    for requirement in requirements(build, *(set(build["extras_require"]) - NOT_INSTALLED)):
        version = pinned.get(canonical(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"setup.py forbids {requirement.name} {version}"


def test_the_lowest_version_of_every_range_is_tested(build):
    pinned = pins("constraints-lowest.txt")
    for requirement in requirements(build, *(set(build["extras_require"]) - NOT_INSTALLED - TOOLS)):
        floors = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        assert floors, f"setup.py gives no lowest version of {requirement.name}"
        assert pinned.get(canonical(requirement.name)) == floors[0], requirement.name


@pytest.mark.parametrize(
    ("machine", "python", "expected"),
    [
        ("x86_64", "3.12", {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0", "cuda-python": "13.4.4"}),
        ("aarch64", "3.10", {"onnxruntime": "1.23.2", "cuda-python": "12.9.10"}),  # JetPack 6
        ("aarch64", "3.12", {"onnxruntime": "1.31.1", "cuda-python": "13.4.4"}),  # JetPack 7
    ],
)
def test_the_gpu_extra_asks_for_what_the_machine_can_use(build, machine, python, expected):
    place = {"platform_machine": machine, "python_version": python}
    extra = [Requirement(text) for text in build["extras_require"]["gpu"]]
    asked = {found.name: found.specifier for found in extra if found.marker.evaluate(place)}
    assert asked.keys() == expected.keys()
    assert all(asked[name].contains(version) for name, version in expected.items())
    jetpack_6, jetpack_7 = (asked["cuda-python"].contains(version) for version in ("12.9.10", "13.0.0"))
    assert (jetpack_6, jetpack_7) == {"x86_64": (True, True)}.get(machine, (python == "3.10", python == "3.12"))


def test_scripts_start_the_environment_they_are_installed_from(build, monkeypatch, tmp_path):
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "environment"))
    develop = build["cmdclass"]["develop"]()
    develop.script_dir = str(tmp_path)
    develop.run()
    assert (tmp_path / "segmentation_node").read_text() == f"#!{python}\nimport sys\n"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Return tools/environment.py, for a checkout in a temporary folder."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["environment.py", ".venv", "cpu"])
    return module


def test_an_environment_is_made_anew_in_a_checkout_that_was_moved(environment, monkeypatch, tmp_path):
    made = []

    def create(folder, with_system_packages):
        made.append(folder)
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_run_pip", lambda *_: 0)
    environment.main()
    environment.main()
    assert made == [tmp_path / ".venv"]
    moved = tmp_path / "a workspace"
    moved.mkdir()
    for name in ("setup.py", "constraints.txt", ".venv"):
        shutil.move(tmp_path / name, moved)
    monkeypatch.setattr(environment, "ROOT", moved)
    environment.main()
    (moved / "constraints.txt").write_text("torch==3\n")
    environment.main()
    assert made == [tmp_path / ".venv", moved / ".venv"], "its scripts start the Python of the folder it was made in"


def test_an_optional_extra_that_cannot_be_installed_is_left_out(environment, monkeypatch, tmp_path, capsys):
    (tmp_path / ".venv").mkdir()
    asked = []

    def run(command, **_):
        asked.append(str(command[-1]))
        return types.SimpleNamespace(returncode=int("far_away" in asked[-1]))

    monkeypatch.setattr(environment, "_create", lambda *_: None)
    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["environment.py", ".venv", "cpu", "--optional", "far_away"])
    environment.main()
    assert "far_away cannot be installed here; what needs it is skipped" in capsys.readouterr().out
    assert [words.rpartition("[")[2] for words in asked[-2:]] == ["cpu]", "far_away]"]
    count = len(asked)
    environment.main()
    assert [words for words in asked[count:] if "[" in words] == [], "it is tried once for these pins"
    monkeypatch.setattr(sys, "argv", ["environment.py", ".venv", "far_away"])
    with pytest.raises(SystemExit):
        environment.main()


def test_installing_leaves_scripts_to_pip_where_setuptools_does(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script").write_text("#!/usr/bin/python3\n")
    build["cmdclass"]["develop"]().run()
    assert (tmp_path / "script").read_text() == "#!/usr/bin/python3\n"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_install_extras_that_exist_and_say_they_are_unrun(build, path):
    text = path.read_text()
    (extras,) = re.findall(r"dinov3_seg_ros\[([a-z,-]+)\]", text)
    assert set(extras.split(",")) <= set(build["extras_require"])
    assert "neither built nor run" in text.partition("\nFROM ")[0]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_user_of_a_container_owns_the_folder_that_caches_are_kept_in(path):
    (user,) = re.findall(r"useradd --create-home --uid 1001 .*?(\w+) \\\n", path.read_text())
    folder = f"/home/{user}/.cache"
    assert f"install --directory --owner {user} --group {user} {folder}\n" in path.read_text()
    assert f"`{folder}`" in (ROOT / "docs" / "deploy.md").read_text()


def test_there_is_a_dockerfile_for_each_kind_of_computer():
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda", ".jetson"]


def test_the_devcontainer_names_a_stage_that_exists():
    path = ROOT / ".devcontainer" / "devcontainer.json"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("//")]
    build = json.loads("\n".join(lines))["build"]
    dockerfile = (path.parent / build["dockerfile"]).read_text()
    assert (path.parent / build["context"]).resolve() == ROOT
    assert re.search(rf"^FROM .* AS {build['target']}$", dockerfile, re.MULTILINE)


def test_the_workflow_runs_targets_that_exist_and_may_only_read():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in WORKFLOW.read_text()
    targets = set(re.findall(r"(?:run|command): make ([a-z-]+)", WORKFLOW.read_text()))
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{target}%?:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_without_torch_the_robots_part_of_the_tests_is_collected():
    collect = (
        "import sys, pytest\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', '--continue-on-collection-errors']))\n"
    )
    run = subprocess.run([sys.executable, "-c", collect], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    collected = set(re.findall(r"test_(\w+)\.py", run.stdout))
    assert collected >= {
        "bag", "decode", "demo", "doctor", "encodings", "launch", "messages", "node", "node_contract", "node_faults",
        "node_parameters", "node_peers", "segmenter", "transport",
    }  # fmt: skip
    assert not collected & {"export", "heads", "pytorch_runtime", "training_loop"}


def test_the_pytest_plugins_of_a_sourced_ros_do_not_keep_the_tests_from_starting(tmp_path):
    metadata = tmp_path / "launch_testing-3.9.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: launch_testing\nVersion: 3.9.3\n")
    plugins = ("launch_testing", "launch_ros")  # both have hooks that pytest 9 refuses
    (metadata / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{name} = ros_{name}\n" for name in plugins))
    for name in plugins:
        (tmp_path / f"ros_{name}.py").write_text("def pytest_pycollect_makemodule(path, parent): ...\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", __file__],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_the_robots_part_runs_on_each_python_that_is_found():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    plan = subprocess.run(
        ["make", "-n", "test-robot"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    here = [
        f"3.{minor}"
        for minor in range(10, 15)
        if shutil.which(f"python3.{minor}")
        and not subprocess.run([f"python3.{minor}", "-c", ""], capture_output=True).returncode
    ]
    assert re.findall(r"\.venv-robot-(\S+)/bin/python -m pytest", plan) == here


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="all tests run in one process")
def test_tests_with_real_nodes_are_one_group_for_pytest_xdist(request):
    nodes = [item.nodeid for item in request.session.items if item.get_closest_marker("ros")]
    assert all(name.endswith("@ros") for name in nodes), "they run side by side, where nodes disturb each other"


def test_the_linter_checks_for_the_oldest_python(build):
    assert build["python_requires"] == ">=3.10"
    assert 'target-version = "py310"' in (ROOT / "ruff.toml").read_text()


def ignored(name):
    lines = [line.strip().removeprefix("**/").strip("/") for line in (ROOT / name).read_text().splitlines()]
    return {line for line in lines if line and not line.startswith("#")}


def test_images_of_docker_leave_out_what_git_leaves_out():
    assert ignored(".gitignore") <= ignored(".dockerignore")


@pytest.mark.parametrize("name", [".gitignore", ".dockerignore"])
def test_what_commands_write_by_default_is_ignored(name):
    call = r'(?:add_output\(parser, |add_labelling_arguments\(parser, "\w+", |default=Path\()"([^"/]+)'
    folders = [ROOT / folder for folder in ("dinov3_seg_ros", "training", "benchmarks")]
    modules = (path for folder in folders for path in folder.rglob("*.py"))
    written = {default for module in modules for default in re.findall(call, module.read_text(encoding="utf-8"))}
    assert {"masks", "pseudo_labels", "evaluation.json", "demo_output", "runs"} <= written
    assert written <= ignored(name)
