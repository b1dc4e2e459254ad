"""Recipes: one YAML file describes one training, from data to bundle."""

from __future__ import annotations

import contextlib
import io
import operator
import os
import re
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml
from pydantic import Field, ValidationError, model_validator

from dinov3_seg_ros.errors import RecipeError, nearest
from training.datasets import DataSection
from training.feature_cache import CacheSettings
from training.inference import Inference
from training.losses import CrossEntropySection, LossSection
from training.optimizers import AdamWSection, OptimizerSection
from training.schedules import Cosine, ScheduleSection
from training.section import Section
from training.transforms import Augmentation

RECIPES_FOLDER = Path(__file__).parent / "recipes"

# Mappings whose keys are those of another module's function or class.
_FREE_KEY = re.compile(r"--(head\.options|backbone\.config)\.(\w+)")

Channels = tuple[float, float, float]
AnySection = TypeVar("AnySection", bound=Section)


class NetworkInput(Section):
    """How an image becomes the network's input; see `dinov3_seg_ros.preprocessing`."""

    network_size: tuple[int, int]
    """Height and width of the canvas, pixels; multiples of the backbone's patch size or coarsest stride."""
    geometry: Literal["stretch", "letterbox", "pad", "native"] = "letterbox"
    """How a frame is laid on it. With pad and native, network_size only sizes the training canvas."""
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)


class BackboneChoice(Section):
    """Which backbone, what of it is read, and what of it trains."""

    source: str | None = None
    """Hugging Face id, local folder, or Meta's .pth file."""
    config: Annotated[dict[str, Any] | None, tyro.conf.Fixed] = None
    """Instead of source: a Hugging Face configuration, built with random weights."""
    layers: list[int] | Literal["auto"] = "auto"
    """0-based blocks or stages that the head reads, negatives counting from the end; auto: the last."""
    feature_norm: Literal["auto", "final", "none"] = "auto"
    """Whether the final norm is applied; auto: as the architecture is meant."""
    class_token: bool = False
    """Whether each map of a ViT is followed, as further channels, by the class token of its block."""
    output_stride: int | None = None
    """The largest stride of a ResNet's stages; later ones are dilated instead. null: the architecture's own."""
    trainable: int | Literal["auto", "none", "all"] = "auto"
    """What trains: none, the last n blocks, or all; auto: all with config, none with source."""
    storage: Literal["auto", "embedded", "reference", "delta"] = "auto"
    """How the bundle holds the backbone; auto: embedded with config; with source, delta where something trains and
    reference where nothing does."""
    storage_dtype: Literal["float32", "float16"] = "float32"
    """Type of an embedded backbone's weights on disk."""

    @model_validator(mode="after")
    def _one_origin(self) -> BackboneChoice:
        if (self.source is None) == (self.config is None):
            raise ValueError("give either source or config")
        if self.config is not None and self.storage in ("reference", "delta"):
            raise ValueError(f"storage {self.storage} needs a source that others can load; use embedded")
        if isinstance(self.trainable, int) and self.trainable < 0:
            raise ValueError("trainable must be none, all, or a number of blocks of at least 0")
        return self


class HeadChoice(Section):
    """Arguments of `dinov3_seg_ros.heads.build_head`."""

    name: str = "aspp"
    variant: str | None = None
    """None: the head's default."""
    options: Annotated[dict[str, Any], tyro.conf.Fixed] = Field(default_factory=dict)
    """Keyword options of the head's class."""
    start_from: str | None = None
    """Bundle whose head's weights training starts from, of the same shape; null: random ones."""


class StageChanges(Section):
    """What one stage of a training does its own way; what is null is as in the recipe itself."""

    losses: Annotated[tuple[LossSection, ...], Field(min_length=1)] | None = None
    optimizer: OptimizerSection | None = None
    schedule: ScheduleSection | None = None
    augmentation: Augmentation | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    iterations: Annotated[int, Field(ge=1)] | None = None


