"""The gate: faults are planted, each of which gives plausible pictures, and none passes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from bundles import made_backbone, write_tiny_bundle
from graphs import write_graphs
from onnx import numpy_helper

from dinov3_seg_ros import scenes
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import EXPORT_FILE, REFERENCE_FILE, find_exports
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import gate
from dinov3_seg_ros.runtimes.choice import choose, open_runtime
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.runtimes.pytorch.runtime import PyTorchRuntime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DisagreementError, ExportError
from dinov3_seg_ros.support.files import sha256_of_file

pytestmark = pytest.mark.usefixtures("traced_once")

SIZE = (64, 96)
BACKBONE, HEAD = "backbone.onnx", "head.onnx"


def tiny_bundle(folder, **options):
    backbone = made_backbone("dinov3_vit")
    return write_tiny_bundle(folder, backbone=backbone, network_size=SIZE, geometry="stretch", detail=True, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ViT with an image-guided head, and its export in float32; copy it before changing it."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("exported") / "tiny")
    export([bundle.path], ExportOptions())
    return bundle


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """The same with another head."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("another") / "tiny", seed=9)
    export([bundle.path], ExportOptions())
    return bundle


@pytest.fixture
def copy(exported, tmp_path):
    return load_bundle(shutil.copytree(exported.path, tmp_path / "tiny"))


def folder_of(bundle):
    return bundle.path / "onnx" / "64x96-fp32"


def sign(bundle):
    """Make the export's record fit its files, as it would where the exporter itself made the fault."""
    path = folder_of(bundle) / EXPORT_FILE
    content = json.loads(path.read_text())
    content["files"] = {name: sha256_of_file(path.parent / name) for name in content["files"]}
    path.write_text(json.dumps(content))


def edit(bundle, graph, change):
    """Change a graph, given as (model, its constants by name), and sign the export."""
    path = folder_of(bundle) / graph
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    change(model.graph, constants)
    onnx.save(model, path)
    sign(bundle)


def put(constants, name, change):
    """Change the constants whose names contain ``name``."""
    found = [constant for key, constant in constants.items() if name in key]
    assert found, name
    for constant in found:
        values = numpy_helper.to_array(constant).copy()
        constant.CopyFrom(numpy_helper.from_array(np.asarray(change(values), values.dtype), constant.name))


def constants(*changes):
    """A fault that changes constants: pairs of a part of the name and what is done to the values."""

    def plant(_graph, of_graph):
        for name, change in changes:
            put(of_graph, name, change)

    return plant


def scaled_attention(graph, of_graph):
    scalars = {node.input[1] for node in graph.node if node.op_type == "Mul" and node.input[1] in of_graph}
    (name,) = [name for name in scalars if not of_graph[name].dims]
    put({name: of_graph[name]}, name, lambda values: values * 1.5)


def behind_outputs(*operators):
    """A fault behind the output of each graph: operators with a constant, or a type to cast to."""

    def plant(graph, _constants):
        for output in graph.output:
            maker = next(node for node in graph.node if output.name in node.output)
            source = f"{output.name}/right"
            maker.output[list(maker.output).index(output.name)] = source
            for index, (kind, value) in enumerate(operators):
                target = output.name if index == len(operators) - 1 else f"{output.name}/{index}"
                if kind == "Cast":
                    graph.node.append(onnx.helper.make_node("Cast", [source], [target], to=value))
                else:
                    constant = f"{target}/value"
                    graph.initializer.append(numpy_helper.from_array(np.float32(value), constant))
                    graph.node.append(onnx.helper.make_node(kind, [source, constant], [target]))
                source = target

    return plant


OVERFLOW = behind_outputs(
    ("Mul", 1e6), ("Cast", onnx.TensorProto.FLOAT16), ("Cast", onnx.TensorProto.FLOAT), ("Mul", 1e-6)
)


