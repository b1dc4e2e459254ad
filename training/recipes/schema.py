"""Schema of recipes: one YAML file describes one training, from data to bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from dinov3_seg_ros.bundle.manifest import BundleName, Prose
from dinov3_seg_ros.model.pretrained.normalisation import Normalisation
from dinov3_seg_ros.options import Geometry
from dinov3_seg_ros.support.errors import RecipeError
from training.data import DataSection
from training.data.pseudo_labels import PseudoLabels
from training.evaluation.inference import Inference
from training.losses import CrossEntropySection, LossSection
from training.optimization.optimizers import AdamWSection, OptimizerSection
from training.optimization.schedules import Cosine, ScheduleSection
from training.samples.feature_cache import CacheSettings
from training.samples.transforms import Augmentation
from training.support.section import Folder, Section

Mean: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Deviation: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class NetworkInput(Section):
    """How an image becomes the network's input; see `dinov3_seg_ros.frames.preprocessing`."""

    network_size: tuple[int, int]
    """Height and width of the network input, pixels; multiples of the backbone's patch size or coarsest stride."""
    geometry: Geometry = "letterbox"
    """How a frame is laid on the network input. With pad and native, network_size is only the size for training."""
    mean: tuple[Mean, Mean, Mean] | Literal["auto"] = "auto"
    """Mean of red, green and blue, 0..1; auto: that of the backbone's weights where they say, else ImageNet's."""
    std: tuple[Deviation, Deviation, Deviation] | Literal["auto"] = "auto"
    """Standard deviation of red, green and blue, 0..1; auto: as for mean."""

    @property
    def normalisation(self) -> Normalisation:
        """`mean` and `std` of a resolved recipe."""
        if self.mean == "auto" or self.std == "auto":
            raise RecipeError("input.mean or input.std is auto, which only a resolved recipe replaces by numbers")
        return self.mean, self.std


class BackboneChoice(Section):
    """The backbone, the maps that the head reads, and the part that trains."""

    source: str | None = None
    """Hugging Face id, local folder, or Meta's .pth file."""
    config: dict[str, Any] | None = None
    """Instead of source: a Hugging Face configuration, built with random weights."""
    layers: list[int] | Literal["auto"] = "auto"
    """0-based blocks or stages that the head reads, negatives counting from the end; auto: the last."""
    feature_norm: Literal["auto", "final", "none"] = "auto"
    """Whether the final norm is applied; auto: as the architecture's authors do."""
    class_token: bool = False
    """Whether each map of a ViT is followed, as further channels, by the class token of its block."""
    output_stride: int | None = None
    """The largest stride of a ResNet's stages; later ones are dilated instead. null: the architecture's own."""
    trainable: int | Literal["auto", "none", "all"] = "auto"
    """Trainable part: none, the last n blocks, or all; auto: all with config, none with source."""
    storage: Literal["auto", "embedded", "reference", "delta"] = "auto"
    """How the bundle holds the backbone; auto: embedded with config; with source, delta where a part trains, else
    reference."""
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
    """Arguments of `dinov3_seg_ros.model.heads.build_head`."""

    name: str = "aspp"
    variant: str | None = None
    """null: the head's default."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the head's class. The ASPP head's ``detail`` is auto by default: image-guided where all maps
    have one stride, as those of a ViT."""
    start_from: str | None = None
    """Bundle whose head has the first weights; classes keep theirs by name, new ones start from random weights. null:
    all weights are random."""

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        others = sorted({"name", "variant", "in_channels", "strides", "num_classes"} & options.keys())
        if others:
            raise ValueError(
                f"{', '.join(others)} is no option; write head.name and head.variant beside head.options, and leave "
                "out the others, which come from data and backbone"
            )
        return options


class StageChanges(Section):
    """Settings of one stage of a training; null: as in the recipe itself."""

    losses: Annotated[tuple[LossSection, ...], Field(min_length=1)] | None = None
    optimizer: OptimizerSection | None = None
    schedule: ScheduleSection | None = None
    augmentation: Augmentation | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    iterations: Annotated[int, Field(ge=1)] | None = None


class RecipeData(Section):
    """The part of a recipe that says what to train on."""

    data: DataSection
    pseudo_labels: PseudoLabels = PseudoLabels()


class Recipe(Section):
    """One training."""

    name: BundleName
    """Name of the bundle and, by default, of the output folder: lower-case letters, digits and _, beginning with a
    letter."""
    description: Prose = ""
    """One sentence for the bundle's model card."""
    licences: tuple[Prose, ...] = ()
    """Licence notes that the bundle carries."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Start of all random numbers."""
    output: Folder = "auto"
    """Folder for everything written; must not exist or be empty. auto: runs/<name>."""
    data: DataSection
    pseudo_labels: PseudoLabels = PseudoLabels()
    """Images labelled by a teacher, to train on beside those of data."""
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
    """Stages, one after the other, each with a new optimizer and its own schedule. Empty: the recipe itself is the only
    stage."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images of one batch, over all processes."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one optimizer step."""
    repeat_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Images with a class that fewer than this share of the images show are drawn sqrt(repeat_threshold / share) times
    as often, the others less. 0: all images alike."""
    batch_norm: Literal["auto", "process", "synchronised", "frozen"] = "auto"
    """Statistics of BatchNorm while training: those of each process's images, those of all processes (CUDA), or the
    running ones, which stay as they are (frozen). auto: synchronised with several GPUs, otherwise process."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then evaluated and saved in their place."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two validations; the last epoch of each stage is always validated."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    """Minutes between two checkpoints for --resume; 0: one after each step. Each validation writes one too."""
    calibrate: bool = True
    """Whether a temperature, fitted on the validation images, is folded into the heads of the bundles, so that
    confidence is a probability. It changes no label of the bundle's own classes."""
    inference: Inference = Inference()
    """Views by which `training.evaluate` evaluates the bundle; with several views, training does so at its end too.
    Validation during training computes one view of each image, as the robot does."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Validations without a higher mIoU after which the training ends, in its last stage; null: it takes all steps."""
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """What shows the history: TensorBoard's files in the output folder, Weights & Biases, or MLflow."""
    cache: CacheSettings = CacheSettings()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the training step; auto: bf16 where the processor has it. Validation is always fp32."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that load data; 0: the training process itself."""

    @model_validator(mode="after")
    def _one_duration(self) -> Recipe:
        for number, stage in enumerate(self.by_stage()):
            if (stage.epochs is None) == (stage.iterations is None):
                where = f" for stages.{number}" if self.stages else ""
                owner = f"stages.{number}." if self.stages and self.stages[number].epochs else ""
                words = f"--{owner}epochs null or --{owner}iterations null"
                back = f"; on the command line {words} takes the recipe's back" if stage.epochs else ""
                raise ValueError(f"give either epochs or iterations{where}{back}")
        return self

    @property
    def worker_count(self) -> int:
        """`workers` of a resolved recipe."""
        if self.workers == "auto":
            raise RecipeError("workers is auto, which only a resolved recipe replaces by a number")
        return self.workers

    def by_stage(self) -> list[Recipe]:
        """The recipe of each stage: this one with the changes of the stage."""
        stages = []
        for stage in self.stages or (StageChanges(),):
            changes = {key: getattr(stage, key) for key in type(stage).model_fields if getattr(stage, key) is not None}
            if {"epochs", "iterations"} & changes.keys():
                changes = {"epochs": None, "iterations": None, **changes}
            stages.append(self.model_copy(update={**changes, "stages": ()}))
        return stages
