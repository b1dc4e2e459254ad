"""One graph in one session of ONNX Runtime."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

from dinov3_seg_ros.bundle.onnx_folder import BATCH, LOGITS, Export
from dinov3_seg_ros.runtimes.failures import failure, is_out_of_memory
from dinov3_seg_ros.runtimes.onnx.caches import GraphCache
from dinov3_seg_ros.runtimes.onnx.providers import HOST
from dinov3_seg_ros.runtimes.onnx.targets import Target
from dinov3_seg_ros.support.cpu import onnx_runtime_threads, this_cpu
from dinov3_seg_ros.support.errors import ExportError

Values = dict[str, ort.OrtValue]


class GraphSession:
    """A graph, loaded. Its outputs stay where its provider leaves them, except the logits.

    Args:
        export: what the graph belongs to.
        name: the graph's file.
        targets: what to compute it on, best first; ONNX Runtime's own provider takes what they leave.
        precision: to compute in.
        threads: CPU threads; 0 for one per core.
        outputs: names of the outputs to compute.

    Attributes:
        place: where it computes: type and number of the device, as ONNX Runtime names them.
        assigned: number of operators by execution provider; empty where ONNX Runtime does not tell (before 1.24).
        left: the types of the operators that are not computed by the first of ``targets``.
        used: the execution provider of the first of ``targets`` if that takes any operator, else the one that takes
            the most.
        inputs: their names.
        cache: what its provider compiled; None where it keeps nothing.

    Raises:
        ExportError: ONNX Runtime cannot load the graph.
    """

    def __init__(
        self,
        export: Export,
        name: str,
        targets: Sequence[Target],
        precision: str,
        threads: int,
        outputs: Sequence[str],
    ) -> None:
        path, first = export.graph(name), targets[0]
        options = ort.SessionOptions()
        options.intra_op_num_threads = onnx_runtime_threads(threads)
        # Spinning threads would take whole cores from the robot's other processes between two frames.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not first.is_host:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.log_severity_level = 3
        if first.kind in first.provider.one_frame:
            options.add_free_dimension_override_by_name(BATCH, 1)
        self.cache = _cache(export, name, first, precision, threads)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self.cache.opened()) if self.cache else None
            try:
                uses = [target.use(precision, threads, folder if target is first else None) for target in targets]
                given = [target.provider.options(use) for target, use in zip(targets, uses, strict=True)]
                self._session = _open(str(path), options, targets, given)
            except Exception as error:  # ONNX Runtime's errors have no common base but Exception
                if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
                    raise failure(f"loading {path} into {first}", error) from error
                remedy = "; export the bundle again" if first.is_host else ""
                raise ExportError(f"{path} cannot be loaded by ONNX Runtime ({first}): {error}{remedy}") from error
        self.assigned, self.left = _assignment(self._session, first)
        self.used: str = self._session.get_providers()[0]
        if self.assigned:
            most = max(self.assigned, key=lambda name: self.assigned[name])
            self.used = first.provider.name if first.provider.name in self.assigned else most
        self.place = first.provider.memory(uses[0]) if self.used == first.provider.name else HOST
        self.inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = list(outputs)

    def channels(self, output: str) -> int:
        """Return the number of channels of an output (N, C, ...)."""
        return next(int(node.shape[1]) for node in self._session.get_outputs() if node.name == output)

    def run(self, inputs: Values) -> Values:
        """Compute the outputs, and wait for them."""
        session = self._session  # another thread may close this one meanwhile
        binding = session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, inputs[name])
        for name in self._outputs:
            binding.bind_output(name, *(HOST if name == LOGITS else self.place))
        session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def close(self) -> None:
        """Release weights and working memory, and keep what the provider compiled."""
        with self.cache.closing() if self.cache else contextlib.nullcontext():
            self._session = None  # when some providers write what they keep


def _open(
    path: str, options: ort.SessionOptions, targets: Sequence[Target], given: Sequence[Mapping[str, str]]
) -> ort.InferenceSession:
    if all(target.listed is None for target in targets):
        named = [(target.provider.name, dict(each)) for target, each in zip(targets, given, strict=True)]
        return ort.InferenceSession(path, options, providers=named)
    for target, each in zip(targets, given, strict=True):
        if target.listed is not None:
            options.add_provider_for_devices([target.listed], dict(each))
        elif not target.is_host:
            options.add_provider(target.provider.name, dict(each))
    return ort.InferenceSession(path, options)


def _assignment(session: ort.InferenceSession, first: Target) -> tuple[dict[str, int], set[str]]:
    """Number of operators by provider, and the types of those that ``first`` left to others."""
    if first.is_host or not hasattr(session, "get_provider_graph_assignment_info"):
        return {}, set()
    assigned: Counter[str] = Counter()
    left: set[str] = set()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        assigned[part.ep_name] += len(nodes)
        if part.ep_name != first.provider.name:
            left.update(node.op_type for node in nodes)
    return dict(assigned), left


def _cache(export: Export, name: str, target: Target, precision: str, threads: int) -> GraphCache | None:
    if not target.provider.compiles:
        return None
    use = target.use(precision, threads)
    built_for: dict[str, Any] = {
        "graph": export.digest(name),
        "provider": target.provider.name,
        "options": target.provider.options(use),
        "device": target.device,
        "onnxruntime": ort.__version__,
        # Release of the provider, name and driver of the device.
        "listed": {key: value for key, value in (use.listed or {}).items() if key != "library_path"},
        "processor": this_cpu().model_dump(mode="json"),
    }
    return GraphCache(built_for, target.provider.grows)
