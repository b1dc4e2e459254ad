"""Why no image arrives, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rclpy.utilities import get_rmw_implementation_identifier

from dinov3_seg_ros.ros.endpoints.image_types import how_to_read
from dinov3_seg_ros.ros.endpoints.publishers import Publisher
from dinov3_seg_ros.ros.transport import remedy_for_lost_images

_MOST_NAMED = 5


class Silence(NamedTuple):
    """Why nothing arrives on a topic.

    Attributes:
        kind: the same for silences of the same cause.
        reason: the cause and the remedy, for people.
    """

    kind: str
    reason: str


def explain_silence(
    topic: str,
    name: str,
    message_type: str,
    fixed_reliability: str,
    publishers: Sequence[Publisher],
    pictures: Mapping[str, str],
) -> Silence:
    """Explain why nothing arrives on an image topic.

    Args:
        topic: its full name.
        name: the same before remapping, without the transport, such as ``front/image``.
        message_type: what the node reads there.
        fixed_reliability: what a parameter makes the node ask for, in words; empty where it follows the publishers.
        publishers: all that publish on the topic.
        pictures: from `Endpoints.picture_topics`.
    """
    if not publishers:
        return Silence("nobody publishes", _nobody_publishes(topic, name, message_type, pictures))
    count = f"{len(publishers)} publisher{'s' * (len(publishers) > 1)}"
    named = f"{count}: {_listed([str(publisher) for publisher in publishers])}"
    right = [publisher for publisher in publishers if publisher.message_type == message_type]
    if not right:
        remedy = how_to_read(topic, publishers[0].message_type, message_type, name)
        return Silence("other type", f"{named}, but the node reads {message_type} there; {remedy}")
    if fixed_reliability == "reliable" and all(not publisher.is_reliable for publisher in right):
        override = f"qos_overrides.{topic}.subscription.reliability"
        return Silence("no match", f"{named}, but the node asks for reliable; remove the parameter {override}")
    return Silence(
        "sends nothing",
        f"{named}; it sends nothing, or its images are lost on the way: compare with 'ros2 topic hz {topic}'; "
        f"if they are lost, {remedy_for_lost_images(get_rmw_implementation_identifier())}",
    )


def explain_missing_calibration(topic: str, name: str, publishers: Sequence[Publisher], others: Sequence[str]) -> str:
    """Explain why no calibration arrives, though images do, in a sentence without a full stop.

    Args:
        topic: full name of the calibration's topic.
        name: the same before remapping, such as ``front/camera_info``.
        publishers: all that publish on the topic.
        others: from `Endpoints.calibration_topics`.
    """
    if publishers:
        return f"{_listed([str(publisher) for publisher in publishers])} sends none there"
    if not others:
        return f"nobody publishes there; start what publishes the camera's calibration, or remap {name} to its topic"
    nearest = sorted(others, key=lambda other: _similarity(topic, other), reverse=True)
    return f"nobody publishes there; there is camera_info on {_listed(nearest)}: remap {name} to the camera's"


def _nobody_publishes(topic: str, name: str, message_type: str, pictures: Mapping[str, str]) -> str:
    if not pictures:
        return (
            "nobody publishes there, and no image topic is visible; start the camera, with the node's ROS_DOMAIN_ID, "
            "RMW_IMPLEMENTATION, transport and discovery range"
        )

    def likeness(other: str) -> tuple[bool, float]:
        """Other topics of the same stream first, then the topics of the most similar names."""
        base = topic.removesuffix("/compressed")
        return other.startswith(f"{base}/") or base.startswith(other), _similarity(topic, other)

    nearest = sorted(pictures, key=likeness, reverse=True)
    listed = _listed([f"{other} ({pictures[other]})" for other in nearest])
    remedy = how_to_read(nearest[0], pictures[nearest[0]], message_type, name)
    return f"nobody publishes there; there are images on {listed}; for {nearest[0]}: {remedy}"


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
