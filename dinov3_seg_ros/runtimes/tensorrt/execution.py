"""Runs an engine at fixed addresses, with one CUDA graph for each batch size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorrt as trt

from dinov3_seg_ros.runtimes.tensorrt.cuda import Stream, Workspace
from dinov3_seg_ros.runtimes.tensorrt.log import TENSORRT_LOG, logger
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError

# NumPy lacks bfloat16, so it is read as its bits.
_NUMPY = {
    trt.DataType.FLOAT: np.float32,
    trt.DataType.HALF: np.float16,
    trt.DataType.BF16: np.uint16,
    trt.DataType.UINT8: np.uint8,
}


@dataclass(frozen=True)
class Tensor:
    """An input or output on the GPU, with room for the largest batch.

    Attributes:
        address: on the GPU.
        shape: of one element of the batch.
        type: TensorRT's.
    """

    address: int
    shape: tuple[int, ...]
    type: trt.DataType

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type; uint16 for bfloat16."""
        return np.dtype(_NUMPY[self.type])

    def nbytes(self, batch: int) -> int:
        """Return the size in bytes of the first ``batch`` elements."""
        return batch * math.prod(self.shape) * self.dtype.itemsize

    def read(self, stream: Stream, batch: int) -> np.ndarray:
        """Copy the first ``batch`` elements, bfloat16 as float32. Waits for everything on the stream."""
        array = np.empty((batch, *self.shape), self.dtype)
        stream.from_gpu(array, self.address)
        stream.wait()
        if self.type == trt.DataType.BF16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


class Execution:
    """An engine ready to run.

    Each batch size has its own context, because a CUDA graph is valid only while its context's shapes stay. A context
    is made when its batch size first comes. All share the working memory: on one stream only one runs at a time.

    Args:
        engine: what to run.
        name: for messages.
        workspace: owns the memory.
        stream: where it runs.
        max_batch: the largest batch.
        given: inputs that are on the GPU already, such as another engine's outputs.

    Attributes:
        inputs: shape of each, without the batch, by name.
        tensors: every input and output by name.

    Raises:
        ExportError: a given input has not the type or shape that the engine reads.
        RuntimeUnavailableError: there is not enough memory.
    """

    def __init__(
        self,
        engine: trt.ICudaEngine,
        name: str,
        workspace: Workspace,
        stream: Stream,
        max_batch: int,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._engine, self._name, self._workspace, self._stream = engine, name, workspace, stream
        self._contexts: dict[int, trt.IExecutionContext] = {}
        self._runs: dict[int, Callable[[], None]] = {}
        self._create_context = self._contexts_with_shared_memory()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = {n: tuple(engine.get_tensor_shape(n))[1:] for n in names if self._is_input(n)}
        # Output shapes are known only once a context has its inputs' shapes.
        context = self._context(max_batch)
        self.tensors: dict[str, Tensor] = {}
        for n in names:
            shape, kind = tuple(context.get_tensor_shape(n))[1:], engine.get_tensor_dtype(n)
            if given and n in given:
                if (given[n].shape, given[n].type) != (shape, kind):
                    raise ExportError(
                        f"the head {name} reads {n} as {kind} {shape}, but the backbone gives {given[n].type} "
                        f"{given[n].shape}; export the bundles again, together"
                    )
                self.tensors[n] = given[n]
            else:
                address = workspace.allocate(Tensor(0, shape, kind).nbytes(max_batch))
                self.tensors[n] = Tensor(address, shape, kind)

    def run(self, batch: int) -> None:
        """Queue a run on the first ``batch`` elements of the inputs.

        Raises:
            RuntimeUnavailableError: TensorRT or CUDA failed; says why.
        """
        if batch not in self._runs:
            self._runs[batch] = self._prepare(batch)
        self._runs[batch]()

    def close(self) -> None:
        """Release the engine and its contexts; no run may be in flight."""
        self._runs.clear()
        self._contexts.clear()
        self._engine, self._create_context = None, _no_context

    def _prepare(self, batch: int) -> Callable[[], None]:
        context = self._context(batch)
        for name, tensor in self.tensors.items():
            self._check(context.set_tensor_address(name, tensor.address), f"{name} cannot be placed")
        enqueue = functools.partial(self._enqueue, context)
        # The first run with new shapes initialises, which a recording does not allow (NVIDIA/TensorRT#2603).
        enqueue()
        self._stream.wait()
        try:
            return self._stream.capture(enqueue)
        except RuntimeUnavailableError as error:
            logger.warning("%s runs without a CUDA graph, somewhat slower: %s", self._name, error)
            return enqueue

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        self._check(context.execute_async_v3(self._stream.handle), "it cannot be run")

    def _context(self, batch: int) -> trt.IExecutionContext:
        if batch not in self._contexts:
            context = self._create_context()
            if context is None:
                raise self._failure("there is not enough memory on the GPU")
            for name, shape in self.inputs.items():
                self._check(context.set_input_shape(name, (batch, *shape)), f"{name} cannot have a batch of {batch}")
            self._contexts[batch] = context
        return self._contexts[batch]

    def _contexts_with_shared_memory(self) -> Callable[[], trt.IExecutionContext | None]:
        if not hasattr(trt.IExecutionContext, "set_device_memory"):  # 10.0: each takes memory for the largest batch
            create: Callable[[], trt.IExecutionContext | None] = self._engine.create_execution_context
            return create
        size = self._engine.device_memory_size_v2
        memory = self._workspace.allocate(max(size, 1))  # a small engine may need none, and CUDA allocates no 0 bytes

        def create_with_shared_memory() -> trt.IExecutionContext | None:
            context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is not None:
                context.set_device_memory(memory, size)
            return context

        return create_with_shared_memory

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def _check(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise self._failure(what)

    def _failure(self, what: str) -> RuntimeUnavailableError:
        return RuntimeUnavailableError(
            f"the TensorRT engine of {self._name} failed: {what}: {TENSORRT_LOG.take_errors()}; set runtime to onnx"
        )


def _no_context() -> None:
    """Stand for the contexts of a closed engine."""