def aligned_corners(graph, _constants):
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Resize" and attribute.name == "coordinate_transformation_mode":
                attribute.s = b"align_corners"


def one_element(values):
    values.flat[7] = 1.5
    return values


#: Planted by tests of their own.
ELSEWHERE = [
    ("the head of another bundle", "head", "logits"),
    ("only the first frame of a batch is computed", "runtime", "feature map"),
    ("a stale compiled graph of OpenVINO, with a forged record", "head", "logits"),
    ("a provider that returns zeros", "runtime", "feature map"),
    ("a TensorRT engine that negates, overflows or adds", "engine", "feature map"),
]
#: What is planted: the graph, the change, and the stage that the gate must name.
IN_GRAPHS = {
    "RoPE left out": (BACKBONE, constants(("cos", np.ones_like), ("sin", np.zeros_like)), "feature map layer_2"),
    "RoPE of patches in another order": (
        BACKBONE, constants(("cos", lambda v: v[::-1]), ("sin", lambda v: v[::-1])), "feature map layer_2"
    ),
    "RoPE turned the other way": (BACKBONE, constants(("sin", np.negative)), "feature map layer_2"),
    "attention scaled otherwise": (BACKBONE, scaled_attention, "feature map layer_2"),
    "one block's weights changed": (
        BACKBONE, constants(("layer.1.mlp.up_proj.bias", lambda v: v + 0.05)), "feature map layer_2"
    ),
    "one weight changed": (BACKBONE, constants(("patch_embeddings.weight", one_element)), "feature map layer_2"),
    "a layer scale left out": (
        BACKBONE, constants(("layer.1.layer_scale1.lambda1", np.ones_like)), "feature map layer_2"
    ),
    "the final norm left out": (BACKBONE, constants(("model.norm.weight", np.ones_like)), "feature map layer_2"),
    "register tokens left out": (BACKBONE, constants(("register_tokens", np.zeros_like)), "feature map layer_2"),
    "swapped channels": (
        BACKBONE, constants(("patch_embeddings.weight", lambda v: v[:, ::-1])), "feature map layer_2"
    ),
    "normalisation left out": (
        BACKBONE, constants(("_scale", lambda v: v * 0 + 255), ("_offset", np.zeros_like)), "feature map layer_2"
    ),
    "maps of zeros": (BACKBONE, behind_outputs(("Mul", 0.0)), "feature map layer_2"),
    "maps that overflow fp16": (BACKBONE, OVERFLOW, "feature map layer_2"),
    "maps that are not numbers": (BACKBONE, behind_outputs(("Mul", np.nan)), "feature map layer_2"),
    "a head's context left out": (HEAD, constants(("pool.weight", np.zeros_like)), "logits of tiny"),
    "a head's dilation lost": (HEAD, constants(("branches.3.0.weight", np.zeros_like)), "logits of tiny"),
    "classes off by one": (
        HEAD, constants(("classifier.weight", lambda v: np.roll(v, 1, 0))), "logits of tiny"
    ),
    "one class too probable": (
        HEAD, constants(("head.classifier.bias", lambda v: v + 4 * (np.arange(5) == 1))), "logits of tiny"
    ),
    "corners aligned": (HEAD, aligned_corners, "logits of tiny"),
    "a branch that sees swapped channels": (
        HEAD, constants(("detail.image.0.0.weight", lambda v: v[:, ::-1])), "logits of tiny"
    ),
    "a branch without normalisation": (
        HEAD, constants(("_scale", lambda v: v * 0 + 255), ("_offset", np.zeros_like)), "logits of tiny"
    ),
    "logits of zeros": (HEAD, behind_outputs(("Mul", 0.0)), "logits of tiny"),
    "logits that overflow fp16": (HEAD, OVERFLOW, "logits of tiny"),
}  # fmt: skip


