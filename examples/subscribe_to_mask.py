"""Print the share of each class in every mask: python examples/subscribe_to_mask.py [--ros-args -r __ns:=/demo]"""

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image


class MaskReader(Node):
    def __init__(self) -> None:
        super().__init__("mask_reader")
        self.create_subscription(Image, "segmentation/mask", self.read, 1)

    def read(self, message: Image) -> None:
        dtype = np.uint16 if message.encoding == "mono16" else np.uint8  # mono16 above 255 classes
        mask = np.frombuffer(message.data, dtype).reshape(message.height, message.width)  # rows are not padded
        ids, counts = np.unique(mask, return_counts=True)
        shares = ", ".join(f"{index}: {count / mask.size:.0%}" for index, count in zip(ids, counts, strict=True))
        self.get_logger().info(f"{message.header.frame_id} {message.header.stamp.sec}: {shares}")


rclpy.init()
rclpy.spin(MaskReader())
