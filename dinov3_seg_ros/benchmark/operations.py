"""How many operations a backbone takes."""

from __future__ import annotations

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.support.errors import BackboneError


def backbone_gflop(bundle: Bundle, size: tuple[int, int]) -> float | None:
    """Floating-point operations of one backbone pass, two for each multiply-add: GFLOP.

    Counts matrix products (attention included) and convolutions as `torch.utils.flop_counter` does. This is what the
    model needs, independent of runtime and precision.

    Args:
        bundle: has the backbone.
        size: (height, width) of the network input, pixels.

    Returns:
        None where torch, transformers or the backbone's weights are missing.

    Raises:
        BundleError: the backbone's files are damaged.
    """
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        backbone = bundle.load_backbone()
    except (ImportError, BackboneError):
        return None
    # On the meta device nothing is computed, and attention decomposes into products that the counter knows.
    backbone.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops()) / 1e9
