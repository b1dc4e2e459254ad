"""The demo: its sources, its yardstick, and the whole of it as three processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exported_bundles import write_exported_bundle
from full_disk import full_disk
from ros_domain import TIMEOUT_S, claimed_domain

from dinov3_seg_ros import scenes
from dinov3_seg_ros.demo.colour_baseline import ColourClassifier
from dinov3_seg_ros.frames.order import in_order
from dinov3_seg_ros.frames.sources import open_source
from dinov3_seg_ros.frames.video import Video, new_video
from dinov3_seg_ros.support.errors import DatasetError, OutputError, TransportError


def test_a_colour_classifier_learns_colours_and_ignores_void():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = (200, 30, 30)
    mask = np.array([[1] * 4] * 2 + [[0] * 4] * 2, np.uint8)
    mask[0, 0] = 255
    colours = ColourClassifier(2)
    colours.fit(image, mask)
    assert np.array_equal(colours.predict(image), [[1] * 4] * 2 + [[0] * 4] * 2)
    assert colours.predict(np.full((1, 1, 3), 120, np.uint8))[0, 0] == 0, "an unseen colour gives the commonest class"


@pytest.mark.parametrize(
    "names",
    [
        ["a 2/frame_9", "a 2/frame_009_b", "a 2/frame_10", "a 2/kitchen", "a 10/frame_9"],
        ["scene_1.9.png", "scene_1.10.png"],
        # Decimal seconds, as Python writes floats.
        ["1700000000.png", "1700000000.050.png", "1700000000.25.png", "1700000000.5.png", "1700000001.png"],
        # Seconds and nanoseconds, with zeros at the front and without.
        ["1700000000.033333333.png", "1700000000.133333333.png", "1700000000.233333333.png"],
        ["1700000000.33333333.png", "1700000000.133333333.png", "1700000000.233333333.png", "1700000001.0.png"],
    ],
)
def test_numbers_in_names_are_ordered_as_numbers(names):
    assert in_order(reversed(names), str) == names


@pytest.mark.parametrize("source", ["{}/images", "~/images"])  # no shell expands the latter in `source:=~/images`
def test_a_folder_is_played_in_order_with_its_masks(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for value in (10, 9):
        cv2.imwrite(str(tmp_path / "images" / f"{value}.png"), np.full((6, 8, 3), (value, 0, 0), np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / f"{value}.png"), np.full((6, 8), value, np.uint8))
    frames = list(open_source(source.format(tmp_path), tmp_path / "masks"))
    assert [int(rgb[0, 0, 2]) for rgb, _ in frames] == [9, 10]
    assert [int(mask[0, 0]) for _, mask in frames] == [9, 10]


@pytest.fixture
def images(tmp_path):
    """A folder of an image: for rooms, the demo would fit its colour classifier first."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "grey.png"), np.full((96, 128, 3), 100, np.uint8))
    return tmp_path / "images"


def write_kelvins(folder):
    """A folder with an image of a thermal camera; returns the picture that 28000 to 30040 make of it."""
    grey = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None], 96, axis=0)
    folder.mkdir()
    cv2.imwrite(str(folder / "room.png"), 28000 + 8 * grey.astype(np.uint16))
    return grey


def test_16_bit_images_of_a_folder_are_scaled_by_the_given_range(tmp_path):
    grey = write_kelvins(tmp_path / "images")
    with pytest.raises(DatasetError, match="set value_range"):
        next(open_source(str(tmp_path / "images")))
    ((rgb, _),) = open_source(str(tmp_path / "images"), value_range=(28000, 30040))
    assert np.array_equal(rgb, np.dstack(3 * [grey]))


def test_a_video_is_played_to_its_end(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), 100, np.uint8))
    writer.release()
    assert len(list(open_source(str(tmp_path / "video.mp4")))) == 5


def test_a_video_without_a_frame_is_named(tmp_path):
    video = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    content = video.read_bytes()
    video.write_bytes(content[: content.index(b"movi") + 4])
    with pytest.raises(DatasetError, match=r"video\.avi gives no frame; is the file whole"):
        next(open_source(str(video)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.mp4", "'nowhere.mp4': there is no such file or folder; give a folder of images, a video"),
        (os.devnull, f"'{os.devnull}' is not a folder of images, a video"),
    ],
)
def test_a_source_that_is_none_is_named(source, said):
    with pytest.raises(DatasetError, match=said):
        next(open_source(source))


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo, os.mkdir])
def test_a_mask_that_is_no_file_is_named(make, tmp_path):
    (tmp_path / "masks").mkdir()
    make(tmp_path / "masks" / "a.png")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"masks/a\.png is missing"):
        list(open_source(str(tmp_path), tmp_path / "masks"))


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16), np.zeros((2, 4), np.uint8)]
)
def test_a_mask_that_holds_no_class_ids_of_its_image_is_named(tmp_path, mask):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask)
    with pytest.raises(DatasetError, match=r"masks/a\.png is no mask of class ids for its image"):
        list(open_source(str(tmp_path), tmp_path / "masks"))


