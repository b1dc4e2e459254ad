"""16-bit images: training sees what the robot sees of them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from trainings import tiny_recipe, train

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.export.samples import open_samples
from dinov3_seg_ros.frames.encodings import pixels_to_rgb
from dinov3_seg_ros.frames.image_files import ends_of_16_bits, read_image, read_mask
from dinov3_seg_ros.frames.sources import open_source, scale_of_all
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.resources import resource_path
from training.data import FolderData
from training.predict import open_input
from training.unlabelled.images import open_images
from training.unlabelled.labelled import find_labelled

CLASSES = ["left", "right"]
HEIGHT, WIDTH = 64, 96


def picture(brightest: int, grey: bool = False) -> np.ndarray:
    """A smooth picture (H, W, 3) or (H, W), uint8, whose largest value is given."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / (HEIGHT + WIDTH - 2)
    channels = [rows + columns] if grey else [rows + columns, rows * 0.6, columns * 0.8]
    return np.dstack([np.rint(channel * brightest).astype(np.uint8) for channel in channels]).squeeze()


def in_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The picture as a sensor of so many bits gives it."""
    return np.rint(pixels * ((2**bits - 1) / 255)).astype(np.uint16)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def write_folder(root: Path, convert, suffix: str = ".png", grey: bool = False) -> Path:
    """Two training images, of which one is dark as is the validation image, as ``convert`` changes them."""
    for name, brightest in (("train/images/a", 40), ("train/images/b", 255), ("val/images/c", 60)):
        save(root / f"{name}{suffix}", convert(picture(brightest, grey)))
        mask = np.repeat([np.arange(WIDTH) >= WIDTH // 2], HEIGHT, axis=0).astype(np.uint8)
        save(root / f"{name.replace('images', 'masks')}.png", mask)
    return root


def images(root: Path, split: str = "train", **settings: object) -> list[np.ndarray]:
    data = FolderData(root=str(root), classes=CLASSES, **settings).open(split)
    return [data.item(index)[0] for index in range(len(data))]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize(("suffix", "grey"), [(".png", False), (".png", True), (".tiff", False), (".tiff", True)])
def test_images_of_any_sensor_look_like_their_8_bit_pictures(tmp_path, bits, suffix, grey):
    root = write_folder(tmp_path, lambda pixels: in_bits(pixels, bits), suffix, grey)
    for split, brightest in (("train", [40, 255]), ("val", [60])):
        for image, value in zip(images(root, split), brightest, strict=True):
            expected = picture(value, grey)
            expected = np.dstack(3 * [expected]) if grey else expected
            assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("choice", ["auto", "full", (100, 3000)])
def test_training_sees_the_values_that_the_robot_sees(tmp_path, choice):
    root = write_folder(tmp_path, lambda pixels: in_bits(pixels, 12))
    scale = ValueScale(choice)
    bright, dark = (in_bits(picture(value), 12) for value in (255, 40))
    seen = [pixels_to_rgb(p.tobytes(), "rgb16", (HEIGHT, WIDTH), 6 * WIDTH, scale=scale) for p in (bright, dark)]
    np.testing.assert_array_equal(images(root, value_range=choice), seen[::-1])


def test_the_range_is_told_once_with_what_was_found(tmp_path):
    root = write_folder(tmp_path, lambda pixels: in_bits(pixels, 12))
    data = FolderData(root=str(root), classes=CLASSES)
    said = "3 images have 16 bits, their values lie from 0 to 4095: 0 to 4095 become 0 to 255 (data.value_range)"
    assert said in data.found().notes
    chosen = data.model_copy(update={"value_range": (64, 2000)})
    assert "64 to 2000 become 0 to 255" in chosen.found().notes[0]
    assert data.open("train").contents().digest() != chosen.open("train").contents().digest()
    write_folder(tmp_path, lambda pixels: in_bits(pixels, 10))
    assert said.replace("4095", "1023") in data.found().notes, "the files are others now"


def test_8_bit_images_are_not_touched_by_a_range(tmp_path):
    root = write_folder(tmp_path, lambda pixels: pixels)
    np.testing.assert_array_equal(images(root, value_range=(64, 2000)), [picture(40), picture(255)])
    assert FolderData(root=str(root), classes=CLASSES).found().notes == ()


def test_values_of_a_thermal_camera_need_a_range(tmp_path):
    root = write_folder(tmp_path, lambda pixels: 28000 + 8 * np.uint16(pixels), grey=True)
    image = cv2.imread(str(root / "train/images/a.png"), cv2.IMREAD_UNCHANGED)
    image[5, 7] = 0  # a dead pixel
    save(root / "train/images/a.png", image)
    save(root / "train/images/black.png", np.zeros_like(image))
    shutil.copy(root / "train/masks/a.png", root / "train/masks/black.png")
    with pytest.raises(DatasetError, match=r"between 28024 and 29912, .* set data.value_range .* \[28024, 29912\]"):
        images(root)
    np.testing.assert_array_equal(images(root, value_range=[28000, 30040])[1][..., 0], picture(255, grey=True))


def test_more_than_16_bits_are_refused(tmp_path):
    root = write_folder(tmp_path, lambda pixels: pixels.astype(np.float32), ".tiff", grey=True)
    with pytest.raises(DatasetError, match="more than 16 bits"):
        images(root)


def test_16_bits_of_a_bigtiff_are_kept(tmp_path):
    path, colours, numbers = tmp_path / "a.tif", in_bits(picture(255), 12), np.uint16([[1000, 2000]])
    write_big_tiff(path, colours)
    assert np.abs(read_image(path).astype(int) - picture(255)).max() <= 1
    assert ends_of_16_bits(path)[:2] == (0, 4095)
    assert scale_of_all([path], "auto").to_8_bits(np.full((1, 1), 4095, np.uint16)) == 255
    write_big_tiff(path, colours[..., 0])
    assert np.abs(read_image(path)[..., 0].astype(int) - picture(255)[..., 0]).max() <= 1
    write_big_tiff(path, np.dstack([numbers] * 3))
    mask = read_mask(path)
    assert not mask.coloured and mask.values.tolist() == numbers.tolist()


def write_big_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W) or (H, W, 3) uint16 as GDAL does from 4 GB on; Pillow does not before version 11."""
    height, width, channels = np.atleast_3d(pixels).shape
    bits = [16, 16, 16, 0] if channels == 3 else [16, 0, 0, 0]  # as many as fit into a tag
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,  # no compression
        262: 2 if channels == 3 else 1,  # colours, or black is 0
        273: 16 + 8 + 9 * 20 + 8,  # where the pixels begin
        277: channels,
        278: height,
        279: pixels.nbytes,
    }
    content = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, len(tags))
    for tag, value in tags.items():
        if tag == 258:
            content += struct.pack("<HHQ4H", tag, 3, channels, *bits)
        else:
            content += struct.pack("<HHQQ", tag, 16, 1, value)
    path.write_bytes(content + bytes(8) + pixels.astype("<u2").tobytes())


