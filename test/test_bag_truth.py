"""Images go from a recording to files, and masks from files back into it, where a bundle is scored against them."""

from __future__ import annotations

import contextlib
import json
import struct

import cv2
import numpy as np
import pytest
from exported_bundles import write_exported_bundle
from full_disk import full_disk

pytest.importorskip("rosbags", reason="rosbags is not installed")

from recordings import (
    COMPRESSED,
    IMAGE,
    SIZE,
    TEXT,
    TYPES,
    compressed,
    contents,
    dark_and_bright,
    header,
    image,
    image_of,
    picture,
    raw_contents,
    write_bag,
)
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader, Writer

from dinov3_seg_ros.bag import __main__ as command
from dinov3_seg_ros.bag.extraction import extract
from dinov3_seg_ros.bag.images import FrameName
from dinov3_seg_ros.bag.message_types import LABEL_INFO
from dinov3_seg_ros.bag.scoring import score
from dinov3_seg_ros.bag.truth import insert, truth_topics
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, OutputError
from dinov3_seg_ros.support.metrics import ConfusionMatrix

TRUTH = "/segmentation/truth"
FIRST = "image-0000001000000000007.png"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32), seed=8)


@pytest.fixture(scope="module")
def segmenter(bundle):
    with contextlib.closing(Segmenter.from_bundle(bundle.path, max_batch=2)) as opened:
        yield opened


def read_files(folder):
    """File name -> RGB pixels, or those of a mask."""
    files = {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in folder.glob("*.png")}
    return {name: found[..., ::-1] if found.ndim == 3 else found for name, found in files.items()}


def write_masks(folder, masks, classes=None):
    """A folder of masks by file name."""
    folder.mkdir()
    for name, mask in masks.items():
        assert cv2.imwrite(str(folder / name), mask)
    if classes is not None:
        text = classes if isinstance(classes, str) else json.dumps(classes)
        (folder / "classes.yaml").write_text(text)
    return folder


def random_mask(seed, classes, dtype=np.uint8):
    """Labels of that many classes, and some pixels of none."""
    mask = np.random.default_rng(seed).integers(0, classes + 1, SIZE)
    return np.where(mask == classes, np.iinfo(dtype).max, mask).astype(dtype)


def class_maps(path):
    """Topic -> [(id, name)] of the class names in a recording, and the durability that its publisher offers."""
    found = {}
    with Reader(path) as reader:
        for connection, _, raw in reader.messages():
            if connection.msgtype == LABEL_INFO:
                entries = TYPES.deserialize_cdr(raw, LABEL_INFO).class_map
                (qos,) = connection.ext.offered_qos_profiles
                found[connection.topic] = [(entry.class_id, entry.class_name) for entry in entries], qos.durability
    return found


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_and_masks_make_the_round_trip_exactly(tmp_path, storage, dtype):
    front, rear = "/front/image_raw", "/rear/image/compressed"
    messages = [(front, IMAGE, image(number, padding=5)) for number in range(4)]
    messages += [(rear, COMPRESSED, compressed(number)) for number in range(2)]
    messages.insert(3, ("/text", TEXT, TYPES.types[TEXT](data="hello")))
    source = write_bag(tmp_path / "in", messages, storage)

    extract(source, tmp_path / "frames", [front, rear])
    frames = read_files(tmp_path / "frames")
    names = {name: FrameName.parse(name.removesuffix(".png")) for name in frames}
    assert set(names.values()) == {
        FrameName(topic, 10**9 * (1000 + number) + 7)
        for topic, count in ((front, 4), (rear, 2))
        for number in range(count)
    }
    for name, (_, stamp) in names.items():
        assert np.array_equal(frames[name], picture(stamp // 10**9 - 1000))

    labelled = [name for name, (_, stamp) in names.items() if stamp < 1003 * 10**9]
    classes = [f"class {index}" for index in range(3 if dtype == np.uint8 else 300)]
    masks = {name: random_mask(seed, len(classes), dtype) for seed, name in enumerate(labelled)}
    insert(source, write_masks(tmp_path / "masks", masks, classes), tmp_path / "out")

    own = [topic for image_topic in (front, rear) for topic in truth_topics(image_topic)]
    assert own == [f"/{camera}/segmentation/truth{end}" for camera in ("front", "rear") for end in ("", "/label_info")]
    assert [entry for entry in raw_contents(tmp_path / "out") if entry[0] not in own] == raw_contents(source)
    before, found = contents(source), contents(tmp_path / "out")
    for image_topic, truth_topic in ((front, own[0]), (rear, own[2])):
        originals = [entry for entry in before[image_topic] if entry[1].header.stamp.sec < 1003]
        assert len(found[truth_topic]) == len(originals)
        for (recorded, original), (truth_recorded, truth) in zip(originals, found[truth_topic], strict=True):
            assert (truth_recorded, truth.header) == (recorded, original.header)
            assert truth.encoding == ("mono8" if dtype == np.uint8 else "mono16")
            stamp = 10**9 * original.header.stamp.sec + original.header.stamp.nanosec
            assert bytes(truth.data) == masks[f"{FrameName(image_topic, stamp)}.png"].tobytes()
    latched = list(enumerate(classes)), QosDurability.TRANSIENT_LOCAL
    assert class_maps(tmp_path / "out") == {own[1]: latched, own[3]: latched}

    again = extract(tmp_path / "out", tmp_path / "frames", [front, rear])
    assert again.skipped.counts == {"file exists": 6}


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("/image", "image-0000000000000000005"),
        ("/front/image_raw", "front-image_raw-0000000000000000005"),
        ("/a_b/c", "a_b-c-0000000000000000005"),
        ("/a-b/2", "a%2Db-2-0000000000000000005"),
        ("/käse", "k%C3%A4se-0000000000000000005"),
    ],
)
def test_a_file_name_gives_topic_and_stamp_back(topic, text):
    name = FrameName(topic, 5)
    assert str(name) == text
    assert FrameName.parse(text) == name


