"""The data sets that need no download: a folder's layouts, masks and complaints, and the procedural scenes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from full_disk import full_disk
from PIL import Image

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.image_files import image_size, read_image
from dinov3_seg_ros.support.errors import DatasetError
from training.data.labelled_folder import FolderData
from training.data.scenes import ScenesData

CLASSES = ["floor", "wall", "box"]


def write_pair(images: Path, masks: Path, stem: str, mask: np.ndarray | None = None, palette: bool = False) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    mask = np.tile(np.array([0, 1, 2, 255], np.uint8), (6, 2)) if mask is None else mask
    Image.fromarray(np.full((6, 8, 3), (200, 100, 50), np.uint8)).save(images / f"{stem}.png")
    picture = Image.fromarray(mask)
    if palette:
        picture = picture.convert("P")
        picture.putdata(mask.ravel().tolist())
        picture.putpalette([value % 256 for value in range(7, 775)])
    picture.save(masks / f"{stem}.png")


def write_split(root: Path, split: str, count: int = 2, **options: object) -> None:
    for index in range(count):
        write_pair(root / split / "images", root / split / "masks", f"{split}_{index}", **options)
    write_pair(root / "val" / "images", root / "val" / "masks", "val_0")


def folder(root: Path, **options: object) -> FolderData:
    return FolderData(root=str(root), classes=CLASSES, **options)


@pytest.mark.parametrize("palette", [False, True])
def test_grey_and_palette_masks_are_read_as_class_ids(tmp_path, palette):
    write_split(tmp_path, "train", palette=palette)
    data = folder(tmp_path).open("train")
    image, mask = data.item(1)
    assert image.shape == (6, 8, 3) and tuple(image[0, 0]) == (200, 100, 50)
    assert mask.dtype == np.uint8 and mask[0].tolist() == [0, 1, 2, 255, 0, 1, 2, 255]
    assert (len(data), data.describe(1), data.class_names) == (2, "train_1.png", CLASSES)


def test_every_ignored_value_becomes_the_one_ignore_value(tmp_path):
    write_split(tmp_path, "train", mask=np.tile(np.array([0, 1, 11, 255], np.uint8), (6, 2)))
    data = folder(tmp_path, ignore=[11, 255]).open("train")
    assert data.item(0)[1][0, :4].tolist() == [0, 1, data.ignore_value, data.ignore_value]


def test_an_ignored_value_that_is_a_class_id_is_refused(tmp_path):
    write_split(tmp_path, "train")
    with pytest.raises(DatasetError, match=r"data\.ignore holds the value 2, which is that of the class 'box'"):
        folder(tmp_path, ignore=[255, 2]).open("train")


@pytest.mark.parametrize(("classes", "unlabelled"), [(255, 255), (256, 65535), (300, 65535)])
def test_by_default_no_class_is_ignored_and_the_unlabelled_value_is(tmp_path, classes, unlabelled):
    ids = np.full((6, 8), unlabelled, np.uint16)
    ids[0], ids[1] = classes - 1, min(classes - 1, 255)
    write_split(tmp_path, "train", count=1)
    Image.fromarray(ids).save(tmp_path / "train" / "masks" / "train_0.png")
    section = FolderData(root=str(tmp_path), classes=[f"c{i}" for i in range(classes)])
    data = section.open("train")
    assert (data.ignore_value, section.resolved().ignore) == (unlabelled, [unlabelled])
    assert np.array_equal(data.item(0)[1], ids)


COLOURS = {"floor": [128, 0, 0], "wall": [0, 128, 0], "box": [1, 2, 3]}


def write_colours(root: Path, colours: list[list[int]], mode: str = "RGB") -> None:
    write_split(root, "train", count=1)
    mask = np.tile(np.array(colours, np.uint8), (6, 8 // len(colours), 1))
    Image.fromarray(mask).convert(mode).save(root / "train" / "masks" / "train_0.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_of_colours_are_read_as_class_ids(tmp_path, mode):
    write_colours(tmp_path, [[1, 2, 3], [128, 0, 0], [0, 128, 0], [0, 0, 0]], mode)
    data = FolderData(root=str(tmp_path), classes=COLOURS, ignore=[[0, 0, 0]]).open("train")
    mask = data.item(0)[1]
    assert mask.dtype == np.uint8 and mask[5, :4].tolist() == [2, 0, 1, 255]


def test_an_ignored_colour_that_a_class_has_is_refused(tmp_path):
    write_colours(tmp_path, [[1, 2, 3]])
    section = FolderData(root=str(tmp_path), classes=COLOURS, ignore=[[0, 0, 0], [1, 2, 3]])
    with pytest.raises(DatasetError, match=r"data\.ignore holds the colour \[1, 2, 3\], .* the class 'box'"):
        section.open("train")


def test_more_than_255_classes_have_wide_masks(tmp_path):
    write_split(tmp_path, "train", count=1)
    ids = np.full((6, 8), 299, np.uint16)
    ids[0] = 300
    Image.fromarray(ids).save(tmp_path / "train" / "masks" / "train_0.png")
    section = FolderData(root=str(tmp_path), classes=[f"c{i}" for i in range(300)], ignore=[300])
    mask = section.open("train").item(0)[1]
    assert mask.dtype == np.uint16 and mask[:2, 0].tolist() == [65535, 299]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_an_image_is_turned_as_its_exif_tag_says(tmp_path, orientation, suffix, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, channels), np.uint8)
    seen = {
        3: pixels[::-1, ::-1],
        5: np.swapaxes(pixels, 0, 1),
        6: np.rot90(pixels, -1),
        7: np.swapaxes(pixels[::-1, ::-1], 0, 1),
        8: np.rot90(pixels),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels.squeeze()).save(path, exif=exif, lossless=True)
    assert np.array_equal(read_image(path), np.broadcast_to(seen, (*seen.shape[:2], 3)))
    assert image_size(path) == seen.shape[:2]


def test_a_share_is_held_out_where_there_are_no_splits(tmp_path):
    for index in range(10):
        write_pair(tmp_path / "images", tmp_path / "masks", f"i{index}")
    section = folder(tmp_path, val_fraction=0.3)
    names = {
        split: {data.describe(i) for i in range(len(data))}
        for split, data in ((split, section.open(split)) for split in ("train", "val"))
    }
    assert len(names["val"]) == 3 and len(names["train"]) == 7 - 1, "all but the one beside the run"
    assert not names["val"] & names["train"]


def test_all_may_be_held_out_where_nothing_is_to_be_trained(tmp_path):
    assert len(fraction_of_almost_all(tmp_path).open("val")) == 3


def test_classes_come_from_the_data_sets_own_file(tmp_path):
    write_split(tmp_path, "train")
    (tmp_path / "classes.yaml").write_text(
        yaml.safe_dump({"a": [1, 2, 3], "b": [4, 5, 6], "c": [7, 8, 9]}, sort_keys=False)
    )
    data = FolderData(root=str(tmp_path)).open("train")
    assert data.class_names == ["a", "b", "c"]
    assert data.palette[1] == (4, 5, 6)


def missing_root(root: Path) -> FolderData:
    return folder(root / "absent")


def needless_fraction(root: Path) -> FolderData:
    write_split(root, "train")
    return folder(root, val_fraction=0.5)


def single_image_to_be_split(root: Path) -> FolderData:
    write_pair(root / "images", root / "masks", "a")
    return folder(root, val_fraction=0.1)


def fraction_of_almost_all(root: Path) -> FolderData:
    for stem in "abc":
        write_pair(root / "images", root / "masks", stem)
    return folder(root, val_fraction=0.9)


def missing_masks_folder(root: Path) -> FolderData:
    (root / "train" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(root / "train" / "images" / "a.png")
    return folder(root)


def empty_folder(root: Path) -> FolderData:
    (root / "train" / "images").mkdir(parents=True)
    (root / "train" / "masks").mkdir()
    return folder(root)


def image_without_mask(root: Path) -> FolderData:
    write_split(root, "train")
    (root / "train" / "masks" / "train_1.png").unlink()
    return folder(root)


def two_images_of_one_stem(root: Path) -> FolderData:
    write_split(root, "train")
    Image.new("RGB", (8, 6)).save(root / "train" / "images" / "train_0.jpg")
    return folder(root)


def unreadable_image(root: Path) -> FolderData:
    write_split(root, "train", count=1)
    (root / "train" / "images" / "train_0.png").write_bytes(b"no picture")
    return folder(root)


def unreadable_mask(root: Path) -> FolderData:
    write_split(root, "train", count=1)
    file = root / "train" / "masks" / "train_0.png"
    file.write_bytes(file.read_bytes()[:45])
    return folder(root)


def colour_mask(root: Path) -> FolderData:
    write_split(root, "train", count=1)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(root / "train" / "masks" / "train_0.png")
    return folder(root)


def unknown_colour(root: Path) -> FolderData:
    write_colours(root, [[128, 0, 0], [9, 8, 7]])
    return FolderData(root=str(root), classes=COLOURS)


def two_classes_of_one_colour(root: Path) -> FolderData:
    write_colours(root, [[128, 0, 0]])
    return FolderData(root=str(root), classes={"floor": [128, 0, 0], "wall": [128, 0, 0]})


def image_cut_short(root: Path) -> FolderData:
    write_split(root, "train", count=1)
    path = root / "train" / "images" / "train_0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    path.with_suffix(".png").unlink()
    return folder(root)


def image_of_32_bits(root: Path) -> FolderData:
    write_split(root, "train", count=1)
    (root / "train" / "images" / "train_0.png").unlink()
    Image.fromarray(np.zeros((6, 8), np.int32)).save(root / "train" / "images" / "train_0.tif")
    return folder(root)


def other_size(root: Path) -> FolderData:
    write_split(root, "train", count=1, mask=np.zeros((6, 9), np.uint8))
    return folder(root)


def value_out_of_range(root: Path) -> FolderData:
    write_split(root, "train", count=1, mask=np.full((6, 8), 3, np.uint8))
    return folder(root)


def no_classes(root: Path) -> FolderData:
    write_split(root, "train")
    return FolderData(root=str(root))


def wrong_classes_file(root: Path) -> FolderData:
    write_split(root, "train")
    (root / "classes.yaml").write_text("a: [1, 2]")
    return FolderData(root=str(root))


def file_with_two_classes_of_one_name(root: Path) -> FolderData:
    write_split(root, "train")
    (root / "classes.yaml").write_text("[floor, wall, floor]")
    return FolderData(root=str(root))


def file_with_names_that_differ_in_type(root: Path) -> FolderData:
    write_split(root, "train")
    (root / "classes.yaml").write_text("1: [0, 0, 0]\n'1': [1, 1, 1]")
    return FolderData(root=str(root))


def colour_out_of_range(root: Path) -> FolderData:
    write_split(root, "train")
    return FolderData(root=str(root), classes={**COLOURS, "box": [0, 256, 0]})


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (missing_root, ["absent", "no such folder", "data.root"]),
        (needless_fraction, ["val_fraction", "remove"]),
        (single_image_to_be_split, ["data.val_fraction is 0.1", "no image of 1 to train on"]),
        (fraction_of_almost_all, ["data.val_fraction is 0.9", "no image of 3 to train on"]),
        (missing_masks_folder, ["no image with a mask", "(1 image files)", "data.images and data.masks"]),
        (empty_folder, ["no image with a mask", "(0 image files)"]),
        (image_without_mask, ["1 of 2 images", "train_1.png", "masks"]),
        (two_images_of_one_stem, ["train_0.jpg", "same stem"]),
        (unreadable_image, ["train_0.png", "cannot be read"]),
        (image_cut_short, ["train_0.jpg", "cannot be read", "truncated"]),
        (image_of_32_bits, ["train_0.tif", "16 bits"]),
        (unreadable_mask, ["train_0.png", "cannot be read"]),
        (colour_mask, ["train_0.png", "colour", "data.classes"]),
        (unknown_colour, ["train_0.png", "[9, 8, 7]", "row 0, column 1", "data.ignore"]),
        (two_classes_of_one_colour, ["train_0.png", "'floor' and to 'wall'", "no two the same"]),
        (other_size, ["9x6", "8x6"]),
        (value_out_of_range, ["train_0.png", "value 3", "row 0, column 0", "0 to 2", "[255]"]),
        (no_classes, ["class names", "classes.yaml"]),
        (wrong_classes_file, ["classes.yaml", "'a'", "[1, 2]", "[r, g, b]"]),
        (file_with_two_classes_of_one_name, ["classes.yaml", "'floor'", "two classes"]),
        (file_with_names_that_differ_in_type, ["classes.yaml", "'1'", "two classes"]),
        (colour_out_of_range, ["data.classes", "'floor' and to 'wall'", "colours", "0 to 255"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_clear_message_for_what_is_wrong_with_a_folder(tmp_path, make, parts):
    with pytest.raises(DatasetError) as error:
        make(tmp_path).open("train").item(0)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_one_stem_in_two_sequences_show_patterns_that_tell_them_apart(tmp_path):
    for drive in ("drive_0", "drive_1"):
        folders = (f"raw/{drive}/image_00/data_rect", f"semantics/train/{drive}/image_00/semantic")
        write_pair(*(tmp_path / name for name in folders), "0250")
    with pytest.raises(DatasetError) as error:
        folder(tmp_path, images="image_00/data_rect", masks="image_00/semantic").open("train")
    said = (
        "raw/drive_0/image_00/data_rect/0250.png and raw/drive_1/image_00/data_rect/0250.png in .* have the same stem; "
        ".* such as 'raw/\\*/image_00/data_rect/\\*.png'"
    )
    assert re.search(said, str(error.value)), str(error.value)
    patterns = {"images": "raw/*/image_00/data_rect/*.png", "masks": "semantics/train/*/image_00/semantic/*.png"}
    assert len(folder(tmp_path, **patterns).open_all()) == 2


def test_scenes_from_the_cache_equal_rendered_ones(tmp_path):
    plain = ScenesData(count=2, size=(48, 64), cache=None).open("train")
    cached = ScenesData(count=2, size=(48, 64), cache=str(tmp_path)).open("train")
    for data in (plain, cached, cached):
        image, mask = data.item(1)
        expected_image, expected_mask = scenes.sample("train", 1, (48, 64))
        assert np.array_equal(image, expected_image) and np.array_equal(mask, expected_mask)
    assert plain.class_names == list(scenes.CLASS_NAMES)


def test_a_damaged_cache_entry_is_rendered_again(tmp_path):
    data = ScenesData(count=1, size=(48, 64), cache=str(tmp_path)).open("val")
    image, _ = data.item(0)
    file = next(tmp_path.rglob("*.npy"))
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(data.item(0)[0], image)
    assert np.load(file).shape == (48, 64, 4)


def test_scenes_are_rendered_each_time_on_a_full_disk_with_one_warning(tmp_path):
    data = ScenesData(count=2, size=(48, 64), cache=str(tmp_path)).open("train")
    data.item(0)
    before = list(tmp_path.rglob("*.npy"))
    with full_disk(1000), pytest.warns(UserWarning, match="data.cache") as warned:
        for index in (1, 0, 1):
            for found, expected in zip(data.item(index), scenes.sample("train", index, (48, 64)), strict=True):
                assert np.array_equal(found, expected)
    assert len(warned) == 1
    assert list(tmp_path.rglob("*.npy")) == before


def test_a_relative_root_that_is_absent_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=f"own/data: there is no such folder in {re.escape(os.getcwd())}; set data"):
        folder(Path("own/data")).open("train")