@pytest.mark.ros
def test_all_options_reach_the_node_as_parameters(monkeypatch, tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from dinov3_seg_ros.demo import __main__ as demo

    given = []
    monkeypatch.setattr(demo, "_run", lambda options, parameters: given.append(parameters))
    monkeypatch.setattr(demo, "_print_summary", lambda summary, output: None)
    line = "--runtime onnx --network-size 64 96 --threads 2 --confidence-threshold 0.5 --providers CPUExecutionProvider"
    assert demo.main(line.split()) == demo.main(["--no-overlay-names"]) == 0
    assert given == [
        {
            "runtime": "onnx", "network_size": [64, 96], "threads": 2, "confidence_threshold": 0.5,
            "providers": ["CPUExecutionProvider"], "overlay_names": True,
        },
        {},
    ]  # fmt: skip


@pytest.mark.ros
@pytest.mark.parametrize("source", ["", "overlay.mp4"])
def test_the_demo_refuses_to_show_what_it_would_replace(source, tmp_path, capsys):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from dinov3_seg_ros.demo import __main__ as demo

    for name in ("overlay.mp4", "overlay_0020.png"):
        (tmp_path / name).write_bytes(b"of the last run")
    assert demo.main(["--source", str(tmp_path / source), "--output", str(tmp_path)]) == 1
    assert "choose another folder with --output" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "overlay.mp4": b"of the last run",
        "overlay_0020.png": b"of the last run",
    }


