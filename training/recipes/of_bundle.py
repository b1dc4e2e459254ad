"""The data set that a bundle is evaluated or calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from training.data import DATASETS
from training.recipes.loading import load_recipe


def find_data(dataset: str | None, manifest: Manifest, overrides: Sequence[str]) -> Any:
    """Find the section of the data set of a bundle, before overrides.

    Args:
        dataset: a data set's name, or a recipe that names one; default: the bundle's own.
        manifest: of the bundle.
        overrides: as `separated` gives them; they may name the folder of a data set that only its name selects.

    Raises:
        DatasetError: there is no such data set, the bundle names none, or its folder is not given.
    """
    own = manifest.training.recipe.get("data", {})
    if dataset is None or dataset == own.get("name"):
        if own.get("name") not in DATASETS:
            raise DatasetError(f"bundle '{manifest.name}' does not name its data set; give --dataset NAME")
        return DATASETS[own["name"]].model_validate(own)
    if dataset in DATASETS:
        return _new_section(dataset, manifest, overrides)
    try:
        return load_recipe(dataset).data
    except RecipeError as error:
        raise DatasetError(f"no data set has the name '{dataset}' ({', '.join(DATASETS)}), and {error}") from error


def _new_section(dataset: str, manifest: Manifest, overrides: Sequence[str]) -> Any:
    """The section of a data set that only its name selects. Required values come from the overrides and the bundle."""
    section = DATASETS[dataset]
    required: dict[str, Any] = {}
    if "root" in section.model_fields:
        root = next((overrides[i + 1] for i, o in enumerate(overrides[:-1]) if o == "--data.root"), None)
        if root is None:
            raise DatasetError(f"data set '{dataset}' needs --data.root FOLDER")
        required["root"] = root
    if "classes" in section.model_fields:
        required["classes"] = dict(zip(manifest.classes.names, manifest.classes.palette, strict=True))
    return section(**required)
