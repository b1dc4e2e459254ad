"""Shared by the benchmarks of the node: synthetic cameras in their own process, consumers, use of the machine.

``python benchmarks/streams.py TOPIC ... --size HEIGHT WIDTH [--reliable] [--plain]`` is the process of the cameras;
`Cameras` starts and commands it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "test"))

import psutil  # noqa: E402
import rclpy  # noqa: E402
from diagnostics_reader import DiagnosticsReader  # noqa: E402
from rclpy.qos import QoSProfile, qos_profile_sensor_data  # noqa: E402
from ros_graph import Graph, NodeProcess  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from dinov3_seg_ros import scenes  # noqa: E402
from dinov3_seg_ros.ros.cameras.messages import fill_image, seconds_of  # noqa: E402
from dinov3_seg_ros.ros.transport import PROFILE_VARIABLES, configure_transport, keep_freed_memory  # noqa: E402
from dinov3_seg_ros.support.timing import summarise_ms  # noqa: E402

DEMO = ROOT / "weights" / "demo"
_PICTURES = 8
_PAUSE_S = 1.0


class Cameras:
    """A process of synthetic cameras.

    Args:
        graph: the ROS graph to publish in.
        topics: one for each camera.
        size: (height, width) of the images, pixels.
        reliable: whether they offer reliability, as usb_cam, realsense2_camera and a bag's playback do.
        profile: whether their process uses the package's profile of Fast DDS.
    """

    def __init__(
        self,
        graph: Graph,
        topics: Sequence[str],
        size: tuple[int, int],
        reliable: bool = False,
        profile: bool = True,
    ) -> None:
        self._graph = graph
        flags = [*(["--reliable"] if reliable else []), *([] if profile else ["--plain"])]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.domain)}
        for variable in [] if profile else PROFILE_VARIABLES:
            environment.pop(variable, None)  # this process has set it for itself
        self._process = subprocess.Popen(
            [sys.executable, __file__, *topics, "--size", *map(str, size), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._answer("cameras with a subscriber each")

    def run(
        self,
        rate_hz: float,
        seconds: float,
        together: bool = False,
        every: tuple[float, Callable[[], None]] | None = None,
    ) -> dict[str, Any]:
        """Publish a stream from each camera, and one more frame after a pause, which reveals frames lost before it.

        Args:
            rate_hz: frames per second of each camera.
            seconds: length of the stream.
            together: cameras send at the same moment; else evenly spread.
            every: a period in seconds, and a function to call once per period.

        Returns:
            ``sent`` (topic -> number of frames, with the last one), ``seconds`` (without the pause) and ``publish_ms``
            (how long the calls of publish took, as `summary_ms`).
        """
        command = {"rate_hz": rate_hz, "seconds": seconds, "together": together}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer("the end of the stream", seconds + 60, every)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(timeout=20)

    def _answer(
        self, what: str, timeout_s: float = 60.0, every: tuple[float, Callable[[], None]] | None = None
    ) -> dict[str, Any]:
        due = time.monotonic() + (every[0] if every else 0.0)

        def line() -> str:
            nonlocal due
            if every and time.monotonic() >= due:
                due += every[0]
                every[1]()
            assert self._process.poll() is None, "the cameras' process has ended"
            return self._process.stdout.readline()

        return json.loads(self._graph.spin_until(line, what, timeout_s))


class Masks:
    """Receives outputs of the node on several topics, and records their delays after the stamps of the frames."""

    def __init__(self, graph: Graph, topics: Iterable[str], message_type: type = Image) -> None:
        self._delays_s: dict[str, list[float]] = {topic: [] for topic in topics}
        for topic, delays in self._delays_s.items():

            def take(mask: Any, delays: list[float] = delays) -> None:
                delays.append(time.time() - seconds_of(mask.header.stamp))

            graph.peer.create_subscription(message_type, topic, take, QoSProfile(depth=20))

    def take(self) -> dict[str, list[float]]:
        """Return the delays since the last call, seconds, by topic."""
        taken = {topic: list(delays) for topic, delays in self._delays_s.items()}
        for delays in self._delays_s.values():
            delays.clear()
        return taken


class Usage:
    """Use of the machine by processes, from now on."""

    def __init__(self, nodes: Sequence[NodeProcess]) -> None:
        self._processes = [psutil.Process(node.process.pid) for node in nodes]
        self._start, self._cpu_s = time.monotonic(), self._used_s()

    def cores(self) -> float:
        """Return their mean number of busy cores since the start."""
        return (self._used_s() - self._cpu_s) / (time.monotonic() - self._start)

    def memory_mb(self) -> dict[str, float]:
        """Return sums in MiB: ``rss``; ``uss``, shared with no other process; ``pss``, shared memory divided up."""
        infos = [process.memory_full_info() for process in self._processes]
        return {name: round(sum(getattr(info, name) for info in infos) / 2**20, 1) for name in ("rss", "uss", "pss")}

    def handles(self) -> dict[str, int]:
        """Return the sums of ``threads`` and open ``files``."""
        return {
            "threads": sum(process.num_threads() for process in self._processes),
            "files": sum(process.num_fds() for process in self._processes),
        }

    def _used_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


class Counts:
    """The counts in one camera's diagnostics."""

    def __init__(self, graph: Graph, status: str) -> None:
        self._reader, self._status = DiagnosticsReader(graph), status

    def read(self) -> dict[str, int]:
        """Return the newest counts once no frame is in flight; nothing may be sent meanwhile."""
        self._reader.wait(self._status, lambda _: True, "counts")  # may have been on its way already
        status = self._reader.wait(
            self._status, lambda status: not _in_flight(_whole_numbers(status)), "the last frame"
        )
        return _whole_numbers(status)


