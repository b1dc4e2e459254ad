"""The steps of an export, in order: write the graphs, compare them, and only then put them into the bundle."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers

from dinov3_seg_ros.bundle.loading import Bundle, check_shared_backbone, load_bundle, shared_layers
from dinov3_seg_ros.bundle.manifest import HEAD_FILE
from dinov3_seg_ros.bundle.onnx_folder import (
    BACKBONE_GRAPH,
    CANVASES,
    EXPORT_FILE,
    FUSED_GRAPH,
    HEAD_GRAPH,
    LICENCES_FILE,
    LOGITS,
    REFERENCE_FILE,
    REPORT_FILE,
    Export,
    ExportManifest,
    export_folder,
    find_graphs,
)
from dinov3_seg_ros.export import graph_files, parity, quantisation
from dinov3_seg_ros.export.graphs import BackboneGraph, HeadGraph, export_backbone, export_head, fuse, store_compactly
from dinov3_seg_ros.export.licences import licences_of_graphs
from dinov3_seg_ros.export.references import ReferenceMaker
from dinov3_seg_ros.export.samples import open_samples
from dinov3_seg_ros.export.smoothquant import smooth
from dinov3_seg_ros.frames.preprocessing import check_geometry
from dinov3_seg_ros.options import ComputeOptions, Precision
from dinov3_seg_ros.runtimes.agreement import THRESHOLDS
from dinov3_seg_ros.runtimes.choice import available_runtimes
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.runtimes.protocol import Runtime
from dinov3_seg_ros.runtimes.pytorch.runtime import PyTorchRuntime
from dinov3_seg_ros.support.cpu import this_cpu
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError
from dinov3_seg_ros.support.files import RANDOM_END, locked, replacing_folder, sha256_of_file, write_json

_logger = logging.getLogger(__name__)

# The float type of each precision's graphs. The integer graphs are made from float graphs.
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "int8_qdq": torch.float32,
}
# Of the folder in which an export is made.
_WORK = ".work."
_ENGINES_REMOVED = "The engines were removed, the verified graphs kept"
_SHARES_IN_FLOAT = (0.0, 0.05, 0.1, 0.2, 0.4)
_CALIBRATION_IMAGES = 32
# Enough for the order of the layers, for which ranges are measured anew for each of them.
_RANKING_IMAGES = 8
# Images among which a second one is looked for that differs from the first.
_LOOKED_THROUGH = 16


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and what to compare it on.

    Attributes:
        size: (height, width) of the network input, pixels; None takes the bundle's.
        precision: of the graphs.
        fuse: also write backbone and head as one graph, for programs of other projects; see `graphs.fuse`.
        images: folder of images to compare and calibrate with; None takes synthetic images.
        masks: folder of their masks, of the images' names; each bundle reads them as its training did.
        least_labels: share of equal labels to require, 0..1; None takes the precision's.
        engine: also build this machine's TensorRT engines of the graphs, and compare them too.
        max_batch: the largest batch of the engines.
    """

    size: tuple[int, int] | None = None
    precision: Precision = "fp32"
    fuse: bool = False
    images: Path | None = None
    masks: Path | None = None
    least_labels: float | None = None
    engine: bool = False
    max_batch: int = 1


