"""What a bundle is on disk: the schema of ``bundle.json``, and the names of its files.

A bundle is a trained model, and the one thing that passes from training to the robot. It is a folder::

    bundle.json                  `Manifest`
    head.safetensors             the head's weights
    backbone/                    config.json and model.safetensors, when the backbone is the project's own
    backbone_delta.safetensors   only the tensors that training changed, when a published backbone was fine-tuned
    onnx/                        exports, one folder each; see `onnx_folder`

The manifest names the SHA-256 of every file but its own and the exports'. Only JSON and safetensors are read; no pickle
is ever loaded.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from dinov3_seg_ros.frames.classes import ClassesSection, MaskValues, checked_line
from dinov3_seg_ros.options import ValueRange

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_FILE = "bundle.json"
#: How the source of a backbone begins that had no weights before its training.
FROM_SCRATCH = "trained from scratch by recipe "
HEAD_FILE = "head.safetensors"
BACKBONE_FOLDER = "backbone"
DELTA_FILE = "backbone_delta.safetensors"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def checked_bundle_name(name: str) -> str:
    """Return a bundle's name, which becomes part of topics; raise ValueError where it cannot."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is no name; use lower-case letters, digits and _, beginning with a letter")
    return name


def _checked_prose(text: str) -> str:
    checked_line(" ".join(text.split()))  # it may have line breaks
    return text


BundleName: TypeAlias = Annotated[str, AfterValidator(checked_bundle_name)]
#: Text for people, without control characters other than white space.
Prose: TypeAlias = Annotated[str, AfterValidator(_checked_prose)]
_Deviation: TypeAlias = Annotated[FiniteFloat, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSection(_Section):
    """Which backbone the head was trained on, and which of its maps it reads.

    Attributes:
        storage: ``embedded`` (in the bundle's own folder), ``reference`` (``source``, unchanged) or ``delta``
            (``source`` plus the tensors in `DELTA_FILE`).
        source: Hugging Face id or path of the backbone; for an embedded one, where it came from.
        identity: SHA-256 of the weights and architecture that the head was trained on.
        base_identity: the same for ``source`` before the delta is applied; None without a delta.
        model_type: Hugging Face's name of the architecture, such as ``dinov3_vit``.
        layers: 0-based blocks (ViT) or stages, in the order the head reads them.
        feature_norm, class_token, output_stride: see `dinov3_seg_ros.model.weights.load_backbone`.
        channels, strides: of each of these maps.
        multiple: what the network's height and width must be multiples of.
    """

    storage: Literal["embedded", "reference", "delta"]
    source: Prose
    identity: str
    base_identity: str | None = None
    model_type: str
    layers: list[int]
    feature_norm: Literal["final", "none"]
    class_token: bool = False
    output_stride: int | None = None
    channels: list[int]
    strides: list[int]
    multiple: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _describes_each_map(self) -> BackboneSection:
        if not len(self.layers) == len(self.channels) == len(self.strides):
            raise ValueError("layers, channels and strides are not equally many")
        return self


class InputSection(_Section):
    """How a frame becomes the network's input: see `dinov3_seg_ros.frames.preprocessing`. Mean and std are in 0..1.

    Attributes:
        value_range: which values of 16-bit images were black and white in training, where its recipe said so; auto:
            those of the sensor.
    """

    network_size: tuple[int, int]
    geometry: str
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Deviation, _Deviation, _Deviation]
    value_range: ValueRange = "auto"


class HeadSection(_Section):
    """Which head it is.

    Attributes:
        name, variant, options: the arguments of `dinov3_seg_ros.model.heads.build_head`.
        reads_images: whether the head is image-guided: it reads the network input beside the maps.
    """

    name: str
    variant: str | None = None
    options: dict[str, Any] = {}
    reads_images: bool = False


class CalibrationSection(_Section):
    """The temperature that was fitted to the head; its weights hold it already.

    Attributes:
        temperature: what the logits of the training were divided by, in all calibrations together.
        data: name of the data set.
        split: its part that the temperature was fitted on.
        images, pixels: how many of them the fit saw.
        ece_before, ece: expected calibration error of these pixels before the last calibration and after it, 0..1.
    """

    temperature: PositiveFloat
    data: str
    split: str
    images: int
    pixels: int
    ece_before: float
    ece: float


class TrainingSection(_Section):
    """How the weights were trained, for people to read; nothing on the robot depends on it."""

    recipe: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    git_revision: str | None = None


class Manifest(_Section):
    """The content of ``bundle.json``.

    Attributes:
        name: a ROS name token; the topics of a second head, and of those after it, are named by it.
        description: one line for people.
        masks: how the mask files of the training data hold the classes; None where they hold the class ids, or the
            labels were no mask files.
        calibration: how the confidence was calibrated; None where it was not.
        licences: what the weights are subject to, one line each.
        files: SHA-256 of every other file, by its path in the bundle; `saving.save_bundle` fills it in.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: BundleName
    description: Prose = ""
    backbone: BackboneSection
    input: InputSection
    classes: ClassesSection
    masks: MaskValues | None = None
    head: HeadSection
    calibration: CalibrationSection | None = None
    training: TrainingSection = TrainingSection()
    licences: list[Prose] = []
    files: dict[str, str] = {}


def required_files(manifest: Manifest) -> list[str]:
    """Paths, in the bundle, of the weights that a bundle of this manifest must hold."""
    return {
        "embedded": [HEAD_FILE, f"{BACKBONE_FOLDER}/config.json", f"{BACKBONE_FOLDER}/model.safetensors"],
        "reference": [HEAD_FILE],
        "delta": [HEAD_FILE, DELTA_FILE],
    }[manifest.backbone.storage]


def other_version(content: Any, read: int, written: str, again: str) -> str:
    """Why this release does not read a JSON file, and what to do; empty where it does.

    Args:
        content: of the file.
        read: the ``schema_version`` that this release reads.
        written: what the file describes.
        again: how to make that anew.
    """
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found == read:
        return ""
    fault = f"schema_version is {found!r}, this release reads {read}"
    return f"{fault}; install the release that wrote the {written}, or {again}"


def first_problem(error: ValidationError, *remedies: str) -> str:
    """The first field of a JSON file that is wrong, and what to do."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if any(other["type"] == "extra_forbidden" for other in error.errors()):
        remedies = ("a newer release may have written this file: install that", *remedies)
    fault = f"{where}: {problem['msg']}" if where else problem["msg"]
    return f"{fault}; {', or '.join(remedies)}" if remedies else fault
