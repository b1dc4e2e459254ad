"""Execution providers that are packages of their own: OpenVINO on the CPU, really run."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import types

import numpy as np
import onnxruntime
import pytest
from exported_bundles import write_exported_bundle
from graphs import write_graphs
from openvino_plugin import NAME, loaded

from dinov3_seg_ros.benchmark import choosing
from dinov3_seg_ros.benchmark.__main__ import main
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import HEAD_GRAPH, find_exports
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import measured
from dinov3_seg_ros.runtimes.choice import choose
from dinov3_seg_ros.runtimes.onnx import caches, plugins, providers, runtime, session, targets
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support import cpu
from dinov3_seg_ros.support.cpu import Cpu, this_cpu
from dinov3_seg_ros.support.errors import ParameterError, RuntimeUnavailableError
from dinov3_seg_ros.support.files import sha256_of_file, write_json

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module", autouse=True)
def openvino(tmp_path_factory):
    with loaded(tmp_path_factory.mktemp("openvino")):
        yield


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store of compiled graphs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "dinov3_seg_ros" / "graphs"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def copy(bundle, tmp_path):
    return load_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))


def picture(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.repeat(np.repeat(small, 16, axis=0), 20, axis=1)


def opened(bundle, precision="fp32", **options):
    return Segmenter.from_bundle(bundle.path, "onnx", providers=[NAME], precision=precision, **options)


def expected(bundle):
    return Segmenter.from_bundle(bundle.path, "onnx", providers=[CPU], precision="fp32").segment([picture()])[0].labels


def with_features(monkeypatch, *features):
    processor = Cpu(name="a processor", architecture="x86_64", features=features)
    for module in (cpu, providers, session):
        monkeypatch.setattr(module, "this_cpu", lambda: processor)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_openvino_gives_the_labels_of_onnx_runtimes_own_provider(bundle, precision):
    segmenter = opened(bundle, precision)
    assert f"{NAME} on cpu" in segmenter.runtime.description
    assert segmenter.runtime.device == "cpu"
    found = segmenter.segment([picture()])[0].labels
    assert len(np.unique(found)) > 1
    assert (found == expected(bundle)).mean() > (0.9995 if precision == "fp32" else 0.97)


def test_batches_of_every_size_run(bundle):
    segmenter = opened(bundle, max_batch=3)
    for count in (3, 1, 2):
        results = segmenter.segment([picture()] * count)
        assert all((result.labels == expected(bundle)).mean() > 0.9995 for result in results)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_bf16_is_a_hint_with_the_float32_export(has_bf16):
    listed = {"OPTIMIZATION_CAPABILITIES": "FP32 BF16 INT8" if has_bf16 else "FP32 INT8"}
    rules, use = providers.provider(NAME), providers.Use("cpu", precision="bf16", threads=3, listed=listed)
    assert rules.precisions(use)["bf16"] == "fp32"
    config = rules.options(use)["load_config"]
    assert f'"INFERENCE_PRECISION_HINT": "{"bf16" if has_bf16 else "f32"}"' in config
    assert '"INFERENCE_NUM_THREADS": "3"' in config and '"NUM_STREAMS": "1"' in config
    assert ("computed in fp32" in rules.remark(use)) != has_bf16


@pytest.mark.parametrize(
    ("kind", "precision", "of_heads"),
    [("cpu", "bf16", "fp32"), ("cpu", "int8_qdq", "fp32"), ("cpu", "fp16", "fp16"), ("gpu", "int8_qdq", "int8_qdq")],
)
def test_heads_are_computed_in_float32_where_bf16_would_round_their_logits(kind, precision, of_heads):
    assert providers.provider(NAME).for_heads(providers.Use(kind, precision=precision)) == of_heads
    assert providers.provider(CPU).for_heads(providers.Use(kind, precision=precision)) == precision


@pytest.mark.parametrize(("quota", "threads"), [(2, "2"), (None, None)])
def test_openvino_gets_no_more_threads_than_a_cpu_quota_allows(quota, threads, cores):
    cores(6, quota)
    config = json.loads(providers.provider(NAME).options(providers.Use("cpu"))["load_config"])
    assert config["CPU"].get("INFERENCE_NUM_THREADS") == threads


@pytest.mark.parametrize(("features", "first"), [(("amx_bf16",), "bf16"), (("avx512_bf16",), "bf16"), ((), "fp32")])
def test_auto_takes_bf16_where_the_processor_multiplies_it(bundle, monkeypatch, features, first):
    with_features(monkeypatch, *features)
    found = choose([bundle], ComputeOptions(runtime="auto")).candidates
    assert (found[0].runtime, found[0].precision) == ("onnx", first)
    assert (NAME in found[0].label) == (first == "bf16")
    assert [candidate.label for candidate in found][-1] == f"onnx, {CPU}, fp32"
    named = runtime.OnnxRuntime.candidates([bundle], ComputeOptions(providers=(NAME,)))
    assert named[0].precision == first, "auto precision with the provider named"


def test_every_way_to_compute_is_offered_to_a_measurement(bundle):
    found = runtime.OnnxRuntime.candidates([bundle], ComputeOptions())
    labels = {candidate.label.split(" (")[0] for candidate in found if candidate.is_measured_only}
    assert any(label.startswith(f"onnx, {NAME} on cpu") for label in labels)


def test_bf16_without_openvino_names_what_is_missing(bundle, monkeypatch):
    monkeypatch.setenv(plugins.SWITCH, "off")
    monkeypatch.setattr(targets, "_of_build", lambda: [CPU])
    with pytest.raises(
        RuntimeUnavailableError, match=r"has no precision 'bf16', only int8, .*pip install .*\[openvino\]"
    ):
        Segmenter.from_bundle(bundle.path, "onnx", device="cpu", precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, f"{NAME} was asked for on device 'gpu', but it has: cpu; .* install that device's driver"),
        ({"device": "npu:1"}, f"{NAME} was asked for on device 'npu:1', but it has: cpu"),
    ],
)
def test_a_device_that_the_provider_does_not_have_is_refused(bundle, options, message):
    with pytest.raises(RuntimeUnavailableError, match=message):
        opened(bundle, **options)


@pytest.mark.parametrize("device", ["gpu", "gpu:1", "npu"])
@pytest.mark.parametrize("has_package", [True, False])
def test_a_device_that_no_provider_has_is_refused(bundle, device, has_package, monkeypatch):
    monkeypatch.setattr(plugins, "register", lambda: {NAME: ""} if has_package else {})
    with pytest.raises(RuntimeUnavailableError, match=f"'{device}' was asked for, but ONNX Runtime lists no such") as e:
        Segmenter.from_bundle(bundle.path, "onnx", device=device)
    assert ("install that device's driver" in str(e.value)) == has_package


def listed(kind, number, name=NAME):
    """A device as ONNX Runtime lists it."""
    hardware = types.SimpleNamespace(
        type=types.SimpleNamespace(name=kind.upper()), vendor="Maker", vendor_id=1, device_id=number, metadata={}
    )
    return types.SimpleNamespace(ep_name=name, ep_metadata={}, ep_options={}, device=hardware)


@pytest.fixture
def mini_pc(monkeypatch):
    """A processor, two GPUs and an NPU, listed by OpenVINO; one GPU is TensorRT for RTX's too."""
    devices = [listed("cpu", 0), listed("gpu", 7), listed("gpu", 9), listed("npu", 3), listed("gpu", 9, providers.RTX)]
    monkeypatch.setattr(plugins, "devices", lambda: devices)
    return devices


