"""Small ONNX graphs in the form of an export, for tests that need no real one, which takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.manifest import HEAD_FILE
from dinov3_seg_ros.bundle.onnx_folder import (
    BACKBONE_GRAPH,
    EXPORT_FILE,
    HEAD_GRAPH,
    REFERENCE_FILE,
    ExportManifest,
    export_folder,
    map_name,
)
from dinov3_seg_ros.options import PRECISIONS
from dinov3_seg_ros.runtimes.gate import FRAMES, Reference
from dinov3_seg_ros.support.files import sha256_of_file, write_json

# A graph may leave any node in float. ONNX Runtime cannot compute bfloat16 on a CPU.
_TYPES = dict.fromkeys(PRECISIONS, TensorProto.FLOAT) | {"fp16": TensorProto.FLOAT16}
_CHANNELS = 4


def write_graphs(
    bundle: Bundle,
    precision: str = "fp32",
    *,
    size: tuple[int, int] = (64, 96),
    seed: int = 0,
    head_seed: int | None = None,
    head_type: str | None = None,
    head_operator: str | None = None,
    reference: bool = True,
) -> Path:
    """Write an export of two convolutional graphs with random weights.

    ``head_seed`` is that of the head's, where it differs; ``head_type`` and ``head_operator`` spoil the head's graph.
    The reference is what ONNX Runtime gives, where it can run the graphs and ``reference`` is true.
    """
    folder = export_folder(bundle, size, precision)
    folder.mkdir(parents=True, exist_ok=True)
    _write_backbone(folder / BACKBONE_GRAPH, bundle, _TYPES[precision], size, np.random.default_rng(seed))
    # Every head with weights of its own, as bundles have.
    random = np.random.default_rng([seed if head_seed is None else head_seed, *bundle.manifest.name.encode()])
    _write_head(folder / HEAD_GRAPH, bundle, _TYPES[head_type or precision], size, random, head_operator)
    (folder / REFERENCE_FILE).unlink(missing_ok=True)
    if reference and head_type is None and head_operator is None:
        _write_reference(folder, size)
    manifest = ExportManifest(
        precision=precision,
        network_size=size,
        layers=bundle.manifest.backbone.layers,
        backbone_identity=bundle.manifest.backbone.identity,
        head_weights=bundle.manifest.files[HEAD_FILE],
        mean=bundle.manifest.input.mean,
        std=bundle.manifest.input.std,
        verified=True,
        files={path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.name != EXPORT_FILE},
    )
    write_json(folder / EXPORT_FILE, manifest.model_dump(mode="json"))
    return folder


def _write_reference(folder, size):
    small = np.random.default_rng(3).integers(0, 256, (FRAMES, 5, 6, 3), np.uint8)
    rows, columns = (np.arange(extent) * cells // extent for extent, cells in zip(size, (5, 6), strict=True))
    canvases = np.ascontiguousarray(small[:, rows][:, :, columns])
    backbone, head = (onnxruntime.InferenceSession(folder / name) for name in (BACKBONE_GRAPH, HEAD_GRAPH))
    names = [output.name for output in backbone.get_outputs()]
    maps = dict(zip(names, backbone.run(names, {"canvases": canvases}), strict=True))
    Reference.of(canvases, maps, head.run(None, maps)[0]).write(folder / REFERENCE_FILE)


def _write_backbone(path, bundle, kind, size, random):
    nodes = [
        helper.make_node("Cast", ["canvases"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["start"], to=kind),
    ]
    constants, outputs, previous, stride, channels = [_constant("scale", np.float32(4 / 255))], [], "start", 1, 3
    backbone = bundle.manifest.backbone
    for layer, wanted in zip(backbone.layers, backbone.strides, strict=True):
        step, name = wanted // stride, map_name(layer)
        weights = random.normal(0, 0.5 / step, (_CHANNELS, channels, step, step))
        constants.append(_constant(f"w{layer}", weights, kind))
        nodes.append(helper.make_node("Conv", [previous, f"w{layer}"], [name], strides=[step, step]))
        outputs.append(_tensor(name, kind, [_CHANNELS, *(extent // wanted for extent in size)]))
        previous, stride, channels = name, wanted, _CHANNELS
    _save(path, nodes, [_tensor("canvases", TensorProto.UINT8, [*size, 3])], outputs, constants)


def _write_head(path, bundle, kind, size, random, operator):
    backbone, classes = bundle.manifest.backbone, len(bundle.manifest.classes.names)
    inputs, nodes, constants, terms = [], [], [], []
    for layer, stride in zip(backbone.layers, backbone.strides, strict=True):
        name = map_name(layer)
        inputs.append(_tensor(name, kind, [_CHANNELS, *(extent // stride for extent in size)]))
        constants.append(_constant(f"w{layer}", random.normal(0, 1, (classes, _CHANNELS, 1, 1)), kind))
        source = name
        if terms:  # of a coarser map, one number for each class
            source = f"mean{layer}"
            nodes.append(helper.make_node("GlobalAveragePool", [name], [source]))
        nodes.append(helper.make_node("Conv", [source, f"w{layer}"], [f"term{layer}"]))
        terms.append(f"term{layer}")
    if operator:
        nodes.append(helper.make_node(operator, [terms[0]], ["unread"], name="odd"))
    nodes.append(helper.make_node("Sum", terms, ["sum"]))
    nodes.append(helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT))
    shape = [classes, *(extent // backbone.strides[0] for extent in size)]
    _save(path, nodes, inputs, [_tensor("logits", TensorProto.FLOAT, shape)], constants)


def _tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _constant(name, values, kind=TensorProto.FLOAT):
    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def _save(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
