"""Builds the parts of a training from a recipe: samples, their order, losses, feature caches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.preprocessing import check_geometry
from dinov3_seg_ros.support.errors import ParameterError
from training.data import SegmentationDataset
from training.data.pseudo_labels import JoinedImages
from training.losses import WeightedSum
from training.recipes.schema import Recipe
from training.samples.feature_cache import FeatureCache
from training.samples.loader import AugmentedDataset, repeat_factors
from training.samples.transforms import CanvasSettings
from training.support.sides import opposite_sides

CountPixels = Callable[[], np.ndarray]

# Masks are uint8 or uint16.
_MASK_VALUES = 65536
# The fields of a backbone in a manifest that decide which features an image has.
_FEATURES = {"identity", "layers", "feature_norm", "class_token", "output_stride"}


def make_samples(recipe: Recipe, data: SegmentationDataset, multiple: int, seed: int | None = None) -> AugmentedDataset:
    """Training samples by (draw, index).

    Args:
        recipe: recipe of a stage.
        data: the training split.
        multiple: both sides of a canvas must be multiples of it, pixels.
        seed: seed of the augmentation; None: the recipe's.

    Raises:
        ParameterError: the network size or the crop does not fit.
    """
    shape = recipe.input
    check_geometry(shape.geometry, shape.network_size, multiple)
    size = recipe.augmentation.crop or shape.network_size
    try:
        check_geometry(shape.geometry, size, multiple)
    except ParameterError as error:
        raise ParameterError(
            f"augmentation.crop takes the place of the network size, and cannot be used: {error}"
        ) from error
    mean, _ = shape.normalisation
    sides = tuple(opposite_sides(data.class_names))
    settings = CanvasSettings(shape.network_size, size, shape.geometry, multiple, mean, data.ignore_value, sides)
    return AugmentedDataset(data, settings, recipe.augmentation, recipe.seed if seed is None else seed)


def make_loss(recipe: Recipe, num_classes: int, count_pixels: CountPixels) -> WeightedSum:
    """The loss that training minimises.

    Args:
        recipe: recipe of a stage.
        num_classes: number of classes.
        count_pixels: see `pixel_counter`.

    Raises:
        RecipeError: a loss does not fit the classes.
    """
    losses = [section.build(num_classes, lambda: torch.from_numpy(count_pixels().sum(0))) for section in recipe.losses]
    return WeightedSum(losses, [section.weight for section in recipe.losses])


def open_training_data(recipe: Recipe) -> SegmentationDataset:
    """The training split, with the images that a teacher labelled where the recipe has some.

    Raises:
        DatasetError: see `DataSettings.open` and `PseudoLabels.join`.
    """
    return recipe.pseudo_labels.join(recipe.data.open("train"), recipe.data.robot_value_range())


def make_repeats(recipe: Recipe, data: SegmentationDataset, count_pixels: CountPixels) -> np.ndarray | None:
    """How often each training image is drawn, (images,); None: all alike.

    Args:
        recipe: recipe of a stage.
        data: from `open_training_data`.
        count_pixels: see `pixel_counter`.
    """
    repeats = data.repeats if isinstance(data, JoinedImages) else None
    if recipe.repeat_threshold:
        factors = repeat_factors(count_pixels(), recipe.repeat_threshold)
        if isinstance(data, JoinedImages):
            return data.repeats_by(factors)
        repeats = factors
    return repeats


def pixel_counter(data: SegmentationDataset) -> CountPixels:
    """A function that counts the pixels of each class in each image, (images, classes) int64.

    Its first call reads all masks.
    """

    @functools.cache
    def count() -> np.ndarray:
        counts = np.zeros((len(data), len(data.class_names)), np.int64)
        for index, row in enumerate(counts):
            row[:] = np.bincount(data.mask(index).ravel(), minlength=_MASK_VALUES)[: len(row)]
        return counts

    return count


def make_cache(recipe: Recipe, data: SegmentationDataset, digest: str, manifest: Manifest) -> FeatureCache:
    """The cache for the features of a stage's samples; nothing is computed yet.

    Args:
        recipe: recipe of the stage.
        data: the training split.
        digest: of the content of ``data``.
        manifest: describes the frozen backbone, its input and the head.
    """
    backbone = manifest.backbone
    samples = make_samples(recipe, data, backbone.multiple, recipe.cache.seed)
    height, width = samples.size
    shapes = [
        (channels, height // stride, width // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    description = {
        "data": digest,
        "backbone": backbone.model_dump(mode="json", include=_FEATURES),
        "input": manifest.input.model_dump(mode="json"),
        "precision": recipe.precision,
    }
    return FeatureCache(recipe.cache, description, samples, shapes, manifest.head.reads_images)
