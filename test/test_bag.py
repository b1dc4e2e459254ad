"""Recordings get the outputs of the node, and lose nothing."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from exported_bundles import write_exported_bundle
from full_disk import full_disk
from graphs import write_graphs

pytest.importorskip("rosbags", reason="rosbags is not installed")

from recordings import (
    COMPRESSED,
    IMAGE,
    SIZE,
    TEXT,
    TYPES,
    compressed,
    contents,
    header,
    hide_first_topic,
    image,
    image_of,
    metadata_of,
    picture,
    pixels,
    raw_contents,
    write_bag,
    write_metadata,
)
from rosbags import rosbag1
from rosbags.rosbag2 import CompressionMode, Reader, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dinov3_seg_ros.bag import __main__ as command
from dinov3_seg_ros.bag import outputs as bag
from dinov3_seg_ros.bag.outputs import BagSegmenter
from dinov3_seg_ros.bag.recordings import messages_of, open_recording
from dinov3_seg_ros.frames.overlay import blend_overlay
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, OutputError, ParameterError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32), seed=8)


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter.from_bundle(bundle.path, max_batch=2)


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_outputs_keep_header_and_time_of_their_image(segmenter, tmp_path, storage):
    text = TYPES.types[TEXT](data="hello")
    messages = [("/front/image", IMAGE, image(number, padding=5)) for number in range(5)]
    messages.insert(2, ("/text", TEXT, text))
    source = write_bag(tmp_path / "in", messages, storage)
    counts = BagSegmenter(segmenter, outputs=bag.OUTPUTS).process(source, tmp_path / "out")
    assert counts == {"segmented": 5}
    before, after = contents(source), contents(tmp_path / "out")
    palette = segmenter.manifests["tiny"].classes.palette
    assert (tmp_path / "out" / f"out{'.db3' if storage == 'sqlite3' else '.mcap'}").exists()
    assert [moment for moment, _ in after["/text"]] == [moment for moment, _ in before["/text"]]
    assert after["/text"][0][1].data == "hello"
    for number, (moment, original) in enumerate(before["/front/image"]):
        copied_moment, copy = after["/front/image"][number]
        assert (copied_moment, copy.header) == (moment, original.header)
        assert np.array_equal(copy.data, original.data)
        expected = segmenter.segment([picture(number)])[0]
        for output, array in (("mask", expected.labels), ("confidence", expected.confidence)):
            output_moment, message = after[f"/front/segmentation/{output}"][number]
            assert (output_moment, message.header, message.encoding) == (moment, original.header, "mono8")
            assert np.array_equal(pixels(message), array)
        colours = after["/front/segmentation/color_mask"][number][1]
        assert (colours.header, colours.encoding) == (original.header, "bgr8")
        assert np.array_equal(pixels(colours)[..., ::-1], np.array(palette, np.uint8)[expected.labels])
        assert after["/front/segmentation/overlay"][number][1].encoding == "bgr8"
        assert pixels(after["/front/segmentation/overlay"][number][1]).shape == (*SIZE, 3)


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_the_copy_has_metadata_that_humble_reads(segmenter, tmp_path, storage):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))], storage)
    BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
    metadata = metadata_of(tmp_path / "out")
    assert metadata["version"] == 8
    topics = [topic["topic_metadata"] for topic in metadata["topics_with_message_count"]]
    qos = {topic["name"]: topic["offered_qos_profiles"] for topic in topics}
    assert "reliability: 2" in qos["/image"], "a text with the numbers of the enumerations"
    assert qos["/segmentation/mask"] == ""
    with Reader(source) as before, Reader(tmp_path / "out") as after:
        assert after.connections[0].ext == before.connections[0].ext


def test_the_copy_keeps_the_custom_data(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    write_metadata(source, metadata_of(source) | {"custom_data": {"robot": "rover", "run": 7}})
    BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
    assert metadata_of(tmp_path / "out")["custom_data"] == {"robot": "rover", "run": "7"}


def test_compressed_images_are_segmented_and_classes_are_chosen(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image/compressed", COMPRESSED, compressed(0))])
    (tmp_path / "classes.yaml").write_text("classes: [class_1]")
    options = PublishOptions(class_list=str(tmp_path / "classes.yaml"), mask_size="8x6")
    BagSegmenter(segmenter, options, ["mask"]).process(source, tmp_path / "out")
    mask = pixels(contents(tmp_path / "out")["/segmentation/mask"][0][1])
    expected = segmenter.segment([picture(0)], size=(6, 8))[0].labels
    assert np.array_equal(mask, np.where(expected == 1, 0, 255))


def test_threshold_and_overlay_are_as_the_options_say(segmenter, tmp_path):
    rgb = cv2.resize(picture(0), (160, 120), interpolation=cv2.INTER_CUBIC)
    found, classes = segmenter.segment([rgb])[0], segmenter.manifests["tiny"].classes
    least = int(np.median(found.confidence))
    options = PublishOptions(confidence_threshold=least / 255, overlay_alpha=0.8, overlay_names=True)
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image_of(rgb, 10**9))])
    BagSegmenter(segmenter, options, ["mask", "confidence", "overlay"]).process(source, tmp_path / "out")
    published = {topic: pixels(messages[0][1]) for topic, messages in contents(tmp_path / "out").items()}
    labels = published["/segmentation/mask"]
    assert np.array_equal(labels, np.where(found.confidence < least, 255, found.labels))
    assert np.array_equal(published["/segmentation/confidence"], np.where(labels == 255, 0, found.confidence))
    named, bare = (blend_overlay(rgb, labels, classes.palette, 0.8, names) for names in (classes.names, None))
    assert np.array_equal(published["/segmentation/overlay"][..., ::-1], named)
    assert not np.array_equal(named, bare)


def test_further_heads_have_topics_of_their_own(bundle, tmp_path):
    further = write_exported_bundle(tmp_path / "further", name="further", num_classes=3, network_size=(32, 32), seed=9)
    source = write_bag(tmp_path / "in", [("/front/image", IMAGE, image(0))])
    with contextlib.closing(Segmenter.from_bundle([bundle.path, further.path])) as both:
        BagSegmenter(both, outputs=["mask"]).process(source, tmp_path / "out")
        heads = both.segment([picture(0)])[0].heads
    found = contents(tmp_path / "out")
    for head, topic in (("tiny", "/front/segmentation/mask"), ("further", "/front/segmentation/further/mask")):
        assert np.array_equal(pixels(found[topic][0][1]), heads[head].labels)


def test_16_bit_images_of_each_topic_have_a_range_of_their_own(segmenter, tmp_path, caplog):
    caplog.set_level("INFO")
    grey = np.repeat(np.arange(32, dtype=np.uint16)[None] * 8, 24, axis=0)
    grey[0, 0] = 255
    messages = []
    for topic, factor in (("/a/image", 4), ("/b/image", 257)):
        fields = {"height": 24, "width": 32, "encoding": "mono16", "is_bigendian": 0, "step": 64}
        data = (grey * factor).view(np.uint8).reshape(-1)
        messages += 2 * [(topic, IMAGE, TYPES.types[IMAGE](header=header(0), data=data, **fields))]
    source = write_bag(tmp_path / "in", messages)
    BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out", ["/a/image", "/b/image"])
    expected = segmenter.segment([np.dstack(3 * [grey]).astype(np.uint8)])[0].labels
    found = contents(tmp_path / "out")
    for topic in ("/a", "/b"):
        for _, mask in found[f"{topic}/segmentation/mask"]:
            assert (pixels(mask) == expected).mean() > 0.95
    assert len(caplog.messages) == 2, "one line for each topic"
    with pytest.raises(ParameterError):
        PublishOptions(value_range="12 bits")


def test_each_topics_masks_are_smoothed_over_time(segmenter, tmp_path):
    stamp, whole = TYPES.types["builtin_interfaces/msg/Time"], cv2.INTER_CUBIC
    still = cv2.resize(picture(0), (64, 48), interpolation=whole).astype(int)
    frames = [np.clip(still + np.random.default_rng(seed).integers(-20, 21, still.shape), 0, 255) for seed in range(6)]
    messages, topics = [], ["/a/image", "/b/image"]
    for number, frame in enumerate(frames):
        header_now = TYPES.types["std_msgs/msg/Header"](
            # The driver of the second camera leaves stamps empty: the recording time must do.
            stamp=stamp(0, 0) if number % 2 else stamp(5, 10**8 * (number // 2)),
            frame_id=topics[number % 2],
        )
        message = TYPES.types[IMAGE](
            header=header_now, height=48, width=64, encoding="rgb8", is_bigendian=0, step=192,
            data=frame.astype(np.uint8).reshape(-1),
        )  # fmt: skip
        messages.append((topics[number % 2], IMAGE, message))
    source = write_bag(tmp_path / "in", messages)
    BagSegmenter(segmenter, PublishOptions(temporal_smoothing=0.8), ["mask"]).process(source, tmp_path / "out", topics)
    found = contents(tmp_path / "out")
    for index, topic in enumerate(topics):
        smoother, expected, single = TemporalSmoother(0.8), [], []
        recorded = [moment for moment, _ in found[topic]]
        for number, frame in enumerate(frames[index::2]):
            seconds = 1e-9 * recorded[number] if index else 5 + number / 10
            rgb = frame.astype(np.uint8)
            result = segmenter.segment([rgb])[0]
            single.append(result.labels)
            expected.append(result.smoothed(smoother, rgb, seconds).labels)
        masks = [pixels(mask) for _, mask in found[f"/{topic[1]}/segmentation/mask"]]
        assert np.array_equal(masks, expected)
        assert not np.array_equal(masks[-1], single[-1])


def test_a_bundle_brings_the_value_range_of_its_training(tmp_path):
    bundle = write_exported_bundle(tmp_path / "tiny", network_size=(32, 32), value_range=(28000, 30040))
    grey = np.repeat(np.arange(32, dtype=np.uint16)[None] * 8, 24, axis=0)
    fields = {"height": 24, "width": 32, "encoding": "16UC1", "is_bigendian": 0, "step": 64}
    kelvins = TYPES.types[IMAGE](header=header(0), data=(28000 + 8 * grey).view(np.uint8).reshape(-1), **fields)
    source = write_bag(tmp_path / "in", [("/image", IMAGE, kelvins)])
    with contextlib.closing(Segmenter.from_bundle(bundle.path)) as segmenter:
        counts = BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
        assert counts == {"segmented": 1}
        expected = segmenter.segment([np.dstack(3 * [grey]).astype(np.uint8)])[0].labels
        other = BagSegmenter(segmenter, PublishOptions(value_range="full"), ["mask"])
        other.process(source, tmp_path / "full")
    assert np.array_equal(pixels(contents(tmp_path / "out")["/segmentation/mask"][0][1]), expected)
    assert not np.array_equal(pixels(contents(tmp_path / "full")["/segmentation/mask"][0][1]), expected)


def test_images_that_cannot_be_read_are_copied_and_counted(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0, "32FC1")), ("/image", IMAGE, image(1))])
    counts = BagSegmenter(segmenter).process(source, tmp_path / "out")
    assert counts == {"depth image": 1, "segmented": 1}
    after = contents(tmp_path / "out")
    assert (len(after["/image"]), len(after["/segmentation/mask"])) == (2, 1)


@pytest.mark.parametrize("length", [0, 3, 4, 15, 40, -100])
def test_a_message_that_is_cut_off_is_copied_and_counted(segmenter, tmp_path, length):
    cut = bytes(TYPES.serialize_cdr(image(0), IMAGE))[:length]
    source = write_bag(tmp_path / "in", [("/image", IMAGE, cut), ("/image", IMAGE, image(1))])
    counts = BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
    assert counts == {"damaged message": 1, "segmented": 1}
    after = raw_contents(tmp_path / "out")
    assert [topic for topic, *_ in after] == ["/image", "/image", "/segmentation/mask"]
    assert after[:2] == raw_contents(source)
    assert after[0][2] == cut


@pytest.mark.parametrize("frames", [1, 3])
def test_other_topics_wait_only_up_to_a_bound_for_frames(segmenter, tmp_path, monkeypatch, frames):
    monkeypatch.setattr(bag, "_MOST_COPIED", 4000)
    text = ("/text", TEXT, TYPES.types[TEXT](data=1000 * "x"))
    messages = [("/image", IMAGE, image(number)) for number in range(frames)] + 40 * [text]
    source = write_bag(tmp_path / "in", messages)
    read, written, waiting, write = [], [], [], Writer.write

    def track(messages, count):
        for message in messages:
            read.append(message)
            yield message

    def counted(*arguments):
        written.append(arguments)
        waiting.append(len(read) - len(written))
        write(*arguments)

    monkeypatch.setattr(Writer, "write", counted)
    assert BagSegmenter(segmenter, outputs=[]).process(source, tmp_path / "out", track=track) == {"segmented": frames}
    assert raw_contents(tmp_path / "out") == raw_contents(source)
    assert max(waiting) <= 2 * (4 + 2), "a group in the network and the one being read"


def test_several_image_topics_must_be_named(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/a/image", IMAGE, image(0)), ("/b/image", IMAGE, image(1))])
    adder = BagSegmenter(segmenter, outputs=["mask"])
    with pytest.raises(DatasetError, match="it has images on: /a/image, /b/image"):
        adder.process(source, tmp_path / "out")
    with pytest.raises(DatasetError, match="no images on /c"):
        adder.process(source, tmp_path / "out", ["/c"])
    adder.process(source, tmp_path / "out", ["/b/image"])
    assert set(contents(tmp_path / "out")) == {"/a/image", "/b/image", "/b/segmentation/mask"}
    with pytest.raises(DatasetError, match="second topic /b/segmentation/mask"):
        adder.process(tmp_path / "out", tmp_path / "again", ["/b/image"])


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("my_msgs/msg/Wheel", "string data\nfloat64 speed"),
        (TEXT, "string data\nfloat64 speed  # of another distribution"),
        ("my_msgs/msg/Tick", ""),
    ],
)
def test_message_types_keep_the_definition_in_the_recording(segmenter, tmp_path, kind, definition):
    types = get_typestore(Stores.EMPTY)
    types.register(get_types_from_msg(definition, kind))
    types.register({name: TYPES.fielddefs[name] for name in (IMAGE, "std_msgs/msg/Header")})
    messages = [("/wheel", kind, b"\0\1\0\0 anything"), ("/image", IMAGE, image(0))]
    source = write_bag(tmp_path / "in", messages, "mcap", types)
    assert BagSegmenter(segmenter).process(source / "in.mcap", tmp_path / "out") == {"segmented": 1}
    with Reader(source) as before, Reader(tmp_path / "out") as after:
        expected, found = (next(c for c in bag.connections if c.topic == "/wheel") for bag in (before, after))
        assert (found.msgdef, found.digest) == (expected.msgdef, expected.digest)
        assert found.digest == types.hash_rihs01(kind)
    assert raw_contents(source)[0] == raw_contents(tmp_path / "out")[0]


def rewritten(path, old, new, target):
    """An MCAP file with some bytes exchanged."""
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    target.write_bytes(content.replace(old, new))
    return target


def test_a_definition_that_cannot_be_read_is_named(segmenter, tmp_path):
    messages = [("/text", TEXT, TYPES.types[TEXT](data="hello")), ("/image", IMAGE, image(0))]
    source = write_bag(tmp_path / "in", messages, "mcap")
    damaged = rewritten(source / "in.mcap", b"string data", b"string dat!", tmp_path / "damaged.mcap")
    with pytest.raises(DatasetError, match=r"definition of std_msgs/msg/String \(/text\) cannot be read"):
        BagSegmenter(segmenter).process(damaged, tmp_path / "out")


def test_several_publishers_of_a_topic_share_it_in_the_copy(segmenter, tmp_path):
    messages = [(topic, IMAGE, image(number)) for number, topic in enumerate(["/image", "/imagf", "/image"])]
    source = write_bag(tmp_path / "in", messages, "mcap")
    twice = rewritten(source / "in.mcap", b"/imagf", b"/image", tmp_path / "twice.mcap")
    counts = BagSegmenter(segmenter, outputs=["mask"]).process(twice, tmp_path / "out")
    assert counts == {"segmented": 3}
    assert {topic: len(found) for topic, found in contents(tmp_path / "out").items()} == {
        "/image": 3,
        "/segmentation/mask": 3,
    }


def test_an_output_that_recordings_do_not_get_is_refused(segmenter):
    with pytest.raises(ParameterError, match=r"no output 'colour_mask' \(did you mean 'color_mask'\?\)"):
        BagSegmenter(segmenter, outputs=["mask", "colour_mask"])


def test_outputs_and_topics_named_twice_count_once(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    adder = BagSegmenter(segmenter, outputs=["mask", "mask"])
    assert adder.process(source, tmp_path / "out", ["/image", "/image"]) == {"segmented": 1}


def test_images_above_the_bound_are_copied_and_counted(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    adder = BagSegmenter(segmenter, PublishOptions(max_pixels=SIZE[0] * SIZE[1] - 1))
    assert adder.process(source, tmp_path / "out") == {"too many pixels": 1, "segmented": 0}


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_a_full_disk_is_named_and_leaves_nothing_behind(segmenter, tmp_path, storage):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(200)])
    with full_disk(100_000), pytest.raises(OutputError, match="out cannot be written"):
        BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out", storage=storage)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("storage", "kept", "message"), [("sqlite3", 1.0, "in is damaged"), ("mcap", 0.5, "in.mcap has no end")]
)
def test_a_damaged_recording_is_named_and_leaves_nothing_behind(segmenter, tmp_path, storage, kept, message):
    # So large that SQLite lays it over many pages, which opening does not look at.
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0, padding=20_000))], storage)
    (file,) = [path for path in source.iterdir() if path.suffix in (".db3", ".mcap")]
    content = bytearray(file.read_bytes())
    half = len(content) // 2
    content[half : half + 8192] = bytes(8192)
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=message):
        BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_messages_that_the_metadata_hide_are_missed(segmenter, tmp_path, storage):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(2)], storage)
    hide_first_topic(source)
    (file,) = (path for path in source.iterdir() if path.name != "metadata.yaml")
    remedy = f"give the file itself: {file}, or write that anew with: ros2 bag reindex {source}$"
    with pytest.raises(DatasetError, match=f"states 2 messages on /image, but 0 could be read: .*; {remedy}"):
        BagSegmenter(segmenter, outputs=["mask"]).process(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert BagSegmenter(segmenter, outputs=["mask"]).process(file, tmp_path / "out") == {"segmented": 2}


def test_a_hidden_topic_that_is_not_read_is_no_fault(tmp_path):
    messages = [("/words", TEXT, TYPES.types[TEXT](data="hello")), ("/image", IMAGE, image(0))]
    source = write_bag(tmp_path / "in", messages)
    hide_first_topic(source)
    with open_recording(source) as reader:
        images = [connection for connection in reader.connections if connection.topic == "/image"]
        assert len(list(messages_of(reader, source, images))) == 1
        with pytest.raises(DatasetError, match="states 1 messages on /words, but 0 could be read"):
            next(messages_of(reader, source))


def test_messages_that_an_index_lacks_are_missed(segmenter, tmp_path):
    file = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))], "mcap") / "in.mcap"
    content = bytearray(file.read_bytes())
    # The index of the chunk names the first channel; the statistics, which come last, do so too.
    named = struct.pack("<IH", 10, 1)
    content[content.rindex(named, 0, content.rindex(named)) + 4] = 99
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"1 messages on /image, but 0 .*its index does not fit.*mcap recover "):
        BagSegmenter(segmenter, outputs=["mask"]).process(file, tmp_path / "out")


@pytest.mark.parametrize("has_metadata", [True, False])
def test_an_mcap_file_that_was_cut_off_is_named_with_the_command_that_saves_it(segmenter, tmp_path, has_metadata):
    folder = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(3)], "mcap")
    file = folder / "in.mcap"
    file.write_bytes(file.read_bytes()[:-3])
    if not has_metadata:
        (folder / "metadata.yaml").unlink()
    for source in (folder, file):
        with pytest.raises(DatasetError, match=f"{file} has no end: .*mcap recover {file} --output NEW.mcap"):
            BagSegmenter(segmenter).process(source, tmp_path / "out")


def test_an_error_in_the_middle_leaves_nothing_behind(segmenter, tmp_path, monkeypatch):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(5)])
    monkeypatch.setattr(Segmenter, "segment", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BagSegmenter(segmenter).process(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_leaves_nothing_behind(bundle, tmp_path, number):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    code = [
        "import os, sys, time",
        "from rosbags.rosbag2 import Writer",
        "from dinov3_seg_ros.bag.__main__ import main",
        f"Writer.write = lambda *_: os.kill(os.getpid(), {number:d}) or time.sleep(60)",
        "sys.exit(main(sys.argv[1:]))",
    ]
    command = [sys.executable, "-c", "\n".join(code), str(source), str(tmp_path / "out"), "--bundle", str(bundle.path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "bag: interrupted; nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_existing_target_is_not_touched(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="out exists"):
        BagSegmenter(segmenter).process(source, tmp_path / "out")


def test_a_target_in_the_recording_itself_is_refused(segmenter, tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    with pytest.raises(OutputError, match=r"lies in .*choose a folder outside of it"):
        BagSegmenter(segmenter).process(source, source / "out")
    assert not (source / "out").exists()


def test_a_misspelt_command_is_not_taken_for_a_recording(capsys):
    assert command.main(["extrct", "in", "out"]) == 2
    assert "'extrct' is neither a command nor a recording (did you mean 'extract'?)" in capsys.readouterr().err


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("bag")])
def test_a_path_that_is_no_recording_is_named(segmenter, tmp_path, make):
    make(tmp_path / "in")
    with pytest.raises(DatasetError, match="in cannot be read as a rosbag2"):
        BagSegmenter(segmenter).process(tmp_path / "in", tmp_path / "out")


def test_a_ros_1_bag_is_told_the_command_that_converts_it(segmenter, tmp_path):
    with rosbag1.Writer(tmp_path / "drive.bag"):
        pass
    with pytest.raises(DatasetError, match=r"drive.bag is a ROS 1 bag.*rosbags-convert --src .*drive.bag --dst .*"):
        BagSegmenter(segmenter).process(tmp_path / "drive.bag", tmp_path / "out")
    with pytest.raises(DatasetError, match="holds ROS 1 bags; convert each with rosbags-convert"):
        BagSegmenter(segmenter).process(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_without_metadata_the_file_itself_is_named_and_can_be_read(segmenter, tmp_path, storage, compression):
    folder = write_bag(tmp_path / "in", [("/image", IMAGE, image(1))], storage, compression=compression)
    expected = raw_contents(folder)
    (folder / "metadata.yaml").unlink()
    (file,) = folder.iterdir()
    with pytest.raises(DatasetError, match=f"has no metadata.yaml; give the file itself: {file}$"):
        BagSegmenter(segmenter).process(folder, tmp_path / "out")
    assert BagSegmenter(segmenter).process(file, tmp_path / "out") == {"segmented": 1}
    assert raw_contents(tmp_path / "out")[:1] == expected


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_a_compressed_file_without_metadata_is_named_with_what_decompresses_it(segmenter, tmp_path, storage):
    folder = write_bag(tmp_path / "in", [("/image", IMAGE, image(1))], storage, compression=CompressionMode.FILE)
    (folder / "metadata.yaml").unlink()
    (file,) = folder.iterdir()
    for source in (folder, file):
        with pytest.raises(DatasetError, match=f"zstd -d {file}, then give {file.with_suffix('')}$"):
            BagSegmenter(segmenter).process(source, tmp_path / "out")


@pytest.mark.parametrize("sign", ["#", "?", "%41"])
def test_paths_that_sqlite_takes_for_addresses_are_refused(segmenter, tmp_path, sign):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    target, adder = tmp_path / f"run{sign}" / "out", BagSegmenter(segmenter, outputs=["mask"])
    with pytest.raises(OutputError, match=f"has '{re.escape(sign)}' in its path, .* or add --storage mcap"):
        adder.process(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert adder.process(source, target, storage="mcap") == {"segmented": 1}
    moved = source.rename(target.parent / "in")
    with pytest.raises(
        DatasetError, match=f"in.db3 has '{re.escape(sign)}' in its path, .* symbolic link, or convert it"
    ):
        adder.process(moved, tmp_path / "again")
    (tmp_path / "link").symlink_to(moved)
    assert adder.process(tmp_path / "link", tmp_path / "again") == {"segmented": 1}


def test_a_percentage_in_a_path_is_no_address(segmenter, tmp_path):
    source = write_bag(tmp_path / "50% overlap", [("/image", IMAGE, image(0))])
    assert BagSegmenter(segmenter).process(source, tmp_path / "100% of it") == {"segmented": 1}
    assert len(raw_contents(tmp_path / "100% of it")) > 1


@pytest.mark.parametrize("has_metadata", [True, False])
def test_messages_in_the_log_of_a_crashed_recording_are_not_passed_over(segmenter, tmp_path, has_metadata):
    folder = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(2)])
    file, source = folder / "in.db3", folder
    if not has_metadata:
        (folder / "metadata.yaml").unlink()
        source = file
    with contextlib.closing(sqlite3.connect(file)) as recorder:
        recorder.execute("PRAGMA journal_mode=WAL")
        with recorder:
            recorder.execute(
                "INSERT INTO messages (topic_id, timestamp, data) SELECT topic_id, timestamp + 5000000, data "
                "FROM messages LIMIT 1"
            )
        remedy = "PRAGMA wal_checkpoint(TRUNCATE)"
        with pytest.raises(DatasetError) as caught:
            BagSegmenter(segmenter).process(source, tmp_path / "out")
        assert f"in.db3-wal; move them into it: sqlite3 {file} '{remedy}'" in str(caught.value)
        recorder.execute(remedy)
        assert BagSegmenter(segmenter).process(source, tmp_path / "out") == {"segmented": 3}


@pytest.mark.parametrize(
    ("kind", "transport"),
    [("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "ffmpeg"), ("foxglove_msgs/msg/CompressedVideo", "foxglove")],
)
def test_video_topics_are_named_with_the_command_that_decodes_them(segmenter, tmp_path, kind, transport):
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg("uint8[] data", kind))
    topic = f"/camera/image_raw/{transport}"
    recording = write_bag(tmp_path / "in", [(topic, kind, b"packet")], types=types)
    command = f"republish {transport} raw .*-r in/{transport}:={topic} -r out:=/camera/image_raw_decoded"
    with pytest.raises(DatasetError, match=f"images on: none; video on {topic} .{kind}. must be decoded.*{command}"):
        BagSegmenter(segmenter).process(recording, tmp_path / "out")
    with pytest.raises(DatasetError, match=f"has video .{kind}. on {topic};"):
        BagSegmenter(segmenter).process(recording, tmp_path / "out", [topic])


def test_the_command_reports_what_it_did_and_what_is_wrong(bundle, tmp_path, capsys):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    arguments = [str(source), str(tmp_path / "out"), "--bundle", str(bundle.path)]
    assert command.main(arguments) == 0
    assert "out: 1 frames segmented at" in capsys.readouterr().out
    assert command.main(arguments) == 1
    assert "out exists" in capsys.readouterr().err


def test_the_flags_of_the_options_take_effect(bundle, tmp_path, capsys):
    messages = [("/image", IMAGE, image(number)) for number in range(3)]
    source = write_bag(tmp_path / "in", [*messages, ("/other/image", IMAGE, image(3))])
    (tmp_path / "classes.yaml").write_text("classes: [class_1]")
    write_graphs(bundle, size=(64, 64), head_seed=8)
    computing = ["--runtime", "onnx", "--network-size", "64", "64", "--geometry", "stretch", "--max-batch", "2"]
    publishing = ["--mask-size", "8x6", "--class-list", str(tmp_path / "classes.yaml"), "--outputs", "mask"]
    where = ["--bundle", str(bundle.path), str(source), str(tmp_path / "out")]
    assert command.main(["--topics", "/image", "--storage", "mcap", *computing, *publishing, *where]) == 0
    assert "3 frames segmented" in capsys.readouterr().out
    assert (tmp_path / "out" / "out.mcap").exists()
    with contextlib.closing(
        Segmenter.from_bundle(bundle.path, runtime="onnx", network_size=(64, 64), geometry="stretch")
    ) as segmenter:
        for number, (_, message) in enumerate(contents(tmp_path / "out")["/segmentation/mask"]):
            labels = segmenter.segment([picture(number)], size=(6, 8))[0].labels
            assert np.array_equal(pixels(message), np.where(labels == 1, 0, 255))
    assert command.main([*where, "--confidence-threshold", "2"]) == 2
    assert "--confidence-threshold is 2.0" in capsys.readouterr().err
