"""README and docs/ are true: sizes, links, paths, commands, flags, names and quoted messages.

`documented_commands.yaml` lists every command of a bash block: which test runs it, or why none can.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import launch_stand_ins
import pytest
import yaml
from robot_part import has_torch, is_of_training

from dinov3_seg_ros.frames.encodings import INPUT_ENCODINGS
from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.runtimes.onnx import providers
from dinov3_seg_ros.support.cpu import Cpu
from dinov3_seg_ros.support.errors import SegmentationError
from dinov3_seg_ros.support.option_model import describe_options

THIS = Path(__file__).resolve()
ROOT = THIS.parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("weights", "benchmarks")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = yaml.safe_load((ROOT / "test/documented_commands.yaml").read_text())
#: Where a path of the docs may start: the checkout, the package, training/.
STARTS = [ROOT, ROOT / "dinov3_seg_ros", ROOT / "training"]
#: Paths that a user's own commands make.
MADE = ("runs/", "weights/vits16", "weights/demo/onnx/", "data/")
#: What comes before --help: the command's own commands, and what it needs to list the keys of a recipe or a bundle.
HELP_AFTER = {
    "dinov3_seg_ros.bag": [["extract"], ["insert"], ["score"]],
    "training.train": [["custom_folder"]],
    "training.check_dataset": [["custom_folder"]],
    "training.evaluate": [["weights/demo"]],
    "training.predict": [["weights/demo", "docs/demo.jpg"]],
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


needs_torch = pytest.mark.skipif(not has_torch(), reason="training needs PyTorch")
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def blocks(text: str, *languages: str) -> list[str]:
    """The code blocks of these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[str]:
    """The commands of the bash blocks, without comments and line breaks."""
    lines = "".join(blocks(text, "bash", "console")).replace("\\\n", " ").splitlines()
    bare = (re.sub(r"(^|\s)#\s.*$", "", line) for line in lines)
    return [" ".join(line.split()) for line in bare if line.strip()]


def all_commands() -> list[str]:
    return list(dict.fromkeys(command for path in DOCUMENTS for command in commands_of(path.read_text())))


def programs_of(command: str) -> list[tuple[str, list[str]]]:
    """The Python modules or scripts that a command starts, with their arguments."""
    found, words = [], shlex.split(command)
    for place, (word, following) in enumerate(itertools.pairwise(words)):
        is_module = word == "-m" and words[place - 1].endswith(("python", "launch"))
        is_script = word.endswith("python") and following.endswith(".py")
        if is_module or is_script:
            found.append((following, words[place + 2 :]))
    return [(program, arguments) for program, arguments in found if program != "pytest"]


def source_of(module: str) -> Path | None:
    """The file of a module, without importing it."""
    path = ROOT / module.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_line_is_wider_than_120_characters(path):
    wide = [line for line in path.read_text().splitlines() if len(line) > 120]
    assert wide == []


