"""Wrong data: `check_dataset` says what is wrong, and a training says it before the first step and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from trainings import forget_accelerator, tiny_recipe

from dinov3_seg_ros.support.errors import DatasetError, SegmentationError
from training import check_dataset
from training.checks.problems import check_before_training
from training.data.labelled_folder import FolderData
from training.loop.trainer import Trainer

HEIGHT, WIDTH = 64, 96
CLASSES = ["floor", "wall", "door"]


def picture(seed: int) -> np.ndarray:
    """An image like no other, of large patches."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.kron(small, np.ones((16, 16, 1), np.uint8))


def labels(seed: int) -> np.ndarray:
    """A mask of all classes, in stripes."""
    return np.roll(np.repeat(np.arange(WIDTH) // 32, HEIGHT).reshape(WIDTH, HEIGHT).T, 8 * seed, axis=1).astype(
        np.uint8
    )


def save(path: Path, pixels: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def save_text(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def root(tmp_path) -> Path:
    """A sound data set: four images for training, two for validation."""
    for split, seeds in (("train", range(4)), ("val", range(10, 12))):
        for seed in seeds:
            save(tmp_path / f"data/{split}/images/{seed:02d}x.png", picture(seed))
            save(tmp_path / f"data/{split}/masks/{seed:02d}x.png", labels(seed))
    return tmp_path / "data"


def masks_of(root: Path, split: str = "*") -> list[Path]:
    return sorted(root.glob(f"{split}/masks/*.png"))


def change(root: Path, split: str, pixels: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in masks_of(root, split):
        save(path, pixels(np.array(Image.open(path))))


def first(root: Path, split: str, folder: str) -> Path:
    return min((root / split / folder).iterdir())


def truncated(root: Path, split: str, folder: str) -> None:
    path = first(root, split, folder)
    path.write_bytes(path.read_bytes()[:-60])


def not_an_image(root: Path, split: str, folder: str) -> None:
    first(root, split, folder).write_text("version https://git-lfs.github.com/spec/v1")


def missing(root: Path, split: str, folder: str) -> None:
    first(root, split, folder).unlink()


def other_size(root: Path, split: str) -> None:
    path = first(root, split, "masks")
    save(path, np.array(Image.open(path))[:40, :50])


def turned_by_exif(root: Path, orientation: int = 6) -> None:
    image = first(root, "train", "images")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(image).save(image, exif=exif)


def thirty_two_bits(root: Path) -> None:
    image = first(root, "val", "images")
    image.unlink()
    save(image.with_suffix(".tif"), Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)))


def thermal(root: Path) -> None:
    for path in root.glob("*/images/*"):
        save(path, 28000 + 8 * np.array(Image.open(path))[..., 0].astype(np.uint16))


def thermal_with_a_dead_pixel(root: Path) -> None:
    thermal(root)
    path = first(root, "train", "images")
    pixels = np.array(Image.open(path)).astype(np.uint16)
    pixels[5, 7] = 0
    save(path, pixels)


def one_class_in_one_mask(root: Path, split: str) -> None:
    change(root, split, np.zeros_like)


def palettes(root: Path) -> None:
    for number, path in enumerate(masks_of(root)):
        mask = Image.fromarray(((np.array(Image.open(path)) + number) % 3).astype(np.uint8))
        colours = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
        mask.putpalette([channel for index in range(3) for channel in colours[(index - number) % 3]])
        save(path, mask)


def colours_of_no_class(root: Path) -> None:
    path = first(root, "train", "masks")
    save(path, np.full((HEIGHT, WIDTH, 3), (1, 2, 3), np.uint8))


def same_image(root: Path) -> None:
    shutil.copy(first(root, "train", "images"), first(root, "val", "images"))


def alike(root: Path) -> None:
    brighter = np.clip(np.array(Image.open(first(root, "train", "images"))).astype(int) * 0.9 + 12, 0, 255)
    save(first(root, "val", "images"), brighter.astype(np.uint8))


def mirrored(root: Path) -> None:
    save(first(root, "val", "images"), np.array(Image.open(first(root, "train", "images")))[:, ::-1])


def versions(root: Path) -> None:
    for split, digit in (("train", "a"), ("val", "b")):
        for folder in ("images", "masks"):
            path = first(root, split, folder)
            path.rename(path.with_name(f"kitchen_jpg.rf.{digit * 32}.png"))


def latin_1_name(root: Path) -> None:
    path = first(root, "train", "images")
    path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))


