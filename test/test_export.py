"""Bundles exported to ONNX: what the graphs compute, and which graphs a robot never uses."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bundles import TINY_BACKBONES, made_backbone, write_tiny_bundle
from full_disk import full_disk
from graphs import write_graphs

from dinov3_seg_ros import scenes
from dinov3_seg_ros.benchmark import choosing
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import CANVASES, find_exports
from dinov3_seg_ros.doctor import computing
from dinov3_seg_ros.doctor.findings import OK, WARNING
from dinov3_seg_ros.export import exporter
from dinov3_seg_ros.export.__main__ import main
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.export.graphs import (
    BackboneGraph,
    HeadGraph,
    export_backbone,
    export_head,
    fuse,
    operators,
    store_compactly,
)
from dinov3_seg_ros.export.licences import licences_of_graphs
from dinov3_seg_ros.model.heads import HEADS, build_head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.agreement import Difference
from dinov3_seg_ros.runtimes.choice import available_runtimes, choose, find_candidates
from dinov3_seg_ros.runtimes.onnx.providers import _CLASSES, Provider
from dinov3_seg_ros.runtimes.pytorch.runtime import PyTorchRuntime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.cpu import Cpu, this_cpu
from dinov3_seg_ros.support.errors import (
    BackboneError,
    ExportError,
    ParameterError,
    RuntimeFailedError,
    RuntimeUnavailableError,
)

pytestmark = pytest.mark.usefixtures("traced_once")

SIZE = (64, 96)


def tiny_bundle(folder, family="dinov3_convnext", **options):
    layers = [1, 2, 3] if family == "dinov3_convnext" else None
    options = {"network_size": SIZE, "geometry": "stretch", **options}
    return write_tiny_bundle(folder, backbone=made_backbone(family, layers), **options)


@pytest.fixture(scope="module")
def picture():
    return scenes.sample("val", 7, (120, 160))[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle with its graphs in float32; copy it before changing it."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("exported") / "tiny")
    export([bundle.path], ExportOptions(fuse=True))
    return bundle


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported.path, tmp_path / "tiny")
    return load_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_every_familys_graphs_give_the_labels_of_pytorch(family, tmp_path, picture):
    bundle = tiny_bundle(tmp_path / "tiny", family)
    export([bundle.path], ExportOptions())
    expected = Segmenter.from_bundle(bundle.path, "torch").segment([picture])[0]
    result = Segmenter.from_bundle(bundle.path, "onnx").segment([picture])[0]
    assert len(np.unique(expected.labels)) > 1
    assert (result.labels == expected.labels).mean() >= 0.9995
    assert np.abs(result.confidence.astype(int) - expected.confidence).max() <= 1


@pytest.mark.parametrize("family", ["dinov3_vit", "dinov3_convnext"])
def test_the_first_convolution_reads_pixels_that_bfloat16_holds_exactly(family, tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", family)
    backbone, own = bundle.load_backbone(), bundle.manifest.input
    graph = BackboneGraph(backbone, SIZE, own.mean, own.std)
    export_backbone(graph, SIZE, tmp_path / "backbone.onnx", {})
    model = onnx.load(tmp_path / "backbone.onnx")
    read = next(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(read))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    canvas = np.resize(np.arange(256, dtype=np.uint8), (1, *SIZE, 1)).repeat(3, axis=3)
    (pixels,) = session.run(None, {CANVASES: canvas})
    assert len(np.unique(pixels[:, 0])) == 256
    assert np.array_equal(pixels, torch.from_numpy(pixels).bfloat16().float())


def test_an_image_guided_heads_graphs_give_the_labels_of_pytorch(tmp_path, picture):
    bundle = tiny_bundle(tmp_path / "tiny", "dinov3_vit", detail=True)
    (folder,) = export([bundle.path], ExportOptions(fuse=True))
    inputs = [node.name for node in onnx.load(folder / "head.onnx").graph.input]
    assert inputs == ["layer_2", "canvases"]
    assert [node.name for node in onnx.load(folder / "fused.onnx").graph.input] == ["canvases"]
    batch = [picture, np.ascontiguousarray(picture[::-1])]
    expected = Segmenter.from_bundle(bundle.path, "torch", max_batch=2).segment(batch)
    results = Segmenter.from_bundle(bundle.path, "onnx", max_batch=2).segment(batch)
    for one, other in zip(expected, results, strict=True):
        assert one.heads["tiny"].logits.shape[-2:] == (16, 24)
        assert len(np.unique(one.labels)) > 1
        assert (one.labels == other.labels).mean() >= 0.9995


def test_maps_are_upsampled_by_factors_that_the_graph_holds(tmp_path):
    """Otherwise ONNX Runtime changes the layout of all logits before it upsamples and adds them."""
    head = build_head("aspp", [16, 16], [16, 32], 5, width=16, detail=True).eval()
    maps = [torch.randn(2, 16, 8, 12), torch.randn(2, 16, 4, 6)]
    export_head(HeadGraph(head, *NORMALISATION), maps, [2, 3], (128, 192), tmp_path / "head.onnx", {})
    graph = onnx.load(tmp_path / "head.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    factors = [constants[node.input[2]] for node in graph.node if node.op_type == "Resize"]
    assert sorted(factors) == [[1, 1, 2, 2], [1, 1, 4, 4], [1, 1, 4, 4]]


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        *((family, precision) for family in TINY_BACKBONES for precision in ("fp32", "fp16")),
        ("dinov3_vit", "bf16"),
        ("dinov3_vit", "int8_qdq"),
        ("dinov3_convnext", "int8_qdq"),
    ],
)
def test_tensorrt_builds_engines_of_every_familys_graphs(family, precision, engine_builder, tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", family, detail=family == "dinov3_vit")
    (folder,) = export([bundle.path], ExportOptions(precision=precision, least_labels=0.5))
    for graph in ("backbone.onnx", "head.onnx"):
        built = engine_builder.build(folder / graph, max_batch=2)
        assert built.get("bytes"), built
    dequantised = dequantised_constants(folder / "backbone.onnx")
    assert dequantised == ({onnx.TensorProto.INT8} if precision == "int8_qdq" else set())


def test_tensorrts_parser_refuses_graphs_of_dynamic_int8(engine_builder, tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", "dinov3_vit")
    (folder,) = export([bundle.path], ExportOptions(precision="int8", least_labels=0.5))
    error = engine_builder.build(folder / "backbone.onnx")["error"]
    assert "cannot read" in error and "set runtime to onnx, or export the bundle again in another precision" in error


def dequantised_constants(graph):
    """Types of what is stored and dequantised; TensorRT takes no INT32, which a quantised bias would be."""
    graph = onnx.load(graph).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    read = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {types[name] for name in read & types.keys()}


NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"aspp": {"width": 16}, "pyramid": {"width": 16, "hidden": 8}, "unet": {"widths": (16, 8)}}


@dataclasses.dataclass
class HalfHead:
    """A head's graph in float16, the inputs it was exported for, and the logits that PyTorch gives in float32."""

    path: Path
    inputs: dict[str, np.ndarray]
    expected: np.ndarray


