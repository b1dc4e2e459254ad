"""What the recipe in a bundle says of its evaluation and calibration, above all the data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from training.data import DATASETS
from training.recipes.loading import load_data
from training.recipes.problems import describe_problem
from training.support.section import Section

AnySection = TypeVar("AnySection", bound=Section)


def read_own(manifest: Manifest, key: str, section: type[AnySection], advice: str) -> AnySection:
    """A section of the recipe in a bundle, which another version may have written.

    Args:
        manifest: of the bundle.
        key: of the section.
        section: its type.
        advice: what to do where it cannot be read.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return section.model_validate(manifest.training.recipe.get(key, {}))
    except ValidationError as error:
        problem = f"{key}: {describe_problem(error, section)}"
        raise DatasetError(f"the recipe in bundle '{manifest.name}' cannot be used: {problem}; {advice}") from error


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
        advice = "give --dataset auto --data.root FOLDER, or --dataset RECIPE"
        return read_own(manifest, "data", DATASETS[own["name"]], advice)
    if dataset in DATASETS:
        return _new_section(dataset, manifest, overrides)
    try:
        return load_data(dataset).data
    except RecipeError as error:
        raise DatasetError(f"no data set has the name '{dataset}' ({', '.join(DATASETS)}), and {error}") from error


def for_other_folder(settings: AnySection, overrides: Sequence[str]) -> AnySection:
    """Settings whose section ``data`` fits the folder that the overrides name, where they name one.

    The recipe in a bundle holds what was found in the folder of its training.

    Raises:
        DatasetError: the folder cannot be read.
    """
    if "--data.root" not in overrides:
        return settings
    chosen = {word.removeprefix("--data.").replace("-", "_") for word in overrides}
    return settings.model_copy(update={"data": settings.data.for_other_folder(chosen)})  # type: ignore[attr-defined]


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
        names, palette = manifest.classes.names, manifest.classes.palette
        # A mapping whose keys are all numbers is one from values to names.
        are_numbers = all(name.isdecimal() for name in names)
        required["classes"] = names if are_numbers else dict(zip(names, palette, strict=True))
    return section(**required)
