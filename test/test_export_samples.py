"""An export reads masks as the training of its bundle did: by the values and colours that the bundle keeps."""

from __future__ import annotations

import json
from pathlib import Path

import labelled_folders
import numpy as np
import pytest
from exported_bundles import write_exported_bundle
from PIL import Image
from trainings import tiny_recipe, train

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.export.samples import open_samples
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.support.errors import DatasetError, ParameterError
from training.data.labelled_folder import AutoData

HEIGHT, WIDTH = 64, 96
#: Class ids of the masks below, before they are written in one way or another.
IDS = np.repeat(np.arange(WIDTH) // 32, HEIGHT).reshape(WIDTH, HEIGHT).T
COLOURS = np.array([(200, 0, 0), (0, 200, 0), (7, 7, 200)], np.uint8)


def palette_mask() -> Image.Image:
    """A mask whose palette has the colours of the classes in another order."""
    order = [2, 0, 1]
    mask = Image.frombytes("P", (WIDTH, HEIGHT), np.array(order, np.uint8)[IDS].tobytes())
    mask.putpalette([int(number) for index in np.argsort(order) for number in COLOURS[index]])
    return mask


#: The mask's file, and the recipe's keys.
KINDS = {
    "class ids": (Image.fromarray(IDS.astype(np.uint8)), {"classes": ["a", "b", "c"]}),
    "0 and 255": (Image.fromarray(((IDS > 0) * 255).astype(np.uint8)), {"classes": {"a": 0, "b": 255}}),
    "palette, by colour": (
        palette_mask(),
        {"classes": {name: colour.tolist() for name, colour in zip("abc", COLOURS, strict=True)}},
    ),
    "palette, by index": (palette_mask(), {"classes": {"a": 2, "b": 0, "c": 1}}),
    "colours": (Image.fromarray(COLOURS[IDS]), {"classes": {"a": "#c80000", "b": "#00c800"}, "ignore": "#0707c8"}),
    "grey of three channels": (Image.fromarray(np.dstack([IDS] * 3).astype(np.uint8)), {"classes": ["a", "b", "c"]}),
    "16 bits": (Image.fromarray((IDS * 7100).astype(np.uint16)), {"classes": {"a": 0, "b": 7100}, "ignore": 14200}),
    "a range, and the rest": (Image.fromarray(IDS.astype(np.uint8)), {"classes": {"a": "1-2", "b": "rest"}}),
    "one bit": (Image.fromarray(IDS > 0), {"classes": ["a", "b"]}),
    "one bit, by colour": (Image.fromarray(IDS > 0), {"classes": {"a": [255, 255, 255], "b": [0, 0, 0]}}),
    "half size": (
        Image.fromarray(IDS[::2, ::2].astype(np.uint8)),
        {"classes": ["a", "b", "c"], "resize_masks": True},
    ),
}


def save(root: Path, mask: Image.Image) -> None:
    """Two images with a mask of their name each, in folders of their own."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in ("one", "two"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        mask.save(root / "masks" / f"{name}.png")


def bundle_of(folder: Path, data) -> Bundle:
    """A bundle that was trained on a data set; only its description matters here."""
    written = write_exported_bundle(folder, network_size=(32, 32))
    content = written.manifest.model_dump(mode="json")
    content["classes"] = ClassesSection(names=data.class_names, palette=data.palette).model_dump(mode="json")
    content["masks"] = None if data.mask_values is None else data.mask_values.model_dump(mode="json")
    (folder / "bundle.json").write_text(json.dumps(content))
    return load_bundle(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_read_as_in_training(tmp_path, kind):
    mask, settings = KINDS[kind]
    save(tmp_path / "data", mask)
    data = AutoData(root=str(tmp_path / "data"), val_fraction=0.5, **settings).open("train")
    bundle = bundle_of(tmp_path / "bundle", data)
    samples = list(open_samples(tmp_path / "data/images", tmp_path / "data/masks", [bundle]))
    assert len(samples) == 2
    for image, truths in samples:
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert np.array_equal(truths["tiny"], data.item(0)[1])


def test_each_bundle_reads_masks_by_its_own_classes(tmp_path):
    save(tmp_path / "data", KINDS["class ids"][0])
    bundles = []
    for name, classes in (("first", {"a": [0, 1], "b": 2}), ("second", {"a": 2, "b": [0, 1]})):
        data = AutoData(root=str(tmp_path / "data"), val_fraction=0.5, classes=classes).open("train")
        bundle = bundle_of(tmp_path / name, data)
        bundles.append(Bundle(bundle.path, bundle.manifest.model_copy(update={"name": name})))
    _, truths = next(iter(open_samples(tmp_path / "data/images", tmp_path / "data/masks", bundles)))
    assert np.array_equal(truths["first"], 1 - truths["second"])


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (
            IDS.astype(np.uint8) + 5,
            r"one\.png has the value 5 at row 0.*trained on masks with the values 0 to 4 and 255",
        ),
        (COLOURS[IDS], r"one\.png is a colour image; the bundle was trained on masks of numbers"),
        (IDS[:40].astype(np.uint8), r"one\.png is 96x40 pixels and its image .*one\.jpg is 96x64"),
    ],
)
def test_a_mask_that_the_bundle_cannot_read_is_named(tmp_path, masks, said):
    save(tmp_path / "data", Image.fromarray(masks))
    bundle = write_exported_bundle(tmp_path / "bundle", network_size=(32, 32))
    with pytest.raises(DatasetError, match=said):
        list(open_samples(tmp_path / "data/images", tmp_path / "data/masks", [bundle]))


def test_an_image_without_mask_is_named_before_anything_is_computed(tmp_path):
    save(tmp_path / "data", KINDS["class ids"][0])
    (tmp_path / "data/masks/two.png").unlink()
    bundle = write_exported_bundle(tmp_path / "bundle", network_size=(32, 32))
    with pytest.raises(ParameterError, match=r"masks holds no mask two or two_mask \(\.png, .*two\.jpg"):
        open_samples(tmp_path / "data/images", tmp_path / "data/masks", [bundle])


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("one.jpg", "one_mask.png"),
        ("one.png", "one_mask.png"),
        ("one.jpg", "one.png"),
        ("one.jpg", "one.PNG"),
        ("one.bmp", "one.png"),
        ("one.tif", "one.png"),
    ],
)
def test_images_and_masks_may_share_a_folder(tmp_path, image, mask):
    save(tmp_path / "data", KINDS["class ids"][0])
    (tmp_path / "both").mkdir()
    Image.open(tmp_path / "data/images/one.jpg").save(tmp_path / "both" / image)
    (tmp_path / "data/masks/one.png").rename(tmp_path / "both" / mask)
    bundle = write_exported_bundle(tmp_path / "bundle", network_size=(32, 32))
    (tmp_path / "link").symlink_to("both")
    for spelling in ("both", "link"):
        (sample,) = open_samples(tmp_path / "both", tmp_path / spelling, [bundle])
        assert np.array_equal(sample[1]["tiny"], IDS) and not np.array_equal(sample[0][..., 0], IDS)


def test_a_trained_bundle_keeps_how_its_masks_were_read(tmp_path):
    save(tmp_path / "data", KINDS["0 and 255"][0])
    data = {"name": "auto", "root": str(tmp_path / "data"), "classes": {"a": 0, "b": 255}, "val_fraction": 0.5}
    train(tiny_recipe(tmp_path, data=data, iterations=1, epochs=None))
    bundle = load_bundle(tmp_path / "run" / "best")
    for _, truths in open_samples(tmp_path / "data/images", tmp_path / "data/masks", [bundle]):
        assert np.array_equal(truths["tiny"], IDS > 0)


def test_only_masks_whose_values_stand_for_classes_are_kept(tmp_path):
    labelled_folders.build_coco(tmp_path / "shapes")
    labelled_folders.build_voc_folders(tmp_path / "masks")
    assert AutoData(root=str(tmp_path / "shapes")).open("train").mask_values is None
    kept = AutoData(root=str(tmp_path / "masks")).open("train").mask_values
    assert kept is not None and kept.numbers[0] == (0, 0, 0)


def test_fewer_images_are_spread_evenly_and_keep_their_masks(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        pixels = np.full((8, 8), number, np.uint8)
        Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(pixels % 5).save(tmp_path / f"masks/{number}.png")
    bundle = write_exported_bundle(tmp_path / "bundle", network_size=(32, 32))
    samples = open_samples(tmp_path / "images", tmp_path / "masks", [bundle])
    for wanted, numbers in ((1, [0]), (4, [0, 3, 6, 9]), (10, list(range(10))), (32, list(range(10)))):
        found = list(samples.spread(wanted))
        assert [image[0, 0, 0] for image, _ in found] == numbers
        assert [truths["tiny"][0, 0] for _, truths in found] == [number % 5 for number in numbers]
