"""Predictions: what is written of images, folders and videos, and what is said of files that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from bundles import write_tiny_bundle
from PIL import Image
from recordings import IMAGE, hide_first_topic, image, write_bag

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.frames.overlay import blend_overlay
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.choice import open_runtime
from dinov3_seg_ros.segmenter import Segmenter
from training import pre_label
from training import predict as command
from training.data.labelled_folder import AutoData
from training.evaluation.inference import AveragingSegmenter, Inference
from training.prediction.inputs import open_input
from training.unlabelled.images import open_images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network_size=(64, 96))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def predict(bundle: Bundle, source: Path, output: Path, *options: object) -> int:
    return command.main([str(bundle.path), str(source), "--output", str(output), *map(str, options)])


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def written(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def test_an_image_gives_its_labels_and_an_overlay(bundle, tmp_path, capsys):
    image = picture(50, 70)
    Image.fromarray(image).save(tmp_path / "room.png")
    assert predict(bundle, tmp_path / "room.png", tmp_path / "out", "--names", "False") == 0
    assert written(tmp_path / "out") == {"masks/room.png", "overlays/room.jpg", "summary.json"}
    labels = Segmenter.from_bundle(bundle.path).segment([image])[0].labels
    assert len(np.unique(labels)) > 1
    mask = np.array(Image.open(tmp_path / "out" / "masks" / "room.png"))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, labels)
    overlay = np.array(Image.open(tmp_path / "out" / "overlays" / "room.jpg"))
    expected = blend_overlay(image, labels, bundle.manifest.classes.palette)
    assert np.abs(overlay.astype(int) - expected).mean() < 8, "JPEG loses a little"
    said = summary(tmp_path / "out")
    assert said["frames"] == 1
    assert said["classes"] == bundle.manifest.classes.names
    assert 0 < said["frames_per_second"] <= said["segmenting_frames_per_second"]
    assert "1 segmented" in capsys.readouterr().out


def test_the_models_are_released_at_the_end(bundle, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Segmenter, "close", lambda self: closed.append(self))
    Image.fromarray(picture(50, 70)).save(tmp_path / "room.png")
    assert predict(bundle, tmp_path / "room.png", tmp_path / "out") == 0
    assert len(closed) == 1
    words = [tmp_path / "room.png", "--bundle", bundle.path, bundle.path, "--output", tmp_path / "labels"]
    assert pre_label.main([*map(str, words)]) == 0
    assert len(closed) == 3


def test_only_the_outputs_asked_for_are_written(bundle, tmp_path):
    image = picture(50, 70)
    Image.fromarray(image).save(tmp_path / "room.png")
    options = ("--confidence", "True", "--masks", "False", "--overlays", "False", "--runtime", "torch")
    assert predict(bundle, tmp_path / "room.png", tmp_path / "out", *options) == 0
    assert written(tmp_path / "out") == {"confidence/room.png", "summary.json"}
    expected = Segmenter.from_bundle(bundle.path, runtime="torch").segment([image])[0].confidence
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "confidence" / "room.png")), expected)


def test_classes_beyond_255_are_written_with_16_bits(tmp_path):
    large = write_tiny_bundle(tmp_path / "large", num_classes=300, network_size=(64, 64))
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    assert predict(large, tmp_path / "a.png", tmp_path / "out") == 0
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint16
    assert mask.max() > 255


def test_other_views_are_averaged_as_in_evaluation(bundle, tmp_path):
    image = picture(80, 70)
    Image.fromarray(image).save(tmp_path / "a.png")
    views = ("--inference.mode", "slide", "--inference.flip", "True")
    assert predict(bundle, tmp_path / "a.png", tmp_path / "out", "--runtime", "torch", *views) == 0
    averaging = AveragingSegmenter(
        bundle, open_runtime([bundle], ComputeOptions(runtime="torch"))[0], Inference(mode="slide", flip=True)
    )
    mask = np.array(Image.open(tmp_path / "out" / "masks" / "a.png"))
    assert np.array_equal(mask, averaging.segment([image])[0].labels)
    assert not np.array_equal(mask, Segmenter.from_bundle(bundle.path).segment([image])[0].labels)


def test_pictures_of_formats_that_are_not_read_are_counted(bundle, tmp_path, caplog, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(40, 60)).save(folder / "a.jfif", "JPEG")
    assert predict(bundle, folder, tmp_path / "out") == 0
    assert "masks/a.png" in written(tmp_path / "out") and not caplog.messages
    for name in ("b.HEIC", "c.heic", "d.gif"):
        (folder / name).write_bytes(b"a picture")
    said = f"{folder} holds pictures that are not read (2 .heic, 1 .gif); convert them to JPEG or PNG"
    for listed in (lambda: open_images(folder).take(), lambda: open_input(str(folder)).source().frames):
        caplog.clear()
        assert len(list(listed())) == 1
        assert caplog.messages == [said]
    (folder / "a.jfif").unlink()
    assert predict(bundle, folder, tmp_path / "none") == 1
    assert said in capsys.readouterr().err


def test_subfolders_are_kept_and_unreadable_images_reported(bundle, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "day").mkdir(parents=True)
    Image.fromarray(picture(40, 60)).save(folder / "day" / "a.jpg")
    Image.fromarray(picture(40, 60, seed=1)).save(folder / "b.png")
    (folder / "broken.jpg").write_bytes((folder / "day" / "a.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    assert predict(bundle, folder, tmp_path / "out") == 1
    assert written(tmp_path / "out") == {
        "masks/b.png", "masks/day/a.png", "overlays/b.jpg", "overlays/day/a.jpg", "summary.json",
    }  # fmt: skip
    said = capsys.readouterr()
    assert f"skipped: {folder / 'broken.jpg'} cannot be read as an image" in said.err
    assert "2 segmented" in said.out
    assert "1 skipped" in said.out
    assert list(summary(tmp_path / "out")["unreadable"]) == [str(folder / "broken.jpg")]


def test_16_bit_images_are_seen_as_the_bundle_says(bundle, tmp_path):
    thermal, folder = shutil.copytree(bundle.path, tmp_path / "thermal"), tmp_path / "images"
    manifest = json.loads((thermal / "bundle.json").read_text())
    manifest["input"]["value_range"] = [28000, 30040]
    (thermal / "bundle.json").write_text(json.dumps(manifest))
    folder.mkdir()
    assert cv2.imwrite(str(folder / "a.png"), 28000 + 8 * picture(48, 64)[..., ::-1].astype(np.uint16))
    expected = Segmenter.from_bundle(bundle.path).segment([picture(48, 64)])[0].labels
    assert predict(load_bundle(thermal), folder, tmp_path / "out", "--overlays", False) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out/masks/a.png")), expected)
    exact = ("--format", "coco", "--shapes", "masks", "--least_area", 0, "--threshold", 0)
    line = [folder, "--bundle", thermal, "--output", tmp_path / "labelled", "--runtime", "torch", *exact]
    assert pre_label.main([*map(str, line)]) == 0
    section = AutoData.model_validate(json.loads((tmp_path / "labelled/pre_label.json").read_text())["data"])
    assert np.array_equal(section.open_all().mask(0), expected)


@pytest.fixture
def video(tmp_path) -> Path:
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 24, (64, 48))
    for seed in range(5):
        writer.write(picture(48, 64, seed))
    writer.release()
    return tmp_path / "drive.mp4"


def test_a_video_gives_numbered_masks_and_a_video_like_it(bundle, tmp_path, video):
    assert predict(bundle, video, tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"overlay.mp4", "summary.json", *(f"masks/{n:06d}.png" for n in range(5))}
    overlay = cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4"))
    assert overlay.get(cv2.CAP_PROP_FPS) == 24
    assert overlay.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert overlay.read()[1].shape == (48, 64, 3)


def test_the_first_frames_and_another_rate_can_be_asked_for(bundle, tmp_path, video):
    assert predict(bundle, video, tmp_path / "out", "--frames", 2, "--rate", 5) == 0
    overlay = cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4"))
    assert (overlay.get(cv2.CAP_PROP_FPS), overlay.get(cv2.CAP_PROP_FRAME_COUNT)) == (5, 2)
    assert summary(tmp_path / "out")["frames"] == 2


def test_a_video_flickers_less_when_it_is_smoothed_in_batches_too(bundle, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "still.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 96))
    rng, still = np.random.default_rng(2), picture(96, 128).astype(int)
    for _ in range(6):
        writer.write(np.clip(still + rng.normal(0, 20, still.shape), 0, 255).astype(np.uint8))
    writer.release()
    found = {}
    for weight, batch in ((0, 1), (0.8, 1), (0.8, 2)):
        output = tmp_path / f"out_{weight}_{batch}"
        options = ("--flicker", True, "--temporal_smoothing", weight, "--max-batch", batch)
        assert predict(bundle, tmp_path / "still.mp4", output, *options) == 0
        found[weight, batch] = summary(output)["flicker"]
    assert 0 < found[0.8, 1] == found[0.8, 2] < found[0, 1]


@pytest.mark.parametrize("options", [("--temporal_smoothing", 0.5), ("--flicker", True)])
@pytest.mark.parametrize("cluster", [(), ("--cluster", "auto")])
def test_images_that_are_no_stream_are_not_smoothed(bundle, tmp_path, capsys, options, cluster):
    Image.fromarray(picture(50, 70)).save(tmp_path / "room.png")
    assert predict(bundle, tmp_path / "room.png", tmp_path / "out", *options, *cluster) == 1
    assert "are for a video or a webcam" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recording_is_not_smoothed_in_silence(bundle, tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [("/image", IMAGE, image(number)) for number in range(2)])
    assert predict(bundle, bag, tmp_path / "out", "--temporal_smoothing", 0.5) == 1
    assert "`python -m dinov3_seg_ros.bag` steadies the masks of a recording" in capsys.readouterr().err


@pytest.mark.parametrize("cluster", [(), ("--cluster", "auto", "--partition", 2)])
def test_a_recording_that_hides_messages_is_refused_at_once(bundle, tmp_path, capsys, cluster):
    bag = write_bag(tmp_path / "bag", [("/image", IMAGE, image(number)) for number in range(4)])
    hide_first_topic(bag)
    assert predict(bundle, bag, tmp_path / "out", *cluster) == 1
    assert "states 4 messages on /image, but 0 could be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_batches_of_a_video_give_the_masks_of_single_frames(bundle, tmp_path, video):
    for output, options in (("single", ()), ("batches", ("--max-batch", 2, "--frames", 3))):
        assert predict(bundle, video, tmp_path / output, *options) == 0
    assert summary(tmp_path / "batches")["frames"] == 3
    for number in range(3):
        masks = [tmp_path / output / "masks" / f"{number:06d}.png" for output in ("single", "batches")]
        assert masks[0].read_bytes() == masks[1].read_bytes()


def test_options_may_stand_before_bundle_and_input(bundle, tmp_path):
    Image.fromarray(picture(50, 70)).save(tmp_path / "room.png")
    line = ["--runtime", "torch", str(bundle.path), "--network-size", "32", "64", "--output", str(tmp_path / "out")]
    assert command.main([*line, "--overlays", "False", str(tmp_path / "room.png")]) == 0
    assert written(tmp_path / "out") == {"masks/room.png", "summary.json"}
    assert summary(tmp_path / "out")["settings"]["network_size"] == [32, 64]


def test_an_interrupted_stream_keeps_what_was_written(bundle, tmp_path, video, monkeypatch):
    opened = command.open_input(str(video))
    whole = opened.source().frames

    def interrupted():
        yield next(whole)
        yield next(whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "source", lambda: command.Source(interrupted(), None, 24.0))
    monkeypatch.setattr(command, "open_input", lambda *_: opened)
    assert predict(bundle, video, tmp_path / "out") == 130
    assert cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert summary(tmp_path / "out")["interrupted"]


def test_ctrl_c_while_a_frame_is_written_keeps_the_video(bundle, tmp_path, video, monkeypatch):
    whole = cv2.VideoWriter

    class Interrupted:
        fourcc = whole.fourcc

        def __init__(self, *options):
            self._writer, self._pictures = whole(*options), 0
            self.release = self._writer.release

        def write(self, picture):
            self._writer.write(picture)
            self._pictures += 1
            if self._pictures == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "VideoWriter", Interrupted)
    assert predict(bundle, video, tmp_path / "out") == 130
    assert cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert summary(tmp_path / "out")["interrupted"]


def test_an_output_folder_in_use_is_refused(bundle, tmp_path, capsys):
    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert predict(bundle, tmp_path / "a.png", tmp_path / "out") == 1
    assert "exists already" in capsys.readouterr().err
    assert written(tmp_path / "out") == {"mine.txt"}


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def two_of_a_name(path: Path) -> Path:
    path.mkdir()
    for suffix in (".png", ".jpg"):
        Image.fromarray(picture(8, 8)).save(path / f"a{suffix}")
    return path


def no_video(path: Path) -> Path:
    path.with_suffix(".mp4").write_bytes(b"no video")
    return path.with_suffix(".mp4")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: path, [], "there is no such file or folder; give an image, a folder of images, a recording"),
        (lambda path: path, ["--topics", "/a"], "there is no such file or folder"),
        (empty_folder, [], ".webp); give a folder of images"),
        (two_of_a_name, [], "would have the same mask"),
        (no_video, [], "cannot be opened"),
    ],
    ids=["nowhere", "no recording", "empty folder", "same stem", "no video"],
)
def test_unusable_input_is_one_message_and_leaves_no_files(bundle, tmp_path, capsys, make, options, message):
    assert predict(bundle, make(tmp_path / "input"), tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not written(tmp_path / "out")


def test_a_full_disk_is_reported(bundle, tmp_path, capsys, monkeypatch):
    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert predict(bundle, tmp_path / "a.png", tmp_path / "out") == 1
    assert "cannot be written ([Errno 28] No space left" in capsys.readouterr().err
    assert not written(tmp_path / "out")


def test_a_video_that_holds_less_than_was_written_is_reported(bundle, tmp_path, capsys, monkeypatch, video):
    monkeypatch.setattr("dinov3_seg_ros.frames.video.video_rate", lambda path: (24.0, 3))
    assert predict(bundle, video, tmp_path / "out", "--masks", "False") == 1
    assert "it holds 3 of 5 frames" in capsys.readouterr().err
    assert not written(tmp_path / "out")
