"""Replaces tensorrt: the part of its Python API that 10.0 and 11.1 share, computed by ONNX Runtime.

It fails as the real library does: it returns None or False, and logs a line. What would crash or give garbage there (a
damaged engine, a missing shape or address, memory that is too small or on another GPU, a stream of another GPU, a CUDA
graph whose context has changed) is an AssertionError here. Environment variables set up a second process.
"""

from __future__ import annotations

import enum
import json
import os
import time
import zlib
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime as cudart

__version__ = os.environ.get("STAND_IN_TENSORRT", "10.13.3.9")

# What the tests set and read.
behaviour = SimpleNamespace(capturable=True, buildable=True, loadable=True, spoil=None)
built, deserialised, runs = [], [], []

_MAGIC = b"stand-in engine\0"


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, msg):
        # The bindings do so where a subclass has no such method.
        raise RuntimeError('Tried to call pure virtual function "nvinfer1::ILogger::log"')


class IProgressMonitor:
    def __init__(self):
        pass


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


_TYPES = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.UINT8: (DataType.UINT8, np.uint8),
}


class ParserError:
    def __init__(self, text, name="", operator=""):
        self._text, self._name, self._operator = text, name, operator

    def desc(self):
        return self._text

    def node_name(self):
        return self._name

    def node_operator(self):
        return self._operator


class _Tensor:
    def __init__(self, info):
        self.name = info.name
        self.shape = tuple(d.dim_value or -1 for d in info.type.tensor_type.shape.dim)


class _Network:
    def __init__(self, flags):
        self.flags, self.model = flags, None

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    def get_input(self, index):
        return _Tensor(self.model.graph.input[index])


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    def parse_from_file(self, model):
        try:
            self._network.model = onnx.load(model)
        except Exception as error:
            self._errors.append(ParserError(str(error)))
            return False
        types = {tensor.name: tensor.data_type for tensor in self._network.model.graph.initializer}
        for node in self._network.model.graph.node:
            if node.op_type == "NonMaxSuppression":
                self._errors.append(ParserError("no importer registered for op", node.name, node.op_type))
            if node.op_type == "DequantizeLinear" and types.get(node.input[0]) == onnx.TensorProto.INT32:
                reason = "input has type Int32 but must have type FP8, FP4, Int4, or Int8"
                self._errors.append(ParserError(reason, node.name, node.op_type))
        return not self._errors

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = [list(min), list(opt), list(max)]


