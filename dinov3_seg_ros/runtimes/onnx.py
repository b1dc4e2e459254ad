"""The ONNX Runtime runtime: exported graphs, without torch.

Between the backbone's graph and the heads' graphs, feature maps stay on the device that computed them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from dinov3_seg_ros.bundle.exports import (
    BACKBONE_GRAPH,
    CANVASES,
    HEAD_GRAPH,
    LOGITS,
    Export,
    backbone_export,
    choose_exports,
    find_exports,
    map_name,
)
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Computed
from dinov3_seg_ros.support.errors import ExportError, ImageError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# The providers that take the number of a GPU, and their options. TF32 is on by default; it would multiply fp32 with 10
# bits of mantissa.
_GPU_OPTIONS: dict[str, dict[str, str]] = {_CUDA: {"use_tf32": "0"}, "TensorrtExecutionProvider": {}}
# What "auto" takes, best first. fp16 is slower than fp32 on a CPU, and its int8 is slower than fp16 on a GPU.
_FASTEST = {"cpu": ("int8", "fp32"), "cuda": ("fp16", "fp32")}

# Whether a provider can be loaded on the GPU of a number; the answer holds for the whole process.
_loadable: dict[tuple[str, int], bool] = {}

Maps = dict[str, ort.OrtValue]


class OnnxRuntime:
    """Exported graphs in ONNX Runtime; see `protocol.Runtime`.

    Attributes:
        providers: the execution providers asked for, best first.
    """

    name = "onnx"
    logits_device = "cpu"

    def __init__(
        self,
        bundles: Sequence[Bundle],
        options: ComputeOptions,
        exports: Mapping[tuple[int, int], Sequence[Export]] | None = None,
    ) -> None:
        """Load the graphs; see `protocol.RuntimeType`.

        Args:
            bundles: whose heads to run.
            options: how to compute.
            exports: one export of each bundle by network size, in place of those in the bundles' folders.
        """
        self.providers, gpu = _providers(bundles, options), _gpu_number(options)
        precision: str = options.precision
        if exports is None:
            wanted = _precisions(options, self.providers)
            exports, precision, passed_over = choose_exports(bundles, wanted, options.network_size)
            for reason in passed_over:
                _logger.warning("%s", reason)
        layers = sorted({layer for bundle in bundles for layer in bundle.manifest.backbone.layers})
        maps = [map_name(layer) for layer in layers]
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(exports)
        self._backbones: dict[tuple[int, int], _Graph] = {}
        self._heads: dict[tuple[str, tuple[int, int]], _Graph] = {}
        for size, of_size in exports.items():
            backbone = backbone_export(of_size, layers).graph(BACKBONE_GRAPH)
            self._backbones[size] = _Graph(backbone, self.providers, gpu, options.threads, maps)
            for export in of_size:
                head = _Graph(export.graph(HEAD_GRAPH), self.providers, gpu, options.threads, [LOGITS])
                self._heads[export.bundle_name, size] = head
        used = next(iter(self._backbones.values())).provider
        if options.device.startswith("cuda") and used == _CPU:
            raise _not_loaded(_CUDA, gpu)
        self.device = _device(used, gpu)
        on_gpu = "" if used == _CPU else f" on {self.device}"
        self.description = f"ONNX Runtime {ort.__version__}, {used}{on_gpu}, {precision}"

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
        """Return the device that the graphs would run on; see `protocol.RuntimeType.find_device`."""
        providers = _providers(bundles, options)
        choose_exports(bundles, _precisions(options, providers), options.network_size)
        return _device(providers[0], _gpu_number(options))

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computed:
        """Run the graphs and wait for them; the logits are in host memory. See `protocol.Runtime.start`.

        Raises:
            ImageError: no graph takes network inputs of this size.
        """
        _, height, width, _ = canvases.shape
        size = height, width
        if size not in self._backbones:
            sizes = ", ".join(f"{height}x{width}" for height, width in self._backbones)
            raise ImageError(f"there is no graph for network inputs of {height}x{width} pixels; there are: {sizes}")
        seconds: dict[str, float] = {}
        with timed(seconds, "backbone"):
            # Where the backbone computes: an image-guided head reads them from there too.
            seen = {CANVASES: ort.OrtValue.ortvalue_from_numpy(canvases, *self._backbones[size].place)}
            maps = self._backbones[size].run(seen)
        with timed(seconds, "heads"):
            logits = {name: self._heads[name, size].run({**seen, **maps})[LOGITS].numpy() for name in heads}
        return Computed(logits, seconds, lambda: {name: value.numpy() for name, value in maps.items()})

    def close(self) -> None:
        """Release the sessions, which hold weights and working memory."""
        self._backbones.clear()
        self._heads.clear()


class _Graph:
    """One session. Its outputs stay on the device that computes them, except the logits.

    Args:
        path: the graph.
        providers: execution providers to ask for, best first.
        gpu: number of the GPU that they use, where they use one.
        threads: CPU threads; 0 for one per core.
        outputs: names of the outputs to compute.

    Attributes:
        provider: the execution provider that computes it.
        place: where it computes: type and number of the device, as ONNX Runtime names them.

    Raises:
        ExportError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, providers: Sequence[str], gpu: int, threads: int, outputs: Sequence[str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads would take whole cores from the robot's other processes between two frames.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            with_options = [(name, _options_of(name, gpu)) for name in providers]
            self._session = ort.InferenceSession(path, options, providers=with_options)
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ExportError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the bundle again") from error
        self.provider: str = self._session.get_providers()[0]
        self.place = ("cpu", 0) if self.provider == _CPU else ("cuda", gpu)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = list(outputs)

    def run(self, inputs: Maps) -> Maps:
        """Compute the outputs, and wait for them."""
        binding = self._session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, inputs[name])
        for name in self._outputs:
            binding.bind_output(name, *(("cpu", 0) if name == LOGITS else self.place))
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))