def labels_for(bundle, **options):
    found = runtime.OnnxRuntime.candidates([bundle], ComputeOptions(**options))
    return [candidate.label.removeprefix("onnx, ") for candidate in found if not candidate.is_measured_only]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"device": "gpu"}, f"{NAME} on gpu:0 (Maker), fp16"),
        ({"device": "gpu:1"}, f"{NAME} on gpu:1 (Maker), fp16"),
        ({"device": "gpu:1", "providers": (providers.RTX,)}, f"{providers.RTX} on gpu:1 (Maker), fp32"),
        ({"device": "npu"}, f"{NAME} on npu:0 (Maker), fp16"),
        ({"device": "cpu"}, f"{CPU}, fp32"),
        ({"device": "auto"}, f"{providers.RTX} on gpu:1 (Maker), fp32"),
    ],
)
def test_devices_are_chosen_as_onnx_runtime_lists_them(bundle, mini_pc, monkeypatch, options, first):
    with_features(monkeypatch)
    assert labels_for(bundle, **options)[0] == first


def test_a_provider_that_is_not_cuda_is_not_treated_as_cuda(bundle, mini_pc):
    for device in mini_pc:
        target = targets.Target(providers.provider(device.ep_name), device.device.type.name.lower(), 0, device)
        assert target.provider.memory(target.use()) == ("cpu", 0)
        assert "device_id" not in target.provider.options(target.use())
    with pytest.raises(RuntimeUnavailableError, match="no CUDA"):
        labels_for(bundle, device="cuda")


