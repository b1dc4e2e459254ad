"""The lifecycle node: parameters, transitions, and the path of a frame from subscription to publishers.

It holds neither image nor model code: `ports` speaks with ROS, `pipeline.Segmenter` with the network.
"""

from __future__ import annotations

import functools
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from dinov3_seg_ros.errors import ParameterError, SegmentationError
from dinov3_seg_ros.pipeline import HeadSegmentation, Segmenter
from dinov3_seg_ros.ports import TRANSPORTS, CameraInput, HeadOutput, camera_names
from dinov3_seg_ros.transport import configure_transport, keep_freed_memory
from dinov3_seg_ros.worker import LatestFrameWorker

_LOG_PERIOD_S = 5.0

# Name -> default and description. Read when the node is configured, unless the description says otherwise.
_PARAMETERS: dict[str, tuple[Any, ParameterDescriptor]] = {
    "bundle": ("", ParameterDescriptor(description="Folder of the trained bundle.")),
    "bundles": (
        [""],
        ParameterDescriptor(description="Folders of several bundles that share a backbone; in place of 'bundle'."),
    ),
    "runtime": (
        "auto",
        ParameterDescriptor(
            description="What computes the network.", additional_constraints="auto, torch, onnx or tensorrt"
        ),
    ),
    "device": ("auto", ParameterDescriptor(description="auto, cpu or cuda.")),
    "precision": (
        "auto",
        ParameterDescriptor(
            description="Number format of the network; auto: the fastest that has been verified.",
            additional_constraints="auto, fp32, fp16, bf16, int8 or int8_qdq",
        ),
    ),
    "threads": (
        0,
        ParameterDescriptor(
            description="CPU threads of the network; 0: one for each core.",
            integer_range=[IntegerRange(from_value=0, to_value=1024, step=1)],
        ),
    ),
    "cameras": (
        [""],
        ParameterDescriptor(
            description="Prefixes of the cameras' topics: 'front' reads front/image and publishes "
            "front/segmentation/mask. Empty for one camera without prefix."
        ),
    ),
    "image_transport": ("raw", ParameterDescriptor(description="raw (image) or compressed (image/compressed).")),
    "mask_size": (
        "source",
        ParameterDescriptor(
            description="Size of mask and confidence: source (the frame's), network (the frame at the network's "
            "resolution) or WIDTHxHEIGHT in pixels."
        ),
    ),
    "network_size": (
        [0, 0],
        ParameterDescriptor(description="[height, width] of the network's input, pixels; [0, 0]: the bundle's."),
    ),
    "geometry": (
        "",
        ParameterDescriptor(description="stretch, letterbox, pad or native; empty: the bundle's."),
    ),
    "max_batch": (
        1,
        ParameterDescriptor(
            description="The most frames of several cameras in one backbone pass; 1 is best on a CPU.",
            integer_range=[IntegerRange(from_value=1, to_value=64, step=1)],
        ),
    ),
    "overlay_alpha": (
        0.5,
        ParameterDescriptor(
            description="Weight of the colours in the overlay. May be changed at any time.",
            floating_point_range=[FloatingPointRange(from_value=0.0, to_value=1.0)],
        ),
    ),
    "overlay_names": (
        False,
        ParameterDescriptor(description="Write the class names into the overlay. May be changed at any time."),
    ),
    "autostart": (True, ParameterDescriptor(description="Configure and activate when the process starts.")),
    "class_names": ([""], ParameterDescriptor(description="Names of the classes, by class id. Read-only.")),
}