@each_document
def test_every_link_leads_to_a_file_and_its_heading(path):
    text = prose(path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists() or str(file.relative_to(ROOT)).startswith(MADE), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(file.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


@each_document
def test_every_path_that_is_named_exists(path):
    words = re.findall(r"`([^`\s]+)`", prose(path.read_text()))
    words += [word for command in commands_of(path.read_text()) for word in shlex.split(command)]
    tops = {entry.name for start in STARTS for entry in start.iterdir()}
    for word in words:
        name = word.rstrip("/,.:")
        if name.startswith(MADE) or not re.fullmatch(r"[\w./-]+", name) or set(name) <= {"."}:
            continue
        if "/" in name and name.split("/")[0] in tops:
            assert any((start / name).exists() for start in STARTS), word
        elif "/" not in name and name.endswith(".py") and not word.startswith("."):
            assert any(path for start in STARTS for path in start.rglob(name)), word


@each_document
def test_every_module_that_is_named_exists(path):
    for name in re.findall(r"\b(?:dinov3_seg_ros|training)(?:\.[a-z_]\w*)+", path.read_text()):
        parts = name.split(".")
        known = max(n for n in range(1, len(parts) + 1) if n == 1 or source_of(".".join(parts[:n])))
        is_file = not (ROOT / "/".join(parts[:known])).is_dir()
        assert known == len(parts) or (is_file and known > 1), name


@each_document
def test_python_and_yaml_blocks_can_be_read(path):
    if launch_stand_ins.are_needed():
        launch_stand_ins.use()
    text = path.read_text()
    for block in blocks(text, "yaml"):
        assert yaml.safe_load(block)
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    try:
                        assert hasattr(importlib.import_module(node.module), alias.name)
                    except ModuleNotFoundError as error:
                        assert not has_torch() and is_of_training(error.name), alias.name


def test_every_command_is_run_by_a_test_or_has_a_reason():
    listed = [
        *COMMANDS["run"],
        *(command for commands in COMMANDS["tested"].values() for command in commands),
        *(command for commands in COMMANDS["not run"].values() for command in commands),
    ]
    assert len(listed) == len(set(listed)), "a command is listed twice"
    assert sorted(set(all_commands()) - set(listed)) == [], "not in documented_commands.yaml"
    assert sorted(set(listed) - set(all_commands())) == [], "no longer in the docs"


@pytest.mark.parametrize("name", COMMANDS["tested"])
def test_the_test_named_for_a_command_runs_its_program(name):
    mentioned = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom):
            mentioned |= {node.module.removesuffix(".__main__"), *(f"{node.module}.{a.name}" for a in node.names)}
        elif is_text(node):
            mentioned |= {node.value, Path(node.value).stem}
    for command in COMMANDS["tested"][name]:
        for program, _ in programs_of(command):
            assert (Path(program).stem if program.endswith(".py") else program) in mentioned, command


def test_commands_that_are_quick_run_word_for_word(tmp_path):
    commands = [command for command in COMMANDS["run"] if has_torch() or "-m training." not in command]
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "demo_output"):
            (tmp_path / entry.name).symlink_to(entry)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@functools.cache
def flags_of(program: str) -> frozenset[str]:
    """The flags that a program's help lists; of a script, those in its source."""
    if program.endswith(".py"):
        strings = (node.value for node in ast.walk(ast.parse((ROOT / program).read_text())) if is_text(node))
        return frozenset(text for text in strings if text.startswith("--"))
    try:
        source = source_of(program)
        module = importlib.import_module(f"{program}.__main__" if source.name == "__main__.py" else program)
    except ImportError as error:
        pytest.skip(str(error))
    said = io.StringIO()
    for arguments in ([], *HELP_AFTER.get(program, [])):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit, SegmentationError):
            module.main([*arguments, "--help"])
    return frozenset(re.findall(r"--[\w.-]+\w", said.getvalue().replace("_", "-")))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize(
    "program", sorted({program for command in all_commands() for program, _ in programs_of(command)})
)
def test_every_flag_of_a_command_is_in_its_help(program, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    used = {
        word.partition("=")[0]
        for command in all_commands()
        for name, arguments in programs_of(command)
        for word in arguments
        if name == program and re.match(r"--\w", word) and "--ros-args" not in arguments
    }
    if used - {"--help"}:
        known = flags_of(program)
        free = re.compile(r"--(head\.options|backbone\.config)\.\w+")
        assert {flag for flag in used if flag.replace("_", "-") not in known and not free.match(flag)} == set()


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for path in DOCUMENTS:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE):
            assert target in targets


def test_every_extra_exists():
    setup = (ROOT / "setup.py").read_text()
    for path in DOCUMENTS:
        for extras in re.findall(r"(?:dinov3_seg_ros|\.)\[([a-z,-]+)\]", path.read_text()):
            assert all(f'"{extra}"' in setup for extra in extras.split(","))


def test_every_extra_for_users_is_in_the_table_of_extras():
    section = (ROOT / "docs/install.md").read_text().partition("\n## Extras")[2].partition("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
    }
    setup = (ROOT / "setup.py").read_text().partition("extras_require={")[2].partition("\n    },")[0]
    extras = set(re.findall(r'^        "([a-z-]+)": ', setup, re.MULTILINE))
    assert listed == {extra for extra in extras if extra != "lint" and not extra.startswith("test")}