def test_an_npu_takes_single_frames(bundle, mini_pc):
    with pytest.raises(ParameterError, match="set max_batch to 1"):
        labels_for(bundle, device="npu", max_batch=2)


def test_graphs_for_an_npu_are_compiled_for_one_frame(bundle, monkeypatch):
    monkeypatch.setattr(providers.OpenVino, "one_frame", frozenset({"cpu"}))  # there is no NPU here
    segmenter = opened(bundle)
    graph = segmenter.runtime._backbones[64, 96]._session
    assert graph.get_inputs()[0].shape == [1, 64, 96, 3]
    assert (segmenter.segment([picture()])[0].labels == expected(bundle)).mean() > 0.9995


@pytest.mark.parametrize("name", [*providers._CLASSES, "OddExecutionProvider"])
def test_no_provider_is_given_graphs_of_bfloat16_which_onnx_runtime_does_not_load(name):
    rules = providers.provider(name)
    for kind in rules.kinds:
        assert "bf16" not in rules.precisions(providers.Use(kind)).values()


def test_unknown_packages_compute_graphs_as_they_are(copy, monkeypatch):
    monkeypatch.setattr(plugins, "devices", lambda: [listed("gpu", 1, "OddExecutionProvider")])
    assert labels_for(copy, device="gpu") == ["OddExecutionProvider on gpu:0 (Maker), fp32"]
    assert labels_for(copy, providers=("OddExecutionProvider",)) == ["OddExecutionProvider on gpu:0 (Maker), fp32"]
    assert CPU in labels_for(copy)[0], "auto leaves it to a measurement"
    with pytest.raises(RuntimeUnavailableError, match=r"Odd.* has no precision 'bf16', only fp32, fp16, int8_qdq"):
        labels_for(copy, precision="bf16")


@pytest.mark.parametrize("left", [2, 20])
def test_operators_that_others_compute_are_said(copy, left, monkeypatch, caplog):
    monkeypatch.setattr(session, "_assignment", lambda *_: ({NAME: 9, CPU: left}, {"Conv"}))
    description = opened(copy).runtime.description
    assert description.endswith(f"fp32 (of {2 * (9 + left)} operators {2 * left} on {CPU}: Conv)")
    assert description in caplog.text


def test_a_silent_fall_back_to_the_cpu_is_an_error(copy, monkeypatch):
    monkeypatch.setattr(session, "_assignment", lambda *_: ({CPU: 9, "Odd": 1}, {"Conv"}))
    with pytest.raises(RuntimeUnavailableError, match=f"{NAME} on cpu .* takes no operator .* run on {CPU}, Odd"):
        opened(copy)


def test_a_package_that_cannot_be_loaded_is_named_once(monkeypatch, caplog):
    package = types.ModuleType("onnxruntime_ep_broken")
    package.get_ep_name, package.get_ep_names = (
        (lambda: "BrokenExecutionProvider"),
        (lambda: ["BrokenExecutionProvider"]),
    )
    package.get_library_path = lambda: "/nowhere/libbroken.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_broken", package)
    monkeypatch.setattr(plugins.pkgutil, "iter_modules", lambda: [types.SimpleNamespace(name="onnxruntime_ep_broken")])
    with caplog.at_level(logging.WARNING):
        found = plugins._register_all.__wrapped__()
    assert "libbroken.so" in found["BrokenExecutionProvider"]
    assert caplog.text.count("BrokenExecutionProvider is not used") == 1


# The choice by measurement


@pytest.fixture
def timed(monkeypatch):
    """Times that a test gives, by a part of the description, in place of measured ones; no bf16, on any machine."""
    with_features(monkeypatch)
    given = {}

    def time_pass(runtime, _size, _batch, _heads):
        return next((ms for part, ms in given.items() if part in runtime.description), 50.0)

    monkeypatch.setattr(measured, "time_pass", time_pass)
    return given


@pytest.fixture
def quick(monkeypatch):
    """Few passes in place of seconds of them."""
    for name in ("_WARM_UP_S", "_TIMED_S"):
        monkeypatch.setattr(measured, name, 0.0)


