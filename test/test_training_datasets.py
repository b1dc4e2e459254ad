"""Every data set that a recipe can name, through one tester, and what is particular to each of the published ones."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets
from PIL import Image

from dinov3_seg_ros.support.errors import DatasetError
from training.data import DATASETS, IncompleteError, SegmentationDataset
from training.data.published.camvid import CamVidData
from training.data.published.coco_panoptic import CocoPanopticData
from training.data.published.penn_fudan import PennFudanData
from training.data.published.voc import VocData
from training.data.scenes import ScenesData
from training.recipes.overrides import apply_overrides


def folder(root: Path):
    tiny_datasets.build_camvid(root)
    return DATASETS["folder"](root=str(root), classes=[f"c{i}" for i in range(11)], ignore=[11])


def auto(root: Path):
    tiny_datasets.build_camvid(root)
    return DATASETS["auto"](root=str(root), classes=[f"c{i}" for i in range(11)], ignore=11)


def scenes(root: Path):
    return ScenesData(count=4, val_count=2, size=(48, 64), cache=None)


def published(name: str) -> Callable[[Path], object]:
    def make(root: Path):
        tiny_datasets.BUILDERS[name](root)
        return DATASETS[name](root=str(root))

    make.__name__ = name
    return make


def penn_fudan_original(root: Path):
    tiny_datasets.build_penn_fudan_original(root)
    return PennFudanData(root=str(root), val_fraction=1 / 3)


def camvid_of_segnet(root: Path):
    tiny_datasets.build_camvid(root)
    for split in ("train", "val"):
        (root / split / "masks").rename(root / f"{split}annot")
        for image in (root / split / "images").iterdir():
            image.rename(root / split / image.name)
        (root / split / "images").rmdir()
    return CamVidData(root=str(root))


def voc_without_sbd(root: Path):
    tiny_datasets.build_voc(root, augmented=False)
    return VocData(root=str(root))


#: Section maker, number of classes, whether each mask holds every class, whether it holds ignored pixels.
CASES = [
    (folder, 11, True, True),
    (auto, 11, True, True),
    (scenes, 11, False, False),
    (published("voc"), 21, True, True),
    (voc_without_sbd, 21, True, True),
    (published("coco_panoptic"), 134, True, False),
    (published("penn_fudan"), 2, True, False),
    (penn_fudan_original, 2, True, False),
    (published("ade20k"), 150, True, True),
    (published("cityscapes"), 19, True, True),
    (published("camvid"), 11, True, True),
    (camvid_of_segnet, 11, True, True),
]


def masks(data: SegmentationDataset) -> list[np.ndarray]:
    return [data.item(index)[1] for index in range(len(data))]


@pytest.mark.parametrize(
    ("make", "classes", "complete", "ignores"), CASES, ids=lambda case: getattr(case, "__name__", "")
)
def test_a_data_set_keeps_what_the_protocol_promises(tmp_path, make, classes, complete, ignores):
    section = make(tmp_path)
    names, images = {}, {}
    for split, count in tiny_datasets.COUNTS.items():
        data = pickle.loads(pickle.dumps(section.open(split)))  # the way to the processes that load data
        assert len(data) == count
        assert len(data.class_names) == len(data.palette) == len(set(data.class_names)) == classes
        assert all(len(colour) == 3 and min(colour) >= 0 and max(colour) <= 255 for colour in data.palette)
        assert data.ignore_value == 255
        names[split] = {data.describe(index) for index in range(count)}
        images[split] = {data.item(index)[0].tobytes() for index in range(count)}
        for index in range(count):
            image, mask = data.item(index)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
            assert np.array_equal(data.mask(index), mask)
            found = set(np.unique(mask).tolist())
            assert found <= {*range(classes), 255}
            assert not complete or found == {*range(classes), *([255] if ignores else [])}
    assert len(names["train"]) == 4 and len(names["val"]) == 2
    assert not names["train"] & names["val"] and not images["train"] & images["val"]


def test_every_data_set_is_tested():
    assert {make.__name__ for make, *_ in CASES} >= DATASETS.keys()


@pytest.mark.parametrize("name", sorted(tiny_datasets.BUILDERS))
@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_absent_layout_gives_one_message_with_the_expected_layout(tmp_path, name, present, split):
    root = tmp_path / "data"
    if present:
        root.mkdir()
    with pytest.raises(DatasetError) as error:
        DATASETS[name](root=str(root)).open(split)
    said = str(error.value)
    assert str(root) in said and "data.root" in said and "\n" not in said
    assert ("no such folder" in said) == (not present)
    parts = said.rpartition("has: ")[2].split("; ")
    assert len(parts) >= 2
    tiny_datasets.BUILDERS[name](root)
    assert all(any((root / path).exists() for path in part.split(" or ")) for part in parts), parts


@pytest.mark.parametrize("name", sorted(tiny_datasets.BUILDERS))
def test_a_missing_mask_is_named_before_anything_is_read(tmp_path, name):
    tiny_datasets.BUILDERS[name](tmp_path)
    section = DATASETS[name](root=str(tmp_path))
    data = section.open("val")
    lost = data.samples[1].labels
    lost.unlink()
    with pytest.raises(IncompleteError, match="1 of 2 images") as error:
        section.open("val")
    assert error.value.missing == [str(lost)] and str(lost) in str(error.value)
    assert [error.value.rest.describe(0)] == [data.describe(0)] and len(error.value.rest) == 1


VOC_LIST = "ImageSets/Segmentation/val.txt"


@pytest.mark.parametrize(
    ("name", "part", "replace", "said"),
    [
        ("ade20k", "images/validation", Path.mkdir, "holds no file of the types .*; unpack the data set anew"),
        ("ade20k", "annotations/validation", Path.touch, "is no folder; unpack the data set anew"),
        ("cityscapes", "leftImg8bit/val", Path.mkdir, "holds no folder of a city .*; unpack the data set anew"),
        ("voc", VOC_LIST, Path.touch, "lists no image; unpack the data set anew"),
        ("voc", VOC_LIST, Path.mkdir, "cannot be read: .*; get it anew, or let this user read it"),
    ],
)
def test_a_part_without_content_is_named_with_a_remedy(tmp_path, name, part, replace, said):
    tiny_datasets.BUILDERS[name](tmp_path)
    path = tmp_path / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    replace(path)
    with pytest.raises(DatasetError, match=rf"{part} {said}"):
        DATASETS[name](root=str(tmp_path)).open("val")


def test_the_root_can_be_given_on_the_command_line():
    section = apply_overrides(CocoPanopticData(root="a"), ["--root", "b", "--background", "ignore"])
    assert (section.root, section.background) == ("b", "ignore")


def with_values(root: Path, folder: str, values: np.ndarray) -> None:
    """Replace the first mask of a folder."""
    tiny_datasets.save_mask(min((root / folder).iterdir()), values)


def test_voc_prefers_the_augmented_list_where_its_masks_exist(tmp_path):
    tiny_datasets.build_voc(tmp_path)
    section = VocData(root=str(tmp_path))
    assert section.resolved().train_list == "train_aug" and len(section.open("train")) == 4
    plain = VocData(root=str(tmp_path), train_list="train")
    assert plain.resolved() == plain and len(plain.open("train")) == 2
    (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(DatasetError, match=r"no ImageSets/Segmentation/train_aug\.txt"):
        section.open("train")


def test_without_sbd_voc_trains_on_its_own_list(tmp_path):
    section = voc_without_sbd(tmp_path)
    assert section.resolved().train_list == "train"
    with pytest.raises(DatasetError, match="no SegmentationClassAug"):
        VocData(root=str(tmp_path), train_list="train_aug").open("train")


def test_lists_of_voc_may_hold_paths_and_lie_in_another_folder(tmp_path):
    tiny_datasets.build_voc(tmp_path)
    expected = [mask.tolist() for mask in masks(VocData(root=str(tmp_path)).open("train"))]
    (tmp_path / "list").mkdir()
    plain = tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt"
    names = plain.read_text().split()
    plain.unlink()
    (tmp_path / "list" / "train_aug.txt").write_text(
        "\n".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names)
    )
    assert [mask.tolist() for mask in masks(VocData(root=str(tmp_path)).open("train"))] == expected


def test_voc_reads_indices_and_ignores_its_border(tmp_path):
    tiny_datasets.build_voc(tmp_path, augmented=False)
    data = VocData(root=str(tmp_path)).open("val")
    seed = tiny_datasets.seeds("val")[0]
    assert np.array_equal(data.item(0)[1], tiny_datasets.values_of(tiny_datasets.VOC_VALUES, seed))
    with Image.open(min((tmp_path / "SegmentationClass").iterdir())) as picture:
        assert picture.mode == "P"
    assert data.class_names[15] == "person" and data.palette[15] == (192, 128, 128)


def coco_truth(root: Path, split: str, index: int) -> tuple[np.ndarray, dict]:
    """The segment ids of a mask, decoded by the definition, and its entry in the JSON."""
    content = json.loads((root / "annotations" / f"panoptic_{split}2017.json").read_text())
    entry = sorted(content["annotations"], key=lambda entry: entry["image_id"])[index]
    with Image.open(root / "annotations" / f"panoptic_{split}2017" / entry["file_name"]) as picture:
        rgb = np.array(picture).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], entry


@pytest.mark.parametrize(("background", "unlabelled"), [("class", 0), ("ignore", 255)])
def test_coco_segments_become_classes_in_the_order_of_the_categories(tmp_path, background, unlabelled):
    tiny_datasets.build_coco_panoptic(tmp_path)
    data = CocoPanopticData(root=str(tmp_path), background=background).open("train")
    categories = [category["id"] for category in tiny_datasets.coco_categories()]
    for index in range(len(data)):
        segment_ids, entry = coco_truth(tmp_path, "train", index)
        mask = data.item(index)[1]
        assert set(mask[segment_ids == 0]) == {unlabelled}
        for segment in entry["segments_info"]:
            assert set(mask[segment_ids == segment["id"]]) == {categories.index(segment["category_id"]) + 1}
        assert any(segment["iscrowd"] for segment in entry["segments_info"])
    names = data.class_names
    assert [names[i] for i in (0, 1, 80, 81, 133)] == ["background", "person", "toothbrush", "banner", "rug-merged"]


def test_coco_masks_may_lie_beside_the_annotations(tmp_path):
    tiny_datasets.build_coco_panoptic(tmp_path)
    (tmp_path / "annotations" / "panoptic_val2017").rename(tmp_path / "panoptic_val2017")
    assert len(masks(CocoPanopticData(root=str(tmp_path)).open("val"))) == 2


def test_coco_pairs_images_with_masks_by_the_json_not_by_order(tmp_path):
    tiny_datasets.build_coco_panoptic(tmp_path)
    data = CocoPanopticData(root=str(tmp_path)).open("val")
    for index, seed in enumerate(tiny_datasets.seeds("val")):
        assert data.describe(index) == f"{seed:012d}.jpg"
        assert coco_truth(tmp_path, "val", index)[1]["image_id"] == seed


def test_the_json_of_coco_is_parsed_once(tmp_path, monkeypatch):
    tiny_datasets.build_coco_panoptic(tmp_path)
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda *args, **options: parsed.append(args) or loads(*args, **options))
    for background in ("class", "ignore", "class"):
        CocoPanopticData(root=str(tmp_path), background=background).open("val")
    assert len(parsed) == 1


def edit_coco(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda content: content.pop("annotations"), ["panoptic_val2017.json", "annotations"]),
        (lambda content: content["categories"][3].update(name="unicorn"), ["unicorn", "133"]),
        (lambda content: content["categories"].pop(), ["panoptic_val2017.json", "200"]),
        (lambda content: content["annotations"][-1]["segments_info"].pop(), ["segment", "row", "does not list"]),
    ],
)
def test_a_faulty_json_of_coco_gives_one_clear_message(tmp_path, change, parts):
    tiny_datasets.build_coco_panoptic(tmp_path)
    edit_coco(tmp_path, change)
    with pytest.raises(DatasetError) as error:
        CocoPanopticData(root=str(tmp_path)).open("val").item(0)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("damage", [lambda text: text[:1000], lambda text: 100_000 * "["], ids=["cut", "deep"])
def test_a_json_of_coco_that_cannot_be_parsed_gives_one_clear_message(tmp_path, damage):
    tiny_datasets.build_coco_panoptic(tmp_path)
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DatasetError, match=f"{path} cannot be read as JSON"):
        CocoPanopticData(root=str(tmp_path)).open("val")


def test_every_person_of_penn_fudan_is_a_person(tmp_path):
    tiny_datasets.build_penn_fudan(tmp_path)
    with_values(tmp_path, "train_masks", np.tile([0, 1, 7, 255], (tiny_datasets.HEIGHT, tiny_datasets.WIDTH // 4)))
    mask = PennFudanData(root=str(tmp_path)).open("train").item(0)[1]
    assert mask[0, :4].tolist() == [0, 1, 1, 1]


def test_penn_fudan_never_mixes_its_two_layouts(tmp_path):
    tiny_datasets.build_penn_fudan(tmp_path)
    tiny_datasets.build_penn_fudan_original(tmp_path)
    section = PennFudanData(root=str(tmp_path))
    assert (len(section.open("train")), len(section.open("val"))) == (4, 2)
    (tmp_path / "valid_images").rename(tmp_path / "other")
    with pytest.raises(DatasetError, match="no valid_images"):
        section.open("val")


def test_24_of_penn_fudans_170_images_are_kept_for_validation(tmp_path):
    for folder, ending in (("PNGImages", ""), ("PedMasks", "_mask")):
        (tmp_path / folder).mkdir()
        for number in range(170):
            (tmp_path / folder / f"FudanPed{number:05d}{ending}.png").touch()
    section = PennFudanData(root=str(tmp_path))
    assert (len(section.open("train")), len(section.open("val"))) == (146, 24)


def test_the_values_of_ade20k_begin_with_1_and_0_is_ignored(tmp_path):
    tiny_datasets.build_ade20k(tmp_path)
    data = DATASETS["ade20k"](root=str(tmp_path)).open("val")
    values = tiny_datasets.values_of(range(151), tiny_datasets.seeds("val")[0]).astype(int)
    assert np.array_equal(data.item(0)[1], np.where(values == 0, 255, values - 1))
    assert [data.class_names[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]


def test_the_label_ids_of_cityscapes_become_train_ids(tmp_path):
    tiny_datasets.build_cityscapes(tmp_path)
    data = DATASETS["cityscapes"](root=str(tmp_path)).open("train")
    label_ids = {
        0: 255,
        6: 255,
        7: 0,
        8: 1,
        9: 255,
        11: 2,
        17: 5,
        18: 255,
        19: 6,
        26: 13,
        28: 15,
        29: 255,
        31: 16,
        33: 18,
    }
    # Sorted by city, so the first item is the first seed.
    values = tiny_datasets.values_of(range(34), tiny_datasets.seeds("train")[0])
    for label, train_id in label_ids.items():
        assert set(data.item(0)[1][values == label]) == {train_id}, label
    assert [data.class_names[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]


def test_masks_of_cityscapes_that_hold_train_ids_are_read_as_such(tmp_path):
    tiny_datasets.build_cityscapes(tmp_path)
    values = tiny_datasets.values_of([*range(19), 255], 0)
    for path in tmp_path.rglob("*_labelIds.png"):
        tiny_datasets.save_mask(path.with_name(path.name.replace("labelIds", "labelTrainIds")), values)
    patterns = {"images": "*_leftImg8bit.png", "masks": "*_gtFine_labelTrainIds.png"}
    data = DATASETS["auto"](root=str(tmp_path), format="cityscapes", **patterns).open("train")
    assert np.array_equal(data.item(0)[1], values)
    assert [data.class_names[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]


def test_camvid_takes_few_training_images_evenly_and_validates_on_all(tmp_path):
    tiny_datasets.build_camvid(tmp_path)
    every = CamVidData(root=str(tmp_path)).open("train")
    few = CamVidData(root=str(tmp_path), train_images=2)
    assert [few.open("train").describe(i) for i in range(2)] == [every.describe(1), every.describe(3)]
    assert len(few.open("train")) == 2
    assert len(few.open("val")) == 2
    assert len(CamVidData(root=str(tmp_path), train_images=9).open("train")) == len(every)


def test_classes_that_camvid_does_not_evaluate_are_ignored(tmp_path):
    tiny_datasets.build_camvid(tmp_path)
    data = CamVidData(root=str(tmp_path)).open("val")
    values = tiny_datasets.values_of(range(12), tiny_datasets.seeds("val")[0])
    assert np.array_equal(data.item(0)[1], np.where(values == 11, 255, values))


@pytest.mark.parametrize(
    ("name", "folder", "value", "allowed"),
    [
        ("voc", "SegmentationClass", 21, "0 to 20 and 255"),
        ("ade20k", "annotations/validation", 151, "0 to 150"),
        ("cityscapes", "gtFine/val/aachen", 34, "0 to 33"),
        ("camvid", "val/masks", 12, "0 to 11"),
    ],
)
def test_a_value_that_the_data_set_does_not_have_is_named(tmp_path, name, folder, value, allowed):
    tiny_datasets.BUILDERS[name](tmp_path)
    data = DATASETS[name](root=str(tmp_path)).open("val")
    values = np.zeros((tiny_datasets.HEIGHT, tiny_datasets.WIDTH))
    values[3, 5] = value
    tiny_datasets.save_mask(data.samples[0].labels, values)
    assert data.samples[0].labels.is_relative_to(tmp_path / folder)
    with pytest.raises(DatasetError, match=rf"the value {value} at row 3, column 5; allowed are {allowed}:"):
        data.item(0)
