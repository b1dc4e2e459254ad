"""The ONNX Runtime runtime: exported graphs, without torch.

Between the backbone's graph and those of the heads, feature maps stay on the device that computed them.
"""

from __future__ import annotations

import contextlib
import functools
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
    map_name,
)
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Computed
from dinov3_seg_ros.support.errors import ExportError, ImageError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 is on by default: fp32 would then be multiplied with 10 bits of mantissa.
_PROVIDER_OPTIONS = {_CUDA: {"use_tf32": "0"}}
# What "auto" takes, best first. fp16 is slower than fp32 on a CPU, and its int8 is slower than fp16 on a GPU.
_FASTEST = {"cpu": ("int8", "fp32"), "cuda": ("fp16", "fp32")}
# y = Relu(x) for one number, as a serialised ModelProto (IR 8, opset 18): to see what a session really runs on.
_TINY_MODEL = bytes.fromhex(
    "0808 3a33 0a0c0a0178120179220452656c75 120167"
    "5a0f0a0178120a0a08080112040a020801 620f0a0179120a0a08080112040a020801 42021012"
)

Maps = dict[str, ort.OrtValue]


class OnnxRuntime:
    """Exported graphs in ONNX Runtime; see `dinov3_seg_ros.runtimes.Runtime`.

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
        """See `Runtime`. ``exports``, one of each bundle by network size, are taken in place of the bundles' own."""
        self.providers = _providers(options)
        chosen, precision = exports, options.precision
        if chosen is None:
            chosen, precision, passed_over = choose_exports(bundles, _precisions(options), options.network_size)
            for reason in passed_over:
                _logger.warning("%s", reason)
        layers = sorted({layer for bundle in bundles for layer in bundle.manifest.backbone.layers})
        maps = [map_name(layer) for layer in layers]
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(chosen)
        self._backbones, self._heads = {}, {}
        for size, exports in chosen.items():
            backbone = backbone_export(exports, layers).graph(BACKBONE_GRAPH)
            self._backbones[size] = _Graph(backbone, self.providers, options.threads, maps)
            for export in exports:
                head = _Graph(export.graph(HEAD_GRAPH), self.providers, options.threads, [LOGITS])
                self._heads[export.bundle_name, size] = head
        used = next(iter(self._backbones.values())).provider
        if options.device == "cuda" and used == _CPU:
            raise _not_loaded(_CUDA)
        self.device = _device(used)
        self.description = f"ONNX Runtime {ort.__version__}, {used}, {precision}"

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
        """See `Runtime.find_device`."""
        choose_exports(bundles, _precisions(options), options.network_size)
        return _device(_providers(options)[0])

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computed:
        """See `Runtime.start`; this one waits for the end, and leaves the logits in the host's memory.

        Raises:
            ImageError: no graph takes canvases of this size.
        """
        size = tuple(canvases.shape[1:3])
        if size not in self._backbones:
            sizes = ", ".join(f"{height}x{width}" for height, width in self._backbones)
            raise ImageError(f"there is no graph for canvases of {size[0]}x{size[1]} pixels; there are: {sizes}")
        seconds: dict[str, float] = {}
        with timed(seconds, "backbone"):
            maps = self._backbones[size].run({CANVASES: ort.OrtValue.ortvalue_from_numpy(canvases)})
        with timed(seconds, "heads"):
            logits = {name: self._heads[name, size].run(maps)[LOGITS].numpy() for name in heads}
        return Computed(logits, seconds, lambda: {name: value.numpy() for name, value in maps.items()})

    def close(self) -> None:
        """Drop the sessions, which hold weights and working memory."""
        self._backbones.clear()
        self._heads.clear()


class _Graph:
    """One session. Its outputs stay where they are computed.

    Attributes:
        provider: the execution provider that computes it.
    """

    def __init__(self, path: Path, providers: Sequence[str], threads: int, outputs: Sequence[str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads would take whole cores from the robot's other processes between two frames.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            with_options = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in providers]
            self._session = ort.InferenceSession(path, options, providers=with_options)
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ExportError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the bundle again") from error
        self.provider = self._session.get_providers()[0]
        self._device = _device(self.provider)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = list(outputs)

    def run(self, inputs: Maps) -> Maps:
        """Compute the outputs, and wait for them."""
        binding = self._session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, inputs[name])
        for name in self._outputs:
            binding.bind_output(name, self._device if name != LOGITS else "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))


def _precisions(options: ComputeOptions) -> tuple[str, ...]:
    if options.precision == "auto":
        return _FASTEST[_device(_providers(options)[0])]
    return (options.precision,)


def _device(provider: str) -> str:
    return "cpu" if provider == _CPU else "cuda"


def _providers(options: ComputeOptions) -> list[str]:
    """Execution providers to ask for, best first."""
    available = ort.get_available_providers()
    for provider in options.providers:
        if provider not in available:
            raise RuntimeUnavailableError(
                f"this build of ONNX Runtime has no {provider}; it has: {', '.join(available)}. "
                "CUDA and TensorRT come with onnxruntime-gpu, which must be installed in place of onnxruntime"
            )
        if not _loads(provider):
            raise _not_loaded(provider)
    if options.providers:
        return list(options.providers)
    if options.device == "cuda" and _CUDA not in available:
        raise RuntimeUnavailableError(
            "device 'cuda' was asked for, but this build of ONNX Runtime has no CUDA; install onnxruntime-gpu in place "
            "of onnxruntime, or use device 'cpu'"
        )
    # TensorRT's provider builds engines for minutes at its first frame, so it must be asked for by name.
    if options.device != "cpu" and _CUDA in available and _loads(_CUDA):
        return [_CUDA, _CPU]
    if options.device == "cuda":
        raise _not_loaded(_CUDA)
    return [_CPU]


def usable_providers() -> list[str]:
    """Execution providers that this build of ONNX Runtime has and that can be loaded here."""
    return [provider for provider in ort.get_available_providers() if _loads(provider)]


@functools.cache
def _loads(provider: str) -> bool:
    """Whether a session uses a provider that the build has: its libraries may be missing, or its GPU."""
    if provider == _CPU:
        return True
    # What is missing is said on standard output, in many lines.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN where pip installs them
            ort.preload_dlls()
        try:
            session = ort.InferenceSession(_TINY_MODEL, providers=[provider, _CPU])
            used = session.get_providers()[0]
        except Exception:  # ONNX Runtime's errors have no common base but Exception
            used = None
    if used != provider:
        _logger.warning("this build of ONNX Runtime has %s, which cannot be loaded here and is not used", provider)
    return used == provider


def _not_loaded(provider: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{provider} was asked for, which this build of ONNX Runtime has, but it could not be loaded (see its message "
        "above); install the CUDA and cuDNN that its release needs, or use device 'cpu'"
    )
