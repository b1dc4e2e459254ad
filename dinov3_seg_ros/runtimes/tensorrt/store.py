"""Engines on disk: found again while everything they depend on is the same, else built.

Each engine has two files in `store_folder`, named by the SHA-256 of what it was built from and for::

    <key>.engine   TensorRT's bytes
    <key>.json     `EngineRecord`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorrt as trt
from pydantic import BaseModel, ConfigDict

from dinov3_seg_ros.bundle.exports import Export
from dinov3_seg_ros.runtimes.agreement import THRESHOLDS, Difference
from dinov3_seg_ros.runtimes.tensorrt import builder
from dinov3_seg_ros.runtimes.tensorrt.cuda import Gpu, Workspace
from dinov3_seg_ros.runtimes.tensorrt.execution import Execution
from dinov3_seg_ros.runtimes.tensorrt.log import TENSORRT_LOG, logger
from dinov3_seg_ros.runtimes.tensorrt.reference import NOT_INSTALLED, CannotCompareError, Reference, onnx_runtime
from dinov3_seg_ros.support.errors import ExportError
from dinov3_seg_ros.support.files import cache_folder, locked, replacing_file, sha256_of_file, write_json

ENGINE_SUFFIX, RECORD_SUFFIX, REPORT_SUFFIX = ".engine", ".json", ".md"


class EngineRecord(BaseModel):
    """The description beside an engine.

    Attributes:
        graph: path of the graph, for people.
        built_for: everything that the engine depends on; its SHA-256 names the files.
        sha256: of the engine's bytes.
        parity: output name -> cosine and max_abs against ONNX Runtime on the same graph.
        unverified: why the engine could not be compared; empty when it was compared with ONNX Runtime or PyTorch.
        comparison: with the PyTorch model, where the export built the engine; see `export.parity.compare`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    graph: str
    built_for: dict[str, Any]
    sha256: str
    parity: dict[str, dict[str, float]] = {}
    unverified: str = ""
    comparison: dict[str, Any] = {}


@dataclass
class StoredEngine:
    """An engine, loaded.

    Attributes:
        engine: TensorRT's.
        record: its description.
        path: the file of its bytes; None when it is in memory only.
    """

    engine: trt.ICudaEngine
    record: EngineRecord
    path: Path | None

    def keep_comparison(self, comparison: Mapping[str, Any], report: str) -> None:
        """Write beside it how it compares with the PyTorch model, as data and as text."""
        self.record.comparison, self.record.unverified = dict(comparison), ""
        if self.path is not None:
            write_json(self.path.with_suffix(RECORD_SUFFIX), self.record.model_dump(mode="json"))
            with replacing_file(self.path.with_suffix(REPORT_SUFFIX)) as temporary:
                temporary.write_text(report, encoding="utf-8")

    def remove(self) -> None:
        """Delete it from the disk."""
        if self.path is not None:
            _remove(self.path)


def store_folder() -> Path:
    """Where engines are kept: the folder ``engines`` of the user's caches."""
    return cache_folder("engines")


def obtain(export: Export, graph: str, gpu: Gpu, max_batch: int, reference: Reference) -> StoredEngine:
    """Load the engine of an exported graph from the store, or build it, compare it and store it.

    The SHA-256 of a stored engine is checked before TensorRT reads it. An engine that could not be compared with its
    graph before is compared now. Of several processes that want the same engine, one builds it. Where the store cannot
    be written, the engine stays in memory.

    Args:
        export: what the graph belongs to.
        graph: its file name.
        gpu: the GPU that this thread uses.
        max_batch: the largest batch it must take.
        reference: of the backbone's graph, or of the backbone's graph that a head reads.

    Raises:
        ExportError: the graph is damaged, or TensorRT cannot build it or computes something else.
        RuntimeUnavailableError: the GPU fails.
    """
    path = export.graph(graph)
    built_for = _built_for(export, graph, gpu, max_batch)
    target = _target(built_for)
    with _alone(target):
        stored = _read(target, built_for)
        if stored is None:
            plan, stored = _build(path, built_for, max_batch)
            _verify(stored, path, max_batch, reference)
            stored.path = _write(target, plan, stored.record)
        elif stored.record.unverified:
            try:
                _verify(stored, path, max_batch, reference)
            except ExportError:
                stored.remove()
                raise
            with contextlib.suppress(OSError):  # it is compared anew the next time
                write_json(target.with_suffix(RECORD_SUFFIX), stored.record.model_dump(mode="json"))
        return stored


def why_unverified(export: Export, graph: str, gpu: Gpu, max_batch: int) -> str:
    """Return why the engine that `obtain` returns would be unverified; empty where it was or will be compared."""
    target = _target(_built_for(export, graph, gpu, max_batch))
    known = None if damaged(target) else _read_record(target).unverified
    if known == "":
        return ""
    if onnx_runtime() is None:
        return NOT_INSTALLED
    if known not in (None, NOT_INSTALLED):
        return known
    return "" if export.manifest.verified else "ONNX Runtime could not run the graph where it was exported"


