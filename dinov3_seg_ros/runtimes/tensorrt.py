"""The TensorRT runtime: exported graphs as engines on an NVIDIA GPU, without torch.

The heads' engines read the feature maps where the backbone's engine leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorrt as trt

from dinov3_seg_ros.artefacts import (
    BACKBONE_GRAPH,
    CANVASES,
    HEAD_GRAPH,
    LOGITS,
    Export,
    backbone_export,
    choose_exports,
)
from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.engines.cuda import Gpu, Workspace, find_gpu
from dinov3_seg_ros.engines.execution import Execution, Tensor
from dinov3_seg_ros.engines.reference import Reference
from dinov3_seg_ros.engines.store import StoredEngine, obtain, why_unverified
from dinov3_seg_ros.errors import ImageError, ParameterError, RuntimeUnavailableError
from dinov3_seg_ros.runtimes import RuntimeOptions

# What "auto" takes, best first. Types are in the graph, so that each needs graphs of its own; 8 bits and bfloat16
# lose accuracy that only the user can weigh.
_FASTEST = ("fp16", "fp32")


@dataclass(frozen=True)
class Features:
    """Feature maps on the GPU.

    Attributes:
        size: (height, width) of the canvases.
        batch: how many there were.
        maps: by name.
        run: number of the run that computed them; the next one overwrites them.
    """

    size: tuple[int, int]
    batch: int
    maps: Mapping[str, Tensor]
    run: int


@dataclass(frozen=True)
class _Network:
    """The engines for one size of canvases, and the host's ends of what goes in and comes out."""

    backbone: Execution
    heads: dict[str, Execution]
    canvases: np.ndarray
    logits: dict[str, np.ndarray]


