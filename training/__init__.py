"""What runs offline: training, evaluation, data sets, losses, metrics, transforms and recipes.

The robot's package `dinov3_seg_ros` never imports this one; what passes between them is a bundle.
"""