@needs_torch
def test_every_key_of_a_recipe_is_on_the_page_about_training():
    from training.recipes.schema import Augmentation, BackboneChoice, HeadChoice, NetworkInput, Recipe

    text = (ROOT / "docs/train.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`|^###.*$", prose(text), re.MULTILINE))))
    for section in (Recipe, NetworkInput, BackboneChoice, HeadChoice, Augmentation):
        assert set(section.model_fields) - named == set(), section.__name__


@needs_torch
def test_every_head_loss_optimizer_and_schedule_is_on_the_page_about_training():
    from dinov3_seg_ros.model.heads import HEADS
    from training.losses import LossSection
    from training.optimization.optimizers import OptimizerSection
    from training.optimization.schedules import ScheduleSection

    def kinds(union):
        return {kind.model_fields["name"].default: kind for kind in get_args(get_args(union)[0])}

    text = (ROOT / "docs/train.md").read_text()
    choices = {"name": HEADS, "optimizer.name": kinds(OptimizerSection), "schedule.name": kinds(ScheduleSection)}
    for key, known in choices.items():
        listed = re.search(rf"`{key}`(?: is|:) (.+?)\.\s", text, re.DOTALL)[1]
        assert set(re.findall(r"`(\w+)`", listed)) == set(known), key
    section = text.partition("### losses")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))
    assert set(rows) == set(kinds(LossSection))
    for name, kind in kinds(LossSection).items():
        assert set(kind.model_fields) - {"name", "weight"} <= set(re.findall(r"`(\w+)`", rows[name])), name


def test_every_encoding_is_on_the_page_about_the_node():
    sentence = (ROOT / "docs/node.md").read_text().partition("**Input images.**")[2].partition(". ")[0]
    assert "16-bit forms" in sentence and "all Bayer patterns in 8 and 16 bits" in sentence
    others = {name.replace("16", "8") for name in INPUT_ENCODINGS if not name.startswith("bayer_")}
    assert set(re.findall(r"`(\w+)`", sentence)) == others


def test_the_table_of_providers_says_what_they_compute(monkeypatch):
    with_bf16 = Cpu(name="a processor", architecture="x86_64", features=("avx512_bf16",))
    monkeypatch.setattr(providers, "this_cpu", lambda: with_bf16)
    section = (ROOT / "docs/accelerators.md").read_text().partition("\n## Execution providers")[2].partition("\n## ")[0]
    _, _, *lines = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    listed: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        first, devices, precisions = (cell.strip(" `") for cell in line.split("|")[1:4])
        name = first or name
        rules, kind = providers.provider(name), devices.partition(",")[0]
        listed.setdefault(name, []).append(kind)
        use, computed = providers.Use(kind), re.findall(r"\b(?:fp|bf|int)\d+\w*", precisions)
        assert set(computed) == set(rules.precisions(use)), line
        assert computed[: len(rules.automatic(use))] == list(rules.automatic(use)), line
        assert ("single frames" in devices) == (kind in rules.one_frame), line
    assert listed.pop("any other")
    assert listed == {name: list(providers.provider(name).kinds) for name in providers._CLASSES}


def test_every_launch_argument_and_parameter_exists():
    launch = "".join(path.read_text() for path in (ROOT / "launch").glob("*.py"))
    known = {*describe_options(NodeOptions), *re.findall(r'"([a-z_]+)"', launch), "class_names"}
    for command in all_commands():
        if command.startswith("ros2 launch"):
            assert set(re.findall(r"(\w+):=", command)) <= known
        assert set(re.findall(r"-p (\w+):=", command)) <= known


def test_the_table_of_topics_has_every_output_of_the_node():
    ports = pytest.importorskip("dinov3_seg_ros.ros.cameras.ports", reason="no ROS 2 here", exc_type=ImportError)
    section = (ROOT / "docs/node.md").read_text().partition("\n## Topics\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `segmentation/([\w/]+)` \|", section, re.MULTILINE)
    assert sorted(table) == sorted(ports.OUTPUTS)


@needs_torch
def test_every_data_set_and_recipe_is_named_and_exists():
    from training.data import DATASETS

    text = (ROOT / "docs/train.md").read_text()
    section = text.partition("### Published data sets")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(DATASETS) - {"auto", "folder"}
    results = (ROOT / "docs/results.md").read_text().partition("## Recipes\n")[2].partition("\n## ")[0]
    names = [path.stem for path in (ROOT / "training/recipes").glob("*.yaml")]
    listed = re.findall(r"`([a-z]\w+?)(_\.\.\.)?`", prose(results))
    for name, _ in listed:
        assert any(recipe == name or recipe.startswith(f"{name}_") for recipe in names), name
    # Such as `voc_row1_...` to `voc_row10_...`.
    series = tuple(name.rstrip("0123456789") for name, goes_on in listed if goes_on)
    assert [name for name in names if (name, "") not in listed and not name.startswith(series)] == []


