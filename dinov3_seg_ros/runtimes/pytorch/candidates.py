"""What the PyTorch runtime can compute in, which can be asked for without importing PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dinov3_seg_ros.runtimes.protocol import Candidate, OpenedRuntime
from dinov3_seg_ros.support.cpu import this_cpu
from dinov3_seg_ros.support.errors import RuntimeUnavailableError

PRECISIONS = ("fp32", "fp16", "bf16")


def resolve_precision(precision: str) -> str:
    """Return the precision that an option stands for.

    Raises:
        RuntimeUnavailableError: PyTorch does not have it.
    """
    resolved = precision.replace("auto", "fp32")
    if resolved not in PRECISIONS:
        raise RuntimeUnavailableError(
            f"the torch runtime has no precision '{precision}', only {', '.join(('auto', *PRECISIONS))}; export the "
            f"bundle (python -m dinov3_seg_ros.export, --precision {precision}) and use another runtime"
        )
    return resolved


def torch_candidates(precision: str, device: str, open_in: Callable[[str], OpenedRuntime]) -> list[Candidate]:
    """Return the ways to compute in PyTorch on a device.

    Args:
        precision: the option; with ``auto`` there are also those that may be faster, which only a measurement chooses.
        device: ``cpu`` or as PyTorch names GPUs.
        open_in: loads backbone and heads, to compute in one of the precisions.

    Raises:
        RuntimeUnavailableError: PyTorch does not have the precision.
    """
    first, *others = _offered_precisions(precision, device)
    return [
        Candidate(
            runtime="torch",
            device=device,
            precision=name,
            label=f"torch on {device}, {name}",
            is_measured_only=name in others,
            open=partial(open_in, name),
        )
        for name in (first, *others)
    ]


def _offered_precisions(precision: str, device: str) -> list[str]:
    resolved = resolve_precision(precision)
    if precision != "auto":
        return [resolved]
    if device != "cpu":
        return [resolved, "fp16", "bf16"]
    return [resolved, "bf16"] if this_cpu().multiplies_bf16 else [resolved]
