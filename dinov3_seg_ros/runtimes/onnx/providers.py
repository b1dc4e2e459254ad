"""How each execution provider is used: its devices, precisions, options, memory and threads.

A provider without a class of its own follows `Provider`: it computes graphs as they are, reads and writes host memory,
and gets no options. To add one, write a subclass and name it in `_CLASSES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov3_seg_ros.support.cpu import quota_threads, this_cpu
from dinov3_seg_ros.support.installation import how_to_install

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO, RTX = "OpenVINOExecutionProvider", "NvTensorRTRTXExecutionProvider"
#: Where a session reads and writes tensors: type and number of the device, as ONNX Runtime names them.
Memory = tuple[str, int]
HOST: Memory = ("cpu", 0)


@dataclass(frozen=True)
class Use:
    """What a session is opened for.

    Attributes:
        kind: of the device: ``cpu``, ``gpu``, ``npu`` or ``cuda``.
        number: of the device among those of its kind.
        precision: to compute in.
        threads: CPU threads; 0 for as many as the provider likes.
        cache: folder for what the provider compiles; None where nothing is kept.
        listed: what ONNX Runtime says of the device, by name; None for a provider that is part of its build.
    """

    kind: str
    number: int = 0
    precision: str = "fp32"
    threads: int = 0
    cache: Path | None = None
    listed: Mapping[str, str] | None = None


class Provider:
    """The rules of one execution provider.

    Args:
        name: ONNX Runtime's name of it.

    Attributes:
        name: as given.
        kinds: the devices that it can use where its package does not list them, best first.
        is_preferred: whether ``auto`` takes it, unmeasured, wherever it runs: on each device that its package lists, or
            on the first of ``kinds``.
        compiles: whether it keeps compiled graphs in a folder.
        grows: whether it adds, at later starts, to files that it keeps there.
        one_frame: on which kinds of devices it takes a single frame in one pass.
    """

    kinds: tuple[str, ...] = ("gpu",)
    is_preferred = False
    compiles = False
    grows = False
    one_frame: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name

    def precisions(self, use: Use) -> Mapping[str, str]:
        """Return what it computes on a device, the fastest first: precision -> precision of the graphs.

        None takes graphs of bfloat16: in the opset that TensorRT reads too, ONNX has no such convolution, and ONNX
        Runtime loads no such graph.
        """
        return {name: name for name in ("fp32", "fp16", "int8_qdq")}

    def automatic(self, use: Use) -> Sequence[str]:
        """Return the precisions that ``auto`` tries on a device, best first, where the user named the provider."""
        return ("fp32",)

    def gains(self, use: Use, asked: bool = False) -> Sequence[str]:
        """Return the precisions in which it is taken, unmeasured, though it is not preferred; best first.

        Args:
            use: on what.
            asked: whether the user asked for a precision, which no other provider may have.
        """
        return ()

    def for_heads(self, use: Use) -> str:
        """Return the precision in which heads are computed where the backbone is computed in that of ``use``."""
        return use.precision

    def options(self, use: Use) -> dict[str, str]:
        """Return its options."""
        return {}

    def memory(self, use: Use) -> Memory:
        """Return where it takes network inputs and leaves feature maps."""
        return HOST

    def remark(self, use: Use) -> str:
        """Return what people should know of a precision on a device; empty where it is as it says."""
        return ""


class Cpu(Provider):
    """ONNX Runtime's own, for every operator. On CPUs fp16 is slower than fp32."""

    kinds = ("cpu",)
    is_preferred = True

    def precisions(self, use: Use) -> Mapping[str, str]:
        """It computes every graph as it is."""
        return {name: name for name in ("int8", "fp32", "int8_qdq", "fp16")}

    def automatic(self, use: Use) -> Sequence[str]:
        """int8 needs a quarter of the memory traffic."""
        return ("int8", "fp32")


