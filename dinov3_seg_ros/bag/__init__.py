"""Recordings (rosbag2): segmented, taken apart for labelling, and scored; ``python -m dinov3_seg_ros.bag``."""
