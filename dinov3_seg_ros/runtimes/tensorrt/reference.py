"""What ONNX Runtime computes on the CPU for a synthetic image, to compare engines with."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from dinov3_seg_ros.bundle.exports import CANVASES

_CELLS = 8
#: Why nothing can be compared, where ONNX Runtime is missing.
NOT_INSTALLED = "ONNX Runtime is not installed"


class CannotCompareError(Exception):
    """ONNX Runtime is not installed, or cannot run the graph here."""


class Reference:
    """Inputs and outputs of a backbone's graph and of its heads' graphs, computed when they are first read.

    Args:
        backbone: the backbone's graph.
        size: (height, width) of its network input, pixels.
        batch: how many network inputs.
    """

    def __init__(self, backbone: Path, size: tuple[int, int], batch: int) -> None:
        self._backbone, self._size, self._batch = backbone, size, batch

    @functools.cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """The network inputs, (batch, height, width, 3) uint8, and the backbone's feature maps, by name.

        Raises:
            CannotCompareError: ONNX Runtime cannot compute them; says why.
        """
        canvases = _synthetic_canvases(self._size, self._batch)
        return {CANVASES: canvases, **_run(self._backbone, {CANVASES: canvases})}

    def outputs(self, graph: Path) -> dict[str, np.ndarray]:
        """Return, by name, the outputs of the backbone's graph, or of a head's graph for these maps.

        Raises:
            CannotCompareError: ONNX Runtime cannot compute them; says why.
        """
        if graph == self._backbone:
            return {name: array for name, array in self.maps.items() if name != CANVASES}
        return _run(graph, self.maps)


def onnx_runtime() -> ModuleType | None:
    """Import and return onnxruntime; None where it is missing or broken."""
    try:
        return importlib.import_module("onnxruntime")
    except (ImportError, OSError):
        return None


def _synthetic_canvases(size: tuple[int, int], batch: int) -> np.ndarray:
    """Generate coarse patches of colour under fine noise, so that every scale of the network has input."""
    random = np.random.default_rng(0)
    rows, columns = (np.arange(extent) * _CELLS // extent for extent in size)
    patches = random.integers(0, 224, (batch, _CELLS, _CELLS, 3), np.uint8)[:, rows][:, :, columns]
    canvases: np.ndarray = patches + random.integers(0, 32, (batch, *size, 3), np.uint8)
    return canvases


def _run(graph: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = onnx_runtime()
    if ort is None:
        raise CannotCompareError(NOT_INSTALLED)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        inputs = {node.name: tensors[node.name] for node in session.get_inputs()}
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base but Exception
        raise CannotCompareError(f"ONNX Runtime cannot run {graph.name} here") from error
