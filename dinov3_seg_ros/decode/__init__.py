"""Low-resolution logits to labels and confidence at full resolution, exactly; see `upsampling`."""

from dinov3_seg_ros.decode.merging import merge_classes
from dinov3_seg_ros.decode.upsampling import backend, upsample_argmax, upsample_argmax_confidence

__all__ = ["backend", "merge_classes", "upsample_argmax", "upsample_argmax_confidence"]
