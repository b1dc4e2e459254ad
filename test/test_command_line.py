"""Every command starts alike: help, options anywhere on the line, one error line, exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from robot_part import ROOT, has_torch

from dinov3_seg_ros.options import ComputeOptions, NodeOptions, PublishOptions
from dinov3_seg_ros.support.command_line import (
    CommandParser,
    UsageError,
    add_flags,
    duration,
    read_flags,
    run_command,
    share,
    whole_number,
)
from dinov3_seg_ros.support.errors import BundleError
from dinov3_seg_ros.support.files import locked
from dinov3_seg_ros.support.option_model import describe_options

PACKAGES = sorted(path.parent.name for path in (ROOT / "dinov3_seg_ros").glob("*/__main__.py"))
TRAINING = sorted(path.stem for path in (ROOT / "training").glob("*.py") if "\nif __name__ ==" in path.read_text())
COMMANDS = [
    *(f"dinov3_seg_ros.{name}" for name in (*PACKAGES, "demo.player")),
    *(f"training.{name}" for name in TRAINING),
]
WITHOUT_ARGUMENTS = ("dinov3_seg_ros.demo", "dinov3_seg_ros.demo.player", "dinov3_seg_ros.doctor")


def main_of(name):
    """The main function of a command; skips what needs a library that is not installed."""
    if ".demo" in name:
        pytest.importorskip("rclpy", reason="no ROS 2 here")
    if name.startswith("training."):
        pytest.importorskip("torch", reason="training needs PyTorch")
    package = name.removeprefix("dinov3_seg_ros.") in PACKAGES
    return importlib.import_module(f"{name}.__main__" if package else name).main


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["something", "--help", "--flag"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_anywhere_prints_usage_and_all_options(name, words, capsys):
    assert main_of(name)(words) == 0
    said = capsys.readouterr()
    assert f"usage: python -m {name}" in said.out
    assert "--help" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("check_dataset", "rich"),
        pytest.param("train", "pydantic", marks=pytest.mark.skipif(not has_torch(), reason="torch is missed first")),
        pytest.param(
            "import_head", "torch", marks=pytest.mark.skipif(not has_torch(), reason="others are missed first")
        ),
    ],
)
def test_a_command_of_training_names_the_extra_that_is_not_installed(name, absent, tmp_path):
    ended = run_with_library(name, absent, f"raise ModuleNotFoundError('absent', name='{absent}')", tmp_path)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith(f"{name}: error: {sys.prefix} has no {absent}; training needs the extra train: ")


def test_ctrl_c_while_a_command_of_training_imports_its_libraries_is_one_line(tmp_path):
    ended = run_with_library("check_dataset", "rich", "raise KeyboardInterrupt", tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "check_dataset: interrupted\n")


@pytest.mark.parametrize(
    ("names", "heavy"),
    [
        ("select, push, import_head", {"torch", "transformers", "accelerate", "matplotlib"}),
        ("train, evaluate, cache_features", {"transformers", "accelerate", "matplotlib"}),
    ],
)
def test_help_waits_for_no_library_that_it_does_not_need(names, heavy):
    pytest.importorskip("torch", reason="training needs PyTorch")
    code = f"import sys; from training import {names}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy.intersection(ended.stdout.split())


def run_with_library(name: str, library: str, source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of training with a library whose source this is."""
    (folder / f"{library}.py").write_text(source)
    command = [sys.executable, "-m", f"training.{name}", "weights.pth", "names.txt", "--output", "bundle"]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT_ARGUMENTS])
