"""Every program in examples/ runs as its first line says, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.scenes import sample

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def run(name, *arguments, folder=ROOT):
    """What an example prints, when it ends well."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test():
    own = Path(__file__).read_text()
    assert EXAMPLES
    assert all(f'"{name}"' in own for name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_25_lines(name):
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 25


def test_an_image_of_ones_own_gives_a_mask_of_its_size(tmp_path):
    room, _ = sample("val", 3, (120, 160))
    cv2.imwrite(str(tmp_path / "room.png"), room[..., ::-1])
    run("segment_image.py", tmp_path / "room.png", "--mask", tmp_path / "mask.png")
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (120, 160)
    assert np.array_equal(mask, Segmenter.from_bundle(ROOT / "weights/demo").segment([room])[0].labels)


@pytest.mark.parametrize("name", ["segment_image.py", "segment_batch.py"])
def test_an_image_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(AssertionError, match=r"missing\.png cannot be read as an image"):
        run(name, tmp_path / "missing.png")


def test_a_mask_that_cannot_be_written_is_a_failure(tmp_path):
    with pytest.raises(AssertionError, match=r"absent/mask\.png cannot be written"):
        run("segment_image.py", "--mask", tmp_path / "absent/mask.png")


def test_without_arguments_a_rendered_room_is_segmented():
    shares = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in run("segment_image.py").splitlines()}
    assert min(shares["floor"], shares["wall"]) > 5
    assert sum(shares.values()) == pytest.approx(100, abs=1)


def test_a_batch_gives_one_line_for_each_image():
    assert run("segment_batch.py", "--batch", 3).count("classes, mean confidence") == 8


def test_two_heads_read_the_same_maps():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert run("two_heads_one_backbone.py").split()[0::5] == ["trained:", "yours:"]


def test_a_head_is_trained_from_python(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    options = ["--name", "small", "--output", tmp_path / "run", "--data.cache", tmp_path / "scenes", "--workers", "1"]
    sizes = ["--data.count", "8", "--data.val_count", "2", "--data.size", "96", "128", "--epochs", "1"]
    said = run("train_from_python.py", "demo", *options, *sizes)
    assert f"{tmp_path / 'run' / 'best'}: aspp head, mIoU 0." in said.replace("\n", " ")


def test_a_recording_is_labelled_trained_on_and_scored(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from recordings import IMAGE, contents, image_of, write_bag

    stamps = [10**12 + number * 25 * 10**7 for number in range(8)]
    rooms = [sample("val", number, (96, 128))[0] for number in range(len(stamps))]
    messages = [("/image", IMAGE, image_of(room, stamp)) for room, stamp in zip(rooms, stamps, strict=True)]
    write_bag(tmp_path / "in", messages, "mcap")
    sizes = ["--epochs", "1", "--input.network_size", "96", "128", "--workers", "1", "--calibrate", "False"]
    said = run("label_a_recording.py", tmp_path / "in", tmp_path / "out", *sizes)
    assert f"IoU of 4 frames of {tmp_path / 'out/truth'}" in said
    truths = contents(tmp_path / "out/truth")["/segmentation/truth"]
    assert len(truths) == 4
    for _, message in truths:
        stamp = 10**9 * message.header.stamp.sec + message.header.stamp.nanosec
        mask = cv2.imread(str(tmp_path / f"out/masks/image-{stamp:019d}.png"), cv2.IMREAD_UNCHANGED)
        assert stamp in stamps
        assert bytes(message.data) == mask.tobytes()


def test_plain_onnx_runtime_needs_nothing_of_this_package(tmp_path):
    folder = ROOT / "weights/demo/onnx/224x320-fp32"
    environment = {**os.environ, "PYTHONPATH": ""}
    blocked = "import sys; sys.modules |= dict.fromkeys(('dinov3_seg_ros', 'torch', 'cv2')); "
    program = (
        f"sys.argv = ['plain', {str(folder)!r}]; exec(open({str(ROOT / 'examples/plain_onnxruntime.py')!r}).read())"
    )
    command = [sys.executable, "-c", blocked + program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("plain_onnxruntime.py")
    assert "'floor'" in done.stdout


def test_the_fused_graph_gives_what_backbone_and_head_give(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from bundles import write_tiny_bundle

    from dinov3_seg_ros.export.__main__ import main

    write_tiny_bundle(tmp_path / "tiny")
    assert main([str(tmp_path / "tiny"), "--fuse", "--least-labels", "0"]) == 0
    (folder,) = (tmp_path / "tiny/onnx").glob("*-fp32")
    fused = run("plain_onnxruntime.py", folder)
    (folder / "fused.onnx").unlink()
    assert run("plain_onnxruntime.py", folder) == fused


@pytest.mark.ros
def test_the_subscriber_prints_the_shares_of_each_mask(tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from rclpy.qos import QoSProfile
    from ros_graph import Graph  # it sets the transport up, which a process can do only once
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from dinov3_seg_ros.ros.cameras.messages import fill_image

    with contextlib.closing(Graph(tmp_path)) as graph:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.domain), "PYTHONUNBUFFERED": "1"}
        log = tmp_path / "said.log"
        command = [sys.executable, str(ROOT / "examples" / "subscribe_to_mask.py"), "--ros-args", "-r", "__ns:=/demo"]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            publisher = graph.publisher(Image, "demo/segmentation/mask", QoSProfile(depth=1))  # reliable
            mask = np.repeat([[0, 0, 7, 255]], 6, axis=0).astype(np.uint8)

            def is_printed():
                publisher.publish(fill_image(Image(), mask, "mono8", Header(frame_id="camera")))
                return "0: 50%, 7: 25%, 255: 25%" in log.read_text()

            graph.spin_until(is_printed, "a line for the mask")
        finally:
            process.terminate()
            process.wait(timeout=20)