@pytest.fixture(
    scope="module",
    params=[(name, variant, False) for name in HEADS for variant in HEADS[name]] + [("aspp", "atrous", True)],
    ids=lambda case: "-".join(map(str, case)),
)
def half_head(request, tmp_path_factory):
    name, variant, detail = request.param
    torch.manual_seed(0)
    layers, channels, strides = ([3], [16], [32]) if variant == "plain" else ([2, 3], [12, 16], [16, 32])
    options = {**({} if variant == "plain" else SMALL.get(name, {})), **({"detail": True} if detail else {})}
    head = build_head(name, channels, strides, 5, variant, **options).eval()
    for norm in [module for module in head.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
        # Variances that float16 does not hold, of norms that hardly change the scale.
        norm.running_var.uniform_(1e5, 2e5)
        norm.running_mean.normal_()
        torch.nn.init.constant_(norm.weight, 400.0)
    maps = [
        torch.randn(2, depth, 128 // stride, 192 // stride) for depth, stride in zip(channels, strides, strict=True)
    ]
    canvases = torch.randint(0, 256, (2, 128, 192, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = head(maps, Normalise(*NORMALISATION)(canvases)).numpy()
    path, halves = tmp_path_factory.mktemp("head") / "head.onnx", [each.half() for each in maps]
    export_head(HeadGraph(head, *NORMALISATION, torch.float16), halves, layers, (128, 192), path, {})
    inputs = {f"layer_{layer}": each.numpy() for layer, each in zip(layers, halves, strict=True)}
    if detail:
        inputs["canvases"] = canvases.numpy()
    return HalfHead(path, inputs, expected)


def test_every_heads_graph_in_fp16_stays_near_pytorch_in_fp32(half_head):
    (found,) = onnxruntime.InferenceSession(half_head.path).run(None, half_head.inputs)
    difference = Difference()
    difference.update(half_head.expected, found)
    assert np.ptp(half_head.expected) > 0.01, "else nothing is compared"
    assert difference.cosine > 0.9995


def test_tensorrt_builds_an_engine_of_every_heads_graph_in_fp16(half_head, engine_builder):
    built = engine_builder.build(half_head.path, max_batch=3)
    assert built.get("bytes"), built


def test_a_norm_behind_a_convolution_is_folded_into_it_in_fp16(tmp_path):
    head = build_head("aspp", [16], [16], 5, width=16).eval()
    maps = [torch.randn(2, 16, 8, 12, dtype=torch.float16)]
    export_head(HeadGraph(head, *NORMALISATION, torch.float16), maps, [3], (128, 192), tmp_path / "head.onnx", {})
    nodes = onnx.load(tmp_path / "head.onnx").graph.node
    assert [node.op_type for node in nodes].count("Cast") == 1, "of the logits"
    assert "BatchNormalization" not in operators(tmp_path / "head.onnx")


def test_graphs_and_report_describe_themselves(exported):
    (found,), refused = find_exports(exported)
    assert refused == []
    assert found.manifest.verified
    assert found.manifest.cpu == this_cpu()
    assert found.manifest.user_images is False
    assert found.manifest.parity["machine"] == this_cpu().name
    assert found.manifest.parity["heads"]["tiny"]["labels_equal"] >= 0.9995
    said = {p.key: p.value for p in onnx.load(found.folder / "backbone.onnx").metadata_props}
    assert said["backbone_identity"] == exported.manifest.backbone.identity
    assert json.loads(said["layers"]) == [1, 2, 3]
    said = {p.key: p.value for p in onnx.load(found.folder / "head.onnx").metadata_props}
    assert json.loads(said["class_names"]) == exported.manifest.classes.names
    assert b"site-packages" not in (found.folder / "backbone.onnx").read_bytes(), "no path of the machine that made it"
    report = (found.folder / "report.md").read_text()
    assert "| equal labels (worst image) |" in report
    assert "| tiny | 1.0" in report


def test_the_fused_graph_gives_the_same_logits_for_any_batch(exported):
    folder = find_exports(exported)[0][0].folder
    canvases = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    (logits,) = onnxruntime.InferenceSession(folder / "fused.onnx").run(["logits"], {"canvases": canvases})
    runtime = Segmenter.from_bundle(exported.path, "onnx", max_batch=3).runtime
    np.testing.assert_allclose(logits, runtime.start(canvases, ["tiny"]).logits()["tiny"], atol=1e-4)


def test_an_export_without_the_fused_graph_says_that_it_removes_the_earlier(copy, caplog):
    (graph,) = copy.path.glob("onnx/*/fused.onnx")
    export([copy.path], ExportOptions(fuse=True))
    assert graph.exists() and "fused.onnx" not in caplog.text
    export([copy.path], ExportOptions())
    assert not graph.exists()
    assert f"the earlier {graph} was removed; add --fuse to make it anew" in caplog.text


def licensed(bundle, licence):
    content = json.loads((bundle.path / "bundle.json").read_text())
    (bundle.path / "bundle.json").write_text(json.dumps({**content, "licences": [licence]}))
    return load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("precision", "is_too_large"), [("fp32", False), ("int8", False), ("fp32", True)], ids=["fp32", "int8", "large"]
)
def test_heads_of_other_layers_are_fused_with_the_shared_backbone(tmp_path, precision, is_too_large, monkeypatch):
    if is_too_large:  # for one file, and for onnx's check of a model in memory
        monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 0)
    bundles = []
    for name, layers, detail in (("one", [1, 2, 3], False), ("two", [2, 3], True)):
        backbone = made_backbone("dinov3_convnext", layers)
        bundle = write_tiny_bundle(tmp_path / name, name=name, backbone=backbone, network_size=SIZE, detail=detail)
        bundles.append(licensed(bundle, f"licence of {name}"))
    export([b.path for b in bundles], ExportOptions(fuse=True, precision=precision, least_labels=0.8))
    canvases = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    runtime = Segmenter.from_bundle([b.path for b in bundles], "onnx", precision=precision, max_batch=2).runtime
    for bundle in bundles:
        (found,), _ = find_exports(bundle)
        name = bundle.manifest.name
        said = {p.key: p.value for p in onnx.load(found.folder / "fused.onnx").metadata_props}
        assert (said["name"], said["licence"]) == (name, f"licence of {name}")
        assert json.loads(said["layers"]) == bundle.manifest.backbone.layers
        (logits,) = onnxruntime.InferenceSession(found.folder / "fused.onnx").run(["logits"], {"canvases": canvases})
        np.testing.assert_allclose(logits, runtime.start(canvases, [name]).logits()[name], atol=1e-3)
        assert found.manifest.parity["fused"][name]["labels_equal"] >= 0.8
        assert f"| {name}, fused | " in (found.folder / "report.md").read_text()
        assert ("fused.onnx.data" in found.manifest.files) == is_too_large


def test_a_fused_graph_that_computes_something_else_fails_the_export(copy, monkeypatch, capsys):
    def wrong(backbone, head, layers, path, properties):
        model = onnx.load(head)
        weights = next(t for t in model.graph.initializer if "classifier.weight" in t.name)
        weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), weights.name))
        onnx.save(model, path.with_suffix(".spoilt"))
        right(backbone, path.with_suffix(".spoilt"), layers, path, properties)
        path.with_suffix(".spoilt").unlink()

    right = exporter.fuse
    monkeypatch.setattr(exporter, "fuse", wrong)
    assert main([str(copy.path)]) == 0
    assert main([str(copy.path), "--fuse"]) == 1
    assert "logits of the fused graph of tiny has cosine -" in capsys.readouterr().err


