"""From a recipe to the parts of a training: samples, losses, caches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.frames.preprocessing import check_geometry
from training.data import SegmentationDataset
from training.losses import WeightedSum
from training.recipes.schema import Recipe
from training.samples.feature_cache import FeatureCache
from training.samples.loader import AugmentedDataset
from training.samples.transforms import CanvasSettings

CountPixels = Callable[[], torch.Tensor]

# What a manifest says of a backbone that decides which features an image has.
_FEATURES = {"identity", "layers", "feature_norm", "class_token", "output_stride"}


def make_samples(recipe: Recipe, data: SegmentationDataset, multiple: int, seed: int | None = None) -> AugmentedDataset:
    """Training samples by (epoch, index).

    Args:
        recipe: of a stage.
        data: the training split.
        multiple: what both sides of a canvas must be multiples of.
        seed: what they are drawn from; None: the recipe's.

    Raises:
        ParameterError: the network size or the crop does not fit.
    """
    shape = recipe.input
    size = recipe.augmentation.crop or shape.network_size
    for checked in (shape.network_size, size):
        check_geometry(shape.geometry, checked, multiple)
    settings = CanvasSettings(shape.network_size, size, shape.geometry, multiple, shape.mean, data.ignore_value)
    return AugmentedDataset(data, settings, recipe.augmentation, recipe.seed if seed is None else seed)


def make_loss(recipe: Recipe, num_classes: int, count_pixels: CountPixels) -> WeightedSum:
    """What training minimises.

    Args:
        recipe: of a stage.
        num_classes: number of classes.
        count_pixels: see `pixel_counter`.

    Raises:
        RecipeError: a loss does not fit the classes.
    """
    losses = [section.build(num_classes, count_pixels) for section in recipe.losses]
    return WeightedSum(losses, [section.weight for section in recipe.losses])


def pixel_counter(data: SegmentationDataset) -> CountPixels:
    """Gives the number of pixels of each class, (classes,); reads all masks, when it is first asked."""

    @functools.cache
    def count() -> torch.Tensor:
        masks = (data.mask(index) for index in range(len(data)))
        counts = sum(np.bincount(mask.ravel(), minlength=65536) for mask in masks)
        return torch.from_numpy(counts[: len(data.class_names)])

    return count


def make_cache(recipe: Recipe, data: SegmentationDataset, manifest: Manifest) -> FeatureCache:
    """The features of a stage's samples on disk; nothing is computed yet.

    Args:
        recipe: of the stage.
        data: the training split.
        manifest: describes the frozen backbone and its input.
    """
    backbone = manifest.backbone
    samples = make_samples(recipe, data, backbone.multiple, recipe.cache.seed)
    height, width = samples.size
    shapes = [
        (channels, height // stride, width // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    description = {
        "backbone": backbone.model_dump(mode="json", include=_FEATURES),
        "input": manifest.input.model_dump(mode="json"),
        "precision": recipe.precision,
    }
    return FeatureCache(recipe.cache, description, samples, shapes)
