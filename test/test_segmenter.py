"""Frames in, segmentations out: with ONNX Runtime, on tiny bundles that hold nothing but graphs."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from exported_bundles import write_exported_bundle
from graphs import write_graphs
from robot_part import has_torch

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import onnxruntime

import dinov3_seg_ros
from dinov3_seg_ros import decode
from dinov3_seg_ros.benchmark import choosing
from dinov3_seg_ros.benchmark.__main__ import main
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import find_graphs
from dinov3_seg_ros.options import GEOMETRIES, RUNTIME_NAMES, ComputeOptions
from dinov3_seg_ros.runtimes import measured
from dinov3_seg_ros.runtimes.choice import RUNTIMES
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.segmenter import Segmenter, limit_threads
from dinov3_seg_ros.support.errors import ImageError, ParameterError, RuntimeFailedError, RuntimeUnavailableError
from dinov3_seg_ros.support.option_checks import parse_mask_size


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "further"
    return write_exported_bundle(folder, name="further", num_classes=300, seed=4)


def picture(height=120, width=200, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.repeat(np.repeat(small, -(-height // 5), axis=0), -(-width // 6), axis=1)[:height, :width].copy()


def test_a_start_without_a_measurement_says_how_to_measure(bundle, caplog):
    with caplog.at_level("INFO", "dinov3_seg_ros"):
        Segmenter.from_bundle(bundle.path).close()
    assert f"python -m dinov3_seg_ros.benchmark {bundle.path} --choose" in caplog.text


def test_onnx_runtime_reports_nothing_to_its_makers(bundle, tmp_path):
    program = "import sys; from dinov3_seg_ros import Segmenter; Segmenter.from_bundle(sys.argv[1]).close()"
    # ONNX Runtime reports nothing where CI is set. Whoever reports gets an identity in the home first.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    subprocess.run([sys.executable, "-c", program, bundle.path], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threads": 2, "max_batch": 3, "network_size": (64, 96), "cuda_graphs": False},
        {"providers": ("CPUExecutionProvider",), "geometry": "native", "precision": "fp32"},
    ],
)
def test_the_command_that_a_start_names_measures_what_it_asks_for(
    bundle, further, options, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", lambda *_: 1.0)
    with caplog.at_level("INFO", "dinov3_seg_ros"):
        Segmenter.from_bundle([bundle.path, further.path], **options).close()
    (said,) = [message for message in caplog.messages if "python -m" in message]
    assert main(shlex.split(said.split("dinov3_seg_ros.benchmark ")[1])) == 0
    reason = Segmenter.from_bundle([bundle.path, further.path], **options).runtime_reason
    limit_threads(0)
    assert "was measured to be the best here" in reason


@pytest.mark.parametrize(
    "change", ["another GPU", "other visible GPUs", "another module", "another Jetson Linux", "fewer cores"]
)
def test_a_choice_holds_only_for_the_machine_that_it_was_measured_on(bundle, change, tmp_path, monkeypatch, caplog):
    information = tmp_path / "nvidia" / "gpus" / "0000:01:00.0" / "information"
    information.parent.mkdir(parents=True)
    (tmp_path / "nvidia" / "version").write_text("NVRM version: 580.1\n")
    information.write_text("Model: \t\t NVIDIA RTX A4000\nIRQ:   \t\t 140\n")
    monkeypatch.setattr(measured, "_NVIDIA", tmp_path / "nvidia")
    jetson = {"_MODEL": "NVIDIA Jetson AGX Orin\0", "_TEGRA_RELEASE": "# R36 (release), REVISION: 4.3\n"}
    for name, text in jetson.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(measured, name, tmp_path / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(measured, "time_pass", lambda *_: 1.0)
    assert main([str(bundle.path), "--choose"]) == 0
    assert "was measured" in Segmenter.from_bundle(bundle.path).runtime_reason
    match change:
        case "another GPU":
            information.write_text(information.read_text().replace("A4000", "A2000"))
        case "other visible GPUs":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        case "another module":  # of which CUDA says no more than "Orin"
            (tmp_path / "_MODEL").write_text("NVIDIA Jetson Orin NX\0")
        case "fewer cores":
            monkeypatch.setattr(measured, "usable_cores", lambda: 1000)
        case _:
            (tmp_path / "_TEGRA_RELEASE").write_text("# R36 (release), REVISION: 5.0\n")
    assert "was measured" not in Segmenter.from_bundle(bundle.path).runtime_reason
    assert "was measured on another machine" in caplog.text


OWN = (64, 96)


@pytest.mark.parametrize(
    ("fp32", "int8", "timed_at", "refused"),
    [
        ([(32, 32), OWN], [OWN], OWN, []),
        ([(32, 32), (64, 64), (96, 96)], [(32, 32), (64, 64)], (64, 64), []),
        ([OWN], [(32, 32)], OWN, ["int8"]),
    ],
)
def test_all_candidates_are_timed_at_one_size_in_batches(fp32, int8, timed_at, refused, tmp_path, monkeypatch):
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=OWN)
    shutil.rmtree(bundle.path / "onnx")
    for precision, sizes in {"fp32": fp32, "int8": int8}.items():
        for size in sizes:
            write_graphs(bundle, precision, size=size)
    timed = set()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", lambda _, size, count, *__: timed.add((size, count)) or 1.0)
    options = ComputeOptions(runtime="onnx", device="cpu", geometry="native", max_batch=3)
    choice = choosing.choose([bundle.path], options)
    assert timed == {(timed_at, 3)}
    problems = {figure.label.split(", ")[-1]: figure.problem for figure in choice.figures if figure.problem}
    assert list(problems) == refused
    assert all("no export for 64x96" in problem and "only for 32x32" in problem for problem in problems.values())


def test_what_an_interrupted_pip_leaves_is_no_release(tmp_path, monkeypatch):
    left = tmp_path / "~nnxruntime-1.0.dist-info"
    left.mkdir()
    (left / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-odd\nVersion: 1.0\n")
    before = measured.machine()
    monkeypatch.syspath_prepend(tmp_path)
    assert measured.machine() == before
    assert "onnxruntime" in before["releases"]


def test_exports_that_only_a_measurement_takes_are_measured_too(tmp_path, monkeypatch):
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=OWN)
    shutil.rmtree(bundle.path / "onnx")
    write_graphs(bundle, "int8_qdq", size=OWN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", lambda *_: 1.0)
    asked = {"runtime": "onnx", "device": "cpu"}
    with pytest.raises(RuntimeUnavailableError, match=r"int8_qdq.* name its precision.* or measure it: python -m"):
        Segmenter.from_bundle(bundle.path, **asked)
    assert choosing.choose([bundle.path], ComputeOptions(**asked)).label.endswith("int8_qdq")
    assert "int8_qdq" in Segmenter.from_bundle(bundle.path, **asked).runtime.description


def test_those_that_are_nearly_equal_are_timed_again_in_turn(tmp_path, monkeypatch):
    """As on a processor that clocks lower and lower: what is timed first is favoured, but not the second time."""
    calls, ms = [], {"int8": 10.0, "fp32": 9.5, "fp16": 13.5}

    def time_pass(runtime, *_):
        calls.append(runtime.description.split(", ")[-1])
        return ms[calls[-1]] * (1 + 0.05 * len(calls))

    bundle = write_exported_bundle(tmp_path / "tiny", network_size=OWN)
    for precision in ("int8", "fp16"):
        write_graphs(bundle, precision, size=OWN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", time_pass)
    choice = choosing.choose([bundle.path], ComputeOptions(runtime="onnx", device="cpu"))
    assert calls == ["int8", "fp32", "fp16", "int8", "fp32", "fp32", "int8"]
    assert choice.label.endswith("fp32")


def test_what_fails_when_it_is_timed_again_is_not_chosen(tmp_path, monkeypatch):
    calls = []

    def time_pass(runtime, *_):
        calls.append(runtime.description.split(", ")[-1])
        if calls.count("fp32") == 2 and calls[-1] == "fp32":
            raise RuntimeFailedError("out of memory")
        return {"int8": 10.0, "fp32": 9.0}[calls[-1]]

    bundle = write_exported_bundle(tmp_path / "tiny", network_size=OWN)
    write_graphs(bundle, "int8", size=OWN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", time_pass)
    choice = choosing.choose([bundle.path], ComputeOptions(runtime="onnx", device="cpu"))
    assert choice.label.endswith("int8")
    assert [figure.problem for figure in choice.figures if figure.label.endswith("fp32")] == ["out of memory"]
    lines = choosing.table(choice).splitlines()
    assert lines[0].startswith(choice.label), "the fastest comes first"
    assert "memory was lacking; once there is more, run this again" in lines[-1]


def test_a_pass_is_timed_with_its_decode_once_the_clock_has_settled(bundle, monkeypatch):
    runtime, passes, decoded = Segmenter.from_bundle(bundle.path).runtime, [], []
    start, upsample_argmax = runtime.start, decode.upsample_argmax

    def slow(logits, size):
        decoded.append((len(logits), size))
        time.sleep(0.02)
        return upsample_argmax(logits, size)

    monkeypatch.setattr(runtime, "start", lambda *arguments: passes.append(time.perf_counter()) or start(*arguments))
    monkeypatch.setattr(decode, "upsample_argmax", slow)
    for name, seconds in {"_WARM_UP_S": 0.3, "_TIMED_S": 0.5}.items():
        monkeypatch.setattr(measured, name, seconds)
    assert measured.time_pass(runtime, OWN, 2, ["tiny"]) >= 40
    assert set(decoded) == {(1, OWN)} and len(decoded) == 2 * len(passes), "frame by frame, as in the node"
    assert passes[-1] - passes[0] > 0.6


def test_a_choice_for_several_bundles_holds_in_any_order(bundle, further, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "time_pass", lambda *_: 1.0)
    assert main([str(bundle.path), str(further.path), "--choose"]) == 0
    for paths in ([bundle.path, further.path], [further.path, bundle.path]):
        assert "was measured to be the best here" in Segmenter.from_bundle(paths).runtime_reason
    assert "was measured" not in Segmenter.from_bundle(further.path).runtime_reason, "another question"


def test_bundles_without_exports_have_choices_of_their_own(own_cache, bundle, further, tmp_path):
    one, other = (load_bundle(shutil.copytree(each.path, tmp_path / each.path.name)) for each in (bundle, further))
    for each in (one, other):
        shutil.rmtree(each.path / "onnx")
    measured.keep([one], ComputeOptions(), "torch, cpu, fp32", [])
    assert measured.kept([one], ComputeOptions()) is not None
    assert measured.kept([other], ComputeOptions()) is None


def test_a_cache_folder_that_is_a_file_holds_no_choice_and_no_warning(bundle, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.path / "bundle.json"))
    with caplog.at_level("INFO", "dinov3_seg_ros"):
        Segmenter.from_bundle(bundle.path).close()
    assert "has not been measured" in caplog.text and "cannot be read" not in caplog.text


def test_labels_are_those_of_the_graphs_logits(bundle):
    rgb = picture(64, 96)
    (folder,) = (bundle.path / "onnx").iterdir()
    backbone, head = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("backbone", "head"))
    names = [output.name for output in backbone.get_outputs()]
    maps = dict(zip(names, backbone.run(names, {"canvases": rgb[None]}), strict=True))
    (logits,) = head.run(None, maps)
    labels, confidence = decode.upsample_argmax_confidence(logits, (64, 96))
    result = Segmenter.from_bundle(bundle.path).segment([rgb])[0]
    assert len(np.unique(labels)) > 1
    assert (result.labels == labels[0]).mean() > 0.9995
    assert np.abs(result.confidence.astype(int) - confidence[0]).max() <= 1
    assert (result.labels.dtype, result.confidence.dtype) == (np.uint8, np.uint8)


def test_labels_that_were_handed_out_stay_when_confidence_is_read(bundle):
    result = Segmenter.from_bundle(bundle.path).segment([picture()])[0]
    labels = result.labels
    labels[result.confidence < 256] = 255
    assert result.labels is labels and np.all(labels == 255)


def test_several_heads_have_the_labels_of_each_alone(bundle, further):
    segmenter = Segmenter.from_bundle([bundle.path, further.path])
    result = segmenter.segment([picture()])[0]
    assert list(result.heads) == ["tiny", "further"]
    for single in (bundle, further):
        expected = Segmenter.from_bundle(single.path).segment([picture()])[0].labels
        assert np.array_equal(result.heads[single.manifest.name].labels, expected)
    assert result.heads["further"].labels.dtype == np.uint16
    assert list(segmenter.segment([picture()], heads=["further"])[0].heads) == ["further"]


def test_images_heads_and_sizes_that_cannot_be_used_are_refused_before_anything_is_computed(bundle):
    segmenter = Segmenter.from_bundle(bundle.path)
    with pytest.raises(ImageError, match="uint8 RGB"):
        segmenter.start([np.zeros((4, 4, 3))])
    with pytest.raises(ImageError, match=r"give a list of images, such as segment\(\[image\]\)"):
        segmenter.start(picture())
    assert len(segmenter.segment(np.stack([picture(), picture()]))) == 2
    with pytest.raises(ParameterError, match="no head 'depth'"):
        segmenter.start([picture()], heads=["depth"])
    with pytest.raises(ParameterError, match="name some of tiny, or leave heads out"):
        segmenter.start([picture()], heads=[])
    for size in ("large", 240, None, (10.7, 20.2), (0, 4), (4,), ("a", "b"), {4}):
        with pytest.raises(ParameterError, match="mask size"):
            segmenter.start([picture()], size=size)
    with pytest.raises(ParameterError, match=r"no graph for network size \(96, 96\); it has: 64x96"):
        Segmenter([bundle], segmenter.runtime, network_size=(96, 96))


def test_exports_that_lack_a_layer_of_another_bundle_are_not_used(bundle, further):
    backbone = further.manifest.backbone.model_copy(update={"layers": [0, 1, 2]})
    other = replace(further, manifest=further.manifest.model_copy(update={"backbone": backbone}))
    with pytest.raises(RuntimeUnavailableError, match="has no exported graphs of fp32"):
        find_graphs([bundle, other], ["fp32"], None, asked=True)


def test_a_size_that_was_not_exported_is_refused_with_the_command(bundle):
    with pytest.raises(RuntimeUnavailableError, match=r"python -m dinov3_seg_ros\.export"):
        Segmenter.from_bundle(bundle.path, "onnx", network_size=(96, 96))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_labels_line_up_with_the_frame_in_every_geometry(bundle, geometry):
    segmenter = Segmenter.from_bundle(bundle.path, geometry=geometry)
    result = segmenter.segment([picture(130, 70)])[0]
    assert result.labels.shape == result.confidence.shape == (130, 70)


def test_letterbox_labels_leave_out_the_padding(bundle):
    rgb = picture(64, 40)
    letterboxed = Segmenter.from_bundle(bundle.path, geometry="letterbox").segment([rgb])[0].labels
    canvas = np.empty((64, 96, 3), np.uint8)
    canvas[:] = np.rint(255 * np.array(bundle.manifest.input.mean))
    canvas[:, 28:68] = rgb
    whole = Segmenter.from_bundle(bundle.path, geometry="stretch").segment([canvas])[0].labels
    assert np.array_equal(letterboxed, whole[:, 28:68])


def test_frames_of_mixed_sizes_come_back_in_order(bundle):
    frames = [picture(64, 96, 0), picture(50, 50, 1), picture(64, 96, 2), picture(200, 100, 3)]
    alone = [Segmenter.from_bundle(bundle.path, geometry="native").segment([frame])[0].labels for frame in frames]
    together = Segmenter.from_bundle(bundle.path, geometry="native", max_batch=4).segment(frames)
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.labels.shape
        assert (one == other.labels).mean() > 0.999


@pytest.mark.parametrize(
    ("size", "expected"), [("source", (120, 200)), ("network", (58, 96)), (np.array([30, 40]), (30, 40))]
)
def test_labels_have_the_size_asked_for(bundle, size, expected):
    assert Segmenter.from_bundle(bundle.path).segment([picture()], size=size)[0].labels.shape == expected


def test_a_segmenter_is_closed_at_the_end_of_its_block_and_says_so(bundle):
    with Segmenter.from_bundle(bundle.path) as segmenter:
        result = segmenter.segment([picture()])[0]
    assert result.labels.shape == (120, 200), "what was computed can still be decoded"
    with pytest.raises(RuntimeUnavailableError, match=r"is closed; make another with Segmenter\.from_bundle"):
        segmenter.segment([picture()])


def test_a_runtime_is_closed_where_the_network_size_does_not_fit(bundle, monkeypatch):
    closed, close = [], OnnxRuntime.close
    monkeypatch.setattr(OnnxRuntime, "close", lambda self: closed.append(self) or close(self))
    with pytest.raises(ParameterError, match="does not fit the backbone"):
        Segmenter.from_bundle(bundle.path, "onnx", geometry="native", network_size=(65, 97))
    assert len(closed) == 1


def test_no_pass_has_more_frames_than_max_batch(bundle, monkeypatch):
    segmenter = Segmenter.from_bundle(bundle.path, max_batch=2)
    start, frames = segmenter.runtime.start, []
    monkeypatch.setattr(segmenter.runtime, "start", lambda *given: frames.append(len(given[0])) or start(*given))
    pictures = [picture(seed=seed) for seed in range(5)]
    found = segmenter.segment(pictures)
    assert frames == [2, 2, 1]
    for one, each in zip(found, pictures, strict=True):
        assert np.array_equal(one.labels, segmenter.segment([each])[0].labels)


def test_the_longest_pass_of_the_warm_up_is_remembered(tmp_path, monkeypatch):
    """The node takes it for the time that a frame may need: of several sizes, the first may be the slowest."""
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(32, 64), geometry="native")
    write_graphs(bundle, size=(64, 32))
    segmenter = Segmenter.from_bundle(bundle.path)
    start, sizes = segmenter.runtime.start, []

    def slow_at_first(canvases, heads):
        time.sleep(0 if sizes else 0.2)
        sizes.append(canvases.shape[1:3])
        return start(canvases, heads)

    monkeypatch.setattr(segmenter.runtime, "start", slow_at_first)
    segmenter.warm_up()
    assert sorted(sizes) == [(32, 64), (64, 32)]
    assert segmenter.warm_up_s >= 0.2


def test_every_stage_is_timed(bundle):
    segmenter = Segmenter.from_bundle(bundle.path)
    assert segmenter.segment([picture()])[0].labels.shape == (120, 200)
    summary = segmenter.times.summary_ms()
    assert list(summary) == ["preprocess", "backbone", "heads", "decode"]
    assert all(0 < stage["median"] <= stage["p95"] for stage in summary.values())


def imported_of(libraries, statement):
    """Those of the libraries that a new interpreter has imported after a statement."""
    code = f"import sys\n{statement}\nprint([name for name in {libraries!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return ast.literal_eval(result.stdout)


def test_importing_the_robots_side_imports_neither_torch_nor_training():
    modules = [
        "bundle.loading", "bundle.onnx_folder", "decode", "doctor", "frames.overlay", "options", "ros.cameras.messages",
        "ros.transport", "ros.cameras.worker", "runtimes.choice", "segmenter",
    ]  # fmt: skip
    libraries = ["torch", "transformers", "training", "matplotlib", "rclpy"]
    assert imported_of(libraries, f"import {', '.join(f'dinov3_seg_ros.{module}' for module in modules)}") == []


def test_importing_the_package_alone_imports_no_heavy_library():
    libraries = ["torch", "transformers", "onnxruntime", "rclpy", "cv2", "numba", "numpy", "training"]
    assert imported_of(libraries, "import dinov3_seg_ros; dir(dinov3_seg_ros)") == []


def test_the_public_names_are_loaded_from_the_package(bundle):
    light, of_torch = ["Segmenter", "load_bundle", "upsample_argmax"], ["build_head", "load_backbone"]
    assert dinov3_seg_ros.__all__ == sorted(light + of_torch * has_torch())
    assert all(callable(getattr(dinov3_seg_ros, name)) for name in dinov3_seg_ros.__all__)
    labels = dinov3_seg_ros.Segmenter.from_bundle(bundle.path).segment([picture()])[0].labels
    assert labels.shape == (120, 200)


def test_without_torch_the_package_gives_the_other_names_and_tells_the_extra():
    program = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from dinov3_seg_ros import *
import dinov3_seg_ros, pydoc
print(pydoc.render_doc(dinov3_seg_ros, renderer=pydoc.plaintext), Segmenter, load_bundle, upsample_argmax)
from dinov3_seg_ros import build_head
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "class Segmenter" in result.stdout and "build_head(" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("ImportError: build_head needs torch: pip install")
    assert "[torch]'" in result.stderr


def test_every_runtime_is_an_option_and_every_option_a_runtime():
    assert sorted(["auto", *RUNTIMES]) == sorted(RUNTIME_NAMES)


@pytest.mark.parametrize(
    "text", ["", "x", "0x4", "64", "64x", "-4x4", "1e3x4", "64x48x3", "99999x99999", 5000 * "9" + "x1"]
)
def test_an_unreadable_mask_size_is_refused(text):
    with pytest.raises(ParameterError, match="use source, network or WIDTHxHEIGHT"):
        parse_mask_size(text)
