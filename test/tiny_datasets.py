"""Tiny copies of the published data sets, in their exact layouts and file formats.

`BUILDERS[name](root)` writes one that `training.data.DATASETS[name](root=root)` opens: four images for training
and two for validation, of 40x48 pixels, together with every class and every ignored value in each split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.classes.lists import known_classes

HEIGHT, WIDTH = 40, 48
COUNTS = {"train": 4, "val": 2}
CELL = 2  # masks are made of squares of so many pixels, enough of them for 150 classes

#: COCO's category ids.
COCO_THINGS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_STUFF = [
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151),
    *(154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)),
]
#: Every so many-th of COCO's segments is a crowd.
COCO_CROWD_EVERY = 5


def values_of(values: Sequence[int], seed: int) -> np.ndarray:
    """A mask (HEIGHT, WIDTH) int64 that holds every one of the values, in squares, in an order of its own."""
    random = np.random.default_rng(seed)
    cells = np.resize(random.permutation(values), (HEIGHT // CELL, WIDTH // CELL))
    return np.kron(cells, np.ones((CELL, CELL), np.int64))


def image_of(seed: int) -> np.ndarray:
    """An image (HEIGHT, WIDTH, 3) uint8, another for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def seeds(split: str) -> list[int]:
    """Of the images and masks of a split, in their order."""
    return [(0 if split == "train" else 100) + index for index in range(COUNTS[split])]


def save_image(path: Path, seed: int) -> None:
    """Write the image of a seed, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(seed)).save(path)


def save_mask(path: Path, values: np.ndarray, palette: Sequence[int] | None = None) -> None:
    """Write numbers as a greyscale PNG, or with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values.astype(np.uint8))
    if palette is not None:
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(palette)
    picture.save(path)


VOC_VALUES = [*range(21), 255]


def build_voc(root: Path, augmented: bool = True) -> None:
    """VOC2012; with `augmented`, the first two training images are in train.txt and all four in train_aug.txt."""
    palette = np.zeros((256, 3), int)
    palette[:21] = list(known_classes("voc").values())
    palette[255] = (224, 224, 192)
    names = {split: [f"2007_{seed:06d}" for seed in seeds(split)] for split in COUNTS}
    for split in COUNTS:
        for name, seed in zip(names[split], seeds(split), strict=True):
            save_image(root / "JPEGImages" / f"{name}.jpg", seed)
            save_mask(root / "SegmentationClass" / f"{name}.png", values_of(VOC_VALUES, seed), palette.ravel().tolist())
            if augmented:
                save_mask(root / "SegmentationClassAug" / f"{name}.png", values_of(VOC_VALUES, seed))
    save_image(root / "JPEGImages" / "2008_000001.jpg", 7)  # most of VOC's images have no mask
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names["train"][:2] if augmented else names["train"]) + "\n")
    (lists / "val.txt").write_text("\n".join(names["val"]) + "\n")
    if augmented:
        (lists / "train_aug.txt").write_text("\n".join(names["train"]) + "\n")


def coco_categories() -> list[dict]:
    """COCO's 133 panoptic categories in the order of their ids, which have gaps."""
    names = list(known_classes("coco_panoptic"))[1:]
    return [
        {"supercategory": "any", "color": [1, 2, 3], "isthing": int(number <= 90), "id": number, "name": name}
        for number, name in zip((*COCO_THINGS, *COCO_STUFF), names, strict=True)
    ]


def build_coco_panoptic(root: Path) -> None:
    """COCO with panoptic annotations; every image has a segment of each category and unlabelled pixels."""
    (root / "annotations").mkdir(parents=True)
    categories = coco_categories()
    for split in COUNTS:
        folder = f"panoptic_{split}2017"
        images, annotations = [], []
        for seed in seeds(split):
            # Segment ids of three bytes that differ in every byte; 0 is in no segment.
            ids = [0] + [(seed + 3) % 251 + 256 * (7 * n % 256) + 65536 * n for n in range(1, len(categories) + 1)]
            values = values_of(ids, seed)
            rgb = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)
            save_image(root / f"{split}2017" / f"{seed:012d}.jpg", seed)
            path = root / "annotations" / folder / f"{seed:012d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rgb).save(path)
            images.append({"id": seed, "file_name": f"{seed:012d}.jpg", "height": HEIGHT, "width": WIDTH})
            segments = [
                {
                    "id": number,
                    "category_id": category["id"],
                    "iscrowd": int(index % COCO_CROWD_EVERY == 0),
                    "bbox": [0, 0, WIDTH, HEIGHT],
                    "area": int((values == number).sum()),
                }
                for index, (number, category) in enumerate(zip(ids[1:], categories, strict=True))
            ]
            annotations.append({"segments_info": segments, "file_name": path.name, "image_id": seed})
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations[::-1]}
        (root / "annotations" / f"{folder}.json").write_text(json.dumps({**content, "categories": categories}))


def build_penn_fudan(root: Path) -> None:
    """PennFudanPed with folders for its splits, as the tutorials lay it out."""
    for split, prefix in (("train", "train"), ("val", "valid")):
        for seed in seeds(split):
            save_image(root / f"{prefix}_images" / f"FudanPed{seed:05d}.png", seed)
            save_mask(root / f"{prefix}_masks" / f"FudanPed{seed:05d}_mask.png", values_of([0, 0, 0, 1, 2, 3], seed))


def build_penn_fudan_original(root: Path) -> None:
    """PennFudanPed as its authors distribute it."""
    for seed in [*seeds("train"), *seeds("val")]:
        save_image(root / "PNGImages" / f"FudanPed{seed:05d}.png", seed)
        save_mask(root / "PedMasks" / f"FudanPed{seed:05d}_mask.png", values_of([0, 0, 0, 1, 2, 3], seed))


def build_ade20k(root: Path) -> None:
    """ADEChallengeData2016."""
    for split, folder in (("train", "training"), ("val", "validation")):
        for seed in seeds(split):
            name = f"ADE_{split}_{seed:08d}"
            save_image(root / "images" / folder / f"{name}.jpg", seed)
            save_mask(root / "annotations" / folder / f"{name}.png", values_of(range(151), seed))


def build_cityscapes(root: Path) -> None:
    """Cityscapes in two cities for each split, with the files beside the label ids that nobody asks for."""
    for split in COUNTS:
        for index, seed in enumerate(seeds(split)):
            city = ("aachen", "bochum")[index % 2]
            name = f"{city}_{seed:06d}_000019"
            save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed)
            truth = root / "gtFine" / split / city
            save_mask(truth / f"{name}_gtFine_labelIds.png", values_of(range(34), seed))
            save_mask(truth / f"{name}_gtFine_instanceIds.png", values_of(range(34), seed))
            save_image(truth / f"{name}_gtFine_color.png", seed)
            (truth / f"{name}_gtFine_polygons.json").write_text("{}")


def build_camvid(root: Path) -> None:
    """CamVid, 11 classes and 11 for the rest."""
    for split in COUNTS:
        for seed in seeds(split):
            save_image(root / split / "images" / f"0001TP_{seed:06d}.jpg", seed)
            save_mask(root / split / "masks" / f"0001TP_{seed:06d}.png", values_of(range(12), seed))


BUILDERS: dict[str, Callable[[Path], None]] = {
    "voc": build_voc,
    "coco_panoptic": build_coco_panoptic,
    "penn_fudan": build_penn_fudan,
    "ade20k": build_ade20k,
    "cityscapes": build_cityscapes,
    "camvid": build_camvid,
}
