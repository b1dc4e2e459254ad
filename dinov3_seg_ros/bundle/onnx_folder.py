"""The exports of a bundle: what its ``onnx`` folder holds, and whether it may be used.

Each export is one folder of the bundle::

    onnx/480x640-fp32/
        export.json       `ExportManifest`
        backbone.onnx     network inputs -> the feature maps of one or more heads
        head.onnx         feature maps -> logits; an image-guided head reads the network inputs too
        fused.onnx        both in one, where it was asked for, for other programs
        reference.npz     two network inputs, and what the PyTorch model gives for them; see `runtimes.gate`
        report.md         how far the graphs are from the PyTorch model
        LICENCES.txt      what the weights inside are subject to

An export is bound by SHA-256 to the backbone and the head it was made from. After another training it is stale and is
refused. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dinov3_seg_ros.bundle.hub import how_to_get_again, read_json, why_not_whole
from dinov3_seg_ros.bundle.loading import Bundle, shared_layers
from dinov3_seg_ros.bundle.manifest import HEAD_FILE, MANIFEST_FILE, Manifest, first_problem, other_version
from dinov3_seg_ros.options import Precision
from dinov3_seg_ros.support.cpu import Cpu, this_cpu
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError, one_line

EXPORTS_FOLDER = "onnx"
EXPORT_FILE = "export.json"
BACKBONE_GRAPH = "backbone.onnx"
HEAD_GRAPH = "head.onnx"
FUSED_GRAPH = "fused.onnx"
REFERENCE_FILE = "reference.npz"
REPORT_FILE = "report.md"
LICENCES_FILE = "LICENCES.txt"

_SCHEMA_VERSION: Literal[1] = 1
_AGAIN = "export the bundle again"

#: Names in the graphs. A canvas is the network's input: uint8 RGB, (H, W, 3).
CANVASES, LOGITS = "canvases", "logits"
#: The name, in the graphs, of the first axis of every input and output.
BATCH = "batch"


def map_name(layer: int) -> str:
    """The name, in the graphs, of the feature map of a layer."""
    return f"layer_{layer}"


class ExportManifest(BaseModel):
    """The content of ``export.json``.

    Attributes:
        precision: see `options.Precision`.
        network_size: (height, width) of the canvases, fixed in the graphs; the batch is not.
        layers: the layers whose maps the backbone graph gives.
        backbone_identity, head_weights: SHA-256 of what was exported; see `manifest.BackboneSection` and
            `manifest.Manifest.files`.
        mean, std: the normalisation inside the backbone graph.
        verified: whether the graphs were run and agree with the PyTorch model.
        cpu: the processor that ran them; None in exports older than this field.
        user_images: whether they were compared on images of the user, two of which the reference then holds; None in
            exports older than this field.
        parity: how far the graphs are from the model; see `dinov3_seg_ros.export.parity`.
        versions: of the libraries that made the export.
        files: SHA-256 of the graphs, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = _SCHEMA_VERSION
    precision: Precision
    network_size: tuple[int, int]
    layers: list[int]
    backbone_identity: str
    head_weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    verified: bool
    cpu: Cpu | None = None
    user_images: bool | None = None
    parity: dict[str, Any] = {}
    versions: dict[str, str] = {}
    files: dict[str, str]


@dataclass(frozen=True)
class Export:
    """A folder of graphs that fits a bundle as it is now.

    Attributes:
        folder: where the graphs are.
        bundle: the content of the bundle's ``bundle.json``.
        manifest: the content of its own ``export.json``.
    """

    folder: Path
    bundle: Manifest
    manifest: ExportManifest

    @property
    def bundle_name(self) -> str:
        """The name of the bundle."""
        return self.bundle.name

    @property
    def reservation(self) -> str:
        """Why only the user may choose it here; empty where it is compared here, or was on such a processor."""
        if self.has_reference:
            return ""
        if not self.manifest.verified:
            return "it was not compared with the PyTorch model"
        if self.manifest.precision == "int8" and not self._is_as_exact_here:
            made_on = self.manifest.cpu.name if self.manifest.cpu else "an unknown processor"
            return (
                f"it was compared with the PyTorch model on {made_on}, and this processor ({this_cpu().name}) may give "
                "other results; export int8 on this machine"
            )
        return ""

    @property
    def has_reference(self) -> bool:
        """Whether it holds what the PyTorch model gives, so that it can be compared on any machine."""
        return REFERENCE_FILE in self.manifest.files

    def graph(self, name: str) -> Path:
        """The path of a graph or another file of it, after its content was checked against the manifest.

        Args:
            name: of the file, such as `BACKBONE_GRAPH`.

        Raises:
            ExportError: it is missing or damaged.
        """
        for file in self._files(name):
            if why := why_not_whole(self.folder / file, self.manifest.files[file], EXPORT_FILE, _AGAIN):
                raise ExportError(why)
        if name not in self.manifest.files:
            raise ExportError(f"{self.folder / EXPORT_FILE} lists no {name}; {_AGAIN}")
        return self.folder / name

    def check_head(self, inputs: Collection[str], count: int) -> None:
        """Check that ``bundle.json`` describes the head's graph.

        Args:
            inputs: names of its inputs.
            count: how many classes it computes.

        Raises:
            ExportError: the bundle names not all the layers that it reads, or other classes.
        """
        layers, named = self.bundle.backbone.layers, len(self.bundle.classes.names)
        unnamed = sorted(set(inputs) - {CANVASES, *map(map_name, layers)})
        if unnamed:
            raise ExportError(
                f"{self.folder / HEAD_GRAPH} reads {', '.join(unnamed)}, but backbone.layers in {MANIFEST_FILE} is "
                f"{layers}; correct the layers, or copy the bundle again"
            )
        if count != named:
            raise ExportError(
                f"{self.folder / HEAD_GRAPH} computes {count} classes, but {MANIFEST_FILE} names {named}; correct the "
                "names, or copy the bundle again"
            )

    def digest(self, name: str) -> str:
        """SHA-256 of a graph's content, including weights in a file beside it, as the manifest gives it."""
        parts = "".join(self.manifest.files[file] for file in self._files(name))
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def _is_as_exact_here(self) -> bool:
        return self.manifest.cpu is not None and this_cpu().is_as_exact_as(self.manifest.cpu)

    def _files(self, name: str) -> list[str]:
        return sorted(file for file in self.manifest.files if file.split(".")[0] == name.split(".")[0])


