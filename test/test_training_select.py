"""Which images to label next: strategies on made-up features, and the command on folders and recordings."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path

import cv2
import labelled_folders
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from bundles import write_tiny_bundle
from PIL import Image

from dinov3_seg_ros.support.errors import DatasetError, OutputError, ParameterError
from training import select as command
from training.prediction.inputs import open_input
from training.unlabelled.description import Pool, Regions, describe, make_pool
from training.unlabelled.images import UnlabelledImage, open_images
from training.unlabelled.labelled import find_labelled
from training.unlabelled.network import Network
from training.unlabelled.strategies import STRATEGIES, choose, resolved

DIVERSE = [
    "class_coverage",
    "uncertain_k_center",
    "uncertain_clusters",
    "coverage",
    "typical",
    "k_center",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network_size=(64, 96))


def pool_of_four_kinds(labelled: tuple[int, ...] = (), target: tuple[int, ...] = ()) -> Pool:
    """Forty images of four kinds, ten each, equally uncertain; some of them labelled, some target images."""
    random = np.random.default_rng(0)
    features = np.repeat(10 * np.eye(4), 10, axis=0) + 0.1 * random.standard_normal((40, 4))
    is_labelled, is_target = np.isin(np.arange(40), labelled), np.isin(np.arange(40), target)
    doubts = np.full((2, 40), 0.1, np.float32)
    regions = Regions(["road", "pole"], np.stack([features] * 2).astype(np.float32), np.full((2, 40), 0.5), doubts)
    ones = np.full(40, 0.5, np.float32)
    return Pool(features.astype(np.float32), is_labelled, is_target, ones, ones, regions)


@pytest.mark.parametrize("strategy", DIVERSE)
def test_one_image_of_each_kind_is_chosen_that_has_no_label(strategy):
    kinds = [choice.image // 10 for choice in choose(strategy, pool_of_four_kinds(), 4)]
    assert sorted(kinds) == [0, 1, 2, 3]
    if strategy != "uncertain_clusters":  # which knows nothing of labelled images
        kinds = [choice.image // 10 for choice in choose(strategy, pool_of_four_kinds((3, 14)), 2)]
        assert sorted(kinds) == [2, 3]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_decides_and_no_image_is_chosen_twice_or_again(strategy):
    pool = pool_of_four_kinds((0, 1, 2))
    chosen = [choice.image for choice in choose(strategy, pool, 100, seed=5)]
    assert sorted(chosen) == list(range(3, 40))
    assert chosen[:6] == [choice.image for choice in choose(strategy, pool, 6, seed=5)] or strategy in (
        "typical", "uncertain_clusters",  # whose clusters depend on their number
    )  # fmt: skip
    assert chosen == [choice.image for choice in choose(strategy, pool, 100, seed=5)]
    assert choose(strategy, pool_of_four_kinds(tuple(range(40))), 3) == []


@pytest.mark.parametrize("strategy", ["class_coverage", "coverage"])
def test_images_like_those_of_the_target_are_chosen_and_the_target_itself_never(strategy):
    target = (20, 21, 22, 35)  # three of the third kind, one of the fourth
    kinds = [choice.image // 10 for choice in choose(strategy, pool_of_four_kinds(target=target), 2)]
    assert kinds == [2, 3]
    chosen = [choice.image for choice in choose(strategy, pool_of_four_kinds(target=target), 40)]
    assert sorted(chosen) == [index for index in range(40) if index not in target]
    # What has labels is covered already.
    assert choose(strategy, pool_of_four_kinds((29,), target), 1)[0].image // 10 == 3


@pytest.mark.parametrize("strategy", ["class_coverage", "coverage"])
def test_a_target_of_nearly_equal_images_far_from_all_others_still_tells_near_from_far(strategy):
    pool = pool_of_four_kinds(target=(0, 1, 2))
    for features in (pool.features, *pool.regions.features):
        features[:3] = 30 * np.eye(4)[0] + 1e-4 * features[:3]
        features[3:10] = 10 * np.eye(4)[1]
        features[33] = 12 * np.eye(4)[0]
    assert choose(strategy, pool, 1)[0].image == 33


def test_the_target_decides_what_is_uncertain_of_a_class():
    pool = pool_of_four_kinds(target=(20, 21, 30))
    pool.regions.doubts[:, :30] = 1e-6  # of the target, the fourth kind alone is uncertain
    assert choose("class_coverage", pool, 1)[0].image // 10 == 3


def test_strategies_that_do_not_look_at_target_images_refuse_them():
    assert resolved("auto", has_head=False, has_target=True) == "coverage"
    assert resolved("auto", has_head=True, has_target=True) == "class_coverage"
    assert resolved("auto", has_head=False, has_target=False) == "typical"
    for name in sorted(set(STRATEGIES) - {"class_coverage", "coverage"}):
        with pytest.raises(ParameterError, match=f"'{name}' has no use for target images; .* class_coverage and cov"):
            choose(name, pool_of_four_kinds(target=(1,)), 1)


@pytest.mark.parametrize("strategy", ["margin", "entropy"])
def test_the_most_uncertain_image_comes_first(strategy):
    pool = pool_of_four_kinds()
    pool.margin[17] = pool.entropy[17] = 0.9
    assert choose(strategy, pool, 1)[0].image == 17


def test_the_only_image_of_a_rare_class_is_chosen_early():
    pool = pool_of_four_kinds()
    pool.regions.doubts[1], pool.regions.shares[1] = 1e-6, 1e-5
    pool.regions.doubts[1, 25], pool.regions.shares[1, 25] = 1e-3, 2e-3
    chosen = choose("class_coverage", pool, 2)
    assert 25 in [choice.image for choice in chosen]
    assert any("pole" in choice.why for choice in chosen)


def test_a_description_leaves_out_the_padding(bundle):
    network = Network.of_bundle(bundle.path)
    narrow = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    seen = network.look(narrow)
    assert {found.shape[1] / found.shape[2] for found in seen.maps} == {2.0}
    found = describe(seen)
    assert found.shares.sum() == pytest.approx(1, abs=1e-5)
    assert (found.doubts <= found.shares).all()
    assert found.doubts.sum() == pytest.approx(found.margin, abs=1e-5)
    pool = make_pool([found, describe(network.look(255 - narrow))], [True, False], bundle.manifest.classes.names)
    assert pool.features.shape[1] == sum(bundle.manifest.backbone.channels)
    assert pool.candidates.tolist() == [1]


def write_photos(folder: Path, count: int) -> None:
    """Photos in two subfolders with the same names in each."""
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / ("day", "night")[number % 2] / f"{number // 2}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cv2.resize(small, (96, 64))).save(path)


def run(*words: object) -> int:
    return command.main([*map(str, words)])


def selection(folder: Path) -> dict:
    return json.loads((folder / "selection.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_chosen_images_are_copied_with_reasons_and_a_sheet(bundle, tmp_path, capsys):
    write_photos(tmp_path / "photos", 8)
    output = tmp_path / "[red]out"  # which is no colour of the terminal
    assert run(tmp_path / "photos", "--bundle", bundle.path, "--count", 3, "--output", output) == 0
    said = selection(output)
    names = [row["image"] for row in said["chosen"]]
    assert files(output) == {"selection.json", "contact_sheet.png", *(f"images/{name}" for name in names)}
    for name in names:
        assert (output / "images" / name).read_bytes() == (tmp_path / "photos" / name).read_bytes()
    assert (said["strategy"], said["looked_at"], [row["rank"] for row in said["chosen"]]) == (
        "class_coverage", 8, [1, 2, 3],
    )  # fmt: skip
    assert all(row["why"].startswith("covers class_") and 0 < row["uncertainty"] <= 1 for row in said["chosen"])
    assert cv2.imread(str(output / "contact_sheet.png")).shape[1] > 3 * 240
    printed = capsys.readouterr().out
    assert "3 of 8 images chosen by class_coverage" in printed and "[red]out" in printed


def test_masks_beside_images_are_never_chosen(tmp_path):
    write_photos(tmp_path / "images", 4)
    for image in (tmp_path / "images").rglob("*.jpg"):
        mask = tmp_path / "masks" / image.relative_to(tmp_path / "images").with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 96), 1, np.uint8)).save(mask)
    names = {image.name for image in open_images(tmp_path).take()}
    assert names == {"images/day/0.jpg", "images/day/1.jpg", "images/night/0.jpg", "images/night/1.jpg"}


@pytest.mark.parametrize("name", ["folder", "label_studio_png"])
def test_what_labelling_tools_write_beside_masks_is_not_chosen_either(name, tmp_path):
    labelled_folders.BUILDERS[name](tmp_path)
    mask = next(path for path in sorted(tmp_path.rglob("*.png")) if Image.open(path).mode in "1LP")
    Image.open(mask).save(mask.with_name(f"of_instances_{mask.name}"))
    found = {Image.open(tmp_path / image.name).mode for image in open_images(tmp_path).take()}
    assert found == {"RGB"}


@pytest.mark.parametrize("words", [("--every", "0.5s"), ("--topics", "/front/image")], ids=["every", "topics"])
def test_options_of_a_recording_are_refused_for_a_folder(bundle, tmp_path, capsys, words):
    write_photos(tmp_path / "photos", 1)
    assert run(tmp_path / "photos", "--bundle", bundle.path, "--count", 1, "--output", tmp_path / "out", *words) == 1
    assert f"leave out {words[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_backbone_alone_chooses_typical_images(bundle, tmp_path, capsys):
    write_photos(tmp_path / "photos", 4)
    words = [tmp_path / "photos", "--backbone", bundle.path / "backbone", "--network-size", 64, 96, "--count", 2]
    assert run(*words, "--output", tmp_path / "out") == 0
    assert selection(tmp_path / "out")["strategy"] == "typical"
    assert run(*words, "--strategy", "margin", "--output", tmp_path / "other") == 1
    assert "needs a bundle" in capsys.readouterr().err
    assert run(*words, "--strategy", "k_centre", "--output", tmp_path / "other") == 1
    assert "did you mean 'k_center'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_labelled_images_count_and_are_not_chosen_again(bundle, tmp_path, capsys):
    labelled_folders.build_labelme(tmp_path / "labelled")
    write_photos(tmp_path / "photos", 3)
    known = sorted((tmp_path / "labelled").rglob("*.jpg"))
    pixels = np.array(Image.open(known[0]))
    Image.fromarray(pixels).save(tmp_path / "photos/copy.png")  # another file of the same pixels
    words = [tmp_path / "photos", "--bundle", bundle.path, "--count", 9, "--labelled", tmp_path / "labelled"]
    assert run(*words, "--output", tmp_path / "out") == 0
    said = selection(tmp_path / "out")
    assert (said["labelled"], said["already_labelled"], said["looked_at"]) == (6, 1, 3)
    assert sorted(row["image"] for row in said["chosen"]) == ["day/0.jpg", "day/1.jpg", "night/0.jpg"]
    assert run(*words, tmp_path / "photos", "--output", tmp_path / "none") == 1
    assert "no image is left to choose: 4 are labelled already" in capsys.readouterr().err


def test_the_sheet_of_a_selection_is_no_labelled_image(bundle, tmp_path):
    write_photos(tmp_path / "photos", 4)
    words = [tmp_path / "photos", "--bundle", bundle.path, "--count", 1]
    assert run(*words, "--output", tmp_path / "first") == 0
    assert run(*words, "--labelled", tmp_path / "first", "--output", tmp_path / "next") == 0
    assert selection(tmp_path / "next")["labelled"] == 1


def test_labelled_images_of_a_table_are_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = []
    for seed in range(24):
        image = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (300, 300, 3), np.uint8)
        Image.fromarray(pixels).save(image, "PNG", compress_level=0)
        rows.append({column: {"bytes": image.getvalue(), "path": None} for column in ("image", "mask")})
    (tmp_path / "labelled").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "labelled/train.parquet")
    find_labelled([tmp_path / "labelled"])  # what is imported and copied once
    tracemalloc.start()
    try:
        labelled = find_labelled([tmp_path / "labelled"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(labelled.images) == len(rows) and not labelled.notes
    assert peak < len(rows) * pixels.nbytes / 2


def test_a_labelled_16_bit_image_is_known_however_it_is_scaled(tmp_path):
    for folder, names in {"labelled": ["dark"], "photos": ["bright", "dark"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            values = np.random.default_rng(0).integers(0, 1000, (8, 12)).astype(np.uint16)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), values * (4 if name == "bright" else 1))
    labelled = find_labelled([tmp_path / "labelled"])
    found = {image.name: labelled.has(image.pixels, image.file) for image in open_images(tmp_path / "photos").take()}
    assert found == {"bright.png": False, "dark.png": True}


def test_links_to_folders_are_followed_and_hidden_files_and_pipes_left_out(tmp_path):
    write_photos(tmp_path / "disk", 2)
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos/more").symlink_to(tmp_path / "disk")
    (tmp_path / "photos/day/._0.jpg").write_bytes(b"what macOS adds to archives")
    os.mkfifo(tmp_path / "photos/day/pipe.jpg")
    named = ["day/0.jpg", "more/day/0.jpg", "more/night/0.jpg", "night/0.jpg"]
    assert [image.name for image in open_images(tmp_path / "photos").take()] == named
    source = open_input(str(tmp_path / "photos")).source()
    assert [f"{name}.jpg" for name, _ in source.frames] == named and not source.unreadable


def test_the_image_that_looks_like_the_target_is_chosen_first(bundle, tmp_path, capsys):
    write_photos(tmp_path / "photos", 8)
    (tmp_path / "robot").mkdir()
    like = Image.open(tmp_path / "photos/night/2.jpg")
    like.rotate(1).save(tmp_path / "robot/0.png")
    words = [tmp_path / "photos", "--count", 1, "--target", tmp_path / "robot"]
    for number, network in enumerate((["--bundle", bundle.path], ["--backbone", bundle.path / "backbone"])):
        output = tmp_path / f"out{number}"
        assert run(*words, *network, "--output", output) == 0
        said = selection(output)
        assert [row["image"] for row in said["chosen"]] == ["night/2.jpg"]
        assert (said["looked_at"], said["target_images"], said["target"]) == (8, 1, str(tmp_path / "robot"))
        assert "1 of 8 images chosen by " in (printed := capsys.readouterr().out)
        assert "coverage for 1 target images" in printed
    (tmp_path / "robot/broken.png").write_bytes(b"no image")
    words += ["--bundle", bundle.path]
    assert run(*words, "--output", tmp_path / "with_broken") == 1
    assert "skipped target image: broken.png" in capsys.readouterr().err
    assert [row["image"] for row in selection(tmp_path / "with_broken")["chosen"]] == ["night/2.jpg"]
    (tmp_path / "robot/0.png").unlink()
    assert run(*words, "--output", tmp_path / "none") == 1
    assert "no target image can be read" in capsys.readouterr().err
    assert run(*words, "--strategy", "margin", "--output", tmp_path / "none") == 1
    assert "'margin' has no use for target images" in capsys.readouterr().err
    assert run(*words[:3], "--target", tmp_path / "nowhere", *words[5:], "--output", tmp_path / "none") == 1
    assert f"--target: '{tmp_path / 'nowhere'}': there is no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_unreadable_images_are_named_and_the_others_chosen(bundle, tmp_path, capsys):
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos/broken.jpg").write_bytes(b"no image")
    words = [tmp_path / "photos", "--bundle", bundle.path, "--count", 5]
    assert run(*words, "--output", tmp_path / "out") == 1
    assert "skipped: broken.jpg" in capsys.readouterr().err
    assert len(selection(tmp_path / "out")["chosen"]) == 2
    assert run(*words, "--output", tmp_path / "out") == 1
    assert "exists already" in capsys.readouterr().err
    assert run(tmp_path / "photos", "--count", 5) == 2
    assert "give either --bundle or --backbone" in capsys.readouterr().err


def test_frames_of_a_recording_are_named_by_topic_and_stamp(bundle, tmp_path):
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    import recordings

    frames = [("/front/image", recordings.IMAGE, recordings.image(number)) for number in range(5)]
    bag = recordings.write_bag(tmp_path / "bag", [*frames, ("/front/image", recordings.IMAGE, b"damaged")])
    words = [bag, "--bundle", bundle.path, "--count", 9, "--every", "2s", "--output", tmp_path / "out"]
    assert run(*words) == 1, "one is damaged"
    chosen = sorted(row["image"] for row in selection(tmp_path / "out")["chosen"])
    assert chosen == [f"front-image-{number:010d}000000007.png" for number in (1000, 1002, 1004)]
    written = np.array(Image.open(tmp_path / "out/images" / chosen[1]))
    assert np.array_equal(written, recordings.picture(2))
    assert len(list(open_images(bag).take())) == 5
    write_photos(tmp_path / "photos", 2)
    words = [tmp_path / "photos", "--bundle", bundle.path, "--count", 1, "--target", bag]
    assert run(*words, "--output", tmp_path / "other") == 1, "one is damaged"
    assert selection(tmp_path / "other")["target_images"] == 5


def test_images_between_those_of_every_tell_the_bits_of_the_sensor(tmp_path):
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from recordings import IMAGE, dark_and_bright, write_bag

    messages = [("/image", IMAGE, dark_and_bright(IMAGE, number, most)) for number, most in enumerate((200, 4095, 200))]
    images = open_images(write_bag(tmp_path / "bag", messages), every=2 * 10**9)
    assert [image.pixels.max() for image in images.take()] == [200, round(200 * 255 / 4095)]


@pytest.mark.parametrize("name", ["day_0.db3.zstd", "day_0.mcap.zstd"])
def test_a_compressed_recording_without_metadata_is_no_folder_of_images(tmp_path, name):
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    (tmp_path / name).write_bytes(b"compressed")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(DatasetError, match=r"without the metadata\.yaml .* zstd -d"):
            open_images(source)


def test_an_image_too_large_for_png_is_one_message(tmp_path):
    image = UnlabelledImage("a.png", np.zeros((1, 1_000_001, 3), np.uint8))
    with pytest.raises(OutputError, match="PNG holds at most 1000000 pixels a side"):
        image.copy_to(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_topics_and_times_are_of_whichever_is_a_recording(bundle, tmp_path, capsys):
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    import recordings

    topics = ["/front/image", "/back/image"]
    frames = [(topic, recordings.IMAGE, recordings.image(number)) for number in range(4) for topic in topics]
    bag = recordings.write_bag(tmp_path / "bag", frames)
    write_photos(tmp_path / "photos", 2)
    words = ["--bundle", bundle.path, "--count", 1, "--target"]
    of_photos = [tmp_path / "photos", *words, bag, "--every", "2s"]
    assert run(*of_photos, "--output", tmp_path / "unclear") == 1
    assert "--target: " in capsys.readouterr().err
    for option in ("--topics", "--target-topics"):
        assert run(*of_photos, option, "/front/image", "--output", tmp_path / option) == 0
        assert selection(tmp_path / option)["target_images"] == 2
    output = ["--output", tmp_path / "both"]
    assert run(bag, *words, bag, "--topics", "/back/image", "--target-topics", *topics, *output) == 0
    said = selection(tmp_path / "both")
    assert (said["looked_at"], said["target_images"]) == (4, 8)
    assert run(bag, *words, tmp_path / "photos", "--target-topics", "/a", "--output", tmp_path / "none") == 2
    assert "--target-topics needs a recording as --target" in capsys.readouterr().err
