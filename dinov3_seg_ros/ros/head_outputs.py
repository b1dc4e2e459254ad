"""What the node publishes of every camera and head, from when the bundles' manifests are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rclpy.clock import Clock

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.frames.output_classes import classes_to_publish
from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros.cameras.ports import HeadOutput
from dinov3_seg_ros.ros.endpoints.qos import Endpoints
from dinov3_seg_ros.ros.parameters import NodeParameters
from dinov3_seg_ros.ros.switches import Switches
from dinov3_seg_ros.support.errors import SegmentationError


class HeadOutputs:
    """The publishers of every camera and head, the heads' switches, and the class names.

    Args:
        endpoints: creates the publishers.
        switches: gets a switch for each head.
        settings: whose parameter ``class_names`` is set.
        clock: of the stamps of `publish_label_info`.
        note_fault: see `HeadOutput`.

    Attributes:
        by_camera: `HeadOutput` by camera and bundle name; always the same mapping, empty before `create`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        switches: Switches,
        settings: NodeParameters,
        clock: Clock,
        note_fault: Callable[[str, str, str], None],
    ) -> None:
        self._endpoints, self._switches, self._settings = endpoints, switches, settings
        self._clock, self._note_fault = clock, note_fault
        self._threshold = 0.0
        self._classes: dict[str, ClassesSection] = {}
        self.by_camera: dict[str, dict[str, HeadOutput]] = {}

    def create(self, manifests: Mapping[str, Manifest], options: NodeOptions) -> None:
        """Create all of them.

        Args:
            manifests: the bundles', by name.
            options: the cameras, and the class list.

        Raises:
            ParameterError: the class list cannot be used, or a topic cannot be opened. What was created stays until
                `close`.
        """
        self._classes = of_bundles = _classes_of(manifests)
        published = classes_to_publish(options.class_list, of_bundles)
        first = next(iter(published))
        for camera in options.cameras or ("",):
            heads = self.by_camera[camera] = {}
            for name, classes in published.items():
                part = "" if name == first else name
                heads[name] = HeadOutput(self._endpoints, camera, part, classes, self._note_fault)
        self._switches.add_heads(published)
        self._settings.publish_class_names(published[first].names)

    def check(self, manifests: Mapping[str, Manifest]) -> None:
        """Check that bundles which were read again have the classes that are published.

        Raises:
            SegmentationError: they have not.
        """
        if _classes_of(manifests) != self._classes:
            raise SegmentationError("the bundle was changed on disk since the node was configured: its classes differ")

    def publish_label_info(self, threshold: float) -> None:
        """Publish the latched class names; needs vision_msgs.

        Args:
            threshold: the parameter ``confidence_threshold``, which they are published with.
        """
        self._threshold = threshold
        stamp = self._clock.now().to_msg()
        for output in self._each():
            output.publish_label_info(stamp, threshold)

    def follow_threshold(self, threshold: float) -> None:
        """Publish them again if the threshold is no longer what it was."""
        if threshold != self._threshold:
            self.publish_label_info(threshold)

    def close(self) -> None:
        """Remove all of them."""
        for output in self._each():
            output.close()
        self.by_camera.clear()
        self._switches.remove_heads()

    def _each(self) -> list[HeadOutput]:
        return [output for heads in self.by_camera.values() for output in heads.values()]


def _classes_of(manifests: Mapping[str, Manifest]) -> dict[str, ClassesSection]:
    return {name: manifest.classes for name, manifest in manifests.items()}
