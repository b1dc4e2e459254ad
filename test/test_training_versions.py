"""What caches hold is pinned here: a change of it must raise the version in their keys, or old files would be used.

The last bits of resampled images depend on the build of OpenCV. So images are compared by the mean colours of their
quarters, and resampled masks by the number of pixels of each class.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tiny_datasets

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.image_files import READING_VERSION
from training.data import DATASETS
from training.samples.transforms import SAMPLES_VERSION, Augmentation, CanvasSettings, training_canvas

#: Largest difference of a mean colour, 0..255.
TOLERANCE = 1.0
#: Largest difference of a number of pixels, as a share of the image.
SHARE = 0.005
EVERYTHING = Augmentation(
    rotate=30.0,
    scale=(0.5, 2.0),
    crop_class_limit=0.9,
    flip=0.5,
    brightness=0.2,
    contrast=(0.5, 1.5),
    saturation=(0.0, 2.0),
    hue=0.2,
    grey=0.2,
    blur=1.0,
    noise=0.05,
)


def quarter_means(image: np.ndarray) -> list[float]:
    """Mean RGB of the quarters of an image (H, W, 3): upper left and right, lower left and right; 12 numbers."""
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * rows, : 2 * columns].reshape(2, rows, 2, columns, 3)
    return blocks.mean(axis=(1, 3)).ravel().tolist()


def smooth_image() -> tuple[np.ndarray, np.ndarray]:
    """A coloured image (48, 72, 3) without fine detail, and a mask of three classes."""
    rows, columns = np.mgrid[:48, :72]
    image = np.stack([5 * rows, 3 * columns, 250 - 2 * rows - 2 * columns], axis=-1).astype(np.uint8)
    return image, ((rows // 16 + columns // 12) % 3).astype(np.uint8)


def class_counts(mask: np.ndarray) -> dict[int, int]:
    return {int(value): int(count) for value, count in zip(*np.unique(mask, return_counts=True), strict=True)}


def assert_pinned(
    image: np.ndarray, mask: np.ndarray, means: list[float], counts: dict[int, int], version: str
) -> None:
    advice = f"this is not what {version} gave so far: if the change is intended, raise it and pin the new values"
    assert quarter_means(image) == pytest.approx(means, abs=TOLERANCE), advice
    assert class_counts(mask) == pytest.approx(counts, abs=SHARE * mask.size), advice


@pytest.mark.parametrize(
    ("geometry", "augmentation", "seed", "means", "counts"),
    [
        (
            "stretch",
            Augmentation(),
            0,
            [57.5, 52.3, 191.9, 57.5, 160.3, 119.9, 177.5, 52.3, 143.9, 177.5, 160.3, 71.9],
            {0: 1366, 1: 1366, 2: 1364},
        ),
        (
            "letterbox",
            Augmentation(),
            0,
            [80.5, 68.0, 155.4, 80.5, 142.2, 105.9, 161.4, 69.5, 120.3, 161.4, 140.4, 73.0],
            {0: 918, 1: 918, 2: 916, 255: 1344},
        ),
        (
            "letterbox",
            EVERYTHING,
            0,
            [121.0, 143.9, 82.2, 113.6, 88.6, 168.8, 141.8, 116.2, 70.4, 160.6, 94.3, 94.1],
            {0: 447, 1: 450, 2: 454, 255: 2745},
        ),
        (
            "letterbox",
            EVERYTHING,
            1,
            [47.8, 12.6, 243.6, 23.7, 69.6, 193.4, 167.1, 11.8, 182.9, 137.5, 73.4, 111.1],
            {0: 1388, 1: 1388, 2: 1320},
        ),
        (
            "pad",
            EVERYTHING,
            3,
            [91.6, 79.4, 67.1, 83.2, 77.7, 72.1, 124.0, 101.0, 78.1, 125.5, 104.0, 82.6],
            {0: 451, 1: 459, 2: 474, 255: 2712},
        ),
    ],
)
def test_samples_are_those_of_their_version(geometry, augmentation, seed, means, counts):
    assert SAMPLES_VERSION == 1
    settings = CanvasSettings((64, 64), (64, 64), geometry, 16, (0.5, 0.4, 0.3), 255)
    canvas, mask = training_canvas(*smooth_image(), settings, augmentation, np.random.default_rng(seed))
    assert_pinned(canvas, mask, means, counts, "SAMPLES_VERSION")


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("ade20k", 25329468),
        ("camvid", 3511574787),
        ("cityscapes", 2775001443),
        ("coco_panoptic", 153759456),
        ("penn_fudan", 2007733602),
        ("voc", 1901291682),
    ],
)
def test_files_are_read_as_their_version_reads_them(tmp_path, name, checksum):
    assert READING_VERSION == 5
    tiny_datasets.BUILDERS[name](tmp_path)
    image, mask = DATASETS[name](root=str(tmp_path)).open("train").item(1)
    expected = quarter_means(tiny_datasets.image_of(tiny_datasets.seeds("train")[1]))
    if name == "cityscapes":  # whose second image is that of the first city's second seed
        expected = quarter_means(tiny_datasets.image_of(tiny_datasets.seeds("train")[2]))
    advice = "this is not what READING_VERSION gave so far: if the change is intended, raise it and pin the new values"
    assert quarter_means(image) == pytest.approx(expected, abs=TOLERANCE), advice
    assert zlib.crc32(mask.tobytes()) == checksum, advice


@pytest.mark.parametrize(
    ("split", "index", "means", "counts"),
    [
        (
            "train",
            0,
            [181.9, 170.2, 152.1, 179.9, 166.2, 147.7, 135.0, 126.5, 113.4, 145.2, 130.8, 108.3],
            {0: 452, 1: 6576, 2: 3248, 4: 16, 5: 149, 7: 1357, 8: 206, 9: 264, 10: 20},
        ),
        (
            "val",
            2,
            [150.9, 151.7, 148.1, 138.8, 143.9, 139.6, 119.2, 112.7, 98.4, 98.6, 109.4, 105.0],
            {0: 429, 1: 4681, 2: 2753, 3: 380, 4: 414, 5: 28, 6: 317, 8: 2413, 10: 873},
        ),
    ],
)
def test_scenes_are_those_of_their_renderers_version(split, index, means, counts):
    assert scenes.RENDERER_VERSION == 1
    assert_pinned(*scenes.sample(split, index, (96, 128)), means, counts, "RENDERER_VERSION")
