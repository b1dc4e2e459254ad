"""Engines on disk: found again while everything they depend on is the same, else built.

Each engine has two files in `store_folder`, named by the SHA-256 of what it was built from and for::

    <key>.engine   TensorRT's bytes
    <key>.json     `EngineRecord`

Where TensorRT cannot build one, or it computes something else than the model, this is remembered instead, so that a
start does not take minutes for what will fail again::

    <key>.refused  `Refusal`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tensorrt as trt
from pydantic import BaseModel, ConfigDict

from dinov3_seg_ros.bundle.onnx_folder import Export
from dinov3_seg_ros.runtimes.tensorrt import builder
from dinov3_seg_ros.runtimes.tensorrt.cuda import Gpu
from dinov3_seg_ros.runtimes.tensorrt.log import TENSORRT_LOG, failure, logger, opened
from dinov3_seg_ros.support.errors import ExportError, one_line
from dinov3_seg_ros.support.files import (
    cache_folder,
    locked_if_possible,
    remove_temporaries,
    replacing_file,
    sha256_of_file,
    sha256_of_json,
    write_json,
)

ENGINE_SUFFIX, RECORD_SUFFIX, REPORT_SUFFIX, REFUSAL_SUFFIX = ".engine", ".json", ".md", ".refused"


class EngineRecord(BaseModel):
    """The description beside an engine.

    Attributes:
        graph: path of the graph, for people.
        built_for: everything that the engine depends on; its SHA-256 names the files.
        sha256: of the engine's bytes.
        comparison: with the PyTorch model, where the export built the engine; see `export.parity.compare`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    graph: str
    built_for: dict[str, Any]
    sha256: str
    comparison: dict[str, Any] = {}


class Refusal(BaseModel):
    """Why an engine is not built again.

    Attributes:
        graph: path of the graph, for people.
        built_for: everything that the engine depends on.
        reason: for people.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    graph: str
    built_for: dict[str, Any]
    reason: str


@dataclass
class StoredEngine:
    """An engine, loaded.

    Attributes:
        engine: TensorRT's.
        record: its description.
        path: the file of its bytes; None when it is in memory only.
        was_read: whether it was found in the store.
    """

    engine: trt.ICudaEngine
    record: EngineRecord
    path: Path | None
    was_read: bool = False

    def keep_comparison(self, comparison: Mapping[str, Any], report: str) -> None:
        """Write beside it how it compares with the PyTorch model, as data and as text."""
        self.record.comparison = dict(comparison)
        if self.path is not None:
            write_json(self.path.with_suffix(RECORD_SUFFIX), self.record.model_dump(mode="json"))
            with replacing_file(self.path.with_suffix(REPORT_SUFFIX)) as temporary:
                temporary.write_text(report, encoding="utf-8")

    def remove(self) -> None:
        """Delete it from the disk."""
        if self.path is not None:
            _remove(self.path)

    def refuse(self, reason: str) -> None:
        """Delete it, and remember not to build it again."""
        self.remove()
        _remember(_target(self.record.built_for), self.record.graph, self.record.built_for, reason)


def store_folder() -> Path:
    """Where engines are kept: the folder ``engines`` of the user's caches."""
    return cache_folder("engines")


def obtain(export: Export, graph: str, gpu: Gpu, max_batch: int) -> StoredEngine:
    """Load the engine of an exported graph from the store, or build it and store it.

    The SHA-256 of a stored engine is checked before TensorRT reads it. Of several processes that want the same engine,
    one builds it. Where the store cannot be written, the engine stays in memory.

    Args:
        export: what the graph belongs to.
        graph: its file name.
        gpu: the GPU that this thread uses.
        max_batch: the largest batch it must take.

    Raises:
        ExportError: the graph is damaged; TensorRT cannot build it, or could not before; it was refused before.
        RuntimeUnavailableError: the GPU or its driver fails, or memory is lacking, which is not remembered.
    """
    path = export.graph(graph)
    built_for = _built_for(export, graph, gpu, max_batch)
    target = _target(built_for)
    # A store that cannot be written has no lock either, and may still hold the engine.
    with locked_if_possible(target.with_suffix(".lock")):
        _check_not_refused(target, built_for)
        stored = _read(target, built_for)
        if stored is None:
            with contextlib.suppress(OSError):  # where the store cannot be written
                remove_temporaries(target)
            try:
                plan, stored = _build(path, built_for, max_batch, gpu)
            except ExportError as error:
                _remember(target, str(path), built_for, str(error))
                raise
            stored.path = _write(target, plan, stored.record)
        return stored


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
        "multiprocessors": gpu.multiprocessors,
        "memory": gpu.memory,
        "batches": [1, max_batch, max_batch],
        "settings": builder.SETTINGS,
    }


def _check_not_refused(target: Path, built_for: Mapping[str, Any]) -> None:
    path = target.with_suffix(REFUSAL_SUFFIX)
    try:
        refusal = Refusal.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # there is none, or it is damaged
        return
    if refusal.built_for == built_for:
        raise ExportError(f"{refusal.reason} (found at an earlier start; delete {path} to try again)")


def _remember(target: Path, graph: str, built_for: Mapping[str, Any], reason: str) -> None:
    refusal = Refusal(graph=graph, built_for=dict(built_for), reason=reason)
    try:
        write_json(target.with_suffix(REFUSAL_SUFFIX), refusal.model_dump(mode="json"))
    except OSError as error:
        logger.warning("the engine of %s will be built again: its failure cannot be written: %s", graph, error)


def _target(built_for: Mapping[str, Any]) -> Path:
    return store_folder() / f"{sha256_of_json(built_for)}{ENGINE_SUFFIX}"


def _read(path: Path, built_for: Mapping[str, Any]) -> StoredEngine | None:
    try:
        plan, record = path.read_bytes(), _read_record(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is built anew: %s", path, one_line(error))
        return None
    if hashlib.sha256(plan).hexdigest() != record.sha256 or record.built_for != built_for:
        logger.warning("%s is damaged, or was built for something else; it is built anew", path)
        return None
    engine = _deserialise(plan)
    if engine is None:
        failed = failure(f"cannot load {path}", "it is built anew")
        if not isinstance(failed, ExportError):
            raise failed
        logger.warning("%s", failed)
        return None
    return StoredEngine(engine, record, path, was_read=True)


def _read_record(path: Path) -> EngineRecord:
    return EngineRecord.model_validate(json.loads(path.with_suffix(RECORD_SUFFIX).read_text(encoding="utf-8")))


def _build(graph: Path, built_for: dict[str, Any], max_batch: int, gpu: Gpu) -> tuple[bytes, StoredEngine]:
    plan = builder.build(graph, max_batch, gpu.use)
    engine = _deserialise(plan)
    if engine is None:
        raise failure(f"cannot load the engine that it built of {graph}", "set runtime to onnx")
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
    return opened(trt.Runtime).deserialize_cuda_engine(plan)