def only_one_image(root: Path) -> None:
    shutil.rmtree(root / "val")
    for path in [*root.glob("train/images/0[123]*"), *root.glob("train/masks/0[123]*")]:
        path.unlink()


def lossy_by_the_name_of_png(root: Path, kind: str) -> None:
    for path in masks_of(root):
        Image.open(path).save(path, kind)


def interrupted(root: Path, split: str, folder: str) -> None:
    path = first(root, split, folder)
    path.rename(path.with_name(f"{path.name}.part"))


def empty(root: Path, split: str, folder: str) -> None:
    first(root, split, folder).write_bytes(b"")


def spare_masks(root: Path, count: int) -> None:
    for number in range(count):
        save(root / f"train/masks/other_{number}.png", labels(number))


def link_to_nowhere(root: Path) -> None:
    path = first(root, "val", "images")
    path.unlink()
    path.symlink_to(root / "nowhere.png")


def pipe(root: Path) -> None:
    path = first(root, "val", "masks")
    path.unlink()
    os.mkfifo(path)


def swapped(root: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for path in masks_of(root):
        (image := root / path.parent.parent.name / "images" / path.name).unlink()
        path.rename(image)
        save(path, photo)


def one_mask_for_all(root: Path) -> None:
    source = first(root, "train", "masks")
    for path in masks_of(root, "train"):
        if path != source:
            shutil.copy(source, path)


def twice(root: Path) -> None:
    for folder in ("images", "masks"):
        source = first(root, "train", folder)
        shutil.copy(source, source.with_name("copy.png"))


#: What is done to the data, and what is said of it. A training refuses these.
REFUSED = {
    "a cut training image": (lambda r: truncated(r, "train", "images"), "unreadable file: 1"),
    "a cut validation image": (lambda r: truncated(r, "val", "images"), "val: unreadable file: 1"),
    "a cut training mask": (lambda r: truncated(r, "train", "masks"), "train: unreadable file: 1"),
    "a cut validation mask": (lambda r: truncated(r, "val", "masks"), "val: unreadable file: 1"),
    "a Git LFS pointer for an image": (lambda r: not_an_image(r, "val", "images"), "val: unreadable file: 1"),
    "a Git LFS pointer for a mask": (lambda r: not_an_image(r, "train", "masks"), "train: unreadable file: 1"),
    "an image of 32 bits": (thirty_two_bits, "more than 16 bits"),
    "images of a thermal camera": (thermal, "set data.value_range to those that shall be black and white"),
    "images of a thermal camera with a dead pixel": (thermal_with_a_dead_pixel, "set data.value_range to those"),
    "a mask of another size": (lambda r: other_size(r, "train"), "train: sizes differ: 1"),
    "a validation mask of another size": (lambda r: other_size(r, "val"), "val: sizes differ: 1"),
    "an image that EXIF turns": (turned_by_exif, "the image's EXIF tag turns it by a quarter"),
    "a value of no class": (lambda r: change(r, "train", lambda m: m + 1), "train: value of no class: 4"),
    "a value of no class in validation": (lambda r: change(r, "val", lambda m: m + 1), "val: value of no class: 2"),
    "a colour of no class": (colours_of_no_class, "is a colour image"),
    "masks of 0 and 255": (
        lambda r: change(r, "*", lambda m: np.where(m > 0, 255, 0).astype(np.uint8)),
        "write data.classes as {floor: 0, wall: 255}",
    ),
    "palettes that differ": (palettes, "different colours, so an index means something else in each file"),
    "nothing is labelled": (lambda r: change(r, "train", lambda m: np.full_like(m, 255)), "every pixel is ignored"),
    "validation without labels": (lambda r: change(r, "val", lambda m: np.full_like(m, 255)), "val: no labelled pixel"),
    "training masks of one class": (lambda r: one_class_in_one_mask(r, "train"), "train: only one class"),
    "a pipe for a mask": (pipe, "val: unreadable file: 1"),
    "an image without mask": (lambda r: missing(r, "val", "masks"), "1 of 2 images have no mask"),
    "JPEG masks named PNG": (lambda r: lossy_by_the_name_of_png(r, "JPEG"), "is JPEG, which may change values"),
    "WEBP masks named PNG": (lambda r: lossy_by_the_name_of_png(r, "WEBP"), "is WEBP, which may change values"),
    "masks of other values": (
        lambda r: change(r, "*", lambda m: m * 127),
        "if these are the classes in their order, write data.classes as {floor: 0, wall: 127, door: 254}",
    ),
    "classes from 1, and 0 for none": (
        lambda r: change(r, "*", lambda m: np.where(np.arange(HEIGHT)[:, None] < 9, 0, m + 1).astype(np.uint8)),
        "if 0 is void, write data.classes as {floor: 1, wall: 2, door: 3} and data.ignore as [0]",
    ),
    "classes from 0, and the last for none": (
        lambda r: change(r, "*", lambda m: np.where(np.arange(HEIGHT)[:, None] < 8, 3, m).astype(np.uint8)),
        "If 3 is void, write data.classes as {floor: 0, wall: 1, door: 2} and data.ignore as [3]. "
        "0 covers 29.17 % of the pixels, 3 covers 12.50 %",
    ),
    "classes from 0, one more for none, and 255": (
        lambda r: change(
            r, "*", lambda m: np.where(np.arange(HEIGHT)[:, None] < 8, [3] * 90 + [255] * 6, m).astype(np.uint8)
        ),
        "data.ignore as [0, 255]. If 3 is void, write data.classes as {floor: 0, wall: 1, door: 2} and data.ignore as "
        "[3, 255]",
    ),
    "images and masks swapped": (swapped, "looks like a photo, not like a mask; are images and masks swapped?"),
    "an unfinished download": (lambda r: interrupted(r, "train", "images"), "00x.png.part is an unfinished download"),
    "an empty image": (lambda r: empty(r, "train", "images"), "train: unreadable file: 1"),
    "an empty list of classes": (lambda r: save_text(r / "classes.csv", ""), "classes.csv is empty"),
    "a link to nowhere": (link_to_nowhere, "val: unreadable file: 1"),
    "a name that is not in UTF-8": (latin_1_name, "caf\\udce9.png is not in UTF-8"),
    "more masks without image": (lambda r: spare_masks(r, 7), "most masks have no image: 1: 7 files of labels"),
    "a single image": (only_one_image, "leaves no image of 1 to train on"),
}
#: A training says these and goes on.
WARNED = {
    "validation of one class": (lambda r: one_class_in_one_mask(r, "val"), "val: only one class"),
    "a class that never occurs": (
        lambda r: change(r, "train", lambda m: np.where(m == 2, 1, m).astype(np.uint8)),
        "train: class never occurs: 1: door",
    ),
    "one mask for all images": (one_mask_for_all, "train: every mask is the same: 1: 4 images"),
    "an image that is there twice": (twice, "train: the same image twice: 1: 00x.png and copy.png"),
    "mostly ignored": (
        lambda r: change(r, "train", lambda m: np.where(np.arange(HEIGHT)[:, None] < 50, 255, m).astype(np.uint8)),
        "train: most pixels are ignored: 1: 78.12 %",
    ),
    "mostly ignored in validation": (
        lambda r: change(r, "val", lambda m: np.where(np.arange(HEIGHT)[:, None] < 50, 255, m).astype(np.uint8)),
        "val: most pixels are ignored",
    ),
    "an image in both splits": (same_image, "the same image in train and val: 1: 00x.png and 10x.png"),
    "versions of one image in both splits": (versions, "versions of one image in train and val: 1"),
    "near-duplicates in both splits": (alike, "images of train and val look alike: 1: 00x.png and 10x.png"),
    "mirrored images in both splits": (mirrored, "images of train and val look alike: 1"),
    "a mask without image": (lambda r: missing(r, "train", "images"), "mask without image: 1"),
}


def train(folder: Path, root: Path, mode: str, **changes: object) -> str:
    """What a training or a dry run says; its steps are left out."""
    forget_accelerator()
    data = {"name": "folder", "root": str(root), "classes": CLASSES, **changes}
    console = Console(width=1000, record=True, quiet=False, file=(folder / "said.txt").open("w"))
    trainer = Trainer(tiny_recipe(folder, data=data, iterations=1, epochs=None), console)
    trainer.dry_run() if mode == "dry run" else trainer.run()
    return console.export_text()


def check(root: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> tuple[int, str, dict]:
    recipe, found = root.parent / "tiny.json", root.parent / "found.json"
    data = {"name": "folder", "root": str(root), "classes": CLASSES, **changes}
    recipe.write_text(json.dumps(tiny_recipe(root.parent, data=data).model_dump(mode="json")))
    status = check_dataset.main([str(recipe), "--threads", "1", "--json", str(found)])
    printed = capsys.readouterr()
    return status, printed.out + printed.err, json.loads(found.read_text())


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_data_is_refused_before_anything_is_written(case, root, tmp_path, capsys):
    spoil, said = REFUSED[case]
    spoil(root)
    before = files(root)
    status, _, found = check(root, capsys)
    assert (status, bool(found["problems"])) == (1, True)
    for mode in ("dry run", "training"):
        with pytest.raises(SegmentationError) as refusal:
            train(tmp_path, root, mode)
        assert said in str(refusal.value), refusal.value
    assert not (tmp_path / "run").exists()
    assert files(root) == before


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"door": 2}, "train: only one class: there is no class but 'door'"),
        ({"door": 255}, "train: only one class: there is no class but 'door'"),
        ({"door": 255, "wall": 7}, "train: only one class: all labelled pixels are 'door'"),
    ],
)
def test_a_class_beside_ignored_pixels_alone_is_refused(classes, said, root, tmp_path, capsys):
    if 255 in classes.values():
        change(root, "*", lambda m: np.where(m == 2, 255, 0).astype(np.uint8))
    status, _, found = check(root, capsys, classes=classes, ignore="rest")
    assert status == 1 and any(problem.startswith(said) for problem in found["problems"])
    with pytest.raises(SegmentationError, match="only one class"):
        train(tmp_path, root, "dry run", classes=classes, ignore="rest")


