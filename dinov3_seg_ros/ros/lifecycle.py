"""The lifecycle node: what each transition creates and releases."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dinov3_seg_ros import decode
from dinov3_seg_ros.ros.bond import Bond
from dinov3_seg_ros.ros.cameras.frame_loop import FrameLoop
from dinov3_seg_ros.ros.cameras.hang_watch import HangWatch
from dinov3_seg_ros.ros.cameras.ports import NO_LABEL_INFO
from dinov3_seg_ros.ros.compatibility import answer_transitions, destroy_state_machine
from dinov3_seg_ros.ros.endpoints.qos import Endpoints, own_group
from dinov3_seg_ros.ros.head_outputs import HeadOutputs
from dinov3_seg_ros.ros.health.camera_statistics import LOADING, STOPPED, CameraStatistics, Fault
from dinov3_seg_ros.ros.health.diagnostics import DiagnosticsPublisher, camera_status, node_status
from dinov3_seg_ros.ros.health.fault_log import FaultLog, describe_error, of_camera
from dinov3_seg_ros.ros.model_loader import Models
from dinov3_seg_ros.ros.parameters import NodeParameters
from dinov3_seg_ros.ros.recovery import Recovery, Step
from dinov3_seg_ros.ros.switches import Switches
from dinov3_seg_ros.ros.transitions import reported, wait_in_thread
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ParameterError, RuntimeFailedError, SegmentationError

#: How long a configuration waits for the models: Nav2's lifecycle manager gives a service 5 s.
CONFIGURE_S = 3.0
#: How long the end of a frame being processed, and of models being closed, is waited for.
STOP_S = 3.0
# For the executor's thread, which must answer services within a second.
_SHORTLY_S = 0.5
_ACTIVE = LifecycleState(state_id=State.PRIMARY_STATE_ACTIVE, label="active")
_STUCK = "the frame being processed has not ended: the runtime is slow, or the GPU does not answer"


class SegmentationNode(LifecycleNode):
    """Publishes a segmentation of the newest frame of each camera.

    What each state holds: *unconfigured*, nothing but parameters, diagnostics and the switch of the whole node;
    *inactive*, also the models, publishers and heads' switches; *active*, also the subscriptions and the worker.

    Bundles are read, or fetched, and models loaded in a thread of their own. A configuration waits for them for
    `CONFIGURE_S` seconds and then succeeds without them: the node may be activated. It publishes as soon as the bundles
    are read, and subscribes as soon as the models are there. A configuration over the service waits without blocking
    the executor.

    Args:
        end_process: called once the node is shut down, and where a hang is to end the process.
        options: of rclpy's LifecycleNode.

    Attributes:
        state: the lifecycle state that the last transition led to.
        last_error: of a transition that failed, or of models that failed later, until one succeeds; empty for none.
    """

    _is_made = False  # until then, rclpy may destroy it, but there is nothing to close

    def __init__(self, end_process: Callable[[], None] = lambda: None, **options: Any) -> None:
        super().__init__("segmentation", **options)
        self.state, self.last_error = "unconfigured", ""
        self._end_process = end_process
        self._wake = self.create_guard_condition(self._follow_models, callback_group=own_group())
        self._settings = NodeParameters(self, self._wake.trigger)
        self._endpoints = Endpoints(self)
        self._faults = FaultLog(self.get_logger())
        self._hang_watch = HangWatch(self.get_logger(), end_process)
        self._switches = Switches(self)
        self._bond = Bond(self)
        self._outputs = HeadOutputs(
            self._endpoints, self._switches, self._settings, self.get_clock(), self._note_output_fault
        )
        self._loop: FrameLoop | None = None
        # The same, or the one that was stopped last, whose last frame may still be processed.
        self._newest_loop: FrameLoop | None = None
        self._recovery, self._next_step = Recovery(), Step.TRY_AGAIN
        self._announced: Segmenter | None = None
        self._is_configured = False
        self._starts_itself = self._is_managed = False
        self._models = Models(self._wake.trigger, self._note_unclosed)
        self._diagnostics = DiagnosticsPublisher(self, self._collect_diagnostics)
        answer_transitions(self, self._answer)
        self._is_made = True

    # Transitions

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the models, or go on to load them, and create the publishers once the bundles are read."""
        try:
            self._refuse_while_hung()
            if not self._models.are_wanted:
                self._load()
            self._recovery.reset()
            is_over = self._models.wait(CONFIGURE_S)
            if self._models.error is not None:
                raise self._models.error
            self._create_outputs()
        except BaseException:
            self._release()
            raise
        self._is_configured = True
        if is_over:
            self._follow_models()
        else:
            what = "the models are still being loaded"
            if not self._outputs.by_camera:
                what = "the bundle is still being read or fetched"
            self.get_logger().info(f"{what}; once the models are there and the node is active, it subscribes")
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers, and subscribe once the models are there."""
        if self._models.error is not None:
            raise SegmentationError(f"there are no models: {self._models.error}; clean the node up and configure it")
        self._refuse_while_hung()
        if self._newest_loop is not None and not self._newest_loop.join(_SHORTLY_S):
            raise RuntimeFailedError(f"{_STUCK}; wait until it has")
        result = super().on_activate(state)
        try:
            self._outputs.publish_label_info(self._settings.current().confidence_threshold)
            self._loop = self._newest_loop = FrameLoop(
                self._outputs.by_camera,
                self._endpoints,
                self._switches,
                self._faults,
                self._settings.current,
                self.get_clock(),
                self.context.ok,
                self._note_turn,
            )
            if self._models.segmenter is not None:
                self._use(self._loop, self._models.segmenter)
            self._bond.start(self._settings.current().bond_heartbeat_period, self._is_managed)
        except BaseException:
            self._stop()
            super().on_deactivate(state)
            raise
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, let the frame being processed finish, disable the publishers."""
        for camera, statistics in self._stop().items():
            self.get_logger().info(f"frames{of_camera(camera)} since activation: {statistics.summary()}")
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the models, remove the publishers, and switch everything on again."""
        self._release()
        self._switches.is_on = True
        return super().on_cleanup(state)

    @reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from whatever state; the process ends even if that fails."""
        try:
            self.close()
        finally:
            self._end_process()
        return super().on_shutdown(state)

    @reported
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node is unconfigured afterwards and can be configured again.

        If that fails it is finalized, and the process ends.
        """
        try:
            self.close()
        except BaseException:
            self._end_process()
            raise
        return TransitionCallbackReturn.SUCCESS

    def _refuse_while_hung(self) -> None:
        """Raise RuntimeFailedError where a frame of the last activation hangs: it still holds the GPU."""
        if self._hang_watch.hangs:
            raise RuntimeFailedError(f"{_STUCK}; start the process again")

    # Who makes the transitions: the node itself, or a request

    @property
    def starts_by_itself(self) -> bool:
        """The parameter ``autostart``."""
        return bool(self.get_parameter("autostart").value)

    async def start(self) -> None:
        """Configure and activate the node, unless a request comes meanwhile that makes another transition."""
        self._starts_itself = True
        await self._prepare("configure")
        for name, transition in (("configure", self.trigger_configure), ("activate", self.trigger_activate)):
            if not self._starts_itself or not self.context.ok():
                return
            if transition() != TransitionCallbackReturn.SUCCESS:
                self._starts_itself = False
                self.get_logger().error(
                    "the node waits: correct what is wrong, then start it again, or: "
                    f"ros2 lifecycle set {self.get_fully_qualified_name()} {name}"
                )
                return

    async def _answer(self, name: str, change: Callable[[], bool]) -> bool:
        """Answer a request for a transition. A node that starts itself is handed over to who configures it.

        A request that is refused, such as one to activate a node that is still starting, changes nothing.
        """
        if name == "configure" and self._starts_itself:
            self._starts_itself, self._is_managed = False, True
            self.get_logger().info("a lifecycle manager takes charge of the node, which had started itself")
            if self.state == "active":
                await self._prepare("deactivate")
                if self.trigger_deactivate() != TransitionCallbackReturn.SUCCESS:
                    return False
            if self.state == "inactive":
                if self._models.error is None:
                    return True
                self.trigger_cleanup()
        await self._prepare(name)
        was_managed = self._is_managed
        self._is_managed |= name in ("configure", "activate")  # the activation looks at it
        succeeded = change()
        if succeeded:
            self._starts_itself = False
        else:
            self._is_managed = was_managed
        return succeeded

    async def _prepare(self, name: str) -> None:
        """Do what takes long of a transition without blocking the executor, if it is due in this state."""
        if name == "configure" and self.state == "unconfigured":
            if not self._models.are_wanted:
                try:
                    self._refuse_while_hung()
                    self._load()
                except (ParameterError, RuntimeFailedError):
                    return  # the transition will say it
            await wait_in_thread(self, functools.partial(self._models.wait, CONFIGURE_S))
        elif name == "activate" and self._newest_loop is not None:
            await wait_in_thread(self, functools.partial(self._newest_loop.join, STOP_S))
        elif name in ("deactivate", "shutdown") and self._loop is not None:
            self._loop.stop()
            await wait_in_thread(self, functools.partial(self._loop.join, STOP_S))

    # Models that come, fail and go

    def _load(self) -> None:
        """Start to load the models that the parameters ask for; from now on they may not ask for others."""
        self._models.load(self._settings.read())
        self._settings.in_use = True

    def _follow_models(self) -> None:
        """Do what a step of their loading, their failure, or a parameter asks for. Runs in the executor's thread."""
        if not self._is_configured:
            return  # the configuration looks at them itself
        if self.state == "active":
            self._outputs.follow_threshold(self._settings.current().confidence_threshold)
        error = self._models.error
        step, self._next_step = self._next_step, Step.TRY_AGAIN
        if error is not None:
            if self.state == "active" or not self.last_error:
                self._give_up(str(error))
        elif step is Step.GIVE_UP:
            self._give_up("; ".join(self._recovery.avoid.values()))
        elif step is Step.REPLACE:
            self.get_logger().warning(
                "the runtime failed twice; the next one that 'auto' would take is loaded, or the same anew where there "
                "is none or 'runtime' names one"
            )
            self._models.release(self._frame_ends())  # the node may have been deactivated meanwhile
            self._models.load(self._settings.current(), self._recovery.avoid)
        else:
            try:
                self._take_models()
            except Exception as problem:  # as in a transition: it must not stay active and publish nothing
                self._give_up(describe_error(problem))

    def _take_models(self) -> None:
        """Publish once the bundles are read, and segment once the models are there."""
        self._create_outputs()
        segmenter = self._models.segmenter
        if segmenter is None or segmenter is self._announced:
            return
        self._announced = segmenter
        self.get_logger().info(
            f"loaded {', '.join(segmenter.manifests)}; runtime: {segmenter.runtime.description} "
            f"({segmenter.runtime_reason})"
        )
        if self._loop is not None:
            self._use(self._loop, segmenter)

    def _use(self, loop: FrameLoop, segmenter: Segmenter) -> None:
        """Segment with these models; all topics are open then."""
        loop.use(segmenter)
        self._settings.warn_of_unused_overrides()

    def _note_turn(self, segmenter: Segmenter, failure: RuntimeFailedError | None) -> None:
        """Judge the models by whether they made a mask. Runs in a thread of the worker."""
        loop = self._loop
        if loop is None or segmenter is not self._models.segmenter or self._next_step is not Step.TRY_AGAIN:
            return  # they are on their way out
        if failure is None:
            self._recovery.succeed()
            return
        step = self._recovery.fail(segmenter.runtime.name, failure)
        if step is Step.TRY_AGAIN:
            retry = Fault("the runtime is tried again with the next frame", str(failure), time.monotonic())
            self._faults.note("", retry)  # not at once: it may fail at every second frame
            return
        loop.leave(LOADING if step is Step.REPLACE else STOPPED)
        self._next_step = step
        self._wake.trigger()

    def _give_up(self, reason: str) -> None:
        """Deactivate, since there are no models to segment with. A cleanup and a configuration recover."""
        name = self.get_fully_qualified_name()
        self.get_logger().error(
            f"the node cannot segment: {reason}. Correct the cause, then: ros2 lifecycle set {name} cleanup, "
            f"then configure and activate"
        )
        if self.state == "active":
            self.trigger_deactivate()
        self._models.fail(SegmentationError(reason), self._frame_ends())
        self.last_error = reason

    def _note_unclosed(self, error: Exception) -> None:
        self.get_logger().error(f"the models may still hold memory: closing them failed: {describe_error(error)}")

    # What the states hold

    def close(self) -> None:
        """Stop the frame loop and release the models. Safe in any state."""
        self._stop()
        self._release()

    def join(self, timeout_s: float = STOP_S) -> str:
        """Wait until what `close` stopped has ended; return what has not after ``timeout_s``, or empty text."""
        if self._newest_loop is not None and not self._newest_loop.join(timeout_s):
            return _STUCK
        return "" if self._models.join(timeout_s) else "the models could not be closed: the GPU does not answer"

    def destroy_node(self) -> None:
        """Close the node and destroy it, and the DDS participant with it, if it is the last node of its context."""
        try:
            if self._is_made:
                self.close()
        except Exception as error:
            self.get_logger().error(f"the node could not be closed: {describe_error(error)}")
        super().destroy_node()
        destroy_state_machine(self)

    def _create_outputs(self) -> None:
        """Create the publishers, once the bundles are read; a node that is active meanwhile publishes at once.

        Raises:
            SegmentationError: there are publishers, and the bundles were read again and have other classes.
        """
        manifests = self._models.manifests
        if manifests is None:
            return
        if self._outputs.by_camera:
            self._outputs.check(manifests)
            return
        self._outputs.create(manifests, self._settings.current())
        if NO_LABEL_INFO:
            self.get_logger().info(
                f"segmentation/label_info is not published, which Nav2's semantic layer needs: {NO_LABEL_INFO}; "
                "sudo apt install ros-$ROS_DISTRO-vision-msgs"
            )
        if self.state == "active":
            super().on_activate(_ACTIVE)  # rclpy enables the publishers that are there on the transition
            self._outputs.publish_label_info(self._settings.current().confidence_threshold)

    def _note_output_fault(self, camera: str, fault: str, details: str) -> None:
        if (loop := self._loop) is not None:  # the worker calls this, while the executor may stop the loop
            loop.note_fault(camera, fault, details)

    def _collect_diagnostics(self) -> list[DiagnosticStatus]:
        name = self.get_fully_qualified_name().lstrip("/")
        switches = {"segmentation": self._switches.is_on}
        switches |= {f"head {head}": self._switches.head_is_on(head) for head in self._models.manifests or ()}
        loading_s = self._models.loading_s
        runtime = decoder = "none loaded" if loading_s is None else "being loaded"
        stages: dict[str, dict[str, float]] = {}
        segmenter = self._models.segmenter
        if segmenter is not None:
            runtime = segmenter.runtime.description
            decoder = decode.backend(segmenter.runtime.logits_device)
            stages = segmenter.times.summary_ms()
        endpoints = self._endpoints
        peers = {"mismatch": endpoints.mismatches(), "second publisher": endpoints.second_publishers()}
        error = self._look_for_hang() or self.last_error
        found = [node_status(name, self.state, error, runtime, decoder, switches, stages, peers, loading_s)]
        if self._loop is not None:
            for camera, report in self._loop.reports().items():
                found.append(camera_status(f"{name}: camera {camera}".rstrip(), report))
        return found

    def _frame_ends(self) -> Callable[[float], bool] | None:
        """What waits until no frame uses the models any more."""
        return None if self._newest_loop is None else self._newest_loop.join

    def _look_for_hang(self) -> str:
        if (loop := self._newest_loop) is None:
            return ""
        return self._hang_watch.look(loop.pace(), self._settings.current().exit_after_hang)

    def _stop(self) -> dict[str, CameraStatistics]:
        """Stop the frame loop; what became of its frames, by camera."""
        self._bond.stop()
        if (loop := self._loop) is None:
            return {}
        loop.stop()  # if this fails, closing the node tries again
        self._loop = None
        if not loop.join(_SHORTLY_S):
            loop.abandon()
            if self.context.ok():  # else the process is ending, which says it itself
                self.get_logger().warning(_STUCK)
        return loop.statistics

    def _release(self) -> None:
        self._models.release(self._frame_ends())
        self._models.join(_SHORTLY_S)
        self._next_step, self._announced = Step.TRY_AGAIN, None
        self._settings.in_use = self._is_configured = False
        self._outputs.close()
        self._bond.close()
