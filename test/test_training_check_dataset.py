"""`training.check_dataset` finds every kind of fault, and nothing where there is none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import labelled_folders
import numpy as np
import pytest
import tiny_datasets
import yaml

from training import check_dataset

RECIPE = {
    "name": "tiny",
    "input": {"network_size": [32, 32]},
    "backbone": {"source": "nowhere"},
    "epochs": 1,
}


@pytest.fixture
def root(tmp_path) -> Path:
    tiny_datasets.build_camvid(tmp_path / "data")
    return tmp_path / "data"


def check(root: Path, capsys, *options: str, name: str = "camvid") -> tuple[int, str]:
    """Exit status of the command and what it printed."""
    recipe = root.parent / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "data": {"name": name, "root": "elsewhere"}}))
    status = check_dataset.main([str(recipe), "--data.root", str(root), "--threads", "2", *options])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize("name", sorted(tiny_datasets.BUILDERS))
def test_a_sound_data_set_has_no_problem(tmp_path, capsys, name):
    root = tmp_path / "data"
    tiny_datasets.BUILDERS[name](root)
    status, printed = check(root, capsys, name=name)
    assert status == 0 and "no problem found" in printed, printed
    assert "train: 4 images" in printed and "val: 2 images" in printed


def test_the_section_data_of_a_recipe_is_enough(root, capsys):
    recipe = root.parent / "data.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"name": "camvid", "root": str(root)}}))
    assert check_dataset.main([str(recipe)]) == 0
    recipe.write_text(yaml.safe_dump({**RECIPE, "data": {"name": "camvid", "root": str(root)}, "epochs": None}))
    capsys.readouterr()
    assert check_dataset.main([str(recipe)]) == 1, "what is more than that is checked as a recipe"
    assert "give either epochs or iterations" in capsys.readouterr().err


def mask_value_out_of_range(root: Path) -> None:
    for path in sorted((root / "train" / "masks").iterdir())[:2]:
        tiny_datasets.save_mask(path, np.full((tiny_datasets.HEIGHT, tiny_datasets.WIDTH), 12))


def mask_of_other_size(root: Path) -> None:
    tiny_datasets.save_mask(min((root / "train" / "masks").iterdir()), np.zeros((4, 4)))


def image_without_mask(root: Path) -> None:
    min((root / "train" / "masks").iterdir()).unlink()


def mask_without_image(root: Path) -> None:
    min((root / "train" / "images").iterdir()).unlink()


def unreadable_image(root: Path) -> None:
    path = min((root / "val" / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-100])


def same_image_in_both(root: Path) -> None:
    first = min((root / "train" / "images").iterdir())
    min((root / "val" / "images").iterdir()).write_bytes(first.read_bytes())


def class_that_never_occurs(root: Path) -> None:
    for seed, path in enumerate((root / "train" / "masks").iterdir()):
        tiny_datasets.save_mask(path, tiny_datasets.values_of([0, 1, 2, 3, 4, 5, 6, 7, 9, 10], seed))


def no_validation_split(root: Path) -> None:
    (root / "val").rename(root / "validation")


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (mask_value_out_of_range, ["train: value of no class: 2", "0001TP_000000.png has the value 12", "000001.png"]),
        (mask_of_other_size, ["train: sizes differ: 1", "0001TP_000000.png is 4x4", "48x40"]),
        (image_without_mask, ["train: missing file: 1", "0001TP_000000.png", "train: 3 images"]),
        (mask_without_image, ["mask without image: 1", "masks/0001TP_000000.png", "train: 3 images"]),
        (unreadable_image, ["val: unreadable file: 1", "0001TP_000100.jpg", "truncated"]),
        (same_image_in_both, ["the same image in train and val: 1", "0001TP_000000.jpg and 0001TP_000100.jpg"]),
        (class_that_never_occurs, ["train: class never occurs: 1", "\n  car\n"]),
        (no_validation_split, ["val: cannot be opened: 1", "val/images", "train: 4 images"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_reported_with_count_and_file(root, capsys, break_it, parts):
    break_it(root)
    status, printed = check(root, capsys)
    assert status == 1 and "no problem" not in printed
    assert all(part in printed for part in parts), printed


@pytest.mark.parametrize(
    ("layout", "image", "mask"),
    [
        ("ade20k", "images/training/ADE_train_00000000.jpg", "ADE_train_00000000.png"),
        (
            "cityscapes",
            "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
            "aachen_000000_000019_gtFine_labelIds.png",
        ),
        ("penn_fudan", "train_images/FudanPed00000.png", "FudanPed00000_mask.png"),
        ("penn_fudan_original", "PNGImages/FudanPed00000.png", "FudanPed00000_mask.png"),  # one folder for both splits
    ],
)
def test_a_mask_without_image_is_reported_once_in_any_layout(tmp_path, capsys, layout, image, mask):
    root = tmp_path / "data"
    getattr(tiny_datasets, f"build_{layout}")(root)
    (root / image).unlink()
    status, printed = check(root, capsys, name=layout.removesuffix("_original"))
    assert status == 1 and "mask without image: 1" in printed, printed
    assert printed.count(mask) == 1


@pytest.mark.parametrize("name", ["labelme", "supervisely", "yolo"])
def test_labels_without_an_image_are_not_called_a_mask(tmp_path, capsys, name):
    labelled_folders.BUILDERS[name](tmp_path / "data")
    min(path for path in (tmp_path / "data").rglob("*.jpg") if "train" in str(path)).unlink()
    status, printed = check(tmp_path / "data", capsys, name="auto")
    assert status == 1 and "labels without an image: 1" in printed and "mask without" not in printed, printed


def test_images_of_formats_that_are_not_read_are_noted(tmp_path, capsys):
    labelled_folders.build_labelme(root := tmp_path / "data")
    image = root / "train/train_0001.jpg"
    image.rename(image.with_suffix(".HEIC"))
    _, printed = check(root, capsys, name="auto")
    assert "labels without an image: 1" in printed
    assert "holds pictures that are not read (1 .heic); convert them to JPEG or PNG" in " ".join(printed.split())


def test_most_texts_of_yolo_may_have_no_image(tmp_path, capsys):
    labelled_folders.build_yolo(tmp_path / "data")
    for path in sorted((tmp_path / "data").rglob("labels/*.txt"))[1:]:
        path.rename(path.with_name(f"other_{path.name}"))
    status, printed = check(tmp_path / "data", capsys, name="auto")
    assert status == 1 and "most masks have no image" in printed, printed


def test_a_list_of_classes_beside_the_texts_of_yolo_is_no_text_of_labels(tmp_path, capsys):
    labelled_folders.build_yolo(tmp_path / "data")
    (tmp_path / "data/train/labels/classes.txt").write_text("\n".join(labelled_folders.NAMES[1:]))
    status, printed = check(tmp_path / "data", capsys, name="auto")
    assert status == 0, printed


def test_only_of_a_file_that_was_there_is_it_said_that_it_is_unchanged(root, capsys):
    path = root / f"{'a' * 250}.json"  # a temporary name beside it would be too long
    for existed in (False, True):
        status, printed = check(root, capsys, "--json", str(path))
        assert status == 1 and f"{path} cannot be written" in printed
        assert ("its earlier content is unchanged" in printed) == existed
        path.write_text("{}")


def test_classes_of_which_no_mask_could_be_read_are_not_said_to_be_absent(root, capsys):
    for path in root.glob("*/masks/*"):
        tiny_datasets.save_mask(path, np.full((tiny_datasets.HEIGHT, tiny_datasets.WIDTH), 12))
    status, printed = check(root, capsys)
    assert status == 1 and "train: value of no class: 4" in printed
    assert "never occurs" not in printed and "bicyclist" not in printed, printed


def test_faults_of_several_kinds_are_reported_together(root, capsys):
    unreadable_image(root)
    image_without_mask(root)
    tiny_datasets.save_mask(root / "train" / "masks" / "0001TP_000001.png", np.zeros((4, 4)))
    train_image = root / "train" / "images" / "0001TP_000002.jpg"
    (root / "val" / "images" / "0001TP_000101.jpg").write_bytes(train_image.read_bytes())
    status, printed = check(root, capsys)
    assert status == 1
    for kind in (
        "val: unreadable file",
        "train: missing file",
        "train: sizes differ",
        "the same image in train and val",
    ):
        assert f"{kind}: 1" in printed, printed


def test_only_the_first_of_many_faults_are_named(root, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, "NAMED", 2)
    for path in (root / "train" / "masks").iterdir():
        tiny_datasets.save_mask(path, np.zeros((4, 4)))
    _, printed = check(root, capsys)
    assert "train: sizes differ: 4" in printed and "and 2 more" in printed
    assert "0001TP_000001.png" in printed and "0001TP_000002.png" not in printed


def test_a_class_that_never_occurs_may_be_allowed(root, capsys):
    class_that_never_occurs(root)
    status, printed = check(root, capsys, "--allow-empty")
    assert status == 0 and "no problem found" in printed


def test_a_class_that_the_recipe_leaves_empty_is_no_problem(tmp_path, capsys):
    root = tmp_path / "data"
    tiny_datasets.build_coco_panoptic(root)
    status, printed = check(root, capsys, "--data.background", "ignore", name="coco_panoptic")
    assert status == 0 and "no problem found" in printed and "never" not in printed, printed


def test_a_class_missing_in_val_is_reported_but_no_problem(root, capsys):
    for path in (root / "val" / "masks").iterdir():
        tiny_datasets.save_mask(path, tiny_datasets.values_of([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0))
    status, printed = check(root, capsys)
    assert status == 0 and "undefined: bicyclist" in printed


def test_pixels_and_images_of_each_class_are_counted(root, capsys):
    quarter = np.zeros((tiny_datasets.HEIGHT, tiny_datasets.WIDTH))
    quarter[:20, :24], quarter[20:] = 3, 11  # half of it ignored
    for path in (root / "val" / "masks").iterdir():
        tiny_datasets.save_mask(path, quarter)
    tiny_datasets.save_mask(path, quarter * 0 + 3)
    _, printed = check(root, capsys)
    assert "val: 2 images, ignored pixels 25.00 %" in printed
    rows = {line.split("│")[2].strip(): line.split("│") for line in printed.splitlines() if line.count("│") > 5}
    assert [cell.strip() for cell in rows["road"][5:7]] == ["83.33 %", "2"]
    assert [cell.strip() for cell in rows["sky"][5:7]] == ["16.67 %", "1"]


def test_a_test_split_is_read_where_it_has_labels(root, tmp_path, capsys):
    shutil.copytree(root / "val", root / "test")
    status, printed = check(root, capsys, "--json", str(tmp_path / "found.json"))
    assert status == 0 and "test: 2 images" in printed, printed
    assert json.loads((tmp_path / "found.json").read_text())["splits"]["test"]["images"] == 2
    masks, images = sorted((root / "test/masks").iterdir()), sorted((root / "test/images").iterdir())
    tiny_datasets.save_mask(masks[0], np.full((tiny_datasets.HEIGHT, tiny_datasets.WIDTH), 99))
    shutil.copy(min((root / "train/images").iterdir()), images[1])
    status, printed = check(root, capsys)
    assert status == 1 and "test: value of no class: 1" in printed and "has the value 99" in printed, printed
    assert "the same image in train and test: 1" in printed and "0001TP_000000.jpg and 0001TP_000101.jpg" in printed
    shutil.rmtree(root / "test/masks")
    status, printed = check(root, capsys)
    assert status == 0 and "test" not in printed.replace(str(root), ""), printed


@pytest.mark.parametrize("labelled", [False, True])
def test_images_for_testing_may_all_be_without_a_mask(tmp_path, capsys, labelled):
    root = tmp_path / "data"
    labelled_folders.build_folder(root)
    for seed in (200, 201):
        tiny_datasets.save_image(root / f"test/images/{seed}.jpg", seed)
    if labelled:
        labelled_folders.put(root / "test/masks/200.png", labelled_folders.truth(200))
    status, printed = check(root, capsys, name="folder")
    assert (status == 1) == labelled == ("test: missing file: 1" in printed), printed


@pytest.mark.parametrize("words", [(), ("--data.classes", "door", "road", "tree", "--data.ignore", "background")])
def test_images_for_testing_may_all_be_without_a_shape(tmp_path, capsys, words):
    root = tmp_path / "data"
    labelled_folders.build_yolo(root)
    for seed in (200, 201):
        tiny_datasets.save_image(root / f"images/test/{seed}.jpg", seed)
    content = yaml.safe_load((root / "data.yaml").read_text())
    labelled_folders.put(root / "data.yaml", yaml.safe_dump({**content, "test": "images/test"}))
    _, printed = check(root, capsys, *words, name="auto")
    assert "train: 4 images" in printed and "test:" not in printed, printed


def test_what_was_found_is_written_as_json(root, tmp_path, capsys):
    written = tmp_path / "found.json"
    settings = ("--data.ignore", "11", "--data.classes", *(f"c{index}" for index in range(11)), "--json", str(written))
    status, printed = check(root, capsys, *settings, name="auto")
    content = json.loads(written.read_text())
    assert status == 0 and content["found"] == "folder" and content["problems"] == [], printed
    assert f"found: folder, {content['sure']} ({content['why']})" in printed
    assert {split: part["images"] for split, part in content["splits"].items()} == {"train": 4, "val": 2}
    for part in content["splits"].values():
        assert list(part["pixels"]) == [f"c{index}" for index in range(11)] and min(part["pixels"].values()) > 0
        pixels = part["images"] * tiny_datasets.HEIGHT * tiny_datasets.WIDTH
        assert sum(part["pixels"].values()) + part["ignored"] == pixels


def test_problems_are_written_as_json(root, tmp_path, capsys):
    unreadable_image(root)
    written = tmp_path / "found.json"
    status, _ = check(root, capsys, "--json", str(written))
    (problem,) = json.loads(written.read_text())["problems"]
    assert status == 1 and problem.startswith("val: unreadable file: ") and "0001TP_000100.jpg" in problem


def test_an_unknown_key_is_one_clear_message(root, capsys):
    status, printed = check(root, capsys, "--data.rot", "x")
    assert status == 2 and "--data.rot" in printed


def without_shapes(root: Path, kind: str) -> None:
    """Take the shapes of two training images away, as of images that nobody has labelled yet."""
    seeds = tiny_datasets.seeds("train")[:2]
    for path in [*root.rglob("*.json"), *root.rglob("*.xml"), *root.rglob("*.txt")]:
        text = path.read_text()
        if kind == "cvat_images":
            text = re.sub(r'(<image id="[01]"[^>]*>).*?</image>', r"\1</image>", text)
        elif kind == "coco":
            content = json.loads(text)
            kept = [found for found in content["annotations"] if found["image_id"] not in seeds]
            text = json.dumps({**content, "annotations": kept})
        elif kind == "datumaro" and path.stem == "train":
            content = json.loads(text)
            for item in content["items"][:2]:
                item["annotations"] = []
            text = json.dumps(content)
        elif path.name.startswith(tuple(f"train_{seed:04d}" for seed in seeds)):
            emptied = {"supervisely": {"objects": []}, "labelme": {"shapes": []}, "yolo": None}[kind]
            text = "" if emptied is None else json.dumps({**json.loads(text), **emptied})
        path.write_text(text)


@pytest.mark.parametrize("kind", ["cvat_images", "coco", "datumaro", "supervisely", "labelme", "yolo"])
def test_images_without_a_shape_are_counted(tmp_path, capsys, kind):
    root, said = tmp_path / "data", tmp_path / "said.json"
    labelled_folders.BUILDERS[kind](root)
    assert "no shape" not in check(root, capsys, name="auto")[1]
    without_shapes(root, kind)
    _, printed = check(root, capsys, "--json", str(said), name="auto")
    note = "train: 2 of 4 images have no shape and count as background"
    assert f"note: {note}" in printed
    assert any(found.startswith(note) for found in json.loads(said.read_text())["notes"])


def test_images_without_the_named_classes_are_not_taken_for_unlabelled(tmp_path, capsys):
    labelled_folders.build_coco(tmp_path / "data")
    options = ("--data.classes", "{all: [background, road, door, tree]}")
    assert "no shape" not in check(tmp_path / "data", capsys, *options, name="auto")[1]


def test_images_without_a_shape_whose_background_is_ignored_do_not_count_as_background(tmp_path, capsys):
    labelled_folders.build_labelme(tmp_path / "data")
    without_shapes(tmp_path / "data", "labelme")
    options = ("--data.classes", "road", "door", "tree", "--data.ignore", "background")
    _, printed = check(tmp_path / "data", capsys, *options, name="auto")
    assert "train: 4 images" in printed and "no shape" not in printed, printed