@pytest.mark.parametrize(
    "text", ["room", "image-5", "image-0000000000000000005.rf", "-0000000000000000005", "a%2db-" + 19 * "0"]
)
def test_other_file_names_are_not_taken_for_frames(text):
    assert FrameName.parse(text) is None


def at(number, milliseconds):
    """An image of a stamp."""
    return image_of(picture(number), milliseconds * 10**6)


def test_one_image_of_each_window_is_written_the_sharpest_if_asked(tmp_path):
    blurred = cv2.GaussianBlur(picture(0), (5, 5), 2)
    times = {10_000: blurred, 10_100: picture(0), 10_499: blurred, 10_500: blurred, 11_600: blurred, 11_700: picture(0)}
    messages = [("/image", IMAGE, image_of(rgb, milliseconds * 10**6)) for milliseconds, rgb in times.items()]
    source = write_bag(tmp_path / "in", messages)
    for sharpest, expected in ((False, [10_000, 10_500, 11_600]), (True, [10_100, 10_500, 11_700])):
        done = extract(source, tmp_path / str(sharpest), every=500 * 10**6, sharpest=sharpest)
        stamps = sorted(FrameName.parse(path.stem).stamp // 10**6 for path in (tmp_path / str(sharpest)).iterdir())
        assert stamps == expected
        assert (done.written, done.passed_over) == ({"/image": 3}, 3)


def test_the_flags_of_extract_take_effect(tmp_path, capsys):
    blurred, large = cv2.GaussianBlur(picture(0), (5, 5), 2), np.zeros((64, 65, 3), np.uint8)
    frames = {10_000: blurred, 10_100: picture(0), 10_200: large}
    messages = [("/image", IMAGE, image_of(rgb, milliseconds * 10**6)) for milliseconds, rgb in frames.items()]
    source = write_bag(tmp_path / "in", [("/other", IMAGE, image(0)), *messages])
    flags = ["--topics", "/image", "--every", "500ms", "--sharpest", "--max-pixels", str(64 * 64)]
    assert command.main(["extract", str(source), str(tmp_path / "frames"), *flags]) == 0
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["image-0000000010100000000.png"]
    assert "skipped: 1 (too many pixels), first /image at " in capsys.readouterr().err


def test_an_image_of_a_time_before_1970_is_left_out(tmp_path):
    messages = [("/image", IMAGE, image_of(picture(0), stamp)) for stamp in (-(10**9), 10**9)]
    done = extract(write_bag(tmp_path / "in", messages), tmp_path / "frames")
    assert (done.written, done.skipped.counts) == ({"/image": 1}, {"negative stamp": 1})


def test_the_first_image_of_a_window_that_can_be_read_is_written(tmp_path):
    depth = at(1, 10_000)
    depth.encoding = "16UC1"
    source = write_bag(tmp_path / "in", [("/image", IMAGE, depth), ("/image", IMAGE, at(2, 10_010))])
    done = extract(source, tmp_path / "frames", every=10**9)
    assert [FrameName.parse(path.stem).stamp for path in (tmp_path / "frames").iterdir()] == [10_010 * 10**6]
    assert done.skipped.counts == {"depth image": 1}


def test_16_bit_images_are_scaled_as_on_the_robot(tmp_path):
    kelvins = np.repeat(np.arange(28000, 28320, 10, dtype=np.uint16)[None], 24, axis=0)
    fields = {"height": 24, "width": 32, "encoding": "mono16", "is_bigendian": 0, "step": 64}
    message = TYPES.types[IMAGE](header=header(0), data=kelvins.view(np.uint8).reshape(-1), **fields)
    source = write_bag(tmp_path / "in", [("/image", IMAGE, message)])
    extract(source, tmp_path / "frames", options=PublishOptions(value_range=(28000, 28255)))
    assert np.array_equal(read_files(tmp_path / "frames")[FIRST][..., 0], np.minimum(kelvins - 28000, 255))


@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED])
def test_images_that_are_passed_over_tell_the_bits_of_the_sensor(tmp_path, kind):
    messages = [("/image", kind, dark_and_bright(kind, number, most)) for number, most in enumerate((200, 4095, 200))]
    done = extract(write_bag(tmp_path / "in", messages), tmp_path / "frames", every=2 * 10**9)
    assert (done.written, done.passed_over) == ({"/image": 2}, 1)
    first, last = sorted(read_files(tmp_path / "frames").items())
    assert (first[1].max(), last[1].max()) == (200, round(200 * 255 / 4095))


