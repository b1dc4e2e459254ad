"""Every format of labelled folders comes to the same labels, and is found by what lies in the folder."""

from __future__ import annotations

import base64
import codecs
import contextlib
import csv
import functools
import io
import json
import pickle
import shutil
import struct
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import labelled_folders
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_datasets
import yaml
from closed_folder import make_closed_folder
from full_disk import full_disk
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from dinov3_seg_ros.frames.image_files import HEAD_BYTES
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.checks.problems import check_before_training
from training.data import DATASETS, IncompleteError
from training.data.formats import all_formats
from training.data.image_values import image_values
from training.data.labelled_folder import AutoData
from training.data.reading import tables
from training.data.reading.protocol import NO_PATTERNS
from training.data.reading.tree import Tree


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Tables are copied into the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def labels_by_name(data, index: int) -> np.ndarray:
    """Names of the classes of an item's pixels."""
    names = np.array([*data.class_names, *[""] * (255 - len(data.class_names)), "ignored"])
    return names[data.item(index)[1]]


@pytest.mark.parametrize("name", sorted(labelled_folders.BUILDERS))
def test_a_folder_is_found_and_read_without_more_settings(tmp_path, name):
    labelled_folders.BUILDERS[name](tmp_path)
    section = AutoData(root=str(tmp_path))
    found = section.found()
    assert found.kind == name and found.why, found
    check_truth(section)
    assert section.resolved().format == name


def check_truth(section: AutoData) -> None:
    """Both splits have the labels that `labelled_folders` writes, also in another process."""
    for split, count in tiny_datasets.COUNTS.items():
        data = pickle.loads(pickle.dumps(section.open(split)))
        assert len(data) == count and data.class_names == labelled_folders.NAMES
        for index, seed in enumerate(tiny_datasets.seeds(split)):
            expected = np.array(labelled_folders.NAMES)[labelled_folders.truth(seed)]
            assert np.array_equal(labels_by_name(data, index), expected), (split, index)
            assert np.array_equal(data.item(index)[1], data.mask(index))
        assert data.contents().files


def test_a_tilde_in_root_is_the_users_folder(tmp_path, monkeypatch):
    labelled_folders.build_folder(tmp_path / "rooms")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(AutoData(root="~/rooms").open("train")) == 4


def test_every_format_is_tested():
    assert set(all_formats()) == set(labelled_folders.BUILDERS) | {"ade20k", "cityscapes"}


def build_voc(root: Path) -> None:
    tiny_datasets.build_voc(root, augmented=False)
    for folder in ("Annotations", "SegmentationObject"):
        labelled_folders.put(root / folder / "2007_000000.xml", "")


def build_coco(root: Path) -> None:
    """COCO's own annotations, its instances too."""
    tiny_datasets.build_coco_panoptic(root)
    instances = {"info": {}, "images": [], "annotations": [], "categories": []}
    labelled_folders.put(root / "annotations/instances_val2017.json", instances)
    labelled_folders.put(root / "annotations/captions_val2017.json", {"images": [], "annotations": []})


@pytest.mark.parametrize(
    ("published", "found", "build"),
    [
        ("ade20k", "ade20k", tiny_datasets.build_ade20k),
        ("cityscapes", "cityscapes", tiny_datasets.build_cityscapes),
        ("coco_panoptic", "coco_panoptic", build_coco),
        ("voc", "voc_folders", build_voc),
    ],
)
def test_published_layouts_are_found_with_their_classes(tmp_path, published, found, build):
    build(tmp_path)
    section = AutoData(root=str(tmp_path))
    assert section.found().kind == found
    for split in tiny_datasets.COUNTS:
        data, expected = section.open(split), DATASETS[published](root=str(tmp_path)).open(split)
        assert (data.class_names, len(data)) == (expected.class_names, len(expected))
        assert all(np.array_equal(data.mask(index), expected.mask(index)) for index in range(len(data)))


@pytest.mark.parametrize(
    ("images", "masks", "colours"),
    [("default", "defaultannot", None), ("default/image_2", "default/semantic", "default/semantic_rgb")],
)
def test_cvats_exports_as_camvid_and_kitti_are_read(tmp_path, images, masks, colours):
    lines = (
        f"{r} {g} {b} {name}" for (r, g, b), name in zip(labelled_folders.COLOURS, labelled_folders.NAMES, strict=True)
    )
    labelled_folders.put(tmp_path / "label_colors.txt", "\n".join(lines))
    for _, stem, seed in labelled_folders.items():
        tiny_datasets.save_image(tmp_path / images / f"{stem}.png", seed)
        coloured = np.array(labelled_folders.COLOURS, np.uint8)[labelled_folders.truth(seed)]
        labelled_folders.put(
            tmp_path / masks / f"{stem}.png", coloured if colours is None else labelled_folders.truth(seed)
        )
        if colours is not None:
            labelled_folders.put(tmp_path / colours / f"{stem}.png", coloured)
    data = AutoData(root=str(tmp_path), val_fraction=0.5, group="none").open("train")
    truths = {stem: labelled_folders.truth(seed) for _, stem, seed in labelled_folders.items()}
    assert data.class_names == labelled_folders.NAMES
    assert all(np.array_equal(data.mask(i), truths[data.samples[i].image.stem]) for i in range(len(data)))


def test_cityscapes_layout_with_a_list_of_classes_has_these(tmp_path):
    lines = [
        f"{r} {g} {b} {name}" for (r, g, b), name in zip(labelled_folders.COLOURS, labelled_folders.NAMES, strict=True)
    ]
    labelled_folders.put(tmp_path / "label_colors.txt", "\n".join(lines))
    for split, stem, seed in labelled_folders.items():
        tiny_datasets.save_image(tmp_path / "imgsFine/leftImg8bit" / split / f"{stem}_leftImg8bit.png", seed)
        labelled_folders.put(tmp_path / "gtFine" / split / f"{stem}_gtFine_labelIds.png", labelled_folders.truth(seed))
    section = AutoData(root=str(tmp_path))
    assert section.found().kind == "cityscapes"
    check_truth(section)


def test_classes_of_a_published_data_set_can_be_merged(tmp_path):
    tiny_datasets.build_ade20k(tmp_path)
    data = AutoData(root=str(tmp_path), classes={"ground": ["floor", "rug"], "other": "rest"}).open("train")
    values = np.array(Image.open(data.samples[0].labels))
    assert np.array_equal(data.mask(0) == 0, np.isin(values, [4, 29]))
    assert np.array_equal(data.mask(0) == 255, values == 0)


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    check_truth(AutoData(root=str(tmp_path)))