class _Config:
    def __init__(self):
        self.flags, self.profile, self.progress_monitor = {BuilderFlag.TF32}, None, None

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags=0):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        built.append(SimpleNamespace(flags=network.flags, config=config))
        if os.environ.get("STAND_IN_BUILDS"):
            with open(os.environ["STAND_IN_BUILDS"], "a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(float(os.environ["STAND_IN_BUILD_SECONDS"]))
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            monitor.phase_start("Tactics", "Building Engine", 4)
            proceed = [monitor.step_complete("Tactics", inner) for inner in range(4)]
            monitor.phase_finish("Tactics")
            if not all([*proceed, monitor.step_complete("Building Engine", step)]):
                self._logger.log(ILogger.Severity.ERROR, "[E] Error Code 7: BuildCanceled")
                return None
        monitor.phase_finish("Building Engine")
        if not behaviour.buildable:
            self._logger.log(ILogger.Severity.ERROR, "[E] Error Code 10: Could not find any implementation for node")
            return None
        graph = network.model.SerializeToString()
        header = {"version": __version__, "gpu": _gpu(), "profile": config.profile.shapes, "crc": zlib.crc32(graph)}
        return bytearray(_MAGIC + json.dumps(header).encode() + b"\n" + graph)


class Runtime:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        deserialised.append(len(serialized_engine))
        assert serialized_engine.startswith(_MAGIC), "TensorRT was given what is no engine"
        text, graph = serialized_engine[len(_MAGIC) :].split(b"\n", 1)
        header = json.loads(text)
        assert zlib.crc32(graph) == header["crc"], "TensorRT was given a damaged engine"
        if (header["version"], header["gpu"]) != (__version__, _gpu()) or not behaviour.loadable:
            self._logger.log(ILogger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization")
            return None
        return _Engine(onnx.load_from_string(graph), header["profile"], self._logger)


class _Engine:
    def __init__(self, model, profile, logger):
        self.model, self.profile, self.logger = model, profile, logger
        self.device = cudart.current_device()
        self.session = onnxruntime.InferenceSession(model.SerializeToString())
        self._inputs = {info.name: info for info in model.graph.input}
        self._tensors = {**self._inputs, **{info.name: info for info in model.graph.output}}

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return _Tensor(self._tensors[name]).shape

    def get_tensor_dtype(self, name):
        return _TYPES[self._tensors[name].type.tensor_type.elem_type][0]

    def numpy_type(self, name):
        return np.dtype(_TYPES[self._tensors[name].type.tensor_type.elem_type][1])

    def names(self, mode):
        return [name for name in self._tensors if self.get_tensor_mode(name) == mode]

    @property
    def device_memory_size_v2(self):
        return 1024 * max(most[0] for _, _, most in self.profile.values())

    def create_execution_context(self, strategy=ExecutionContextAllocationStrategy.STATIC):
        return IExecutionContext(self, strategy)


class IExecutionContext:
    def __init__(self, engine, strategy):
        self.engine, self._shapes, self._addresses = engine, {}, {}
        self._initialised, self._own, self._memory = None, None, (None, 0)
        self._device = engine.device
        assert cudart.current_device() == self._device, "a context is made on another GPU than its engine's"
        if strategy == ExecutionContextAllocationStrategy.STATIC:
            _, self._own = cudart.cudaMalloc(engine.device_memory_size_v2)
            self._memory = (self._own, engine.device_memory_size_v2)

    def __del__(self):
        if self._own is not None:
            cudart.cudaFree(self._own)

    def set_device_memory(self, memory, size):
        assert size >= self.engine.device_memory_size_v2, "less memory than the engine works with"
        self._memory = (memory, size)

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.profile[name]
        if not all(low <= extent <= high for low, extent, high in zip(least, shape, most, strict=True)):
            self.engine.logger.log(ILogger.Severity.ERROR, "IExecutionContext::setInputShape: Error Code 3: API Usage")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        batch = {shape[0] for shape in self._shapes.values()}
        shape = self.engine.get_tensor_shape(name)
        return (batch.pop() if len(batch) == 1 else -1, *shape[1:])

    def set_tensor_address(self, name, memory):
        assert isinstance(memory, int)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        stream = cudart.streams()[stream_handle]
        assert stream.device == cudart.current_device() == self._device, "the stream is another GPU's"
        assert {cudart.devices[address] for address in self._addresses.values()} == {self._device}
        state = (dict(self._shapes), dict(self._addresses))
        # The first run initialises, which cannot be recorded.
        if stream.recording is not None and (self._initialised != state or not behaviour.capturable):
            stream.invalid = True
            self.engine.logger.log(ILogger.Severity.ERROR, "operation not permitted when stream is capturing")
            return False
        self._initialised = state
        cudart.submit(stream, lambda: self._compute(state))
        return True

    def _compute(self, state):
        assert (self._shapes, self._addresses) == state, "a CUDA graph was replayed after its context had changed"
        cudart.view(*self._memory)
        runs.append(self.engine)
        feeds = {}
        for name in self.engine.names(TensorIOMode.INPUT):
            feeds[name] = self._array(name, self._shapes[name]).copy()
        outputs = self.engine.names(TensorIOMode.OUTPUT)
        for name, value in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            if behaviour.spoil:
                value = behaviour.spoil(value)
            self._array(name, value.shape)[:] = value

    def _array(self, name, shape):
        dtype = self.engine.numpy_type(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(cudart.view(self._addresses[name], size), dtype).reshape(shape)


def _gpu():
    return f"{cudart.gpu.name.decode()} {cudart.gpu.major}.{cudart.gpu.minor}"