def damaged(path: Path) -> bool:
    """Return whether an engine in the store differs from its record, or has none."""
    try:
        return sha256_of_file(path) != _read_record(path).sha256
    except (OSError, ValueError):
        return True


def _built_for(export: Export, graph: str, gpu: Gpu, max_batch: int) -> dict[str, Any]:
    return {
        "graph": export.digest(graph),
        "precision": export.manifest.precision,
        "tensorrt": trt.__version__,
        "gpu": gpu.name,
        "capability": gpu.capability,
        "batches": [1, max_batch, max_batch],
        "settings": builder.SETTINGS,
    }


def _target(built_for: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(built_for, sort_keys=True).encode()).hexdigest()
    return store_folder() / f"{key}{ENGINE_SUFFIX}"


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # A store that cannot be written has no lock either, and may still hold the engine.
        with contextlib.suppress(OSError):
            stack.enter_context(locked(target.with_suffix(".lock")))
        yield


def _read(path: Path, built_for: Mapping[str, Any]) -> StoredEngine | None:
    try:
        plan, record = path.read_bytes(), _read_record(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is built anew: %s", path, " ".join(str(error).split()))
        return None
    if hashlib.sha256(plan).hexdigest() != record.sha256 or record.built_for != built_for:
        logger.warning("%s is damaged, or was built for something else; it is built anew", path)
        return None
    engine = _deserialise(plan)
    if engine is None:
        logger.warning("%s cannot be loaded and is built anew: %s", path, TENSORRT_LOG.take_errors())
        return None
    return StoredEngine(engine, record, path)


def _read_record(path: Path) -> EngineRecord:
    return EngineRecord.model_validate(json.loads(path.with_suffix(RECORD_SUFFIX).read_text(encoding="utf-8")))


def _build(graph: Path, built_for: dict[str, Any], max_batch: int) -> tuple[bytes, StoredEngine]:
    plan = builder.build(graph, max_batch)
    engine = _deserialise(plan)
    if engine is None:
        raise ExportError(
            f"TensorRT {trt.__version__} cannot load the engine that it built of {graph}: "
            f"{TENSORRT_LOG.take_errors()}; set runtime to onnx"
        )
    record = EngineRecord(graph=str(graph), built_for=built_for, sha256=hashlib.sha256(plan).hexdigest())
    return plan, StoredEngine(engine, record, None)


def _write(path: Path, plan: bytes, record: EngineRecord) -> Path | None:
    try:
        with replacing_file(path) as temporary:
            temporary.write_bytes(plan)
        write_json(path.with_suffix(RECORD_SUFFIX), record.model_dump(mode="json"))
    except OSError as error:
        _remove(path)
        logger.warning("the engine stays in memory and will be built again: %s cannot be written: %s", path, error)
        return None
    return path


def _remove(path: Path) -> None:
    for suffix in (ENGINE_SUFFIX, RECORD_SUFFIX, REPORT_SUFFIX):
        with contextlib.suppress(OSError):
            path.with_suffix(suffix).unlink()


def _deserialise(plan: bytes) -> trt.ICudaEngine | None:
    TENSORRT_LOG.take_errors()
    return trt.Runtime(TENSORRT_LOG).deserialize_cuda_engine(plan)


def _verify(stored: StoredEngine, graph: Path, max_batch: int, reference: Reference) -> None:
    record = stored.record
    try:
        record.parity = _compare(stored.engine, graph, max_batch, reference)
    except CannotCompareError as error:
        record.unverified = str(error)
        logger.warning("the engine of %s is unverified: %s", graph, error)
    else:
        _check(record, graph, record.built_for["precision"])
        record.unverified = ""


def _compare(engine: trt.ICudaEngine, graph: Path, max_batch: int, reference: Reference) -> dict[str, dict[str, float]]:
    """Output name -> how far the engine is from ONNX Runtime, in the smallest batch and the largest."""
    expected, inputs = reference.outputs(graph), reference.maps
    differences = {name: Difference() for name in expected}
    with contextlib.closing(Workspace()) as workspace, contextlib.ExitStack() as running:
        stream = workspace.stream()
        execution = Execution(engine, graph.name, workspace, stream, max_batch)
        running.callback(execution.close)
        for batch in sorted({1, max_batch}):
            for name in execution.tensors.keys() & inputs.keys() - expected.keys():
                stream.to_gpu(execution.tensors[name].address, np.ascontiguousarray(inputs[name][:batch]))
            # The second run is the one that replays the CUDA graph.
            for _ in range(2):
                execution.run(batch)
            for name, difference in differences.items():
                difference.update(expected[name][:batch], execution.tensors[name].read(stream, batch))
    return {name: difference.record() for name, difference in differences.items()}


def _check(record: EngineRecord, graph: Path, precision: str) -> None:
    least = THRESHOLDS[precision].cosine
    for name, difference in record.parity.items():
        if not difference["cosine"] >= least:
            raise ExportError(
                f"the TensorRT {trt.__version__} engine of {graph} does not compute what the graph computes: {name} "
                f"has cosine {difference['cosine']} with ONNX Runtime's (largest difference {difference['max_abs']}); "
                f"{precision} must reach {least}. It was thrown away; set runtime to onnx, or precision to fp32"
            )