@pytest.mark.ros
def test_demos_side_by_side_measure_each_its_own_stream_and_keep_pictures(tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    bundle = write_exported_bundle(tmp_path / "tiny", class_names=scenes.CLASS_NAMES, network_size=(64, 96))
    command = [sys.executable, "-m", "dinov3_seg_ros.demo", "--bundle", str(bundle.path)]
    command += ["--seconds", "6", "--rate", "10", "--size", "96", "128"]
    outputs, runs = [tmp_path / name for name in ("one", "other")], []
    with claimed_domain() as domain, contextlib.ExitStack() as stack:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        for output in outputs:
            run = subprocess.Popen(
                [*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=environment,
            )  # fmt: skip
            stack.callback(run.kill)
            runs.append(run)
        said = [run.communicate(timeout=150 + 2 * TIMEOUT_S)[0] for run in runs]
    for output, run, text in zip(outputs, runs, said, strict=True):
        assert run.returncode == 0, text
        summary = json.loads((output / "summary.json").read_text())
        sent = int((output / "camera.log").read_text().split("sent ")[1].split()[0])
        assert summary["images"] == summary["masks"] + summary["dropped"]
        assert 20 <= summary["masks"] <= summary["images"] <= sent, "the first picture is kept of the 20th overlay"
        assert summary["headers_altered"] == summary["unmatched"] == 0
        assert summary["scored"] == summary["masks"]
        assert 0 < summary["latency_ms"]["median"] <= summary["latency_ms"]["p95"]
        # Random weights know nothing and colours tell little: low scores show that scores are measured.
        assert 0 <= summary["miou"] < 0.3
        assert 0 < summary["colour_classifier_miou"] < 0.45
        assert "mIoU of the received masks" in text
        assert cv2.imread(str(next(output.glob("overlay_*.png")))).shape == (96, 2 * 128, 3)
        video = cv2.VideoCapture(str(output / "overlay.mp4"))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == summary["overlays"]


@pytest.mark.ros
@pytest.mark.parametrize(
    ("values", "refusal", "doubt"),
    [
        ([0, 1, 255], "", ""),
        ([0, 255], "", "hold nothing but 0 and 255: only pixels of 'floor' are scored"),
        ([0, 128, 200, 255], "holds 128, 200, which are no classes of the bundle: its classes are 0 to 1", ""),
    ],
)
def test_given_masks_are_checked_for_being_class_ids(values, refusal, doubt, tmp_path):
    rclpy = pytest.importorskip("rclpy", reason="no ROS 2 here")
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from dinov3_seg_ros.demo.recorder import Recorder
    from dinov3_seg_ros.ros.cameras.messages import fill_image

    truth = fill_image(Image(), np.array([values], np.uint8), "mono8", Header())
    with claimed_domain() as domain:
        rclpy.init(args=[], domain_id=domain)
        try:
            video = Video(tmp_path / "overlay.mp4", 10.0)
            recorder = Recorder("demo", ["floor", "wall"], None, tmp_path, video, masks=tmp_path / "masks")
            with pytest.raises(DatasetError, match=f"masks {refusal}") if refusal else contextlib.nullcontext():
                recorder._on_truth(truth)
            assert doubt in recorder.doubt and bool(doubt) == bool(recorder.doubt)
            recorder.destroy_node()
        finally:
            rclpy.try_shutdown()


@pytest.mark.ros
@pytest.mark.parametrize(
    ("names", "scored", "doubt"),
    [(list(scenes.CLASS_NAMES), 1, ""), (["floor", "wall"], 0, "classes are not those of the synthetic rooms")],
)
def test_rooms_are_scored_for_a_bundle_of_their_classes_alone(names, scored, doubt, tmp_path):
    rclpy = pytest.importorskip("rclpy", reason="no ROS 2 here")
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from dinov3_seg_ros.demo.recorder import Recorder
    from dinov3_seg_ros.ros.cameras.messages import fill_image

    mask = fill_image(Image(), np.array([[0, 1]], np.uint8), "mono8", Header())
    with claimed_domain() as domain:
        rclpy.init(args=[], domain_id=domain)
        try:
            recorder = Recorder("demo", names, None, tmp_path, Video(tmp_path / "overlay.mp4", 10.0))
            recorder._on_truth(mask)
            recorder._on_mask(mask)
            summary = recorder.summary()
            assert summary["scored"] == scored
            assert (summary["miou"] is not None) == bool(scored)
            assert doubt in recorder.doubt and bool(doubt) == bool(recorder.doubt)
            recorder.destroy_node()
        finally:
            rclpy.try_shutdown()


@pytest.mark.ros
def test_the_recorder_tells_of_a_full_disk(tmp_path):
    rclpy = pytest.importorskip("rclpy", reason="no ROS 2 here")
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from dinov3_seg_ros.demo.recorder import Recorder
    from dinov3_seg_ros.ros.cameras.messages import fill_image

    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with claimed_domain() as domain:
        rclpy.init(args=[], domain_id=domain)
        try:
            recorder = Recorder("demo", ["floor"], None, tmp_path, Video(tmp_path / "overlay.mp4", 10.0))
            image = fill_image(Image(), noise, "rgb8", Header())
            recorder._on_image(image)
            with full_disk(1000), pytest.raises(OutputError, match=r"overlay_0020\.png cannot be written .*--output"):
                for _ in range(40):
                    recorder._on_overlay(image)
            recorder.destroy_node()
        finally:
            rclpy.try_shutdown()
    assert list(tmp_path.glob("overlay_*.png")) == []


@pytest.mark.parametrize("sizes", [((48, 64), (64, 48), (48, 64)), 3 * ((60, 9000),)])
def test_a_video_holds_pictures_of_all_sizes(sizes, tmp_path):
    with new_video(tmp_path / "overlay.mp4", 10.0) as video:
        for height, width in sizes:
            video.write(np.zeros((height, width, 3), np.uint8))
    assert cv2.VideoCapture(str(tmp_path / "overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize("pictures", [0, 40])
def test_a_video_that_cannot_be_whole_does_not_appear(pictures, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (pictures, 48, 64, 3), np.uint8)
    cannot = pytest.raises(OutputError, match=r"overlay\.mp4 cannot be written .*--output")
    with full_disk(20_000), cannot, new_video(tmp_path / "overlay.mp4", 10.0) as video:
        for picture in noise:
            video.write(picture)
    assert not list(tmp_path.iterdir())


class Heard:
    """What the recorder has heard of a node."""

    heard_node = node_subscribes = received = False


@pytest.mark.ros
def test_models_are_waited_for_and_silence_is_not(monkeypatch, tmp_path, capsys):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from dinov3_seg_ros.demo import __main__ as demo

    now, node = [100.0], Heard()
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: now[0]))  # all other clocks go on
    patience = demo._Patience(node, tmp_path)

    def after(seconds, fault=""):
        now[0] += seconds
        with pytest.raises(TransportError, match=fault) if fault else contextlib.nullcontext():
            patience.check()

    after(90)
    after(1, fault="nothing was heard of the segmentation node within 90 s")
    node.heard_node = True
    after(10_000)
    after(10_000)
    assert capsys.readouterr().out == "waiting for the models\n"
    node.node_subscribes = True
    after(10_000)
    after(90)
    after(1, fault="no mask arrived within 90 s after the node had loaded its models")
    node.received = True
    after(10_000)


# A node whose models take longer than it takes to say so.
SLOW_NODE = """
import time
from dinov3_seg_ros import node
from dinov3_seg_ros.ros.model_loader import Segmenter
warm_up = Segmenter.warm_up
Segmenter.warm_up = lambda segmenter: (time.sleep(3), warm_up(segmenter))
node.main()
"""
# The demo, with a node that a script stands for.
DEMO = """
import sys
from dinov3_seg_ros.demo import __main__ as demo
timeout_s, script = sys.argv[1:3]
command = demo._node_command
demo._START_TIMEOUT_S = float(timeout_s)
demo._node_command = lambda *given: [sys.executable, "-c", script, *command(*given)[3:]]
sys.exit(demo.main(sys.argv[3:]))
"""


@pytest.mark.ros
def test_the_demo_tells_of_slow_models_and_takes_the_range_of_the_bundle(tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(64, 96), value_range=(28000, 30040))
    grey, output = write_kelvins(tmp_path / "images"), tmp_path / "output"
    output.mkdir()
    for name in ("overlay_0940.png", "overlay_room.png"):
        (output / name).touch()
    command = [sys.executable, "-c", DEMO, str(TIMEOUT_S), SLOW_NODE, "--bundle", str(bundle.path)]
    command += ["--output", str(output), "--source", str(tmp_path / "images"), "--loop"]
    command += ["--seconds", "6", "--rate", "10"]
    with claimed_domain() as domain:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150 + 2 * TIMEOUT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("waiting for the models\n") == 1
    pictures = {path.name: cv2.imread(str(path)) for path in output.glob("overlay_*.png")}
    assert {"overlay_0020.png", "overlay_room.png"} <= pictures.keys()
    assert "overlay_0940.png" not in pictures, "pictures of an earlier demo are removed"
    assert np.array_equal(pictures["overlay_0020.png"][:, : grey.shape[1]], np.dstack(3 * [grey]))


@pytest.mark.ros
def test_the_demo_does_not_wait_for_a_node_that_says_nothing(images, tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(64, 96))
    command = [sys.executable, "-c", DEMO, "2", "import time; time.sleep(600)"]
    command += ["--bundle", str(bundle.path), "--output", str(tmp_path / "output"), "--source", str(images)]
    with claimed_domain() as domain:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 + 3 * TIMEOUT_S)
    assert run.returncode == 1
    assert "nothing was heard of the segmentation node within 2 s" in run.stderr
    assert "waiting" not in run.stdout


def _as_in_the_background_of_a_script():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.ros
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_without_a_traceback(number, images, tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(64, 96))
    command = [sys.executable, "-c", DEMO, "600", "import time; time.sleep(600)"]
    command += ["--bundle", str(bundle.path), "--output", str(tmp_path / "output"), "--source", str(images)]
    log = tmp_path / "output" / "camera.log"
    with claimed_domain() as domain:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        run = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_as_in_the_background_of_a_script
        )
        deadline = time.monotonic() + 60 + TIMEOUT_S
        while not (log.exists() and "waiting until" in log.read_text()):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(number)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "demo: interrupted"
    assert "Traceback" not in said
    assert not list((tmp_path / "output").glob("*.mp4"))


