"""Which split each image is in: lists, YAML files and folders that tell it."""

from __future__ import annotations

import shutil
from pathlib import Path

import labelled_folders
import numpy as np
import pytest
import tiny_datasets
import yaml
from labelled_folders import check_truth

from dinov3_seg_ros.support.errors import DatasetError
from training.data import IncompleteError
from training.data.formats import all_formats
from training.data.labelled_folder import AutoData
from training.data.reading.protocol import NO_PATTERNS
from training.data.reading.tree import Tree

pytestmark = pytest.mark.usefixtures("own_cache")


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

    @pytest.mark.parametrize("run", ["", "run_1/"])
    def test_a_list_may_name_masks(self, root, run):
        for folder in ("images", "masks") if run else ():
            shutil.copytree(root / folder, root / "run_2" / folder)
            (root / run).mkdir(exist_ok=True)
            (root / folder).rename(root / run / folder)
        for split, names in LISTED.items():
            labelled_folders.put(root / f"{run}{split}_masks.txt", "\n".join(f"masks/{name}.png" for name in names))
        data = AutoData(root=str(root), classes=labelled_folders.NAMES)
        for split, names in LISTED.items():
            own = [sample.image for sample in data.open(split).samples if "run_2" not in sample.image.parts]
            assert [image.stem for image in own] == names
        assert not [note for note in data.found().notes if "lists name" in note]

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