def test_the_fastest_that_was_measured_is_taken_at_later_starts(bundle, timed):
    timed.update({NAME: 20.0, CPU: 30.0})
    choice = choosing.choose([bundle.path], ComputeOptions())
    assert NAME in choice.label
    assert {figure.ms for figure in choice.figures} >= {20.0, 30.0}
    segmenter = Segmenter.from_bundle(bundle.path)
    assert NAME in segmenter.runtime.description
    assert "was measured to be the best here" in segmenter.runtime_reason and "20.0 ms" in segmenter.runtime_reason
    assert CPU in Segmenter.from_bundle(bundle.path, threads=2).runtime.description, "another question"
    timed[NAME] = 29.9
    assert CPU in choosing.choose([bundle.path], ComputeOptions()).label, "a gain within the noise changes nothing"


def test_only_what_agrees_with_the_model_is_timed(bundle, timed, monkeypatch):
    timed.update({NAME: 1.0})
    right = session.GraphSession.run

    def wrong(self, inputs):
        found = right(self, inputs)
        if self.used == NAME:
            return {key: onnxruntime.OrtValue.ortvalue_from_numpy(0 * value.numpy()) for key, value in found.items()}
        return found

    monkeypatch.setattr(session.GraphSession, "run", wrong)
    choice = choosing.choose([bundle.path], ComputeOptions())
    assert CPU in choice.label
    refused = [figure for figure in choice.figures if NAME in figure.label]
    assert refused and all(figure.ms is None and "feature map layer_1" in figure.problem for figure in refused)


def test_a_candidate_that_fails_while_it_is_timed_costs_only_itself(bundle, quick, monkeypatch):
    time_pass = measured.time_pass

    def failing(_canvases, _heads):
        raise RuntimeError("CUDA out of memory")

    def timed(opened, *rest):
        if NAME in opened.description:
            opened.start = failing
        return time_pass(opened, *rest)

    monkeypatch.setattr(measured, "time_pass", timed)
    choice = choosing.choose([bundle.path], ComputeOptions())
    assert CPU in choice.label
    failed = [figure for figure in choice.figures if NAME in figure.label]
    assert failed and all("failed: CUDA out of memory" in figure.problem for figure in failed)


def test_another_machine_or_release_makes_a_choice_invalid(bundle, timed, monkeypatch, caplog):
    timed.update({NAME: 20.0, CPU: 30.0})
    choosing.choose([bundle.path], ComputeOptions())
    here = measured.machine()
    monkeypatch.setattr(measured, "machine", lambda: {**here, "cores": 64})
    assert CPU in Segmenter.from_bundle(bundle.path).runtime.description
    assert f"benchmark {bundle.path} --choose" in caplog.text


def test_other_weights_or_exports_make_a_choice_invalid(copy, timed):
    timed.update({NAME: 20.0, CPU: 30.0})
    choosing.choose([copy.path], ComputeOptions())
    assert NAME in Segmenter.from_bundle(copy.path).runtime.description
    write_graphs(copy, seed=8)
    assert CPU in Segmenter.from_bundle(copy.path).runtime.description


def test_a_damaged_choice_is_left_out(bundle, timed, caplog):
    timed.update({NAME: 20.0, CPU: 30.0})
    choosing.choose([bundle.path], ComputeOptions())
    (path,) = measured.store_folder().glob("*.json")
    path.write_text(path.read_text()[:40])
    assert CPU in Segmenter.from_bundle(bundle.path).runtime.description
    assert f"{path} cannot be read" in caplog.text


def test_a_chosen_provider_that_fails_gives_way_to_the_next(bundle, timed, monkeypatch, caplog):
    timed.update({NAME: 20.0, CPU: 30.0})
    choosing.choose([bundle.path], ComputeOptions())
    monkeypatch.setattr(
        session, "_assignment", lambda _, first: ({CPU: 9}, {"Conv": 9}) if not first.is_host else ({}, {})
    )
    assert CPU in Segmenter.from_bundle(bundle.path).runtime.description
    assert "takes no operator of the backbone" in caplog.text


def test_a_chosen_device_that_is_not_found_any_more_is_said_once(bundle, timed, monkeypatch, caplog):
    timed.update({NAME: 20.0, CPU: 30.0})
    label = choosing.choose([bundle.path], ComputeOptions()).label
    monkeypatch.setenv(plugins.SWITCH, "off")
    monkeypatch.setattr(targets, "_of_build", lambda: [CPU])
    assert CPU in Segmenter.from_bundle(bundle.path).runtime.description
    (said,) = [message for message in caplog.messages if "was measured" in message]
    assert said.startswith(f"{label} was measured to be the fastest here, but its device")
    assert said.endswith(f"benchmark {bundle.path} --choose")


