"""The segmentation node's process: ``python -m dinov3_seg_ros.node --ros-args -p bundle:=BUNDLE``.

Other parameters are given in the same way, and topics are remapped with ``-r image:=/camera/image_raw``. All parameters
are in docs/node.md; ``ros2 param describe /segmentation NAME`` explains one of a running node.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.utilities import remove_ros_args

from dinov3_seg_ros.ros.compatibility import RclError
from dinov3_seg_ros.ros.health.fault_log import describe_error
from dinov3_seg_ros.ros.lifecycle import SegmentationNode
from dinov3_seg_ros.ros.signals import (
    begin_end,
    end_on_hangup,
    exit_without_threads,
    ignore_until_exit,
    leave_ending_to_rclpy,
)
from dinov3_seg_ros.ros.transport import prepare_process

# How to write a parameter of a type, for who has written one of another type.
_HINTS = {
    "BOOL": "write true or false",
    "INTEGER": "write a whole number, such as 1",
    "DOUBLE": "write a number with a point, such as 1.0",
    "STRING": "put a text that looks like a number into quotes: -p \"bundle:='1e3'\"",
}
# A manager asks for the state once more after a shutdown.
_FINALIZED_S = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the node until it is interrupted, terminated, or shut down by a lifecycle transition."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in words or "--help" in words:
        print((__doc__ or "").strip().replace("``", ""))
        return
    prepare_process()
    leave_ending_to_rclpy()
    try:
        rclpy.init(args=[sys.argv[0], *words])
    except RclError as error:
        hint = "; set ROS_LOG_DIR to a folder that can be written" if "initialize logging" in str(error) else ""
        sys.exit(f"segmentation: {error}{hint}")
    try:
        node = SegmentationNode(end_process=_end_soon)
    except ParameterException as error:
        rclpy.try_shutdown()
        hints = (f"; {hint}" for expected, hint in _HINTS.items() if f"expecting type '{expected}'" in str(error))
        sys.exit(f"segmentation: {error}{next(hints, '')}")
    except Exception as error:
        if not rclpy.ok():
            return  # interrupted before there was anything to close
        if type(error).__name__ != "RCLError":
            raise
        rclpy.try_shutdown()
        sys.exit(f"segmentation: {error}")
    end_on_hangup()
    logging.getLogger("dinov3_seg_ros").setLevel(logging.INFO)
    logging.getLogger("dinov3_seg_ros").addHandler(_RosLog(node))
    if ignored := remove_ros_args([sys.argv[0], *words])[1:]:
        node.get_logger().warning(
            f"ignored: {' '.join(ignored)}; ROS arguments follow --ros-args, such as --ros-args -p bundle:=demo"
        )
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stuck = ""
    try:
        if node.starts_by_itself:
            executor.create_task(node.start)
        _spin(executor, node)
    finally:
        begin_end()
        try:
            node.close()
            stuck = node.join()
        except Exception as error:
            stuck = f"the node could not be closed: {describe_error(error)}"
        if stuck:
            print(f"segmentation: the process ends all the same: {stuck}", file=sys.stderr)
        executor.shutdown(timeout_sec=0.0)  # Humble's would wait for a request that nobody answers any more
        node.destroy_node()
        rclpy.try_shutdown()
        ignore_until_exit()
    exit_without_threads(1 if stuck else 0)


def _end_soon() -> None:
    """End the process of a node that can do nothing more; a launch file may start it again."""
    # As a signal from outside would: rclpy.shutdown in this thread would destroy the node in the executor's hands.
    timer = threading.Timer(_FINALIZED_S, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


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
