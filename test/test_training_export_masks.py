"""The labels of any tool become masks of class ids, named as their images are."""

from __future__ import annotations

import shutil

import cv2
import labelled_folders
import numpy as np
import pytest
import yaml

from training.data.labelled_folder import AutoData
from training.export_masks import main


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("kind", ["labelme", "coco", "cvat_mask"])
def test_masks_of_all_splits_are_what_training_reads(tmp_path, kind):
    labelled_folders.BUILDERS[kind](tmp_path / "data")
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "masks")]) == 0
    items = list(labelled_folders.items())
    assert {path.name for path in (tmp_path / "masks").glob("*.png")} == {f"{stem}.png" for _, stem, _ in items}
    for _, stem, seed in items:
        assert np.array_equal(read(tmp_path / "masks" / f"{stem}.png"), labelled_folders.truth(seed))
    assert yaml.safe_load((tmp_path / "masks/classes.yaml").read_text()) == labelled_folders.NAMES


@pytest.mark.parametrize("keys", [("name", "data", "input", "backbone", "epochs"), ("data",)])
def test_a_recipe_merges_and_ignores_classes_and_its_masks_can_be_trained_on(tmp_path, keys):
    labelled_folders.BUILDERS["labelme"](tmp_path / "data")
    data = {"name": "auto", "root": str(tmp_path / "data"), "classes": {"way": ["road", "door"], "tree": "tree"}}
    recipe = {
        "name": "own", "data": {**data, "ignore": "background"}, "input": {"network_size": [64, 96]},
        "backbone": {"source": "weights/demo/backbone"}, "epochs": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({key: recipe[key] for key in keys}, sort_keys=False))
    assert main([str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "masks")]) == 0
    lookup = np.array([255, 0, 0, 1], np.uint8)
    for _, stem, seed in labelled_folders.items():
        assert np.array_equal(read(tmp_path / "masks" / f"{stem}.png"), lookup[labelled_folders.truth(seed)])
    (tmp_path / "own/images").mkdir(parents=True)
    for path in (tmp_path / "data").rglob("*.jpg"):
        shutil.copy(path, tmp_path / "own" / "images")
    shutil.copytree(tmp_path / "masks", tmp_path / "own/masks")
    trained = AutoData(root=str(tmp_path / "own"), images="images", masks="masks").open_all()
    assert trained.class_names == ["way", "tree"]
    assert len(trained) == len(list(labelled_folders.items()))


def test_rounds_of_two_formats_are_one_data_set_as_masks_in_one_folder(tmp_path):
    for name, kind in (("first", "labelme"), ("next", "coco")):
        labelled_folders.BUILDERS[kind](tmp_path / kind)
        folder = tmp_path / "rounds" / name
        (folder / "images").mkdir(parents=True)
        for path in (tmp_path / kind).rglob("*.jpg"):
            shutil.copy(path, folder / "images")
        assert main([str(tmp_path / kind), "--output", str(folder / "masks")]) == 0
    trained = AutoData(root=str(tmp_path / "rounds")).open_all()
    assert trained.class_names == labelled_folders.NAMES
    assert len(trained) == 2 * len(list(labelled_folders.items()))


@pytest.mark.parametrize("splits", [(), ("train", "val")])
def test_nothing_is_said_of_a_split_where_all_images_are_taken(tmp_path, capsys, splits):
    for number in range(10):
        name = f"{splits[number] if number < len(splits) else '.'}/{number:04d}.png"
        for kind in ("images", "masks"):
            labelled_folders.put(tmp_path / "data" / kind / name, np.full((8, 8), number % 2, np.uint8))
    labelled_folders.put(tmp_path / "data/classes.yaml", "[floor, wall]")
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "masks")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("found: folder") and "10 masks of 2 classes" in said and "note:" not in said, said


def test_versions_by_roboflow_get_the_name_of_their_image(tmp_path):
    labelled_folders.BUILDERS["labelme"](tmp_path / "data")
    for path in (tmp_path / "data").rglob("*_0000.*"):
        path.rename(path.with_name(f"image-0000001000000000007_png.rf.0123456789abcdef0123{path.suffix}"))
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "masks")]) == 0
    assert (tmp_path / "masks/image-0000001000000000007.png").exists()


def test_images_of_one_name_are_named_and_nothing_is_written(tmp_path, capsys):
    labelled_folders.BUILDERS["labelme"](tmp_path / "data")
    shutil.copytree(tmp_path / "data/train", tmp_path / "data/more")
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "masks")]) == 1
    assert "would have the same mask train_" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_original_beside_its_version_by_roboflow_is_refused(tmp_path, capsys):
    labelled_folders.BUILDERS["labelme"](tmp_path / "data")
    original, version = "train_0000", f"train_0000_jpg.rf.{0:032x}"
    folder = tmp_path / "data/train"
    shutil.copy(folder / f"{original}.jpg", folder / f"{version}.jpg")
    (folder / f"{version}.json").write_text((folder / f"{original}.json").read_text().replace(original, version))
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "masks")]) == 1
    assert "would have the same mask train_0000.png" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [("demo", "is for the data set 'scenes', which comes with masks"), ("no_such_recipe", "there is no recipe")],
)
def test_what_has_no_labels_of_ones_own_is_refused(tmp_path, capsys, source, said):
    assert main([source, "--output", str(tmp_path / "masks")]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_touched(tmp_path, capsys):
    labelled_folders.BUILDERS["labelme"](tmp_path / "data")
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "data")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
