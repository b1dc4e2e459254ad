"""8-bit integer forms of a float32 backbone graph, by ONNX Runtime's quantiser.

Only products with constant weights are quantised; the two products of attention, norms and everything else stay in
float. Which of the layers are too sensitive for 8 bits is measured, not guessed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from dinov3_seg_ros.bundle.exports import CANVASES

Quantise = Callable[[Path, Path, Sequence[str]], None]


def dynamic(source: Path, target: Path, float_nodes: Sequence[str]) -> None:
    """int8 weights for each output channel, activations quantised as they come: what CPUs are fastest with.

    Args:
        source: the float32 graph.
        target: where to write.
        float_nodes: names of the nodes to leave as they are.
    """
    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(float_nodes),
            extra_options={"MatMulConstBOnly": True},
        )


def static_for(canvases: Sequence[np.ndarray]) -> Quantise:
    """Symmetric int8 with ranges measured on canvases (1, H, W, 3) uint8, as QuantizeLinear and DequantizeLinear.

    That is the form TensorRT reads; it asks for symmetric ranges, for weights quantised by output channel, and for
    biases in float: it refuses to dequantise the int32 that they would be.
    """

    def quantise(source: Path, target: Path, float_nodes: Sequence[str]) -> None:
        excluded = {*float_nodes, *(node for node in _products(source) if node not in weighted_nodes(source))}
        with _quiet():
            quantize_static(
                source,
                target,
                _Canvases(canvases),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(excluded),
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )

    return quantise


def weighted_nodes(graph: Path) -> list[str]:
    """Names of the nodes that multiply by constant weights, in order."""
    model = onnx.load(graph, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[1] in constants
    ]


def rank_by_sensitivity(source: Path, quantise: Quantise, canvases: Sequence[np.ndarray], folder: Path) -> list[str]:
    """Nodes by how far the feature maps move when that node alone is quantised, the worst first.

    Args:
        source: the float32 graph.
        quantise: how.
        canvases: (1, H, W, 3) uint8 each, to measure on.
        folder: for a temporary file.
    """
    nodes, reference, errors = weighted_nodes(source), _run(source, canvases), {}
    candidate = folder / "candidate.onnx"
    for node in nodes:
        quantise(source, candidate, [other for other in nodes if other != node])
        errors[node] = _distance(reference, _run(candidate, canvases))
    candidate.unlink(missing_ok=True)
    return sorted(nodes, key=lambda node: -errors[node])


def cosine(source: Path, quantised: Path, canvases: Sequence[np.ndarray]) -> float:
    """The smallest cosine, over maps and canvases, between the feature maps of two graphs."""
    least = 1.0
    for maps in zip(_run(source, canvases), _run(quantised, canvases), strict=True):
        for a, b in zip(*maps, strict=True):
            least = min(least, float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30)))
    return least


class _Canvases(CalibrationDataReader):
    def __init__(self, canvases: Sequence[np.ndarray]) -> None:
        self._left: Iterator[np.ndarray] = iter(canvases)

    def get_next(self) -> dict[str, np.ndarray] | None:
        canvas = next(self._left, None)
        return None if canvas is None else {CANVASES: canvas}


def _products(graph: Path) -> list[str]:
    model = onnx.load(graph, load_external_data=False)
    return [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]


def _run(graph: Path, canvases: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return [session.run(None, {CANVASES: canvas}) for canvas in canvases]


def _distance(reference: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Largest, over maps and canvases, norm of the difference relative to the norm of the map."""
    pairs = [pair for maps in zip(reference, found, strict=True) for pair in zip(*maps, strict=True)]
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)) for a, b in pairs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on pre-processing, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