#: Network size (height, width) -> one export of each bundle.
Graphs = Mapping[tuple[int, int], Sequence[Export]]


def export_folder(bundle: Bundle, network_size: tuple[int, int], precision: str) -> Path:
    """The folder of a bundle's graphs for a network size (height, width) and precision."""
    return bundle.path / EXPORTS_FOLDER / f"{network_size[0]}x{network_size[1]}-{precision}"


def find_exports(bundle: Bundle) -> tuple[list[Export], list[str]]:
    """Find the exports that fit a bundle as it is now, and say of each other one why it does not."""
    usable, refused = [], []
    for path in sorted(bundle.path.glob(f"{EXPORTS_FOLDER}/*/{EXPORT_FILE}")):
        if path.parent.name.startswith("."):  # half a copy, left by an export that was killed
            continue
        try:
            usable.append(_read(path, bundle))
        except ExportError as error:
            refused.append(str(error))
    return usable, refused


def find_graphs(
    bundles: Sequence[Bundle], precisions: Sequence[str], network_size: tuple[int, int] | None, *, asked: bool
) -> tuple[dict[str, Graphs], list[str]]:
    """Find, for each precision, exports that together serve bundles which share a backbone.

    Args:
        bundles: at least one.
        precisions: of the graphs, best first.
        network_size: (height, width), or None for every size that all bundles were exported for.
        asked: whether the user asked for the precision; if not, exports with an `Export.reservation` are passed over.

    Returns:
        Precision -> network size -> one export of each bundle, in their order; and one sentence on each export that was
        passed over.

    Raises:
        RuntimeUnavailableError: there are none; says which exports there are, and the command that makes them.
    """
    found = [find_exports(bundle) for bundle in bundles]
    layers = set(shared_layers(bundles))
    graphs: dict[str, Graphs] = {}
    passed_over = []
    precisions = list(dict.fromkeys(precisions))
    for precision in precisions:
        by_size: list[dict[tuple[int, int], Export]] = [{} for _ in bundles]
        for exports, (of_bundle, _) in zip(by_size, found, strict=True):
            for export in of_bundle:
                size = export.manifest.network_size
                if export.manifest.precision != precision or network_size not in (None, size):
                    continue
                if not asked and export.reservation:
                    passed_over.append(
                        f"{export.folder} is used only when {precision} is asked for: {export.reservation}"
                    )
                else:
                    exports[size] = export
        sizes = set.intersection(*(set(exports) for exports in by_size))
        served = {
            size: [exports[size] for exports in by_size]
            for size in sorted(sizes)
            if any(layers <= set(exports[size].manifest.layers) for exports in by_size)
        }
        if served:
            graphs[precision] = served
    if graphs:
        return graphs, passed_over
    paths = " ".join(str(bundle.path) for bundle in bundles)
    height, width = network_size or bundles[0].manifest.input.network_size
    reasons = [*passed_over, *(text for _, refused in found for text in refused)]
    present = [f"{e.manifest.network_size[0]}x{e.manifest.network_size[1]}-{e.manifest.precision}" for e in found[0][0]]
    # For an automatic choice fp32 is enough, the default of the command.
    wanted = f" --precision {precisions[0]}" if len(precisions) == 1 else ""
    raise RuntimeUnavailableError(
        f"{paths} has no exported graphs of {' or '.join(precisions)} for the network size {height}x{width}"
        f"{' (there are: ' + ', '.join(present) + ')' if present else ''}"
        f"{''.join(f'; {reason}' for reason in reasons)}; "
        f"make them with: python -m dinov3_seg_ros.export {paths} --size {height} {width}{wanted}"
    )


def backbone_export(exports: Sequence[Export], layers: Collection[int]) -> Export:
    """The first export whose backbone graph gives the maps of all ``layers``."""
    return next(export for export in exports if set(layers) <= set(export.manifest.layers))


def _read(path: Path, bundle: Bundle) -> Export:
    again = how_to_get_again(path, _AGAIN)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {one_line(error)}; {again}") from error
    if fault := other_version(content, _SCHEMA_VERSION, "export", _AGAIN):
        raise ExportError(f"{path}: {fault}")
    try:
        manifest = ExportManifest.model_validate(content)
    except ValidationError as error:
        raise ExportError(f"{path}: {first_problem(error, again)}") from error
    for name in manifest.files:
        if "/" in name:
            raise ExportError(f"{path}: 'files' lists {name}, which is no plain file name; {again}")
    wanted = bundle.manifest
    for what, made_from, now in (
        ("backbone", manifest.backbone_identity, wanted.backbone.identity),
        ("head", manifest.head_weights, wanted.files.get(HEAD_FILE)),
        ("mean", manifest.mean, wanted.input.mean),
        ("standard deviation", manifest.std, wanted.input.std),
    ):
        if made_from != now:
            raise ExportError(f"{path.parent} was exported with another {what} than the bundle's; export it again")
    return Export(path.parent, wanted, manifest)