def _reported(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Log what a transition callback raises and return FAILURE; rclpy would swallow it without a word."""

    @functools.wraps(transition)
    def wrapper(self: SegmentationNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except SegmentationError as error:
            self.get_logger().error(f"{transition.__name__} failed: {error}")
        except Exception:
            self.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
        return TransitionCallbackReturn.FAILURE

    return wrapper


class _Frame(NamedTuple):
    """A frame on its way: its camera, its header as it came, and its pixels, (H, W, 3) uint8 RGB."""

    camera: str
    header: Any
    rgb: np.ndarray


class SegmentationNode(LifecycleNode):
    """Publishes a segmentation of the newest frame of each camera.

    What each state holds: *unconfigured*, nothing but parameters; *inactive*, the models and publishers; *active*, also
    the subscriptions and the worker's thread.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("segmentation", **options)
        for name, (default, descriptor) in _PARAMETERS.items():
            self.declare_parameter(name, default, descriptor)
        self._segmenter: Segmenter | None = None
        self._outputs: dict[str, dict[str, HeadOutput]] = {}
        self._inputs: dict[str, CameraInput] = {}
        self._worker: LatestFrameWorker | None = None
        self._mask_size: str | tuple[int, int] = "source"
        self._transport = "raw"
        self._frames: Counter[str] = Counter()
        self._publishing_class_names = False
        self.add_on_set_parameters_callback(self._refuse_class_names)
        self._service_change_state.callback = self._answer_invalid_requests(self._service_change_state.callback)

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the models and create the publishers."""
        try:
            self._mask_size = parse_mask_size(self._value("mask_size"))
            self._transport = self._value("image_transport")
            if self._transport not in TRANSPORTS:
                raise ParameterError(f"image_transport is '{self._transport}'; use one of: {', '.join(TRANSPORTS)}")
            self._segmenter = self._load_segmenter()
            self._segmenter.warm_up()
            self._create_outputs()
            self._publish_class_names(next(iter(self._segmenter.manifests.values())).classes.names)
        except BaseException:
            self._release()
            raise
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
            self._frames.clear()
            for output in self._each_output():
                output.publish_label_info()
            self._worker = LatestFrameWorker(self._process, self._on_worker_error, self._segmenter.max_batch)
            self._worker.start()
            for camera in self._outputs:
                self._inputs[camera] = CameraInput(self, camera, self._transport, self._worker.put)
        except BaseException:
            self._stop()
            super().on_deactivate(state)
            raise
        return result

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, let the frame in work finish, disable the publishers."""
        self._stop()
        counts = ", ".join(f"{number} {what}" for what, number in self._frames.items())
        self.get_logger().info(f"frames since activation: {counts or 'none'}")
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
        bundles = [path for path in self._value("bundles") if path] or [self._value("bundle")]
        if not bundles[0]:
            raise ParameterError(
                "parameter 'bundle' is empty; set it to the folder of a bundle, for example: "
                "--ros-args -p bundle:=weights/demo"
            )
        network_size = tuple(self._value("network_size"))
        return Segmenter.from_bundle(
            bundles,
            self._value("runtime"),
            network_size=network_size if any(network_size) else None,
            geometry=self._value("geometry") or None,
            max_batch=self._value("max_batch"),
            device=self._value("device"),
            precision=self._value("precision"),
            threads=self._value("threads"),
        )

    def _create_outputs(self) -> None:
        for camera in camera_names(self._value("cameras")):
            heads = self._outputs[camera] = {}
            for index, (name, manifest) in enumerate(self._segmenter.manifests.items()):
                heads[name] = HeadOutput(self, camera, "" if index == 0 else name, manifest.classes)

    def _process(self, items: Sequence[tuple[str, Any]]) -> None:
        """Segment and publish the newest frames; runs in the worker's thread."""
        frames = [frame for frame in (self._read(camera, message) for camera, message in items) if frame]
        if not frames:
            return
        wanted = [name for frame in frames for name, output in self._outputs[frame.camera].items() if output.wanted]
        results = self._segmenter.segment(
            [frame.rgb for frame in frames], heads=list(dict.fromkeys(wanted)), size=self._mask_size
        )
        for frame, result in zip(frames, results, strict=True):
            for name, head in result.heads.items():
                self._publish(self._outputs[frame.camera][name], head, frame)
            self._frames["segmented"] += 1

    def _read(self, camera: str, message: Any) -> _Frame | None:
        """The frame of a message; None when nobody wants it or it cannot be read, which is counted."""
        if not any(output.wanted for output in self._outputs[camera].values()):
            self._frames["not wanted by any subscriber"] += 1
            return None
        try:
            with self._segmenter.times.stage("message_in"):
                return _Frame(camera, message.header, self._inputs[camera].to_rgb(message))
        except Exception as error:
            # One camera's bad frame must not cost another camera's good one.
            self._frames["unreadable"] += 1
            self._log_drop(error, f" of camera '{camera}'" if camera else "")
            return None

    def _publish(self, output: HeadOutput, head: HeadSegmentation, frame: _Frame) -> None:
        times = self._segmenter.times
        # The confidence first: it gives the labels too.
        confidence = head.confidence if output.confidence_wanted else None
        mask = head.labels if output.mask_wanted else None
        with times.stage("message_out"):
            output.publish_labels(mask, confidence, frame.header)
        if output.overlay_wanted:
            with times.stage("overlay"):
                alpha, with_names = self._value("overlay_alpha"), self._value("overlay_names")
                picture = output.make_overlay(head.labels, frame.rgb, alpha, with_names)
            with times.stage("message_out"):
                output.publish_overlay(picture, frame.header)

    def _on_worker_error(self, error: Exception) -> None:
        if not self.context.ok():
            return  # the process is ending, and the frame in work finds its publishers gone
        self._frames["failed"] += 1
        self._log_drop(error)

    def _log_drop(self, error: Exception, of: str = "") -> None:
        details = str(error) if isinstance(error, SegmentationError) else "".join(traceback.format_exception(error))
        self.get_logger().error(f"a frame{of} was dropped: {details}", throttle_duration_sec=_LOG_PERIOD_S)

    def _stop(self) -> None:
        for camera_input in self._inputs.values():
            camera_input.close()
        if self._worker is not None:
            self._worker.stop()
            for camera in self._inputs:
                self._frames["replaced by a newer one"] += self._worker.dropped(camera)
            self._worker = None
        # Cleared only now: the frame in work still reads from it.
        self._inputs.clear()

    def _release(self) -> None:
        for output in self._each_output():
            output.close()
        self._outputs.clear()
        if self._segmenter is not None:
            self._segmenter.close()
            self._segmenter = None

    def _each_output(self) -> list[HeadOutput]:
        return [output for heads in self._outputs.values() for output in heads.values()]

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _publish_class_names(self, names: Sequence[str]) -> None:
        self._publishing_class_names = True
        try:
            self.set_parameters([Parameter("class_names", Parameter.Type.STRING_ARRAY, list(names))])
        finally:
            self._publishing_class_names = False

    def _refuse_class_names(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """A parameter declared read-only could not be set by the node itself when another bundle is configured."""
        if any(parameter.name == "class_names" for parameter in parameters) and not self._publishing_class_names:
            return SetParametersResult(successful=False, reason="class_names is read-only: it comes from the bundle")
        return SetParametersResult(successful=True)


def parse_mask_size(text: str) -> str | tuple[int, int]:
    """The parameter ``mask_size``: ``source``, ``network``, or ``WIDTHxHEIGHT`` as (height, width).

    Raises:
        ParameterError: none of these.
    """
    if text in ("source", "network"):
        return text
    width, _, height = text.partition("x")
    if width.isdecimal() and height.isdecimal() and int(width) and int(height):
        return int(height), int(width)
    raise ParameterError(f"mask_size is '{text}'; use source, network or WIDTHxHEIGHT, for example 640x480")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the node until it is interrupted or terminated."""
    configure_transport()
    keep_freed_memory()
    rclpy.init(args=arguments)
    node = SegmentationNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.get_parameter("autostart").value:
            _start(node)
        while rclpy.ok():
            try:
                executor.spin()
            except RCLError as error:
                node.get_logger().error(f"a message or request could not be taken: {error}")
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        # A launch file's Ctrl-C arrives twice; the second must not cut the first one's work short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


def _start(node: SegmentationNode) -> None:
    for name, transition in (("configure", node.trigger_configure), ("activate", node.trigger_activate)):
        if transition() != TransitionCallbackReturn.SUCCESS:
            node.get_logger().error(
                f"the node waits: set right what is wrong, then: ros2 lifecycle set {node.get_fully_qualified_name()} "
                f"{name}"
            )
            return


if __name__ == "__main__":
    main()