def test_the_last_image_before_a_fault_of_the_recording_is_written(tmp_path):
    messages = [("/image", IMAGE, image(number)) for number in range(2)]
    source = write_bag(tmp_path / "in", messages, "mcap") / "in.mcap"
    # The statistics, which come last, count the messages of the first channel.
    before, after = source.read_bytes().rsplit(struct.pack("<IHQ", 10, 1, 2), 1)
    source.write_bytes(before + struct.pack("<IHQ", 10, 1, 3) + after)
    with pytest.raises(DatasetError, match="states 3 messages on /image, but 2 could be read"):
        extract(source, tmp_path / "frames")
    assert len(read_files(tmp_path / "frames")) == 2


def test_where_the_driver_sets_no_stamp_the_recording_time_counts(tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, at(number, 0)) for number in range(3)])
    extract(source, tmp_path / "frames")
    assert sorted(read_files(tmp_path / "frames")) == [f"image-{number:013d}000000.png" for number in (1, 2, 3)]
    masks = write_masks(tmp_path / "masks", {"image-0000000000002000000.png": random_mask(0, 3)})
    insert(source, masks, tmp_path / "out")
    ((recorded, truth),) = contents(tmp_path / "out")[TRUTH]
    assert (recorded, truth.header) == (2_000_000, at(1, 0).header)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({}, "the recording's topics: none; it has images on: none"),
        ({"/chatter": TEXT}, "the recording's topics: /chatter; it has images on: none"),
        ({"/chatter": TEXT, "/image": IMAGE}, "has no message on /image, and so no image to write"),
    ],
)
def test_a_recording_without_images_is_named(tmp_path, capsys, kinds, said):
    with Writer(tmp_path / "in", version=9) as writer:
        for topic, kind in kinds.items():
            writer.add_connection(topic, kind, typestore=TYPES)
    assert command.main(["extract", str(tmp_path / "in"), str(tmp_path / "frames")]) == 1
    assert said in capsys.readouterr().err


