"""8-bit integer forms of a float32 backbone graph, made by ONNX Runtime's quantiser.

Only products with constant weights are quantised. The convolution that reads the image, the two products of attention,
the norms and everything else stay in float. The sensitivity of the layers to 8 bits is measured.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from dinov3_seg_ros.bundle.onnx_folder import CANVASES
from dinov3_seg_ros.export import graph_files
from dinov3_seg_ros.runtimes.agreement import cosine

Quantise = Callable[[Path, Path, Sequence[str]], None]


def dynamic(source: Path, target: Path, float_nodes: Sequence[str]) -> None:
    """Quantise weights to int8 by output channel, and activations when they are computed: the fastest form on CPUs.

    Args:
        source: the float32 graph.
        target: the file to write.
        float_nodes: names of the nodes to leave in float.
    """
    with _quiet(), _large_graphs(source, target) as large:
        quantize_dynamic(
            source,
            target,
            use_external_data_format=large,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(float_nodes),
            extra_options={"MatMulConstBOnly": True},
        )


def static_for(canvases: Sequence[np.ndarray]) -> Quantise:
    """Return what quantises to symmetric int8, as QuantizeLinear and DequantizeLinear, for TensorRT.

    TensorRT requires symmetric ranges, weights quantised by output channel, and biases in float: it cannot dequantise
    the int32 that quantised biases are.

    Args:
        canvases: network inputs, (1, H, W, 3) uint8 each, on which the ranges are measured.
    """

    def quantise(source: Path, target: Path, float_nodes: Sequence[str]) -> None:
        _, others = _products(source)
        with _quiet(), _large_graphs(source, target) as large:
            quantize_static(
                source,
                target,
                _Canvases(canvases),
                use_external_data_format=large,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted({*float_nodes, *others}),
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )

    return quantise


def rank_by_sensitivity(source: Path, quantise: Quantise, canvases: Sequence[np.ndarray], folder: Path) -> list[str]:
    """Rank the nodes by how far the feature maps move when that node alone is quantised, the worst first.

    Args:
        source: the float32 graph.
        quantise: makes the quantised graph.
        canvases: network inputs to measure on, (1, H, W, 3) uint8 each.
        folder: for a temporary file.
    """
    (nodes, _), reference = _products(source), _run(source, canvases)
    errors: dict[str, float] = {}
    candidate = folder / "candidate.onnx"
    for node in nodes:
        quantise(source, candidate, [other for other in nodes if other != node])
        errors[node] = _distance(reference, _run(candidate, canvases))
    graph_files.remove(candidate)
    return sorted(nodes, key=lambda node: -errors[node])


def cosines(source: Path, quantised: Path, canvases: Iterable[np.ndarray]) -> Iterator[float]:
    """Yield the cosine between the feature maps of two graphs: of each map of one canvas, then of the next.

    Args:
        source, quantised: the two graphs.
        canvases: network inputs, (1, H, W, 3) uint8 each. They are taken one by one, and none is kept.
    """
    sessions = [graph_files.open_on_cpu(graph) for graph in (source, quantised)]
    for canvas in canvases:
        maps = [session.run(None, {CANVASES: canvas}) for session in sessions]
        for a, b in zip(*maps, strict=True):
            yield cosine(a, b)


class _Canvases(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, canvases: Sequence[np.ndarray]) -> None:
        self._left: Iterator[np.ndarray] = iter(canvases)

    def get_next(self) -> dict[str, np.ndarray] | None:
        canvas = next(self._left, None)
        return None if canvas is None else {CANVASES: canvas}


def _products(graph: Path) -> tuple[list[str], list[str]]:
    """Return the names of the products to quantise, which have constant weights, and of the others, each in order.

    The first convolution reads the image, and stays in float. It is 1 % of the work, and alone moves a ViT's maps
    further than all layers of any other kind.
    """
    model = onnx.load(graph, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    stem = next((node.name for node in products if node.op_type == "Conv"), None)
    quantised = [node.name for node in products if node.input[1] in constants and node.name != stem]
    return quantised, [node.name for node in products if node.name not in quantised]


def _run(graph: Path, canvases: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    session = graph_files.open_on_cpu(graph)
    return [session.run(None, {CANVASES: canvas}) for canvas in canvases]


def _distance(reference: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Return the largest, over maps and canvases, norm of the difference relative to the norm of the map."""
    pairs = [pair for maps in zip(reference, found, strict=True) for pair in zip(*maps, strict=True)]
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)) for a, b in pairs)


@contextlib.contextmanager
def _large_graphs(source: Path, target: Path) -> Iterator[bool]:
    """Say whether the quantiser has to put weights into files of their own, as the source does; remove needless ones.

    It would append to a file of weights that is there.
    """
    graph_files.remove(target)
    large = graph_files.has_weights_beside(source)
    yield large
    if large:  # in 8 bits they may fit into the graph
        graph_files.save(onnx.load(target), target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice to pre-process, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
