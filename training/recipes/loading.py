"""Load a recipe by its name or path, apply overrides, and check it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from dinov3_seg_ros.support.errors import RecipeError, nearest
from dinov3_seg_ros.support.yaml_text import parse_yaml
from training.recipes.overrides import apply_overrides
from training.recipes.problems import describe_problem
from training.recipes.schema import Recipe

RECIPES_FOLDER = Path(__file__).parent
#: What commands say of their argument RECIPE.
RECIPE_HELP = "path of a YAML file, or the name of a recipe in training/recipes"


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: path of a YAML file, or the name of one in training/recipes.
        overrides: as on the command line, such as ``["--optimizer.lr", "1e-3"]`` or ``["--optimizer.lr=1e-3"]``.

    Raises:
        RecipeError: names the file, the key and, for a typo, the nearest key.
    """
    path = find_recipe(name)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of settings; see training/recipes/schema.py")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_problem(error, Recipe)}") from error
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
