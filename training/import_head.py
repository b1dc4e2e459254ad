"""Import a head of dinov3_ros as a bundle.

``python -m training.import_head MODEL.pth CLASS_NAMES.txt --backbone SOURCE --output FOLDER``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_seg_ros.bundle.manifest import InputSection, Manifest, TrainingSection, checked_bundle_name
from dinov3_seg_ros.frames.classes import ClassesSection, default_palette
from dinov3_seg_ros.frames.preprocessing import check_geometry
from dinov3_seg_ros.support.command_line import CommandParser, run_command, whole_number
from dinov3_seg_ros.support.errors import HeadError
from training.support.writing import new_folder, writing

if TYPE_CHECKING:
    from dinov3_seg_ros.bundle.loading import Bundle

_DEFAULT_BACKBONE = "facebook/dinov3-vits16plus-pretrain-lvd1689m"
_LICENCES = (
    "The head published by https://github.com/Raessan/semantic_segmentation_dinov3 is Copyright 2025 Rafael "
    "Escarabajal, Apache-2.0.",
    "The backbone is not part of this bundle. DINOv3's weights are subject to the DINOv3 License by Meta.",
)


def import_head(
    weights: Path,
    class_names: Path,
    backbone_source: str,
    output: Path,
    name: str = "dinov3_ros",
    network_size: tuple[int, int] | None = None,
) -> Bundle:
    """Write a bundle whose logits equal those of the published module before its interpolation.

    dinov3_ros enlarges logits to half of the image's size, then to all of it. A bundle's logits are decoded in one
    step, so labels at borders differ by pixels.

    Args:
        weights, class_names: the files of dinov3_ros.
        backbone_source: the backbone that the head was trained on; see `dinov3_seg_ros.model.weights.load_backbone`.
            The bundle refers to it.
        output: the bundle's folder; must be new or empty.
        name: of the bundle.
        network_size: (height, width), pixels; None: that of the published head.

    Raises:
        HeadError: the files do not hold such a head, or the backbone does not fit it.
        BackboneError: the backbone's weights are absent or damaged.
        ParameterError: the network size does not fit the backbone.
        OutputError: the folder holds something, or cannot be written.
    """
    from dinov3_seg_ros.bundle.saving import describe_backbone, describe_head, save_bundle
    from dinov3_seg_ros.model.identity import backbone_identity
    from dinov3_seg_ros.model.weights import load_backbone
    from training import dinov3_ros
    from training.recipes.resolve import lasting

    network_size = network_size or dinov3_ros.NETWORK_SIZE
    with new_folder(output):
        names = dinov3_ros.read_class_names(class_names)
        head = dinov3_ros.read_head(weights, len(names))
        backbone = load_backbone(backbone_source)
        if (backbone.channels, backbone.strides) != (head.in_channels, head.strides):
            raise HeadError(
                f"{weights} reads a map of {head.in_channels[0]} channels and stride {head.strides[0]}; the last of "
                f"the backbone {backbone_source} has {backbone.channels[0]} and {backbone.strides[0]}. The published "
                f"head belongs to {_DEFAULT_BACKBONE}"
            )
        check_geometry(dinov3_ros.GEOMETRY, network_size, backbone.patch_multiple)
        manifest = Manifest(
            name=name,
            description=(
                f"Head of semantic_segmentation_dinov3 with {len(names)} classes, imported from {weights.name}."
            ),
            backbone=describe_backbone(
                backbone, storage="reference", source=lasting(backbone_source), identity=backbone_identity(backbone)
            ),
            input=InputSection(
                network_size=network_size, geometry=dinov3_ros.GEOMETRY, mean=dinov3_ros.MEAN, std=dinov3_ros.STD
            ),
            classes=ClassesSection(names=names, palette=default_palette(len(names))),
            head=describe_head(head, dinov3_ros.HEAD, dinov3_ros.VARIANT),
            training=TrainingSection(recipe={"imported": dinov3_ros.origin(weights)}),
            licences=list(_LICENCES),
        )
        with writing(output):
            return save_bundle(output, manifest, head.state_dict())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = CommandParser("training.import_head", __doc__)
    parser.add_argument("weights", type=Path, metavar="MODEL.pth", help="the head's weights")
    parser.add_argument("class_names", type=Path, metavar="CLASS_NAMES.txt", help="one name a line")
    parser.add_argument(
        "--backbone",
        default=_DEFAULT_BACKBONE,
        metavar="SOURCE",
        help="the backbone the head was trained on: Hugging Face id, folder or Meta's .pth file (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the bundle; must be new or empty")
    parser.add_argument("--name", type=_bundle_name, default="dinov3_ros", help="of the bundle (default: %(default)s)")
    parser.add_argument(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="network size, pixels (default: that of the published head, 640 640)",
    )

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        size = options.size and tuple(options.size)
        bundle = import_head(options.weights, options.class_names, options.backbone, options.output, options.name, size)
        print(f"bundle '{options.name}' with {len(bundle.manifest.classes.names)} classes in {bundle.path}")

    return run_command(parser, work, arguments)


def _bundle_name(word: str) -> str:
    try:
        return checked_bundle_name(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
