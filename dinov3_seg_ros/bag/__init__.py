"""Adds masks and overlays to recordings: ``python -m dinov3_seg_ros.bag``."""
