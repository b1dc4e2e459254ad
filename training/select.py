"""Choose the images to label next: ``python -m training.select IMAGES --bundle BUNDLE --count N``.

IMAGES is a folder of images, with its subfolders, or a recording (rosbag2). The chosen ones go to FOLDER/images, with
their names; selection.json says why each was chosen, and contact_sheet.png shows them. Images that are labelled already
(``--labelled``) count as chosen. With ``--backbone`` in place of ``--bundle`` no label is needed at all: the images are
chosen by what they look like. ``--target`` names images of where the head will be used, and the images that help most
there are chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.frames.image_files import read_image
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.support.command_line import (
    DONE,
    FAILED,
    CommandParser,
    UsageError,
    run_command,
    whole_number,
)
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import check_outside, write_json
from training.data.image_values import image_values
from training.data.reading.tree import SELECTION_FILE, SHEET_FILE
from training.reports.contact_sheet import thumbnail_of, write_contact_sheet
from training.support.text import say
from training.support.writing import add_output, new_folder, writing
from training.unlabelled.arguments import add_image_arguments, open_with_target
from training.unlabelled.images import UnlabelledImages
from training.unlabelled.labelled import Labelled, find_labelled
from training.unlabelled.strategies import AUTO, STRATEGIES, Choice, choose, resolved

if TYPE_CHECKING:
    from training.unlabelled.description import Description, Pool
    from training.unlabelled.network import Network

IMAGES = "images"
_NETWORK_SIZE = (448, 448)


@dataclass
class Described:
    """All images that were looked at.

    Attributes:
        pool: their descriptions; first those with labels, last the target images.
        names: of the images to choose among, in the order of the pool.
        labelled, target: number of images with labels, and of target images.
        known: number of images that were left out because they are labelled already.
    """

    pool: Pool
    names: list[str]
    labelled: int = 0
    target: int = 0
    known: int = 0


def look_at_all(
    images: UnlabelledImages, labelled: Labelled, target: UnlabelledImages | None, network: Network, console: Console
) -> Described:
    """Describe all images. Of those to choose among, what equals a labelled one, pixel by pixel, is left out.

    Raises:
        DatasetError: a labelled image cannot be read, no image is left to choose, or no target image can be read.
    """
    from training.unlabelled.description import describe, make_pool

    descriptions: list[Description] = []
    scale = ValueScale(network.network_input.value_range, ends=image_values(labelled.images).ends)
    hidden = not console.is_terminal
    for sample in track(labelled.images, "labelled images", console=console, disable=hidden):
        descriptions.append(describe(network.look(read_image(sample.source(), scale))))
    names: list[str] = []
    skipped = 0
    for image in track(images.take(), "images", total=len(images), console=console, disable=hidden):
        if labelled.has(image.pixels, image.file):
            skipped += 1
            continue
        descriptions.append(describe(network.look(image.pixels)))
        names.append(image.name)
    count, seen = len(labelled.images), len(descriptions)
    if not names:
        unreadable = next(iter(images.unreadable.values()), "")
        reason = f"{skipped} are labelled already, {len(images.unreadable)} cannot be read"
        raise DatasetError(f"no image is left to choose: {reason}{f' ({unreadable})' if unreadable else ''}")
    if target is not None:
        for image in track(target.take(), "target images", total=len(target), console=console, disable=hidden):
            descriptions.append(describe(network.look(image.pixels)))
        if len(descriptions) == seen:
            reason = next(iter(target.unreadable.values()), "there is none")
            raise DatasetError(f"no target image can be read ({reason})")
    classes = network.classes.names if network.classes is not None else ()
    places = np.arange(len(descriptions))
    pool = make_pool(descriptions, places < count, classes, places >= seen)
    return Described(pool, names, count, len(descriptions) - seen, skipped)


def write_selection(
    output: Path, images: UnlabelledImages, described: Described, choices: Sequence[Choice], about: dict[str, Any]
) -> None:
    """Write the chosen images, the contact sheet and, last, selection.json.

    Args:
        output: folder.
        images: their source.
        described: see `look_at_all`.
        choices: from `strategies.choose`.
        about: what else selection.json says.

    Raises:
        OutputError: something cannot be written.
        DatasetError: the source cannot be read any more.
    """
    names = [described.names[choice.image - described.labelled] for choice in choices]
    small: dict[str, np.ndarray] = {}
    for image in images.take(set(names)):
        image.copy_to(output / IMAGES / image.name)
        small[image.name] = thumbnail_of(image.pixels)
    gone = [name for name in names if name not in small]
    if gone:
        raise DatasetError(f"{gone[0]} could be read before and no longer can; start again when nothing writes there")
    rows = list(_rows(names, choices, described.pool))
    captions = [(f"{row['rank']}: {row['image']}", row["why"]) for row in rows]
    if rows:
        pictures = [(small[name], caption) for name, caption in zip(names, captions, strict=True)]
        write_contact_sheet(pictures, output / SHEET_FILE)
    with writing(output):
        write_json(output / SELECTION_FILE, {**about, "chosen": rows})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where an image could not be read."""
    parser = CommandParser("training.select", __doc__)
    add_image_arguments(parser)
    parser.add_argument("--count", type=whole_number(1), required=True, metavar="N", help="how many images to choose")
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="folder of a bundle, or a shipped one's name")
    parser.add_argument(
        "--backbone", metavar="SOURCE", help="instead of a bundle: a backbone, as a recipe's backbone.source"
    )
    parser.add_argument(
        "--network-size",
        type=whole_number(1),
        nargs=2,
        default=_NETWORK_SIZE,
        metavar=("HEIGHT", "WIDTH"),
        help="of the network input with --backbone, pixels (default: 448 448)",
    )
    parser.add_argument(
        "--labelled", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of images that have labels"
    )
    parser.add_argument(
        "--target",
        metavar="IMAGES",
        help="folder, image or recording, without labels, of where the head will be used: choose what helps there",
    )
    parser.add_argument(
        "--target-topics", nargs="+", default=[], metavar="TOPIC", help="of the target's recording (default: --topics)"
    )
    parser.add_argument(
        "--strategy",
        default=AUTO,
        metavar="NAME",
        help=f"{AUTO} (class_coverage with a bundle; else coverage with a target, typical without), "
        f"{', '.join(STRATEGIES)}",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of random numbers (default: 0)")
    add_output(parser, "selection")
    return run_command(
        parser, lambda words: _select(parser.parse_command(words)), arguments, "no selection was written"
    )


def _select(options: argparse.Namespace) -> int:
    """Choose what the command line asks for; return the exit code."""
    if (options.bundle is None) == (options.backbone is None):
        raise UsageError("give either --bundle or --backbone")
    strategy = resolved(options.strategy, options.bundle is not None, options.target is not None)
    with new_folder(options.output):
        return _select_into_folder(options, strategy)


def _select_into_folder(options: argparse.Namespace, strategy: str) -> int:
    """Choose by a strategy, write what was chosen, and print where; return the exit code."""
    from training.unlabelled.network import Network

    for source in (options.images, options.target, *options.labelled):
        if source is not None:
            check_outside(options.output, source)
    console = Console(markup=False)
    if options.bundle is not None:
        network = Network.of_bundle(options.bundle)
    else:
        network = Network.of_backbone(options.backbone, tuple(options.network_size))
    images, target = open_with_target(options, network.network_input.value_range)
    labelled = find_labelled(options.labelled, network.network_input.value_range)
    for note in labelled.notes:
        say(console, f"note: {note}")
    described = look_at_all(images, labelled, target, network, console)
    choices = choose(strategy, described.pool, options.count, options.seed)
    unreadable = dict(images.unreadable)
    unreadable_target = {} if target is None else dict(target.unreadable)
    about = {
        "input": str(options.images),
        "bundle": None if options.bundle is None else str(options.bundle),
        "backbone": options.backbone,
        "strategy": strategy,
        "seed": options.seed,
        "looked_at": len(described.names),
        "labelled": described.labelled,
        "already_labelled": described.known,
        "target": options.target,
        "target_images": described.target,
        "unreadable": unreadable,
        "unreadable_target": unreadable_target,
    }
    write_selection(options.output, images, described, choices, about)
    for what, reasons in (("skipped", unreadable), ("skipped target image", unreadable_target)):
        for name, reason in reasons.items():
            print(f"{what}: {name}: {reason}", file=sys.stderr)
    say(
        console,
        f"{len(choices)} of {len(described.names)} images chosen by {strategy}"
        f"{f' for {described.target} target images' if target is not None else ''}, beside {described.labelled} "
        f"labelled ones; written to {options.output}",
    )
    return FAILED if unreadable or unreadable_target else DONE


def _rows(names: Sequence[str], choices: Sequence[Choice], pool: Pool) -> Iterator[dict[str, Any]]:
    """What selection.json says of each chosen image."""
    for rank, (name, choice) in enumerate(zip(names, choices, strict=True), 1):
        row = {"rank": rank, "image": name, "score": choice.score, "why": choice.why}
        if pool.margin is not None:
            row["uncertainty"] = float(pool.margin[choice.image])
        yield row


if __name__ == "__main__":
    sys.exit(main())
