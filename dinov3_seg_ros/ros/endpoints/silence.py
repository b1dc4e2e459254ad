"""Why no image arrives, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rclpy.utilities import get_rmw_implementation_identifier

from dinov3_seg_ros.ros.endpoints.image_types import CAMERA_INFO, PICTURE_TYPES, how_to_read
from dinov3_seg_ros.ros.endpoints.publishers import Publisher, policy_name
from dinov3_seg_ros.ros.transport import remedy_for_lost_images
from dinov3_seg_ros.support.errors import first_of

_NAMED = 5
# Of each policy, what only publishers that offer it match.
_DEMANDING = ("reliable", "transient local")


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
    fixed: Mapping[str, str],
    publishers: Sequence[Publisher],
    pictures: Mapping[str, str],
) -> Silence:
    """Explain why nothing arrives on an image topic.

    Args:
        topic: its full name.
        name: the same before remapping, without the transport, such as ``front/image``.
        message_type: what the node reads there.
        fixed: from `FollowingSubscription.fixed`.
        publishers: all that publish on the topic.
        pictures: from `Endpoints.picture_topics`.
    """
    if not publishers:
        return Silence("nobody publishes", _nobody_publishes(topic, name, message_type, pictures))
    count = f"{len(publishers)} publisher{'s' * (len(publishers) > 1)}"
    named = f"{count}: {first_of(publishers, _NAMED)}"
    right = [publisher for publisher in publishers if publisher.message_type == message_type]
    if not right:
        remedy = how_to_read(topic, publishers[0].message_type, message_type, name)
        return Silence("other type", f"{named}, but the node reads {message_type} there; {remedy}")
    if override := _override_in_the_way(topic, fixed, right):
        return Silence("no match", f"{named}, {override}")
    instead = ""
    if others := [p for p in publishers if p.message_type != message_type and p.message_type in PICTURE_TYPES]:
        instead = f"; to read {others[0]} instead: {how_to_read(topic, others[0].message_type, message_type, name)}"
    return Silence(
        "sends nothing",
        f"{named}; it sends nothing, or its images are lost on the way: compare with 'ros2 topic hz {topic}'; "
        f"if they are lost, {remedy_for_lost_images(get_rmw_implementation_identifier())}{instead}",
    )


def explain_missing_calibration(
    topic: str, name: str, fixed: Mapping[str, str], publishers: Sequence[Publisher], others: Sequence[str]
) -> str:
    """Explain why no calibration arrives, though images do, in a sentence without a full stop.

    Args:
        topic: full name of the calibration's topic.
        name: the same before remapping, such as ``front/camera_info``.
        fixed: from `FollowingSubscription.fixed`.
        publishers: all that publish on the topic.
        others: from `Endpoints.calibration_topics`.
    """
    if publishers:
        named = first_of(publishers, _NAMED)
        right = [publisher for publisher in publishers if publisher.message_type == CAMERA_INFO]
        if not right:
            return f"{named}, but the node reads {CAMERA_INFO} there; remap {name} to the camera's"
        override = _override_in_the_way(topic, fixed, right)
        return f"{named}, {override}" if override else f"{named} sends none there"
    if not others:
        return f"nobody publishes there; start what publishes the camera's calibration, or remap {name} to its topic"
    nearest = sorted(others, key=lambda other: _similarity(topic, other), reverse=True)
    return f"nobody publishes there; there is camera_info on {first_of(nearest, _NAMED)}: remap {name} to the camera's"


def _override_in_the_way(topic: str, fixed: Mapping[str, str], publishers: Sequence[Publisher]) -> str:
    """What to say of a parameter that asks for what none of the publishers offers; empty where none does."""
    for policy, asked in fixed.items():
        offered = {policy_name(getattr(publisher.qos, policy)) for publisher in publishers}
        if asked in _DEMANDING and asked not in offered:
            return f"but the node asks for {asked}; remove the parameter qos_overrides.{topic}.subscription.{policy}"
    return ""


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
    listed = first_of([f"{other} ({pictures[other]})" for other in nearest], _NAMED)
    remedy = how_to_read(nearest[0], pictures[nearest[0]], message_type, name)
    return f"nobody publishes there; there are images on {listed}; for {nearest[0]}: {remedy}"


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
