"""Every format of labelled folders comes to the same labels, and is found by what lies in the folder."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import shutil
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import labelled_folders
import numpy as np
import pytest
import tiny_datasets
import yaml
from labelled_folders import check_truth, edit, regions_of, shorten
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from dinov3_seg_ros.frames.sources import HEAD_BYTES
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.checks.problems import check_before_training
from training.data import DATASETS, IncompleteError, formats
from training.data.formats import all_formats
from training.data.image_values import image_values
from training.data.labelled_folder import AutoData
from training.data.reading.protocol import NO_PATTERNS
from training.data.reading.tree import Tree

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", sorted(labelled_folders.BUILDERS))
def test_a_folder_is_found_and_read_without_more_settings(tmp_path, name):
    labelled_folders.BUILDERS[name](tmp_path)
    section = AutoData(root=str(tmp_path))
    found = section.found()
    assert found.kind == name and found.why, found
    check_truth(section)
    assert (section.resolved().format, section.resolved().val_fraction) == (name, "auto")


def test_a_tilde_in_root_is_the_users_folder(tmp_path, monkeypatch):
    labelled_folders.build_folder(tmp_path / "rooms")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(AutoData(root="~/rooms").open("train")) == 4


def test_a_format_that_goes_on_from_another_one_is_found_by_itself(tmp_path, monkeypatch):
    lines = ("from training.data.formats.folder import Folder", "class Mine(Folder):", "    name = 'mine'")
    (tmp_path / "mine.py").write_text("\n".join(lines))
    with monkeypatch.context() as patch:
        patch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
        all_formats.cache_clear()
        found = all_formats()
    sys.modules.pop("training.data.formats.mine")
    all_formats.cache_clear()
    assert set(found) - set(all_formats()) == {"mine"}


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


@pytest.mark.parametrize("kind", ["coco", "coco_panoptic", "cvat_images", "datumaro", "label_studio", "labelme", "via"])
def test_an_image_that_is_gone_is_not_taken_from_another_site(tmp_path, kind):
    labelled_folders.BUILDERS[kind](tmp_path / "site_b")
    image = next(tmp_path.rglob("*train_0001.jpg"))
    elsewhere = tmp_path / "site_a" / image.relative_to(tmp_path / "site_b")
    elsewhere.parent.mkdir(parents=True)
    image.rename(elsewhere)
    if kind == "labelme":
        data = AutoData(root=str(tmp_path)).open_all()
        assert (len(data), data.spare_masks) == (5, [image.with_suffix(".json")])
        return
    with pytest.raises(DatasetError, match=r"1 (of 6 )?images .*train_0001\.jpg"):
        AutoData(root=str(tmp_path)).open_all()


@pytest.mark.parametrize("written", ["{}", "images/{}"])
@pytest.mark.parametrize("folder", ["annotations", "."])
@pytest.mark.parametrize("kind", [*sorted(IMAGE_LISTS), "labelme"])
def test_sites_side_by_side_keep_to_their_own_images(tmp_path, kind, folder, written):
    names = ["0001.png", "0002.png"]
    for site in ("site_a", "site_b"):
        for name in names:
            tiny_datasets.save_image(tmp_path / site / "images" / name, 0)
        paths = [written.format(name) for name in names]
        if kind == "labelme":
            for path, name in zip(paths, names, strict=True):
                content = {"shapes": [{"label": "road", "points": [[1, 1], [9, 1], [9, 9]]}], "imagePath": path}
                labelled_folders.put(tmp_path / site / folder / f"{name}.json", content)
        else:
            labelled_folders.put(tmp_path / site / folder / "labels.json", IMAGE_LISTS[kind](paths))
    section = AutoData(root=str(tmp_path))
    sites = [[path.relative_to(tmp_path).parts[0] for path in sample.files()] for sample in section.open_all().samples]
    assert sites == [["site_a", "site_a"]] * 2 + [["site_b", "site_b"]] * 2
    for path in tmp_path.glob("site_a/**/*.json"):
        path.unlink()
    (tmp_path / "site_b/images/0001.png").unlink()
    if kind == "labelme":
        data = section.open_all()
        assert (len(data), data.spare_masks) == (1, [tmp_path / "site_b" / folder / "0001.png.json"])
        return
    with pytest.raises(IncompleteError, match=r"1 of 2 images .*site_b/.*0001\.png"):
        section.open_all()


@pytest.mark.parametrize("kind", sorted(IMAGE_LISTS))
def test_images_may_be_named_as_in_addresses(tmp_path, kind):
    for name in ("day 1/a b", "day 1/c", "day 2/a b", "day 2/c d", "day 2/c%20d"):
        tiny_datasets.save_image(tmp_path / f"images/{name}.png", 0)
    written = ["day%201/a%20b.png", "https://host/day%202/a%20b.png?X=1", "day%202/c%20d.png"]
    labelled_folders.put(tmp_path / "labels.json", IMAGE_LISTS[kind](written))
    found = sorted(
        sample.image.relative_to(tmp_path).as_posix() for sample in AutoData(root=str(tmp_path)).open_all().samples
    )
    assert found == ["images/day 1/a b.png", "images/day 2/a b.png", "images/day 2/c%20d.png"]
    (tmp_path / "images/day 1/a b.png").unlink()
    with pytest.raises(IncompleteError, match=r"1 of 3 images .*day%201/a%20b\.png"):
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


@pytest.mark.parametrize("image_id", [104, "007", 0.5, None])
def test_an_image_that_coco_does_not_list_is_named(tmp_path, image_id):
    labelled_folders.build_coco(tmp_path)
    edit(tmp_path / "valid/_annotations.coco.json", lambda c: c["annotations"][-1].update(image_id=image_id))
    with pytest.raises(
        DatasetError, match=rf"valid/_annotations\.coco\.json is not laid out.*the image {image_id}, which"
    ):
        AutoData(root=str(tmp_path)).open("train")


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


@pytest.mark.parametrize("written", [str, float])
def test_ids_of_images_in_coco_may_be_text_or_have_a_point(tmp_path, written):
    labelled_folders.build_coco(tmp_path)
    edit(
        tmp_path / "train/_annotations.coco.json",
        lambda c: [image.update(id=written(image["id"])) for image in c["images"]],
    )
    check_truth(AutoData(root=str(tmp_path)))


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


def long_runs(content: dict) -> None:
    region = next(found["segmentation"] for found in content["annotations"] if isinstance(found["segmentation"], dict))
    region["counts"][-1] += 100_000


def half_size(content: dict) -> None:
    region = next(found["segmentation"] for found in content["annotations"] if isinstance(found["segmentation"], dict))
    region.update(size=[20, 24], counts=[0, 480])


def far_corner(content: dict) -> None:
    content["shapes"][0]["points"][0] = [1e12, 3]


def unlabelled_rectangle(tasks: list[dict]) -> None:
    regions_of(tasks)[1].update(type="rectangle", value={"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0})


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
    ("coco", "train/_annotations.coco.json", lambda c: c["images"][1].update(id=0.0), "2 images have the id 0"),
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
        lambda c: c["items"][0]["annotations"][0]["rle"].update(
            size=[20, 24], counts=labelled_folders.compressed_runs([0, 480])
        ),
        "a mask has 24x20 pixels, its image 48x40",
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


@pytest.mark.parametrize(("name", "pattern"), [("coco", "_annotations*"), ("yolo", "*.txt"), ("cvat_images", "*.xml")])
def test_labels_that_are_links_to_nowhere_are_named(tmp_path, name, pattern):
    labelled_folders.BUILDERS[name](tmp_path)
    path = next(tmp_path.rglob(pattern))
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="is a link to a file that is not there"):
        AutoData(root=str(tmp_path)).open("train")


def write_shape(root: Path, kind: str, shape: Any) -> None:
    """An image of 48x40 pixels with one shape, a road, as a tool writes it."""
    tiny_datasets.save_image(root / ("rooms/img/a.jpg" if kind == "supervisely" else "a.jpg"), 0)
    if kind == "labelme":
        shapes = [{"label": "road", **shape}]
        labelled_folders.put(root / "a.json", {"imagePath": "a.jpg", "shapes": shapes})
    elif kind == "cvat_images":
        labels = "<meta><task><labels><label><name>road</name></label></labels></task></meta>"
        image = f'<image id="0" name="a.jpg" width="48" height="40">{shape}</image>'
        labelled_folders.put(root / "annotations.xml", f"<annotations>{labels}{image}</annotations>")
    elif kind == "datumaro":
        item = {"id": "a", "annotations": [{"label_id": 0, **shape}], "image": {"path": "a.jpg", "size": [40, 48]}}
        categories = {"label": {"labels": [{"name": "road"}]}}
        labelled_folders.put(root / "default.json", {"categories": categories, "items": [item]})
    elif kind == "label_studio":
        result = {"value": shape, "original_height": 40, "original_width": 48}
        labelled_folders.put(root / "a.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}])
    elif kind == "via":
        region = {"shape_attributes": shape, "region_attributes": {"class": "road"}}
        labelled_folders.put(root / "via_region_data.json", {"a": {"filename": "a.jpg", "regions": [region]}})
    else:
        content = {"size": {"height": 40, "width": 48}, "objects": [{"classTitle": "road", **shape}]}
        labelled_folders.put(root / "meta.json", {"classes": [{"title": "road"}]})
        labelled_folders.put(root / "rooms/ann/a.jpg.json", content)


def mask_of_labelme(left: int, top: int) -> dict[str, object]:
    """A mask of 10x10 pixels, of which the right half is set."""
    picture = io.BytesIO()
    Image.fromarray(np.repeat([[0] * 5 + [255] * 5], 10, 0).astype(np.uint8)).save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return {"shape_type": "mask", "points": [[left + 9, top + 9], [left, top]], "mask": encoded}


#: Two squares around one middle.
SQUARE = [[[20 - r, 20 - r], [20 + r, 20 - r], [20 + r, 20 + r], [20 - r, 20 + r]] for r in (10, 5)]


def in_percent(x: int, y: int) -> dict[str, float]:
    """The middle of a pixel, as Label Studio gives it."""
    return {"x": 100 * (x + 0.5) / 48, "y": 100 * (y + 0.5) / 40}


@pytest.mark.parametrize(
    ("kind", "shape", "box", "area"),
    [
        ("labelme", {"shape_type": "circle", "points": [[24, 20], [24, 10]]}, (10, 30, 14, 34), 349),
        ("labelme", {"shape_type": "linestrip", "points": [[14, 9], [34, 9], [34, 29]]}, (4, 34, 9, 39), 536),
        ("labelme", {"shape_type": "points", "points": [[24, 10], [24, 30]]}, (5, 35, 19, 29), 202),
        ("labelme", mask_of_labelme(-7, -2), (0, 7, 0, 2), 24),
        ("labelme", mask_of_labelme(40, 36), (36, 39, 45, 47), 12),
        ("cvat_images", '<box label="road" xtl="10" ytl="18" xbr="30" ybr="22" rotation="90"/>', (10, 30, 18, 22), 105),
        ("cvat_images", '<ellipse label="road" cx="24" cy="20" rx="10" ry="4" rotation="90"/>', (10, 30, 20, 28), 157),
        ("cvat_images", '<polyline label="road" points="10,20;30,20;30,10"/>', (10, 20, 10, 30), 31),
        (
            "datumaro",
            {"type": "bbox", "bbox": [10, 18, 20, 4], "attributes": {"rotation": 90.0}},
            (10, 30, 18, 22),
            105,
        ),
        ("datumaro", {"type": "polyline", "points": [10, 20, 30, 20, 30, 10]}, (10, 20, 10, 30), 31),
        (
            "label_studio",
            {"rectanglelabels": ["road"], **in_percent(24, 10), "width": 25, "height": 20, "rotation": 90},
            (10, 22, 16, 24),
            117,
        ),
        (
            "label_studio",
            {"ellipselabels": ["road"], **in_percent(24, 20), "radiusX": 25, "radiusY": 10, "rotation": 90},
            (8, 32, 20, 28),
            183,
        ),
        ("via", {"name": "circle", "cx": 24, "cy": 20, "r": 10}, (10, 30, 14, 34), 349),
        ("via", {"name": "ellipse", "cx": 24, "cy": 20, "rx": 10, "ry": 4, "theta": np.pi / 2}, (10, 30, 20, 28), 157),
        ("via", {"name": "polyline", "all_points_x": [10, 30, 30], "all_points_y": [20, 20, 10]}, (10, 20, 10, 30), 31),
        (
            "supervisely",
            {"geometryType": "polygon", "points": {"exterior": SQUARE[0], "interior": [SQUARE[1]]}},
            (10, 30, 10, 30),
            21 * 21 - 11 * 11,
        ),
        (
            "supervisely",
            {"geometryType": "line", "points": {"exterior": [[10, 20], [30, 20], [30, 10]]}},
            (10, 20, 10, 30),
            31,
        ),
        ("supervisely", {"geometryType": "point", "points": {"exterior": [[24, 20]]}}, (19, 21, 23, 25), 9),
    ],
)
def test_shapes_of_every_kind_cover_what_their_tool_draws(tmp_path, kind, shape, box, area):
    write_shape(tmp_path, kind, shape)
    mask = AutoData(root=str(tmp_path)).open_all().mask(0)
    rows, columns = np.nonzero(mask)
    assert ((rows.min(), rows.max(), columns.min(), columns.max()), len(rows)) == (box, area)


def test_subsets_of_cvat_are_the_splits_whatever_the_folder_of_the_images(tmp_path):
    labelled_folders.build_cvat_images(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train")
    check_truth(AutoData(root=str(tmp_path)))


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


def test_corners_of_yolo_on_whole_pixels_are_those_pixels(tmp_path):
    labelled_folders.build_yolo(tmp_path)
    corners = ((10, 10), (20, 10), (20, 30), (10, 30))
    shares = " ".join(f"{x / labelled_folders.WIDTH:.6g} {y / labelled_folders.HEIGHT:.6g}" for x, y in corners)
    (tmp_path / "train/labels/train_0000.txt").write_text(f"0 {shares}\n")
    rows, columns = np.nonzero(AutoData(root=str(tmp_path)).open("train").mask(0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 10, 20)


def test_boxes_among_polygons_of_yolo_are_counted(tmp_path):
    labelled_folders.build_yolo(tmp_path)
    assert not any("box" in note for note in AutoData(root=str(tmp_path)).found().notes)
    for path in tmp_path.glob("*/labels/*.txt"):
        if path.stem != "train_0000":
            path.write_text(f"{path.read_text()}1 0.5 0.5 0.2 0.2\n\n")
    (tmp_path / "train/labels/classes.txt").write_text("the name of five words\n")
    boxes = sum(tiny_datasets.COUNTS.values()) - 1
    assert f"{boxes} annotations have a box alone, which is filled" in AutoData(root=str(tmp_path)).found().notes


@pytest.mark.parametrize(
    ("file", "said"), [("export.zip", "Unpack the archive"), ("masks/0.npy", "Masks must be PNG, BMP or TIFF")]
)
def test_what_must_be_done_first_is_told(tmp_path, file, said):
    labelled_folders.put(tmp_path / file, "x")
    with pytest.raises(DatasetError, match=said):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    "text", ["[no, wall]", "{off: [0, 0, 0], on: [1, 1, 1]}", "[null, wall]", "[floor, '']", r'["a\nb"]']
)
def test_class_names_that_cannot_be_used_are_refused_everywhere(tmp_path, text):
    said = r"put the names in quotes|empty name|'a\\nb' holds control characters"
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


@pytest.mark.parametrize(
    ("build", "pattern"),
    [
        (labelled_folders.build_labelme, "*.json"),
        (labelled_folders.build_huggingface_images, "metadata.jsonl"),
        (labelled_folders.build_folder, "classes.yaml"),
    ],
)
def test_a_file_that_is_nested_too_deeply_is_named(tmp_path, build, pattern):
    build(tmp_path)
    for path in tmp_path.rglob(pattern):
        path.write_text(100_000 * "[")
    with pytest.raises(DatasetError, match=rf"{tmp_path}/.* cannot be read as .*: it is nested too deeply"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_class_of_coco_whose_name_holds_control_characters_is_refused(tmp_path):
    labelled_folders.build_coco(tmp_path)
    for path in tmp_path.rglob("*.json"):
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "road\x1b[2J"
        path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"_annotations\.coco\.json: 'road\\x1b\[2J' holds control characters"):
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


def test_projects_of_supervisely_may_lie_in_folders(tmp_path):
    labelled_folders.build_supervisely(tmp_path / "project_a")
    labelled_folders.put(tmp_path / "elsewhere/meta.json", [])
    check_truth(AutoData(root=str(tmp_path)))
    labelled_folders.build_supervisely(tmp_path / "project_b")
    edit(tmp_path / "project_b/meta.json", lambda c: c["classes"].append({"title": "person"}))
    data = AutoData(root=str(tmp_path)).open_all()
    assert data.class_names == [*labelled_folders.NAMES, "person"]
    folders = [{path.relative_to(tmp_path).parts[0] for path in sample.files()} for sample in data.samples]
    assert sorted(folders, key=min) == [{"project_a"}] * 6 + [{"project_b"}] * 6


def test_shapes_have_the_classes_of_all_lists_together(tmp_path):
    for part, text in (("a", "person\nroad"), ("b", "tree\nroad")):
        labelled_folders.build_labelme(tmp_path / part)
        labelled_folders.put(tmp_path / part / "labels.txt", text)
    assert AutoData(root=str(tmp_path)).open_all().class_names == ["background", "person", "road", "tree", "door"]
