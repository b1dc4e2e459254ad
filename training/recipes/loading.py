"""Load a recipe by its name or path, apply overrides, and check it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dinov3_seg_ros.support.errors import RecipeError, nearest
from dinov3_seg_ros.support.yaml_text import parse_yaml
from training.recipes.overrides import apply_overrides
from training.recipes.problems import describe_problem
from training.recipes.schema import Recipe, RecipeData
from training.support.section import Section

AnySection = TypeVar("AnySection", bound=Section)

RECIPES_FOLDER = Path(__file__).parent
#: What commands say of their argument RECIPE; and those that need no more than its data.
RECIPE_HELP = "path of a YAML file, or the name of a recipe in training/recipes"
DATA_HELP = f"{RECIPE_HELP}; its section data is enough"


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: path of a YAML file, or the name of one in training/recipes.
        overrides: as on the command line, such as ``["--optimizer.lr", "1e-3"]`` or ``["--optimizer.lr=1e-3"]``.

    Raises:
        RecipeError: names the file, the key and, for a typo, the nearest key.
    """
    path, content = _read(name)
    return _checked(path, content, Recipe, overrides)


def load_data(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RecipeData | Recipe:
    """Read a recipe that need hold no more than its data, and apply overrides; see `load_recipe`."""
    path, content = _read(name)
    if content.keys() <= RecipeData.model_fields.keys():
        return _checked(path, content, RecipeData, overrides)
    return _checked(path, content, Recipe, overrides)


def _read(name: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Path and content of a recipe."""
    path = find_recipe(name)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of settings; see training/recipes/schema.py")
    return path, content


def _checked(path: Path, content: dict[str, Any], schema: type[AnySection], overrides: Sequence[str]) -> AnySection:
    """A recipe with overrides."""
    try:
        recipe = schema.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_problem(error, schema)}") from error
    advice = (
        "--help after the recipe lists the keys that can be set here; others, such as the name of an optimizer or a "
        f"loss, must be written in {path}"
    )
    return apply_overrides(recipe, overrides, advice)


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """Path of a recipe given by path or by name.

    Raises:
        RecipeError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    by_name = RECIPES_FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    if by_name.is_file() and path.name == str(path):
        return by_name
    known = sorted(recipe.stem for recipe in RECIPES_FOLDER.glob("*.yaml"))
    raise RecipeError(f"there is no recipe {name}{nearest(path.stem, known)}; the recipes are: {', '.join(known)}")
