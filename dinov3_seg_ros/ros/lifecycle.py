"""The lifecycle node: what each transition creates and releases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dinov3_seg_ros import decode
from dinov3_seg_ros.frames.output_classes import ClassList, OutputClasses, check_class_list, load_class_list
from dinov3_seg_ros.options import ComputeOptions, NodeOptions
from dinov3_seg_ros.ros.camera_statistics import CameraStatistics
from dinov3_seg_ros.ros.compatibility import answer_invalid_transitions
from dinov3_seg_ros.ros.diagnostics import DiagnosticsPublisher, camera_status, node_status
from dinov3_seg_ros.ros.fault_log import FaultLog, describe_error, of_camera
from dinov3_seg_ros.ros.frame_loop import FrameLoop
from dinov3_seg_ros.ros.parameters import NodeParameters
from dinov3_seg_ros.ros.ports import HeadOutput
from dinov3_seg_ros.ros.qos import Endpoints
from dinov3_seg_ros.ros.signals import interruptible
from dinov3_seg_ros.ros.switches import Switches
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.option_model import select

# The state that each transition leads to when it succeeds.
_TARGETS = {
    "on_configure": "inactive",
    "on_activate": "active",
    "on_deactivate": "inactive",
    "on_cleanup": "unconfigured",
    "on_shutdown": "finalized",
    "on_error": "unconfigured",
}
# Where the others fail, the node stays in its state.
_TARGETS_OF_FAILURE = {"on_shutdown": "finalized", "on_error": "finalized"}


def _reported(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Log what a transition callback raises and return FAILURE; rclpy would swallow it without a word."""

    @functools.wraps(transition)
    def wrapper(self: SegmentationNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            result = transition(self, state)
        except Exception as error:
            self.last_error = f"{transition.__name__} failed: {describe_error(error)}"
            self.state = _TARGETS_OF_FAILURE.get(transition.__name__, self.state)
            if self.context.ok():  # else the process is ending, and the transition failed of that
                self.get_logger().error(self.last_error)
            return TransitionCallbackReturn.FAILURE
        self.last_error = ""
        if result == TransitionCallbackReturn.SUCCESS:
            self.state = _TARGETS[transition.__name__]
        return result

    return wrapper


class SegmentationNode(LifecycleNode):
    """Publishes a segmentation of the newest frame of each camera.

    What each state holds: *unconfigured*, nothing but parameters, diagnostics and the switch of the whole node;
    *inactive*, also the models, publishers and heads' switches; *active*, also the subscriptions and the worker.

    Attributes:
        state: the lifecycle state that the last transition led to.
        last_error: of a transition that failed, until one succeeds; empty for none.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("segmentation", **options)
        self.state, self.last_error = "unconfigured", ""
        self._settings = NodeParameters(self)
        self._endpoints = Endpoints(self)
        self._faults = FaultLog(self.get_logger())
        self._switches = Switches(self)
        self._segmenter: Segmenter | None = None
        self._outputs: dict[str, dict[str, HeadOutput]] = {}
        self._loop: FrameLoop | None = None
        self._diagnostics = DiagnosticsPublisher(self, self._collect_diagnostics)
        answer_invalid_transitions(self)

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the models and create the publishers."""
        try:
            options = self._settings.read()
            with interruptible():
                self._segmenter = segmenter = _load_segmenter(options)
                segmenter.warm_up()
            self._create_outputs(segmenter, options)
        except BaseException:
            self._release()
            raise
        self._settings.in_use = True
        self.get_logger().info(
            f"loaded {', '.join(segmenter.manifests)}; runtime: {segmenter.runtime.description} "
            f"({segmenter.runtime_reason})"
        )
        return super().on_configure(state)

    @_reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers, start the frame loop."""
        result = super().on_activate(state)
        assert self._segmenter is not None
        try:
            now = self.get_clock().now().to_msg()
            for output in self._each_output():
                output.publish_label_info(now)
            self._loop = FrameLoop(
                self._segmenter,
                self._outputs,
                self._endpoints,
                self._switches,
                self._faults,
                self._settings.current,
                self.get_clock(),
                self.context.ok,
            )
            self._loop.start()
        except BaseException:
            self._stop()
            super().on_deactivate(state)
            raise
        return result

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, let the frame being processed finish, disable the publishers."""
        for camera, statistics in self._stop().items():
            self.get_logger().info(f"frames{of_camera(camera)} since activation: {statistics.summary()}")
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
        """Stop the frame loop and release the models. Safe in any state."""
        self._stop()
        self._release()

    @property
    def starts_by_itself(self) -> bool:
        """The parameter ``autostart``."""
        return bool(self.get_parameter("autostart").value)

    def _create_outputs(self, segmenter: Segmenter, options: NodeOptions) -> None:
        """Create the publishers of every camera and head, the heads' switches, and the class names."""
        of_bundles = {name: manifest.classes for name, manifest in segmenter.manifests.items()}
        chosen = load_class_list(options.class_list) if options.class_list else ClassList()
        check_class_list(chosen, list(of_bundles.values()))
        published = {name: OutputClasses.of(classes, chosen) for name, classes in of_bundles.items()}
        first = next(iter(published))
        for camera in options.cameras or ("",):
            heads = self._outputs[camera] = {}
            for name, classes in published.items():
                part = "" if name == first else name
                heads[name] = HeadOutput(self._endpoints, camera, part, classes, self._note_output_fault)
        self._switches.add_heads(published)
        self._settings.publish_class_names(published[first].names)

    def _note_output_fault(self, camera: str, error: Exception) -> None:
        if (loop := self._loop) is not None:  # the worker calls this, while the executor may stop the loop
            loop.note_fault(camera, error)

    def _collect_diagnostics(self) -> list[DiagnosticStatus]:
        name = self.get_fully_qualified_name().lstrip("/")
        switches = {"segmentation": self._switches.is_on}
        runtime, decoder = "none loaded", "none loaded"
        stages: dict[str, dict[str, float]] = {}
        if self._segmenter is not None:
            switches |= {f"head {head}": self._switches.head_is_on(head) for head in self._segmenter.manifests}
            runtime = self._segmenter.runtime.description
            decoder = decode.backend(self._segmenter.runtime.logits_device)
            stages = self._segmenter.times.summary_ms()
        mismatches = self._endpoints.mismatches()
        found = [node_status(name, self.state, self.last_error, runtime, decoder, switches, stages, mismatches)]
        if self._loop is not None:
            for camera, topic in self._loop.topics().items():
                title = f"{name}: camera {camera}".rstrip()
                found.append(camera_status(title, self._loop.statistics[camera].report(topic)))
        return found

    def _stop(self) -> dict[str, CameraStatistics]:
        """Stop the frame loop; what became of its frames, by camera."""
        if (loop := self._loop) is None:
            return {}
        loop.stop()  # if this fails, closing the node tries again
        self._loop = None
        return loop.statistics

    def _release(self) -> None:
        # Taken out before anything can fail: what could not be closed must not keep the node from a new start.
        segmenter, self._segmenter = self._segmenter, None
        self._settings.in_use = False
        for output in self._each_output():
            output.close()
        self._outputs.clear()
        self._switches.remove_heads()
        if segmenter is not None:
            try:
                segmenter.close()
            except Exception as error:
                self.get_logger().error(
                    f"the models may still hold memory: closing them failed: {describe_error(error)}"
                )

    def _each_output(self) -> list[HeadOutput]:
        return [output for heads in self._outputs.values() for output in heads.values()]


def _load_segmenter(options: NodeOptions) -> Segmenter:
    bundles = options.bundles or (options.bundle,)
    if not bundles[0]:
        raise ParameterError(
            "parameter 'bundle' is empty; set it to the folder of a bundle, for example: "
            "--ros-args -p bundle:=weights/demo"
        )
    return Segmenter.from_bundle(bundles, **select(ComputeOptions, dict(options)).model_dump())