def test_graphs_of_different_operator_sets_are_not_fused(tmp_path):
    folder = write_graphs(tiny_bundle(tmp_path / "tiny"))
    backbone, head = folder / "backbone.onnx", folder / "head.onnx"
    model = onnx.load(head)
    model.opset_import[0].version -= 1
    onnx.save(model, head)
    with pytest.raises(ExportError, match=r"use versions 18 and 17 of the operator set 'ai\.onnx'"):
        fuse(backbone, head, [1, 2, 3], tmp_path / "fused.onnx", {})
    assert not (tmp_path / "fused.onnx").exists()


def test_weights_that_float16_holds_exactly_are_stored_as_float16(tmp_path):
    halved = made_backbone("dinov3_convnext", [1, 2, 3]).half().float()
    bundle = write_tiny_bundle(tmp_path / "halved", backbone=halved, network_size=SIZE, geometry="stretch")
    (folder,) = export([bundle.path], ExportOptions())
    graph = onnx.load(folder / "backbone.onnx").graph
    folded = next(node.input[1] for node in graph.node if node.op_type == "Conv")  # with the pixels' normalisation
    whole = [t for t in graph.initializer if np.prod(t.dims) >= 256 and t.name != folded]
    assert len(whole) > 8 and all(t.data_type == onnx.TensorProto.FLOAT16 for t in whole)
    assert find_exports(bundle)[0][0].manifest.parity["features"]["layer_3"]["cosine"] == 1.0
    weights = onnx.numpy_helper.from_array(np.full(1 << 16, 0.1, np.float32), "w")  # which float16 only approaches
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [], [weights])), path)
    store_compactly(path)
    assert [each.data_type for each in onnx.load(path).graph.initializer] == [onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("is_too_large", [False, True])
def test_a_large_graph_leaves_no_stale_weights_file(is_too_large, tmp_path, monkeypatch):
    # From some size on PyTorch's exporter puts the weights beside the graph; from a larger one on they must be there.
    program = importlib.import_module("torch.onnx._internal.exporter._onnx_program")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 0)
    if is_too_large:
        monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 0)
    bundle = tiny_bundle(tmp_path / "tiny")
    (folder,) = export([bundle.path], ExportOptions())
    weights = folder / "backbone.onnx.data"
    assert weights.exists() == is_too_large
    if is_too_large:
        stored = onnx.load(folder / "backbone.onnx", load_external_data=False).graph.initializer
        places = [{e.key: e.value for e in tensor.external_data} for tensor in stored if tensor.external_data]
        assert min(int(place["offset"]) for place in places) == 0
        assert max(int(place["offset"]) + int(place["length"]) for place in places) == weights.stat().st_size
    assert Segmenter.from_bundle(bundle.path, "onnx").runtime.sizes == (SIZE,)
    if is_too_large:  # what is kept of a graph, such as an engine, is of these weights
        (own,), _ = find_exports(bundle)
        weights.write_bytes(b"others")
        with pytest.raises(ExportError, match=r"backbone\.onnx\.data is damaged"):
            own.graph("backbone.onnx")
        files = {**own.manifest.files, weights.name: "0" * 64}
        other = dataclasses.replace(own, manifest=own.manifest.model_copy(update={"files": files}))
        assert other.digest("backbone.onnx") != own.digest("backbone.onnx")
        assert other.digest("head.onnx") == own.digest("head.onnx")