@pytest.mark.parametrize("case", WARNED)
def test_suspicious_data_is_named_and_training_goes_on(case, root, tmp_path, capsys):
    spoil, said = WARNED[case]
    spoil(root)
    status, _, found = check(root, capsys)
    assert (status, bool(found["problems"])) == (1, True)
    assert said in train(tmp_path, root, "dry run")


@pytest.mark.parametrize("spoil", [alike, versions])
def test_the_remedy_for_images_that_are_nearly_in_both_splits_is_named(spoil, root, tmp_path, capsys):
    spoil(root)
    remedy = "data.folds divides the images of train and val anew and keeps each video together"
    assert remedy in check(root, capsys)[1]
    assert remedy in train(tmp_path, root, "dry run")


def test_sound_data_is_not_suspected(root, tmp_path, capsys):
    status, printed, found = check(root, capsys)
    assert (status, found["problems"]) == (0, []), printed
    assert "warning" not in train(tmp_path, root, "dry run")


@pytest.mark.parametrize("labelled", [["wall"], ["floor", "wall"]])
def test_classes_that_only_pseudo_labels_show_are_seen(labelled, root, tmp_path, capsys):
    change(root, "train", lambda m: np.where(m == 2, 255, np.maximum(m, 2 - len(labelled))).astype(np.uint8))
    save(tmp_path / "pseudo/images/20x.png", picture(20))
    save(tmp_path / "pseudo/masks/20x.png", labels(20))
    taught = {"classes": CLASSES, "images": [{"image": "20x.png", "mask": "20x.png"}]}
    save_text(tmp_path / "pseudo/pseudo_labels.json", json.dumps(taught))
    data = {"name": "folder", "root": str(root), "classes": CLASSES}
    recipe = tiny_recipe(tmp_path, data=data, pseudo_labels={"root": str(tmp_path / "pseudo")})
    save_text(tmp_path / "tiny.json", recipe.model_dump_json())
    assert check_dataset.main([str(tmp_path / "tiny.json")]) == 0, capsys.readouterr().out
    forget_accelerator()
    capsys.readouterr()
    Trainer(recipe, Console(width=1000)).dry_run()
    assert "warning" not in capsys.readouterr().out


