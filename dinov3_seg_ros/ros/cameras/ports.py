"""What the node subscribes to and publishes for one camera: topics and messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from rclpy.type_support import check_for_type_support
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.frames.output_classes import Labelled, OutputClasses, confidence_threshold
from dinov3_seg_ros.frames.overlay import to_bgr
from dinov3_seg_ros.frames.value_range import ValueScale, chosen_range
from dinov3_seg_ros.options import NodeOptions, PublishOptions, ValueRange
from dinov3_seg_ros.ros.cameras.camera_info import check_camera_info, fill_camera_info
from dinov3_seg_ros.ros.cameras.messages import fill_image, fill_jpeg, fill_png, read_compressed_image, read_image
from dinov3_seg_ros.ros.endpoints.following import FollowingSubscription
from dinov3_seg_ros.ros.endpoints.publishers import type_name
from dinov3_seg_ros.ros.endpoints.qos import LATCHED_QOS, OUTPUT_QOS, Endpoints
from dinov3_seg_ros.ros.endpoints.sequence import SequenceGaps
from dinov3_seg_ros.ros.endpoints.silence import Silence, explain_missing_calibration, explain_silence
from dinov3_seg_ros.support.errors import MessageError, one_line
from dinov3_seg_ros.support.timing import StageTimes

# vision_msgs is optional: without it, or with a broken build of it (which raises errors of many types), masks are still
# published, and the class names are a parameter.
try:
    from vision_msgs.msg import LabelInfo, VisionClass

    check_for_type_support(LabelInfo)
    #: Why ``segmentation/label_info`` cannot be published; empty where it can.
    NO_LABEL_INFO = ""
except Exception as error:
    LabelInfo = VisionClass = None
    NO_LABEL_INFO = f"vision_msgs cannot be used: {one_line(error)}"

#: Message type and reader of pixels, by the parameter image_transport.
TRANSPORTS = {"raw": (Image, read_image), "compressed": (CompressedImage, read_compressed_image)}
# Outputs that need a segmentation; camera_info alone does not.
_PICTURES = {
    "mask": Image,
    "mask/compressed": CompressedImage,
    "confidence": Image,
    "color_mask": Image,
    "overlay": Image,
    "overlay/compressed": CompressedImage,
}
#: Every output by the last part of its topic, with its message type; None: vision_msgs cannot be used.
OUTPUTS = {**_PICTURES, "camera_info": CameraInfo, "label_info": LabelInfo}
# Who publishes waits until the message is on its way: on a slow link that is long.
_SLOW_S = 0.1


class Frame(NamedTuple):
    """A frame being processed.

    Attributes:
        camera: its camera's name.
        header: of its message.
        rgb: (H, W, 3) uint8.
        received: when it arrived, seconds of the monotonic clock.
        calibration: the newest sensor_msgs/CameraInfo of its camera, if any.
    """

    camera: str
    header: Any
    rgb: np.ndarray
    received: float
    calibration: Any


class CameraInput:
    """The subscriptions to one camera.

    Args:
        endpoints: creates the subscriptions.
        camera: the camera's name, which is the prefix of its topics; empty for the only camera.
        transport: the parameter ``image_transport``.
        receive: called in the executor's thread with the camera's name, each image, and the number of images dropped
            by the transport since the previous one.
        note_fault: called with the camera's name, the kind of a fault that costs no frame, and its details.

    Attributes:
        calibration: the newest usable sensor_msgs/CameraInfo; None before the first.
        has_calibration: whether any has arrived, usable or not.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        camera: str,
        transport: str,
        receive: Callable[[str, Any, int], None],
        note_fault: Callable[[str, str, str], None],
    ) -> None:
        self._message_type, self._to_rgb = TRANSPORTS[transport]
        self._endpoints, self._camera, self._note_fault = endpoints, camera, note_fault
        self.calibration: CameraInfo | None = None
        self.has_calibration = False
        gaps = SequenceGaps()

        def take(image: Any, info: Mapping[str, Any]) -> None:
            receive(camera, image, gaps.before(info, self._image.matched()))

        self._name = name = topic(camera, "image")
        if transport != "raw":
            name = endpoints.below(name, transport)
        self._scale = ValueScale(source=endpoints.resolve(name))
        self._image = FollowingSubscription(endpoints, self._message_type, name, take)
        try:
            self._info = FollowingSubscription(
                endpoints, CameraInfo, topic(camera, "camera_info"), self._take_calibration, follow_durability=True
            )
        except BaseException:
            self._image.close()
            raise

    @property
    def image_topic(self) -> str:
        """The full name of the image topic."""
        return self._image.topic

    @property
    def info_topic(self) -> str:
        """The full name of the calibration's topic."""
        return self._info.topic

    @property
    def reliability(self) -> str:
        """The reliability that is asked for of the images' publishers, in words, and by whose choice."""
        return self._image.reliability

    def follow(self) -> None:
        """Ask for what the publishers offer now; see `FollowingSubscription.follow`."""
        self._image.follow()
        self._info.follow()

    def explain_silence(self) -> Silence:
        """Why no image arrives."""
        image = self._image
        return explain_silence(
            image.topic,
            self._name,
            type_name(self._message_type),
            image.fixed,
            image.publishers(),
            self._endpoints.picture_topics(),
        )

    def explain_missing_calibration(self) -> str:
        """Why no calibration arrives."""
        info, others = self._info, self._endpoints.calibration_topics()
        name = topic(self._camera, "camera_info")
        return explain_missing_calibration(info.topic, name, info.fixed, info.publishers(), others)

    def read(self, image: Any, received: float, options: PublishOptions, trained: ValueRange = "auto") -> Frame:
        """Read the frame of a message.

        Args:
            image: the message.
            received: when it arrived, seconds of steady time.
            options: say which images are accepted.
            trained: the bundles' value range, for options that leave it to them.

        Raises:
            MessageError: it cannot be read.
        """
        self._scale.choice = chosen_range(options.value_range, trained)
        rgb = self._to_rgb(image, options.max_pixels, self._scale)
        return Frame(self._camera, image.header, rgb, received, self.calibration)

    def close(self) -> None:
        """Unsubscribe."""
        self._image.close()
        self._info.close()

    def _take_calibration(self, info: CameraInfo, _message_info: Mapping[str, Any]) -> None:
        self.has_calibration = True
        try:
            check_camera_info(info)
        except MessageError as error:
            self._note_fault(self._camera, error.fault, f"camera_info is not used: {error}")
        else:
            self.calibration = info


