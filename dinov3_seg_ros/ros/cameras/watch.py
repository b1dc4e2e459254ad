"""Watches the cameras while the node is active: subscriptions follow their publishers, and no silence is silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.utilities import get_rmw_implementation_identifier

from dinov3_seg_ros.ros.cameras.ports import CameraInput
from dinov3_seg_ros.ros.endpoints.qos import Endpoints
from dinov3_seg_ros.ros.health.camera_statistics import LOST, CameraStatistics, Fault, describe_loss
from dinov3_seg_ros.ros.health.fault_log import FaultLog, of_camera
from dinov3_seg_ros.ros.transport import remedy_for_lost_images

_PERIOD_S = 0.5
#: After so long without an image its reason is sought, again and again.
_SILENCE_S = 5.0
#: A silence of the same kind is told again after so long.
_REPEAT_S = 60.0


@dataclass
class _Told:
    """The last that was said of a camera's silence.

    Attributes:
        examined_at, told_at: seconds of the monotonic clock.
        kind: of the last silence that was told; empty before the first.
        lasts: whether that silence lasts.
        uncalibrated_since: when images began to arrive without the calibration that is wanted; None where it is not
            so. Seconds of the monotonic clock.
        is_uncalibrated: whether that was told.
    """

    examined_at: float = float("-inf")
    told_at: float = float("-inf")
    kind: str = ""
    lasts: bool = False
    uncalibrated_since: float | None = None
    is_uncalibrated: bool = False


class CameraWatch:
    """Looks at each camera twice a second, in the executor's thread.

    Args:
        endpoints: where the timer is made.
        inputs: by camera.
        statistics: by camera.
        faults: where is told what is wrong.
        wants_calibration: whether anybody subscribes to a camera's scaled calibration.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        inputs: Mapping[str, CameraInput],
        statistics: Mapping[str, CameraStatistics],
        faults: FaultLog,
        wants_calibration: Callable[[str], bool],
    ) -> None:
        self._endpoints, self._inputs, self._statistics, self._faults = endpoints, inputs, statistics, faults
        self._wants_calibration = wants_calibration
        self._told = {camera: _Told() for camera in statistics}
        self._timer: Any = None

    def start(self) -> None:
        """Start to look."""
        self._timer = self._endpoints.start_timer(_PERIOD_S, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._endpoints.stop_timer(self._timer)
            self._timer = None

    def _look(self) -> None:
        for camera, camera_input in list(self._inputs.items()):
            camera_input.follow()
            self._tell_silence(camera, camera_input)
            self._tell_missing_calibration(camera, camera_input)
            self._tell_loss(camera)

    def _tell_silence(self, camera: str, camera_input: CameraInput) -> None:
        now, told, statistics = time.monotonic(), self._told[camera], self._statistics[camera]
        silence_s = statistics.silence_s()
        if silence_s < _SILENCE_S:
            if told.lasts:
                told.lasts = False
                self._faults.logger.info(f"images{of_camera(camera)} arrive on {camera_input.image_topic}")
            return
        if now - told.examined_at < _SILENCE_S:
            return
        told.examined_at = now
        silence = camera_input.explain_silence()
        statistics.explain_silence(silence.reason)
        # A later silence of the same kind waits too: a slow camera is silent again after each image.
        if silence.kind != told.kind or now - told.told_at >= _REPEAT_S:
            told.kind, told.told_at, told.lasts = silence.kind, now, True
            self._faults.logger.warning(
                f"no image{of_camera(camera)} on {camera_input.image_topic} for {silence_s:.0f} s: {silence.reason}"
            )

    def _tell_missing_calibration(self, camera: str, camera_input: CameraInput) -> None:
        now, told = time.monotonic(), self._told[camera]
        if (
            camera_input.has_calibration
            or not self._statistics[camera].receives(within_s=_SILENCE_S)
            or not self._wants_calibration(camera)
        ):
            told.uncalibrated_since = None
            return
        if told.uncalibrated_since is None:
            told.uncalibrated_since = now
        if now - told.uncalibrated_since >= _SILENCE_S and not told.is_uncalibrated:
            told.is_uncalibrated = True
            self._faults.logger.warning(
                f"no camera_info{of_camera(camera)} on {camera_input.info_topic}, so none is published with the masks: "
                f"{camera_input.explain_missing_calibration()}"
            )

    def _tell_loss(self, camera: str) -> None:
        if loss := self._statistics[camera].loss():
            details = f"{describe_loss(*loss)}; {remedy_for_lost_images(get_rmw_implementation_identifier())}"
            self._faults.note(camera, Fault(LOST, details, time.monotonic()))