@pytest.mark.parametrize("spoilt", ["reference", "found"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_agrees_with_nothing(spoilt, value):
    arrays = {"reference": np.ones(4, np.float32), "found": np.ones(4, np.float32)}
    arrays[spoilt][2] = value
    difference = Difference()
    difference.update(**arrays)
    difference.update(np.ones(4), np.ones(4))
    assert difference.record() == {"cosine": -1.0, "max_abs": float("inf")}


def test_the_robot_runs_the_graphs_without_torch(exported):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, safetensors=None)\n"
        "import numpy as np; from dinov3_seg_ros.segmenter import Segmenter\n"
        f"segmenter = Segmenter.from_bundle({str(exported.path)!r})\n"
        "segmenter.warm_up()\n"
        "print(segmenter.runtime.name, segmenter.segment([np.zeros((50, 60, 3), np.uint8)])[0].labels.shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "onnx (50, 60)\n", result.stderr


def test_auto_takes_the_graphs_where_there_are_any_and_says_why(exported, tmp_path):
    segmenter = Segmenter.from_bundle(exported.path)
    assert segmenter.runtime.name == "onnx"
    assert "fastest" in segmenter.runtime_reason and "torch would run on the" in segmenter.runtime_reason
    plain = Segmenter.from_bundle(tiny_bundle(tmp_path / "plain").path)
    assert plain.runtime.name == "torch"
    assert "python -m dinov3_seg_ros.export" in plain.runtime_reason


def test_auto_takes_graphs_for_a_precision_that_torch_lacks(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "tiny")
    with pytest.raises(RuntimeUnavailableError, match=r"the torch runtime has no precision 'int8'"):
        Segmenter.from_bundle(bundle.path, "torch", precision="int8")
    with pytest.raises(
        RuntimeUnavailableError, match=r"no runtime .* make them with: .* --size 64 96 --precision int8;"
    ):
        Segmenter.from_bundle(bundle.path, precision="int8")
    write_graphs(bundle, "int8", size=SIZE)
    # As with a GPU that only PyTorch can use.
    pytorch = importlib.import_module("dinov3_seg_ros.runtimes.pytorch.runtime")
    monkeypatch.setattr(pytorch, "_resolve_device", lambda device: torch.device("cuda"))
    assert choose([bundle], ComputeOptions()).runtime == "torch"
    assert choose([bundle], ComputeOptions(precision="int8")).runtime == "onnx"


def test_auto_is_onnx_runtime_where_providers_are_named(exported, monkeypatch):
    # As with a GPU that only PyTorch can use.
    pytorch = importlib.import_module("dinov3_seg_ros.runtimes.pytorch.runtime")
    monkeypatch.setattr(pytorch, "_resolve_device", lambda device: torch.device("cuda"))
    assert Segmenter.from_bundle(exported.path, providers=["CPUExecutionProvider"]).runtime.name == "onnx"
    for precision in ("auto", "bf16"):
        wrong = {"providers": ("OpenVinoExecutionProvider",), "precision": precision}
        for use in (Segmenter.from_bundle, lambda path, **options: choosing.choose([path], ComputeOptions(**options))):
            with pytest.raises(RuntimeUnavailableError, match="ONNX Runtime has no OpenVinoExecutionProvider; it has"):
                use(exported.path, **wrong)


@pytest.mark.parametrize("features", [(), ("avx512_bf16",)])
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "int8"])
def test_pytorch_is_offered_alike_whether_or_not_it_is_imported(copy, precision, features, monkeypatch):
    monkeypatch.setattr("dinov3_seg_ros.runtimes.choice._torch_has_no_gpu", lambda: True)
    processor = Cpu(name="a processor", architecture="x86_64", features=features)
    monkeypatch.setattr("dinov3_seg_ros.runtimes.pytorch.candidates.this_cpu", lambda: processor)
    for written in ("fp16", "int8"):
        write_graphs(copy, written, size=SIZE)
    options = ComputeOptions(precision=precision, device="cpu")
    found, reasons, _ = find_candidates([copy], options)
    assert "onnx" in found
    try:
        expected = PyTorchRuntime.candidates([copy], options)
    except RuntimeUnavailableError as error:
        assert "torch" not in found and reasons["torch"] == str(error)
    else:
        assert len(expected) == (2 if features and precision == "auto" else 1)
        for each, alike in zip(found["torch"], expected, strict=True):
            assert dataclasses.replace(each, open=alike.open) == alike
            assert each.open().description == alike.open().description


def test_auto_falls_back_to_graphs_where_torch_cannot_load_the_backbone(copy, monkeypatch, caplog):
    content = json.loads((copy.path / "bundle.json").read_text())
    content["backbone"].update(storage="reference", source=str(copy.path / "absent.pth"))
    content["files"] = {"head.safetensors": content["files"]["head.safetensors"]}
    (copy.path / "bundle.json").write_text(json.dumps(content))
    shutil.rmtree(copy.path / "backbone")
    # As with a GPU that only PyTorch can use.
    pytorch = importlib.import_module("dinov3_seg_ros.runtimes.pytorch.runtime")
    monkeypatch.setattr(pytorch, "_resolve_device", lambda device: torch.device("cuda"))
    assert choose([load_bundle(copy.path)], ComputeOptions()).runtime == "torch"
    segmenter = Segmenter.from_bundle(copy.path)
    assert segmenter.runtime.name == "onnx"
    assert "torch: " in segmenter.runtime_reason and "absent.pth" in segmenter.runtime_reason
    assert "the torch runtime cannot load the bundle" in caplog.text
    with pytest.raises(BackboneError, match=r"absent\.pth"):
        Segmenter.from_bundle(copy.path, "torch")
    shutil.rmtree(copy.path / "onnx")
    with pytest.raises(RuntimeUnavailableError, match=r"no runtime can be used: .*absent\.pth.*make them with"):
        Segmenter.from_bundle(copy.path)


