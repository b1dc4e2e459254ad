"""Peers that come late, leave, crash and restart, and shared memory that is full or absent: the stream goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from diagnostics_reader import DiagnosticsReader
from ros_graph import ROOT, TIMEOUT_S, Graph
from segment_five import picture, segment, send_until_one_is_answered

pytestmark = pytest.mark.ros

INNER = Path(__file__).with_name("segment_five.py")
# A peer in a process of its own, to be killed: receives masks or sends images until then.
_PEER = """
import json, sys, time
from dinov3_seg_ros.ros.transport import configure_transport
configure_transport()
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("doomed")
kind, topic = sys.argv[1:]
if kind == "subscriber":
    def say(mask):
        print(mask.header.frame_id, flush=True)
    node.create_subscription(Image, topic, say, qos_profile_sensor_data)
    rclpy.spin(node)
publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)
image = Image(height=60, width=80, encoding="rgb8", step=240)
image.data.frombytes(bytes(range(256)) * 56 + bytes(64))
image.header.frame_id = "doomed camera"
while True:
    publisher.publish(image)
    time.sleep(0.02)
"""


@pytest.fixture
def bundle(small_exported_bundle):
    return small_exported_bundle


@pytest.fixture
def graph(tmp_path):
    graph = Graph(tmp_path, shared_memory=False)
    yield graph
    graph.close()


@pytest.fixture
def start_peer(graph, tmp_path):
    """Starts a peer by its kind and topic; gives its process and the file of what it says."""
    started = []

    def start(kind, topic):
        said = tmp_path / f"peer_{len(started)}.txt"
        environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.domain), "PYTHONPATH": str(ROOT)}
        with said.open("wb") as file:
            started.append(subprocess.Popen([sys.executable, "-c", _PEER, kind, topic], stdout=file, env=environment))
        return started[-1], said

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_subscribers_may_come_late_and_leave_again(graph, bundle):
    node = graph.start_node(bundle=bundle.path)
    camera = graph.camera()
    camera.wait_for_subscriber()
    for _ in range(5):
        camera.send(camera.message(picture()))
        graph.spin_for(0.02)
    for _ in range(2):
        masks = graph.listen("segmentation/mask")
        graph.spin_until(lambda: graph.peer.count_subscribers("segmentation/mask"), "the subscription")
        send_until_one_is_answered(graph, camera, masks)
        for subscription in list(graph.peer.subscriptions):
            graph.peer.destroy_subscription(subscription)
    assert node.process.poll() is None


def test_a_killed_subscriber_does_not_stop_the_stream_to_others(graph, bundle, start_peer):
    graph.start_node(bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask", reliable=True)
    camera.wait_for_subscriber()
    process, said = start_peer("subscriber", "segmentation/mask")

    def send_until_both_hear():
        camera.send(camera.message(picture()))
        graph.spin_for(0.05)
        return said.read_text() and masks

    graph.spin_until(send_until_both_hear, "a mask in both subscribers")
    process.send_signal(signal.SIGKILL)
    process.wait()
    graph.spin_for(0.3)
    for seed in range(30):
        segment(graph, camera, masks, picture(seed))


def test_a_killed_camera_may_be_followed_by_another(graph, bundle, start_peer):
    graph.start_node(bundle=bundle.path)
    masks = graph.listen("segmentation/mask")
    process, _ = start_peer("publisher", "image")
    graph.spin_until(lambda: len(masks) > 5, "masks of the first camera")
    process.send_signal(signal.SIGKILL)
    process.wait()
    graph.spin_for(0.5)
    masks.clear()
    camera = graph.camera()
    camera.wait_for_subscriber()
    send_until_one_is_answered(graph, camera, masks)
    for seed in range(5):
        segment(graph, camera, masks, picture(seed))


def test_two_nodes_in_one_graph_do_not_disturb_each_other(graph, bundle):
    nodes = {name: graph.start_node(namespace=name, bundle=bundle.path) for name in ("a", "b")}
    cameras = {name: graph.camera(f"/{name}/image") for name in nodes}
    masks = {name: graph.listen(f"/{name}/segmentation/mask") for name in nodes}
    for camera in cameras.values():
        camera.wait_for_subscriber()
    for name, camera in cameras.items():
        send_until_one_is_answered(graph, camera, masks[name])
    masks["a"].clear(), masks["b"].clear()
    for _ in range(3):
        segment(graph, cameras["a"], masks["a"], picture())
    assert masks["b"] == []
    assert nodes["a"].change_state("deactivate")
    segment(graph, cameras["b"], masks["b"], picture())
    nodes["a"].end(signal.SIGKILL)
    for _ in range(3):
        segment(graph, cameras["b"], masks["b"], picture())


def test_a_node_killed_in_mid_stream_can_be_restarted(graph, bundle):
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    for _ in range(2):
        node = graph.start_node(bundle=bundle.path)
        masks.clear()
        send_until_one_is_answered(graph, camera, masks)
        for _ in range(20):
            camera.send(camera.message(picture()))
        node.end(signal.SIGKILL)


def test_every_frame_of_a_flood_is_counted_in_the_diagnostics(graph, bundle, monkeypatch):
    graph.start_node(bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    reader = DiagnosticsReader(graph)
    camera.wait_for_subscriber()
    send_until_one_is_answered(graph, camera, masks)
    before = reader.settled_counts()
    sent, send = [], camera.send
    monkeypatch.setattr(camera, "send", lambda message: sent.append(message) or send(message))
    for _ in range(300):
        camera.send(camera.message(picture()))
    graph.spin_for(0.5)
    camera.send_until_answered(camera.message(picture()), masks)
    after = reader.settled_counts()
    change = {key: after[key] - before.get(key, 0) for key in after}
    assert change["frames received"] + change["frames dropped by the transport"] == len(sent)
    assert change["frames received"] < len(sent), "a flood is more than the node can take"


@pytest.mark.parametrize(
    "mount",
    [
        # To the last byte it cannot be: LTTng, which ROS is built with, keeps two pages there, and dies without them.
        "mount -t tmpfs -o size=64k tmpfs /dev/shm; head -c 40k /dev/zero > /dev/shm/filling",
        "mount -t tmpfs -o ro tmpfs /dev/shm",
        "mount --bind {empty} /dev",
    ],
    ids=["full", "read-only", "absent"],
)
def test_the_node_segments_without_shared_memory(bundle, tmp_path, mount):
    """In a mount namespace of its own, so that the machine's /dev/shm stays as it is."""
    command = mount.format(empty=_folder_like_dev(tmp_path)) if "{empty}" in mount else mount
    for user in ([], ["--user", "--map-root-user"]):  # as it is, or as root of a user namespace
        prefix = ["unshare", *user, "--mount", "--propagation", "private", "sh", "-ec"]
        try:
            tried = subprocess.run([*prefix, command], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no program unshare here")
        if not tried.returncode:
            break
    else:
        pytest.skip(f"mounting is not permitted here: {tried.stderr.strip()}")
    script = [*prefix, f'{command}; exec "$0" "$@"', sys.executable, str(INNER), str(bundle.path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=240 + 3 * TIMEOUT_S)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {"answered": 5}


def _folder_like_dev(tmp_path):
    """A /dev with what a process needs, and without shm."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        try:
            os.mknod(folder / name, 0o666 | 0o020000, os.makedev(1, minor))
        except PermissionError:
            pytest.skip("making devices is not permitted here")
    return folder
