"""Splits by name: versions of one image and frames of one video stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3_seg_ros.support.errors import DatasetError
from training.data.grouping import origins_of, source_of
from training.data.labelled_folder import AutoData
from training.data.reading.protocol import Sample
from training.data.splits import Fold, samples_of, split_samples

ROBOFLOW = "frame_0014_jpg.rf.d3059b108d1e5c0bed6002590b9ae5d8"


def split(names: list[str], fraction: float = 0.2, group: str = "auto") -> tuple[list[str], list[str]]:
    """Training and validation names."""
    samples = [Sample(Path("/data") / f"{name}.jpg", Path("/data") / f"{name}.png") for name in names]
    parts = [split_samples(samples, fraction, part, group) for part in ("train", "val")]
    train, val = ([str(sample.image.relative_to("/data").with_suffix("")) for sample in part] for part in parts)
    assert set(train).isdisjoint(val)
    assert set(train) | set(val) <= set(names)
    return train, val


@pytest.mark.parametrize(
    ("name", "group", "source", "frame"),
    [
        (ROBOFLOW, "./frame_", "frame_0014", "0014"),
        (f"d3059b10-{ROBOFLOW}", "./frame_", "d3059b10-frame_0014", "0014"),
        ("d3059b10-kitchen", "d3059b10-kitchen", "d3059b10-kitchen", None),
        ("run_1/0007", "run_1/", "run_1/0007", "0007"),
        ("0006R0_f00930", "./0006R0_f", "0006R0_f00930", "00930"),
        ("rgb/1305031102.175304", "rgb/", "rgb/1305031102.175304", "1305031102.175304"),
        ("a_2024-05-01-14-03-07.25", "./a_2024-05-01-", "a_2024-05-01-14-03-07.25", "14-03-07.25"),
        ("20240501_140307_123456_rgb", "./20240501_", "20240501_140307_123456_rgb", "140307_123456"),
        ("IMG_20240501_140307", "./IMG_20240501_", "IMG_20240501_140307", "140307"),
        ("2024-05-01T14:03:07,250Z", "./2024-05-01T", "2024-05-01T14:03:07,250Z", "14:03:07,250"),
        ("VID_20240501_140307_0001", "./VID_20240501_140307_", "VID_20240501_140307_0001", "0001"),
        ("2024-05-01 14-03-07/0001", "2024-05-01 14-03-07/", "2024-05-01 14-03-07/0001", "0001"),
        ("iid_frame_0003/rgb", "iid_frame_0003/rgb", "iid_frame_0003/rgb", None),
        ("kitchen", "kitchen", "kitchen", None),
        (f"kitchen_jpg.rf.{0:032x}", "kitchen", "kitchen", None),
    ],
)
def test_names_tell_group_source_and_frame(name, group, source, frame):
    assert origins_of([name]) == [(group, source, frame)]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "PNG"])
def test_the_source_of_a_roboflow_version_is_recognised(suffix):
    version = f"valid/my-photo_{suffix}.rf.0123456789abcdef0123456789abcdef"
    assert source_of(version) == "valid/my-photo"
    assert source_of("plain_name") == "plain_name"


def test_an_original_and_its_versions_are_never_in_both_parts():
    originals = [f"photo-{letter}" for letter in "abcdefghij"]
    train, val = split([*originals, *(f"{name}_jpg.rf.{v:032x}" for name in originals for v in range(2))])
    assert {source_of(name) for name in train}.isdisjoint(map(source_of, val))
    assert len(val) == 6


def test_versions_of_one_image_are_never_in_both_parts():
    names = [f"photo-{chr(97 + i)}_jpg.rf.{v:032x}" for i in range(20) for v in range(3)]
    train, val = split(names)
    assert {source_of(name) for name in train}.isdisjoint(map(source_of, val))
    assert len(val) == 12
    assert len(train) + len(val) == len(names)


def test_a_single_video_is_split_by_runs_of_frames():
    train, val = split([f"frame_{n:04d}_jpg.rf.{v:032x}" for n in range(480) for v in range(3)])
    frames = {
        part: sorted({int(origin.frame) for origin in origins_of(own)}) for part, own in (("t", train), ("v", val))
    }
    assert set(frames["t"]).isdisjoint(frames["v"])
    ends = [frame for frame in frames["v"] if frame + 1 not in frames["v"]]
    assert (len(frames["v"]), len(ends)) == (96, 3)
    assert min(abs(one - other) for one in frames["t"] for other in frames["v"]) == 5
    assert len(frames["t"]) == 480 - 96 - 5 * 4


def seconds_and_nanoseconds(frame: int) -> tuple[int, int]:
    """Time of a frame of a camera at 30 Hz."""
    return divmod(1_305_031_102_000_000_000 + frame * 10**9 // 30, 10**9)


@pytest.mark.parametrize(
    "name_of",
    [
        lambda n: f"{n * 0x9E3779B1 % 2**32:08x}-frame_{n:04d}",  # uploaded to Label Studio
        lambda n: f"{n % 880 * 0x9E3779 % 2**24:06x}__frame_{n}",  # downloaded by it, some prefixes twice
        lambda n: f"{n * 0x9E3779B1 % 2**32:08x}-{1305031102 + n / 32}",
        lambda n: f"{1305031102 + n / 30:.6f}",
        lambda n: f"rgb_{1305031102 + n / 32}",
        lambda n: f"left-2024-05-01-14-{n // 900:02d}-{n / 15 % 60:09.6f}",
        lambda n: "{}.{}".format(*seconds_and_nanoseconds(n)),
        lambda n: "{}_{}".format(*seconds_and_nanoseconds(n)),
        lambda n: "{}-{:09d}_left".format(*seconds_and_nanoseconds(n)),
    ],
)
def test_frames_are_told_by_their_time_or_behind_a_prefix_of_their_own(name_of):
    frame_of = {name_of(n): n for n in range(900)}
    expected = split([f"frame_{n:04d}" for n in range(900)])
    for names, plain in zip(split(list(frame_of)), expected, strict=True):
        assert [frame_of[name] for name in names] == [int(name[-4:]) for name in plain]


@pytest.mark.parametrize(("count", "left_out"), [(2, 0), (4, 1), (20, 1), (45, 1), (100, 3)])
def test_a_short_video_too_has_a_gap_where_images_remain(count, left_out):
    train, val = split([f"frame_{n:04d}" for n in range(count)])
    assert len(val) == max(1, round(count / 5))
    assert len(train) == count - len(val) - left_out


def test_a_group_far_larger_than_the_share_is_not_kept_for_validation():
    # Of all groups, the hash of the name "s" comes first.
    names = [
        f"{group}{n}" for group, count in {"s": 45, **dict.fromkeys("UVWXYZMNOPQ", 5)}.items() for n in range(count)
    ]
    train, val = split(names, 0.1, "^(.)")
    assert (len(train), len(val)) == (90, 10)
    train, val = split([name for name in names if name[0] in "sU"] + [f"T{n}" for n in range(40)], 0.01, "^(.)")
    assert {name[0] for name in val} == {"U"}, "the smallest, where none fits"


@pytest.mark.parametrize("video", ["drive_{:02d}/", "202405{:02d}-", "cafe00{:02d}-", "13050311{:02d}_"])
def test_of_several_videos_whole_ones_are_kept_for_validation(video):
    train, val = split([f"{video.format(drive)}{n:04d}" for drive in range(10) for n in range(30)])
    assert {name[:-4] for name in train}.isdisjoint(name[:-4] for name in val)
    assert len(val) == 60


@pytest.mark.parametrize(("group", "in_both"), [("auto", {"a", "b"}), ("^(.)", set())])
def test_beside_a_video_of_most_images_every_video_is_cut(group, in_both):
    names = [f"{video}/{n:04d}" for video, count in (("a", 60), ("b", 40)) for n in range(count)]
    train, val = split(names, group=group)
    assert {name[0] for name in train} & {name[0] for name in val} == in_both


def test_a_pattern_names_the_groups():
    names = [f"{room}_{n}_x" for room in "abcde" for n in range(4)]
    _, val = split(names, group=r"^([a-z])_")
    assert len(val) == 4
    assert len({name[0] for name in val}) == 1


def test_without_groups_every_image_is_drawn_alone():
    names = [f"frame_{n:04d}" for n in range(50)]
    _, val = split(names, group="none")
    assert len(val) == 10
    assert val != names[40:]


def test_the_split_does_not_depend_on_the_order_of_the_names():
    names = [f"drive_{drive}/{n:03d}" for drive in range(7) for n in range(9)]
    assert sorted(split(names)[1]) == sorted(split(names[::-1])[1])


@pytest.mark.parametrize(
    ("group", "said"), [("(", "is no regular expression"), ("z", "does not match in the image name")]
)
def test_a_pattern_that_cannot_be_used_is_refused(group, said):
    with pytest.raises(DatasetError, match=said):
        split(["a", "b"], group=group)


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(DatasetError, match="leaves no image of 1 to train on"):
        split(["only"])


def test_images_for_testing_are_those_that_the_folder_names_and_no_others():
    samples = [Sample(Path(f"/data/{letter}.jpg"), Path(f"/data/{letter}.png")) for letter in "abcdefghij"]
    for folder in ({None: samples}, {"train": samples}):
        assert len(samples_of("val", folder, 0.5)) == 5
        with pytest.raises(DatasetError, match="the folder has no test split"):
            samples_of("test", folder, "auto")
    divided = {"train": samples[:4], "val": samples[4:6], "test": samples[6:]}
    for fold in (None, Fold(0, 2)):
        assert samples_of("test", divided, "auto", fold=fold) == samples[6:]


def folds(names: list[str], count: int, group: str = "auto") -> list[tuple[set[str], set[str]]]:
    """Training and validation names of each fold."""
    samples = [Sample(Path("/data") / f"{name}.jpg", Path("/data") / f"{name}.png") for name in names]
    both = {"train": samples[::2], "val": samples[1::2]}  # the folder's own split is divided anew

    def names_of(split: str, index: int) -> set[str]:
        found = samples_of(split, both, "auto", group, Fold(index, count))
        return {str(sample.image.relative_to("/data").with_suffix("")) for sample in found}

    parts = [(names_of("train", index), names_of("val", index)) for index in range(count)]
    assert all(train.isdisjoint(val) for train, val in parts)
    assert sorted(name for _, val in parts for name in val) == sorted(names), "each is for validation once"
    return parts


def test_folds_keep_groups_together_and_are_of_like_size():
    names = [f"drive_{drive}/{frame:04d}" for drive in range(7) for frame in range(10 + drive)]
    parts = folds(names, 3)
    for train, val in parts:
        assert {name.partition("/")[0] for name in train}.isdisjoint(name.partition("/")[0] for name in val)
        assert train | val == set(names)
    sizes = [len(val) for _, val in parts]
    assert max(sizes) - min(sizes) <= 16
    versions = [f"photo-{i}_jpg.rf.{v:032x}" for i in "abcdefg" for v in range(3)]
    for train, val in folds(versions, 3):
        assert {source_of(name) for name in train}.isdisjoint(map(source_of, val))


@pytest.mark.parametrize("group", ["auto", "^(frame)_"])
@pytest.mark.parametrize("folders", [("", ""), ("train/images/", "valid/images/"), ("", "val/"), ("a/train/", "a/")])
def test_folds_of_one_video_are_runs_of_frames_with_a_gap(folders, group):
    names = [f"{folders[n > 150]}frame_{n:04d}" for n in range(200)]
    for index, (train, val) in enumerate(folds(names, 4, group)):
        own = sorted(int(name[-4:]) for name in val)
        assert own == list(range(50 * index, 50 * index + 50))
        near = set(range(own[0] - 6, own[-1] + 7))
        assert near.isdisjoint(int(name[-4:]) for name in train)
        assert len(train) == 150 - 6 * ((index > 0) + (index < 3))


def test_images_of_equal_names_in_folders_of_two_splits_are_in_one_fold():
    names = [f"{folder}/{letter}" for letter in "abcdefgh" for folder in ("train", "valid")]
    for train, val in folds(names, 4):
        assert {name[-1] for name in train}.isdisjoint(name[-1] for name in val)


def test_folds_of_a_short_video_have_a_gap_too():
    for index, (train, val) in enumerate(folds([f"frame_{n:04d}" for n in range(15)], 3)):
        assert (len(train), len(val)) == (10 - 1 - (index == 1), 5)


def test_beside_a_long_video_short_ones_stay_whole_in_a_fold():
    long, short = [f"long_{n:04d}" for n in range(60)], [f"{letter}_{n:04d}" for letter in "abcdef" for n in range(5)]
    for train, val in folds([*long, *short], 3):
        assert len([name for name in val if name.startswith("long")]) == 20
        assert {name[0] for name in val} & {name[0] for name in train} == {"l"}
        assert 28 <= len(val) <= 32


def test_folds_that_cannot_be_made_say_why():
    with pytest.raises(DatasetError, match="makes only 2 groups"):
        folds([f"{letter}_{n}" for letter in "ab" for n in range(10)], 3, group="^(.)_")
    with pytest.raises(DatasetError, match="leaves fold 0 without val images, of 2"):
        folds(["a", "b"], 3)
    with pytest.raises(DatasetError, match=r"remove data\.val_fraction"):
        samples_of("val", {"train": []}, 0.3, fold=Fold(0, 2))
    assert len(folds([f"frame_{n:04d}" for n in range(9)], 3, group="none")[0][1]) == 3


@pytest.mark.parametrize(
    ("folder", "settings", "left_out"),
    [
        ("", {}, 1),
        ("train/", {}, 1),
        ("", {"folds": 4, "fold": 1}, 2),
        ("", {"group": "none"}, 0),
        ("", {"group": "z"}, 0),  # opening it says that no name has a z
    ],
)
def test_frames_in_neither_part_are_counted(tmp_path, folder, settings, left_out):
    for number in range(20):
        for kind, values in (("images", np.full((8, 8, 3), number, np.uint8)), ("masks", np.zeros((8, 8), np.uint8))):
            path = tmp_path / folder / kind / f"frame_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    notes = AutoData(root=str(tmp_path), classes=["floor"], **settings).found().notes
    found = [note for note in notes if "in neither part" in note]
    assert found == [f"{left_out} images next to validation images of their video are in neither part"] * bool(left_out)