class Recipe(Section):
    """One training."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the bundle and, by default, of the output folder."""
    description: str = ""
    licences: tuple[str, ...] = ()
    """Licence notes that the bundle carries."""
    seed: Annotated[int, Field(ge=0)] = 0
    output: str = "auto"
    """Folder for everything written; must not exist or be empty. auto: runs/<name>."""
    data: DataSection
    input: NetworkInput
    backbone: BackboneChoice
    head: HeadChoice = HeadChoice()
    losses: Annotated[tuple[LossSection, ...], Field(min_length=1)] = (CrossEntropySection(),)
    optimizer: OptimizerSection = AdamWSection()
    schedule: ScheduleSection = Cosine()
    augmentation: Augmentation = Augmentation()
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training images; give this or iterations."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps."""
    stages: tuple[StageChanges, ...] = ()
    """Stages, one after the other; each begins with a new optimizer and a schedule of its own. None: the recipe itself
    is the only one."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images that go through the network together, over all processes."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one optimizer step."""
    batch_norm: Literal["auto", "process", "synchronised", "frozen"] = "auto"
    """Over what BatchNorm takes mean and variance while training: the images of each process, or of all processes
    (CUDA), or never: the running ones are used and stay. auto: synchronised with several GPUs, otherwise process."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then what is evaluated and saved."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two validations; the last epoch of each stage is always validated."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    """After how many minutes the state of the training is saved again, for --resume; 0: after each step. It is also
    saved with each validation."""
    inference: Inference = Inference()
    """How the finished bundle is evaluated: by `training.evaluate` and, where that takes several looks at an image, at
    the end of training. Until then, validation looks at each image once, as the robot does."""
    cache: CacheSettings = CacheSettings()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the training step; auto: bf16 where the processor has it. Validation is always fp32, as on the robot."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that load data; 0: the training process itself."""

    @model_validator(mode="after")
    def _one_duration(self) -> Recipe:
        for number, stage in enumerate(self.by_stage()):
            if (stage.epochs is None) == (stage.iterations is None):
                raise ValueError("give either epochs or iterations" + (f" for stages.{number}" if self.stages else ""))
        return self

    def by_stage(self) -> list[Recipe]:
        """The recipe of each stage: this one, with what the stage changes."""
        stages = []
        for stage in self.stages or (StageChanges(),):
            changes = {key: getattr(stage, key) for key in type(stage).model_fields if getattr(stage, key) is not None}
            if {"epochs", "iterations"} & changes.keys():
                changes = {"epochs": None, "iterations": None, **changes}
            stages.append(self.model_copy(update={**changes, "stages": ()}))
        return stages


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: path of a YAML file, or the name of one in training/recipes.
        overrides: as on the command line, such as ``["--optimizer.lr", "1e-3"]`` or ``["--optimizer.lr=1e-3"]``.

    Raises:
        RecipeError: names the file, the key and, for a typo, the nearest key.
    """
    path, overrides = find_recipe(name), separated(overrides)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of settings; see training/recipe.py")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_problem(error, Recipe)}") from error
    advice = (
        "--help after the recipe lists the keys that can be set here; others, such as the name of an optimizer or a "
        f"loss, must be written in {path}"
    )
    return apply_overrides(recipe, _apply_free_overrides(recipe, overrides), advice)


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


def separated(overrides: Sequence[str]) -> list[str]:
    """The words of a command line with ``--key=value`` in two, ``--key`` and ``value``."""
    return [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]


def apply_overrides(section: AnySection, overrides: Sequence[str], advice: str = "") -> AnySection:
    """A copy of a section with command-line overrides applied; ``--help`` among them prints the keys and exits.

    Args:
        section: a `Recipe` or any other section.
        overrides: such as ``["--optimizer.lr", "1e-3"]``.
        advice: what to do about a key that the section does not have, or not for such a value.

    Raises:
        RecipeError: unknown key or wrong value.
    """
    if not overrides:
        return section
    if "--help" in overrides:
        return _parse(section, overrides)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return _parse(section, overrides)
    except SystemExit:
        raise RecipeError(f"cannot use {' '.join(overrides)}\n{complaint.getvalue()}{advice}") from None
    except ValidationError as error:
        raise RecipeError(f"cannot use {' '.join(overrides)}: {_problem(error, type(section))}") from error


def _apply_free_overrides(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """Write overrides of keys that no schema knows, such as a head's options, into the recipe; return the others."""
    others, words = [], list(overrides)
    while words:
        word = words.pop(0)
        match = _FREE_KEY.fullmatch(word)
        if match is None:
            others.append(word)
            continue
        values = []
        while words and not words[0].startswith("--"):
            values.append(yaml.safe_load(words.pop(0)))
        path, key = match.groups()
        settings = operator.attrgetter(path)(recipe)
        if settings is None:
            raise RecipeError(f"cannot use {word}: the recipe has no {path}")
        settings[key] = values[0] if len(values) == 1 else values
    return others


def _parse(section: AnySection, overrides: Sequence[str]) -> AnySection:
    # Every option is "--key value": no subcommands where a recipe chooses between sections, no flags.
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the names of subcommands, which are not used
        return tyro.cli(type(section), default=section, args=list(overrides), config=config)


def _problem(error: ValidationError, section: type[Section]) -> str:
    """The first of pydantic's complaints in the words of a recipe; for a typo, with the nearest key."""
    problem = error.errors()[0]
    if problem["type"] == "extra_forbidden":
        path, owner = _follow(problem["loc"][:-1], section)
        if owner is not None:
            key, known = str(problem["loc"][-1]), list(owner.model_fields)
            inside = f" in {'.'.join(path)}" if path else ""
            return f"unknown key '{key}'{inside}{nearest(key, known)}; the keys are: {', '.join(known)}"
    path, _ = _follow(problem["loc"], section)
    # A key that may be of several types has one complaint for each.
    said = " or ".join(other["msg"] for other in error.errors() if _follow(other["loc"], section)[0] == path)
    return f"{'.'.join(path)}: {said}" if path else said


def _follow(location: Sequence[int | str], section: type[Section]) -> tuple[list[str], type[Section] | None]:
    """Follow pydantic's location of a problem: the keys a user would name, and the section they lead to."""
    path, candidates = [], [section]
    for part in location:
        fields = [kind.model_fields[part] for kind in candidates if part in kind.model_fields]
        if fields:
            path.append(str(part))
            candidates = _sections_in(fields[0].annotation)
        elif isinstance(part, int):
            path.append(str(part))
        else:  # pydantic names the member of a union by its discriminator
            candidates = [kind for kind in candidates if kind.model_fields["name"].default == part]
    return path, candidates[0] if len(candidates) == 1 else None


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for argument in typing.get_args(annotation) for kind in _sections_in(argument)]