class HeadOutput:
    """The topics of one head for one camera.

    Args:
        endpoints: creates the publishers.
        camera: prefix of the topics; empty for the only camera.
        head: the bundle's name, which becomes a part of the topics; empty for the first head.
        classes: which classes are published.
        note_fault: called with the camera's name, the kind of a fault that costs no frame, and its details.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        camera: str,
        head: str,
        classes: OutputClasses,
        note_fault: Callable[[str, str, str], None],
    ) -> None:
        self._endpoints, self._classes = endpoints, classes
        self._camera, self._note_fault = camera, note_fault
        self._publishers: dict[str, Any] = {}
        try:
            for name, message_type in OUTPUTS.items():
                if message_type is None:
                    continue
                base, _, transport = name.partition("/")
                full_name = topic(camera, "segmentation", head, base)
                if transport:
                    full_name = endpoints.below(full_name, transport)
                qos = LATCHED_QOS if name == "label_info" else OUTPUT_QOS
                self._publishers[name] = endpoints.advertise(message_type, full_name, qos)
        except BaseException:
            self.close()
            raise

    @property
    def wants_calibration(self) -> bool:
        """Whether the scaled calibration has a subscriber."""
        return self._wants("camera_info")

    @property
    def wanted(self) -> bool:
        """Whether any output that needs a segmentation has a subscriber."""
        return any(map(self._wants, _PICTURES))

    def publish(self, found: Labelled, frame: Frame, options: NodeOptions, times: StageTimes) -> None:
        """Compute and publish the outputs that have subscribers, with the header of the frame."""
        wanted = {name for name in (*_PICTURES, "camera_info") if self._wants(name)}
        if not wanted & _PICTURES.keys():
            return
        confidence, threshold = None, confidence_threshold(options.confidence_threshold)
        if "confidence" in wanted:
            labels, confidence = self._classes.labels_and_confidence(found, threshold)
        else:
            labels = self._classes.labels(found, threshold)
        header, send = frame.header, self._send
        with times.stage_in_parts("message_out") as sending:
            with sending():
                if "mask" in wanted:
                    send("mask", fill_image(Image(), labels, mask_encoding(labels), header))
                if confidence is not None:
                    send("confidence", fill_image(Image(), confidence, "mono8", header))
                if "mask/compressed" in wanted:
                    self._send_filled("mask/compressed", fill_png, CompressedImage(), labels, header)
                if "camera_info" in wanted and frame.calibration is not None:
                    sizes = frame.rgb.shape[:2], labels.shape
                    info = CameraInfo()
                    self._send_filled("camera_info", fill_camera_info, info, frame.calibration, *sizes, header)
            if "color_mask" in wanted:
                with times.stage("overlay"):
                    coloured = to_bgr(self._classes.coloured(labels))
                with sending():
                    send("color_mask", fill_image(Image(), coloured, "bgr8", header))
            if not wanted & {"overlay", "overlay/compressed"}:
                return
            with times.stage("overlay"):
                overlay = to_bgr(self._classes.overlay(frame.rgb, labels, options))
            with sending():
                if "overlay" in wanted:
                    send("overlay", fill_image(Image(), overlay, "bgr8", header))
                if "overlay/compressed" in wanted:
                    jpeg, quality = CompressedImage(), options.jpeg_quality
                    self._send_filled("overlay/compressed", fill_jpeg, jpeg, overlay, quality, header)

    def publish_label_info(self, stamp: Any, threshold: float) -> None:
        """Publish the latched class names, and the confidence threshold (0..1); needs vision_msgs.

        The frame of the header stays empty: class names have none.
        """
        if "label_info" not in self._publishers:
            return
        message = LabelInfo(threshold=threshold)
        message.header.stamp = stamp
        message.class_map = [
            VisionClass(class_id=index, class_name=name) for index, name in enumerate(self._classes.names)
        ]
        self._publishers["label_info"].publish(message)

    def close(self) -> None:
        """Remove the publishers."""
        for publisher in self._publishers.values():
            self._endpoints.withdraw(publisher)
        self._publishers.clear()

    def _wants(self, name: str) -> bool:
        return bool(self._publishers[name].get_subscription_count())

    def _send(self, name: str, message: Any) -> None:
        publisher = self._publishers[name]
        start = time.monotonic()
        publisher.publish(message)
        if (took := time.monotonic() - start) > _SLOW_S:
            smaller = self._publishers.get(f"{name}/compressed")
            advice = f"read {smaller.topic_name} there" if smaller else "have fewer or smaller images sent there"
            self._note_fault(
                self._camera,
                "slow subscriber",
                f"sending an image on {publisher.topic_name} took {took:.2f} s, for which the next frame waits; a "
                f"subscriber is on a slow link: {advice}",
            )

    def _send_filled(self, name: str, fill: Callable[..., Any], *given: Any) -> None:
        """Publish the message that ``fill`` makes of what is given; one that cannot be made is left out."""
        try:
            message = fill(*given)
        except MessageError as error:
            self._note_fault(self._camera, error.fault, f"{name} is not sent: {error}")
        else:
            self._send(name, message)


def topic(*parts: str) -> str:
    """Join the non-empty parts of a relative topic name."""
    return "/".join(part for part in parts if part)
