"""sensor_msgs/CameraInfo scaled from the frame to the mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from dinov3_seg_ros.support.errors import MessageError

_LARGEST_SIDE = 1 << 20


def check_camera_info(info: Any) -> None:
    """Raise MessageError unless all numbers of a sensor_msgs/CameraInfo are finite and its sizes are plausible."""
    for name in ("d", "k", "r", "p"):
        if not np.isfinite(getattr(info, name)).all():
            raise MessageError(
                "camera_info not finite", f"{name} of camera_info is not finite; calibrate the camera again"
            )
    sides = (info.height, info.width, info.roi.height, info.roi.width, info.roi.x_offset, info.roi.y_offset)
    if max(sides) > _LARGEST_SIDE:
        raise MessageError("camera_info of another size", f"camera_info is for {info.width}x{info.height} pixels")


def fill_camera_info(
    message: Any, info: Any, frame_size: tuple[int, int], mask_size: tuple[int, int], header: Any
) -> Any:
    """Fill a new sensor_msgs/CameraInfo with a calibration scaled from the frame to the mask; return it.

    K and P are scaled as ROS's image_proc does it: the first row by the ratio of widths, the second by the ratio of
    heights. Distortion and rotation do not depend on the size.

    Args:
        message: a new sensor_msgs.msg.CameraInfo.
        info: the camera's, as checked by `check_camera_info`.
        frame_size, mask_size: (height, width) in pixels.
        header: the mask's, used as it is.

    Raises:
        MessageError: there is no calibration, or it is for frames of another size.
    """
    expected = _frame_size(info)
    if not all(expected):
        raise MessageError(
            "camera not calibrated",
            "camera_info has no size, as drivers send it without a calibration; calibrate the camera",
        )
    if expected != tuple(frame_size):
        raise MessageError(
            "camera_info of another size",
            f"camera_info is for frames of {expected[1]}x{expected[0]} pixels, and the frame has "
            f"{frame_size[1]}x{frame_size[0]}",
        )
    y, x = (mask / frame for mask, frame in zip(mask_size, frame_size, strict=True))
    message.header = header
    message.height, message.width = round(info.height * y), round(info.width * x)
    message.distortion_model, message.d, message.r = info.distortion_model, info.d, info.r
    rows = np.array([[x], [y], [1.0]])
    message.k = (np.reshape(info.k, (3, 3)) * rows).reshape(-1)
    message.p = (np.reshape(info.p, (3, 4)) * rows).reshape(-1)
    message.binning_x, message.binning_y = info.binning_x, info.binning_y
    message.roi.x_offset, message.roi.width = round(info.roi.x_offset * x), round(info.roi.width * x)
    message.roi.y_offset, message.roi.height = round(info.roi.y_offset * y), round(info.roi.height * y)
    message.roi.do_rectify = info.roi.do_rectify
    return message


def _frame_size(info: Any) -> tuple[int, int]:
    """(height, width) of the frames that a calibration is for: the full size, or the region of interest, binned."""
    part = info.roi if info.roi.height and info.roi.width else info
    return part.height // max(info.binning_y, 1), part.width // max(info.binning_x, 1)
