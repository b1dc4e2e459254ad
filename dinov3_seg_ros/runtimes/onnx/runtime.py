"""The ONNX Runtime runtime: exported graphs, without torch.

Between the backbone's graph and the heads' graphs, feature maps stay on the device that computed them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnxruntime as ort

from dinov3_seg_ros.bundle.loading import Bundle, shared_layers
from dinov3_seg_ros.bundle.onnx_folder import (
    BACKBONE_GRAPH,
    CANVASES,
    HEAD_GRAPH,
    LOGITS,
    Graphs,
    backbone_export,
    find_graphs,
    map_name,
)
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.onnx.providers import INSTALLATION, OPENVINO
from dinov3_seg_ros.runtimes.onnx.session import GraphSession
from dinov3_seg_ros.runtimes.onnx.targets import HOST_TARGET, Target, targets_here, targets_of
from dinov3_seg_ros.runtimes.protocol import Candidate, Computed, check_canvas_size
from dinov3_seg_ros.support.errors import DisagreementError, ParameterError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_logger = logging.getLogger("dinov3_seg_ros.runtimes")


class OnnxRuntime:
    """Exported graphs in ONNX Runtime; see `protocol.Runtime`.

    Args:
        graphs: one export of each bundle by network size.
        layers: all layers whose maps the heads read.
        targets: what to compute on, best first; ONNX Runtime's own provider takes what they leave.
        precision: to compute in.
        threads: CPU threads; 0 for one per core.

    Attributes:
        targets: as given.

    Raises:
        ExportError: a graph is damaged or cannot be loaded.
        RuntimeUnavailableError: the provider leaves every operator to the CPU.
    """

    name = "onnx"
    logits_device = "cpu"

    def __init__(
        self,
        graphs: Graphs,
        layers: Sequence[int],
        targets: Sequence[Target] = (HOST_TARGET,),
        precision: str = "fp32",
        threads: int = 0,
    ) -> None:
        self.targets = list(targets)
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(graphs)
        self._backbones: dict[tuple[int, int], GraphSession] = {}
        self._heads: dict[tuple[str, tuple[int, int]], GraphSession] = {}
        maps = [map_name(layer) for layer in layers]
        first = self.targets[0]
        of_heads = first.provider.for_heads(first.use(precision))
        for size, of_size in graphs.items():
            shared = backbone_export(of_size, layers)
            self._backbones[size] = GraphSession(shared, BACKBONE_GRAPH, targets, precision, threads, maps)
            for export in of_size:
                head = GraphSession(export, HEAD_GRAPH, targets, of_heads, threads, [LOGITS])
                export.check_head(head.inputs, head.channels(LOGITS))
                self._heads[export.bundle_name, size] = head
        self._check_used(first)
        self.device = first.device
        remark = first.provider.remark(first.use(precision))
        shared_with = _shares(self._sessions, first)
        details = "".join(f" ({text})" for text in (remark, shared_with) if text)
        self.description = f"ONNX Runtime {ort.__version__}, {first}, {precision}{details}"
        if remark or shared_with:
            _logger.warning("%s", self.description)

    @classmethod
    def candidates(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> list[Candidate]:
        """Return on what the graphs would run; see `protocol.RuntimeType.candidates`."""
        layers = shared_layers(bundles)
        ways = _ways(bundles, options)
        size, asked = options.network_size, options.precision != "auto"
        by_precision, passed_over = find_graphs(bundles, [graphs for _, _, graphs, _ in ways], size, asked=asked)
        for reason in passed_over:
            _logger.warning("%s", reason)
        return [
            Candidate(
                runtime=cls.name,
                device=targets[0].device,
                precision=precision,
                label=f"onnx, {targets[0]}, {precision}",
                graphs=by_precision[graphs],
                # What the export itself was compared in, on the machine that made it.
                is_as_exported=targets[0].is_host and precision == graphs,
                is_measured_only=is_measured_only,
                open=partial(cls, by_precision[graphs], layers, targets, precision, options.threads),
            )
            for targets, precision, graphs, is_measured_only in ways
            if graphs in by_precision
        ]

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computed:
        """Run the graphs and wait for them; the logits are in host memory. See `protocol.Runtime.start`.

        Raises:
            ImageError: no graph takes network inputs of this size.
        """
        _, height, width, _ = canvases.shape
        size = height, width
        check_canvas_size(size, self._backbones, "graph")
        seconds: dict[str, float] = {}
        with timed(seconds, "backbone"):
            # Where the backbone computes: an image-guided head reads them from there too.
            seen = {CANVASES: ort.OrtValue.ortvalue_from_numpy(canvases, *self._backbones[size].place)}
            maps = self._backbones[size].run(seen)
        with timed(seconds, "heads"):
            logits = {name: self._heads[name, size].run({**seen, **maps})[LOGITS].numpy() for name in heads}
        return Computed(logits, seconds, lambda: {name: value.numpy() for name, value in maps.items()})

    def refuse(self, _error: DisagreementError) -> bool:
        """Delete what providers compiled of the graphs; see `protocol.OpenedRuntime.refuse`."""
        caches = [session.cache for session in self._sessions if session.cache is not None]
        self.close()
        had_content = any(cache.was_found for cache in caches)
        for cache in caches:
            cache.remove()
        return had_content

    def close(self) -> None:
        """Release the sessions, which hold weights and working memory."""
        for session in self._sessions:
            session.close()
        self._backbones.clear()
        self._heads.clear()

    @property
    def _sessions(self) -> list[GraphSession]:
        return [*self._backbones.values(), *self._heads.values()]

    def _check_used(self, first: Target) -> None:
        """Raise RuntimeUnavailableError where nothing of the backbone runs on what was chosen."""
        used = {session.used for session in self._backbones.values()}
        if first.provider.name not in used:
            others = {name for session in self._backbones.values() for name in session.assigned or (session.used,)}
            self.close()
            raise RuntimeUnavailableError(
                f"{first} takes no operator of the backbone: all of it would run on {', '.join(sorted(others))}. "
                "Choose another provider, precision or device"
            )


def _ways(bundles: Sequence[Bundle], options: ComputeOptions) -> list[tuple[list[Target], str, str, bool]]:
    """Return targets, precision, precision of the graphs, and whether only a measurement may choose it; best first.

    Raises:
        RuntimeUnavailableError: what was asked for is not here.
        ParameterError: it takes single frames only.
    """
    if options.providers:
        chosen = [targets_of(options, bundles)]
    else:
        chosen = [[target] for target in targets_here(options, bundles)]
    ways: list[tuple[list[Target], str, str, bool]] = []
    refused: list[str] = []
    by_name = bool(options.providers) or options.device not in ("auto", "cpu")
    for targets in chosen:
        first = targets[0]
        rules, use = first.provider, first.use()
        if first.kind in rules.one_frame and options.max_batch > 1:
            if by_name:
                raise ParameterError(f"{first} takes one frame in a pass; set max_batch to 1")
            continue
        offered, is_trusted = rules.precisions(use), by_name or rules.is_preferred
        if options.precision == "auto":
            taken = rules.automatic(use) if is_trusted else rules.gains(use)
            wanted = [*taken, *(name for name in offered if name not in taken)]
        elif options.precision in offered:
            taken = list(offered) if is_trusted else rules.gains(use, asked=True)
            wanted = [options.precision]
        else:
            refused.append(f"{first} has no precision '{options.precision}', only {', '.join(offered)}")
            if first.is_host:
                refused.append(f"on a CPU OpenVINO computes bf16, from the fp32 export: {INSTALLATION[OPENVINO]}")
            continue
        ways += [(targets, name, offered[name], name not in taken) for name in wanted]
    if not ways:
        raise RuntimeUnavailableError("; ".join(refused) or f"no provider serves device '{options.device}'")
    return ways


def _shares(sessions: Sequence[GraphSession], first: Target) -> str:
    """Say which operators another provider than the first computes; empty where there are none."""
    assigned: Counter[str] = Counter()
    for session in sessions:
        assigned.update(session.assigned)
    others = {name: count for name, count in assigned.items() if name != first.provider.name}
    if not others:
        return ""
    where = ", ".join(f"{count} on {name}" for name, count in sorted(others.items()))
    kinds = ", ".join(sorted({kind for session in sessions for kind in session.left}))
    return f"of {sum(assigned.values())} operators {where}: {kinds}"