@pytest.mark.ros
def test_a_camera_waits_for_subscribers_as_long_as_it_is_told(capsys):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from dinov3_seg_ros.demo import player

    assert player.main(["--help"]) == 0
    assert "how long to wait for them (default: 3600.0)" in " ".join(capsys.readouterr().out.split()), "for the models"
    command = [sys.executable, "-m", "dinov3_seg_ros.demo.player", "--patience", "1"]
    with claimed_domain() as domain:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 + 3 * TIMEOUT_S)
    assert run.returncode == 1
    assert "waiting until 1 node subscribes to /image" in run.stdout
    assert "0 of 1 subscribers to /image appeared within 1 s" in run.stderr


@pytest.mark.ros
def test_a_demo_that_cannot_run_says_why(images, tmp_path, capsys):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(64, 96))
    picture = tmp_path / "o" / "overlay_0020.png"
    picture.parent.mkdir()
    picture.write_bytes(b"of the last run")
    of_tiny = ["--bundle", str(bundle.path), "--source"]
    from dinov3_seg_ros.demo import __main__ as demo

    for options, said in (
        (["--bundle", str(tmp_path)], "holds no bundle.json"),
        ([*of_tiny, str(tmp_path / "nowhere")], "there is no such file or folder"),
    ):
        assert demo.main(["--output", str(tmp_path / "o"), *options]) == 1
        assert said in capsys.readouterr().err
        assert picture.exists()
    for options, said in (
        ([*of_tiny, "999999"], "the camera ended: player: error: "),
        ([*of_tiny, str(images), "--precision", "int8"], "no runtime can be used"),
    ):
        command = [sys.executable, "-m", "dinov3_seg_ros.demo", "--output", str(tmp_path / "o"), *options]
        with claimed_domain() as domain:
            environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
            run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 + 3 * TIMEOUT_S)
        assert run.returncode == 1
        assert said in run.stderr
        assert "Traceback" not in run.stderr
        assert not picture.exists()
