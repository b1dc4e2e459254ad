"""Activations are smoothed before a static quantisation: `export.smoothquant`."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dinov3_seg_ros.bundle.onnx_folder import CANVASES
from dinov3_seg_ros.export import graph_files, quantisation
from dinov3_seg_ros.export.smoothquant import smooth

CHANNELS, HIDDEN = 12, 32


@pytest.fixture
def canvases():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (1, 8, CHANNELS, 3), np.uint8) for _ in range(32)]


def write_graph(path, *, norm_is_read_elsewhere=False, weights_are_shared=False):
    """A norm with one huge channel, two linear layers of which one gates the other, and one behind them."""
    generator = np.random.default_rng(1)
    gains = np.full(CHANNELS, 0.1, np.float32)
    gains[3] = 30.0
    constants = {
        "gains": gains,
        "offsets": generator.normal(0, 0.1, CHANNELS).astype(np.float32),
        "gate": generator.normal(0, 1, (CHANNELS, HIDDEN)).astype(np.float32),
        "up": generator.normal(0, 1, (CHANNELS, HIDDEN)).astype(np.float32),
        "bias": generator.normal(0, 1, HIDDEN).astype(np.float32),
        "down": generator.normal(0, 1, (HIDDEN, 5)).astype(np.float32),
    }
    constants["gate"][3] *= 0.01
    constants["up"][3] *= 0.01
    constants["up"][:, 5] *= 100.0  # a hidden channel that is huge too
    constants["down"][5] *= 0.01
    nodes = [
        helper.make_node("Cast", [CANVASES], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["cells"], perm=[0, 3, 1, 2]),
        helper.make_node("LayerNormalization", ["cells", "gains", "offsets"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "gate"], ["gating"], name="gate"),
        helper.make_node("Sigmoid", ["gating"], ["opened"]),
        helper.make_node("MatMul", ["normed", "gate" if weights_are_shared else "up"], ["product"], name="up"),
        helper.make_node("Add", ["product", "bias"], ["linear"]),
        helper.make_node("Mul", ["opened", "linear"], ["gated"]),
        helper.make_node("MatMul", ["gated", "down"], ["result"], name="down"),
    ]
    outputs = ["result"]
    if norm_is_read_elsewhere:
        nodes.append(helper.make_node("Neg", ["normed"], ["negative"]))
        outputs.append("negative")
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(CANVASES, TensorProto.UINT8, [1, 8, CHANNELS, 3])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def run(path, canvas):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {CANVASES: canvas})


def test_a_smoothed_graph_computes_what_the_graph_does(tmp_path, canvases):
    source, target = write_graph(tmp_path / "source.onnx"), tmp_path / "target.onnx"
    assert smooth(source, target, canvases[:1]) == 2
    for canvas in canvases:
        np.testing.assert_allclose(run(target, canvas)[0], run(source, canvas)[0], rtol=1e-4, atol=1e-3)


def test_a_smoothed_graph_loses_less_in_8_bits(tmp_path, canvases):
    source, smoothed = write_graph(tmp_path / "source.onnx"), tmp_path / "smoothed.onnx"
    smooth(source, smoothed, canvases)
    quantise = quantisation.static_for(canvases)
    lost = {}
    for name, graph in {"as it is": source, "smoothed": smoothed}.items():
        quantise(graph, tmp_path / "int8.onnx", [])
        lost[name] = 1 - min(quantisation.cosines(source, tmp_path / "int8.onnx", canvases))
    assert lost["smoothed"] < 0.2 * lost["as it is"]


def test_a_graph_too_large_for_one_file_is_smoothed_and_quantised_alike(tmp_path, canvases, monkeypatch):
    found = []
    for name, limit in {"one_file": onnx.checker.MAXIMUM_PROTOBUF, "two_files": 0}.items():
        monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", limit)
        (tmp_path / name).mkdir()
        source, smoothed, int8 = (tmp_path / name / f"{graph}.onnx" for graph in ("source", "smoothed", "int8"))
        write_graph(source)
        graph_files.save(onnx.load(source), source)
        assert smooth(source, smoothed, canvases) == 2
        quantise = quantisation.static_for(canvases)
        for _ in range(2):  # the second time, files are there already
            quantise(smoothed, int8, [])
        beside = sorted(file.name for file in (tmp_path / name).glob("*.data"))
        assert beside == ([] if limit else ["smoothed.onnx.data", "source.onnx.data"])
        quantisation.rank_by_sensitivity(smoothed, quantise, canvases[:1], tmp_path / name)
        assert len([*(tmp_path / name).iterdir()]) == 3 + len(beside)
        found.append([run(graph, canvases[0])[0] for graph in (smoothed, int8)])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("case", "smoothed"), [("norm_is_read_elsewhere", 1), ("weights_are_shared", 0)])
def test_what_serves_something_else_is_not_scaled(tmp_path, canvases, case, smoothed):
    source, target = write_graph(tmp_path / "source.onnx", **{case: True}), tmp_path / "target.onnx"
    assert smooth(source, target, canvases) == smoothed
    for found, expected in zip(run(target, canvases[0]), run(source, canvases[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_graphs_are_compared_one_network_input_after_the_other(tmp_path, canvases):
    source, int8, taken = write_graph(tmp_path / "source.onnx"), tmp_path / "int8.onnx", []
    quantisation.dynamic(source, int8, [])
    found = quantisation.cosines(source, int8, (taken.append(canvas) or canvas for canvas in canvases))
    for number in range(1, len(canvases) + 1):
        assert next(found) < 1
        assert len(taken) == number
    assert next(found, None) is None


@pytest.mark.parametrize("is_smoothed", [False, True])
def test_few_calibration_images_rank_layers_like_many(tmp_path, canvases, is_smoothed):
    source = write_graph(tmp_path / "source.onnx")
    if is_smoothed:
        smooth(source, source, canvases)
    for seen in (canvases, canvases[::4]):
        quantise = quantisation.static_for(seen)
        ranked = quantisation.rank_by_sensitivity(source, quantise, canvases[:1], tmp_path)
        assert ranked == ["down", "up", "gate"]


def test_a_graph_is_looked_through_once_for_all_its_products(tmp_path, canvases, monkeypatch):
    source, looked, real = write_graph(tmp_path / "source.onnx"), [], onnx.load

    def load(path, *arguments, **options):
        looked.extend([path] if options.get("load_external_data") is False else [])
        return real(path, *arguments, **options)

    monkeypatch.setattr(onnx, "load", load)
    quantisation.static_for(canvases[:1])(source, tmp_path / "int8.onnx", [])
    assert looked.count(source) <= 2, "for the products, and for weights beside the graph"