class TensorRTRuntime:
    """Exported graphs in TensorRT; see `dinov3_seg_ros.runtimes.Runtime`.

    Engines that are not in the store (`engines.store`) are built when this is made, which takes minutes. All buffers
    are allocated for ``options.max_batch`` canvases then; each smaller batch adds a context when it first comes.

    Attributes:
        engines: every engine in use.
    """

    name = "tensorrt"
    device = "cuda"
    logits_device = "cpu"

    def __init__(
        self,
        bundles: Sequence[Bundle],
        options: RuntimeOptions,
        exports: Mapping[tuple[int, int], Sequence[Export]] | None = None,
    ) -> None:
        """See `Runtime`. ``exports``, one of each bundle by network size, are taken in place of the bundles' own."""
        precisions, gpu = usable(options)
        chosen, precision = exports, options.precision
        if chosen is None:
            chosen, precision, _ = choose_exports(bundles, precisions, options.network_size)
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(chosen)
        self.engines: list[StoredEngine] = []
        self._gpu, self._max_batch, self._run = gpu, options.max_batch, 0
        self._networks: dict[tuple[int, int], _Network] = {}
        layers = sorted({layer for bundle in bundles for layer in bundle.manifest.backbone.layers})
        self._workspace = Workspace()
        try:
            for size, of_size in chosen.items():
                self._networks[size] = self._load(size, backbone_export(of_size, layers), of_size)
        except BaseException:
            self.close()
            raise
        reasons = sorted({engine.record.unverified for engine in self.engines} - {""})
        unverified = f", unverified ({'; '.join(reasons)})" if reasons else ""
        self.description = f"TensorRT {trt.__version__}, {gpu.name}, {precision}{unverified}"

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: RuntimeOptions) -> str:
        """See `Runtime.find_device`."""
        precisions, gpu = usable(options)
        chosen, _, _ = choose_exports(bundles, precisions, options.network_size)
        layers = {layer for bundle in bundles for layer in bundle.manifest.backbone.layers}
        for of_size in chosen.values():
            heads = [(export, HEAD_GRAPH) for export in of_size]
            for export, graph in [(backbone_export(of_size, layers), BACKBONE_GRAPH), *heads]:
                reason = why_unverified(export, graph, gpu, options.max_batch)
                if reason:
                    raise RuntimeUnavailableError(
                        f"the TensorRT engine of {export.folder / graph} cannot be compared with its graph ({reason}); "
                        "install onnxruntime, or set runtime to tensorrt to use it unverified"
                    )
        return "cuda"

    def features(self, canvases: np.ndarray) -> Features:
        """(N, H, W, 3) uint8 -> the maps that the heads read, on the GPU.

        Raises:
            ImageError: no engine takes canvases of this size.
            ParameterError: more canvases than the engines were built for.
            RuntimeUnavailableError: the GPU fails.
        """
        batch, size = len(canvases), tuple(canvases.shape[1:3])
        if size not in self._networks:
            sizes = ", ".join(f"{height}x{width}" for height, width in self._networks)
            raise ImageError(f"there is no engine for canvases of {size[0]}x{size[1]} pixels; there are: {sizes}")
        if batch > self._max_batch:
            raise ParameterError(f"{batch} canvases came at once, but max_batch is {self._max_batch}; raise max_batch")
        network = self._networks[size]
        tensors = network.backbone.tensors
        network.canvases[:batch] = canvases
        self._workspace.to_gpu(tensors[CANVASES].address, network.canvases[:batch])
        network.backbone.run(batch)
        self._workspace.wait()
        self._run += 1
        maps = {name: tensor for name, tensor in tensors.items() if name != CANVASES}
        return Features(size, batch, maps, self._run)

    def maps(self, features: Features) -> dict[str, np.ndarray]:
        """See `Runtime.maps`."""
        self._check_current(features)
        return {name: tensor.read(self._workspace, features.batch) for name, tensor in features.maps.items()}

    def logits(self, bundle_name: str, features: Features) -> np.ndarray:
        """Logits (N, C, h, w) float32.

        Raises:
            ParameterError: the features are not those of the last call of `features`.
            RuntimeUnavailableError: the GPU fails.
        """
        self._check_current(features)
        network = self._networks[features.size]
        head, logits = network.heads[bundle_name], network.logits[bundle_name][: features.batch]
        head.run(features.batch)
        self._workspace.from_gpu(logits, head.tensors[LOGITS].address)
        self._workspace.wait()
        return logits.copy()

    def close(self) -> None:
        """Free engines, contexts, CUDA graphs, memory and stream."""
        self._networks.clear()
        self.engines.clear()
        self._workspace.close()

    def _load(self, size: tuple[int, int], shared: Export, exports: Sequence[Export]) -> _Network:
        reference = Reference(shared.graph(BACKBONE_GRAPH), size, self._max_batch)
        backbone = self._execution(shared, BACKBONE_GRAPH, reference, {})
        heads = {e.bundle_name: self._execution(e, HEAD_GRAPH, reference, backbone.tensors) for e in exports}
        return _Network(
            backbone,
            heads,
            self._pinned(backbone.tensors[CANVASES]),
            {name: self._pinned(head.tensors[LOGITS]) for name, head in heads.items()},
        )

    def _execution(self, export: Export, graph: str, reference: Reference, given: Mapping[str, Tensor]) -> Execution:
        stored = obtain(export, graph, self._gpu, self._max_batch, reference)
        self.engines.append(stored)
        return Execution(stored.engine, f"{export.bundle_name}/{graph}", self._workspace, self._max_batch, given)

    def _pinned(self, tensor: Tensor) -> np.ndarray:
        return self._workspace.pinned((self._max_batch, *tensor.shape), tensor.dtype)

    def _check_current(self, features: Features) -> None:
        if features.run != self._run:
            raise ParameterError("these feature maps were overwritten by a later frame's; ask for logits before it")


def usable(options: RuntimeOptions) -> tuple[tuple[str, ...], Gpu]:
    """Precisions to look for, best first, and the GPU to use.

    Raises:
        RuntimeUnavailableError: there is no GPU, or TensorRT cannot compute what was asked for.
    """
    if options.device == "cpu":
        raise RuntimeUnavailableError("device 'cpu' was asked for, but TensorRT computes on GPUs only")
    if options.precision == "int8":
        raise RuntimeUnavailableError(
            "graphs of precision int8 quantise activations as they come, which TensorRT does not; export with "
            "--precision int8_qdq and set precision to int8_qdq, or set runtime to onnx"
        )
    return _FASTEST if options.precision == "auto" else (options.precision,), find_gpu()