def test_the_command_prints_and_keeps_the_figures(bundle, quick, tmp_path, capsys):
    assert main([str(bundle.path), "--choose", "--json", str(tmp_path / "choice.json")]) == 0
    said = capsys.readouterr().out
    assert NAME in said and CPU in said and "chosen, and kept for later starts: onnx, " in said
    assert main([str(bundle.path), "--choose", "--ros"]) == 2
    content = json.loads((tmp_path / "choice.json").read_text())
    assert content["label"] in said and all(figure["ms"] > 0 for figure in content["figures"] if not figure["problem"])


# The store of compiled graphs


def blobs(store):
    return sorted(path for path in store.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json"))


def test_compiled_graphs_are_kept_and_found_again(bundle, store):
    opened(bundle).close()
    first = {path: path.stat().st_mtime_ns for path in blobs(store)}
    assert first
    opened(bundle).close()
    assert {path: path.stat().st_mtime_ns for path in blobs(store)} == first


DAMAGE = {
    "a flipped bit": lambda blob: blob.write_bytes(bytes([*blob.read_bytes()[:-9], 1, *blob.read_bytes()[-8:]])),
    "half a file": lambda blob: blob.write_bytes(blob.read_bytes()[:100]),
    "an empty file": lambda blob: blob.write_bytes(b""),
    "no record": lambda blob: (blob.parent / caches.RECORD_FILE).unlink(),
    "half a record": lambda blob: (blob.parent / caches.RECORD_FILE).write_text("{"),
    "a file that nobody recorded": lambda blob: (blob.parent / "other.blob").write_bytes(b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_compiled_graph_is_never_given_to_the_provider(bundle, store, damage, caplog):
    opened(bundle).close()
    blob = blobs(store)[0]
    blob.chmod(0o600)
    DAMAGE[damage](blob)
    assert (opened(bundle).segment([picture()])[0].labels == expected(bundle)).mean() > 0.9995
    assert "compiled anew" in caplog.text


def test_a_stale_compiled_graph_is_refused_and_compiled_anew(bundle, store, tmp_path, caplog):
    other = write_exported_bundle(tmp_path / "other", seed=5)  # another head on the same backbone
    opened(bundle).close()
    before = blobs(store)
    opened(other).close()
    (others,) = set(blobs(store)) - set(before)
    digest = find_exports(bundle)[0][0].digest("head.onnx")
    for path in before:
        record = json.loads((path.parent / caches.RECORD_FILE).read_text())
        if record["built_for"]["graph"] == digest:
            path.unlink()
            shutil.copy(others, path)
            record["files"] = {path.name: sha256_of_file(path)}
            write_json(path.parent / caches.RECORD_FILE, record)
    segmenter = opened(bundle)
    assert "logits of tiny has cosine" in caplog.text and "it is opened anew" in caplog.text
    assert caplog.text.count("opened anew") == 1
    assert (segmenter.segment([picture()])[0].labels == expected(bundle)).mean() > 0.9995


def test_another_graph_precision_or_release_is_compiled_anew(bundle, copy, store, monkeypatch):
    def folders():
        return {path.parent for path in blobs(store)}

    opened(bundle).close()
    one = folders()
    opened(bundle, threads=1).close()
    two = folders()
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    opened(bundle).close()
    three = folders()
    monkeypatch.setattr(session, "this_cpu", lambda: this_cpu().model_copy(update={"name": "another"}))
    opened(bundle).close()
    assert len(one) < len(two) < len(three) < len(folders())


def test_another_driver_has_compiled_graphs_of_its_own(bundle):
    (export,), _ = find_exports(bundle)

    def folder(driver):
        device = types.SimpleNamespace(ep_metadata={"DRIVER": driver, "library_path": f"/{driver}"})
        target = targets.Target(providers.provider(NAME), "gpu", listed=device)
        with session._cache(export, HEAD_GRAPH, target, "fp32", 0).opened() as found:
            return found

    assert folder("1") == folder("1") != folder("2")


def test_a_store_that_cannot_be_written_costs_only_time(bundle, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.path / "bundle.json"))
    assert (opened(bundle).segment([picture()])[0].labels == expected(bundle)).mean() > 0.9995
    assert "compiled at each start" in caplog.text
