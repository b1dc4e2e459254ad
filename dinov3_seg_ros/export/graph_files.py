"""Graphs on disk: in one file, or, from 2 GB on, with their weights in a file beside it; and how they are run."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnxruntime

from dinov3_seg_ros.support.cpu import onnx_runtime_threads


def save(model: onnx.ModelProto, path: Path) -> None:
    """Replace a graph by this model; weights of 2 GB and more, which a protobuf cannot hold, go into a file beside it.

    Args:
        model: must hold its weights itself. They are moved out of it where they go into a file of their own.
        path: the file.
    """
    # A file of weights that was here before (PyTorch's exporter writes one from 1.5 GB on); onnx would append to it.
    _weights(path).unlink(missing_ok=True)
    large = _size(model) >= onnx.checker.MAXIMUM_PROTOBUF
    onnx.save(model, path, save_as_external_data=large, location=_weights(path).name if large else None)


def remove(path: Path) -> None:
    """Remove a graph and the weights beside it, where there are any."""
    path.unlink(missing_ok=True)
    _weights(path).unlink(missing_ok=True)


def link(path: Path, folder: Path) -> None:
    """Link a graph, and the weights beside it where there are any, into another folder of the disk.

    onnx then refuses to read the weights of either graph; ONNX Runtime reads them.
    """
    for file in (path, _weights(path)):
        if file.exists():
            os.link(file, folder / file.name)


def has_weights_beside(path: Path) -> bool:
    """Whether weights of a graph lie in another file."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(onnx.external_data_helper.uses_external_data(tensor) for tensor in graph.initializer)


def open_on_cpu(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on ONNX Runtime's CPU provider, on all cores that the process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = onnx_runtime_threads(0)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _size(model: onnx.ModelProto) -> int:
    """The bytes of weights and nodes. `ModelProto.ByteSize` serialises the model, which fails from 2 GB on."""
    graph = model.graph
    return sum(part.ByteSize() for parts in (graph.initializer, graph.node) for part in parts)


def _weights(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")
