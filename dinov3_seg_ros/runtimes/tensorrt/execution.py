"""Runs an engine: addresses fixed for good, one CUDA graph for each batch size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorrt as trt

from dinov3_seg_ros.runtimes.tensorrt.cuda import Stream, Workspace
from dinov3_seg_ros.runtimes.tensorrt.log import TENSORRT_LOG, logger
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError

# bfloat16, which NumPy lacks, as its bits.
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
    def dtype(self) -> np.dtype:
        """NumPy's; uint16 for bfloat16."""
        return np.dtype(_NUMPY[self.type])

    def nbytes(self, batch: int) -> int:
        """Bytes of the first ``batch`` elements."""
        return batch * math.prod(self.shape) * self.dtype.itemsize

    def read(self, stream: Stream, batch: int) -> np.ndarray:
        """A copy of the first ``batch`` elements, bfloat16 as float32; waits for everything on the stream."""
        array = np.empty((batch, *self.shape), self.dtype)
        stream.from_gpu(array, self.address)
        stream.wait()
        if self.type == trt.DataType.BF16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


class Execution:
    """An engine ready to run.

    Each batch size has a context of its own, since a CUDA graph is valid as long as its context's shapes stay. They are
    made when their batch size first comes, and share the working memory: only one at a time runs on the one stream.

    Args:
        engine: what to run.
        name: for messages.
        workspace: owns the memory.
        stream: where it runs.
        max_batch: the largest batch.
        given: inputs that lie on the GPU already, such as another engine's outputs.

    Attributes:
        tensors: every input and output by name.

    Raises:
        ExportError: a given input has another type or shape than the engine reads.
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
        self._inputs = {n: tuple(engine.get_tensor_shape(n))[1:] for n in names if self._is_input(n)}
        # Known only once a context knows its inputs' shapes.
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
        """Put a run on the first ``batch`` elements of the inputs on the stream.

        Raises:
            RuntimeUnavailableError: TensorRT or CUDA fails; says why.
        """
        if batch not in self._runs:
            self._runs[batch] = self._prepare(batch)
        self._runs[batch]()

    def close(self) -> None:
        """Let go of the engine and its contexts; nothing of it may be under way."""
        self._runs.clear()
        self._contexts.clear()
        self._engine = self._create_context = None

    def _prepare(self, batch: int) -> Callable[[], None]:
        context = self._context(batch)
        for name, tensor in self.tensors.items():
            self._check(context.set_tensor_address(name, tensor.address), f"{name} cannot be placed")
        enqueue = functools.partial(self._enqueue, context)
        # The first run in new shapes initialises, which a recording does not allow (NVIDIA/TensorRT#2603).
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
            self._check(context is not None, "there is not enough memory on the GPU")
            for name, shape in self._inputs.items():
                self._check(context.set_input_shape(name, (batch, *shape)), f"{name} cannot have a batch of {batch}")
            self._contexts[batch] = context
        return self._contexts[batch]

    def _contexts_with_shared_memory(self) -> Callable[[], trt.IExecutionContext | None]:
        if not hasattr(trt.IExecutionContext, "set_device_memory"):  # 10.0: each takes memory for the largest batch
            return self._engine.create_execution_context
        size = self._engine.device_memory_size_v2
        memory = self._workspace.allocate(max(size, 1))  # a small engine may need none, which CUDA gives no address for

        def create() -> trt.IExecutionContext | None:
            context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is not None:
                context.set_device_memory(memory, size)
            return context

        return create

    def _is_input(self, name: str) -> bool:
        return self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT

    def _check(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise RuntimeUnavailableError(
                f"the TensorRT engine of {self._name} failed: {what}: {TENSORRT_LOG.take_errors()}; set runtime to onnx"
            )