def export(paths: Sequence[str | os.PathLike[str]], options: ExportOptions) -> dict[Path, str]:
    """Export bundles that share a backbone, each into its own folder.

    Nothing is replaced before everything is verified and written: an error until then leaves every folder as it was.
    All get the same backbone graph, which returns the maps of all heads. So each head can run alone or with the others.

    Returns:
        The report in Markdown by the folder of each export, and of the engines.

    Raises:
        ExportError: the graphs do not compute what the model computes, and nothing was written; or only the engines
            compute something else, and the graphs are kept.
        BundleError, BackboneError, DatasetError, ParameterError: what cannot be exported or compared with, and why.
        RuntimeUnavailableError: no engine can be built here.
        OSError: the disk is full or not writable; no folder holds part of an export.
    """
    bundles = [load_bundle(path) for path in paths]
    check_shared_backbone(bundles)
    size = options.size or bundles[0].manifest.input.network_size
    for bundle in bundles:
        check_geometry("stretch", size, bundle.manifest.backbone.multiple)
    if options.engine:
        _check_engines_can_be_built(options)  # before minutes are spent on the graphs
    job = _Job(bundles, size, options)
    targets = [export_folder(bundle, size, options.precision) for bundle in bundles]
    with contextlib.ExitStack() as stack:
        for parent in sorted({target.parent.resolve() for target in targets}):
            stack.enter_context(locked(parent / ".lock"))
            _remove_leftovers(parent)
        # On the bundle's own disk, where the graphs will stay.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_WORK, dir=targets[0].parent)))
        exports = job.run(work)
        were_fused = [] if options.fuse else [target / FUSED_GRAPH for target in targets]
        were_fused = [graph for graph in were_fused if graph.exists()]
        with contextlib.ExitStack() as replaced:
            for export, target in zip(exports, targets, strict=True):
                folder = replaced.enter_context(replacing_folder(target))
                shutil.copytree(export.folder, folder, dirs_exist_ok=True)
        for graph in were_fused:
            _logger.warning("the earlier %s was removed; add --fuse to make it anew", graph)
    reports = {target: (target / REPORT_FILE).read_text(encoding="utf-8") for target in targets}
    return {**reports, **job.build_engines()} if options.engine else reports


