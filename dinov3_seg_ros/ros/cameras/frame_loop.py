"""The path of a frame: from the subscription, through the network, to the publishers."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rclpy.clock import Clock

from dinov3_seg_ros.frames.smoothing import LONGEST_GAP_S, TemporalSmoother
from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros.cameras.messages import seconds_of
from dinov3_seg_ros.ros.cameras.ports import CameraInput, Frame, HeadOutput
from dinov3_seg_ros.ros.cameras.watch import CameraWatch
from dinov3_seg_ros.ros.cameras.worker import Finish, LatestFrameWorker, Pace
from dinov3_seg_ros.ros.endpoints.qos import Endpoints
from dinov3_seg_ros.ros.health.camera_statistics import (
    LIMITED,
    LOADING,
    REPLACED,
    STOPPED,
    SWITCHED_OFF,
    UNWANTED,
    CameraReport,
    CameraStatistics,
)
from dinov3_seg_ros.ros.health.fault_log import FaultLog, describe_error
from dinov3_seg_ros.ros.switches import Switches
from dinov3_seg_ros.segmenter import Segmentation, Segmenter, StartedSegmentation
from dinov3_seg_ros.support.errors import MessageError, RuntimeFailedError
from dinov3_seg_ros.support.option_checks import parse_mask_size
from dinov3_seg_ros.support.timing import RateLimit

#: Publishers by camera and head.
Outputs = Mapping[str, Mapping[str, HeadOutput]]


#: Told of each turn of a segmenter: None for a mask that was made, else why the runtime made none.
Report = Callable[[Segmenter, RuntimeFailedError | None], None]

_RUNTIME_FAILED = "runtime failed"
# So many frames in a row that are too far apart to be smoothed are no accident.
_MOST_GAPS = 10


class _Started(NamedTuple):
    """Frames that are segmented together."""

    frames: list[Frame]
    segmentation: StartedSegmentation


class _Turn:
    """The newest frames of some cameras, in one segmenter; and whether it is to blame where none gets a mask.

    Args:
        segmenter: which computes.
        smoothers: of the cameras whose masks are smoothed over time; kept from turn to turn.
    """

    def __init__(self, segmenter: Segmenter, smoothers: dict[str, TemporalSmoother]) -> None:
        self.segmenter, self.smoothers = segmenter, smoothers
        self.started: list[_Started] = []
        self.computed, self.succeeded = 0, False
        self.failure: RuntimeFailedError | None = None


class FrameLoop:
    """Segments the newest frame of each camera, from the moment on that there is a segmenter to `use`.

    An error in one frame drops that frame and nothing else.

    Args:
        outputs: what publishes; its keys are the cameras. Filled at the latest when there is a segmenter to `use`.
        endpoints: where subscriptions are made.
        switches: what is switched off.
        faults: where faults are logged.
        options: read for each frame, since some may change at any time.
        clock: the node's.
        is_running: whether the ROS context is alive; errors that come of its end are not reported.
        report: called in a thread of the worker after each turn.

    Attributes:
        statistics: what became of each camera's frames, from the subscription on.
    """

    def __init__(
        self,
        outputs: Outputs,
        endpoints: Endpoints,
        switches: Switches,
        faults: FaultLog,
        options: Callable[[], NodeOptions],
        clock: Clock,
        is_running: Callable[[], bool],
        report: Report,
    ) -> None:
        self._outputs, self._endpoints = outputs, endpoints
        self._switches, self._faults, self._options = switches, faults, options
        self._clock, self._is_running, self._report = clock, is_running, report
        self._mask_size = parse_mask_size(options().mask_size)
        self._inputs: dict[str, CameraInput] = {}
        self._watch: CameraWatch | None = None
        self._limits: dict[str, RateLimit] = {}
        self._segmenter: Segmenter | None = None
        self._worker: LatestFrameWorker | None = None
        self._stopping: list[LatestFrameWorker] = []
        self._leaving = threading.Lock()
        self._is_abandoned = False
        self.statistics: dict[str, CameraStatistics] = {}

    def use(self, segmenter: Segmenter) -> None:
        """Segment with these models from now on; the first time, subscribe. Does nothing if they are in use.

        Raises:
            ParameterError: a topic cannot be opened.
        """
        if segmenter is self._segmenter:
            return
        self._segmenter = segmenter
        segmenter.times.clear()
        smoothers: dict[str, TemporalSmoother] = {}
        begin = functools.partial(self._begin, segmenter, smoothers)
        overlap = segmenter.runtime.device != "cpu"
        worker = LatestFrameWorker(begin, self._drop_all, segmenter.max_batch, overlap, segmenter.warm_up_s)
        worker.start()
        self._worker = worker
        if self._watch is None:
            self._subscribe()

    def leave(self, cause: str) -> None:
        """Begin no frame any more with the models in use; the frame being processed may finish. Any thread may call.

        Args:
            cause: why the frames that wait are dropped.
        """
        with self._leaving:
            worker = self._worker
            if worker is None:
                return
            self._stopping.append(worker)  # first: whoever finds no worker has to find it there, to join it
            self._worker = None
        for camera in worker.stop():
            self.statistics[camera].dropped(cause)

    def stop(self) -> None:
        """Unsubscribe, and begin no further frame. Does nothing the second time."""
        if self._watch is not None:
            self._watch.stop()
        # They stay in place: the frame being processed still reads from them.
        for camera_input in self._inputs.values():
            camera_input.close()
        self.leave(STOPPED)

    def abandon(self) -> None:
        """Publish nothing any more: the frame being processed has not ended in time, and publishers may go."""
        self._is_abandoned = True

    def join(self, timeout_s: float) -> bool:
        """Wait until the frame being processed is finished; False where it is not after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        return all(worker.join(max(0.0, deadline - time.monotonic())) for worker in self._stopping)

    def pace(self) -> Pace:
        """How long frames take, those also that runtimes have left behind which were replaced."""
        worker = self._worker
        workers = [*([worker] if worker is not None else []), *self._stopping]
        return max((worker.pace() for worker in workers), key=lambda pace: pace.oldest_s, default=Pace())

    def reports(self) -> dict[str, CameraReport]:
        """What to tell of each camera that is subscribed to."""
        return {
            camera: self.statistics[camera].report(
                camera_input.image_topic, camera_input.reliability, camera_input.info_topic
            )
            for camera, camera_input in self._inputs.items()
        }

    def _subscribe(self) -> None:
        # Before the subscriptions, which may deliver at once.
        self.statistics |= {camera: CameraStatistics() for camera in self._outputs}
        self._limits |= {camera: RateLimit() for camera in self._outputs}
        self._watch = CameraWatch(self._endpoints, self._inputs, self.statistics, self._faults, self._wants_calibration)
        transport = self._options().image_transport
        for camera in self._outputs:
            self._inputs[camera] = CameraInput(self._endpoints, camera, transport, self._receive, self.note_fault)
        self._watch.start()

    def _receive(self, camera: str, message: Any, lost: int) -> None:
        """Take a message from a subscription; runs in the executor's thread."""
        statistics, worker = self.statistics[camera], self._worker
        self._faults.note(camera, statistics.received(seconds_of(message.header.stamp), lost))
        if not self._switches.is_on:
            statistics.dropped(SWITCHED_OFF)
        elif worker is None:
            statistics.dropped(LOADING)
        elif not self._limits[camera].admits(self._options().max_rate):
            statistics.dropped(LIMITED)
        elif worker.put(camera, (message, time.monotonic())):
            statistics.dropped(REPLACED)

    def _begin(
        self, segmenter: Segmenter, smoothers: dict[str, TemporalSmoother], items: Sequence[tuple[str, Any]]
    ) -> Finish:
        """Read the newest frames and start to segment them; return what finishes them. Runs in the worker's thread."""
        frames: list[Frame] = []
        heads: dict[str, None] = {}
        options = self._options()
        for camera, item in items:
            with self._drop_frame_on_error(camera):
                wanted = self._wanted_heads(camera)
                if not wanted:
                    is_off = any(output.wanted for output in self._outputs[camera].values())
                    self.statistics[camera].dropped(SWITCHED_OFF if is_off else UNWANTED)
                    continue
                message, received = item
                with segmenter.times.stage("message_in"):
                    frames.append(self._inputs[camera].read(message, received, options, segmenter.value_range))
                heads |= dict.fromkeys(wanted)
        turn = _Turn(segmenter, smoothers)
        if frames:
            self._start_segmenting(turn, frames, list(heads))
        return functools.partial(self._finish, turn)

    def _start_segmenting(self, turn: _Turn, frames: list[Frame], heads: list[str]) -> None:
        """Start all frames together; where that fails, each alone, so that only the frame that fails is dropped."""
        try:
            images = [frame.rgb for frame in frames]
            turn.started.append(_Started(frames, turn.segmenter.start(images, heads=heads, size=self._mask_size)))
        except Exception as error:
            if len(frames) == 1:
                self._drop(frames[0].camera, error, turn)
                return
            for frame in frames:
                self._start_segmenting(turn, [frame], heads)

    def _finish(self, turn: _Turn) -> int:
        """Wait for the network, publish, and report; return how many frames the network computed."""
        for frames, segmentation in turn.started:
            try:
                results = segmentation.finish()
            except Exception as error:
                for frame in frames:
                    self._drop(frame.camera, error, turn)
                continue
            turn.computed += len(frames)
            for frame, result in zip(frames, results, strict=True):
                if self._is_abandoned:
                    self.statistics[frame.camera].dropped(STOPPED)
                    continue
                with self._drop_frame_on_error(frame.camera, turn):
                    options = self._options()
                    self._publish(frame, self._smoothed(frame, result, turn, options), turn, options)
                    turn.succeeded = True
        if turn.succeeded or turn.failure is not None:
            self._report(turn.segmenter, None if turn.succeeded else turn.failure)
        return turn.computed

    def _smoothed(self, frame: Frame, result: Segmentation, turn: _Turn, options: NodeOptions) -> Segmentation:
        """A frame's results, smoothed over time where that is wanted."""
        weight = options.temporal_smoothing
        if not weight:
            turn.smoothers.pop(frame.camera, None)
            return result
        smoother = turn.smoothers.setdefault(frame.camera, TemporalSmoother(weight))
        smoother.weight = weight
        with turn.segmenter.times.stage("smoothing"):
            # Of a driver that leaves stamps empty, the arrival must do.
            result = result.smoothed(smoother, frame.rgb, seconds_of(frame.header.stamp) or frame.received)
        if smoother.gaps >= _MOST_GAPS:
            details = (
                f"the last {smoother.gaps} frames came more than {LONGEST_GAP_S} s after the one before, so "
                "temporal_smoothing costs time and has no effect; set it to 0, or segment more frames a second"
            )
            self._faults.note(
                frame.camera, self.statistics[frame.camera].noted("no smoothing", details, raises_level=False)
            )
        return result

    def _publish(self, frame: Frame, result: Segmentation, turn: _Turn, options: NodeOptions) -> None:
        for name, head in result.heads.items():
            self._outputs[frame.camera][name].publish(head, frame, options, turn.segmenter.times)
        statistics, stamp = self.statistics[frame.camera], seconds_of(frame.header.stamp)
        now = self._clock.now().nanoseconds * 1e-9
        self._faults.note(frame.camera, statistics.segmented(frame.received, now - stamp if now and stamp else None))
        if not now:
            details = (
                "use_sim_time is set, and nothing has arrived on /clock, so no latency can be measured; start the "
                "simulator, play the recording with --clock, or leave use_sim_time out"
            )
            self._faults.note(frame.camera, statistics.noted("no time", details, raises_level=False))

    def _wanted_heads(self, camera: str) -> list[str]:
        return [n for n, output in self._outputs[camera].items() if self._switches.head_is_on(n) and output.wanted]

    def _wants_calibration(self, camera: str) -> bool:
        return any(output.wants_calibration for output in self._outputs[camera].values())

    @contextlib.contextmanager
    def _drop_frame_on_error(self, camera: str, turn: _Turn | None = None) -> Iterator[None]:
        """Drop this camera's frame on an error inside."""
        try:
            yield
        except Exception as error:
            self._drop(camera, error, turn)

    def _drop_all(self, cameras: Sequence[str], error: BaseException) -> None:
        """Drop a batch: an error that no single frame caused."""
        for camera in cameras:
            self._drop(camera, error)

    def _drop(self, camera: str, error: BaseException, turn: _Turn | None = None) -> None:
        """Count and log a frame that is lost to a fault."""
        if not self._is_running():
            return  # the process is ending, and the frame finds its publishers gone
        if self._is_abandoned:
            self.statistics[camera].dropped(STOPPED)  # whatever failed may have found its publishers gone
            return
        fault, details = "failed", describe_error(error)
        if isinstance(error, MessageError):
            fault = error.fault
        elif isinstance(error, RuntimeFailedError):
            fault = _RUNTIME_FAILED
            if turn is not None:
                turn.failure = error
        self.statistics[camera].dropped(fault, details)
        self._faults.drop(camera, fault, details)

    def note_fault(self, camera: str, fault: str, details: str) -> None:
        """Count and log a fault that costs no frame."""
        self._faults.note(camera, self.statistics[camera].noted(fault, details))
