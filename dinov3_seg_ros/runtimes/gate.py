"""The gate: nothing computes a mask that has not been compared with the PyTorch model, on the hardware that serves it.

An export keeps two network inputs and what the PyTorch model gives for them (`Reference`). Before a runtime serves its
first frame it computes them, and `check` compares stage by stage: each feature map, the logits, the labels and the
confidence. So the first stage that differs is named. Needs neither PyTorch nor the runtime that made the export.

The whole maps would be larger than the weights of a small backbone, so a reference keeps a *sketch* of each: every
element, with a pseudo-random sign, is added to one of 4096 sums (Charikar, Chen and Farach-Colton, "Finding frequent
items in data streams", 2002). Sketching is linear, and lengths and inner products are kept within a few percent. So the
distance between two maps, and their cosine, are those of their sketches, and no element is left out.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from dinov3_seg_ros import decode
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.onnx_folder import REFERENCE_FILE, Export, Graphs, find_exports
from dinov3_seg_ros.runtimes.agreement import THRESHOLDS, Difference
from dinov3_seg_ros.runtimes.protocol import Candidate, Runtime
from dinov3_seg_ros.support.errors import DisagreementError, ExportError

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

#: How many network inputs a reference holds.
FRAMES = 2
_SUMS = 4096
_ODD = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing, with the golden ratio of 64 bits
# An export whose own labels reached less than the precision asks for, which its user accepted, may lose this much more.
_SLACK = 0.01
_REACHED_ON_ARTIFICIAL = 0.95 + _SLACK


@dataclass(frozen=True)
class Reference:
    """What the PyTorch model gives in float32 for a few network inputs.

    Attributes:
        canvases: the network inputs, (N, H, W, 3) uint8 RGB.
        maps: sketches of the feature maps by name, (N, 4096) float32.
        logits: sketch of the logits, (N, 4096) float32.
        labels: (N, H, W) class ids of the network inputs, uint8 or uint16.
        confidence: (N, H, W) uint8.
        reached: the share of equal labels that the export reached where it was made, 0..1; 1 where it was not run.
    """

    canvases: np.ndarray
    maps: dict[str, np.ndarray]
    logits: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    reached: float = 1.0

    @classmethod
    def of(cls, canvases: np.ndarray, maps: Mapping[str, np.ndarray], logits: np.ndarray) -> Reference:
        """Make a reference of the model's maps (N, C_i, h_i, w_i) and logits (N, C, h, w)."""
        labels, confidence = _decode(logits, canvases)
        sketches = {name: sketch(array) for name, array in maps.items()}
        return cls(canvases, sketches, sketch(logits), labels, confidence)

    def write(self, path: Path) -> None:
        """Write it to a file ``.npz``; pictures are stored as PNG."""
        arrays: dict[str, Any] = {f"maps/{name}": array for name, array in self.maps.items()}
        for name in ("canvases", "labels", "confidence"):
            for index, picture in enumerate(getattr(self, name)):
                arrays[f"{name}/{index}"] = cv2.imencode(".png", picture)[1]
        np.savez(path, logits=self.logits, reached=np.float64(self.reached), **arrays)

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read it from a file.

        Raises:
            ExportError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            pictures = {}
            for name in ("canvases", "labels", "confidence"):
                count = sum(key.startswith(f"{name}/") for key in arrays)
                flags = cv2.IMREAD_COLOR if name == "canvases" else cv2.IMREAD_UNCHANGED
                pictures[name] = np.stack([_decoded(arrays[f"{name}/{i}"], flags) for i in range(count)])
            maps = {key.removeprefix("maps/"): array for key, array in arrays.items() if key.startswith("maps/")}
            return cls(maps=maps, logits=arrays["logits"], reached=float(arrays["reached"]), **pictures)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, cv2.error) as error:
            raise ExportError(f"{path} cannot be read: {error}; export the bundle again") from error


