"""The precisions of the PyTorch runtime, which can be asked for without importing PyTorch."""

from __future__ import annotations

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


def offered_precisions(precision: str, device: str) -> list[str]:
    """Return the precisions that PyTorch offers for an option on a device.

    Args:
        precision: the option.
        device: ``cpu`` or as PyTorch names GPUs.

    Returns:
        First what the option stands for; with ``auto`` also those that may be faster, which only a measurement chooses.

    Raises:
        RuntimeUnavailableError: PyTorch does not have it.
    """
    resolved = resolve_precision(precision)
    if precision != "auto":
        return [resolved]
    if device != "cpu":
        return [resolved, "fp16", "bf16"]
    return [resolved, "bf16"] if this_cpu().multiplies_bf16 else [resolved]
