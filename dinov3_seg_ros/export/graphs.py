"""From PyTorch modules to ONNX graphs: one for the backbone, one for each head.

The precision is in the graph, because TensorRT 11 has no other way. Weights and activations have the wanted type;
normalisation and attention stay in float32, which DINOv3 needs on several inference libraries. A BatchNorm
directly behind a convolution is folded into it, before its weights are rounded; so is what the normalisation of the
image would round.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.compose import merge_graphs
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AttentionInterface

from dinov3_seg_ros.bundle.onnx_folder import BATCH, CANVASES, LOGITS, map_name
from dinov3_seg_ros.export.graph_files import save
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.heads import Head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.support.errors import ExportError

#: The newest opset that TensorRT 10 and 11 and the ONNX Runtimes of the last years read.
OPSET = 18
_PLAIN_ATTENTION, _FUSED_ATTENTION = "dinov3_seg_ros_plain", "dinov3_seg_ros_fused"
_WORTH_COMPACTING = 256
_CANVASES_OF_HEAD = "head/canvases"
_EXAMPLE_BATCH = 2  # torch.export takes a batch of 1 for a constant
_PIXEL_STEPS = 64.0  # a power of two, near what 255 times a standard deviation is


class BackboneGraph(nn.Module):
    """Network inputs (N, H, W, 3) uint8 RGB to feature maps, as exported.

    Changes the types, norms, attention and first convolution of the backbone that it is given.

    Args:
        backbone: frozen.
        size: (height, width) of the network input, pixels.
        mean, std: normalisation of each channel, for values 0..1.
        dtype: of weights and activations.
        fused_attention: attention as one of ONNX Runtime's own operators, which never builds the whole matrix of
            scores.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        fused_attention: bool = False,
    ) -> None:
        super().__init__()
        self._normalise, self._dtype = _leave_rounding_to_first_convolution(backbone, mean, std), dtype
        if hasattr(backbone.model, "set_attn_implementation"):
            AttentionInterface.register(_PLAIN_ATTENTION, _attention_in_float32)
            AttentionInterface.register(_FUSED_ATTENTION, _attention_of_onnx_runtime)
            backbone.model.set_attn_implementation(_FUSED_ATTENTION if fused_attention else _PLAIN_ATTENTION)
        _make_positions_constant(backbone.model, size)
        self.layers = tuple(backbone.layers)
        self.backbone = _converted(backbone.eval(), dtype)

    def forward(self, canvases: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (N, C_i, h_i, w_i) of the dtype, in the order of the backbone's layers."""
        return tuple(self.backbone(self._normalise(canvases).to(self._dtype)))


class HeadGraph(nn.Module):
    """Feature maps, and network inputs where the head is image-guided, to logits (N, C, h, w) float32, as exported.

    Changes the types and norms of the head that it is given.

    Args:
        head: in evaluation mode or not.
        mean, std: normalisation of each channel, for values 0..1.
        dtype: of weights and activations.

    Attributes:
        reads_images: whether the last input is the network inputs.
    """

    def __init__(
        self, head: Head, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.reads_images, self._dtype = head.reads_images, dtype
        self._normalise = Normalise(mean, std)
        self.head = _converted(head.eval(), dtype)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits.

        Args:
            inputs: maps (N, C_i, h_i, w_i) in the order of the head's layers; last, for an image-guided head, the
                network inputs (N, H, W, 3) uint8 RGB.
        """
        logits: Tensor
        if self.reads_images:
            *maps, canvases = inputs
            logits = self.head(maps, self._normalise(canvases).to(self._dtype))
        else:
            logits = self.head(list(inputs))
        return logits.float()


class _Float32Norm(nn.Module):
    def __init__(self, norm: nn.LayerNorm | nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        normalised: Tensor = self.norm(features.float())
        return normalised.to(features.dtype)


def export_backbone(graph: BackboneGraph, size: tuple[int, int], path: Path, properties: Mapping[str, Any]) -> None:
    """Write the backbone's graph: fixed height and width, any batch.

    Args:
        graph: what to export.
        size: (height, width) of the network input, pixels.
        path: the file; weights of 2 GB and more go into a file beside it.
        properties: metadata of the file, by name; values are stored as JSON.
    """
    canvases = torch.zeros(_EXAMPLE_BATCH, *size, 3, dtype=torch.uint8)
    outputs = [map_name(layer) for layer in graph.layers]
    _export(graph, (canvases,), path, [CANVASES], outputs, properties)


def export_head(
    graph: HeadGraph,
    maps: Sequence[Tensor],
    layers: Sequence[int],
    size: tuple[int, int],
    path: Path,
    properties: Mapping[str, Any],
) -> None:
    """Write a head's graph for maps of these types and shapes, but any batch.

    The graph of an image-guided head has the input `bundle.onnx_folder.CANVASES` beside the maps.

    Args:
        graph: what to export.
        maps: examples of its inputs.
        layers: of the maps, in their order.
        size: (height, width) of the network input, pixels.
        path: the file.
        properties: see `export_backbone`.
    """
    inputs, names = list(maps), [map_name(layer) for layer in layers]
    if graph.reads_images:
        inputs.append(torch.zeros(len(maps[0]), *size, 3, dtype=torch.uint8))
        names.append(CANVASES)
    _export(graph, tuple(inputs), path, names, [LOGITS], properties)


def fuse(backbone: Path, head: Path, layers: Sequence[int], path: Path, properties: Mapping[str, Any]) -> None:
    """Write one graph from a backbone's graph and a head's: the whole network, for programs of other projects.

    The robot does not use it: it runs the two graphs, so that several heads share one backbone. A program in another
    language needs only this file. Its input ``canvases`` is (N, H, W, 3) uint8 RGB frames at the network size, any N,
    not normalised; its output ``logits`` is (N, C, h, w) float32, which the program upsamples and takes the argmax of.

    Args:
        backbone, head: the two graphs.
        layers: whose maps the head reads.
        path: the file to write.
        properties: metadata in place of that of the two; see `export_backbone`.

    Raises:
        ExportError: the two use different versions of an operator set.
    """
    # Weights beside the backbone's graph stay there while the two are merged. `onnx.compose.merge_models` would check
    # the whole result in memory, which fails from 2 GB on.
    first, second = onnx.load(backbone, load_external_data=False), onnx.load(head)
    names = [map_name(layer) for layer in layers]
    # The two were exported apart, so their inner names may collide.
    onnx.compose.add_prefix(first, "backbone/", rename_inputs=False, rename_outputs=False, inplace=True)
    _rename_input(second, CANVASES, _CANVASES_OF_HEAD)
    fused = onnx.helper.make_model(
        merge_graphs(first.graph, second.graph, io_map=[(name, name) for name in names], outputs=[LOGITS]),
        opset_imports=_opsets(first, second),
        ir_version=max(first.ir_version, second.ir_version),
        functions=[*first.functions, *second.functions],
    )
    onnx.external_data_helper.load_external_data_for_model(fused, str(backbone.parent))
    _rename_input(fused, _CANVASES_OF_HEAD, CANVASES)
    _describe(fused, properties)
    save(fused, path)
    onnx.checker.check_model(path)


def _opsets(*models: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    """Return the operator sets that models use together.

    Raises:
        ExportError: they use different versions of one, in which an operator may mean something else.
    """
    versions: dict[str, int] = {}
    for entry in (entry for model in models for entry in model.opset_import):
        if versions.setdefault(entry.domain, entry.version) != entry.version:
            raise ExportError(
                f"the graphs cannot be fused: they use versions {versions[entry.domain]} and {entry.version} of the "
                f"operator set '{entry.domain or 'ai.onnx'}'; export backbone and head with the same version of PyTorch"
            )
    return [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _rename_input(model: onnx.ModelProto, name: str, new_name: str) -> None:
    """Rename an input, if there is one of that name; one of the new name that is there already takes its place."""
    graph = model.graph
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = new_name
    names = [entry.name for entry in graph.input]
    if name in names:
        if new_name in names:
            del graph.input[names.index(name)]
        else:
            graph.input[names.index(name)].name = new_name


def store_compactly(path: Path) -> None:
    """Store float32 weights as float16 where float16 holds them exactly, as in bundles stored in float16.

    A Cast in the graph makes them float32 again; inference libraries compute it once, when they load.
    """
    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if values.size >= _WORTH_COMPACTING and np.array_equal(halves, values):
            name = f"{tensor.name}.float16"
            casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], name, to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save(model, path)


def operators(path: Path) -> set[str]:
    """Return the names of all operators in a graph; those outside the ONNX standard begin with their domain."""
    model = onnx.load(path, load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes}


def _export(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    properties: Mapping[str, Any],
) -> None:
    batch = {0: torch.export.Dim(BATCH, min=1, max=1024)}
    varargs = isinstance(graph, HeadGraph)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=((batch,) * len(inputs),) if varargs else (batch,),
            verbose=False,
        )
        assert program is not None  # only with dynamo=False
        program.save(path)
    model = onnx.load(path, load_external_data=False)
    _forget_origin(model)
    _describe(model, properties)
    onnx.save(model, path)


def _describe(model: onnx.ModelProto, properties: Mapping[str, Any]) -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in properties.items()}
    onnx.helper.set_model_props(model, texts)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on each node: stack traces, with paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _attention_in_float32(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention in plain operators, from (B, heads, tokens, channels) each to (B, tokens, heads, channels).

    All of it is in float32 between the casts. So TensorRT fuses it with sums in float32, as its release notes since
    11.3 ask for: with sums in float16, DINOv3 gave one class everywhere (NVIDIA/TensorRT#4723).
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    scores = torch.matmul(query.float() * scale, key.float().transpose(2, 3)).softmax(dim=-1)
    return torch.matmul(scores, value.float()).to(value.dtype).transpose(1, 2), None


def _attention_of_onnx_runtime(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The same attention as one operator, which a CPU computes tile by tile (FlashAttention, Dao et al. 2022)."""
    if not torch.onnx.is_in_onnx_export():
        return _attention_in_float32(module, query, key, value, mask, scaling, **options)
    batch, heads, tokens, channels = query.shape
    attributes: dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str]] = {
        "num_heads": heads
    }
    if scaling is not None:
        attributes["scale"] = float(scaling)
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [part.transpose(1, 2).flatten(2) for part in (query, key, value)],
        attributes,
        dtype=query.dtype,
        shape=(batch, tokens, heads * channels),
        version=1,
    )
    return attended.reshape(batch, tokens, heads, channels), None


