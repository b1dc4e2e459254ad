"""Which masks are of which images, and which classes their values and colours mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import labelled_folders
import numpy as np
import pytest
import tiny_datasets
from closed_folder import make_closed_folder
from labelled_folders import png_of_16_bits
from PIL import Image

from dinov3_seg_ros.frames.classes import MaskValues
from dinov3_seg_ros.frames.image_files import MaskPixels
from dinov3_seg_ros.frames.mask_labels import MaskLabels
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.data import IncompleteError
from training.data.labelled_folder import AutoData
from training.data.reading.tree import Tree

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_grey_masks_hold_colours_where_classes_have_just_these(tmp_path):
    write_masks(tmp_path, tiled((0, 0, 0), (200, 200, 200)))
    assert first_labels(tmp_path, 2, classes={"a": [0, 0, 0], "b": [200, 200, 200]}) == [0, 1]


def test_an_alpha_channel_is_dropped_and_told(tmp_path):
    write_masks(tmp_path, tiled((200, 0, 0, 0), (0, 200, 0, 255)))
    settings = {"classes": {"a": "#c80000", "b": [[0, 200, 0], [9, 9, 9]]}}
    assert first_labels(tmp_path, 2, **settings) == [0, 1]
    assert any("alpha" in note for note in AutoData(root=str(tmp_path), **settings).found().notes)


ROAD, BLACK, WHITE = (128, 64, 128), (0, 0, 0), (255, 255, 255)


def as_small_as_can_be(picture: Image.Image) -> Image.Image:
    """The same pixels in the smallest kind of PNG, as programs that shrink files store them."""
    pixels = np.array(picture.convert("RGB"))
    if (pixels != pixels[..., :1]).any():
        return picture.convert("P", palette=Image.Palette.ADAPTIVE)
    values, indices = np.unique(pixels[..., 0], return_inverse=True)
    if set(values) <= {0, 255}:
        return Image.fromarray(pixels[..., 0] == 255)
    small = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8))
    small.putpalette(np.repeat(values, 3).tolist())
    return small


@pytest.mark.parametrize(
    ("masks", "settings"),
    [
        pytest.param(
            [tiled(0, 255), tiled(0, 128), tiled(0, 255, 128)],
            {"classes": {"road": 255, "curb": 128, "other": "rest"}},
            id="numbers",
        ),
        pytest.param([tiled(0, 255), tiled(0, 1), tiled(2, 1)], {"classes": ["a", "b", "c"]}, id="void in white"),
        pytest.param([tiled(0, 2, 3), tiled(3, 255), tiled(0)], {"classes": ["a", "b", "c", "d"]}, id="some ids"),
        pytest.param([tiled(0, 255), tiled(255)], {"classes": {"rest of it": 0, "object": 255}}, id="black and white"),
        pytest.param(
            [tiled(ROAD, BLACK), tiled(BLACK), tiled(BLACK, ROAD)],
            {"classes": {"road": ROAD, "background": BLACK}},
            id="colours, some masks all black",
        ),
        pytest.param(
            [tiled(ROAD, BLACK), tiled(WHITE, BLACK), tiled((9, 9, 9), BLACK)],
            {"classes": {"road": ROAD, "line": WHITE, "kerb": [9, 9, 9], "background": BLACK}},
            id="colours, some masks all grey",
        ),
        pytest.param(
            [tiled(ROAD, BLACK), tiled(BLACK), tiled(WHITE, BLACK)],
            {"classes": {"road": ROAD, "line": WHITE, "other": "rest"}},
            id="colours, and others",
        ),
        pytest.param(
            [tiled(WHITE, BLACK), tiled(BLACK), tiled(BLACK, WHITE)],
            {"classes": {"road": WHITE, "background": BLACK}},
            id="black and white as colours",
        ),
    ],
)
def test_masks_made_smaller_without_loss_keep_their_labels(tmp_path, masks, settings):
    pictures = [Image.fromarray(mask) for mask in masks for _ in range(3)]
    for kind, stored in (("large", pictures), ("small", list(map(as_small_as_can_be, pictures)))):
        for number, picture in enumerate(stored):
            tiny_datasets.save_image(tmp_path / kind / "images" / f"{number}.png", number)
            (tmp_path / kind / "masks").mkdir(exist_ok=True)
            picture.save(tmp_path / kind / "masks" / f"{number}.png")
    large, small = (AutoData(root=str(tmp_path / kind), **settings).open_all() for kind in ("large", "small"))
    assert "1" in {Image.open(path).mode for path in (tmp_path / "small/masks").iterdir()}
    for index in range(len(large)):
        assert np.array_equal(small.mask(index), large.mask(index)), small.describe(index)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"classes": ["background", "object"]}, [0, 1]),
        ({"classes": {"background": 0, "object": 255}}, [0, 1]),
        ({"classes": {"object": WHITE, "background": BLACK}}, [1, 0]),
        ({"classes": {"background": BLACK, "object": ROAD}}, [0, 1]),
    ],
)
def test_white_of_masks_of_one_bit_is_what_the_classes_have(tmp_path, settings, expected):
    write_masks(tmp_path, picture=Image.fromarray(tiled(False, True, kind=bool)))
    assert first_labels(tmp_path, 2, **settings) == expected


@pytest.mark.parametrize("colours", [[BLACK, WHITE], [BLACK, (85, 85, 85)]])
def test_a_grey_palette_that_is_there_to_be_looked_at_gives_indices(tmp_path, colours):
    write_masks(tmp_path, picture=palette_picture(colours))
    assert first_labels(tmp_path, 2, classes=["background", "object"]) == [0, 1]


def test_masks_of_one_bit_beside_masks_of_zeros_and_ones_hold_ones(tmp_path):
    write_masks(tmp_path, picture=Image.fromarray(tiled(False, True, kind=bool)))
    labelled_folders.put(tmp_path / "masks/2.png", tiled(1, 0))
    data = AutoData(root=str(tmp_path), classes=["background", "object"]).open_all()
    assert [data.mask(index)[0, :2].tolist() for index in range(3)] == [[0, 1], [0, 1], [1, 0]]


def test_masks_of_one_bit_hold_ids_where_no_training_says_otherwise():
    masks = MaskLabels.of_values(MaskValues.of_ids(2), 2)
    assert masks.labels(MaskPixels(np.array([[0, 255]], np.uint32), bilevel=True), "a mask").tolist() == [[0, 1]]


def test_masks_of_numbers_beside_some_with_a_palette_stay_numbers(tmp_path):
    write_masks(tmp_path, picture=palette_picture([BLACK, ROAD]))
    labelled_folders.put(tmp_path / "masks/2.png", tiled(1, 0))
    data = AutoData(root=str(tmp_path), classes={"background": [0, 0, 0], "road": list(ROAD)}).open_all()
    assert [data.mask(index)[0, :2].tolist() for index in range(3)] == [[0, 1], [0, 1], [1, 0]]


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


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "# two classes\na c 200 0 0 #123456\nb 0 200 0  # green\n"),
        ("classes.txt", "# two classes\na c #c80000\nb: #00C800  # green\n"),
        ("classes.yaml", "a c: '#c80000'\nb: '#00C800'\n"),
    ],
)
def test_files_of_classes_write_colours_as_numbers_or_hexadecimal_digits(tmp_path, file, text):
    write_masks(tmp_path, picture=palette_picture([(0, 200, 0), (200, 0, 0)]))
    (tmp_path / file).write_text(text)
    assert first_labels(tmp_path, 2) == [1, 0]
    assert AutoData(root=str(tmp_path)).open("train").class_names == ["a c", "b"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "0 void\n1 road  # of asphalt\n3 high grass\n"),
        ("classes.txt", "# id name\n3,high grass\n0,void\n1,road\n"),
        ("labels.txt", "0: void\n1: road\n3: high grass\n"),
        ("codes.txt", "id\tname\n0\tvoid\n1\troad\n3\thigh grass\n"),
        ("class_names.txt", "Pixel Value, Class\n0, void\n1, road\n3, high grass\n"),
        ("classes.txt", "0. void\n1. road\n3. high grass\n"),
        ("RUGD_annotation-colormap.txt", "0 void 0 0 0\n1 road 64 64 64\n3 high grass 0 128 0\n"),
        ("classes.txt", "0 0 0 0 void\n1 64 64 64 road\n3 0 128 0 high grass\n"),
        ("classes.txt", "0 void #000000\n1 road #404040\n3 high grass #008000\n"),
    ],
)
def test_a_number_before_every_name_is_the_value(tmp_path, file, text):
    write_masks(tmp_path, tiled(0, 1, 3))
    (tmp_path / file).write_text(text)
    data = AutoData(root=str(tmp_path)).open("train")
    names = ["high grass", "void", "road"] if text.startswith("#") else ["void", "road", "high grass"]
    assert data.class_names == names
    assert [names[label] for label in data.mask(0)[0, :3]] == ["void", "road", "high grass"]


@pytest.mark.parametrize(
    "text",
    [
        "2 wheeler\nroad\n4 wheeler",
        "2 wheeler\n2 door car\nroad",
        "2 wheeler\n2 door car\n2 storeys",
        "2-wheeler\n4-wheeler\n6-wheeler",
        "10 20 30 road\n11 20 30 2 wheeler\n12 20 30 4 wheeler",
    ],
)
def test_numbers_that_cannot_be_values_stay_in_the_names(tmp_path, text):
    write_masks(tmp_path, tiled(0, 1, 2))
    (tmp_path / "classes.txt").write_text(text)
    data = AutoData(root=str(tmp_path)).open("train")
    assert data.class_names == [re.sub(r"\d+ 20 30 ", "", line) for line in text.splitlines()]
    assert data.mask(0)[0, :3].tolist() == [0, 1, 2]


def test_a_palette_that_disagrees_with_the_classes_is_refused(tmp_path):
    write_masks(tmp_path, picture=palette_picture([(0, 200, 0), (1, 2, 3)]))
    with pytest.raises(DatasetError, match=r"colour \[1, 2, 3\].*has a palette.*classes without colours"):
        first_labels(tmp_path, 2, classes={"a": [200, 0, 0], "b": [0, 200, 0]})


@pytest.mark.parametrize(
    ("values", "settings", "shown"),
    [
        ((0, 255), {}, "{class_0: 0, class_255: 255}"),
        ((0, 7, 12, 255), {}, "{class_0: 0, class_7: 7, class_12: 12}, and data.ignore as [255], the usual void"),
        ((0, 255, 65535), {}, "{class_0: 0, class_255: 255}, and data.ignore as [65535], the usual void"),
        ((0, 255, 700), {}, "{class_0: 0, class_255: 255, class_700: 700}"),
        ((0, 7, 255), {"ignore": [0, 3]}, "{class_7: 7, class_255: 255}"),
        ((0, 7, 255), {"ignore": "#000000"}, "{class_0: 0, class_7: 7, class_255: 255}"),
    ],
)
def test_masks_without_class_names_show_the_map_to_write(tmp_path, values, settings, shown):
    write_masks(tmp_path, tiled(*values, kind=np.uint16))
    with pytest.raises(DatasetError, match=rf"no class names.* choose: {re.escape(shown)}$"):
        AutoData(root=str(tmp_path), **settings).open("train")


def test_the_masks_that_are_looked_at_are_spread_over_all(tmp_path):
    write_named(tmp_path, [f"images/{number:02d}.png" for number in range(23)], "../masks/{}.png")
    with pytest.raises(DatasetError) as told:
        AutoData(root=str(tmp_path)).open("train")
    assert re.findall(r"class_(\d+):", str(told.value)) == [str(number) for number in range(0, 24, 2)]


def test_classes_counted_from_one_are_explained(tmp_path):
    write_masks(tmp_path, tiled(0, 1, 2))
    with pytest.raises(DatasetError, match=r"ignore holds the value 0.*'a'.*count the classes from 1.*\{a: 1, b: 2"):
        AutoData(root=str(tmp_path), classes=["a", "b"], ignore=0).open("train")


def test_a_class_of_the_folder_that_ignore_names_is_no_class(tmp_path):
    write_masks(tmp_path / "masks", tiled(0, 1, 2))
    (tmp_path / "masks/classes.txt").write_text("road 1 2 3\nvoid 0 0 0\ncar 4 5 6")
    assert first_labels(tmp_path / "masks", 3, ignore="void") == [0, 255, 1]
    labelled_folders.build_labelme(tmp_path / "shapes")
    data = AutoData(root=str(tmp_path / "shapes"), ignore=["door"]).open("train")
    assert data.class_names == ["background", "road", "tree"]
    for number, seed in enumerate(tiny_datasets.seeds("train")):
        assert np.array_equal(data.mask(number), np.array([0, 255, 1, 2])[labelled_folders.truth(seed)])
    with pytest.raises(DatasetError, match=r"data\.ignore names every class of .*classes\.txt"):
        first_labels(tmp_path / "masks", 3, ignore=["void", "road", "car"])


def test_classes_of_the_recipe_that_ignore_names_are_not_said_to_count_from_one(tmp_path):
    write_masks(tmp_path, tiled(0, 1))
    (tmp_path / "classes.txt").write_text("road\nvoid")
    with pytest.raises(DatasetError, match=r"value 1, which is that of the class 'void': remove it .* in the masks$"):
        first_labels(tmp_path, 2, classes=["road", "void"], ignore="void")


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