@pytest.mark.parametrize("module", ["transformers", "safetensors"])
def test_torch_without_transformers_or_safetensors_is_not_installed(exported, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert Segmenter.from_bundle(exported.path).runtime_reason.count("torch is not installed") == 1
    with pytest.raises(RuntimeUnavailableError, match=f"'torch' is not installed .*'{module}'.* Python 3.11"):
        Segmenter.from_bundle(exported.path, "torch")
    assert f"'{module}'" in available_runtimes()["torch"], "which the doctor says"
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from dinov3_seg_ros.segmenter import Segmenter\n"
        f"print(Segmenter.from_bundle({str(exported.path)!r}).runtime_reason)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch is not installed" in result.stdout, "also where PyTorch is not imported"


@pytest.mark.parametrize("has_driver", [False, True])
def test_a_robot_without_exports_is_told_first_how_to_make_them(tmp_path, has_driver, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "dinov3_seg_ros.runtimes.tensorrt.runtime", None)
    for module in ("dinov3_seg_ros.runtimes.choice", "dinov3_seg_ros.doctor.computing"):
        monkeypatch.setattr(f"{module}.has_nvidias_driver", lambda: has_driver)
    bundle = tiny_bundle(tmp_path / "tiny")
    with caplog.at_level("INFO", "dinov3_seg_ros"), pytest.raises(RuntimeUnavailableError) as error:
        Segmenter.from_bundle(bundle.path)
    assert str(error.value).startswith(f"no runtime can be used: {bundle.path} has no exported graphs of ")
    assert ("[gpu]" in str(error.value)) == has_driver
    assert ("this machine has no driver of NVIDIA" in str(error.value)) != has_driver
    assert "--choose" not in caplog.text, "there is nothing to choose from"
    (found,) = [finding for finding in computing.runtimes([]) if finding.subject == "runtime tensorrt"]
    assert found.level == (WARNING if has_driver else OK)


def test_bundles_on_one_backbone_share_one_pass(tmp_path, picture):
    one = tiny_bundle(tmp_path / "one", name="one")
    two = tiny_bundle(tmp_path / "two", name="two", num_classes=3)
    export([one.path, two.path], ExportOptions())
    segmenter = Segmenter.from_bundle([one.path, two.path], "onnx")
    backbone, calls = segmenter.runtime._backbones[SIZE], []
    run = backbone.run
    backbone.run = lambda inputs: calls.append(inputs["canvases"].shape()[0]) or run(inputs)
    result = segmenter.segment([picture])[0]
    assert calls == [1]
    for bundle in (one, two):
        alone = Segmenter.from_bundle(bundle.path, "onnx").segment([picture])[0].labels
        assert np.array_equal(result.heads[bundle.manifest.name].labels, alone)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_qdq"])
def test_lower_precisions_stay_near_the_model(copy, precision, picture):
    export([copy.path], ExportOptions(precision=precision, least_labels=0.8))
    record = next(e for e in find_exports(copy)[0] if e.manifest.precision == precision).manifest
    assert record.verified
    assert 0.95 < min(m["cosine"] for m in record.parity["features"].values()) < 1
    segmenter = Segmenter.from_bundle(copy.path, "onnx", precision=precision)
    expected = Segmenter.from_bundle(copy.path, "torch").segment([picture])[0].labels
    assert (segmenter.segment([picture])[0].labels == expected).mean() > 0.8
    assert precision in segmenter.runtime.description


def test_8_bits_leave_the_convolution_that_reads_the_image_in_float(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", "dinov3_convnext")
    (folder,) = export([bundle.path], ExportOptions(precision="int8_qdq", least_labels=0.0))
    graph = onnx.load(folder / "backbone.onnx").graph
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    stem, *others = [node for node in graph.node if node.op_type == "Conv"]
    assert not dequantised.intersection(stem.input)
    assert others
    assert all(dequantised.issuperset(node.input[:2]) for node in others)


@pytest.mark.parametrize("geometry", ["stretch", "letterbox"])
def test_8_bits_are_calibrated_on_network_inputs_as_on_the_robot(tmp_path, geometry, monkeypatch):
    import cv2

    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((50, 50, 3), 255, np.uint8))
    bundle = tiny_bundle(tmp_path / "tiny", geometry=geometry)
    seen, right = [], exporter.quantisation.cosines

    def noting(source, quantised, canvases):
        seen.extend(canvases)
        return right(source, quantised, seen)

    monkeypatch.setattr(exporter.quantisation, "cosines", noting)
    export([bundle.path], ExportOptions(precision="int8", images=tmp_path / "images", least_labels=0.0))
    margin = {"stretch": 0, "letterbox": 16}[geometry]
    assert (seen[0][0, :, margin : SIZE[1] - margin] == 255).all()
    assert (seen[0][0, :, :margin] < 255).all()


def test_8_bits_are_calibrated_on_images_spread_over_all(tmp_path, monkeypatch):
    import cv2

    (tmp_path / "images").mkdir()
    for number in range(5):
        image = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        image[0, 0] = number
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
    seen, right = [], exporter.quantisation.static_for

    def noting(canvases):
        seen.append([int(canvas[0, 0, 0, 0]) for canvas in canvases])
        return right(canvases)

    monkeypatch.setattr(exporter.quantisation, "static_for", noting)
    monkeypatch.setattr(exporter, "_CALIBRATION_IMAGES", 3)
    bundle = tiny_bundle(tmp_path / "tiny")
    export([bundle.path], ExportOptions(precision="int8_qdq", images=tmp_path / "images", least_labels=0.0))
    assert [0, 2, 4] in seen


META = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.mark.parametrize(
    ("storage", "source", "said"),
    [
        ("reference", META, "contains weights of DINOv3 by Meta.*subject to the DINOv3 License, https"),
        ("embedded", META, "contains weights of DINOv3 by Meta.*subject to the DINOv3 License, https"),
        ("embedded", "/a/dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "contains weights of DINOv3 by Meta"),
        ("delta", "timm/vit_small_patch16_dinov3.lvd1689m", "contains weights of DINOv3 by Meta"),
        ("embedded", "/a/dinov3_vits16_pretrain_lvd1689m_finetuned.pth", "contains weights of DINOv3 by Meta"),
        ("delta", "me/dinov3-vits16-pretrain-lvd1689m-thermal/model.pth", "contains weights of DINOv3 by Meta"),
        ("reference", "me/dinov3-vits16-pretrain-lvd1689m-thermal", "contains weights of DINOv3 by Meta"),
        ("reference", "timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m", r"weights of timm/vit_\S+\.eupe_\w+, or"),
        ("embedded", "robbyant/lingbot/model.pt", "come from 'lingbot'. If that is a published backbone, its own"),
        ("delta", "robbyant/lingbot/model.pt", "contains weights of robbyant/lingbot, or"),
        ("embedded", "customer/mine", "come from 'mine'. If that is a published backbone, its own licence applies"),
        ("reference", "/home/me/mine", "does not tell whose .* If they are Meta's"),
        ("embedded", "/home/me/mine", None),
        ("embedded", "weights/demo/backbone", None),
        ("embedded", "trained from scratch by recipe mine", None),
    ],
)
def test_the_licences_beside_graphs_name_whose_weights_they_hold(exported, storage, source, said):
    section = exported.manifest.backbone.model_copy(update={"storage": storage, "source": source})
    manifest = exported.manifest.model_copy(update={"backbone": section, "licences": ["CC0 images"]})
    written = licences_of_graphs(dataclasses.replace(exported, manifest=manifest))
    assert re.fullmatch(f"CC0 images\n.*{said}.*" if said else "CC0 images", written), written
    assert "/home" not in written and "customer" not in written
    assert ("of DINOv3 by Meta" in written) == ("of DINOv3 by Meta" in (said or ""))


@pytest.mark.parametrize(
    ("source", "is_told"), [("/home/me/mine", True), ("me/mine", True), ("trained from scratch by recipe mine", False)]
)
def test_an_embedded_backbone_of_unknown_weights_and_licence_may_be_metas(exported, source, is_told):
    section = exported.manifest.backbone.model_copy(update={"source": source})
    manifest = exported.manifest.model_copy(update={"backbone": section, "licences": []})
    written = licences_of_graphs(dataclasses.replace(exported, manifest=manifest))
    assert ("does not tell whose weights it contains. If they are Meta's" in written) == is_told


def test_a_batch_size_without_engines_is_refused(exported, capsys):
    assert main([str(exported.path), "--max-batch", "4"]) == 2
    assert "add --engine" in capsys.readouterr().err


@pytest.mark.parametrize("made_on", ["a processor with other kernels", "nobody knows what"])
def test_auto_takes_no_int8_that_only_another_processor_ran(copy, made_on, caplog):
    shutil.rmtree(copy.path / "onnx")
    for precision in ("fp32", "int8"):
        folder = write_graphs(copy, precision, size=SIZE, reference=False)
    manifest = json.loads((folder / "export.json").read_text())

    def verified_on(cpu):
        manifest["cpu"] = cpu and cpu.model_dump(mode="json")
        (folder / "export.json").write_text(json.dumps(manifest))

    verified_on(this_cpu())
    assert Segmenter.from_bundle(copy.path, "onnx").runtime.description.endswith(", int8")
    assert not caplog.records
    other = Cpu(name="Other CPU", architecture="other", features=("avx2",))
    verified_on(other if made_on == "a processor with other kernels" else None)
    assert Segmenter.from_bundle(copy.path, "onnx").runtime.description.endswith(", fp32")
    (said,) = caplog.messages
    assert "64x96-int8 is used only when int8 is asked for" in said and "export int8 on this machine" in said
    assert ("Other CPU" if manifest["cpu"] else "unknown processor") in said
    assert Segmenter.from_bundle(copy.path, "onnx", precision="int8").runtime.description.endswith(", int8")
    shutil.rmtree(copy.path / "onnx" / "64x96-fp32")
    with pytest.raises(RuntimeUnavailableError, match="export int8 on this machine"):
        Segmenter.from_bundle(copy.path, "onnx")


def test_int8_computes_attention_as_one_operator(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", "dinov3_vit")
    (folder,) = export([bundle.path], ExportOptions(precision="int8", least_labels=0.8))
    assert "com.microsoft.MultiHeadAttention" in operators(folder / "backbone.onnx")
    assert "Softmax" not in operators(folder / "backbone.onnx")


def test_auto_takes_no_precision_that_was_not_verified(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", "dinov3_vit", detail=True)
    (folder,) = export([bundle.path], ExportOptions(precision="bf16"))
    report = (folder / "report.md").read_text()
    assert "Not verified" in report and "Type 'tensor(bfloat16)'" in report, "whichever provider would compute it"
    assert not find_exports(bundle)[0][0].manifest.verified
    assert Segmenter.from_bundle(bundle.path).runtime.name == "torch"


@pytest.mark.parametrize("has_export", [True, False])
def test_bf16_on_a_cpu_is_left_to_runtimes_that_compute_it(copy, has_export):
    if has_export:
        write_graphs(copy, "bf16", size=SIZE)
    options = {"device": "cpu", "precision": "bf16"}
    assert choose([copy], ComputeOptions(**options)).runtime == "torch"
    with pytest.raises(RuntimeUnavailableError, match="CPUExecutionProvider has no precision 'bf16', only int8, fp32"):
        Segmenter.from_bundle(copy.path, "onnx", **options)


def test_graphs_that_compute_something_else_fail_the_command(copy, monkeypatch, capsys):
    shutil.rmtree(copy.path / "onnx")
    right = exporter.export_head

    def wrong(graph, maps, layers, size, path, properties):
        spoilt = HeadGraph(load_bundle(copy.path).load_head(), *NORMALISATION)
        torch.nn.init.normal_(spoilt.head.classifier.weight)
        right(spoilt, maps, layers, size, path, properties)

    monkeypatch.setattr(exporter, "export_head", wrong)
    assert main([str(copy.path)]) == 1
    assert "logits of tiny has cosine" in capsys.readouterr().err
    assert [path.name for path in (copy.path / "onnx").iterdir()] == [".lock"]


def test_a_full_disk_leaves_the_old_graphs(copy, capsys):
    before = {path.name: path.read_bytes() for path in (copy.path / "onnx" / "64x96-fp32").iterdir()}
    with full_disk(20_000):
        assert main([str(copy.path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (copy.path / "onnx" / "64x96-fp32").iterdir()}
    assert Segmenter.from_bundle(copy.path, "onnx").runtime.sizes == (SIZE,)


def test_a_disk_full_at_the_second_bundle_leaves_the_firsts_old_graphs(copy, tmp_path, monkeypatch, capsys):
    other = tiny_bundle(tmp_path / "other", name="other", num_classes=3)
    before = {path.name: path.read_bytes() for path in (copy.path / "onnx" / "64x96-fp32").iterdir()}
    whole = shutil.copytree

    def until_full(source, target, **options):
        if source.name == "other":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(source, target, **options)

    monkeypatch.setattr(exporter.shutil, "copytree", until_full)
    assert main([str(copy.path), str(other.path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (copy.path / "onnx" / "64x96-fp32").iterdir()}
    assert [path.name for path in (other.path / "onnx").iterdir()] == [".lock"]


def export_with_another(path, both_are_ready):
    both_are_ready.wait(300)
    export([path], ExportOptions())


def test_two_exports_at_once_both_end_well(copy):
    for left in (".work.k1ll3d__", ".64x96-fp32.k1ll3d__"):  # by exports that were killed
        (copy.path / "onnx" / left).mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    both_are_ready = context.Barrier(2)
    other = context.Process(target=export_with_another, args=(copy.path, both_are_ready))
    other.start()
    export_with_another(copy.path, both_are_ready)
    other.join(timeout=300)
    other.kill()
    assert other.exitcode == 0
    assert Segmenter.from_bundle(copy.path, "onnx").runtime.sizes == (SIZE,)
    assert sorted(path.name for path in (copy.path / "onnx").iterdir()) == [".lock", "64x96-fp32"]


def test_half_a_copy_left_by_a_killed_export_is_ignored(copy):
    whole = copy.path / "onnx" / "64x96-fp32"
    left = shutil.copytree(whole, whole.with_name(".64x96-fp32.k1ll3d"))
    (left / "head.onnx").unlink()
    usable, refused = find_exports(copy)
    assert [export.folder for export in usable] == [whole]
    assert refused == []
    assert Segmenter.from_bundle(copy.path).runtime.name == "onnx"


@pytest.mark.parametrize("graph", ["backbone.onnx", "head.onnx"])
def test_a_damaged_graph_is_named_and_never_run(copy, graph):
    path = copy.path / "onnx" / "64x96-fp32" / graph
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExportError, match=f"{graph} is damaged"):
        Segmenter.from_bundle(copy.path, "onnx")
    path.unlink()
    with pytest.raises(ExportError, match=f"{graph} is missing"):
        Segmenter.from_bundle(copy.path, "onnx")


@pytest.mark.parametrize(("options", "what"), [({"seed": 9}, "head"), ({"num_classes": 4}, "head"), ({}, "backbone")])
def test_graphs_of_another_bundle_are_refused(exported, tmp_path, options, what):
    backbone = made_backbone("dinov3_convnext", [1, 2, 3])
    if what == "backbone":
        with torch.no_grad():
            next(backbone.parameters()).mul_(1.01)
    other = write_tiny_bundle(tmp_path / "tiny", backbone=backbone, network_size=SIZE, geometry="stretch", **options)
    shutil.copytree(exported.path / "onnx", other.path / "onnx")
    with pytest.raises(RuntimeUnavailableError, match=f"was exported with another {what} than the bundle's"):
        Segmenter.from_bundle(other.path, "onnx")
    assert Segmenter.from_bundle(other.path).runtime.name == "torch"


@pytest.mark.parametrize(("field", "what"), [("mean", "mean"), ("std", "standard deviation")])
def test_graphs_of_another_normalisation_are_refused(exported, field, what):
    network = exported.manifest.input.model_copy(update={field: (0.5, 0.5, 0.5)})
    manifest = exported.manifest.model_copy(update={"input": network})
    usable, refused = find_exports(dataclasses.replace(exported, manifest=manifest))
    assert usable == []
    assert re.search(f"was exported with another {what} than the bundle's", " ".join(refused))


def test_graphs_whose_head_reads_other_layers_than_the_bundle_names_are_refused(copy):
    content = json.loads((copy.path / "bundle.json").read_text())
    for kind in ("layers", "channels", "strides"):
        content["backbone"][kind].pop()
    (copy.path / "bundle.json").write_text(json.dumps(content))
    said = r"head\.onnx reads layer_3, but backbone\.layers in bundle\.json is \[1, 2\]; correct"
    with pytest.raises(ExportError, match=said):
        Segmenter.from_bundle(copy.path, "onnx")


@pytest.mark.parametrize("count", [4, 6])
def test_graphs_of_more_or_fewer_classes_than_the_bundle_names_are_refused(copy, count):
    content = json.loads((copy.path / "bundle.json").read_text())
    content["classes"] = {"names": [f"class {i}" for i in range(count)], "palette": [[i, i, i] for i in range(count)]}
    (copy.path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(ExportError, match=rf"head\.onnx computes 5 classes, but bundle\.json names {count}; correct"):
        Segmenter.from_bundle(copy.path, "onnx")
    with pytest.raises(RuntimeUnavailableError, match=r"head\.onnx computes 5 .*head\.safetensors does not fit"):
        Segmenter.from_bundle(copy.path)


def test_a_frame_sized_geometry_takes_the_graph_of_the_nearest_aspect(copy, picture):
    export([copy.path], ExportOptions(size=(96, 64)))
    segmenter = Segmenter.from_bundle(copy.path, "onnx", geometry="native")
    assert segmenter.runtime.sizes == ((64, 96), (96, 64))
    taken, run = [], segmenter.runtime.start
    segmenter.runtime.start = lambda canvases, heads: taken.append(canvases.shape[1:3]) or run(canvases, heads)
    upright = np.ascontiguousarray(picture.transpose(1, 0, 2))
    results = segmenter.segment([picture, upright])
    assert taken == [(64, 96), (96, 64)]
    assert [result.labels.shape for result in results] == [picture.shape[:2], upright.shape[:2]]


@pytest.fixture
def providers(monkeypatch):
    """Makes ONNX Runtime claim CUDA and TensorRT; only the CPU's provider can be loaded."""
    from dinov3_seg_ros.runtimes.onnx import targets as runtime

    claimed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: claimed)
    monkeypatch.setattr(runtime, "_loadable", {})
    return runtime


def test_a_gpu_build_whose_libraries_do_not_load_computes_on_the_cpu(exported, providers, monkeypatch, capfd, caplog):
    sessions, real = [], onnxruntime.InferenceSession
    monkeypatch.setattr(providers.ort, "InferenceSession", lambda *a, **kw: sessions.append(kw) or real(*a, **kw))
    segmenter = Segmenter.from_bundle(exported.path)
    assert "onnx is the fastest that can run here on the CPU" in segmenter.runtime_reason
    assert "CPUExecutionProvider" in segmenter.runtime.description
    tried = [kw for kw in sessions if kw["providers"][0][0] == "CUDAExecutionProvider"]
    assert len(tried) == 1, "the answer is kept"
    assert caplog.text.count("CUDAExecutionProvider, which cannot be loaded here") == 1
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in caplog.text
    for options in ({"device": "cuda"}, {"providers": ("CUDAExecutionProvider", "CPUExecutionProvider")}):
        with pytest.raises(
            RuntimeUnavailableError, match=r"CUDAExecutionProvider .* could not be loaded .*pip install"
        ):
            Segmenter.from_bundle(exported.path, "onnx", **options)
    assert providers.usable_providers([exported]) == ["CPUExecutionProvider"]
    assert capfd.readouterr().out == ""


def test_a_graph_for_which_there_is_no_memory_is_not_blamed(exported, monkeypatch):
    def open_session(*_arguments, **_options):
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(RuntimeFailedError, match=r"backbone\.onnx .*bad_alloc; end what else uses the memory"):
        Segmenter.from_bundle(exported.path, "onnx", device="cpu")


@pytest.mark.parametrize("has_driver", [True, False])
def test_the_doctor_warns_of_a_gpu_that_onnx_runtime_cannot_use(exported, providers, has_driver, monkeypatch):
    monkeypatch.setattr(computing, "has_nvidias_driver", lambda: has_driver)
    found = [finding for finding in computing.providers([exported.path]) if "CUDA" in finding.detail]
    assert [finding.level for finding in found] == [WARNING] * has_driver
    assert all("pip install 'onnxruntime-gpu[cuda,cudnn]'" in finding.remedy for finding in found)


def test_without_a_graph_to_try_every_provider_of_the_build_is_reported(providers):
    assert len(providers.usable_providers([])) == 3


@pytest.mark.parametrize(
    ("rules", "device", "found"),
    [
        ({}, "auto", ["cpu"]),
        ({"is_preferred": True}, "auto", ["gpu:0", "cpu"]),
        ({"is_preferred": True}, "gpu:1", ["gpu:1"]),
        ({"is_preferred": True}, "cpu", ["cpu"]),
        ({"is_preferred": True, "kinds": ("cuda",)}, "gpu:1", ["cuda:1"]),
        ({"gains": lambda self, use, asked=False: ("bf16",) if asked else ()}, "auto", ["gpu:0", "cpu"]),
    ],
)
def test_providers_of_the_build_are_taken_as_their_rules_say(providers, monkeypatch, rules, device, found):
    name = "OddExecutionProvider"
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [name, "CPUExecutionProvider"])
    monkeypatch.setattr(providers.plugins, "devices", list)
    monkeypatch.setitem(_CLASSES, name, type("Odd", (Provider,), rules))
    taken = providers.targets_here(ComputeOptions(device=device), [])
    assert [target.device for target in taken] == found
    assert [target.provider.name == name for target in taken] == [kind != "cpu" for kind in found]


def test_a_damaged_head_graph_is_not_what_a_provider_is_tried_with(copy, providers, monkeypatch):
    path = copy.path / "onnx" / "64x96-fp32" / "head.onnx"
    path.write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"head\.onnx is damaged"):
        Segmenter.from_bundle(copy.path, "onnx")
    assert providers._loadable == {}


class Gpus:
    """Sessions of a build of ONNX Runtime whose GPU providers load; they compute on the CPU all the same."""

    def __init__(self, real):
        self._real, self.asked, self.threads, self.bound = real, [], [], []

    def __call__(self, path, options=None, providers=()):
        self.asked.append(providers)
        self.threads.append(options and options.intra_op_num_threads)
        session = self._real(path, options, providers=["CPUExecutionProvider"])
        first = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        return _SessionOnGpu(session, first, self.bound)


class _SessionOnGpu:
    def __init__(self, session, provider, bound):
        self._session, self._provider, self._bound = session, provider, bound

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_providers(self):
        return [self._provider, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return []  # as before ONNX Runtime 1.24

    def io_binding(self):
        binding, bound = self._session.io_binding(), self._bound
        bind_output = binding.bind_output

        def noting(name, device_type, device_id):
            bound.append((name, device_type, device_id))
            bind_output(name, "cpu", 0)

        binding.bind_output = noting
        return binding


@pytest.fixture
def gpus(providers, monkeypatch):
    with monkeypatch.context() as patched:
        sessions, placed = Gpus(onnxruntime.InferenceSession), onnxruntime.OrtValue.ortvalue_from_numpy
        patched.setattr(onnxruntime, "InferenceSession", sessions)
        patched.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array, *place: placed(array))
        yield sessions


@pytest.mark.parametrize(("asked", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_onnx_runtime_computes_on_the_gpu_of_the_number_asked_for(exported, gpus, asked, number, picture):
    options = ComputeOptions(device=asked, precision="fp32")
    chosen = choose([exported], options)
    name, reason = chosen.runtime, chosen.reason
    assert name == "onnx" and f"can run here on the CUDA:{number}" in reason
    segmenter = Segmenter.from_bundle(exported.path, "onnx", device=asked, precision="fp32")
    assert (segmenter.runtime.device, segmenter.runtime.logits_device) == (f"cuda:{number}", "cpu")
    assert f"CUDAExecutionProvider on cuda:{number}, fp32" in segmenter.runtime.description
    for providers in gpus.asked:
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": str(number), "use_tf32": "0"})
    assert segmenter.segment([picture])[0].labels.shape == picture.shape[:2]
    maps = [(f"layer_{layer}", "cuda", number) for layer in (1, 2, 3)]
    assert gpus.bound[-4:] == [*maps, ("logits", "cpu", 0)]


def test_a_provider_named_by_the_user_gets_the_number_of_the_gpu(exported, gpus):
    chosen = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    runtime = Segmenter.from_bundle(exported.path, "onnx", device="cuda:1", precision="fp32", providers=chosen).runtime
    assert runtime.description.endswith("TensorrtExecutionProvider on cuda:1, fp32")
    assert gpus.asked[-1] == [
        ("TensorrtExecutionProvider", {"device_id": "1"}),
        ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ]


def test_device_cpu_does_not_try_a_gpu(exported, gpus):
    runtime = Segmenter.from_bundle(exported.path, "onnx", device="cpu").runtime
    assert runtime.device == "cpu"
    assert all(providers[0] == ("CPUExecutionProvider", {}) for providers in gpus.asked)


def test_threads_limit_backbone_and_heads_in_onnx_runtime(exported, gpus):
    Segmenter.from_bundle(exported.path, "onnx", device="cpu", threads=3)
    assert gpus.threads == [3, 3]


def test_graphs_are_compared_on_the_cpu_even_where_there_is_a_gpu(copy, gpus):
    export([copy.path], ExportOptions(fuse=True))
    names = [one if isinstance(one, str) else one[0] for asked in gpus.asked for one in asked]
    assert names == ["CPUExecutionProvider"] * 3


def test_a_size_without_graphs_names_the_command_that_makes_them(exported):
    with pytest.raises(RuntimeUnavailableError, match=r"dinov3_seg_ros\.export .* --size 128 96"):
        Segmenter.from_bundle(exported.path, "onnx", network_size=(128, 96))
    with pytest.raises(ParameterError, match="multiples of 32"):
        export([exported.path], ExportOptions(size=(100, 100)))
    with pytest.raises(ParameterError, match="precision is 'fp8'; use one of: auto, fp32"):
        Segmenter.from_bundle(exported.path, "onnx", precision="fp8")


def test_the_miou_of_model_and_graphs_is_reported_with_masks(copy, tmp_path, picture):
    import cv2

    for kind, image in (("images", picture), ("masks", np.zeros(picture.shape[:2], np.uint8))):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "a.png"), image)
    (folder,) = export([copy.path], ExportOptions(images=tmp_path / "images", masks=tmp_path / "masks"))
    written = json.loads((folder / "export.json").read_text())
    assert written["user_images"] is True
    head = written["parity"]["heads"]["tiny"]
    assert head["miou"] == pytest.approx(head["miou_reference"], abs=1e-3)