def _whole_numbers(status: Any) -> dict[str, int]:
    return {key: int(value) for key, value in status.values.items() if value.isdecimal()}


def _in_flight(counts: dict[str, int]) -> int:
    dropped = sum(value for key, value in counts.items() if key.startswith("dropped: "))
    return counts["frames received"] - counts["frames segmented"] - dropped


def account(sent: int, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return where the frames went that were sent between two readings; ``unaccounted`` should be 0."""
    change = {key: after[key] - before.get(key, 0) for key in after}
    found = {"sent": sent, "segmented": change.pop("frames segmented")}
    lost = change.pop("frames dropped by the transport")
    drops = {key: value for key, value in change.items() if key.startswith("dropped: ") and value}
    found |= {"dropped by the transport": lost, **drops}
    return {**found, "unaccounted": sent - found["segmented"] - lost - sum(drops.values())}


def per_second(number: int, stream: dict[str, Any]) -> float:
    """Return the frame rate during a stream of `Cameras.run`; ``number`` includes the frame after the pause."""
    return (number - 1) / stream["seconds"]


def summary_ms(seconds: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and maximum of durations, milliseconds; empty for none."""
    return {**summarise_ms(seconds), "max": round(1000 * max(seconds), 3)} if seconds else {}


def export_demo(folder: Path, size: tuple[int, int], heads: int = 1) -> list[Path]:
    """Write copies of the demo's bundle with exports of another network size.

    Args:
        folder: folder for the copies.
        size: (height, width) of the network input, pixels.
        heads: number of bundles on the one backbone; each after the first has randomly changed weights.
    """
    from dinov3_seg_ros.bundle.loading import load_bundle
    from dinov3_seg_ros.bundle.manifest import BACKBONE_FOLDER
    from dinov3_seg_ros.bundle.saving import save_bundle
    from dinov3_seg_ros.export.exporter import ExportOptions, export

    demo, paths = load_bundle(DEMO), []
    for number in range(heads):
        name = f"head_{number + 1}"
        manifest = demo.manifest.model_copy(
            update={"name": name, "input": demo.manifest.input.model_copy(update={"network_size": size})}
        )
        noise = np.random.default_rng(number)
        state = demo.load_head().state_dict()
        if number:
            for weights in state.values():
                if weights.is_floating_point():
                    scatter = noise.normal(1.0, 0.1, tuple(weights.shape)).astype(np.float32)
                    weights.mul_(weights.new_tensor(scatter))
        save_bundle(
            folder / name, manifest, state, lambda new: shutil.copytree(DEMO / BACKBONE_FOLDER, new / BACKBONE_FOLDER)
        )
        paths.append(folder / name)
    export(paths, ExportOptions(size=size, precision="fp32", least_labels=0.99))
    return paths


def main() -> None:
    """Publish synthetic images on several topics, as commanded on standard input."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("topics", nargs="+")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--reliable", action="store_true", help="offer reliability")
    parser.add_argument("--plain", action="store_true", help="without the package's profile of Fast DDS")
    options = parser.parse_args()
    if not options.plain:
        configure_transport()
    keep_freed_memory()
    rclpy.init(args=[])
    node = rclpy.create_node("cameras")
    qos = QoSProfile(depth=10) if options.reliable else qos_profile_sensor_data
    publishers = {topic: node.create_publisher(Image, topic, qos) for topic in options.topics}
    frames = scenes.walk("val", 0, tuple(options.size), 1.0)
    pictures = [np.ascontiguousarray(rgb) for (rgb, _), _ in zip(frames, range(_PICTURES), strict=False)]
    while not all(publisher.get_subscription_count() for publisher in publishers.values()):
        time.sleep(0.05)
    time.sleep(1.0)  # until the subscribers know of the publishers too
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(_stream(node, publishers, pictures, **json.loads(line))), flush=True)
    rclpy.try_shutdown()


def _stream(
    node: Any, publishers: dict[str, Any], pictures: list[np.ndarray], rate_hz: float, seconds: float, together: bool
) -> dict[str, Any]:
    sent, publish_s = dict.fromkeys(publishers, 0), []

    def send(topic: str) -> None:
        header = Header(stamp=node.get_clock().now().to_msg(), frame_id=topic.replace("/", "_"))
        image = fill_image(Image(), pictures[sent[topic] % len(pictures)], "rgb8", header)
        began = time.monotonic()
        publishers[topic].publish(image)
        publish_s.append(time.monotonic() - began)
        sent[topic] += 1

    start, frames = time.monotonic(), max(round(rate_hz * seconds), 1)
    for frame in range(frames):
        for number, topic in enumerate(publishers):
            moment = start + (frame + (0 if together else number / len(publishers))) / rate_hz
            time.sleep(max(moment - time.monotonic(), 0.0))
            send(topic)
    took = max(time.monotonic() - start, frames / rate_hz)
    time.sleep(_PAUSE_S)
    for topic in publishers:
        send(topic)
    time.sleep(_PAUSE_S)
    return {"sent": sent, "seconds": took, "publish_ms": summary_ms(publish_s)}


if __name__ == "__main__":
    main()
