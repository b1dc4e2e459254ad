"""Every format of labelled folders comes to the same labels, and is found by what lies in the folder."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import labelled_folders
import numpy as np
import pytest
import tiny_datasets
from PIL import Image

from dinov3_seg_ros.support.errors import DatasetError
from training.data import IncompleteError, ItemError
from training.data.formats import all_formats
from training.data.labelled_folder import AutoData


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
    for split, count in tiny_datasets.COUNTS.items():
        data = pickle.loads(pickle.dumps(section.open(split)))
        assert len(data) == count and data.class_names == labelled_folders.NAMES
        for index, seed in enumerate(tiny_datasets.seeds(split)):
            expected = np.array(labelled_folders.NAMES)[labelled_folders.truth(seed)]
            assert np.array_equal(labels_by_name(data, index), expected), (split, index)
            assert np.array_equal(data.item(index)[1], data.mask(index))
    assert section.resolved().format == name


def test_every_format_is_tested():
    assert set(all_formats()) == set(labelled_folders.BUILDERS)


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
    with pytest.raises(DatasetError, match=r"'labelmee'.*labelme.*the formats are: auto, coco"):
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


def test_classes_that_a_recipe_leaves_out_can_be_ignored_at_once(tmp_path):
    labelled_folders.build_coco(tmp_path)
    data = AutoData(root=str(tmp_path), classes=["road"], ignore="rest").open("train")
    assert np.array_equal(data.item(0)[1] == 0, labelled_folders.truth(0) == 2)


def test_an_image_in_two_files_of_coco_is_refused(tmp_path):
    labelled_folders.build_coco(tmp_path)
    shutil.copy(tmp_path / "train" / "_annotations.coco.json", tmp_path / "train" / "more.json")
    with pytest.raises(DatasetError, match=r"train_0000\.jpg is in train/_annotations.* and in train/more\.json; keep"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_category_that_coco_does_not_list_is_named(tmp_path):
    labelled_folders.build_coco(tmp_path)
    path = tmp_path / "train" / "_annotations.coco.json"
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 9'))
    with pytest.raises(DatasetError, match=r"_annotations\.coco\.json is not laid out.*the category 9"):
        AutoData(root=str(tmp_path)).open("train")


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
    found = [data.item(index) for data in map(section.open, ("train", "val")) for index in range(len(data))]
    assert len(found) == 5
    for picture, labels in found:
        number = int(labels[0, 0])
        if image.endswith("png"):
            assert np.array_equal(picture, tiny_datasets.image_of(number))


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
