"""The node in a process of its own, as a pipeline: frames go to it, and masks come back, over ROS 2."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dinov3_seg_ros.benchmark.processor import peak_memory_mb
from dinov3_seg_ros.benchmark.timed_pipeline import FramePipeline
from dinov3_seg_ros.benchmark.trial import Trial
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.ros.camera_player import CameraPlayer
from dinov3_seg_ros.ros.cameras.messages import seconds_of
from dinov3_seg_ros.ros.endpoints.qos import OUTPUT_QOS
from dinov3_seg_ros.ros.endpoints.sequence import stamp_of
from dinov3_seg_ros.ros.health.diagnostics import stages_of
from dinov3_seg_ros.ros.local_graph import last_words, node_command, prepare, ros_arguments, running
from dinov3_seg_ros.ros.parameters import changed_parameters
from dinov3_seg_ros.support.errors import TransportError
from dinov3_seg_ros.support.timing import StageTimes, summarise_ms

_OUTPUTS = ("mask", "overlay")
# Pace of the frames until the node is known to receive and to be received; later each waits for the previous one.
_PERIOD_S = 0.1
# A first start may build an engine. The node reports what goes wrong meanwhile.
_START_TIMEOUT_S = 1200.0
_TIMEOUT_S = 60.0
_REPEAT_S = 2.0
# After the last frame of a stream its mask may take so long.
_TAIL_S = 2.0


@contextlib.contextmanager
def running_node(bundle: Path, compute: ComputeOptions, frame: np.ndarray) -> Iterator[NodePipeline]:
    """Start the node and wait for its first mask; end the node afterwards.

    Args:
        bundle: absolute path of the bundle that it serves.
        compute: how it computes.
        frame: (H, W, 3) uint8 RGB, sent until the first mask arrives.

    Raises:
        TransportError: no mask arrives; the message holds the node's own words.
    """
    parameters = {"bundle": bundle, **changed_parameters(compute)}
    prepare()
    # Nothing else on this machine shares the namespace, another benchmark included.
    namespace = f"benchmark_{os.getpid()}"
    rclpy.init(args=ros_arguments(namespace))
    camera, receiver, executor = CameraPlayer(1.0 / _PERIOD_S), _Receiver(namespace), SingleThreadedExecutor()
    executor.add_node(receiver)
    try:
        with tempfile.TemporaryDirectory() as folder:
            log, started = Path(folder) / "node.log", time.monotonic()
            with running(node_command(namespace, parameters), log) as process:
                yield NodePipeline(camera, receiver, executor, process, log, frame, started)
    finally:
        executor.shutdown()
        receiver.destroy_node()
        camera.destroy_node()
        rclpy.try_shutdown()


class NodePipeline(FramePipeline):
    """A node as a pipeline; see `running_node`. Each frame waits for all outputs of the previous one.

    Attributes:
        startup_s: seconds from the start of the node's process to the arrival of its first mask.
        latency: from a frame's stamp to the arrival of its mask, and to that of its overlay.
    """

    name = "node"

    def __init__(
        self,
        camera: CameraPlayer,
        receiver: _Receiver,
        executor: SingleThreadedExecutor,
        process: subprocess.Popen[bytes],
        log: Path,
        frame: np.ndarray,
        started: float,
    ) -> None:
        self._camera, self._receiver, self._executor = camera, receiver, executor
        self._process, self._log, self._frame = process, log, frame
        self.latency = StageTimes()
        self._send_until(lambda: receiver.first_mask < math.inf, "mask arrived", _START_TIMEOUT_S)
        self.startup_s = receiver.first_mask - started
        self._settle()

    def run(self, frame: np.ndarray) -> np.ndarray:
        """See `FramePipeline.run`; the labels are the mask's."""
        self._receiver.arrived.clear()
        header = self._camera.send(frame)
        found = self._receiver.arrived[stamp_of(header)]
        self._spin_until(lambda: len(found) == len(_OUTPUTS), "output of a frame arrived")
        for output, (_, arrival) in found.items():
            self.latency.add(output, arrival - seconds_of(header.stamp))
        mask = found["mask"][0]
        assert mask is not None  # messages are kept here
        pixels = np.frombuffer(mask.data, np.uint8 if mask.encoding == "mono8" else np.uint16)
        return pixels.reshape(mask.height, mask.width)

    def stream(self, frames: Sequence[np.ndarray], rate_hz: float, seconds: float) -> Trial:
        """Send frames at a fixed rate, without waiting for what becomes of them.

        Args:
            frames: (H, W, 3) uint8 RGB; reused from the start when they run out.
            rate_hz: frames per second.
            seconds: how long.
        """
        self._settle()
        arrived, headers = self._receiver.arrived, list[Header]()
        arrived.clear()
        self._receiver.keeps_messages = False  # they would fill the memory
        start = time.monotonic()
        while (due := start + len(headers) / rate_hz) < start + seconds:
            while (wait := due - time.monotonic()) > 0:
                self._spin_once(wait)
            headers.append(self._camera.send(frames[len(headers) % len(frames)]))
        taken_s = time.monotonic() - start
        deadline = time.monotonic() + _TAIL_S
        while len(arrived) < len(headers) and time.monotonic() < deadline:
            self._spin_once(_PERIOD_S / 2)
        self._receiver.keeps_messages = True
        answers = [(header, arrived.get(stamp_of(header), {})) for header in headers]
        latencies = [answer["mask"][1] - seconds_of(header.stamp) for header, answer in answers if "mask" in answer]
        rate_hz = min(rate_hz, len(headers) / taken_s)
        return Trial(rate_hz, len(headers), len(latencies), summarise_ms(latencies) if latencies else None)

    def forget(self) -> None:
        """See `FramePipeline.forget`. The node measures from its activation on."""
        self._change_state(Transition.TRANSITION_DEACTIVATE)
        self._change_state(Transition.TRANSITION_ACTIVATE)
        self._settle()
        self.latency.clear()

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """See `FramePipeline.stages_ms`; read from the node's /diagnostics, with the stages of both messages."""
        now = time.time()
        self._spin_until(lambda: self._receiver.status_time > now, "diagnostics arrived")
        return stages_of(self._receiver.status)

    def peak_memory_mb(self) -> float:
        """The peak memory of the node's process, MB."""
        return peak_memory_mb(self._process.pid)

    def _settle(self) -> None:
        """Return when every connection stands and no frame is in flight."""
        self._receiver.arrived.clear()
        arrived = self._receiver.arrived
        self._send_until(lambda: any(len(found) == len(_OUTPUTS) for found in arrived.values()), "overlay arrived")
        # The node processes the newest frame last: when its outputs are here, the earlier ones are done.
        self.run(self._frame)

    def _send_until(self, condition: Callable[[], Any], what: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._repeat_until(lambda: self._camera.send(self._frame), condition, what, _PERIOD_S, timeout_s)

    def _repeat_until(
        self,
        action: Callable[[], Any],
        condition: Callable[[], Any],
        what: str,
        period_s: float,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """Do something each ``period_s`` seconds until ``condition`` is true."""
        next_s = 0.0

        def done_and_fulfilled() -> bool:
            nonlocal next_s
            if condition():
                return True
            if time.monotonic() >= next_s:
                action()
                next_s = time.monotonic() + period_s
            return False

        self._spin_until(done_and_fulfilled, what, timeout_s)

    def _spin_until(self, condition: Callable[[], Any], what: str, timeout_s: float = _TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._spin_once(_PERIOD_S / 2)
            if time.monotonic() > deadline:
                raise TransportError(f"no {what} within {timeout_s:.0f} s; the node said last: {last_words(self._log)}")

    def _spin_once(self, timeout_s: float) -> None:
        """Handle one event, if one comes in time; raise TransportError where the node is not well."""
        self._executor.spin_once(timeout_sec=timeout_s)
        status = self._receiver.status
        if status is not None and status.level == DiagnosticStatus.ERROR:
            raise TransportError(f"the node says: {status.message}")
        if self._process.poll() is not None:
            raise TransportError(f"the node ended; its last words were: {last_words(self._log)}")

    def _change_state(self, transition: int) -> None:
        client: Any = self._receiver.create_client(ChangeState, "segmentation/change_state")
        self._spin_until(client.service_is_ready, "service of the node's lifecycle appeared")
        request, futures = ChangeState.Request(transition=Transition(id=transition)), list[Any]()
        # Asked again: the response to a client that the node has not found yet is lost.
        self._repeat_until(
            lambda: futures.append(client.call_async(request)),
            lambda: any(future.done() for future in futures),
            "answer to a change of state arrived",
            _REPEAT_S,
        )
        self._receiver.destroy_client(client)


class _Receiver(Node):
    """Subscribes to the node's outputs and to its diagnostics.

    Attributes:
        arrived: stamp -> output -> message (None where it is not kept) and arrival, seconds since the epoch.
        keeps_messages: whether the messages are kept.
        first_mask: when the first mask arrived, by the monotonic clock; infinity before.
        status: the node's newest entry in /diagnostics.
        status_time: when the node made it, seconds since the epoch.
    """

    def __init__(self, namespace: str) -> None:
        super().__init__("receiver")
        self.arrived: dict[tuple[int, int], dict[str, tuple[Image | None, float]]] = defaultdict(dict)
        self.keeps_messages = True
        self.first_mask = math.inf
        self.status: DiagnosticStatus | None = None
        self.status_time = 0.0
        self._observed = f"{namespace}/segmentation"
        self.create_subscription(Image, "segmentation/mask", lambda mask: self._take("mask", mask), OUTPUT_QOS)
        self.create_subscription(Image, "segmentation/overlay", lambda image: self._take("overlay", image), OUTPUT_QOS)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._take_status, 10)

    def _take(self, output: str, message: Image) -> None:
        kept = message if self.keeps_messages else None
        self.arrived[stamp_of(message.header)][output] = kept, time.time()
        if output == "mask":
            self.first_mask = min(self.first_mask, time.monotonic())

    def _take_status(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name == self._observed:
                self.status, self.status_time = status, seconds_of(array.header.stamp)