def test_copies_of_validation_images_are_found_among_all_pseudo_labels(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.checks.problems.MOST_BEFORE_TRAINING", 1)  # of three images, the second is read
    for seed in range(20, 23):
        save(tmp_path / f"pseudo/{seed}x.png", picture(seed))
        save(tmp_path / f"pseudo/masks/{seed}x.png", labels(seed))
    shutil.copy(root / "val/images/11x.png", tmp_path / "pseudo/20x.png")
    section = FolderData(root=str(root), classes=CLASSES)
    taught = FolderData(root=str(tmp_path / "pseudo"), classes=CLASSES).open_all()
    check_before_training(section, Console(width=1000), taught)
    assert "the same image in pseudo-labels and val: 1: 20x.png and 11x.png" in capsys.readouterr().out


def test_masks_without_image_are_few_beside_the_images_of_all_splits(root, tmp_path):
    for seed in range(20, 24):
        save(root / f"test/images/{seed}x.png", picture(seed))
        save(root / f"test/masks/{seed}x.png", labels(seed))
    spare_masks(root, 7)
    said = train(tmp_path, root, "dry run")
    assert "mask without image: 7" in said and "most masks have no image" not in said


def test_an_image_without_mask_does_not_count_beside_masks_without_image(root, capsys):
    for path in masks_of(root)[1:]:
        path.rename(path.with_name(f"other_{path.name}"))
    status, printed, _ = check(root, capsys)
    assert status == 1 and "most masks have no image" in printed and "and only 1 have one" in printed, printed


@pytest.mark.parametrize(
    "counting", [{}, {"losses": [{"name": "focal", "class_weights": "balanced"}]}, {"repeat_threshold": 0.3}]
)
def test_a_refusal_begins_with_the_remedy_for_all_masks(counting, root, tmp_path):
    change(root, "*", lambda mask: mask * 127)
    recipe = tiny_recipe(tmp_path, data={"name": "folder", "root": str(root), "classes": CLASSES}, **counting)
    forget_accelerator()
    with pytest.raises(DatasetError, match=r"^train: the masks hold other values") as refusal:
        Trainer(recipe, Console(quiet=True)).dry_run()
    assert str(refusal.value).count("has the value 127") == 2  # one file of each split, and the number of the others


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_exif_turns_without_another_size_is_noted(orientation, root, tmp_path, capsys):
    if orientation == 6:  # by a quarter: only a square keeps its size
        for path in root.rglob("*.png"):
            save(path, np.array(Image.open(path))[:, 16 : 16 + HEIGHT])
    turned_by_exif(root, orientation)
    status, said, found = check(root, capsys)
    assert (status, found["problems"]) == (0, [])
    note = "note: train: EXIF tags turn or mirror 1 images and leave their size, such as 00x.png"
    assert note in said and note in train(tmp_path, root, "dry run")


def test_an_image_that_exif_turns_as_its_mask_lies_is_not_noted(root, capsys):
    mask = first(root, "train", "masks")
    save(mask, np.rot90(np.array(Image.open(mask)), -1))
    turned_by_exif(root)
    status, said, found = check(root, capsys)
    assert (status, found["problems"]) == (0, []) and "EXIF" not in said


def test_a_bad_validation_file_costs_a_message_and_mending_it_suffices(root, tmp_path):
    mask = first(root, "val", "masks")
    whole = mask.read_bytes()
    train(tmp_path, root, "training")
    truncated(root, "val", "masks")
    before = files(tmp_path / "run")
    data = {"name": "folder", "root": str(root), "classes": CLASSES}
    forget_accelerator()
    longer = Trainer(tiny_recipe(tmp_path, data=data, iterations=2, epochs=None), Console(quiet=True))
    with pytest.raises(DatasetError, match="val: unreadable file: 1"):
        longer.run(resume=True)
    assert files(tmp_path / "run") == before
    mask.write_bytes(whole)
    assert longer.run(resume=True)["step"] in (1, 2)


def test_data_are_read_on_the_cores_that_the_process_may_use(root, cores, monkeypatch):
    threads = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int) -> None:
            threads.append(count)
            super().__init__(count)

    monkeypatch.setattr("training.checks.findings.ThreadPoolExecutor", Pool)
    cores(3)
    recipe = tiny_recipe(root.parent, data={"name": "folder", "root": str(root), "classes": CLASSES})
    (root.parent / "tiny.json").write_text(recipe.model_dump_json())
    check_before_training(recipe.data, Console(quiet=True))
    assert check_dataset.main([str(root.parent / "tiny.json")]) == 0
    assert threads == [3] * 4