def sketch(array: np.ndarray) -> np.ndarray:
    """Return (N, 4096) float32 sketches of (N, ...) arrays; not finite where any element is not."""
    flat = array.reshape(len(array), -1)
    hashed = (np.arange(1, flat.shape[1] + 1, dtype=np.uint64) * _ODD) >> np.uint64(32)
    place = (hashed % np.uint64(_SUMS)).astype(np.intp)
    sign = np.where(hashed & np.uint64(_SUMS), 1.0, -1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([np.bincount(place, sign * one, _SUMS) for one in flat.astype(np.float64)]).astype(np.float32)


class Stage(NamedTuple):
    """How far one stage of the computation is from the model.

    Attributes:
        kind: ``maps``, ``logits``, ``labels`` or ``confidence``.
        name: of the feature map, or of the head.
        figure: the smallest cosine of a map or of logits; the share of equal labels, 0..1; the mean difference of
            confidence where labels are equal, in levels of 0..255.
    """

    kind: str
    name: str
    figure: float

    def __str__(self) -> str:
        return f"{'feature map' if self.kind == 'maps' else f'{self.kind} of'} {self.name}"


def measure(runtime: Runtime, name: str, reference: Reference, max_batch: int = 1) -> Iterator[Stage]:
    """Compute a reference's inputs, and yield how far each stage is from the model, in the order of the data.

    In the smallest batch and in the largest, and where a GPU computes twice: the second run may replay a CUDA graph.

    Args:
        runtime: what is compared.
        name: of the head (the bundle).
        reference: the model's results for that head.
        max_batch: the most frames in one pass.
    """
    count = len(reference.canvases)
    for batch in sorted({1, max_batch}):
        maps: dict[str, Difference] = {stage: Difference() for stage in reference.maps}
        logits, equal, apart = Difference(), 0, []
        starts = range(0, max(count, batch), batch)
        for start in [*starts, *(starts if runtime.device != "cpu" else ())]:
            rows = [index % count for index in range(start, start + batch)]
            canvases = np.ascontiguousarray(reference.canvases[rows])
            computation = runtime.start(canvases, [name])
            found = computation.logits()[name]
            for stage, array in computation.maps().items():
                if stage in maps:
                    maps[stage].update(reference.maps[stage][rows], sketch(array))
            on_host = found if isinstance(found, np.ndarray) else found.float().cpu().numpy()
            logits.update(reference.logits[rows], sketch(on_host))
            labels, confidence = _decode(found, canvases)
            same = labels == reference.labels[rows]
            equal += int(same.sum())
            difference = np.abs(confidence.astype(np.int16) - reference.confidence[rows])
            apart.append(float(difference[same].mean()) if same.any() else 255.0)
        for stage, each in maps.items():
            yield Stage("maps", stage, each.cosine)
        yield Stage("logits", name, logits.cosine)
        yield Stage("labels", name, equal / (len(apart) * batch * reference.labels[0].size))
        yield Stage("confidence", name, max(apart))


def check(
    runtime: Runtime, candidate: Candidate, bundles: Sequence[Bundle], size: tuple[int, int], max_batch: int
) -> str:
    """Compare a runtime with the references of the exports that it serves.

    Args:
        runtime: opened from the candidate.
        candidate: what was opened.
        bundles: whose heads it serves.
        size: (height, width) of the network input, pixels, at which a runtime that takes any is best compared.
        max_batch: the most frames in one pass.

    Returns:
        Why it could not be compared; empty where it was, and agrees.

    Raises:
        DisagreementError: it computes something else than the model; names the first stage that differs.
        ExportError: a reference is damaged.
        RuntimeFailedError, RuntimeUnavailableError: it fails.
    """
    exports = references(bundles, candidate.graphs, size)
    if not exports:
        return "the export holds no reference (an older one): export the bundle again"
    for export in exports:
        reference = Reference.read(export.graph(REFERENCE_FILE))
        if candidate.graphs is None:  # what the export's graphs lose, the model itself must not
            reference = replace(reference, reached=1.0)
        _check_head(runtime, candidate, export.bundle_name, reference, max_batch)
    _logger.info("%s agrees with the PyTorch model", runtime.description)
    return ""


def check_with_model(
    runtime: Runtime,
    candidate: Candidate,
    bundles: Sequence[Bundle],
    size: tuple[int, int],
    max_batch: int,
    model: Runtime,
) -> None:
    """Compare a runtime that runs the model in another way, such as on a GPU, with the model, for want of an export.

    The pictures are artificial, and have more pixels between two classes than those of an export: there, 95 % equal
    labels will do.

    Args:
        runtime, candidate, bundles, max_batch: see `check`.
        size: (height, width) of the network input, pixels.
        model: the PyTorch model in fp32 on the CPU.

    Raises:
        DisagreementError, RuntimeFailedError: see `check`.
    """
    canvases = artificial_canvases(size)
    names = [bundle.manifest.name for bundle in bundles]
    computed = model.start(canvases, names)
    for name, logits in computed.logits().items():
        reference = replace(Reference.of(canvases, computed.maps(), logits), reached=_REACHED_ON_ARTIFICIAL)
        _check_head(runtime, candidate, name, reference, max_batch)
    _logger.info("%s agrees with the PyTorch model on the CPU", runtime.description)


def _check_head(runtime: Runtime, candidate: Candidate, name: str, reference: Reference, max_batch: int) -> None:
    _, height, width, _ = reference.canvases.shape
    for stage in measure(runtime, name, reference, max_batch):
        problem = shortfall(stage, candidate.precision, reference)
        if problem:
            raise DisagreementError(
                f"{runtime.description} does not compute what the PyTorch model computes: {stage} {problem}. It is "
                "not used; choose another runtime, provider or precision",
                stage.kind,
                name,
                (height, width),
            )


def artificial_canvases(size: tuple[int, int]) -> np.ndarray:
    """Return smooth patches of colour, (`FRAMES`, height, width, 3) uint8, always the same."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (FRAMES, max(2, size[0] // 32), max(2, size[1] // 32), 3), np.uint8)
    return np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse])


def references(bundles: Sequence[Bundle], graphs: Graphs | None, size: tuple[int, int]) -> list[Export]:
    """Return an export with a reference for each bundle and size that a runtime serves, or nothing if one is missing.

    Of a runtime that runs the model itself, one export of each bundle: of ``size`` where there is one, else any.
    """
    if graphs is not None:
        exports = [export for of_size in graphs.values() for export in of_size]
        return exports if all(export.has_reference for export in exports) else []
    found = []
    for bundle in bundles:
        with_one = [export for export in find_exports(bundle)[0] if export.has_reference]
        if not with_one:
            return []
        found.append(next((export for export in with_one if export.manifest.network_size == size), with_one[0]))
    return found


def shortfall(stage: Stage, precision: str, reference: Reference) -> str:
    """Say by how much a stage misses the threshold of a precision; empty where it reaches it."""
    threshold, figure = THRESHOLDS[precision], stage.figure
    if stage.kind == "confidence":
        if figure <= threshold.confidence:
            return ""
        return f"differs by {figure:.2f} levels of 255 on average; {precision} may differ by {threshold.confidence}"
    if stage.kind == "labels":
        accepted = reference.reached < threshold.labels
        least = reference.reached - _SLACK if accepted else threshold.labels
        if figure >= least:
            return ""
        return f"are equal on only {figure:.4%} of the pixels; {precision} must reach {least:.4%}"
    return "" if figure >= threshold.cosine else f"has cosine {figure:.7f}; {precision} must reach {threshold.cosine}"


def _decoded(png: np.ndarray, flags: int) -> np.ndarray:
    picture = cv2.imdecode(png, flags)
    if picture is None:
        raise ValueError("a picture in it is damaged")
    return picture


def _decode(logits: Any, canvases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of logits (N, C, h, w), NumPy or PyTorch, at the network inputs' size."""
    if isinstance(logits, np.ndarray):
        logits = np.nan_to_num(logits)
    labels, confidence = decode.upsample_argmax_confidence(logits, canvases.shape[1:3])
    if isinstance(labels, np.ndarray):
        return labels, confidence
    return labels.cpu().numpy(), confidence.cpu().numpy()