@pytest.mark.parametrize("fault", IN_GRAPHS)
def test_a_fault_in_a_graph_is_refused_at_its_stage(copy, fault):
    graph, change, stage = IN_GRAPHS[fault]
    edit(copy, graph, change)
    with pytest.raises(DisagreementError, match=f"does not compute what the PyTorch model computes: {stage} "):
        Segmenter.from_bundle(copy.path, "onnx")


def test_the_head_of_another_bundle_is_refused(copy, another):
    shutil.copy(folder_of(another) / HEAD, folder_of(copy) / HEAD)
    sign(copy)
    with pytest.raises(DisagreementError, match="logits of tiny has cosine"):
        Segmenter.from_bundle(copy.path, "onnx")


def compute_only_the_first(monkeypatch):
    right = OnnxRuntime.start

    def start(self, canvases, heads):
        return right(self, np.repeat(canvases[:1], len(canvases), 0), heads)

    monkeypatch.setattr(OnnxRuntime, "start", start)


def test_a_runtime_that_computes_only_the_first_of_a_batch_is_refused(copy, monkeypatch):
    compute_only_the_first(monkeypatch)
    assert Segmenter.from_bundle(copy.path, "onnx", max_batch=1).runtime.name == "onnx"
    with pytest.raises(DisagreementError, match="feature map layer_2 has cosine"):
        Segmenter.from_bundle(copy.path, "onnx", max_batch=2)


@pytest.mark.parametrize(("device", "runs"), [("cpu", 2), ("cuda:0", 4)])
def test_a_second_run_on_a_gpu_is_compared_too(copy, device, runs):
    runtime = Segmenter.from_bundle(copy.path, "onnx").runtime
    start, seen = runtime.start, []

    def replayed(canvases, heads):  # the first frame again, as of a CUDA graph that reads an old address
        seen.append(canvases)
        return start(canvases if len(seen) <= gate.FRAMES else seen[0], heads)

    runtime.device, runtime.start = device, replayed
    reference = gate.Reference.read(folder_of(copy) / REFERENCE_FILE)
    figures = [stage.figure for stage in gate.measure(runtime, "tiny", reference) if stage.kind == "labels"]
    assert len(seen) == runs
    assert (figures[0] > 0.999) == (device == "cpu")


@pytest.mark.parametrize("pictures", [1, 2])
def test_mixed_up_frames_are_found_where_the_exports_images_are_alike(copy, tmp_path, pictures, monkeypatch):
    (tmp_path / "images").mkdir()
    for number in range(pictures):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), scenes.sample("val", 7, (120, 160))[0])
    export([copy.path], ExportOptions(images=tmp_path / "images"))
    Segmenter.from_bundle(copy.path, "onnx", max_batch=2).close()
    compute_only_the_first(monkeypatch)
    with pytest.raises(DisagreementError, match="feature map layer_2 has cosine"):
        Segmenter.from_bundle(copy.path, "onnx", max_batch=2)


def test_no_picture_is_a_reference_that_the_exports_own_graphs_fail(copy, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), scenes.sample("val", 7, (120, 160))[0])
    right, own = OnnxRuntime.start, []

    def start(self, canvases, heads):
        computed = right(self, canvases, heads)
        own[:] = own or [canvases[0]]
        if all(np.array_equal(canvas, own[0]) for canvas in canvases):
            return computed
        return dataclasses.replace(computed, results={name: -logits for name, logits in computed.results.items()})

    monkeypatch.setattr(OnnxRuntime, "start", start)  # as of int8 graphs, which are calibrated on the image alone
    export([copy.path], ExportOptions(images=tmp_path / "images"))
    Segmenter.from_bundle(copy.path, "onnx", max_batch=2).close()


def decoding(change):
    def plant(monkeypatch):
        right = gate.decode.upsample_argmax_confidence
        monkeypatch.setattr(gate.decode, "upsample_argmax_confidence", lambda *a: change(right, *a))

    return plant


