"""A ROS 2 graph of a test's own: real nodes in separate processes, and a peer in this one to talk to them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from ros_domain import TIMEOUT_S, claimed_domain
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from dinov3_seg_ros.ros.cameras.messages import fill_image
from dinov3_seg_ros.ros.transport import configure_transport, profile_variable

ROOT = Path(__file__).resolve().parent.parent
_RESEND_S = 5.0


class Graph:
    """One DDS domain with a peer node in this process, and the processes started in it.

    Args:
        log_folder: for what the nodes say.
        shared_memory: whether the peer uses shared memory, as the other processes do. Fast DDS may crash the process
            that leaves shared memory which another, killed by SIGKILL, had locked. Tests that kill set this to False.
    """

    def __init__(self, log_folder: Path, shared_memory: bool = True) -> None:
        self._resources = contextlib.ExitStack()
        self.domain = self._resources.enter_context(claimed_domain())
        self._log_folder = log_folder
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        configure_transport()
        self.context = rclpy.Context()
        with pytest.MonkeyPatch.context() as environment:
            if not shared_memory:
                environment.delenv(profile_variable())
                environment.setenv("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
            rclpy.init(args=[], context=self.context, domain_id=self.domain)
            self.peer = rclpy.create_node("peer", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.peer)
        self._processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        # The peer first, since a process that is killed may leave it shared memory that it cannot close.
        self._executor.shutdown()
        self.peer.destroy_node()
        rclpy.try_shutdown(context=self.context)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._resources.close()

    def start_node(
        self,
        namespace: str = "",
        program: Sequence[str] = ("-m", "dinov3_seg_ros.node"),
        remap: Mapping[str, str] = {},
        **parameters: Any,
    ) -> NodeProcess:
        """Start the segmentation node in a process of its own."""
        log = self._log_folder / f"node_{len(self._processes)}.log"
        command = [sys.executable, *program, "--ros-args"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        command += ["-r", f"__ns:=/{namespace}"] if namespace else []
        for name, topic in remap.items():
            command += ["-r", f"{name}:={topic}"]
        python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain), "PYTHONPATH": python_path}
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self._processes.append(process)
        return NodeProcess(self, process, log, namespace)

    def spin_until(self, condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Handle events until ``condition`` is true, and return it; fail after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text() for log in sorted(self._log_folder.glob("node_*.log")))
                pytest.fail(f"{what} did not happen within {timeout_s} s; the node said:\n{logs}")
            self._executor.spin_once(timeout_sec=0.02)
        return result

    def repeat_until(self, action: Callable[[], Any], condition: Callable[[], Any], what: str) -> Any:
        """Do something, again and again until ``condition`` is true, and return that; fail after the timeout."""
        last_done = float("-inf")

        def is_met() -> Any:
            nonlocal last_done
            if time.monotonic() - last_done > _RESEND_S:
                last_done = time.monotonic()
                action()
            return condition()

        return self.spin_until(is_met, what)

    def spin_for(self, seconds: float) -> None:
        """Handle events for a while; for showing that something does not happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """Call a service that may be called twice, and return its response.

        That this side has found the service does not say that the service has found this client. A response to a
        client that is not yet known is lost, so the request is sent again.
        """
        with self._client(service_type, name) as client:
            futures: list[Any] = []
            answer = self.repeat_until(
                lambda: futures.append(client.call_async(request)),
                lambda: next((future for future in futures if future.done()), None),
                f"an answer of {name}",
            )
            return answer.result()

    def call_once(self, service_type: type, name: str, request: Any, found: Callable[[], Any]) -> Any:
        """Call a service whose second call means something else.

        ``found`` calls another service of the same node. Clients are found in the order in which they were made: once
        that one is answered, the client made here before it is known too, and its response cannot be lost.
        """
        with self._client(service_type, name) as client:
            found()
            future = client.call_async(request)
            self.spin_until(future.done, f"an answer of {name}")
            return future.result()

    @contextlib.contextmanager
    def _client(self, service_type: type, name: str) -> Iterator[Any]:
        client = self.peer.create_client(service_type, name)
        try:
            self.spin_until(client.service_is_ready, f"service {name}")
            yield client
        finally:
            self.peer.destroy_client(client)

    def publisher(self, message_type: type, topic: str, qos: QoSProfile = qos_profile_sensor_data) -> Any:
        """A publisher, once somebody subscribes to it."""
        publisher = self.peer.create_publisher(message_type, topic, qos)
        self.spin_until(publisher.get_subscription_count, f"a subscription to {topic}")
        return publisher

    def camera(self, topic: str = "image", message_type: type = Image) -> Camera:
        """A publisher of images."""
        return Camera(self, topic, message_type)

    def listen(self, topic: str, reliable: bool = False, message_type: type = Image) -> list[Any]:
        """Subscribe; the list returned grows as messages arrive."""
        received: list[Any] = []
        qos = QoSProfile(depth=20) if reliable else qos_profile_sensor_data
        if reliable:
            qos.reliability = ReliabilityPolicy.RELIABLE
        self.peer.create_subscription(message_type, topic, received.append, qos)
        return received