def test_the_content_of_a_split_tells_which_rows_of_a_table_it_has(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    shutil.rmtree(tmp_path / "validation")
    halves = [AutoData(root=str(tmp_path), val_fraction=0.5, group="none").open(split) for split in ("train", "val")]
    assert [len(half) for half in halves] == [2, 2]
    assert halves[0].contents().files == halves[1].contents().files
    assert halves[0].contents().digest() != halves[1].contents().digest()


@pytest.mark.parametrize("kind", ["huggingface_datasets", "labelme"])
def test_bit_depths_are_told_by_the_first_bytes_of_images(tmp_path, kind):
    labelled_folders.BUILDERS[kind](tmp_path)
    if kind == "labelme":
        put_images_inside(tmp_path)
    samples = all_formats()[kind].open(Tree(tmp_path), NO_PATTERNS).all_samples()
    asked: list[int] = []

    def counting(content, size):
        asked.append(size)
        return content(size)

    watched = [sample._replace(content=functools.partial(counting, sample.content)) for sample in samples]
    assert image_values(watched).number == 0
    assert asked == [HEAD_BYTES] * len(samples)
    assert all(sample.content(HEAD_BYTES) == sample.content(-1)[:HEAD_BYTES] for sample in samples)


def test_16_bit_images_in_a_table_are_found(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    pixels = tiny_datasets.image_of(0).astype(np.uint16) * 257
    rows = [row | {"image": {"bytes": png_of_16_bits(pixels), "path": None}} for row in table.to_pylist()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), path)
    assert "4 images have 16 bits" in str(AutoData(root=str(tmp_path)).found().notes)


def test_columns_of_a_table_can_be_named(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    with pytest.raises(
        DatasetError, match=r"data\.masks is 'mask', but the columns of images .*\['image', 'annotation'\]"
    ):
        AutoData(root=str(tmp_path), format="huggingface_datasets", masks="mask").open("train")
    check_truth(AutoData(root=str(tmp_path), format="huggingface_datasets", images="image", masks="annotation"))


def test_tables_without_pyarrow_say_what_to_install(tmp_path, monkeypatch):
    labelled_folders.build_huggingface_datasets(tmp_path)
    monkeypatch.setattr(tables, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"\.parquet can only be read with pyarrow: pip install '.*\[parquet\]'"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_full_disk_is_told_from_a_damaged_table(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    with full_disk(2000), pytest.raises(DatasetError, match=r"cannot be copied to .*free some space there"):
        AutoData(root=str(tmp_path)).open("train")
    check_truth(AutoData(root=str(tmp_path)))


def test_offsets_of_a_table_that_are_damaged_never_crash(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    path = tmp_path / "train/data-00000-of-00001.arrow"
    content = path.read_bytes()
    for start in range(0, len(content) - 8, max(8, len(content) // 150)):
        path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
        with contextlib.suppress(DatasetError):
            data = AutoData(root=str(tmp_path)).open("train")
            _ = [data.item(index) for index in range(len(data))]


def test_a_negative_value_of_a_class_is_refused(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    (tmp_path / "id2label.json").write_text('{"-1": "nothing", "1": "road"}')
    with pytest.raises(DatasetError, match=r"id2label\.json gives 'nothing' the value -1; values of masks are from 0"):
        AutoData(root=str(tmp_path)).open("train")


def test_pages_of_a_table_that_are_damaged_are_named(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = b"x" * 396
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.parquet cannot be read"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_damaged_table_is_named(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DatasetError, match=r"train-00000-of-00001\.parquet cannot be read .*download or export it anew"
    ):
        AutoData(root=str(tmp_path)).open("train")


def test_a_parquet_file_that_names_masks_is_a_list_of_metadata(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
        path.unlink()
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["", "val"])
def test_metadata_whose_first_row_lacks_its_mask_is_read(tmp_path, folder):
    labelled_folders.build_huggingface_images(tmp_path)
    shutil.copy(tmp_path / "id2label.json", tmp_path / "val")
    min(tmp_path.glob("val/labels/*")).unlink()
    section = AutoData(root=str(tmp_path / folder))
    assert section.found().kind == "huggingface_images"
    with pytest.raises(IncompleteError, match=r"1 of \d images .*val/labels/val_"):
        section.open_all()


def test_lines_of_metadata_end_where_json_says(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) | {"caption": "two\u2028lines\x85 \x0b"} for line in path.read_text().splitlines()]
        path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["train", "val"])
def test_each_file_of_metadata_may_have_columns_of_its_own(tmp_path, folder):
    labelled_folders.build_huggingface_images(tmp_path)
    path = tmp_path / folder / "metadata.jsonl"
    path.write_text(path.read_text().replace("label_file_name", "mask").replace('"file_name"', '"image"'))
    check_truth(AutoData(root=str(tmp_path)))


def test_the_masks_of_metadata_are_told_from_other_pictures(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{"file_name": row["file_name"], "depth_file_name": row["file_name"], **row} for row in rows]
        path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recording").mkdir()
    (tmp_path / "recording/metadata.csv").write_text("topic,count\n/image,3\n")
    (tmp_path / "previews").mkdir()
    shutil.copy(min(tmp_path.glob("val/*.jpg")), tmp_path / "previews/a.jpg")
    shutil.copy(min(tmp_path.glob("val/*.jpg")), tmp_path / "previews/b.jpg")
    (tmp_path / "previews/metadata.csv").write_text("file_name,next\na.jpg,b.jpg\n")
    check_truth(AutoData(root=str(tmp_path)))
    min(tmp_path.glob("train/labels/*")).unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 images .*train/labels/train_"):
        AutoData(root=str(tmp_path)).open("train")


def put_images_inside(root: Path) -> None:
    """Move each image into its JSON."""
    for path in root.rglob("*.json"):
        content, image = json.loads(path.read_text()), path.with_suffix(".jpg")
        content |= {
            "imageData": base64.b64encode(image.read_bytes()).decode(),
            "imagePath": f"..\\photos\\{image.name}",
        }
        path.write_text(json.dumps(content))
        image.unlink()


def test_labelme_images_are_taken_out_of_their_json(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    put_images_inside(tmp_path)
    section = AutoData(root=str(tmp_path))
    check_truth(section)
    assert section.open("train").describe(0) == "train_0000.jpg"
    assert np.array_equal(section.open("train").item(1)[0].shape, (*labelled_folders.truth(0).shape, 3))


def test_a_damaged_image_inside_a_json_is_named(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    path = tmp_path / "train/train_0001.json"
    path.write_text(path.read_text().replace('"imageData": null', '"imageData": "!"'))
    path.with_suffix(".jpg").unlink()
    with pytest.raises(ItemError, match=r"train_0001\.json holds no image in imageData"):
        AutoData(root=str(tmp_path)).open("train").item(1)


def test_masks_of_label_studio_without_their_tasks_are_explained(tmp_path):
    labelled_folders.build_label_studio_png(tmp_path)
    (tmp_path / "project.csv").unlink()
    with pytest.raises(DatasetError, match=r"which image task 7 is \(6 of 6 tasks\): export the same project as CSV"):
        AutoData(root=str(tmp_path)).open("train")


def test_what_is_of_no_known_format_is_described(tmp_path):
    (tmp_path / "notes.doc").write_text("")
    with pytest.raises(DatasetError, match=r"of no known format: it has 1 \.doc.*docs/data\.md"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_folder_of_two_formats_asks_for_one(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    labelled_folders.build_coco(tmp_path)
    with pytest.raises(DatasetError, match=r"several formats: coco \(.*; labelme \(.*Set data\.format"):
        AutoData(root=str(tmp_path)).open("train")
    assert len(AutoData(root=str(tmp_path), format="labelme").open("val")) == 2


def test_a_misspelt_format_names_the_nearest(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    with pytest.raises(DatasetError, match=r"'labelmee'.*labelme.*the formats are: auto, ade20k"):
        AutoData(root=str(tmp_path), format="labelmee").open("train")


def test_named_classes_are_merged_reordered_and_ignored(tmp_path):
    labelled_folders.build_coco(tmp_path)
    section = AutoData(root=str(tmp_path), classes={"way": ["road", "door"], "rest": "background"}, ignore="tree")
    data = section.open("val")
    labels, expected = data.item(0)[1], labelled_folders.truth(tiny_datasets.seeds("val")[0])
    assert data.class_names == ["way", "rest"]
    assert np.array_equal(labels, np.array([1, 0, 0, 255])[expected])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": ["road", "doro"]}, r"'doro', which is none of the classes.*mean 'door'.*background, door"),
        ({"classes": ["road"]}, r"says nothing of 3 classes .*: background, door, tree;.*ignore: rest"),
        ({"classes": {"road": 2}}, r"value 2, but the labels of this folder are shapes.*names"),
        ({"classes": {"a": "rest"}, "ignore": "rest"}, "rest stands in two places"),
    ],
)
def test_classes_that_do_not_fit_the_folder_are_refused(tmp_path, settings, said):
    labelled_folders.build_coco(tmp_path)
    with pytest.raises(DatasetError, match=said):
        AutoData(root=str(tmp_path), **settings).open("train")


@pytest.mark.parametrize("build", [labelled_folders.build_coco, labelled_folders.build_folder])
def test_colours_of_the_folders_own_classes_change_no_class(tmp_path, build):
    build(tmp_path)
    (own := AutoData(root=str(tmp_path)).open("train")).item(0)
    turned = {name: [0, 0, index] for index, name in enumerate(reversed(own.class_names))}
    data = AutoData(root=str(tmp_path), classes=turned).open("train")
    assert np.array_equal(data.item(0)[1], len(turned) - 1 - own.item(0)[1])
    with pytest.raises(DatasetError, match=r"says nothing of|colours without a value"):
        AutoData(root=str(tmp_path), classes={"sky": [0, 0, 9], **dict(list(turned.items())[1:])}).open("train").item(0)


@pytest.mark.parametrize("kind", ["labelme", "label_studio", "via"])
def test_shapes_may_lack_classes_that_have_colours(tmp_path, kind):
    labelled_folders.BUILDERS[kind](tmp_path)
    colours = {name: [0, 0, index] for index, name in enumerate(["sky", *labelled_folders.NAMES])}
    data = AutoData(root=str(tmp_path), classes=colours).open("train")
    assert data.class_names == list(colours)
    assert np.array_equal(data.item(0)[1], labelled_folders.truth(0) + 1)
    with pytest.raises(DatasetError, match=r"1 classes .*: tree; .*Of these classes there is no label: sky"):
        AutoData(root=str(tmp_path), classes={name: colours[name] for name in list(colours)[:4]}).open("train")


def test_shapes_without_a_class_of_their_own_belong_to_the_rest(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    data = AutoData(root=str(tmp_path), classes={"road": [0, 0, 1], "other": "rest"}).open("train")
    assert np.array_equal(data.item(0)[1] == 0, labelled_folders.truth(0) == 2)
    data = AutoData(root=str(tmp_path), classes={"all": "rest"}).open("train")
    assert not data.item(0)[1].any()


@pytest.mark.parametrize("ignore", ["auto", "rest"])
def test_shapes_of_wholly_other_classes_are_refused(tmp_path, ignore):
    labelled_folders.build_labelme(tmp_path)
    section = AutoData(root=str(tmp_path), classes={"sky": [0, 0, 1], "sea": [0, 0, 2]}, ignore=ignore)
    with pytest.raises(DatasetError, match=r"none of the classes sky, sea, but background, door.*classes\.yaml"):
        section.open("train")


def test_classes_that_a_recipe_leaves_out_can_be_ignored_at_once(tmp_path):
    labelled_folders.build_coco(tmp_path)
    data = AutoData(root=str(tmp_path), classes=["road"], ignore="rest").open("train")
    assert np.array_equal(data.item(0)[1] == 0, labelled_folders.truth(0) == 2)


def test_an_image_in_two_files_of_coco_is_refused(tmp_path):
    labelled_folders.build_coco(tmp_path)
    shutil.copy(tmp_path / "train" / "_annotations.coco.json", tmp_path / "train" / "more.json")
    with pytest.raises(DatasetError, match=r"train_0000\.jpg is in .*_annotations.* and in .*more\.json .*; keep"):
        AutoData(root=str(tmp_path)).open("train")


IMAGE_LISTS = {
    "coco": lambda names: {
        "images": [{"id": index, "file_name": name, "width": 48, "height": 40} for index, name in enumerate(names)],
        "annotations": [
            {"id": index, "image_id": index, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
            for index in range(len(names))
        ],
        "categories": [{"id": 1, "name": "road"}],
    },
    "datumaro": lambda names: {
        "categories": {"label": {"labels": [{"name": "road"}]}},
        "items": [{"id": name, "annotations": [], "image": {"path": name, "size": [40, 48]}} for name in names],
    },
    "via": lambda names: {
        name: {
            "filename": name,
            "regions": [{
                "shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9},
                "region_attributes": {"class": "road"},
            }],
        }
        for name in names
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(IMAGE_LISTS))
def test_an_image_is_never_taken_for_another_of_its_name(tmp_path, kind):
    tiny_datasets.save_image(tmp_path / "b/0001.png", 0)
    labelled_folders.put(tmp_path / "annotations.json", IMAGE_LISTS[kind](["a/0001.png", "b/0001.png"]))
    with pytest.raises(DatasetError, match=r"b/0001\.png is in .*\(a/0001\.png\) and in .*\(b/0001\.png\); keep one"):
        AutoData(root=str(tmp_path)).open_all()
    tiny_datasets.save_image(tmp_path / "a/0002.png", 1)
    with pytest.raises(IncompleteError, match=r"1 of 2 images .*a/0001\.png"):
        AutoData(root=str(tmp_path)).open_all()


@pytest.mark.parametrize("written", ["images/{}", "export/images/{}", "/home/somebody/images/{}", "C:\\images\\{}"])
def test_a_mask_is_never_taken_for_an_image_that_is_missing(tmp_path, written):
    for stem in "12":
        tiny_datasets.save_image(tmp_path / f"images/{stem}.png", 0)
        labelled_folders.put(tmp_path / f"masks/{stem}.png", labelled_folders.truth(0))
    names = [written.format(f"{stem}.png") for stem in "12"]
    labelled_folders.put(tmp_path / "instances.json", IMAGE_LISTS["coco"](names))
    assert [sample.image.parent.name for sample in AutoData(root=str(tmp_path)).open_all().samples] == ["images"] * 2
    (tmp_path / "images/2.png").unlink()
    with pytest.raises(IncompleteError, match=r"1 of 2 images .*2\.png"):
        AutoData(root=str(tmp_path)).open_all()


def test_a_panoptic_mask_is_never_taken_for_its_image(tmp_path):
    labelled_folders.build_coco_panoptic(tmp_path)
    for path in tmp_path.rglob("images/*/*.jpg"):
        path.rename(path.with_suffix(".png"))
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text().replace(".jpg", ".png"))
    assert len(AutoData(root=str(tmp_path)).open("train")) == 4
    (tmp_path / "images/train/train_0001.png").unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 images .*train_0001\.png"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("kind", ["cvat_images", "label_studio"])
def test_an_export_that_is_there_twice_is_refused(tmp_path, kind):
    labelled_folders.BUILDERS[kind](tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.is_file())
    shutil.copy(path, path.with_stem("again"))
    with pytest.raises(DatasetError, match=rf"train_0000\.jpg is in .*again.* and in .*{path.name}.*; keep one"):
        AutoData(root=str(tmp_path)).open("train")


def test_labelmes_image_is_of_its_own_folder_if_that_has_images(tmp_path):
    for name in ("a/1", "a/2", "b/1"):
        tiny_datasets.save_image(tmp_path / f"{name}.png", 0)
        content = {"shapes": [], "imagePath": f"{name[-1]}.png", "imageData": None}
        labelled_folders.put(tmp_path / f"{name}.json", content)
    (tmp_path / "a/1.png").unlink()
    data = AutoData(root=str(tmp_path)).open_all()
    assert [sample.image.relative_to(tmp_path).as_posix() for sample in data.samples] == ["a/2.png", "b/1.png"]
    assert data.spare_masks == [tmp_path / "a/1.json"]


def test_a_category_that_coco_does_not_list_is_named(tmp_path):
    labelled_folders.build_coco(tmp_path)
    path = tmp_path / "train" / "_annotations.coco.json"
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 9'))
    with pytest.raises(DatasetError, match=r"_annotations\.coco\.json is not laid out.*the category 9"):
        AutoData(root=str(tmp_path)).open("train")


def only_boxes(content: dict) -> None:
    for annotation in content["annotations"]:
        annotation.update(segmentation=[], bbox=[4, 4, 8, 6])


def test_boxes_of_coco_are_no_regions_unless_the_recipe_says_so(tmp_path):
    labelled_folders.build_coco(tmp_path)
    edit(tmp_path / "train/_annotations.coco.json", only_boxes)
    assert "12 annotations have a box alone, which is filled" in AutoData(root=str(tmp_path)).found().notes
    edit(tmp_path / "valid/_annotations.coco.json", only_boxes)
    with pytest.raises(
        DatasetError, match=r"_annotations\.coco\.json holds boxes, .* With data\.format: coco each box is"
    ):
        AutoData(root=str(tmp_path)).open("train")
    section = AutoData(root=str(tmp_path), format="coco")
    assert section.open("train").mask(0).any() and "18 annotations have a box alone" in str(section.found().notes)


def test_keypoints_of_coco_are_not_read_as_regions(tmp_path):
    labelled_folders.build_coco(tmp_path)
    shutil.copy(tmp_path / "train/_annotations.coco.json", tmp_path / "train/person_keypoints_default.json")
    check_truth(AutoData(root=str(tmp_path)))


def test_ids_of_images_in_coco_may_be_text(tmp_path):
    labelled_folders.build_coco(tmp_path)
    expected = AutoData(root=str(tmp_path)).open("train").item(0)[1]
    path = tmp_path / "train" / "_annotations.coco.json"
    edit(path, lambda c: c.update(images=[image | {"id": str(image["id"])} for image in c["images"]]))
    assert np.array_equal(AutoData(root=str(tmp_path)).open("train").item(0)[1], expected)


def test_an_image_that_an_annotation_names_and_nobody_has_is_missing(tmp_path):
    labelled_folders.build_coco(tmp_path)
    (tmp_path / "train" / "train_0001.jpg").unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 images .*train_0001\.jpg"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("name", "file"), [("labelme", "train/train_0001.json"), ("yolo", "train/labels/train_0001.txt")]
)
def test_a_damaged_file_of_shapes_is_named(tmp_path, name, file):
    labelled_folders.BUILDERS[name](tmp_path)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace('"points"', '"dots"') if name == "labelme" else text + "0 0.1 0.2 0.3\n")
    with pytest.raises(ItemError, match=rf"{file} does not describe the labels of train_0001\.jpg.*export it anew"):
        AutoData(root=str(tmp_path)).open("train").item(1)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change the content of a JSON, or of the last line of several."""
    *lines, last = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    content = json.loads(last)
    change(content)
    path.write_text("\n".join([*lines, json.dumps(content)]))


def long_runs(content: dict) -> None:
    region = next(found["segmentation"] for found in content["annotations"] if isinstance(found["segmentation"], dict))
    region["counts"][-1] += 100_000


def half_size(content: dict) -> None:
    region = next(found["segmentation"] for found in content["annotations"] if isinstance(found["segmentation"], dict))
    region.update(size=[20, 24], counts=[0, 480])


def far_corner(content: dict) -> None:
    content["shapes"][0]["points"][0] = [1e12, 3]


def regions_of(tasks: list[dict]) -> list[dict]:
    """The results of the first task's annotation that counts."""
    return tasks[0]["annotations"][1]["result"]


def unlabelled_rectangle(tasks: list[dict]) -> None:
    regions_of(tasks)[1].update(type="rectangle", value={"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0})


def shorten(tasks: list[dict], **answers: list[dict]) -> None:
    """Make the tasks "JSON-MIN"; the results in ``answers`` are added to the first, with the size of its image."""
    for index, task in enumerate(tasks):
        results = regions_of(tasks[index:])
        size = {key: value for key, value in results[0].items() if key.startswith("original")}
        values = {"label": [result["value"] for result in results], **({} if index else answers)}
        found = {key: [{**value, **size} for value in own] for key, own in values.items()}
        tasks[index] = {"image": task["data"]["image"], **found}


#: Format, file, what is done to it, what is said.
DAMAGES = [
    ("labelme", "train/train_0001.json", lambda c: c["shapes"][0].update(label=None), "a shape has the label None"),
    ("labelme", "train/train_0001.json", far_corner, "a corner lies at"),
    ("labelme", "train/train_0001.json", lambda c: c["shapes"][0].update(points=[]), "a shape has no corners"),
    ("labelme", "train/train_0001.json", lambda c: c.update(imageWidth=-1), "the image is said to have -1x40 pixels"),
    ("labelme", "train/train_0001.json", lambda c: c.clear(), "does not describe the labels of train_0001.jpg"),
    ("coco", "valid/_annotations.coco.json", lambda c: c.update(images=[], annotations=[]), "lists no images"),
    ("coco", "valid/_annotations.coco.json", lambda c: c["images"][0].update(file_name=None), "None is no text"),
    ("coco", "train/_annotations.coco.json", long_runs, "do not fill 48x40 pixels"),
    ("coco", "train/_annotations.coco.json", half_size, "a mask has 24x20 pixels, its image 48x40"),
    ("coco", "train/_annotations.coco.json", lambda c: c["images"][1].update(id=c["images"][0]["id"]), "2 images have"),
    ("coco", "train/_annotations.coco.json", lambda c: c["categories"][1].update(id=2), "2 categories have the id 2"),
    ("coco_panoptic", "annotations/panoptic_val.json", lambda c: c["categories"][1].update(id=10), "2 categories have"),
    ("huggingface_images", "train/metadata.jsonl", lambda c: c.pop("label_file_name"), "'label_file_name'"),
    ("labelme", "train/train_0001.json", lambda c: c["shapes"][0].update(label=" "), "a shape has the label ' '"),
    (
        "datumaro",
        "annotations/train.json",
        lambda c: c["items"][0]["annotations"][0]["rle"].update(counts="0m"),
        "fill",
    ),
    (
        "datumaro",
        "annotations/train.json",
        lambda c: c["items"][0]["annotations"][0].update(label_id=9),
        "not laid out",
    ),
    (
        "datumaro",
        "annotations/train.json",
        lambda c: c["items"][0]["annotations"][1].update(type="ellipse"),
        "of the type ellipse, which is not known",
    ),
    ("label_studio", "project.json", lambda c: regions_of(c)[0]["value"].update(polygonlabels=[]), "has no label"),
    ("label_studio", "project.json", lambda c: regions_of(c)[2]["value"].pop("brushlabels"), "has no label"),
    ("label_studio", "project.json", unlabelled_rectangle, "train_0000.jpg has no label"),
    (
        "label_studio",
        "project.json",
        lambda c: shorten(c, label=[{"points": [[1, 1], [9, 1], [9, 9]]}]),
        "train_0000.jpg has no label",
    ),
    (
        "label_studio",
        "project.json",
        lambda c: shorten(c, label=[{"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0}]),
        "train_0000.jpg has no label",
    ),
    ("via", "train/via_region_data.json", lambda c: next(iter(c.values())).update(filename=1), "is no text"),
    ("coco_panoptic", "annotations/panoptic_val.json", lambda c: c["categories"][0].update(name=[]), "is no text"),
    ("supervisely", "train/ann/train_0001.jpg.json", lambda c: c["objects"][0].update(classTitle="car"), "class 'car'"),
    ("supervisely", "train/ann/train_0001.jpg.json", lambda c: c["objects"][2]["bitmap"].update(data=""), "unpacked"),
    (
        "supervisely",
        "train/ann/train_0001.jpg.json",
        lambda c: c["objects"][2]["bitmap"].update(data=base64.b64encode(zlib.compress(b"")).decode()),
        "unpacked",
    ),
    (
        "coco_panoptic",
        "annotations/panoptic_val.json",
        lambda c: c["annotations"][0]["segments_info"][0].pop("id"),
        "KeyError('id')",
    ),
]


@pytest.mark.parametrize(("name", "file", "damage", "said"), DAMAGES)
def test_what_is_wrong_in_a_file_of_labels_is_told(tmp_path, name, file, damage, said):
    labelled_folders.BUILDERS[name](tmp_path)
    edit(tmp_path / file, damage)
    with pytest.raises(DatasetError) as told:
        for split in tiny_datasets.COUNTS:
            data = AutoData(root=str(tmp_path)).open(split)
            _ = [data.item(index) for index in range(len(data))]
    assert said in str(told.value) and Path(file).name in str(told.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7 0.1 0.1 0.2 0.2 0.3 0.1", r"a line has the class 7, but 3 classes have names"),
        ("0 10 10 20 20 30 10", r"no shares of the image's size"),
    ],
)
def test_a_line_of_yolo_that_means_something_else_is_refused(tmp_path, line, said):
    labelled_folders.build_yolo(tmp_path)
    path = tmp_path / "train/labels/train_0001.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ItemError, match=said):
        AutoData(root=str(tmp_path)).open("train").item(1)


def test_lists_of_images_say_which_split_a_yolo_image_is_in(tmp_path):
    # As CVAT writes them, and as a list from another machine has its paths.
    labelled_folders.build_yolo(tmp_path)
    images = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    (tmp_path / "Train.txt").write_text("".join(f"data/{name}\n" for name in images[1:3]))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val.txt").write_text(f"\nC:\\data\\{images[0]}\n".replace("/", "\\"))
    configuration = yaml.safe_load((tmp_path / "data.yaml").read_text())
    configuration |= {"path": "/home/somebody/data", "train": "Train.txt", "val": ["./lists/val.txt"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(configuration))

    def names(split):
        return [sample.image.relative_to(tmp_path).as_posix() for sample in section.open(split).samples]

    section = AutoData(root=str(tmp_path))
    assert (names("train"), names("val")) == (images[1:3], images[:1])
    (tmp_path / "Train.txt").write_text("data/another.jpg\n")
    with pytest.raises(DatasetError, match=r"Train\.txt names none of the images"):
        names("train")
    (tmp_path / "Train.txt").unlink()
    with pytest.raises(DatasetError, match=r"data\.yaml names Train\.txt, which is not in"):
        names("train")


class TestSplitsOfYolo:
    """What ``data.yaml`` names: folders, and text files that list images."""

    @pytest.fixture
    def root(self, tmp_path):
        labelled_folders.build_yolo(tmp_path)
        return tmp_path

    @staticmethod
    def images(root, split):
        return sorted(path.relative_to(root).as_posix() for path in (root / split).rglob("*.jpg"))

    @staticmethod
    def write(root, lists, **keys):
        for name, lines in lists.items():
            labelled_folders.put(root / name, "\n".join(lines))
        labelled_folders.put(root / "data.yaml", yaml.safe_dump({"names": labelled_folders.NAMES[1:], **keys}))

    @staticmethod
    def opened(root, split):
        return sorted(
            sample.image.relative_to(root).as_posix() for sample in AutoData(root=str(root)).open(split).samples
        )

    def test_a_list_that_is_for_two_splits_is_the_first_ones(self, root):
        train, val = self.images(root, "train"), self.images(root, "valid")
        self.write(root, {"train.txt": train, "val.txt": val}, train="train.txt", val="val.txt", test="val.txt")
        assert (self.opened(root, "train"), self.opened(root, "val")) == (train, val)

    def test_the_list_beside_the_yaml_file_is_taken(self, root):
        train, val = self.images(root, "train"), self.images(root, "valid")
        lists = {"ImageSets/train.txt": train[:1], "train.txt": train, "val.txt": val}
        self.write(root, lists, train="train.txt", val="val.txt")
        assert self.opened(root, "train") == train

    def test_a_test_list_that_is_not_here_does_not_keep_from_training(self, root):
        train, val = self.images(root, "train"), self.images(root, "valid")
        lists = {"train.txt": train, "val.txt": val, "test.txt": ["images/elsewhere.jpg"]}
        for test in ("test.txt", "missing.txt"):
            self.write(root, lists, train="train.txt", val="val.txt", test=test)
            assert self.opened(root, "train") == train
            with pytest.raises(DatasetError, match="test"):
                self.opened(root, "test")

    def test_a_line_is_the_image_beside_its_list(self, root):
        for split in ("train", "valid"):
            image = root / self.images(root, split)[0]
            image.with_name("0001.jpg").write_bytes(image.read_bytes())
        lists = {"train/list.txt": ["./images/0001.jpg"], "valid/list.txt": ["./images/0001.JPG"]}
        self.write(root, lists, train="train/list.txt", val="valid/list.txt")
        assert self.opened(root, "train") == ["train/images/0001.jpg"]
        assert self.opened(root, "val") == ["valid/images/0001.jpg"]

    def test_a_list_decides_against_a_folder(self, root):
        train = self.images(root, "train")
        self.write(root, {"val.txt": train[:1]}, train="train/images", val="val.txt")
        assert (self.opened(root, "train"), self.opened(root, "val")) == (train[1:], train[:1])

    @pytest.mark.parametrize("written", ["{}/images", "/home/somebody/data/{}/images", "list"])
    @pytest.mark.parametrize("exports", [("rooms",), ("a", "b"), ("", "b")])
    def test_each_yaml_file_tells_the_splits_of_the_images_below_its_folder(self, tmp_path, exports, written):
        folders: dict[str, list[str]] = {"train": [], "val": []}
        for root in [tmp_path / export for export in exports]:
            labelled_folders.build_yolo(root)
            (root / "train").rename(root / "first")
            (root / "valid").rename(root / "second")
            lists = {}
            for split, folder in (("train", "first"), ("val", "second")):
                images = self.images(root, folder)
                folders[split] += [(root / image).relative_to(tmp_path).as_posix() for image in images]
                lists[f"{split}.txt"] = [f"data/{image}" for image in images]  # as CVAT writes them
            if written == "list":
                self.write(root, lists, train="train.txt", val="val.txt")
            else:
                self.write(root, {}, train=written.format("first"), val=written.format("second"))
        for split, images in folders.items():
            assert self.opened(tmp_path, split) == sorted(images)

    @pytest.mark.parametrize("written", ["{}", "/home/somebody/{}"])
    @pytest.mark.parametrize("lists", [False, True])
    def test_a_yaml_file_above_exports_decides_on_those_that_it_names(self, tmp_path, lists, written):
        for export in ("a", "b", "c"):
            labelled_folders.build_yolo(tmp_path / export)
        shutil.rmtree(tmp_path / "b/valid")
        folders = {"train": "a/train", "val": "a/valid", "test": "b/train"}
        images = {split: self.images(tmp_path, folder) for split, folder in folders.items()}
        if lists:
            images["train"] = images["train"][1:]
            files = {f"{split}.txt": list(map(written.format, own)) for split, own in images.items()}
            self.write(tmp_path, files, **{split: f"{split}.txt" for split in folders})
        else:
            self.write(tmp_path, {}, **{split: written.format(f"{own}/images") for split, own in folders.items()})
        for split, folder in (("train", "c/train"), ("val", "c/valid"), ("test", "c/test")):
            assert self.opened(tmp_path, split) == images[split] + self.images(tmp_path, folder)

    def test_a_yaml_file_that_decides_on_no_image_needs_no_list(self, root):
        lists = {"train.txt": self.images(root, "train"), "val.txt": self.images(root, "valid")}
        self.write(root, lists, train="train.txt", val="val.txt")
        (root / "old").mkdir()
        shutil.copy(root / "data.yaml", root / "old")
        assert self.opened(root, "train") == lists["train.txt"]

    def test_a_list_that_one_of_two_exports_lacks_is_not_taken_from_the_other(self, tmp_path):
        for root in (tmp_path / "a", tmp_path / "b"):
            labelled_folders.build_yolo(root)
            lists = {"train.txt": self.images(root, "train"), "val.txt": self.images(root, "valid")}
            self.write(root, lists, train="train.txt", val="val.txt")
        (tmp_path / "b/train.txt").unlink()
        with pytest.raises(DatasetError, match=r"b/data\.yaml names train\.txt, which is not in .*b; copy it there"):
            self.opened(tmp_path, "train")

    def test_a_folder_of_another_machine_is_found_by_its_end(self, root):
        (root / "valid").rename(root / "second")
        train, val = self.images(root, "train"), self.images(root, "second")
        self.write(root, {"train.TXT": train}, train="train.TXT", val="/home/somebody/data/second/images")
        assert (self.opened(root, "train"), self.opened(root, "val")) == (train, val)

    @pytest.mark.parametrize("path", ["rooms", "../datasets/rooms", "/home/somebody/rooms"])
    def test_folders_and_lists_lie_below_the_path_of_the_yaml_file(self, tmp_path, path):
        labelled_folders.build_yolo(tmp_path / "rooms")
        (tmp_path / "rooms/data.yaml").unlink()
        (tmp_path / "rooms/train").rename(tmp_path / "rooms/first")
        (tmp_path / "rooms/valid").rename(tmp_path / "rooms/second")
        train, val = self.images(tmp_path, "rooms/first"), self.images(tmp_path, "rooms/second")
        self.write(tmp_path, {"rooms/lists/val.txt": val[:1]}, path=path, train="first", val="lists/val.txt")
        assert (self.opened(tmp_path, "train"), self.opened(tmp_path, "val")) == (train, val[:1])

    def test_what_lists_leave_out_and_what_they_miss_is_counted(self, root):
        train, val = self.images(root, "train"), self.images(root, "valid")
        lists = {"train.txt": [*train[1:], "images/lost.jpg", "other/lost.jpg"], "val.txt": val}
        self.write(root, lists, train="train.txt", val="val.txt")
        notes = AutoData(root=str(root)).found().notes
        assert "2 images that lists name are not in the folder" in notes
        assert "1 images lie in no split and are left out" in notes

    def test_an_empty_list_is_called_so(self, root):
        self.write(root, {"train.txt": [], "val.txt": self.images(root, "valid")}, train="train.txt", val="val.txt")
        with pytest.raises(DatasetError, match=r"train\.txt is empty"):
            self.opened(root, "train")

    @pytest.mark.parametrize("folder", ["masks", "runs/segment/predict", "."])
    def test_pictures_that_are_not_labelled_are_no_background(self, root, folder):
        tiny_datasets.save_image(root / folder / "results.jpg", 0)
        self.write(root, {}, train="/elsewhere/train", val="/elsewhere/valid")
        assert len(AutoData(root=str(root)).open_all()) == 6
        assert "1 images have no labels and are left out" in AutoData(root=str(root)).found().notes

    @pytest.mark.parametrize("folder", ["train/images", "empty/images"])
    def test_images_without_a_text_are_background_where_yolo_takes_them(self, root, folder):
        tiny_datasets.save_image(root / folder / "empty.jpg", 0)
        self.write(root, {}, train=["train/images", "Empty/Images"], val="valid/images")
        assert f"{folder}/empty.jpg" in self.opened(root, "train")

    def test_many_images_without_a_polygon_do_not_hide_those_that_have_some(self, root):
        for number in range(30):
            tiny_datasets.save_image(root / f"train/images/a{number:02d}.jpg", number)
            labelled_folders.put(root / f"train/labels/a{number:02d}.txt", "\n" * (number % 2))
        assert len(self.opened(root, "train")) == 34

    def test_a_yaml_file_of_something_else_is_no_hindrance(self, root):
        (root / "camera.yaml").write_text("%YAML:1.0\n---\nK: !!opencv-matrix\n   rows: 3\n")
        assert len(self.opened(root, "train")) == 4


@pytest.mark.parametrize(("name", "pattern"), [("coco", "_annotations*"), ("yolo", "*.txt"), ("cvat_images", "*.xml")])
def test_labels_that_are_links_to_nowhere_are_named(tmp_path, name, pattern):
    labelled_folders.BUILDERS[name](tmp_path)
    path = next(tmp_path.rglob(pattern))
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="is a link to a file that is not there"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("kind", ["cvat_images", "datumaro"])
def test_boxes_are_turned_as_cvat_turned_them(tmp_path, kind):
    tiny_datasets.save_image(tmp_path / "a.jpg", 0)
    labels = "<meta><task><labels><label><name>road</name></label></labels></task></meta>"
    box = '<box label="road" xtl="10" ytl="18" xbr="30" ybr="22" rotation="90.0"/>'
    image = f'<image id="0" name="a.jpg" width="48" height="40">{box}</image>'
    found = {"type": "bbox", "label_id": 0, "bbox": [10.0, 18.0, 20.0, 4.0], "attributes": {"rotation": 90.0}}
    item = {"id": "a", "annotations": [found], "image": {"path": "a.jpg", "size": [40, 48]}}
    if kind == "cvat_images":
        labelled_folders.put(tmp_path / "annotations.xml", f"<annotations>{labels}{image}</annotations>")
    else:
        categories = {"label": {"labels": [{"name": "road"}]}}
        labelled_folders.put(tmp_path / "default.json", {"categories": categories, "items": [item]})
    rows, columns = np.nonzero(AutoData(root=str(tmp_path)).open_all().mask(0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 18, 22)


def test_tracks_of_a_video_are_explained(tmp_path):
    text = "<annotations><version>1.1</version><meta/><track id='0' label='road'/></annotations>"
    labelled_folders.put(tmp_path / "annotations.xml", text)
    with pytest.raises(
        DatasetError, match=r"annotations\.xml holds tracks of a video: export .* 'CVAT for images 1\.1'"
    ):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("</annotations>", ""), "cannot be read as XML"),
        (('label="road"', 'label="street"'), "the label 'street' is not listed"),
        (('width="', 'breadth="'), "is not laid out like CVAT's annotations"),
        (('rle="', 'rle="9, '), "does not describe the labels of train_0000.jpg"),
    ],
)
def test_what_is_wrong_in_cvats_xml_is_told(tmp_path, change, said):
    labelled_folders.build_cvat_images(tmp_path)
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DatasetError, match=said):
        AutoData(root=str(tmp_path)).open("train").item(0)


def test_boxes_without_polygons_are_explained(tmp_path):
    labelled_folders.build_yolo(tmp_path)
    for path in tmp_path.rglob("labels/*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match=r"train_0000\.txt holds boxes, .* export the labels for segmentation"):
        AutoData(root=str(tmp_path)).open("train")
    assert set(np.unique(AutoData(root=str(tmp_path), format="yolo").open("train").mask(0))) == {0, 1}


@pytest.mark.parametrize(
    ("file", "said"), [("export.zip", "Unpack the archive"), ("masks/0.npy", "Masks must be PNG, BMP or TIFF")]
)
def test_what_must_be_done_first_is_told(tmp_path, file, said):
    labelled_folders.put(tmp_path / file, "x")
    with pytest.raises(DatasetError, match=said):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("text", ["[no, wall]", "{off: [0, 0, 0], on: [1, 1, 1]}", "[null, wall]", "[floor, '']"])
def test_class_names_that_are_no_text_are_refused_everywhere(tmp_path, text):
    said = "put the names in quotes|empty name"
    with pytest.raises(ValidationError, match=said):
        AutoData(root=str(tmp_path), classes=yaml.safe_load(text))
    labelled_folders.build_folder(tmp_path)
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DatasetError, match=rf"classes\.yaml cannot be used: .*({said})"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("names", [{"door": 0, "road": 1, "tree": 2}, {None: "door"}])
def test_names_of_classes_that_are_no_map_from_numbers_are_refused(tmp_path, names):
    labelled_folders.build_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": names}))
    with pytest.raises(DatasetError, match=r"data\.yaml: `names` must map numbers to names"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_class_twice_in_a_yaml_file_is_refused(tmp_path):
    labelled_folders.build_folder(tmp_path)
    (tmp_path / "classes.yaml").write_text("road: [0, 0, 0]\ntree: [1, 1, 1]\nroad: [2, 2, 2]\n")
    with pytest.raises(DatasetError, match=r"classes\.yaml cannot be read as YAML: 'road' stands there twice.*line 3"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("rename", [str.upper, lambda name: unicodedata.normalize("NFD", name)])
def test_names_that_differ_in_case_or_accents_alone_are_paired(tmp_path, rename):
    for stem in ("Küche 1", "Küche 2"):
        tiny_datasets.save_image(tmp_path / "images" / f"{stem}.jpg", 0)
        labelled_folders.put(tmp_path / "masks" / rename(f"{stem}.png"), labelled_folders.truth(0))
    data = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES, val_fraction=0.5).open("train")
    assert np.array_equal(data.mask(0), labelled_folders.truth(0))


@pytest.mark.parametrize("rename", [str.upper, lambda name: unicodedata.normalize("NFD", name)])
@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("yolo", "*.txt"),
        ("supervisely", "*.jpg.json"),
        ("voc_folders", "JPEGImages/*"),
        ("coco", "*.jpg"),
        ("huggingface_images", "*.jpg"),
    ],
)
def test_labels_name_images_by_another_case_or_accents(tmp_path, kind, pattern, rename):
    labelled_folders.BUILDERS[kind](tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        if path.suffix in (".json", ".jsonl", ".txt"):
            path.write_text(path.read_text().replace("train_", "küche_"))
        path.rename(path.with_name(path.name.replace("train_", "küche_")))
    for path in sorted(tmp_path.rglob(pattern)):
        if "küche_" in path.name:
            path.rename(path.with_name(path.name.replace("küche_", rename("küche_"))))
    check_truth(AutoData(root=str(tmp_path)))


def test_a_text_of_yolo_is_of_the_image_of_exactly_its_name_first(tmp_path):
    labelled_folders.build_yolo(tmp_path)
    tiny_datasets.save_image(tmp_path / "train/images/TRAIN_0000.jpg", 0)
    data = AutoData(root=str(tmp_path)).open("train")
    assert [data.mask(index).any() for index in range(len(data))] == [False, True, True, True, True]


def test_classes_of_nearly_the_same_name_are_told(tmp_path):
    labelled_folders.build_labelme(tmp_path)
    path = tmp_path / "train/train_0001.json"
    path.write_text(path.read_text().replace('"road"', '"Road "'))
    console = Console(width=1000, record=True, file=io.StringIO())
    check_before_training(AutoData(root=str(tmp_path)), console)
    assert "'Road ' and 'road'; if they are one class, merge them in data.classes" in console.export_text()


@pytest.mark.parametrize(
    "line", ["{}", "{}.jpg", '"{}"', "{}  1", "{} -1", "JPEGImages/{}.jpg SegmentationClass/{}.png"]
)
@pytest.mark.parametrize("stem", ["1700000000.{n}", "site a {n}", "run_{s}/{m:04d}"])
def test_lists_of_voc_folders_name_images_by_their_whole_path(tmp_path, stem, line):
    labelled_folders.put(tmp_path / "class_names.txt", "\n".join(labelled_folders.NAMES))
    names = [stem.format(n=number, s="ab"[number % 2], m=number // 2) for number in range(8)]
    for number, name in enumerate(names):
        tiny_datasets.save_image(tmp_path / "JPEGImages" / f"{name}.jpg", number)
        labelled_folders.put(tmp_path / "SegmentationClass" / f"{name}.png", labelled_folders.truth(number))
    listed = {"train": names[::2], "val": names[1:6:2], "test": names[7:]}
    for split, own in listed.items():
        lines = [line.format(name, name) for name in own]
        labelled_folders.put(tmp_path / "ImageSets/Segmentation" / f"{split}.txt", "\n".join(lines))
    for split, own in listed.items():
        found = [sample.image for sample in AutoData(root=str(tmp_path)).open(split).samples]
        assert found == sorted(tmp_path / "JPEGImages" / f"{name}.jpg" for name in own)


def test_a_list_of_voc_folders_that_names_no_image_is_refused(tmp_path):
    labelled_folders.build_voc_folders(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    (lists / "val.txt").write_text("\n")  # a tool that was given no image for validation
    assert len(AutoData(root=str(tmp_path)).open_all()) == 6
    (lists / "val.txt").write_text("elsewhere/0001\n")
    with pytest.raises(
        DatasetError, match=r"val\.txt is named as the list of the val images, .*JPEGImages/train_0000\.jpg"
    ):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("kind", ["voc_folders", "cvat_mask"])
def test_folders_above_those_of_voc_tell_the_splits_of_which_no_list_is(tmp_path, kind, default):
    for split in LISTED:
        labelled_folders.BUILDERS[kind](tmp_path / split)
        lists = tmp_path / split / "ImageSets/Segmentation"
        names = "".join(path.read_text() for path in lists.iterdir())
        shutil.rmtree(lists)
        if default:
            labelled_folders.put(lists / "default.txt", names)
    tiny_datasets.save_image(tmp_path / "train/JPEGImages/unlabelled.jpg", 0)
    section = AutoData(root=str(tmp_path))
    for split in LISTED:
        found = [sample.image.relative_to(tmp_path).parts[0] for sample in section.open(split).samples]
        assert found == [split] * 6
    assert section.found().notes == ("1 images have no labels and are left out",)
    labelled_folders.put(tmp_path / "val/ImageSets/Segmentation/val.txt", "val_0100\ntrain_0001")
    found = [sample.image.relative_to(tmp_path).as_posix() for sample in section.open("val").samples]
    assert found == ["val/JPEGImages/train_0001.jpg", "val/JPEGImages/val_0100.jpg"]
    assert "4 images lie in no split and are left out" in section.found().notes


def test_a_stem_of_two_images_tells_no_split(tmp_path):
    labelled_folders.put(tmp_path / "class_names.txt", "\n".join(labelled_folders.NAMES))
    for number, name in enumerate(("run_a/0001", "run_b/0001", "run_b/0002", "run_b/0003")):
        tiny_datasets.save_image(tmp_path / "JPEGImages" / f"{name}.jpg", number)
        labelled_folders.put(tmp_path / "SegmentationClass" / f"{name}.png", labelled_folders.truth(number))
    labelled_folders.put(tmp_path / "ImageSets/Segmentation/train.txt", "0001\n0002\n")
    labelled_folders.put(tmp_path / "ImageSets/Segmentation/val.txt", "0003\n")
    section = AutoData(root=str(tmp_path))
    assert [sample.image.stem for sample in section.open("train").samples] == ["0002"]
    assert "2 images lie in no split and are left out" in section.found().notes


@pytest.mark.parametrize("exports", [("",), ("a", "b")])
@pytest.mark.parametrize("lists", [False, True])
def test_the_yaml_file_of_ultralytics_masks_tells_the_splits(tmp_path, exports, lists):
    expected: dict[str, list[Path]] = {"train": [], "val": []}
    for root in [tmp_path / export for export in exports]:
        labelled_folders.build_ultralytics_semantic(root)
        settings = yaml.safe_load((root / "rooms.yaml").read_text())
        for split, folder in (("train", "first"), ("val", "second")):
            (root / "ground" / split).rename(root / "ground" / folder)
            images = sorted((root / "images" / split).rename(root / "images" / folder).iterdir())
            expected[split] += images[:1] if lists else images
            lines = [f"./images/{folder}/{image.name}" for image in images[:1]]
            labelled_folders.put(root / f"{split}.txt", "\n".join(lines))
            settings[split] = f"{split}.txt" if lists else f"images/{folder}"
        labelled_folders.put(root / "rooms.yaml", yaml.safe_dump(settings))
    section = AutoData(root=str(tmp_path))
    for split, images in expected.items():
        assert [sample.image for sample in section.open(split).samples] == images


@pytest.mark.parametrize(
    "content",
    [b"%YAML:1.0\n---\nK: !!opencv-matrix\n   rows: 3\n", b"data: 1\n---\ndata: 2\n---\n", b"site: K\xfcche\n"],
    ids=["calibration", "several documents", "latin-1"],
)
def test_a_yaml_file_of_another_program_changes_nothing(tmp_path, content):
    labelled_folders.build_ultralytics_semantic(tmp_path)
    (tmp_path / "calibration.yaml").write_bytes(content)
    check_truth(AutoData(root=str(tmp_path)))


def write_subsets(root: Path, subsets: tuple[str, str]) -> None:
    """The same names of images in two subsets."""
    for offset, subset in enumerate(subsets):
        for number in range(2):
            tiny_datasets.save_image(root / "images" / subset / f"frame_{number:06d}.png", 2 * offset + number)


def check_subsets(section: AutoData, subsets: tuple[str, str]) -> None:
    found = section.open_all()
    images = {sample.image.relative_to(section.root).as_posix(): index for index, sample in enumerate(found.samples)}
    assert set(images) == {f"images/{subset}/frame_{number:06d}.png" for subset in subsets for number in range(2)}
    for offset, subset in enumerate(subsets):
        for number in range(2):
            index, seed = images[f"images/{subset}/frame_{number:06d}.png"], 2 * offset + number
            assert np.array_equal(found.item(index)[0], tiny_datasets.image_of(seed))
            _, top, left, bottom, right = labelled_folders.regions(seed)[0]
            road = np.zeros((labelled_folders.HEIGHT, labelled_folders.WIDTH), bool)
            road[top : bottom + 1, left : right + 1] = True
            assert np.array_equal(found.item(index)[1] == 1, road)


@pytest.mark.parametrize("subsets", [("Train", "Validation"), ("site_a", "site_b"), ("default", "site.c")])
@pytest.mark.parametrize("kind", ["cvat_images", "coco", "datumaro"])
def test_subsets_of_cvat_may_repeat_the_names_of_images(tmp_path, kind, subsets):
    write_subsets(tmp_path, subsets)
    xml, size = [], {"width": labelled_folders.WIDTH, "height": labelled_folders.HEIGHT}
    for offset, subset in enumerate(subsets):
        images, annotations, items = [], [], []
        for number in range(2):
            road = labelled_folders.corners(labelled_folders.regions(2 * offset + number)[0])
            points, name = [float(value) for corner in road for value in corner], f"frame_{number:06d}.png"
            images.append({"id": number + 1, "file_name": name, **size})
            annotations.append({"id": number + 1, "image_id": number + 1, "category_id": 1, "segmentation": [points]})
            items.append({
                "id": name, "annotations": [{"type": "polygon", "label_id": 0, "points": points}],
                "image": {"path": name, "size": [size["height"], size["width"]]}})  # fmt: skip
            written = ";".join(f"{x}.0,{y}.0" for x, y in road)
            xml.append(
                f'<image id="{number}" name="{name}" subset="{subset}" width="{size["width"]}" '
                f'height="{size["height"]}"><polygon label="road" points="{written}"/></image>'
            )
        if kind == "coco":
            content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "road"}]}
            labelled_folders.put(tmp_path / f"annotations/instances_{subset}.json", content)
        elif kind == "datumaro":
            labels = {"label": {"labels": [{"name": "road"}]}}
            labelled_folders.put(tmp_path / f"annotations/{subset}.json", {"categories": labels, "items": items})
    if kind == "cvat_images":
        labels = "<meta><project><labels><label><name>road</name></label></labels></project></meta>"
        labelled_folders.put(tmp_path / "annotations.xml", f"<annotations>\n{labels}{''.join(xml)}</annotations>")
    section = AutoData(root=str(tmp_path))
    assert section.found().kind == kind
    check_subsets(section, subsets)


@pytest.mark.parametrize("subset", ["", 'subset="default" ', 'subset="test" '])
def test_the_folder_of_cvats_xml_tells_the_split_that_no_subset_tells(tmp_path, subset):
    meta = "<meta><task><labels><label><name>road</name></label></labels></task></meta>"
    for number, split in enumerate(LISTED):
        tiny_datasets.save_image(tmp_path / f"images/{number}.jpg", number)
        box = '<box label="road" xtl="10" ytl="18" xbr="30" ybr="22"/>'
        image = f'<image id="0" name="{number}.jpg" {subset}width="48" height="40">{box}</image>'
        labelled_folders.put(tmp_path / split / "annotations.xml", f"<annotations>{meta}{image}</annotations>")
    samples = all_formats()["cvat_images"].open(Tree(tmp_path), NO_PATTERNS).samples
    found = {split: [sample.image.stem for sample in own] for split, own in samples.items()}
    assert found == ({"test": ["0", "1", "2"]} if "test" in subset else {"train": ["0"], "val": ["1"], "test": ["2"]})


@pytest.mark.parametrize("name", ["Küche 1.jpg", "50% light.jpg"])
def test_paths_of_label_studios_local_storage_are_unquoted(tmp_path, name):
    labelled_folders.build_label_studio(tmp_path)
    (tmp_path / "images/train/0a1b2c3d-train_0000.jpg").rename(tmp_path / "images/train" / name)
    address = f"/data/local-files/?d=images/train/{urllib.parse.quote(name)}"
    edit(tmp_path / "project.json", lambda tasks: tasks[0]["data"].update(image=address))
    data = AutoData(root=str(tmp_path)).open_all()
    index = [data.describe(index) for index in range(len(data))].index(name)
    assert np.array_equal(data.item(index)[1], labelled_folders.truth(0))


def test_label_studios_image_may_follow_other_texts(tmp_path):
    labelled_folders.build_label_studio(tmp_path)

    def add(tasks):
        for task in tasks:
            task["data"] = {"site": "depot", **task["data"], "note": "a.jpg"}

    edit(tmp_path / "project.json", add)
    check_truth(AutoData(root=str(tmp_path)))
    next(tmp_path.rglob("*train_0000.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"1 images of project\.json are not in .*, such as .*train_0000\.jpg"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("kind", ["bitmasklabels", "labels"])
@pytest.mark.parametrize("all_regions", [False, True])
def test_regions_of_label_studio_that_cannot_be_read_are_refused(tmp_path, kind, all_regions):
    labelled_folders.build_label_studio(tmp_path)

    def rename(tasks):
        for task in tasks if all_regions else tasks[:1]:
            for region in [own for done in task["annotations"] for own in done["result"]]:
                of_its_kind = next(key for key in region["value"] if key.endswith("labels"))
                region["value"][kind] = region["value"].pop(of_its_kind)

    edit(tmp_path / "project.json", rename)
    with pytest.raises(
        DatasetError, match=rf"project\.json holds \d+ regions of the kind {kind}, such as 'road' of .*jpg"
    ):
        AutoData(root=str(tmp_path)).open("train")


def test_results_of_label_studio_that_are_no_regions_need_no_label(tmp_path):
    labelled_folders.build_label_studio(tmp_path)

    def add(tasks):
        results = regions_of(tasks)
        results[0]["id"] = "r1"
        points, size = results[0]["value"]["points"], {k: v for k, v in results[0].items() if k.startswith("original")}
        for kind, value in (
            ("polygon", {"points": points}),
            ("choices", {"points": points, "choices": ["blurred"]}),
            ("textarea", {"points": points, "text": ["a note"]}),
            ("keypointlabels", {"x": 1, "y": 1, "width": 1, "keypointlabels": ["door"]}),
        ):
            results.append({"id": "r1" if kind == "polygon" else kind, "type": kind, "value": value, **size})

    edit(tmp_path / "project.json", add)
    check_truth(AutoData(root=str(tmp_path)))


def test_answers_in_json_min_need_no_label(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    triangle, rectangle = {"points": [[1, 1], [9, 1], [9, 9]]}, {"x": 1, "y": 1, "width": 9, "height": 9}
    written = {"blurred": {"choices": ["yes"]}, "seen": {"datetime": "2026-11-28"}, "note": {"text": ["a note"]}}
    answers = {key: [{**shape, **answer} for shape in (triangle, rectangle)] for key, answer in written.items()}
    points = [{"x": 1, "y": 1, "width": 1, "keypointlabels": ["door"]}]
    edit(tmp_path / "project.json", lambda tasks: shorten(tasks, **answers, corner=points))
    check_truth(AutoData(root=str(tmp_path)))


def test_a_json_of_label_studio_may_begin_with_a_byte_order_mark(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    path = tmp_path / "project.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["/data/upload/1", "s3://photos"])
def test_only_what_label_studio_puts_before_a_name_is_left_out(tmp_path, folder):
    labelled_folders.build_label_studio(tmp_path)
    image = next(tmp_path.rglob("*train_0000.jpg"))
    image.rename(image.with_name("0001.jpg"))
    for name, found in (("0a1b2c3d-0001.jpg", True), ("left-0001.jpg", False)):
        edit(tmp_path / "project.json", lambda tasks, name=name: tasks[0]["data"].update(image=f"{folder}/{name}"))
        section = AutoData(root=str(tmp_path))
        if found:
            assert image.with_name("0001.jpg") in [sample.image for sample in section.open_all().samples]
            continue
        with pytest.raises(DatasetError, match=r"1 images of project\.json are not in .*, such as .*left-0001\.jpg"):
            section.open_all()


def test_the_numbered_folder_of_an_upload_is_none_of_the_users(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    tiny_datasets.save_image(tmp_path / "images/1/another.jpg", 0)
    check_truth(AutoData(root=str(tmp_path)))


def test_exports_of_label_studio_side_by_side_may_repeat_names(tmp_path):
    for site in ("site_a", "site_b"):
        labelled_folders.build_label_studio(tmp_path / site)
        for path in (tmp_path / site).rglob("*.jpg"):
            path.rename(tmp_path / site / "images" / path.name)
    samples = AutoData(root=str(tmp_path)).open_all().samples
    assert [sample.image.parent.parent for sample in samples] == [sample.labels.parent for sample in samples]
    assert len({sample.image for sample in samples}) == 12
    (tmp_path / "site_b/images").rename(tmp_path / "site_b/photos")
    shutil.copytree(tmp_path / "site_b/photos", tmp_path / "site_b/images/copies")
    with pytest.raises(DatasetError, match=r"6 images of site_b/project\.json are not in .*, or in several of its"):
        AutoData(root=str(tmp_path)).open_all()
    shutil.rmtree(tmp_path / "site_b/images")
    (tmp_path / "site_b/photos").rename(tmp_path / "site_b/images")
    (tmp_path / "site_a/images/0a1b2c3d-train_0001.jpg").unlink()
    written = r"project\.json \(/data/upload/1/0a1b2c3d-train_0001\.jpg\)"
    with pytest.raises(DatasetError, match=rf"is in .*site_a/{written} and in .*site_b/{written}; keep one"):
        AutoData(root=str(tmp_path)).open_all()


def test_a_json_of_label_studio_without_a_region_is_background(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    tasks = json.loads((tmp_path / "project.json").read_text())
    (tmp_path / "project.json").unlink()
    labelled_folders.put(tmp_path / "train/project.json", [task for task in tasks if task["id"] < 100])
    labelled_folders.put(tmp_path / "val/project.json", [task for task in tasks if task["id"] >= 100])
    labelled_folders.put(tmp_path / "val/something_else.json", [{"image": "elsewhere.jpg"}])
    check_truth(AutoData(root=str(tmp_path)))

    def empty(tasks):
        for annotation in [done for task in tasks for done in task["annotations"]]:
            annotation["result"] = []

    edit(tmp_path / "val/project.json", empty)
    section = AutoData(root=str(tmp_path))
    assert [section.open("val").item(index)[1].any() for index in range(2)] == [False, False]
    assert len(section.open("train")) == 4
    edit(tmp_path / "train/project.json", empty)
    with pytest.raises(DatasetError, match="is of no known format"):
        section.open("train")


def write_pair_list(root: Path, prefix: str) -> None:
    labelled_folders.put(root / "classes.txt", "\n".join(labelled_folders.NAMES))
    lines = []
    for sequence in "ab":
        for stem in "12":
            tiny_datasets.save_image(root / sequence / f"rgb/{stem}.png", 0)
            labelled_folders.put(root / sequence / f"label/{stem}.png", labelled_folders.truth(0))
            lines.append(f"{prefix}{sequence}/rgb/{stem}.png {prefix}{sequence}/label/{stem}.png")
    labelled_folders.put(root / "train.lst", "\n".join(lines))


@pytest.mark.parametrize("folder", ["", "data/rooms"])
@pytest.mark.parametrize("prefix", ["", "/home/somebody/rooms/", "../"])
def test_pairs_of_a_list_may_begin_above_the_folder_or_below_it(tmp_path, prefix, folder):
    write_pair_list(tmp_path / folder, prefix)
    (tmp_path / folder / "train.lst").rename(tmp_path / "train.lst")
    samples = AutoData(root=str(tmp_path)).open_all().samples
    found = [path.relative_to(tmp_path / folder).as_posix() for sample in samples for path in sample.files()]
    expected = [f"{sequence}/{kind}/{stem}.png" for sequence in "ab" for stem in "12" for kind in ("rgb", "label")]
    assert found == expected


@pytest.mark.parametrize("gone", ["a/rgb/1.png", "b/rgb/2.png", "a/rgb", "a"])
def test_what_a_list_of_pairs_names_is_never_another_file(tmp_path, gone):
    write_pair_list(tmp_path, "rooms/")
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(IncompleteError, match=gone):
        AutoData(root=str(tmp_path)).open_all()


def test_a_table_of_label_studio_may_have_long_cells(tmp_path):
    labelled_folders.build_label_studio_png(tmp_path)
    header, *rows = (tmp_path / "project.csv").read_text().splitlines()
    long = '"' + "0, " * 100_000 + '"'
    lines = [f"{header},tag", *(f"{row},{long}" for row in rows)]
    (tmp_path / "project.csv").write_text("\n".join(lines))
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("label_studio_png", "project.csv"),
        ("huggingface_images", "train/metadata.csv"),
        ("roboflow_masks", "_classes.csv"),
        ("folder", "class_dict.csv"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_named(tmp_path, name, file, monkeypatch):
    labelled_folders.BUILDERS[name](tmp_path)
    for path in [*tmp_path.rglob("classes.yaml"), *tmp_path.rglob("metadata.jsonl")]:
        path.unlink()
    (tmp_path / file).write_text("id,image\n1,a.jpg\n")

    def fail(*_):
        raise csv.Error("line contains NUL")

    monkeypatch.setattr(csv, "reader", fail)
    with pytest.raises(DatasetError, match=rf"{Path(file).name} cannot be read as CSV: line contains NUL"):
        AutoData(root=str(tmp_path), format=name).open("train")


@pytest.mark.parametrize("inside", [False, True], ids=["own stem", "imageData"])
def test_labelme_prefers_the_image_of_its_own_folder(tmp_path, inside):
    for folder, stem, seed in (("a", "A_0001", 0), ("b", "IMG_0001", 1), ("c", "IMG_0002", 2)):
        image = tmp_path / folder / f"{stem}.png"
        tiny_datasets.save_image(image, seed)
        shape = {"label": "road", "points": labelled_folders.corners(labelled_folders.regions(seed)[0])}
        data = base64.b64encode(image.read_bytes()).decode() if inside else None
        written = stem.replace("A_", "IMG_")  # the file was renamed, not what stands in the JSON
        content = {"shapes": [shape], "imagePath": f"{written}.png", "imageData": data}
        labelled_folders.put(image.with_suffix(".json"), content)
    if inside:
        (tmp_path / "a/A_0001.png").unlink()
    data = AutoData(root=str(tmp_path)).open_all()
    images = {sample.labels.stem: index for index, sample in enumerate(data.samples)}
    for stem, seed in (("A_0001", 0), ("IMG_0001", 1), ("IMG_0002", 2)):
        assert np.array_equal(data.item(images[stem])[0], tiny_datasets.image_of(seed)), stem


@pytest.mark.parametrize("written", ["..\\photos\\a.png", "../photos/a.png", "a.png", "/elsewhere/photos/a.png"])
def test_labelmes_image_may_lie_in_another_folder(tmp_path, written):
    tiny_datasets.save_image(tmp_path / "photos/a.png", 0)
    tiny_datasets.save_image(tmp_path / "photos/b.png", 1)
    for stem in "ab":
        shape = {"label": "road", "points": labelled_folders.corners(labelled_folders.regions(0)[0])}
        content = {"shapes": [shape], "imagePath": written.replace("a.png", f"{stem}.png"), "imageData": None}
        labelled_folders.put(tmp_path / "json" / f"{stem}.json", content)
    samples = AutoData(root=str(tmp_path)).open_all().samples
    assert [sample.image for sample in samples] == [tmp_path / "photos/a.png", tmp_path / "photos/b.png"]


@pytest.mark.parametrize("none", [{}, []])
def test_an_image_that_via_lists_without_a_region_is_background(tmp_path, none):
    labelled_folders.build_via(tmp_path)
    edit(tmp_path / "train/via_region_data.json", lambda c: next(iter(c.values())).update(regions=none))
    data = AutoData(root=str(tmp_path)).open("train")
    assert [data.item(index)[1].any() for index in range(len(data))] == [False, True, True, True]
    for path in tmp_path.rglob("*.json"):
        edit(path, lambda c: [image.update(regions=none) for image in c.values()])
    with pytest.raises(DatasetError, match="is of no known format"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("name", ["label_studio", "label_studio_png", "via", "labelme"])
def test_a_file_of_classes_names_those_that_no_shape_has(tmp_path, name):
    labelled_folders.BUILDERS[name](tmp_path)
    labelled_folders.put(tmp_path / "classes.txt", "person\nroad\n")
    names = ["background", "person", "road", "door", "tree"]
    assert AutoData(root=str(tmp_path)).open("train").class_names == names
    data = AutoData(root=str(tmp_path), classes=["background", "road", "person", "door", "tree"]).open("train")
    assert np.array_equal(data.item(0)[1], np.array([0, 3, 1, 4])[labelled_folders.truth(0)])


def test_exports_side_by_side_must_agree_on_classes(tmp_path):
    for kind, pattern, file in (
        ("yolo", "data.yaml", "data.yaml"),
        ("roboflow_masks", "_classes.csv", "valid/_classes.csv"),
        ("cvat_mask", "labelmap.txt", "labelmap.txt"),
        ("ultralytics_semantic", "rooms.yaml", "rooms.yaml"),
        ("pair_lists", "classes.txt", "classes.txt"),
    ):
        root = tmp_path / kind
        for part in "ab":
            labelled_folders.BUILDERS[kind](root / part)
        assert AutoData(root=str(root)).open_all().class_names == labelled_folders.NAMES
        path = root / "b" / file
        path.write_text(path.read_text().replace("road", "lane").replace("door", "road").replace("lane", "door"))
        with pytest.raises(DatasetError, match=rf"a/.*{pattern} and .*b/{file} differ in the names, values or colours"):
            AutoData(root=str(root)).open_all()


def test_shapes_have_the_classes_of_all_lists_together(tmp_path):
    for part, text in (("a", "person\nroad"), ("b", "tree\nroad")):
        labelled_folders.build_labelme(tmp_path / part)
        labelled_folders.put(tmp_path / part / "labels.txt", text)
    assert AutoData(root=str(tmp_path)).open_all().class_names == ["background", "person", "road", "tree", "door"]


# Names of files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mask", "settings"),
    [
        ("images/{}.jpg", "masks/{}.png", {}),
        ("images/run/{}.jpg", "masks/run/{}.png", {}),
        ("run/rgb/{}.png", "run/labels/{}.png", {}),
        ("{}.jpg", "{}.png", {}),
        ("{}.png", "{}_mask.png", {}),
        ("train/{}_jpg.rf.98ca5d.jpg", "train/{}_jpg.rf.98ca5d_mask.png", {}),
        ("images/{}_image.png", "annotations/{}_annotation.png", {}),
        ("{}/rgb.jpg", "{}/labels.png", {}),
        ("00000/camera/{}.jpg", "00000/camera_label_id/{}.png", {}),
        ("frames-with-annotations/creek/{}.png", "annotations/creek/{}.png", {}),
        ("left/{}_l.png", "colourless/{}_x.png", {"images": "*_l.png", "masks": "*_x.png"}),
        ("left/{}.png", "other/{}.png", {"images": "left", "masks": "other"}),
        ("all/a{}.png", "all/b{}.png", {"images": "a*.png", "masks": "all/b*.png"}),
    ],
)
def test_masks_are_paired_by_what_names_have_in_common(tmp_path, image, mask, settings):
    for number in range(5):
        tiny_datasets.save_image(tmp_path / image.format(f"frame_{number}"), number)
        labelled_folders.put(tmp_path / mask.format(f"frame_{number}"), np.full((40, 48), number, np.uint8))
    section = AutoData(root=str(tmp_path), classes=[f"c{number}" for number in range(5)], **settings)
    data = section.open_all()
    found = [data.item(index) for index in range(len(data))]
    assert len(found) == 5
    for picture, labels in found:
        number = int(labels[0, 0])
        if image.endswith("png"):
            assert np.array_equal(picture, tiny_datasets.image_of(number))


def test_a_folder_behind_two_links_is_in_both_places(tmp_path):
    for number in range(4):
        split = ("train", "val")[number % 2]
        tiny_datasets.save_image(tmp_path / "all" / f"{number}.jpg", number)
        labelled_folders.put(tmp_path / "data" / split / "masks" / f"{number}.png", labelled_folders.truth(number))
    for split in ("train", "val"):
        (tmp_path / "data" / split / "photos").symlink_to(tmp_path / "all")
    (tmp_path / "all/up").symlink_to(tmp_path / "all")
    tree = Tree(tmp_path / "data")
    images = [f"{split}/photos/{number}.jpg" for split in ("train", "val") for number in range(4)]
    assert [name for name in tree.files if name.endswith("jpg")] == images


LISTED = {"train": ["a", "c"], "val": ["b"], "test": ["d", "e"]}


class TestListsOfSplits:
    """Text and CSV files that name the images of each split of a folder of masks."""

    @pytest.fixture
    def root(self, tmp_path):
        for number, name in enumerate("abcdef"):
            tiny_datasets.save_image(tmp_path / f"images/{name}.jpg", number)
            labelled_folders.put(tmp_path / f"masks/{name}.png", labelled_folders.truth(number))
        return tmp_path

    @staticmethod
    def opened(root, split):
        data = AutoData(root=str(root), classes=labelled_folders.NAMES).open(split)
        return [sample.image.stem for sample in data.samples]

    @pytest.mark.parametrize("place", ["{}.txt", "splits/{}.txt", "images/{}.lst", "{}_images.csv"])
    @pytest.mark.parametrize(
        "line", ["{}", "{}.jpg", "images/{}.jpg", "/home/somebody/images/{}.jpg", "./images/{}.jpg"]
    )
    def test_a_line_is_the_name_or_the_path_of_an_image(self, root, place, line):
        for split, names in LISTED.items():
            lines = [line.format(name) for name in names]
            if place.endswith("csv"):
                lines = ["image,scene", *(f"{own},1" for own in lines)]
            labelled_folders.put(root / place.format(split), "\n".join([*lines, line.format("lost")]))
        assert {split: self.opened(root, split) for split in LISTED} == LISTED
        notes = AutoData(root=str(root), classes=labelled_folders.NAMES).found().notes
        assert {"1 images lie in no split and are left out", "3 images that lists name are not in the folder"} <= {
            *notes
        }

    @pytest.mark.parametrize("head", ["image,mask\n", "", "images/lost.jpg,masks/lost.png\n"])
    def test_a_table_of_pairs_may_have_a_head_or_name_absent_files(self, root, head):
        for split, names in LISTED.items():
            rows = "\n".join(f"images/{name}.jpg,masks/{name}.png" for name in names)
            labelled_folders.put(root / f"{split}.csv", head + rows)
        section = AutoData(root=str(root), classes=labelled_folders.NAMES)
        assert section.found().kind == "pair_lists"
        if "lost" in head:
            with pytest.raises(IncompleteError, match=r"1 of 3 images .*lost\.jpg"):
                section.open("train")
        else:
            assert {split: self.opened(root, split) for split in LISTED} == LISTED

    @pytest.mark.parametrize("head", ["", "image\n", "image,scene\n"])
    def test_the_first_line_of_a_table_is_an_image_or_the_head(self, root, head):
        labelled_folders.put(root / "test.csv", f"{head}a\nb")
        assert self.opened(root, "test") == ["a", "b"]
        assert not {"a", "b"} & {*self.opened(root, "train"), *self.opened(root, "val")}
        notes = AutoData(root=str(root), classes=labelled_folders.NAMES).found().notes
        assert not any("not in the folder" in note for note in notes)

    def test_a_list_decides_against_a_folder(self, root):
        for name, split in (("d", "val"), ("e", "test"), ("f", "val")):
            for folder, suffix in (("images", "jpg"), ("masks", "png")):
                (root / folder / split).mkdir(exist_ok=True)
                (root / f"{folder}/{name}.{suffix}").rename(root / f"{folder}/{split}/{name}.{suffix}")
        labelled_folders.put(root / "val.txt", "a\nd")
        expected = {"train": ["b", "c"], "val": ["a", "d"], "test": ["e"]}
        assert {split: self.opened(root, split) for split in expected} == expected

    def test_an_image_for_testing_is_never_trained_on(self, root):
        labelled_folders.put(root / "train.txt", "a\nb\nc\nd\ne")
        labelled_folders.put(root / "test.txt", "e")
        assert not {"e", "f"} & {*self.opened(root, "train"), *self.opened(root, "val")}

    @pytest.mark.parametrize(
        ("images", "masks", "lists"),
        [("images", "masks", ""), ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")],
    )
    @pytest.mark.parametrize("line", ["run_{}/{}", "{images}/run_{}/{}.jpg", "/home/somebody/{images}/run_{}/{}.jpg"])
    def test_an_image_that_is_gone_is_never_one_of_another_sequence(self, tmp_path, images, masks, lists, line):
        present = {"train": ["run_1/0001", "run_1/0002"], "val": ["run_2/0001", "run_2/0002", "run_2/0003"]}
        for number, name in enumerate([*present["train"], *present["val"]]):
            tiny_datasets.save_image(tmp_path / f"{images}/{name}.jpg", number)
            labelled_folders.put(tmp_path / f"{masks}/{name}.png", labelled_folders.truth(number))
        for run, split in enumerate(present, start=1):
            lines = [line.format(run, f"{number:04d}", images=images) for number in (1, 2, 3)]
            labelled_folders.put(tmp_path / lists / f"{split}.txt", "\n".join(lines))
        section = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES)
        for split, names in present.items():
            found = [sample.image.relative_to(tmp_path / images).as_posix() for sample in section.open(split).samples]
            assert found == [f"{name}.jpg" for name in names]
        assert "1 images that lists name are not in the folder" in section.found().notes

    def test_a_mask_in_a_table_never_stands_for_an_image_that_is_gone(self, tmp_path):
        for number, name in enumerate(["run_1/{}/0001", "run_1/{}/0003", *(f"run_2/{{}}/000{n}" for n in (1, 2, 3))]):
            tiny_datasets.save_image(tmp_path / f"{name.format('rgb')}.jpg", number)
            labelled_folders.put(tmp_path / f"{name.format('mask')}.png", labelled_folders.truth(number))
        rows = [f"run_1/rgb/000{number}.jpg,run_1/mask/000{number}.png,sunny" for number in (1, 2, 3)]
        labelled_folders.put(tmp_path / "test.csv", "\n".join(["image,mask,weather", *rows]))
        assert self.opened(tmp_path, "test") == ["0001", "0003"]
        notes = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES).found().notes
        assert "1 images that lists name are not in the folder" in notes

    @pytest.mark.parametrize("line", ["rgb/{}.jpg", "./rgb/{}", "{}.jpg"])
    @pytest.mark.parametrize("other", ["run_2/rgb/0003.jpg", "../run_2/rgb/0003.jpg"])
    def test_a_list_in_a_sequence_names_its_images_or_others_by_their_paths(self, tmp_path, line, other):
        for number, name in enumerate(["run_1/{}/0001", "run_2/{}/0002", "run_2/{}/0003"]):
            tiny_datasets.save_image(tmp_path / f"{name.format('rgb')}.jpg", number)
            labelled_folders.put(tmp_path / f"{name.format('masks')}.png", labelled_folders.truth(number))
        labelled_folders.put(tmp_path / "run_1/train.txt", "\n".join([line.format("0001"), line.format("0002"), other]))
        labelled_folders.put(tmp_path / "run_2/val.txt", line.format("0002"))
        assert {split: self.opened(tmp_path, split) for split in ("train", "val")} == {
            "train": ["0001", "0003"],
            "val": ["0002"],
        }
        notes = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES).found().notes
        assert "1 images that lists name are not in the folder" in notes

    @pytest.mark.parametrize("line", ["run/{}", "{}"])
    def test_an_export_beside_another_has_lists_of_its_own_images(self, tmp_path, line):
        for number, name in enumerate(["a/{}/run/1", "a/{}/run/3", "b/{}/run/1", "b/{}/run/2", "b/{}/run/3"]):
            tiny_datasets.save_image(tmp_path / f"{name.format('images')}.jpg", number)
            labelled_folders.put(tmp_path / f"{name.format('masks')}.png", labelled_folders.truth(number))
        labelled_folders.put(tmp_path / "a/lists/train.txt", "\n".join(map(line.format, (1, 2, 3))))
        labelled_folders.put(tmp_path / "b/lists/val.txt", "\n".join(map(line.format, (1, 2, 3))))
        assert {split: self.opened(tmp_path, split) for split in ("train", "val")} == {
            "train": ["1", "3"],
            "val": ["1", "2", "3"],
        }

    def test_images_of_no_split_are_trained_on_where_only_a_test_folder_is_named(self, root):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (root / folder / "test").mkdir()
            (root / f"{folder}/f.{suffix}").rename(root / f"{folder}/test/f.{suffix}")
        assert {*self.opened(root, "train"), *self.opened(root, "val")} == {*"abcde"}
        notes = AutoData(root=str(root), classes=labelled_folders.NAMES).found().notes
        assert not any("left out" in note for note in notes)

    def test_a_list_that_names_no_image_is_refused(self, root):
        labelled_folders.put(root / "test.txt", "elsewhere/0001.jpg")
        assert len(self.opened(root, "train")) == 5
        labelled_folders.put(root / "train.txt", "0001\n0002")
        with pytest.raises(DatasetError, match=r"train\.txt is named as the list of the train images, .*images/a\.jpg"):
            self.opened(root, "train")


def write_named(root: Path, images: Iterable[str], mask: str) -> None:
    """Images, and the mask of each; its pixels hold the image's number."""
    for number, image in enumerate(images):
        tiny_datasets.save_image(root / image, number)
        name = mask.format(Path(image).stem)
        labelled_folders.put(root / Path(image).parent / name, np.full((40, 48), number, np.uint8))


@pytest.mark.parametrize("settings", [{"format": "roboflow_masks"}, {}, {"masks": "*_mask.png"}])
@pytest.mark.parametrize(
    "other", ["IMG_1.jpg", "image_5.jpg", "label_1.jpg", "target_1.jpg", "gt_1.jpg", "my_mask.jpg"]
)
def test_no_word_in_the_name_of_an_image_hides_it_or_the_others(tmp_path, settings, other):
    images = [f"scene{number}.jpg" for number in range(4)]
    write_named(tmp_path / "train", [*images, other], "{}_mask.png")
    if "format" in settings:
        labelled_folders.put(tmp_path / "train/_classes.csv", "Pixel Value, Class\n0, a\n1, b\n2, c\n3, d\n4, e")
    section = AutoData(root=str(tmp_path), classes=list("abcde"), **settings)
    data = section.open_all()
    assert {sample.image.name for sample in data.samples} == {*images, other}
    assert all(data.item(index)[1].max() == [*images, other].index(data.describe(index)) for index in range(5))
    tiny_datasets.save_image(tmp_path / "train/scene9.jpg", 9)
    with pytest.raises(IncompleteError, match=r"1 of 6 images have no mask.*scene9_mask\.png"):
        section.open_all()


def test_pictures_beside_images_that_are_called_so_are_left_out(tmp_path):
    write_named(tmp_path, [f"run_{number}/rgb.png" for number in range(4)], "label.png")
    for number in range(4):
        tiny_datasets.save_image(tmp_path / f"run_{number}/infrared.png", number)
        tiny_datasets.save_image(tmp_path / f"run_{number}/label_color.png", number)
    data = AutoData(root=str(tmp_path), classes=list("abcd")).open_all()
    assert [sample.image.name for sample in data.samples] == ["rgb.png"] * 4 and not data.spare_masks


@pytest.mark.parametrize("folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information"])
def test_folders_of_file_systems_are_left_out(tmp_path, folder):
    for name in ("a.jpg", f"{folder}/a.jpg", f"images/{folder}/b.jpg"):
        tiny_datasets.save_image(tmp_path / name, 0)
    assert Tree(tmp_path).files == ["a.jpg"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make_closed_folder(tmp_path / "lost+found", monkeypatch)
    assert Tree(tmp_path).files == []
    make_closed_folder(tmp_path / "val", monkeypatch)
    with pytest.raises(DatasetError, match=r"val cannot be read: .*; let this user read it"):
        Tree(tmp_path)


def test_of_several_masks_of_an_image_the_numbers_are_taken(tmp_path):
    for number in range(3):
        tiny_datasets.save_image(tmp_path / "camera" / f"{number}.jpg", number)
        tiny_datasets.save_image(tmp_path / "camera_label_color" / f"{number}.png", number)
        labelled_folders.put(tmp_path / "camera_label_id" / f"{number}.png", np.full((40, 48), 1, np.uint8))
    assert AutoData(root=str(tmp_path), classes=["a", "b"]).open("train").item(0)[1].max() == 1


def test_masks_in_a_lossy_format_are_refused(tmp_path):
    for number in range(3):
        tiny_datasets.save_image(tmp_path / "images" / f"{number}.jpg", number)
        tiny_datasets.save_image(tmp_path / "masks" / f"{number}.jpg", number)
    with pytest.raises(DatasetError, match=r"format that changes values \(3 of 3 masks are\)"):
        AutoData(root=str(tmp_path), classes=["a"]).open("train")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("0.webp", {}, "WEBP"),
        ("0.png", {"format": "WEBP"}, "WEBP"),
        ("0.png", {"format": "JPEG2000"}, "JPEG2000"),
        ("0.tif", {"compression": "jpeg"}, "TIFF with JPEG inside"),
    ],
)
def test_masks_whose_values_a_format_may_have_changed_are_refused(tmp_path, name, settings, said):
    tiny_datasets.save_image(tmp_path / "images/0.jpg", 0)
    (tmp_path / "masks").mkdir()
    Image.fromarray(labelled_folders.truth(0)).save(tmp_path / "masks" / name, **settings)
    labelled_folders.put(tmp_path / "train.lst", f"images/0.jpg masks/{name}")
    data = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES).open_all()
    with pytest.raises(ItemError, match=rf"{name} is {said}, which may change values; export the masks as PNG"):
        data.item(0)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_masks_may_be_tiff_that_keeps_values(tmp_path, compression):
    tiny_datasets.save_image(tmp_path / "images/0.jpg", 0)
    (tmp_path / "masks").mkdir()
    Image.fromarray(labelled_folders.truth(0)).save(tmp_path / "masks/0.tif", compression=compression)
    data = AutoData(root=str(tmp_path), classes=labelled_folders.NAMES).open_all()
    assert np.array_equal(data.item(0)[1], labelled_folders.truth(0))


# Values and colours --------------------------------------------------------------------------------------------------


def write_masks(root: Path, mask: np.ndarray | None = None, picture=None) -> None:
    """Three images with the same mask."""
    for number in range(3):
        tiny_datasets.save_image(root / "images" / f"{number}.png", number)
        if picture is None:
            labelled_folders.put(root / "masks" / f"{number}.png", mask)
        else:
            (root / "masks").mkdir(parents=True, exist_ok=True)
            picture.save(root / "masks" / f"{number}.png")


def tiled(*values: object, kind: type = np.uint8) -> np.ndarray:
    """A mask whose columns take the values in turn."""
    return np.array([[values[column % len(values)] for column in range(48)]] * 40, kind)


def first_labels(root: Path, count: int, **settings: object) -> list[int]:
    return AutoData(root=str(root), **settings).open("train").item(0)[1][0, :count].tolist()


@pytest.mark.parametrize(
    ("values", "kind", "settings", "expected"),
    [
        ((0, 255), np.uint8, {"classes": {"floor": 0, "person": 255}}, [0, 1]),
        ((0, 1, 2), np.uint8, {"classes": {"a": 1, "b": 2}, "ignore": 0}, [255, 0, 1]),
        ((0, 1, 2), np.uint8, {"classes": {1: "a", 2: "b"}, "ignore": 0}, [255, 0, 1]),
        ((0, 100, 10000), np.uint16, {"classes": {"a": [0, 100], "b": 10000}}, [0, 0, 1]),
        ((7, 12, 13, 14), np.uint8, {"classes": {"a": [7, 12], "b": "13-14"}}, [0, 0, 1, 1]),
        ((7, 13, 14, 15), np.uint8, {"classes": {"a": [7], "b": [13, 14, 15]}}, [0, 1, 1, 1]),
        ((3, 9, 200), np.uint8, {"classes": {"a": 3, "b": "rest"}}, [0, 1, 1]),
    ],
)
def test_values_become_classes_as_the_map_says(tmp_path, values, kind, settings, expected):
    write_masks(tmp_path, tiled(*values, kind=kind))
    assert first_labels(tmp_path, len(expected), **settings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"classes": {"vehicle": [7, 12, 13], "other": "rest"}},
        {"classes": {"vehicle": [7, 12, 13], "road": [0, 1, 2]}, "ignore": "rest"},
        {"classes": {"vehicle": [7, 12, 13], "person": 255, "other": "rest"}},
        {"classes": {"vehicle": [7, 12, 13], "person": 255}, "ignore": [0, 1, 2]},
    ],
)
def test_three_values_that_count_as_a_colour_are_explained(tmp_path, settings):
    write_masks(tmp_path, tiled(7, 12, 13, 255, 0, 1, 2))
    with pytest.raises(ItemError, match=r"png holds numbers, .*colours without a value.* write .*\[7, 12, 13-13\]"):
        first_labels(tmp_path, 1, **settings)
    items = settings["classes"].items()
    values = {name: [*own[:2], f"{own[2]}-{own[2]}"] if isinstance(own, list) else own for name, own in items}
    assert first_labels(tmp_path, 3, **(settings | {"classes": values})) == [0, 0, 0]


def test_grey_masks_of_three_channels_hold_numbers(tmp_path):
    write_masks(tmp_path, tiled((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    assert first_labels(tmp_path, 3, classes=["a", "b", "c"]) == [0, 1, 2]


def test_grey_masks_hold_numbers_although_classes_have_colours(tmp_path):
    write_masks(tmp_path, tiled((0, 0, 0), (1, 1, 1)))
    assert first_labels(tmp_path, 2, classes={"a": [0, 0, 0], "b": [200, 0, 0]}) == [0, 1]


def test_an_alpha_channel_is_dropped_and_told(tmp_path):
    write_masks(tmp_path, tiled((200, 0, 0, 0), (0, 200, 0, 255)))
    settings = {"classes": {"a": "#c80000", "b": [[0, 200, 0], [9, 9, 9]]}}
    assert first_labels(tmp_path, 2, **settings) == [0, 1]
    assert any("alpha" in note for note in AutoData(root=str(tmp_path), **settings).found().notes)


def palette_picture(colours: list[tuple[int, int, int]]) -> Image.Image:
    """A palette image whose columns are its indices in turn."""
    picture = Image.fromarray(tiled(*range(len(colours)))).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([number for colour in colours for number in colour])
    return picture


def test_palette_masks_are_read_by_colour_where_classes_have_colours(tmp_path):
    write_masks(tmp_path, picture=palette_picture([(0, 200, 0), (200, 0, 0)]))
    assert first_labels(tmp_path, 2, classes={"a": [200, 0, 0], "b": [0, 200, 0]}) == [1, 0]
    assert first_labels(tmp_path, 2, classes=["a", "b"]) == [0, 1]


def test_a_palette_that_disagrees_with_the_classes_is_refused(tmp_path):
    write_masks(tmp_path, picture=palette_picture([(0, 200, 0), (1, 2, 3)]))
    with pytest.raises(DatasetError, match=r"colour \[1, 2, 3\].*has a palette.*classes without colours"):
        first_labels(tmp_path, 2, classes={"a": [200, 0, 0], "b": [0, 200, 0]})


def test_masks_without_class_names_show_the_map_to_write(tmp_path):
    write_masks(tmp_path, tiled(0, 255))
    with pytest.raises(DatasetError, match=r"no class names.*\{class_0: 0, class_255: 255\}"):
        AutoData(root=str(tmp_path)).open("train")


def test_classes_counted_from_one_are_explained(tmp_path):
    write_masks(tmp_path, tiled(0, 1, 2))
    with pytest.raises(DatasetError, match=r"ignore holds the value 0.*'a'.*count the classes from 1.*\{a: 1, b: 2"):
        AutoData(root=str(tmp_path), classes=["a", "b"], ignore=0).open("train")


@pytest.mark.parametrize("size", [(20, 24), (41, 48), (80, 96)])
def test_masks_of_another_size_are_resized_only_when_asked(tmp_path, size):
    write_masks(tmp_path, np.full(size, 1, np.uint8))
    with pytest.raises(DatasetError, match=r"is 48x40; .*data\.resize_masks"):
        AutoData(root=str(tmp_path), classes=["a", "b"]).open("train").item(0)
    data = AutoData(root=str(tmp_path), classes=["a", "b"], resize_masks=True).open("train")
    image, labels = data.item(0)
    assert labels.shape == image.shape[:2] == data.mask(0).shape and labels.min() == 1


def test_a_mask_of_another_shape_is_never_resized(tmp_path):
    write_masks(tmp_path, np.full((48, 40), 1, np.uint8))
    with pytest.raises(DatasetError, match="must have the size of its image"):
        AutoData(root=str(tmp_path), classes=["a", "b"], resize_masks=True).open("train").item(0)


def test_a_mask_made_without_the_exif_turn_is_explained(tmp_path):
    write_masks(tmp_path, np.full((40, 48), 1, np.uint8))
    for path in (tmp_path / "images").iterdir():
        picture = Image.open(path)
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(path, exif=exif)
    with pytest.raises(DatasetError, match="EXIF tag turns it by a quarter"):
        AutoData(root=str(tmp_path), classes=["a", "b"]).open("train").item(0)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, channels) uint16: grey and alpha, RGB or RGBA, none of which Pillow writes."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("channels", [2, 3, 4], ids=["grey and alpha", "RGB", "RGBA"])
def test_masks_with_equal_channels_of_16_bits_hold_numbers(tmp_path, channels):
    write_masks(tmp_path, tiled(0))
    pixels = np.repeat(tiled(100, 7100, 65000, kind=np.uint16)[..., np.newaxis], channels, axis=2)
    if channels != 3:
        pixels[..., -1] = 40_000  # alpha
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(png_of_16_bits(pixels))
    settings = {"classes": {"a": 100, "b": 7100, "c": 65000}}
    assert first_labels(tmp_path, 3, **settings) == [0, 1, 2]


def test_masks_with_equal_channels_of_16_bits_may_be_tiff(tmp_path):
    write_masks(tmp_path, tiled(0))
    pixels = np.repeat(tiled(100, 7100, kind=np.uint16)[..., np.newaxis], 3, axis=2)
    for path in (tmp_path / "masks").iterdir():
        assert cv2.imwrite(str(path.with_suffix(".tiff")), pixels)
        path.unlink()
    assert first_labels(tmp_path, 2, classes={"a": 100, "b": 7100}) == [0, 1]


def test_masks_with_colours_of_16_bits_are_refused(tmp_path):
    write_masks(tmp_path, tiled(0))
    pixels = np.zeros((40, 48, 3), np.uint16)
    pixels[..., 0] = 200
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(png_of_16_bits(pixels))
    with pytest.raises(ItemError, match="holds colours of 16 bits per channel; save colours with 8 bits"):
        first_labels(tmp_path, 1, classes={"a": [0, 0, 0], "b": [0, 200, 0]})
