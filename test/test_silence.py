"""A topic without images is explained by what is on it, and by what is near it, with the remedy."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from dinov3_seg_ros.ros.endpoints.image_types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, decoded_topic
from dinov3_seg_ros.ros.endpoints.publishers import Publisher
from dinov3_seg_ros.ros.endpoints.silence import explain_missing_calibration, explain_silence

pytestmark = pytest.mark.ros

FFMPEG = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
VIDEO = "foxglove_msgs/msg/CompressedVideo"


def publisher(kind, node="/driver", reliability=ReliabilityPolicy.BEST_EFFORT, **qos):
    return Publisher(node, kind, QoSProfile(depth=1, reliability=reliability, **qos))


def explained(topic, wanted=IMAGE, publishers=(), pictures=None, fixed=None, name="image"):
    return explain_silence(topic, name, wanted, fixed or {}, publishers, pictures or {})


def test_a_graph_without_images_names_what_hides_a_camera():
    silence = explained("/image")
    assert silence.kind == "nobody publishes"
    assert "ROS_DOMAIN_ID, RMW_IMPLEMENTATION, transport and discovery range" in silence.reason


def test_the_nearest_topics_are_named_first_and_at_most_five():
    others = {f"/arm_{number}/depth": IMAGE for number in range(7)}
    reason = explained("/camera/image_rw", pictures={**others, "/camera/image_raw": IMAGE}).reason
    assert "there are images on /camera/image_raw (sensor_msgs/msg/Image), /arm_" in reason
    assert reason.count("/arm_") == 4 and "and 3 more" in reason
    assert reason.endswith("for /camera/image_raw: remap image:=/camera/image_raw")


@pytest.mark.parametrize(
    ("topic", "wanted", "there", "remedy"),
    [
        ("/c/image", IMAGE, "/c/image/compressed", "set image_transport:=compressed and remap image:=/c/image"),
        ("/c/image/compressed", COMPRESSED_IMAGE, "/c/image", "set image_transport:=raw and remap image:=/c/image"),
        ("/c/image/compressed/compressed", COMPRESSED_IMAGE, "/c/image/compressed", "remap image:=/c/image"),
        ("/c/image/compressed", COMPRESSED_IMAGE, "/c/jpeg", "remap image/compressed:=/c/jpeg"),
        ("/c/image", IMAGE, "/c/image/compressedDepth", "holds depth, which cannot be segmented"),
    ],
)
def test_a_stream_of_another_form_is_told_with_its_parameters(topic, wanted, there, remedy):
    kind = IMAGE if there == "/c/image" else COMPRESSED_IMAGE
    reason = explained(topic, wanted, pictures={"/other/picture": IMAGE, there: kind}).reason
    assert f"; for {there}: " in reason
    assert remedy in reason.rpartition("; for ")[2]


@pytest.mark.parametrize(("kind", "transport"), [(FFMPEG, "ffmpeg"), (VIDEO, "foxglove"), (COMPRESSED_IMAGE, "zstd")])
def test_packets_are_told_with_the_command_that_decodes_them(kind, transport):
    topic = f"/c/image/{transport}"
    silence = explained(topic, publishers=[publisher(kind)])
    assert silence.kind == "other type"
    assert f"1 publisher: /driver ({kind}, best effort), but the node reads {IMAGE} there" in silence.reason
    assert f"republish {transport} raw --ros-args -p in_transport:={transport}" in silence.reason
    assert f"-r in/{transport}:={topic} -r out:=/c/image_decoded', then remap image:=/c/image_decoded" in silence.reason
    assert decoded_topic(f"/{transport}", kind) == f"/{transport}_decoded", "where there is no base topic"


def test_publishers_of_another_type_are_counted_and_named():
    both = [publisher(COMPRESSED_IMAGE, "/a"), publisher(COMPRESSED_IMAGE, "/b", ReliabilityPolicy.RELIABLE)]
    reason = explained("/left/image/compressed", publishers=both, name="left/image").reason
    assert f"2 publishers: /a ({COMPRESSED_IMAGE}, best effort), /b ({COMPRESSED_IMAGE}, reliable)" in reason
    assert reason.endswith("set image_transport:=compressed and remap left/image:=/left/image")
    other = explained("/image", publishers=[publisher("std_msgs/msg/String")]).reason
    assert other.endswith("remap image to a topic with images")


@pytest.mark.parametrize(("policy", "asked"), [("reliability", "reliable"), ("durability", "transient local")])
def test_a_policy_that_the_user_fixed_is_told_by_its_parameter(policy, asked):
    silence = explained("/image", publishers=[publisher(IMAGE)], fixed={policy: asked})
    assert silence.kind == "no match"
    remedy = f"remove the parameter qos_overrides./image.subscription.{policy}"
    assert silence.reason.endswith(f"but the node asks for {asked}; {remedy}")


def test_a_policy_that_any_publisher_matches_is_not_in_the_way():
    latched = publisher(IMAGE, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    fixed = {"reliability": "best effort", "durability": "volatile"}
    assert explained("/image", publishers=[latched], fixed=fixed).kind == "sends nothing"


def test_a_publisher_that_matches_sends_nothing_or_is_lost_on_the_way():
    silence = explained("/image", publishers=[publisher(IMAGE), publisher(COMPRESSED_IMAGE)])
    assert silence.kind == "sends nothing"
    assert "2 publishers: /driver (sensor_msgs/msg/Image, best effort)" in silence.reason
    assert "'ros2 topic hz /image'; if they are lost, " in silence.reason
    remedy = "set image_transport:=compressed and remap image/compressed:=/image"
    assert silence.reason.endswith(f"; to read /driver ({COMPRESSED_IMAGE}, best effort) instead: {remedy}")
    beside_no_picture = explained("/image", publishers=[publisher(IMAGE), publisher("std_msgs/msg/String")])
    assert "instead" not in beside_no_picture.reason


def test_a_missing_calibration_is_explained_by_who_publishes_one():
    def explained(publishers=(), others=(), fixed=None):
        topic = "/c/image/camera_info"
        return explain_missing_calibration(topic, "camera_info", fixed or {}, publishers, others)

    assert explained().startswith("nobody publishes there; start what publishes the camera's calibration")
    others = ["/arm/camera_info", "/c/camera_info"]
    listed = "there is camera_info on /c/camera_info, /arm/camera_info: remap camera_info to the camera's"
    assert explained(others=others).endswith(listed)
    silent = explained([publisher(CAMERA_INFO)], others)
    assert silent == f"/driver ({CAMERA_INFO}, best effort) sends none there"
    unmatched = explained([publisher(CAMERA_INFO)], others, {"reliability": "reliable"})
    override = "qos_overrides./c/image/camera_info.subscription.reliability"
    assert unmatched.endswith(f"but the node asks for reliable; remove the parameter {override}")
    of_another_type = explained([publisher(IMAGE)], others)
    assert of_another_type.endswith(f"but the node reads {CAMERA_INFO} there; remap camera_info to the camera's")