def _make_positions_constant(model: nn.Module, size: tuple[int, int]) -> None:
    """Store DINOv2's position embeddings, which it interpolates to the input's size, for the size of this graph."""
    embeddings: Any = getattr(model, "embeddings", None)
    if hasattr(embeddings, "interpolate_pos_encoding"):
        config: Any = model.config
        tokens = 1 + (size[0] // config.patch_size) * (size[1] // config.patch_size)
        with torch.no_grad():
            positions = embeddings.interpolate_pos_encoding(torch.zeros(1, tokens, config.hidden_size), *size)
        embeddings.register_buffer("positions_of_size", positions, persistent=False)
        embeddings.interpolate_pos_encoding = lambda *_: embeddings.positions_of_size


def _leave_rounding_to_first_convolution(backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Normalise:
    """Fold into the first convolution what bfloat16 would round of normalised pixels; return what is left to do before.

    Pixels less a whole number, in 64ths, are exact in 8 bits of precision, which OpenVINO computes with, whatever the
    type of the graph. Padding is 0 after the whole normalisation alone, so a convolution that pads keeps it.
    """
    first = next((part for part in backbone.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.padding not in ((0, 0), "valid"):
        return Normalise(mean, std)
    centres = [round(255 * m) / 255 for m in mean]
    scale = torch.tensor([_PIXEL_STEPS / (255 * s) for s in std])[:, None, None]
    shift = torch.tensor([(c - m) / s for c, m, s in zip(centres, mean, std, strict=True)])[:, None, None]
    with torch.no_grad():
        shifted = (first.weight * shift).sum((1, 2, 3))
        first.bias = nn.Parameter(shifted if first.bias is None else first.bias + shifted, requires_grad=False)
        first.weight = nn.Parameter(first.weight * scale, requires_grad=False)
    return Normalise(centres, [_PIXEL_STEPS / 255] * 3)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Change a module to weights and activations of the type, except its norms; return it."""
    if dtype == torch.float32:
        return module
    _fold_norms_into_convolutions(module)
    # Copies are not rounded: variances may be more than float16 holds.
    parts = dict(module.named_modules(remove_duplicate=False))
    norms = {
        name: copy.deepcopy(part) for name, part in parts.items() if isinstance(part, nn.LayerNorm | nn.BatchNorm2d)
    }
    module.to(dtype)
    for name, norm in norms.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, _Float32Norm(norm))
    return module


def _fold_norms_into_convolutions(module: nn.Module) -> None:
    """Fold a BatchNorm into a convolution where a sequence shows that nothing else reads the convolution."""
    for sequence in [part for part in module.modules() if isinstance(part, nn.Sequential)]:
        for index, (convolution, norm) in enumerate(itertools.pairwise(list(sequence))):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[index], sequence[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on itself and on torchvision, which is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
