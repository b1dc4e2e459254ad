"""Semantic segmentation for ROS 2 from one frozen DINOv3 backbone.

Importing the package imports nothing heavy: torch, transformers and rclpy are loaded only by the
modules that need them.
"""

__version__ = "0.1.0"
