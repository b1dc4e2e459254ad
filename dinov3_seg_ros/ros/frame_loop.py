"""The path of a frame: from the subscription, through the network, to the publishers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rclpy.clock import Clock

from dinov3_seg_ros.options import NodeOptions, parse_mask_size
from dinov3_seg_ros.ros.camera_statistics import REPLACED, STOPPED, SWITCHED_OFF, UNWANTED, CameraStatistics
from dinov3_seg_ros.ros.camera_watch import CameraWatch
from dinov3_seg_ros.ros.fault_log import FaultLog, describe_error
from dinov3_seg_ros.ros.ports import CameraInput, Frame, HeadOutput, Style
from dinov3_seg_ros.ros.qos import Endpoints
from dinov3_seg_ros.ros.switches import Switches
from dinov3_seg_ros.ros.worker import LatestFrameWorker
from dinov3_seg_ros.segmenter import Segmentation, Segmenter, StartedSegmentation
from dinov3_seg_ros.support.errors import MessageError

#: Publishers by camera and head.
Outputs = Mapping[str, Mapping[str, HeadOutput]]


class _Started(NamedTuple):
    """Frames that are segmented together."""

    frames: list[Frame]
    segmentation: StartedSegmentation


class FrameLoop:
    """Segments the newest frame of each camera, while the node is active.

    An error in one frame drops that frame and nothing else.

    Args:
        segmenter: what segments.
        outputs: what publishes; its keys are the cameras.
        endpoints: where subscriptions are made.
        switches: what is switched off.
        faults: where faults are logged.
        options: read for each frame, since some may change at any time.
        clock: the node's.
        is_running: whether the ROS context is alive; errors that come of its end are not reported.

    Attributes:
        statistics: what became of each camera's frames.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        outputs: Outputs,
        endpoints: Endpoints,
        switches: Switches,
        faults: FaultLog,
        options: Callable[[], NodeOptions],
        clock: Clock,
        is_running: Callable[[], bool],
    ) -> None:
        self._segmenter, self._outputs, self._endpoints = segmenter, outputs, endpoints
        self._switches, self._faults, self._options = switches, faults, options
        self._clock, self._is_running = clock, is_running
        self._mask_size = parse_mask_size(options().mask_size)
        self._inputs: dict[str, CameraInput] = {}
        self.statistics = {camera: CameraStatistics() for camera in outputs}
        self._watch = CameraWatch(endpoints, self._inputs, self.statistics, faults)
        self._worker = LatestFrameWorker(
            self._begin, self._drop_all, segmenter.max_batch, overlap=segmenter.runtime.device != "cpu"
        )

    def start(self) -> None:
        """Start the worker's threads, then subscribe."""
        self._segmenter.times.clear()
        self._worker.start()
        transport = self._options().image_transport
        for camera in self._outputs:
            self._inputs[camera] = CameraInput(self._endpoints, camera, transport, self._receive, self.note_fault)
        self._watch.start()

    def stop(self) -> None:
        """Unsubscribe, and let the frame being processed finish."""
        self._watch.stop()
        for camera_input in self._inputs.values():
            camera_input.close()
        for camera in self._worker.stop():
            self.statistics[camera].dropped(STOPPED)
        # Cleared only now: the frame being processed still reads from it.
        self._inputs.clear()

    def topics(self) -> dict[str, str]:
        """The full name of each camera's image topic."""
        return {camera: camera_input.image_topic for camera, camera_input in self._inputs.items()}

    def _receive(self, camera: str, message: Any, lost: int) -> None:
        """Take a message from a subscription; runs in the executor's thread."""
        statistics, stamp = self.statistics[camera], message.header.stamp
        self._faults.note(camera, statistics.received(stamp.sec + 1e-9 * stamp.nanosec, lost))
        if not self._switches.is_on:
            statistics.dropped(SWITCHED_OFF)
        elif self._worker.put(camera, (message, time.monotonic())):
            statistics.dropped(REPLACED)

    def _begin(self, items: Sequence[tuple[str, Any]]) -> Callable[[], None]:
        """Read the newest frames and start to segment them; return what finishes them. Runs in the worker's thread."""
        frames: list[Frame] = []
        heads: dict[str, None] = {}
        options = self._options()
        for camera, item in items:
            with self._drop_frame_on_error(camera):
                wanted = self._wanted_heads(camera)
                if not wanted:
                    self.statistics[camera].dropped(UNWANTED)
                    continue
                message, received = item
                with self._segmenter.times.stage("message_in"):
                    frames.append(self._inputs[camera].read(message, received, options))
                heads |= dict.fromkeys(wanted)
        started = self._start_segmenting(frames, list(heads))
        return lambda: self._finish(started)

    def _start_segmenting(self, frames: list[Frame], heads: list[str]) -> list[_Started]:
        """Start all frames together; where that fails, each alone, so that only the frame that fails is dropped."""
        try:
            images = [frame.rgb for frame in frames]
            return [_Started(frames, self._segmenter.start(images, heads=heads, size=self._mask_size))]
        except Exception as error:
            if len(frames) == 1:
                self._drop(frames[0].camera, error)
                return []
            return [started for frame in frames for started in self._start_segmenting([frame], heads)]

    def _finish(self, started: Sequence[_Started]) -> None:
        """Wait for the network, and publish."""
        for frames, segmentation in started:
            try:
                results = segmentation.finish()
            except Exception as error:
                self._drop_all([frame.camera for frame in frames], error)
                continue
            for frame, result in zip(frames, results, strict=True):
                with self._drop_frame_on_error(frame.camera):
                    self._publish(frame, result)

    def _publish(self, frame: Frame, result: Segmentation) -> None:
        style = Style.of(self._options())
        for name, head in result.heads.items():
            self._outputs[frame.camera][name].publish(head, frame, style, self._segmenter.times)
        stamp = frame.header.stamp
        delay = self._clock.now().nanoseconds * 1e-9 - (stamp.sec + 1e-9 * stamp.nanosec)
        self._faults.note(frame.camera, self.statistics[frame.camera].segmented(frame.received, delay))

    def _wanted_heads(self, camera: str) -> list[str]:
        return [n for n, output in self._outputs[camera].items() if self._switches.head_is_on(n) and output.wanted]

    @contextlib.contextmanager
    def _drop_frame_on_error(self, camera: str) -> Iterator[None]:
        """Drop this camera's frame on an error inside."""
        try:
            yield
        except Exception as error:
            self._drop(camera, error)

    def _drop_all(self, cameras: Sequence[str], error: BaseException) -> None:
        """Drop a batch: an error that no single frame caused."""
        for camera in cameras:
            self._drop(camera, error)

    def _drop(self, camera: str, error: BaseException) -> None:
        """Count and log a frame that is lost to a fault."""
        if not self._is_running():
            return  # the process is ending, and the frame finds its publishers gone
        fault, details = error.fault if isinstance(error, MessageError) else "failed", describe_error(error)
        self.statistics[camera].dropped(fault, details)
        self._faults.drop(camera, fault, details)

    def note_fault(self, camera: str, error: Exception) -> None:
        """Count and log a camera_info that is not used."""
        fault = error.fault if isinstance(error, MessageError) else "failed"
        self._faults.note(camera, self.statistics[camera].noted(fault, f"camera_info is not used: {error}"))