class Cuda(Provider):
    """CUDA, and TensorRT as a part of ONNX Runtime's build: their tensors stay on the GPU."""

    kinds = ("cuda",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # TensorRT's provider builds engines for minutes at every start, so it must be asked for by name.
        self.is_preferred = name == CUDA

    def precisions(self, use: Use) -> Mapping[str, str]:
        """int8 graphs of ONNX Runtime are slower than fp16 there."""
        return {name: name for name in ("fp16", "fp32", "int8_qdq", "int8")}

    def automatic(self, use: Use) -> Sequence[str]:
        """8 bits lose accuracy, so the user must ask for them."""
        return ("fp16", "fp32")

    def options(self, use: Use) -> dict[str, str]:
        """TF32 is on by default; it would multiply fp32 with 10 bits of mantissa."""
        return {"device_id": str(use.number), **({"use_tf32": "0"} if self.name == CUDA else {})}

    def memory(self, use: Use) -> Memory:
        """The GPU's."""
        return ("cuda", use.number)


class OpenVino(Provider):
    """Intel's OpenVINO: its precision is a hint, so one float32 export serves fp32, bf16 and fp16.

    It comes as the package ``onnxruntime-ep-openvino``, which lists Intel's devices alone, or inside
    ``onnxruntime-openvino``, a build of ONNX Runtime of its own, which runs on other x86 processors too.
    """

    kinds = ("cpu", "gpu", "npu")
    compiles = True
    one_frame = frozenset({"npu"})

    def precisions(self, use: Use) -> Mapping[str, str]:
        """By the device; an NPU computes in float16 whatever the graph says."""
        if use.kind == "npu":
            return {"fp16": "fp32", "int8_qdq": "int8_qdq"}
        if use.kind == "gpu":
            return {"fp16": "fp32", "int8_qdq": "int8_qdq", "fp32": "fp32"}
        return {"bf16": "fp32", "int8_qdq": "int8_qdq", "fp32": "fp32", "int8": "int8", "fp16": "fp32"}

    def automatic(self, use: Use) -> Sequence[str]:
        """bf16 where the processor multiplies it faster; fp16 on GPU and NPU."""
        if use.kind == "cpu":
            return ("bf16", "fp32") if this_cpu().multiplies_bf16 else ("fp32",)
        return ("fp16", "fp32") if use.kind == "gpu" else ("fp16",)

    def gains(self, use: Use, asked: bool = False) -> Sequence[str]:
        """bf16 alone: in float32 ONNX Runtime's own is as fast, and an integrated GPU may be slower than the CPU.

        Where it is asked for, on every CPU: ONNX Runtime's own cannot compute it.
        """
        return ("bf16",) if use.kind == "cpu" and (asked or this_cpu().multiplies_bf16) else ()

    def for_heads(self, use: Use) -> str:
        """float32 on CPUs: bfloat16 cannot tell close logits apart, and heads are a small part of the work."""
        return "fp32" if use.kind == "cpu" and use.precision in ("bf16", "int8_qdq") else use.precision

    def options(self, use: Use) -> dict[str, str]:
        """One stream: frames come one after the other. The option ``num_of_threads`` has no effect on packages."""
        device = use.kind.upper() + (f".{use.number}" if use.kind == "gpu" and use.number and not use.listed else "")
        properties: dict[str, str] = {"INFERENCE_PRECISION_HINT": self._hint(use)}
        if use.kind != "npu":
            properties["NUM_STREAMS"] = "1"
        threads = use.threads or quota_threads()
        if use.kind == "cpu" and threads:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        if use.cache is not None:
            properties["CACHE_DIR"] = str(use.cache)
        named = {} if use.listed is not None else {"device_type": device}
        return {**named, "load_config": json.dumps({use.kind.upper(): properties}, sort_keys=True)}

    def remark(self, use: Use) -> str:
        """Where a processor lacks bfloat16, OpenVINO computes in float32 without a word."""
        if (use.kind, use.precision) == ("cpu", "bf16") and self._hint(use) == "f32":
            return "computed in fp32, since this processor has no instructions for bf16"
        return ""

    def _hint(self, use: Use) -> str:
        if use.kind == "npu":
            return "f16"
        if use.kind == "cpu" and use.precision in ("bf16", "int8_qdq"):  # what int8_qdq leaves in float
            return "bf16" if self._has_bf16(use) else "f32"
        return "f16" if use.precision == "fp16" or (use.kind, use.precision) == ("gpu", "int8_qdq") else "f32"

    @staticmethod
    def _has_bf16(use: Use) -> bool:
        said = (use.listed or {}).get("OPTIMIZATION_CAPABILITIES")
        return this_cpu().multiplies_bf16 if said is None else "BF16" in said.split()


class Rtx(Provider):
    """TensorRT for RTX. Types are in the graph; tensors go through host memory."""

    kinds = ("gpu",)
    is_preferred = True
    compiles = True
    grows = True

    def automatic(self, use: Use) -> Sequence[str]:
        """As on CUDA."""
        return ("fp16", "fp32")

    def options(self, use: Use) -> dict[str, str]:
        """Keep the kernels that are compiled at the first start."""
        return {} if use.cache is None else {"nv_runtime_cache_path": str(use.cache)}


_CLASSES: dict[str, type[Provider]] = {
    CPU: Cpu,
    CUDA: Cuda,
    TENSORRT: Cuda,
    OPENVINO: OpenVino,
    RTX: Rtx,
}
_GPU_BUILD = "CUDA and TensorRT come with onnxruntime-gpu, which must be installed in place of onnxruntime"
#: How to install OpenVINO on a processor of another maker than Intel.
OPENVINO_BUILD = f"uninstall onnxruntime and onnxruntime-ep-openvino, then {how_to_install('cpu-openvino')}"
#: How to install providers that this project knows.
INSTALLATION = {
    CUDA: _GPU_BUILD,
    TENSORRT: _GPU_BUILD,
    OPENVINO: f"{how_to_install('openvino')} on a processor of Intel; on one of AMD {OPENVINO_BUILD}",
    RTX: how_to_install("rtx"),
}
_CUDA_AND_CUDNN = (
    "install the CUDA and cuDNN that this release of it needs (pip install 'onnxruntime-gpu[cuda,cudnn]'; on a Jetson "
    "JetPack brings them), and a driver that supports them"
)
#: What a provider needs that is part of the build and cannot be loaded.
LIBRARIES = {CUDA: _CUDA_AND_CUDNN, TENSORRT: f"{_CUDA_AND_CUDNN}; and TensorRT"}


def provider(name: str) -> Provider:
    """Return the rules of a provider."""
    return _CLASSES.get(name, Provider)(name)