def test_no_arguments_print_the_help(name, capsys):
    assert main_of(name)([]) == 0
    assert f"usage: python -m {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_and_exit_code_2(name, capsys):
    assert main_of(name)(["--no-such-option"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{name.rpartition('.')[2]}: error: unknown option --no-such-option")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_is_not_in_utf_8_is_refused_at_once(name, tmp_path, capsys):
    assert main_of(name)([str(tmp_path), f"--output={tmp_path}/caf\udce9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{name.rpartition('.')[2]}: error: --output={tmp_path}/caf\\udce9 is not in UTF-8")
    assert len(said.splitlines()) == 1


def parser():
    made = CommandParser("package.try", "Try something.")
    made.add_argument("source")
    made.add_argument("target")
    made.add_argument("--topics", nargs="+", default=[])
    made.add_argument("--size", nargs=2, type=whole_number(1))
    made.add_argument("--rate", type=float, default=1.0)
    made.add_argument("--parts", type=whole_number(2, 20))
    made.add_argument("--least", type=share)
    made.add_argument("--loop", action="store_true")
    return made


@pytest.mark.parametrize(
    "line",
    [
        "in out --topics a b --size 3 4 --loop",
        "--loop in --size 3 4 out --topics a b",
        "--size 3 4 in --topics a b --loop out",
        "--loop --size 3 4 --topics a b in out",
        "--size=3 4 --topics=a b in out --loop",
        "--topics a b in out --size 3 4 --loop",
    ],
)
def test_options_may_stand_anywhere(line):
    found = parser().parse_command(line.split())
    assert (found.source, found.target) == ("in", "out")
    assert (found.topics, found.size, found.loop) == (["a", "b"], [3, 4], True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("in out --sise 3 4", "unknown option --sise (did you mean '--size'?)"),
        ("in out --size 3", "--size: expected 2 arguments"),
        ("in out --size 0 4", "'0' is not a whole number of at least 1"),
        ("in out --parts 25", "--parts: '25' is not a whole number from 2 to 20"),
        ("in out --least nan", "--least: 'nan' is no share; write a number from 0 to 1"),
        ("in out --least 95", "--least: '95' is no share"),
        ("in out --rate fast", "--rate: invalid float value: 'fast'"),
        ("in", "required: target"),
        ("in out more", "unrecognized arguments: more"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(line, message):
    with pytest.raises(UsageError) as error:
        parser().parse_command(line.split())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        *((share, "0", 0.0), (share, "1", 1.0), (whole_number(2, 20), "2", 2), (whole_number(2, 20), "20", 20)),
        *((duration, "200ms", 200_000_000), (duration, "0.5s", 500_000_000), (duration, "2min", 120_000_000_000)),
    ],
)
def test_a_value_is_read_up_to_its_bounds_and_in_every_unit(read, text, value):
    assert read(text) == value


def test_a_word_for_a_command_without_arguments_is_named_alone():
    with pytest.raises(UsageError, match=r"^unrecognized arguments: more;"):
        CommandParser("package.try", "Try something.").parse_command(["more"])


def fail(error):
    def work(words):
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (lambda words: None, 0, ""),
        (lambda words: 1, 1, ""),
        (fail(BundleError("no folder\n  here")), 1, "try: error: no folder here\n"),
        (fail(UsageError("what?")), 2, "try: error: what?\n"),
        (
            fail(OSError(28, "No space left on device", "a.png")),
            1,
            "try: error: [Errno 28] No space left on device: 'a",
        ),
        (fail(KeyboardInterrupt()), 130, "try: interrupted; nothing was written\n"),
    ],
)
def test_the_exit_code_says_how_a_command_ended(work, code, said, capsys):
    assert run_command(parser(), work, ["in", "out"], "nothing was written") == code
    assert capsys.readouterr().err.startswith(said)


@pytest.fixture
def own_handlers():
    """A test may change what the process does on signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_to_end_interrupts_a_command_and_the_next_leave_its_clearing_up_alone(number, capsys):
    cleared_up = False

    def work(words):
        nonlocal cleared_up
        assert signal.getsignal(number) is not signal.SIG_DFL
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleared_up = True

    assert run_command(parser(), work, ["in", "out"]) == 130
    assert capsys.readouterr().err == "try: interrupted\n"
    assert cleared_up


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None])
def test_a_command_leaves_other_handlers_of_signals_as_they_are(handler):
    def work(words):
        if handler is not signal.SIG_DFL:  # such as SIGHUP under nohup
            signal.raise_signal(signal.SIGHUP)

    signal.signal(signal.SIGHUP, handler)
    assert run_command(parser(), work, ["in", "out"]) == 0
    assert signal.getsignal(signal.SIGHUP) is handler


def test_a_reader_that_has_seen_enough_is_no_error():
    work = "lambda words: print('a line\\n' * 10_000)"
    program = f"from dinov3_seg_ros.support.command_line import *; run_command(CommandParser('a.b', 'C.'), {work}, [])"
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout.readline() == b"a line\n"
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 0


def flags(model, *words):
    made = CommandParser("package.try", "Try something.")
    add_flags(made, model)
    return read_flags(model, made.parse_command(words))


@pytest.mark.parametrize("model", [ComputeOptions, PublishOptions, NodeOptions])
def test_without_flags_every_option_has_its_default(model):
    assert flags(model) == model()


def test_flags_reach_options_of_every_kind():
    computing = "--runtime onnx --threads 3 --network-size 64 96 --no-cuda-graphs"
    publishing = "--confidence-threshold 0.25 --overlay-names --mask-size 64x48"
    providers = "--providers CUDAExecutionProvider CPUExecutionProvider"
    found = flags(NodeOptions, *f"{computing} {providers} {publishing}".split())
    assert (found.runtime, found.threads, found.network_size) == ("onnx", 3, (64, 96))
    assert (found.confidence_threshold, found.overlay_names, found.cuda_graphs) == (0.25, True, False)
    assert found.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert found.mask_size == "64x48"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--runtime nothing", "argument --runtime: invalid choice: 'nothing'"),
        ("--threads -1", "--threads is -1; use a whole number from 0 to 1024"),
        ("--device gpu0", "--device is 'gpu0'; use auto, cpu, cuda, gpu, npu, or cuda:N"),
        ("--network-size 0 64", "--network-size is (0, 64); use two positive whole numbers"),
        ("--providers CPU", "--providers holds 'CPU'"),
        ("--runtime tensorrt --providers CPUExecutionProvider", "--providers are ONNX Runtime's, but"),
        ("--mask-size huge", "--mask-size is 'huge'"),
        ("--overlay-alpha 2", "--overlay-alpha is 2.0; use a number from 0 to 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_flag(line, message):
    with pytest.raises(UsageError) as error:
        flags(NodeOptions, *line.split())
    assert str(error.value).startswith(message)


def test_the_help_describes_every_option_with_its_default(capsys):
    made = CommandParser("package.try", "Try something.")
    add_flags(made, ComputeOptions, leave_out=["threads"])
    made.print_help()
    words = " ".join(capsys.readouterr().out.split())
    for option in describe_options(ComputeOptions).values():
        assert (option.description in words) == (option.name != "threads"), option.name
    assert "(default: auto)" in words and "(default: true)" in words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinov3_seg_ros.bag", ["extract", "IN", "IN/out"]),
        ("training.distill", ["IN", "--bundle", "demo", "--output", "IN/out"]),
        ("training.distill", ["OTHER", "--bundle", "demo", "--labelled", "OTHER", "IN", "--output", "IN/out"]),
        ("training.export_masks", ["IN", "--output", "IN/out"]),
        ("training.predict", ["demo", "IN", "--output", "IN/out"]),
        ("training.predict", ["demo", "IN", "--output", "IN/out", "--cluster", "auto"]),
        ("training.pre_label", ["IN", "--bundle", "demo", "--output", "IN/out"]),
        ("training.select", ["IN", "--bundle", "demo", "--count", "1", "--output", "IN/out"]),
        ("training.select", ["OTHER", "--bundle", "demo", "--count", "1", "--target", "IN", "--output", "IN/out"]),
        ("training.select", ["OTHER", "--bundle", "demo", "--count", "1", "--labelled", "IN", "--output", "IN/out"]),
    ],
)
def test_outputs_in_the_folder_that_is_read_are_refused(name, words, tmp_path, monkeypatch, capsys):
    main = main_of(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IN").mkdir()
    assert main(words) == 1
    assert "IN/out lies in IN, so the next run would read what this one writes" in capsys.readouterr().err
    assert list((tmp_path / "IN").iterdir()) == []


WRITE_A_FOLDER = [
    ("predict", "demo IMAGES --output OUT"),
    ("pre_label", "IMAGES --bundle demo --output OUT"),
    ("distill", "IMAGES --bundle demo --output OUT"),
    ("select", "IMAGES --bundle demo --count 1 --output OUT"),
    ("export_masks", "IMAGES --output OUT"),
    ("evaluate", "demo --report OUT"),
    ("calibrate", "demo --output OUT"),
    ("import_head", "head.pth names.txt --output OUT"),
    ("export_head", "demo --format dinov3_ros --output OUT"),
]


@pytest.mark.parametrize(("name", "line"), WRITE_A_FOLDER)
def test_two_commands_do_not_write_to_one_folder(name, line, tmp_path, capsys):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    output.mkdir()
    words = line.replace("IMAGES", str(images)).replace("OUT", str(output)).split()
    with locked(output):
        assert main_of(f"training.{name}")(words) == 1
    assert f"another process writes to {output}; wait for its end" in capsys.readouterr().err
    assert not list(output.iterdir())


@pytest.mark.parametrize(("name", "line"), WRITE_A_FOLDER[:5])
def test_a_command_that_fails_leaves_no_new_folder(name, line, tmp_path):
    images, output = tmp_path / "images", tmp_path / "new" / "out"
    images.mkdir()
    words = line.replace("IMAGES", str(images)).replace("OUT", str(output)).split()
    assert main_of(f"training.{name}")(words) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