def test_a_16_bit_image_that_is_cut_short_is_refused(tmp_path):
    root = write_folder(tmp_path, lambda pixels: in_bits(pixels, 12))
    path = root / "train/images/b.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"b\.png cannot be read as an image"):
        images(root)


@pytest.mark.parametrize(("choice", "kept"), [("auto", "auto"), ([28000, 30040], (28000, 30040))])
def test_a_bundle_keeps_a_range_that_its_recipe_chose(tmp_path, choice, kept):
    root = write_folder(tmp_path / "data", lambda p: in_bits(p, 12) if choice == "auto" else 28000 + 8 * np.uint16(p))
    data = {"name": "folder", "root": str(root), "classes": CLASSES, "value_range": choice}
    trainer = train(tiny_recipe(tmp_path, data=data, epochs=1, batch_size=2))
    assert load_bundle(trainer.output / "best").manifest.input.value_range == kept


def test_other_commands_learn_from_all_images_of_a_folder_too(tmp_path):
    folder = write_folder(tmp_path, lambda pixels: in_bits(pixels, 12)) / "train" / "images"  # the dark one first
    opened = open_images(folder)
    samples = open_samples(folder, None, [load_bundle(resource_path("weights/demo"))])
    ways = {
        "demo": [rgb for rgb, _ in open_source(str(folder))],
        "predict": [rgb for _, rgb in open_input(str(folder)).source().frames],
        "export": [rgb for rgb, _ in samples],
        "export, some": [rgb for rgb, _ in samples.spread(1)],
        "select": [image.pixels for image in opened.take()],
        "select, again": [image.pixels for image in opened.take(["a.png"])],
    }
    for way, frames in ways.items():
        for image, value in zip(frames, (40, 255), strict=False):
            assert np.abs(image.astype(int) - picture(value)).max() <= 1, way
    Image.fromarray(picture(255)).save(folder / "b.png")
    np.testing.assert_array_equal(dict(open_input(str(folder), (64, 2000)).source().frames)["b"], picture(255))


def test_a_labelled_image_alone_does_not_look_like_a_thermal_cameras(tmp_path):
    root = write_folder(tmp_path, lambda pixels: np.uint16(pixels) * 257)
    save(root / "train/images/a.png", 28000 + 8 * np.uint16(picture(255)))
    assert len(find_labelled([root]).images) == 3