class Camera:
    """Publishes images best effort, as camera drivers do."""

    def __init__(self, graph: Graph, topic: str, message_type: type = Image) -> None:
        self._graph = graph
        self._publisher = graph.peer.create_publisher(message_type, topic, qos_profile_sensor_data)
        self._sent = 0

    def wait_for_subscriber(self) -> None:
        self._graph.spin_until(self._publisher.get_subscription_count, "a subscription to the image")

    def message(self, pixels: np.ndarray, encoding: str = "rgb8") -> Image:
        """An image with a header that no other image has."""
        self._sent += 1
        header = Header(frame_id=f"camera_{self._sent}")
        header.stamp.sec, header.stamp.nanosec = 1_700_000_000 + self._sent, 123_456_789
        return fill_image(Image(), pixels, encoding, header)

    def send(self, message: Any) -> Any:
        self._publisher.publish(message)
        return message

    def send_until(self, message: Any, condition: Callable[[], Any], what: str) -> Any:
        """Publish an image, again and again until ``condition`` is true, and return it.

        One alone may be lost: that this side has found the node does not say that the node has found the camera or
        the answers' subscriber, and best effort keeps nothing for those who are found later.
        """
        return self._graph.repeat_until(lambda: self.send(message), condition, what)

    def send_until_answered(self, message: Any, answers: list[Any], count: int = 1) -> Any:
        """Publish an image until there are ``count`` more answers, and return the last."""
        expected = len(answers) + count
        self.send_until(message, lambda: len(answers) >= expected, f"an answer to {message.header.frame_id}")
        return answers[-1]


class NodeProcess:
    """A segmentation node in a process of its own."""

    def __init__(self, graph: Graph, process: subprocess.Popen[bytes], log: Path, namespace: str) -> None:
        self._graph, self.process, self._log = graph, process, log
        self._name = f"/{namespace}/segmentation" if namespace else "/segmentation"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def state(self) -> str:
        return self._graph.call(GetState, f"{self._name}/get_state", GetState.Request()).current_state.label

    def wait_for_state(self, label: str) -> None:
        self._graph.spin_until(lambda: self.state() == label, f"state {label}")

    def change_state(self, transition: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = transition
        request.transition.id = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}[transition]
        return self._graph.call_once(ChangeState, f"{self._name}/change_state", request, found=self.state).success

    def set_parameter(self, name: str, value: Any) -> Any:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self._graph.call(SetParameters, f"{self._name}/set_parameters", request).results[0]

    def get_parameter(self, name: str) -> Any:
        request = GetParameters.Request(names=[name])
        return self._graph.call(GetParameters, f"{self._name}/get_parameters", request).values[0]

    def switch(self, name: str, on: bool) -> str:
        """Call a SetBool service of the node and return its message."""
        response = self._graph.call(SetBool, f"{self._name}/{name}", SetBool.Request(data=on))
        assert response.success
        return response.message

    def end(self, signal_number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=20)


def image_of(message: Image) -> np.ndarray:
    """Pixels of a tight-packed 8-bit image message."""
    pixels = np.frombuffer(message.data, np.uint8)
    channels = pixels.size // (message.height * message.width)
    shape = (message.height, message.width) + ((channels,) if channels > 1 else ())
    return pixels.reshape(shape)