IN_DECODE = {
    "labels off by one": (lambda right, *a: ((right(*a)[0] + 1) % 5, right(*a)[1]), "labels"),
    "labels shifted by half a cell": (lambda right, x, size: right(np.roll(x, 1, 3), size), "labels"),
    "labels of the second class": (lambda right, x, size: right(-x, size), "labels"),
    "nearest cell in place of interpolation": (
        lambda right, x, size: right(np.repeat(np.repeat(x, 4, 2), 4, 3), size), "labels"
    ),
    "confidence of another temperature": (
        lambda right, x, size: (right(x, size)[0], right(0.5 * x, size)[1]), "confidence"
    ),
    "confidence inverted": (lambda right, *a: (right(*a)[0], 255 - right(*a)[1]), "confidence"),
    "confidence as if sure": (lambda right, *a: (right(*a)[0], right(*a)[1] * 0 + 255), "confidence"),
}  # fmt: skip


@pytest.mark.parametrize("fault", IN_DECODE)
def test_a_fault_of_the_decode_is_refused_at_its_stage(copy, fault, monkeypatch):
    change, stage = IN_DECODE[fault]
    decoding(change)(monkeypatch)
    with pytest.raises(DisagreementError, match=f"{stage} of tiny "):
        Segmenter.from_bundle(copy.path, "onnx")


def test_a_right_export_passes_and_the_model_itself_too(exported):
    for runtime in ("onnx", "torch"):
        opened, _ = open_runtime([exported], ComputeOptions(runtime=runtime, max_batch=3))
        assert "unverified" not in opened.description
        opened.close()


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_labels_that_are_wrong_here_and_there_are_refused(copy, runtime, monkeypatch):
    def spoilt(right, *inputs):
        labels, confidence = right(*inputs)
        wrong = np.arange(labels.size).reshape(labels.shape) % 500 == 0
        return np.where(wrong, (labels + 1) % 5, labels).astype(labels.dtype), confidence

    decoding(spoilt)(monkeypatch)
    with pytest.raises(DisagreementError, match=r"equal on only 99\.7.* fp32 must reach 99\.95"):
        Segmenter.from_bundle(copy.path, runtime, device="cpu")


def test_pytorch_is_held_to_the_model_whatever_an_export_reached(copy, monkeypatch):
    path = folder_of(copy) / REFERENCE_FILE
    dataclasses.replace(gate.Reference.read(path), reached=0.5).write(path)  # as with --least-labels 0.5
    sign(copy)

    def spoilt(right, *inputs):
        labels, confidence = right(*inputs)
        wrong = np.arange(labels.size).reshape(labels.shape) % 100 < 31
        return np.where(wrong, (labels + 1) % 5, labels).astype(labels.dtype), confidence

    decoding(spoilt)(monkeypatch)
    with pytest.raises(DisagreementError, match="labels of tiny are equal on only 68"):
        Segmenter.from_bundle(copy.path, "torch", device="cpu")


def test_pytorch_is_compared_at_the_size_that_it_serves(copy):
    write_graphs(copy, size=(32, 64))  # whose reference is another model's
    Segmenter.from_bundle(copy.path, "torch", device="cpu").close()


@pytest.mark.parametrize("spoilt", [False, True])
def test_without_an_export_the_model_on_the_cpu_is_what_is_compared_with(tmp_path, spoilt, monkeypatch):
    bundle, run = tiny_bundle(tmp_path / "tiny"), PyTorchRuntime._run_head

    def run_head(runtime, *inputs):
        logits = run(runtime, *inputs)
        return logits.flip(1) if spoilt and runtime.description.endswith("bfloat16") else logits

    monkeypatch.setattr(PyTorchRuntime, "_run_head", run_head)
    Segmenter.from_bundle(bundle.path, "torch", device="cpu").close()
    if spoilt:
        with pytest.raises(DisagreementError, match=r"bfloat16 does not compute what .* logits of tiny has cosine"):
            Segmenter.from_bundle(bundle.path, "torch", device="cpu", precision="bf16")
    else:
        Segmenter.from_bundle(bundle.path, "torch", device="cpu", precision="bf16").close()