class _Job:
    """One export. Its methods are the steps."""

    def __init__(self, bundles: Sequence[Bundle], size: tuple[int, int], options: ExportOptions) -> None:
        self._bundles, self._size, self._options = bundles, size, options
        self._input = bundles[0].manifest.input
        self._layers = shared_layers(bundles)
        self._samples = open_samples(options.images, options.masks, bundles)

    def run(self, work: Path) -> list[Export]:
        """Write one folder in ``work`` for each bundle, complete and compared.

        Raises:
            ExportError: the graphs do not compute what the model computes.
        """
        folders = [work / bundle.manifest.name for bundle in self._bundles]
        for folder in folders:
            folder.mkdir()
        float_nodes = self._write_backbone(folders[0] / BACKBONE_GRAPH, work)
        self._write_heads(folders)
        for folder in folders[1:]:
            graph_files.link(folders[0] / BACKBONE_GRAPH, folder)
        record = {"machine": this_cpu().name, **self._compare(folders)}
        if float_nodes:
            record["float_nodes"] = float_nodes
        exports = [self._describe(*pair, record) for pair in zip(self._bundles, folders, strict=True)]
        for bundle, export in zip(self._bundles, exports, strict=True):
            self._write_descriptions(bundle, export)
        return exports

    def build_engines(self) -> dict[Path, str]:
        """Build engines of the graphs that are now in the bundles, and compare them with the model.

        Returns:
            The report in Markdown by the engines' folder.

        Raises:
            ExportError: they do not compute what the model computes; they were removed, and the graphs kept.
        """
        from dinov3_seg_ros.runtimes.tensorrt.runtime import TensorRTRuntime
        from dinov3_seg_ros.runtimes.tensorrt.store import store_folder

        precision = self._options.precision
        options = ComputeOptions(
            runtime="tensorrt", precision=precision, network_size=self._size, max_batch=self._options.max_batch
        )
        graphs, _ = find_graphs(self._bundles, [precision], self._size, asked=True)
        with contextlib.closing(TensorRTRuntime(self._bundles, options, graphs[precision])) as found:
            record = {"machine": found.description, **self._compare_with_model(found)}
            try:
                parity.check(record, precision, self._options.least_labels, "the TensorRT engines", _ENGINES_REMOVED)
            except ExportError:
                for engine in found.engines:
                    engine.remove()
                raise
            names = ", ".join(bundle.manifest.name for bundle in self._bundles)
            report = parity.report(record, f"Engines of {names}, {self._size[0]}x{self._size[1]}, {precision}")
            for engine in found.engines:
                engine.keep_comparison(record, report)
        return {store_folder(): report}

    def _write_backbone(self, path: Path, work: Path) -> list[str]:
        """Write the graph that all bundles share; return the nodes that an integer precision leaves in float."""
        backbone = self._bundles[0].load_backbone(layers=self._layers)
        # Only ONNX Runtime runs int8 graphs, so they may hold its own operators.
        fused_attention = self._options.precision == "int8"
        graph = BackboneGraph(backbone, self._size, self._input.mean, self._input.std, self._dtype, fused_attention)
        graph.eval()
        properties = self._properties_of_backbone
        with torch.no_grad():
            self._example_maps = list(graph(torch.zeros(2, *self._size, 3, dtype=torch.uint8)))
        if self._options.precision.startswith("int8"):
            export_backbone(graph, self._size, work / BACKBONE_GRAPH, properties)
            return self._quantise(work / BACKBONE_GRAPH, path)
        export_backbone(graph, self._size, path, properties)
        store_compactly(path)
        return []

    def _quantise(self, source: Path, target: Path) -> list[str]:
        """Leave more and more of the most sensitive nodes in float, until the features are close enough."""
        few = list(self._canvases(_RANKING_IMAGES))
        method: quantisation.Quantise = quantisation.dynamic
        exact, ranking = source, method
        if self._options.precision == "int8_qdq":
            seen = list(self._canvases(_CALIBRATION_IMAGES))
            source = exact.with_name(f"smooth_{exact.name}")
            method, ranking = quantisation.static_for(seen), quantisation.static_for(few)
            smooth(exact, source, seen)
        least = THRESHOLDS[self._options.precision].cosine
        ranked: list[str] = []
        kept: list[str] = []
        for share in _SHARES_IN_FLOAT:
            if share and not ranked:  # ranking runs a graph for each node, and often none is left in float
                ranked = quantisation.rank_by_sensitivity(source, ranking, few[:1], target.parent)
            kept = ranked[: round(share * len(ranked))]
            method(source, target, kept)
            if all(found >= least for found in quantisation.cosines(exact, target, self._canvases())):
                break
        return kept

    def _canvases(self, number: int | None = None) -> Iterator[np.ndarray]:
        """Lay the images on the network input, (1, H, W, 3) uint8 each; of all images at most ``number``, if given."""
        samples = self._samples if number is None else self._samples.spread(number)
        return (parity.lay_out(image, self._bundles[0].manifest, self._size)[0] for image, _ in samples)

    def _write_heads(self, folders: Sequence[Path]) -> None:
        for bundle, folder in zip(self._bundles, folders, strict=True):
            manifest = bundle.manifest
            layers = manifest.backbone.layers
            maps = [self._example_maps[self._layers.index(layer)] for layer in layers]
            properties = {
                **self._properties,
                "name": manifest.name,
                "class_names": manifest.classes.names,
                "geometry": manifest.input.geometry,
                "backbone_identity": manifest.backbone.identity,
                "layers": layers,
                "licence": "; ".join(manifest.licences),
            }
            graph = HeadGraph(bundle.load_head(), self._input.mean, self._input.std, self._dtype)
            export_head(graph, maps, layers, self._size, folder / HEAD_GRAPH, properties)
            if self._options.fuse:
                of_both = {**self._properties_of_backbone, **properties, "licence": licences_of_graphs(bundle)}
                fuse(folders[0] / BACKBONE_GRAPH, folder / HEAD_GRAPH, layers, folder / FUSED_GRAPH, of_both)

    def _compare(self, folders: Sequence[Path]) -> dict[str, Any]:
        """Compare the graphs with the model, and write the references that robots compare them with."""
        exports = [self._describe(*pair, {}) for pair in zip(self._bundles, folders, strict=True)]
        try:
            # On the CPU, which the export names in its record, even where there is a GPU.
            found = OnnxRuntime({self._size: exports}, self._layers, precision=self._options.precision)
        except ExportError as error:
            if self._options.precision != "bf16":
                raise
            self._write_references(folders, None)
            return {"unverified": f"ONNX Runtime runs no bf16 export ({error})"}
        fused = {e.bundle_name: _fused(e) for e in exports} if self._options.fuse else {}
        record = self._compare_with_model(found, fused)
        parity.check(record, self._options.precision, self._options.least_labels)
        self._write_references(folders, found)
        return record

    def _write_references(self, folders: Sequence[Path], found: Runtime | None) -> None:
        names = [bundle.manifest.name for bundle in self._bundles]
        maker = ReferenceMaker(self._model, names, self._options.precision, found)
        references = maker.make(self._canvases(_LOOKED_THROUGH))
        for name, folder in zip(names, folders, strict=True):
            references[name].write(folder / REFERENCE_FILE)

    def _compare_with_model(self, found: Runtime, fused: Mapping[str, parity.Logits] | None = None) -> dict[str, Any]:
        return parity.compare(self._bundles, self._model, found, self._size, self._samples, fused)

    @functools.cached_property
    def _model(self) -> PyTorchRuntime:
        """The PyTorch model in float32."""
        return PyTorchRuntime(self._bundles, ComputeOptions(device="cpu", precision="fp32"))

    def _describe(self, bundle: Bundle, folder: Path, record: Mapping[str, Any]) -> Export:
        manifest = ExportManifest(
            precision=self._options.precision,
            network_size=self._size,
            layers=self._layers,
            backbone_identity=bundle.manifest.backbone.identity,
            head_weights=bundle.manifest.files[HEAD_FILE],
            mean=self._input.mean,
            std=self._input.std,
            verified="heads" in record,
            cpu=this_cpu(),
            user_images=self._options.images is not None,
            parity=dict(record),
            versions={module.__name__: module.__version__ for module in (torch, transformers, onnx, onnxruntime)},
            files={file.name: sha256_of_file(file) for file in sorted(folder.iterdir())},
        )
        return Export(folder, bundle.manifest, manifest)

    def _write_descriptions(self, bundle: Bundle, export: Export) -> None:
        write_json(export.folder / EXPORT_FILE, export.manifest.model_dump(mode="json"))
        (export.folder / LICENCES_FILE).write_text(licences_of_graphs(bundle) + "\n", encoding="utf-8")
        title = f"{bundle.manifest.name}, {self._size[0]}x{self._size[1]}, {self._options.precision}"
        (export.folder / REPORT_FILE).write_text(parity.report(export.manifest.parity, title), encoding="utf-8")

    @property
    def _dtype(self) -> torch.dtype:
        return _DTYPES[self._options.precision]

    @property
    def _properties(self) -> dict[str, Any]:
        return {"precision": self._options.precision, "network_size": self._size}

    @property
    def _properties_of_backbone(self) -> dict[str, Any]:
        return {
            **self._properties,
            "backbone_identity": self._bundles[0].manifest.backbone.identity,
            "model_type": self._bundles[0].manifest.backbone.model_type,
            "layers": self._layers,
            "mean": self._input.mean,
            "std": self._input.std,
            "licence": licences_of_graphs(self._bundles[0]),
        }


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed exports left in a bundle's folder of exports, whose lock the caller holds."""
    for path in [*folder.glob(f"{_WORK}{RANDOM_END}"), *folder.glob(f".[0-9]*x[0-9]*-*.{RANDOM_END}")]:
        shutil.rmtree(path, ignore_errors=True)


def _check_engines_can_be_built(options: ExportOptions) -> None:
    reason = available_runtimes()["tensorrt"]
    if reason:
        raise RuntimeUnavailableError(reason)
    from dinov3_seg_ros.runtimes.tensorrt.runtime import usable

    usable(ComputeOptions(precision=options.precision, max_batch=options.max_batch))


def _fused(export: Export) -> parity.Logits:
    session = graph_files.open_on_cpu(export.graph(FUSED_GRAPH))

    def run(canvases: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run([LOGITS], {CANVASES: canvases})[0]
        return logits

    return run
