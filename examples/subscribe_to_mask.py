"""Print the share of each class id in every mask: python examples/subscribe_to_mask.py [--ros-args -r __ns:=/robot]"""

import contextlib

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import Image


def read(message: Image) -> None:
    dtype = np.uint16 if message.encoding == "mono16" else np.uint8  # mono16 above 255 classes
    mask = np.frombuffer(message.data, dtype).reshape(message.height, message.width)  # rows are not padded
    ids, counts = np.unique(mask, return_counts=True)
    shares = ", ".join(f"{index}: {count / mask.size:.0%}" for index, count in zip(ids, counts, strict=True))
    print(f"{message.header.frame_id} {message.header.stamp.sec}: {shares}", flush=True)


rclpy.init()
node = rclpy.create_node("mask_reader")
node.create_subscription(Image, "segmentation/mask", read, 1)
with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):  # Ctrl-C
    rclpy.spin(node)
