"""The lifecycle node: transitions, and the path of a frame from subscription to publishers.

It holds neither image nor model code: `ports` speaks with ROS, `pipeline.Segmenter` with the network.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rclpy._rclpy_pybind11 import RCLError
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dinov3_seg_ros import decode
from dinov3_seg_ros.diagnostics import (
    REPLACED,
    STOPPED,
    SWITCHED_OFF,
    UNWANTED,
    CameraStatistics,
    DiagnosticsPublisher,
    Fault,
    node_status,
)
from dinov3_seg_ros.errors import MessageError, ParameterError, SegmentationError
from dinov3_seg_ros.output_classes import (
    ClassList,
    OutputClasses,
    check_class_list,
    confidence_threshold,
    load_class_list,
)
from dinov3_seg_ros.parameters import NodeParameters
from dinov3_seg_ros.pipeline import Segmentation, Segmenter, StartedSegmentation, parse_mask_size
from dinov3_seg_ros.ports import CameraInput, Frame, HeadOutput, Style, camera_names, create_switch
from dinov3_seg_ros.qos import Endpoints
from dinov3_seg_ros.signals import ignore_until_exit, interruptible, leave_ending_to_rclpy
from dinov3_seg_ros.transport import configure_transport, keep_freed_memory, remove_unfinished_segments
from dinov3_seg_ros.worker import LatestFrameWorker

# A fault of one kind that goes on is logged so often.
_LOG_PERIOD_S = 5.0  # where it costs frames
_NOTE_PERIOD_S = 60.0


def _reported(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Log what a transition callback raises and return FAILURE; rclpy would swallow it without a word."""

    @functools.wraps(transition)
    def wrapper(self: SegmentationNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            result = transition(self, state)
            self._last_error = ""
            return result
        except Exception as error:
            self._last_error = f"{transition.__name__} failed: {_details(error)}"
            if self.context.ok():  # else the process is ending, and the transition failed of that
                self.get_logger().error(self._last_error)
        return TransitionCallbackReturn.FAILURE

    return wrapper


class _Started(NamedTuple):
    """Frames that are segmented together."""

    frames: list[Frame]
    segmentation: StartedSegmentation


class SegmentationNode(LifecycleNode):
    """Publishes a segmentation of the newest frame of each camera.

    What each state holds: *unconfigured*, nothing but parameters and diagnostics; *inactive*, the models, publishers
    and heads' switches; *active*, also the subscriptions and the worker's thread.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("segmentation", **options)
        self._given = NodeParameters(self)
        self._endpoints = Endpoints(self)
        self._segmenter: Segmenter | None = None
        self._outputs: dict[str, dict[str, HeadOutput]] = {}
        self._inputs: dict[str, CameraInput] = {}
        self._statistics: dict[str, CameraStatistics] = {}
        self._worker: LatestFrameWorker | None = None
        self._mask_size: str | tuple[int, int] = "source"
        self._is_on = True
        self._heads_off: set[str] = set()
        self._head_switches: list[Any] = []
        self._last_error = ""
        self._logged: dict[tuple[str, str], float] = {}
        self._diagnostics = DiagnosticsPublisher(self, self._collect_diagnostics)
        self._switch = create_switch(self, "~/enable", self._switch_all)
        self._service_change_state.callback = self._answer_invalid_requests(self._service_change_state.callback)

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the models and create the publishers."""
        try:
            self._given.check()
            self._mask_size = parse_mask_size(self._given["mask_size"])
            with interruptible():
                self._segmenter = self._load_segmenter()
                self._segmenter.warm_up()
            self._create_outputs()
        except BaseException:
            self._release()
            raise
        self._given.in_use = True
        self.get_logger().info(
            f"loaded {', '.join(self._segmenter.manifests)}; runtime: {self._segmenter.runtime.description} "
            f"({self._segmenter.runtime_reason})"
        )
        return super().on_configure(state)

    @_reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers, start the worker, subscribe."""
        result = super().on_activate(state)
        try:
            self._statistics = {camera: CameraStatistics() for camera in self._outputs}
            self._segmenter.times.clear()
            now = self.get_clock().now().to_msg()
            for output in self._each_output():
                output.publish_label_info(now)
            self._worker = LatestFrameWorker(
                self._begin,
                self._on_worker_error,
                self._segmenter.max_batch,
                overlap=self._segmenter.runtime.device != "cpu",
            )
            self._worker.start()
            transport = self._given["image_transport"]
            for camera in self._outputs:
                self._inputs[camera] = CameraInput(self._endpoints, camera, transport, self._receive, self._note)
        except BaseException:
            self._stop()
            super().on_deactivate(state)
            raise
        return result

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, let the frame in work finish, disable the publishers."""
        self._stop()
        for camera, statistics in self._statistics.items():
            self.get_logger().info(f"frames{_of(camera)} since activation: {statistics.summary()}")
        return super().on_deactivate(state)

    @_reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the models and remove the publishers."""
        self._release()
        return super().on_cleanup(state)

    @_reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from whatever state."""
        self.close()
        return super().on_shutdown(state)

    @_reported
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node is unconfigured afterwards and can be configured again."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Stop the worker and release the models. Safe in any state."""
        self._stop()
        self._release()

    def _answer_invalid_requests(self, change_state: Callable[..., Any]) -> Callable[..., Any]:
        """On Jazzy an invalid transition is raised out of spin, and would end the process without an answer."""

        def guarded(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except RCLError as error:
                self.get_logger().warning(f"a transition request was refused: {error}")
                response.success = False
                return response

        return guarded

    def _load_segmenter(self) -> Segmenter:
        bundles = [path for path in self._given["bundles"] if path] or [self._given["bundle"]]
        if not bundles[0]:
            raise ParameterError(
                "parameter 'bundle' is empty; set it to the folder of a bundle, for example: "
                "--ros-args -p bundle:=weights/demo"
            )
        network_size = tuple(self._given["network_size"])
        return Segmenter.from_bundle(
            bundles,
            self._given["runtime"],
            network_size=network_size if any(network_size) else None,
            geometry=self._given["geometry"] or None,
            max_batch=self._given["max_batch"],
            device=self._given["device"],
            precision=self._given["precision"],
            threads=self._given["threads"],
            providers=tuple(name for name in self._given["providers"] if name),
        )

    def _create_outputs(self) -> None:
        """The topics of every camera and head, the heads' switches, and the class names."""
        of_bundles = {name: manifest.classes for name, manifest in self._segmenter.manifests.items()}
        path = self._given["class_list"]
        chosen = load_class_list(path) if path else ClassList()
        check_class_list(chosen, list(of_bundles.values()))
        published = {name: OutputClasses.of(classes, chosen) for name, classes in of_bundles.items()}
        first = next(iter(published))
        for camera in camera_names(self._given["cameras"]):
            heads = self._outputs[camera] = {}
            for name, classes in published.items():
                part = "" if name == first else name
                heads[name] = HeadOutput(self._endpoints, camera, part, classes, self._note)
        for name in published:
            switch = functools.partial(self._switch_head, name)
            self._head_switches.append(create_switch(self, f"~/heads/{name}/enable", switch))
        self._given.publish_class_names(published[first].names)

    def _receive(self, camera: str, message: Any, lost: int) -> None:
        """Take a message from a subscription; runs in the executor's thread."""
        statistics, stamp = self._statistics[camera], message.header.stamp
        self._log_note(camera, statistics.received(stamp.sec + 1e-9 * stamp.nanosec, lost))
        if not self._is_on:
            statistics.dropped(SWITCHED_OFF)
        elif self._worker.put(camera, (message, time.monotonic())):
            statistics.dropped(REPLACED)

    def _begin(self, items: Sequence[tuple[str, Any]]) -> Callable[[], None]:
        """Read the newest frames and start to segment them; what is left to do. Runs in the worker's thread."""
        frames: list[Frame] = []
        heads: dict[str, None] = {}
        for camera, item in items:
            with self._costing_its_frame(camera):
                wanted = self._wanted_heads(camera)
                if not wanted:
                    self._statistics[camera].dropped(UNWANTED)
                    continue
                with self._segmenter.times.stage("message_in"):
                    frames.append(self._inputs[camera].read(*item, self._given["max_pixels"]))
                heads |= dict.fromkeys(wanted)
        started = self._start_segmenting(frames, list(heads))
        return lambda: self._finish(started)

    def _start_segmenting(self, frames: list[Frame], heads: list[str]) -> list[_Started]:
        """All frames together; where that fails each alone, so that one camera's frame costs no other camera's."""
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
                for frame in frames:
                    self._drop(frame.camera, error)
                continue
            for frame, result in zip(frames, results, strict=True):
                with self._costing_its_frame(frame.camera):
                    self._publish(frame, result)

    def _publish(self, frame: Frame, result: Segmentation) -> None:
        style = Style(
            confidence_threshold(self._given["confidence_threshold"]),
            self._given["overlay_alpha"],
            self._given["overlay_names"],
            self._given["jpeg_quality"],
        )
        for name, head in result.heads.items():
            self._outputs[frame.camera][name].publish(head, frame, style, self._segmenter.times)
        stamp = frame.header.stamp
        delay = self.get_clock().now().nanoseconds * 1e-9 - (stamp.sec + 1e-9 * stamp.nanosec)
        self._log_note(frame.camera, self._statistics[frame.camera].segmented(frame.received, delay))

    def _wanted_heads(self, camera: str) -> list[str]:
        return [n for n, output in self._outputs[camera].items() if n not in self._heads_off and output.wanted]

    def _switch_all(self, on: bool) -> str:
        self._is_on = on
        return f"segmentation is {_on_or_off(on)}"

    def _switch_head(self, name: str, on: bool) -> str:
        (self._heads_off.discard if on else self._heads_off.add)(name)
        return f"head '{name}' is {_on_or_off(on)}"

    @contextlib.contextmanager
    def _costing_its_frame(self, camera: str) -> Iterator[None]:
        """Whatever goes wrong inside costs this camera its frame, and nobody else anything."""
        try:
            yield
        except Exception as error:
            self._drop(camera, error)

    def _drop(self, camera: str, error: BaseException) -> None:
        """Count and log a frame that is lost to a fault."""
        if not self.context.ok():
            return  # the process is ending, and the frame in work finds its publishers gone
        fault, details = error.fault if isinstance(error, MessageError) else "failed", _details(error)
        self._statistics[camera].dropped(fault, details)
        if self._is_due((camera, fault), _LOG_PERIOD_S):
            self.get_logger().error(f"a frame{_of(camera)} was dropped: {details}")

    def _note(self, camera: str, error: Exception) -> None:
        """Count and log a camera_info that is not used."""
        fault = error.fault if isinstance(error, MessageError) else "failed"
        self._log_note(camera, self._statistics[camera].noted(fault, f"camera_info is not used: {error}"))

    def _on_worker_error(self, cameras: Sequence[str], error: BaseException) -> None:
        """What no frame alone is to blame for costs all that were in work."""
        for camera in cameras:
            self._drop(camera, error)

    def _log_note(self, camera: str, fault: Fault | None) -> None:
        """Log a fault that costs no frame."""
        if fault and self._is_due((camera, fault.name), _NOTE_PERIOD_S):
            self.get_logger().warning(f"{fault.name}{_of(camera)}: {fault.details}")

    def _is_due(self, kind: tuple[str, str], period_s: float) -> bool:
        """Whether a kind of fault is to be logged again; rclpy's own throttle knows only places in the code."""
        now = time.monotonic()
        if now - self._logged.get(kind, float("-inf")) < period_s:
            return False
        self._logged[kind] = now
        return True

    def _collect_diagnostics(self) -> list[DiagnosticStatus]:
        name, state = self.get_fully_qualified_name().lstrip("/"), self._state_machine.current_state[1]
        switches = {"segmentation": self._is_on}
        runtime, decoder, stages = "none loaded", "none loaded", {}
        if self._segmenter is not None:
            switches |= {f"head {head}": head not in self._heads_off for head in self._segmenter.manifests}
            runtime = self._segmenter.runtime.description
            decoder = decode.backend(self._segmenter.runtime.logits_device)
            stages = self._segmenter.times.summary_ms()
        mismatches = self._endpoints.mismatches()
        return [
            node_status(name, state, self._last_error, runtime, decoder, switches, stages, mismatches),
            *(
                self._statistics[camera].status(f"{name}: camera {camera}".rstrip(), source.image_topic)
                for camera, source in self._inputs.items()
            ),
        ]

    def _stop(self) -> None:
        for camera_input in self._inputs.values():
            camera_input.close()
        if self._worker is not None:
            for camera in self._worker.stop():
                self._statistics[camera].dropped(STOPPED)
            self._worker = None
        # Cleared only now: the frame in work still reads from it.
        self._inputs.clear()

    def _release(self) -> None:
        # Taken out before anything can fail: what could not be closed must not keep the node from a new start.
        segmenter, self._segmenter = self._segmenter, None
        self._given.in_use = False
        for output in self._each_output():
            output.close()
        self._outputs.clear()
        for switch in self._head_switches:
            self.destroy_service(switch)
        self._head_switches.clear()
        self._heads_off.clear()
        self._is_on = True
        if segmenter is not None:
            try:
                segmenter.close()
            except Exception as error:
                self.get_logger().error(f"the models may hold memory still: closing them failed: {_details(error)}")

    def _each_output(self) -> list[HeadOutput]:
        return [output for heads in self._outputs.values() for output in heads.values()]


class _RosLog(logging.Handler):
    """What the rest of the package logs, such as the progress of an engine's build, in the node's own log."""

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


def _details(error: BaseException) -> str:
    """What to tell of an error: its own words, and where they were not chosen for that, its traceback after them."""
    if isinstance(error, SegmentationError):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error)).rstrip()}"


def _of(camera: str) -> str:
    return f" of camera '{camera}'" if camera else ""


def _on_or_off(on: bool) -> str:
    return "on" if on else "off"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the node until it is interrupted or terminated."""
    configure_transport()
    remove_unfinished_segments()
    keep_freed_memory()
    leave_ending_to_rclpy()
    rclpy.init(args=arguments)
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
        if node.get_parameter("autostart").value:
            _start(node)
        while rclpy.ok():
            try:
                executor.spin()
            except Exception as error:
                if not rclpy.ok():
                    break  # whatever failed found its context gone
                details = error if isinstance(error, RCLError) else _details(error)
                node.get_logger().error(f"a message or request could not be handled: {details}")
    except KeyboardInterrupt:
        pass  # while a model was loaded
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        ignore_until_exit()


def _start(node: SegmentationNode) -> None:
    for name, transition in (("configure", node.trigger_configure), ("activate", node.trigger_activate)):
        result = transition()
        if not rclpy.ok():
            return
        if result != TransitionCallbackReturn.SUCCESS:
            node.get_logger().error(
                "the node waits: set right what is wrong, then start it again, or: "
                f"ros2 lifecycle set {node.get_fully_qualified_name()} {name}"
            )
            return


if __name__ == "__main__":
    main()
