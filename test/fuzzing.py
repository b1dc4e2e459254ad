"""Sends a node bad messages, and a good frame after every few of them."""

from __future__ import annotations

from collections.abc import Callable

from bad_messages import bad_messages, good_calibration, good_compressed, good_image
from diagnostics_reader import DiagnosticsReader
from ros_graph import Graph
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

# After so many bad messages a good frame must be answered.
_BURST = 5


def fuzz(
    graph: Graph, transport: str, count: int, progress: Callable[[int], None] = lambda done: None
) -> dict[str, int]:
    """Send ``count`` bad images and as many bad calibrations to the node in the graph.

    Fails as soon as a good frame is not answered.

    Args:
        graph: holds one node with one camera.
        transport: the node's ``image_transport``.
        count: number of bad images.
        progress: called with the number sent so far.

    Returns:
        The node's counts, from its diagnostics.
    """
    is_raw = transport == "raw"
    images = graph.publisher(*((Image, "image") if is_raw else (CompressedImage, "image/compressed")))
    calibrations = graph.publisher(CameraInfo, "camera_info")
    reader, answers = DiagnosticsReader(graph), graph.listen("segmentation/mask")
    graph.listen("segmentation/camera_info", message_type=CameraInfo)
    graph.spin_until(lambda: graph.peer.count_publishers("segmentation/mask"), "the mask")
    pairs = zip(bad_messages(transport, count), bad_messages("calibration", count), strict=True)
    for number, (image, calibration) in enumerate(pairs, 1):
        calibrations.publish(calibration)
        images.publish(image)
        graph.spin_for(0.01)  # otherwise the next message may replace this one before it is looked at
        if number % _BURST == 0:
            calibrations.publish(good_calibration(Header()))
            good = (good_image if is_raw else good_compressed)(Header(frame_id=f"good {number}"))
            images.publish(good)
            graph.spin_until(
                lambda good=good: good.header in [mask.header for mask in answers],
                f"an answer to the frame after {number} bad messages",
            )
            answers.clear()
            progress(number)
    return reader.settled_counts()