def test_the_next_candidate_is_taken_where_one_is_refused(copy, caplog):
    edit(copy, *IN_GRAPHS["RoPE left out"][:2])
    segmenter = Segmenter.from_bundle(copy.path)
    assert segmenter.runtime.name == "torch"
    assert "feature map layer_2 has cosine" in segmenter.runtime_reason
    assert choose([copy], ComputeOptions()).runtime == "onnx", "which was tried first"


def test_a_damaged_reference_is_named(copy, monkeypatch):
    path = folder_of(copy) / REFERENCE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExportError, match=f"{REFERENCE_FILE} is damaged"):
        Segmenter.from_bundle(copy.path, "onnx")
    sign(copy)
    closed = []
    monkeypatch.setattr(OnnxRuntime, "close", lambda self: closed.append(self))
    with pytest.raises(ExportError, match=f"{REFERENCE_FILE} cannot be read"):
        Segmenter.from_bundle(copy.path, "onnx")
    assert len(closed) == 1, "what was opened to be compared"


def test_an_export_without_a_reference_runs_as_it_was_verified(exported, copy):
    path = folder_of(copy) / EXPORT_FILE
    content = json.loads(path.read_text())
    del content["files"][REFERENCE_FILE]
    path.write_text(json.dumps(content))
    assert Segmenter.from_bundle(copy.path).runtime.name == "onnx"
    with_one, without = find_exports(exported)[0], find_exports(copy)[0]
    assert gate.references([exported], {SIZE: with_one}, SIZE) == with_one
    assert not gate.references([exported, copy], {SIZE: [*with_one, *without]}, SIZE), "one cannot be compared"


def test_a_reference_is_small_and_reads_back_as_written(exported, tmp_path):
    reference = gate.Reference.read(folder_of(exported) / REFERENCE_FILE)
    assert reference.canvases.shape == (gate.FRAMES, *SIZE, 3)
    reference.write(tmp_path / "again.npz")
    again = gate.Reference.read(tmp_path / "again.npz")
    for name in ("canvases", "labels", "confidence", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(reference, name))
    assert again.maps.keys() == {"layer_2"} and again.reached == reference.reached == 1.0


@pytest.mark.parametrize("error", [1e-1, 1e-2, 1e-3])
def test_sketches_keep_the_cosine_of_maps(error):
    random = np.random.default_rng(0)
    one = random.normal(size=(2, 24, 31, 17)).astype(np.float32)
    other = one + error * random.normal(size=one.shape).astype(np.float32)
    a, b = (array.astype(np.float64) for array in (one, other))
    whole = 1 - np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    a, b = (gate.sketch(array).astype(np.float64) for array in (one, other))
    assert 1 - np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sketch_shows_a_single_element_that_is_not_finite(value):
    array = np.ones((1, 3, 100, 100), np.float32)
    array[0, 2, 50, 50] = value
    assert not np.isfinite(gate.sketch(array)).all()


def test_the_docs_list_every_fault_that_is_planted():
    rows = [(name, graph.removesuffix(".onnx"), stage) for name, (graph, _, stage) in IN_GRAPHS.items()]
    rows += [(name, "decode", stage) for name, (_, stage) in IN_DECODE.items()]
    rows += ELSEWHERE
    lines = [f"| {name} | {where} | {re.sub('( of)? (layer_2|tiny)$', '', stage)} |" for name, where, stage in rows]
    page = (Path(__file__).parents[1] / "docs" / "accelerators.md").read_text()
    table = page.split("<!-- begin faults -->")[1].split("<!-- end faults -->")[0]
    assert table.split("|---|---|---|")[1].strip().splitlines() == lines
