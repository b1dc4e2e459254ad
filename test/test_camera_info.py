"""Calibrations follow the mask's size; what is not a calibration is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dinov3_seg_ros.ros.cameras.camera_info import check_camera_info, fill_camera_info
from dinov3_seg_ros.support.errors import MessageError


def calibration(height=480, width=640, binning=(0, 0), roi=(0, 0, 0, 0)):
    """A stand-in with sensor_msgs/CameraInfo's fields."""
    x_offset, y_offset, roi_width, roi_height = roi
    return SimpleNamespace(
        header="the camera's", height=height, width=width, distortion_model="plumb_bob", d=[0.1, 0.2, 0.0, 0.0, 0.3],
        k=[500.0, 0.0, 320.5, 0.0, 510.0, 240.5, 0.0, 0.0, 1.0], r=[1.0, 0, 0, 0, 1, 0, 0, 0, 1],
        p=[500.0, 0.0, 320.5, -50.0, 0.0, 510.0, 240.5, 3.0, 0.0, 0.0, 1.0, 0.0],
        binning_x=binning[0], binning_y=binning[1],
        roi=SimpleNamespace(
            x_offset=x_offset, y_offset=y_offset, width=roi_width, height=roi_height, do_rectify=bool(roi_width)
        ),
    )  # fmt: skip


def project(p, point):
    u, v, w = np.reshape(p, (3, 4)) @ [*point, 1.0]
    return np.array([u / w, v / w])


def test_a_point_is_projected_to_the_same_place_of_the_mask():
    info = calibration()
    scaled = fill_camera_info(calibration(0, 0), info, (480, 640), (120, 320), "the frame's")
    point = (0.3, -0.2, 2.0)
    assert np.allclose(project(scaled.p, point), project(info.p, point) * [0.5, 0.25])
    assert scaled.k.tolist() == [250.0, 0.0, 160.25, 0.0, 127.5, 60.125, 0.0, 0.0, 1.0]
    assert (scaled.height, scaled.width) == (120, 320)
    assert (scaled.d, scaled.r, scaled.distortion_model) == (info.d, info.r, "plumb_bob")
    assert scaled.header == "the frame's"


def test_binning_and_region_of_interest_are_scaled_with_the_full_size():
    info = calibration(960, 1280, binning=(4, 2), roi=(160, 100, 640, 480))
    scaled = fill_camera_info(calibration(), info, (240, 160), (480, 320), None)
    assert (scaled.height, scaled.width, scaled.binning_x, scaled.binning_y) == (1920, 2560, 4, 2)
    assert (scaled.roi.x_offset, scaled.roi.y_offset, scaled.roi.width, scaled.roi.height) == (320, 200, 1280, 960)
    assert scaled.roi.do_rectify


def test_a_calibration_has_the_size_of_the_mask():
    for size in range(1, 640):
        scaled = fill_camera_info(calibration(), calibration(), (480, 640), (size, size), None)
        assert (scaled.height, scaled.width) == (size, size)


@pytest.mark.parametrize("size", [(240, 320), (480, 320), (240, 640)])
def test_a_calibration_for_frames_of_another_size_is_refused(size):
    with pytest.raises(MessageError, match=f"640x480 pixels, and the frame has {size[1]}x{size[0]}") as caught:
        fill_camera_info(calibration(), calibration(), size, size, None)
    assert caught.value.fault == "camera_info of another size"


def test_a_camera_that_is_not_calibrated_is_called_so():
    with pytest.raises(MessageError, match="without a calibration; calibrate the camera") as caught:
        fill_camera_info(calibration(), calibration(0, 0), (240, 320), (240, 320), None)
    assert caught.value.fault == "camera not calibrated"


@pytest.mark.parametrize("field", ["d", "k", "r", "p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(field, value):
    info = calibration()
    check_camera_info(info)
    getattr(info, field)[0] = value
    with pytest.raises(MessageError) as caught:
        check_camera_info(info)
    assert caught.value.fault == "camera_info not finite"


@pytest.mark.parametrize("given", [{"height": 2**32 - 1, "roi": (0, 0, 640, 480)}, {"roi": (2**32 - 1, 0, 640, 480)}])
def test_sizes_that_no_camera_has_are_refused(given):
    with pytest.raises(MessageError):
        check_camera_info(calibration(**given))
