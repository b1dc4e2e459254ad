"""PyTorch's exporter, which traces equal networks once in a test run: it takes seconds, and most tests repeat one."""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


class TracesOnce:
    """In place of ``torch.onnx.export``: returns the program of an equal network and options again.

    Inputs are equal if their types and shapes are. Everything behind the trace, such as writing the file, is done each
    time.
    """

    def __init__(self, export: Callable[..., Any]) -> None:
        self._export = export
        self._programs: dict[str, Any] = {}

    def __call__(self, network: Any, inputs: Any, **options: Any) -> Any:
        content = io.BytesIO()
        _Pickler(content).dump(network)
        forms = [(tensor.dtype, tensor.shape) for tensor in inputs]
        key = hashlib.sha256(content.getvalue() + repr((forms, sorted(options.items()))).encode()).hexdigest()
        if key not in self._programs:
            self._programs[key] = self._export(network, inputs, **options)
        return self._programs[key]


class _Pickler(pickle.Pickler):
    """Writes tensors by their values, and hooks and local functions by their names.

    PyTorch writes addresses of tensors, and numbers hooks in the order of their making.
    """

    def persistent_id(self, value: Any) -> object:
        if isinstance(value, torch.Tensor):
            values = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()  # bytes(storage) takes seconds
            return value.dtype, value.shape, value.requires_grad, values
        if isinstance(value, OrderedDict) and value and all(isinstance(key, int) for key in value):
            return [getattr(hook, "__qualname__", str(type(hook))) for hook in value.values()]
        if isinstance(value, types.FunctionType) and "<locals>" in value.__qualname__:
            return f"{value.__module__}.{value.__qualname__}"
        return None
