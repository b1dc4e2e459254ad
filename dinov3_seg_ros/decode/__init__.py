"""Low-resolution logits to labels and confidence at full resolution, exactly; see `upsampling`."""

from dinov3_seg_ros.decode.upsampling import backend, upsample_argmax, upsample_argmax_confidence

__all__ = ["backend", "upsample_argmax", "upsample_argmax_confidence"]
