"""SmoothQuant: move the spread of activations into the weights that multiply them, before both are rounded to 8 bits.

A static 8-bit range holds all channels of a tensor. A channel that is far larger than the others, as transformers have
them, leaves the others few steps. Dividing each channel by a factor and multiplying the rows of the following weights
by it changes nothing in float, and both then fit 8 bits better. Where the division can be folded into weights that are
there already, it costs nothing.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022,
arXiv:2211.10438), with its exponent of 0.5. The paper folds into the norms; a gated MLP is smoothed here too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from dinov3_seg_ros.bundle.onnx_folder import CANVASES
from dinov3_seg_ros.export.graph_files import open_on_cpu, save

_EXPONENT = 0.5
_FIRST_AXIS = "smoothquant.first_axis"


@dataclass(frozen=True)
class _Place:
    """Activations whose channels can be scaled.

    Attributes:
        activations: name of the tensor, (..., channels).
        divided: names of the constants, (..., channels), by which whatever is before makes it.
        multiplied: names of the constants (channels, outputs) that multiply it.
    """

    activations: str
    divided: tuple[str, ...]
    multiplied: tuple[str, ...]


def smooth(source: Path, target: Path, canvases: Sequence[np.ndarray]) -> int:
    """Write a graph that computes the same in float32, and loses less in 8 bits.

    Args:
        source: the float32 graph.
        target: the file to write; weights of 2 GB and more go into a file beside it.
        canvases: network inputs, (1, H, W, 3) uint8 each, on which the activations are measured.

    Returns:
        The number of tensors that were smoothed; 0 where the graph has none that can be.
    """
    model = onnx.load(source)
    places = list(_places(model.graph))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for place, largest in zip(places, _largest(model, places, target, canvases), strict=True):
        rows = [np.abs(onnx.numpy_helper.to_array(constants[name])).max(axis=1) for name in place.multiplied]
        factors = _factors(largest, np.max(rows, axis=0))
        for name in place.divided:
            _scale(constants[name], 1.0 / factors)
        for name in place.multiplied:
            _scale(constants[name], factors[:, None])
    save(model, target)
    return len(places)


def _factors(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what to divide each channel by, from the largest magnitudes there; 1 where one of them is 0."""
    known = (activations > 0) & (weights > 0)
    factors = np.ones(len(activations), np.float32)
    factors[known] = activations[known] ** _EXPONENT / weights[known] ** (1.0 - _EXPONENT)
    return factors


def _scale(constant: onnx.TensorProto, factors: np.ndarray) -> None:
    scaled = (onnx.numpy_helper.to_array(constant) * factors).astype(np.float32)
    constant.CopyFrom(onnx.numpy_helper.from_array(scaled, constant.name))


def _largest(
    model: onnx.ModelProto, places: Sequence[_Place], target: Path, canvases: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the largest magnitude of each channel of each place over the canvases."""
    if not places:
        return []
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    graph = measured.graph
    del graph.output[:]
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), _FIRST_AXIS))
    for place in places:
        largest = f"{place.activations}.largest"
        graph.node.extend(
            [
                onnx.helper.make_node("Abs", [place.activations], [f"{largest}.abs"]),
                onnx.helper.make_node("Flatten", [f"{largest}.abs"], [f"{largest}.cells"], axis=-1),
                onnx.helper.make_node("ReduceMax", [f"{largest}.cells", _FIRST_AXIS], [largest], keepdims=0),
            ]
        )
        graph.output.append(onnx.helper.make_empty_tensor_value_info(largest))
    save(measured, target)
    session = open_on_cpu(target)
    found = [session.run(None, {CANVASES: canvas}) for canvas in canvases]
    return [np.max(of_place, axis=0) for of_place in zip(*found, strict=True)]


def _places(graph: onnx.GraphProto) -> Iterator[_Place]:
    """Yield what can be smoothed: norms, and gated MLPs, that only products with constant weights read."""
    constants = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {output.name for output in graph.output}

    def is_own(name: str) -> bool:
        """Whether a constant serves one node alone."""
        return name in constants and uses[name] == 1

    for node in graph.node:
        made = node.output[0]
        weights = [reader.input[1] for reader in readers[made] if reader.op_type == "MatMul"]
        if made in outputs or not weights or len(weights) < len(readers[made]) or not all(map(is_own, weights)):
            continue
        divided: list[str] = []
        if node.op_type == "LayerNormalization":
            divided = [name for name in node.input[1:] if name]
        elif node.op_type == "Mul":
            divided = next((names for name in node.input if (names := _linear(name, made_by, uses))), [])
        if divided and all(map(is_own, divided)):
            yield _Place(made, tuple(divided), tuple(weights))


def _linear(name: str, made_by: Mapping[str, onnx.NodeProto], uses: Mapping[str, int]) -> list[str]:
    """Return the names of weights and bias if a linear layer makes a tensor that one node alone reads, else nothing."""
    add = made_by.get(name)
    product = made_by.get(add.input[0]) if add is not None and add.op_type == "Add" else None
    if add is None or product is None or product.op_type != "MatMul" or uses[name] > 1 or uses[product.output[0]] > 1:
        return []
    return [product.input[1], add.input[1]]