@needs_torch
def test_every_format_of_labels_is_in_the_table_of_formats():
    from training.data.formats import all_formats

    section = (ROOT / "docs/data.md").read_text().partition("\n## Formats")[2].partition("\n## ")[0]
    first_table = section.partition("\n\n| `data.format` | example")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", first_table, re.MULTILINE)) == set(all_formats())


def test_every_message_that_troubleshooting_quotes_is_in_the_code():
    folders = ("dinov3_seg_ros", "training", "tools")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    text = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [message for bold in re.findall(r"\*\*(.+?)\*\*", text) for message in re.findall(r'"([^"]+)"', bold)]
    assert quoted
    for message in quoted:
        for part in message.split("..."):
            assert part.strip() in code, message


def test_troubleshooting_has_every_fault_that_a_camera_is_noted_for():
    files = ("ros/health/camera_statistics.py", "ros/cameras/camera_info.py", "ros/cameras/frame_loop.py")
    nodes = [node for name in files for node in ast.walk(ast.parse((ROOT / "dinov3_seg_ros" / name).read_text()))]
    noting = ("self.noted", "statistics.noted", "MessageError")
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in noting]
    faults = {call.args[0].value for call in calls if is_text(call.args[0])}
    assert len(faults) >= 6
    text = (ROOT / "docs/troubleshooting.md").read_text()
    assert {fault for fault in faults if f'"{fault}"' not in text} == set()


def room_of(module: str) -> str:
    """The room of a module of the package, as docs/architecture.md writes it without its ending."""
    parts = module.split(".")
    return "training" if parts[0] == "training" else parts[1] if len(parts) > 1 else "__init__"


def test_rooms_import_only_rooms_above_them_in_the_list():
    section = (ROOT / "docs/architecture.md").read_text().partition("## Which room may use which")[2]
    lines = re.findall(r"^(\d+)\. (.*)$", section, re.MULTILINE)
    level = {name: int(number) for number, line in lines for name in re.findall(r"`(\w+)(?:/|\.py)`", line)}
    entries = {path.stem for path in (ROOT / "dinov3_seg_ros").iterdir() if path.suffix in ("", ".py")}
    entries -= {"__init__", "__pycache__"}
    assert len(entries) <= 16, "too many rooms to survey; docs/architecture.md, 'A command', says where to put another"
    assert set(level) == entries | {"training"}
    for path in (ROOT / "dinov3_seg_ros").rglob("*.py"):
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "dinov3_seg_ros" else [module]
            for name in names:
                if name.split(".")[0] in ("dinov3_seg_ros", "training") and own != "__init__":
                    used = room_of(name)
                    assert used == own or level[used] < level[own], f"{path}: {name}"


def test_rooms_of_training_import_only_rooms_above_them_in_the_list():
    training = ROOT / "training"
    lines = re.findall(r"^- ([a-z, ]+):", (training / "__init__.py").read_text(), re.MULTILINE)
    level = {name: number for number, line in enumerate(lines) for name in line.split(", ")}
    assert set(level) == {path.parent.name for path in training.glob("*/__init__.py")}
    for own in level:
        for path in (training / own).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("training."):
                    used = (node.module or "").split(".")[1]
                    assert used == own or level[used] < level[own], f"{path}: {node.module}"


def test_every_name_of_the_architecture_page_is_in_the_code():
    folders = ("dinov3_seg_ros", "training", "test")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py") if path != THIS)
    names = re.findall(r"`((?:[\w.]+\.)?[A-Z]\w+(?:\.\w+)?)`", (ROOT / "docs/architecture.md").read_text())
    assert len(names) >= 8
    for name in names:
        for part in re.findall(r"[A-Z]\w+", name):
            assert re.search(rf"^\s*(?:class )?{part}\b", code, re.MULTILINE), name
