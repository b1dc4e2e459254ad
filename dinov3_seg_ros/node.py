"""The segmentation node's process: ``python -m dinov3_seg_ros.node --ros-args -p bundle:=BUNDLE``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn

from dinov3_seg_ros.ros.fault_log import describe_error
from dinov3_seg_ros.ros.lifecycle import SegmentationNode
from dinov3_seg_ros.ros.signals import ignore_until_exit, leave_ending_to_rclpy
from dinov3_seg_ros.ros.transport import configure_transport, keep_freed_memory, warn_of_unfinished_segments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the node until it is interrupted or terminated."""
    configure_transport()
    warn_of_unfinished_segments()
    keep_freed_memory()
    leave_ending_to_rclpy()
    rclpy.init(args=None if arguments is None else list(arguments))
    try:
        node = SegmentationNode()
    except ParameterException as error:
        rclpy.try_shutdown()
        sys.exit(f"segmentation: {error}")
    except Exception:
        if rclpy.ok():
            raise
        return  # interrupted before there was anything to close
    logging.getLogger("dinov3_seg_ros").setLevel(logging.INFO)
    logging.getLogger("dinov3_seg_ros").addHandler(_RosLog(node))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.starts_by_itself:
            _start(node)
        _spin(executor, node)
    except KeyboardInterrupt:
        pass  # while a model was loaded
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        ignore_until_exit()


def _start(node: SegmentationNode) -> None:
    """Configure and activate the node."""
    for name, transition in (("configure", node.trigger_configure), ("activate", node.trigger_activate)):
        result = transition()
        if not rclpy.ok():
            return
        if result != TransitionCallbackReturn.SUCCESS:
            node.get_logger().error(
                "the node waits: correct what is wrong, then start it again, or: "
                f"ros2 lifecycle set {node.get_fully_qualified_name()} {name}"
            )
            return


def _spin(executor: SingleThreadedExecutor, node: SegmentationNode) -> None:
    """Serve messages and requests until the context ends; an error in one of them ends nothing."""
    while rclpy.ok():
        try:
            executor.spin()
        except Exception as error:
            if not rclpy.ok():
                break  # whatever failed found its context gone
            details = error if type(error).__name__ == "RCLError" else describe_error(error)
            node.get_logger().error(f"a message or request could not be handled: {details}")


class _RosLog(logging.Handler):
    """What the rest of the package logs, such as the progress of an engine build, in the node's own log."""

    def __init__(self, node: SegmentationNode) -> None:
        super().__init__(logging.INFO)
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        # rclpy lets each place in the code log at one severity only.
        if record.levelno >= logging.ERROR:
            self._logger.error(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self._logger.warning(record.getMessage())
        else:
            self._logger.info(record.getMessage())


if __name__ == "__main__":
    main()
