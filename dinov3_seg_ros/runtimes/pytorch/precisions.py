"""The precisions of the PyTorch runtime, which can be asked for without importing PyTorch."""

from __future__ import annotations

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