def usable_providers(bundles: Sequence[Bundle]) -> list[str]:
    """Return the execution providers that this build of ONNX Runtime has and that load here.

    Args:
        bundles: a graph of one of them is what is loaded; without any, all providers of the build are returned.
    """
    return [provider for provider in ort.get_available_providers() if _loads(provider, 0, bundles)]


def _precisions(options: ComputeOptions, providers: Sequence[str]) -> tuple[str, ...]:
    if options.precision == "auto":
        return _FASTEST["cpu" if providers[0] == _CPU else "cuda"]
    return (options.precision,)


def _device(provider: str, gpu: int) -> str:
    return "cpu" if provider == _CPU else f"cuda:{gpu}"


def _gpu_number(options: ComputeOptions) -> int:
    """N of device ``cuda:N``, else 0."""
    return int(options.device.partition(":")[2] or 0)


def _options_of(provider: str, gpu: int) -> dict[str, str]:
    return {"device_id": str(gpu), **_GPU_OPTIONS[provider]} if provider in _GPU_OPTIONS else {}


def _providers(bundles: Sequence[Bundle], options: ComputeOptions) -> list[str]:
    """Return the execution providers to ask for, best first.

    Raises:
        RuntimeUnavailableError: what was asked for is not in this build, or cannot be loaded.
    """
    available, gpu = ort.get_available_providers(), _gpu_number(options)
    for provider in options.providers:
        if provider not in available:
            raise RuntimeUnavailableError(
                f"this build of ONNX Runtime has no {provider}; it has: {', '.join(available)}. "
                "CUDA and TensorRT come with onnxruntime-gpu, which must be installed in place of onnxruntime"
            )
        if not _loads(provider, gpu, bundles):
            raise _not_loaded(provider, gpu)
    if options.providers:
        return list(options.providers)
    must_be_gpu = options.device.startswith("cuda")
    if must_be_gpu and _CUDA not in available:
        raise RuntimeUnavailableError(
            f"device '{options.device}' was asked for, but this build of ONNX Runtime has no CUDA; install "
            "onnxruntime-gpu in place of onnxruntime, or use device 'cpu'"
        )
    # TensorRT's provider builds engines for minutes at its first frame, so it must be asked for by name.
    if options.device != "cpu" and _CUDA in available and _loads(_CUDA, gpu, bundles):
        return [_CUDA, _CPU]
    if must_be_gpu:
        raise _not_loaded(_CUDA, gpu)
    return [_CPU]


def _loads(provider: str, gpu: int, bundles: Sequence[Bundle]) -> bool:
    """Return whether a session uses a provider that the build has: its libraries may be missing, or its GPU.

    The head's graph of any export is what a session is opened for: it is small, and no weights of the backbone load.
    """
    if provider == _CPU:
        return True
    if (provider, gpu) not in _loadable:
        graph = _any_head(bundles)
        if graph is None:
            return True  # nothing can run on it in any case; the caller says so when it looks for the exports
        _loadable[provider, gpu] = _session_uses(provider, gpu, graph)
        if not _loadable[provider, gpu]:
            _logger.warning("this build of ONNX Runtime has %s, which cannot be loaded here and is not used", provider)
    return _loadable[provider, gpu]


def _any_head(bundles: Sequence[Bundle]) -> Path | None:
    """Return the first head graph of any precision and size that is not damaged."""
    for bundle in bundles:
        for export in find_exports(bundle)[0]:
            with contextlib.suppress(ExportError):
                return export.graph(HEAD_GRAPH)
    return None


def _session_uses(provider: str, gpu: int, graph: Path) -> bool:
    # ONNX Runtime says on standard output, in many lines, what is missing.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN where pip installs them
            ort.preload_dlls()
        try:
            session = ort.InferenceSession(graph, providers=[(provider, _options_of(provider, gpu)), (_CPU, {})])
            return bool(session.get_providers()[0] == provider)
        except Exception:  # ONNX Runtime's errors have no common base but Exception
            return False


def _not_loaded(provider: str, gpu: int) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{provider} was asked for on GPU {gpu}. This build of ONNX Runtime has it, but it could not be loaded (see "
        "its message above); install the CUDA and cuDNN that its release needs, name a GPU that exists, or use device "
        "'cpu'"
    )
