"""Runs the segmentation node with rclpy as ROS 2 Humble has it: what came later is taken away."""

from __future__ import annotations

import inspect
import sys
import types

import rclpy.clock
import rclpy.event_handler
import rclpy.executors
import rclpy.lifecycle
import rclpy.qos_overriding_options
from rclpy.executors import Executor
from rclpy.subscription import Subscription


def take_away() -> None:
    """Give rclpy the modules and attributes of its version 3.3, and no others of those that the node could use."""
    handlers = rclpy.event_handler
    older = types.ModuleType("rclpy.qos_event")
    older.PublisherEventCallbacks = handlers.PublisherEventCallbacks
    older.SubscriptionEventCallbacks = handlers.SubscriptionEventCallbacks
    sys.modules.update({"rclpy.qos_event": older, "rclpy.event_handler": None, "rclpy.clock_type": None})

    kinds = Subscription.CallbackType
    rclpy.executors.Subscription = types.SimpleNamespace(CallbackType=kinds)

    def set_callback(subscription, callback):
        parameters = inspect.signature(callback).parameters
        assert len(parameters) == 1, "Humble calls it with the message alone"
        subscription._callback, subscription._callback_type = callback, kinds.MessageOnly

    Subscription.callback = property(lambda subscription: subscription._callback, set_callback)
    del Subscription.CallbackType, Subscription.get_publisher_count

    shutdown = Executor.shutdown

    def shutdown_after_work(executor, timeout_sec=None):
        """Wait for the callbacks that have begun; those of later versions do not."""
        return executor._work_tracker.wait(timeout_sec) and shutdown(executor)

    Executor.shutdown = shutdown_after_work


if __name__ == "__main__":
    take_away()
    from dinov3_seg_ros.node import main

    main()
