"""What the node says of faults on the terminal: each kind once in a while, however often it occurs."""

from __future__ import annotations

import time
import traceback
from typing import Any

from dinov3_seg_ros.ros.health.camera_statistics import Fault
from dinov3_seg_ros.support.errors import SegmentationError

_DROP_PERIOD_S = 5.0
_NOTE_PERIOD_S = 60.0


class FaultLog:
    """Logs faults of cameras, throttled by camera and kind; rclpy's own throttle knows only places in the code.

    Attributes:
        logger: of the node.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._logged: dict[tuple[str, str], float] = {}

    def drop(self, camera: str, fault: str, details: str) -> None:
        """Log a fault that cost a frame."""
        if self._is_due((camera, fault), _DROP_PERIOD_S):
            self.logger.error(f"a frame{of_camera(camera)} was dropped: {details}")

    def note(self, camera: str, fault: Fault | None) -> None:
        """Log a fault that cost no frame; None logs nothing."""
        if fault and self._is_due((camera, fault.name), _NOTE_PERIOD_S):
            self.logger.warning(f"{fault.name}{of_camera(camera)}: {fault.details}")

    def _is_due(self, kind: tuple[str, str], period_s: float) -> bool:
        now = time.monotonic()
        if now - self._logged.get(kind, float("-inf")) < period_s:
            return False
        self._logged[kind] = now
        return True


def describe_error(error: BaseException) -> str:
    """An error in its own words; where they were not written for users, with its traceback."""
    if isinstance(error, SegmentationError):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error)).rstrip()}"


def of_camera(camera: str) -> str:
    """`` of camera 'front'``; empty for the only camera."""
    return f" of camera '{camera}'" if camera else ""