def test_files_that_are_there_stay_as_they_are(tmp_path, capsys):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(2)])
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / FIRST).write_text("mine")
    assert command.main(["extract", str(source), str(tmp_path / "frames"), "--every", "10ms"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("frames: 1 images written (/image 1); 0 others passed over, one is taken of each window\n")
    assert "skipped: 1 (file exists), first" in said.err
    assert (tmp_path / "frames" / FIRST).read_text() == "mine"


def test_a_full_disk_leaves_only_whole_images(tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    with full_disk(1000), pytest.raises(OutputError, match=f"{FIRST} cannot be written.*the 0 images before it"):
        extract(source, tmp_path / "frames")
    assert list((tmp_path / "frames").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--every", "0.5"], "'0.5' is no duration; write a number with its unit: 0.5s"),
        (["--every", "0s"], "'0s' is no duration"),
        (["--sharpest"], "add its length, such as --every 0.5s"),
        (["--evry", "1s"], "unknown option --evry (did you mean '--every'?)"),
    ],
)
def test_a_wrong_command_line_of_extract_is_named(tmp_path, capsys, words, said):
    assert command.main(["extract", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bag extract: error: ")
    assert said in error


WRONG_MASKS = {
    "colour": (np.zeros((*SIZE, 3), np.uint8), None, "must be a grey PNG of 8 or 16 bits"),
    "size": (np.zeros((24, 30), np.uint8), None, "is 30x24 pixels and its image in the recording 32x24"),
    "value": (np.full(SIZE, 2, np.uint8), ["a", "b"], "has the value 2, but classes.yaml names 2 classes, 0 to 1"),
    "classes": (np.zeros(SIZE, np.uint8), {"a": 0}, "must hold a list of class names"),
    "date": (np.zeros(SIZE, np.uint8), "- 2026-13-45", r"classes.yaml cannot be read: .*month"),
}


@pytest.mark.parametrize("kind", WRONG_MASKS)
def test_a_mask_that_does_not_fit_is_named_and_nothing_is_written(tmp_path, kind):
    mask, classes, said = WRONG_MASKS[kind]
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    masks = write_masks(tmp_path / "masks", {FIRST: mask}, classes)
    with pytest.raises(DatasetError, match=said):
        insert(source, masks, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "masks"]


def test_a_mask_that_cannot_be_read_is_named_not_the_output(tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    masks = write_masks(tmp_path / "masks", {})
    (masks / FIRST).mkdir()
    with pytest.raises(DatasetError, match=f"{FIRST} cannot be read: Is a directory"):
        insert(source, masks, tmp_path / "out")


def test_a_mask_of_one_bit_is_refused_since_opencv_scales_it(tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    masks = write_masks(tmp_path / "masks", {})
    assert cv2.imwrite(str(masks / FIRST), np.eye(*SIZE, dtype=np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    with pytest.raises(DatasetError, match="of 8 or 16 bits, without palette"):
        insert(source, masks, tmp_path / "out")


def test_masks_that_belong_to_no_image_are_named(tmp_path, capsys):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0)), ("/depth", IMAGE, b"cut off")])
    names = ["room.png", "other-0000001000000000007.png", "image-0000001000000000008.png"]
    masks = write_masks(tmp_path / "masks", dict.fromkeys(names, np.zeros(SIZE, np.uint8)))
    words = ["insert", str(source), str(masks), str(tmp_path / "out")]
    assert command.main(words) == 1
    assert "bag insert: error: no mask in" in capsys.readouterr().err
    cv2.imwrite(str(masks / FIRST), np.zeros(SIZE, np.uint8))
    assert command.main([*words, "--storage", "mcap"]) == 0
    assert (tmp_path / "out" / "out.mcap").exists()
    said = capsys.readouterr()
    assert f"1 masks on {TRUTH}; without class names, for which" in said.out
    reasons = ("not named by topic and stamp", "no images on this topic", "no image of this stamp")
    assert all(f"skipped: 1 ({reason}), first" in said.err for reason in reasons)
    assert said.err.count("skipped: ") == len(reasons), "topics without masks are only copied"


def test_a_folder_without_masks_tells_the_command_that_makes_them(tmp_path):
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(0))])
    with pytest.raises(DatasetError, match=r"holds no PNG; .*python -m training.export_masks"):
        insert(source, write_masks(tmp_path / "masks", {}), tmp_path / "out")


def truth_message(number, mask):
    message = image(number)
    message.encoding = "mono16" if mask.dtype == np.uint16 else "mono8"
    message.step, message.data = mask[0].nbytes, mask.view(np.uint8).reshape(-1)
    return message


def expected_scores(segmenter, masks):
    matrix = ConfusionMatrix(5)
    for number, mask in masks.items():
        matrix.update(mask, segmenter.segment([picture(number)])[0].labels)
    return matrix


def test_a_bundle_is_scored_on_images_with_a_mask_of_their_stamp(segmenter, tmp_path):
    masks = {number: random_mask(number, 5, np.uint16 if number == 4 else np.uint8) for number in (0, 1, 4)}
    messages = [("/image", IMAGE, image(number)) for number in range(5)]
    messages.insert(0, (TRUTH, IMAGE, truth_message(1, masks[1])))  # before its image
    messages += [(TRUTH, IMAGE, truth_message(number, masks[number])) for number in (0, 4)]
    messages += [(TRUTH, IMAGE, truth_message(9, masks[0])), (TRUTH, IMAGE, b"cut off")]
    done = score(segmenter, write_bag(tmp_path / "in", messages))
    assert done.frames == 3
    assert done.skipped.counts == {"no readable image for a true mask": 1, "damaged message": 1}
    assert np.array_equal(done.matrix.counts, expected_scores(segmenter, masks).counts)


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_true_mask_is_read_with_its_own_step_and_byte_order(segmenter, tmp_path, big_endian):
    mask = random_mask(0, 5, np.uint16)
    rows = np.ascontiguousarray(mask.astype(">u2" if big_endian else "<u2")).view(np.uint8)
    truth = truth_message(0, mask)
    truth.is_bigendian, truth.step = int(big_endian), rows.shape[1] + 6
    truth.data = np.pad(rows, ((0, 0), (0, 6)), constant_values=9).reshape(-1)
    done = score(segmenter, write_bag(tmp_path / "in", [("/image", IMAGE, image(0)), (TRUTH, IMAGE, truth)]))
    assert np.array_equal(done.matrix.counts, expected_scores(segmenter, {0: mask}).counts)


def test_true_masks_that_fit_no_image_or_are_damaged_are_named(segmenter, tmp_path):
    mask = random_mask(0, 5)
    smaller, short, narrow, empty = (truth_message(number, mask) for number in range(1, 5))
    smaller.height, smaller.data = SIZE[0] // 2, smaller.data[: smaller.data.size // 2]
    short.data = short.data[:-1]
    narrow.width = narrow.step + 1
    empty.height, empty.data = 0, empty.data[:0]
    truths = [truth_message(0, mask), smaller, short, narrow, empty]
    messages = [("/image", IMAGE, image(number)) for number in range(5)] + [(TRUTH, IMAGE, truth) for truth in truths]
    done = score(segmenter, write_bag(tmp_path / "in", messages))
    assert done.frames == 1
    assert done.skipped.counts == {"sizes differ": 1, "wrong length of data": 1, "no mask": 2}


def test_classes_are_matched_by_their_names(bundle, segmenter, tmp_path, capsys):
    order = [3, 0, 4]
    masks = {number: random_mask(number, 3) for number in range(2)}
    source = write_bag(tmp_path / "in", [("/image", IMAGE, image(number)) for number in range(2)])
    files = {f"{FrameName('/image', 10**9 * (1000 + number) + 7)}.png": mask for number, mask in masks.items()}
    folder = write_masks(tmp_path / "masks", files, [f"class_{index}" for index in order])
    insert(source, folder, tmp_path / "out")
    words = ["score", str(tmp_path / "out"), "--bundle", str(bundle.path), "--json", str(tmp_path / "score.json")]
    assert command.main(words) == 0
    lookup = np.full(256, 255, np.uint8)
    lookup[: len(order)] = order
    expected = expected_scores(segmenter, {number: lookup[mask] for number, mask in masks.items()})
    found = json.loads((tmp_path / "score.json").read_text())
    summary = expected.summary([f"class_{index}" for index in range(5)])
    assert {name: found[name] for name in summary} == summary
    assert (found["frames"], found["skipped"]) == (2, {})
    said = capsys.readouterr().out
    assert f"mean                 {summary['miou']:9.1%}" in said
    assert "IoU of 2 frames" in said
    (folder / "classes.yaml").write_text("[floor, class_1, class_2]")
    insert(source, folder, tmp_path / "other")
    with pytest.raises(DatasetError, match="have the class 'floor', which the bundle lacks; make the masks with"):
        score(segmenter, tmp_path / "other")


def test_with_smoothing_the_images_between_count_too(bundle, segmenter, tmp_path):
    still = cv2.resize(picture(0), (64, 48), interpolation=cv2.INTER_CUBIC).astype(int)
    noise = [np.random.default_rng(seed).integers(-20, 21, still.shape) for seed in range(3)]
    frames = [np.clip(still + change, 0, 255).astype(np.uint8) for change in noise]
    messages, smoother = [], TemporalSmoother(0.8)
    for number, frame in enumerate(frames):
        message = image_of(frame, 10**10 + number * 10**8)
        messages.append(("/image", IMAGE, message))
        smoothed = segmenter.segment([frame])[0].smoothed(smoother, frame, 10 + number / 10).labels
    truth = truth_message(0, smoothed)
    truth.header, truth.height, truth.width = message.header, 48, 64
    source = write_bag(tmp_path / "in", [*messages, (TRUTH, IMAGE, truth)])
    for weight, is_equal in ((0.8, True), (0.0, False)):
        done = score(segmenter, source, options=PublishOptions(temporal_smoothing=weight))
        assert (done.frames, done.skipped.counts) == (1, {})
        assert (np.trace(done.matrix.counts) == smoothed.size) == is_equal
    words = ["score", str(source), "--bundle", str(bundle.path), "--json", str(tmp_path / "score.json")]
    assert command.main([*words, "--temporal-smoothing", "0.8"]) == 0
    assert json.loads((tmp_path / "score.json").read_text())["miou"] == 1.0


def test_images_without_truth_tell_the_bits_of_the_sensor_too(segmenter, tmp_path):
    bright, dark = dark_and_bright(IMAGE, 0, 4095), dark_and_bright(IMAGE, 1, 200)
    labels = []
    for high in (4095, 255):
        grey = np.rint(dark.data.view(np.uint16).reshape(SIZE) * (255 / high)).astype(np.uint8)
        labels.append(segmenter.segment([np.dstack(3 * [grey])])[0].labels)
    assert not np.array_equal(*labels)
    truth = truth_message(1, labels[0])
    source = write_bag(tmp_path / "in", [("/image", IMAGE, bright), ("/image", IMAGE, dark), (TRUTH, IMAGE, truth)])
    assert np.trace(score(segmenter, source).matrix.counts) == labels[0].size


def test_a_recording_without_fitting_truth_is_named(bundle, segmenter, tmp_path):
    messages = [("/image", IMAGE, image(0)), ("/image/compressed", COMPRESSED, compressed(0))]
    bare = write_bag(tmp_path / "bare", messages)
    with pytest.raises(
        DatasetError, match=r"has no true masks, .*; put them in with: python -m dinov3_seg_ros.bag insert"
    ):
        score(segmenter, bare)
    with pytest.raises(DatasetError, match="no true masks for /image, on /segmentation/truth"):
        score(segmenter, bare, ["/image"])
    both = write_bag(tmp_path / "both", [*messages, (TRUTH, IMAGE, truth_message(0, random_mask(0, 5)))])
    with pytest.raises(DatasetError, match=r"several topics .* name one of each namespace with --topics: /image, /im"):
        score(segmenter, both)
    assert score(segmenter, both, ["/image/compressed"]).frames == 1
    assert command.main(["score", str(both), "--bundle", str(bundle.path), "--topics", "/image/compressed"]) == 0
    unknown = write_bag(tmp_path / "unknown", [messages[0], (TRUTH, IMAGE, truth_message(0, random_mask(0, 9)))])
    with pytest.raises(
        DatasetError, match=r"/segmentation/truth at 1000000000007 ns has the value [5-8], which is none"
    ):
        score(segmenter, unknown)
    small = write_bag(tmp_path / "small", [messages[0], (TRUTH, IMAGE, image(0))])
    with pytest.raises(DatasetError, match=r"no image of .*small could be compared .*skipped: 1 \(no mask\)"):
        score(segmenter, small)
