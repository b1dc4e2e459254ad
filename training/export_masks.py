"""Write labels as masks of class ids: ``python -m training.export_masks DATA [--output FOLDER]``.

DATA is a folder that a labelling tool exported, or a recipe. Each image gets a PNG file of its own name, as training
reads its labels: 8 bits up to 255 classes, else 16; 255 or 65535 where a pixel belongs to no class. ``classes.yaml``
names the classes. ``python -m dinov3_seg_ros.bag insert`` puts such masks back into a recording.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field
from rich.console import Console
from rich.progress import track

from dinov3_seg_ros.bag.truth import CLASSES_FILE
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.support.command_line import run_command
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import check_outside, replacing_folder
from training.data.grouping import source_of
from training.data.labelled_folder import AutoData, FolderData, LabelledFolderData
from training.data.labelled_images import LabelledImages
from training.recipes.loading import DATA_HELP, load_data
from training.recipes.overrides import SettingsParser, apply_overrides
from training.support.section import Section
from training.support.text import say
from training.support.writing import add_output, new_folder, writing


class MaskSettings(Section):
    """The settings that the command line can change."""

    data: Annotated[AutoData | FolderData, Field(discriminator="name")]


def export_masks(data: LabelledImages, folder: Path, console: Console) -> None:
    """Write the masks of all items, and the names of the classes; the whole folder or nothing.

    A version of an image that Roboflow made gets the name of that image.

    Args:
        data: the labels.
        folder: made; see `writing.new_folder`.
        console: shows the progress if it is a terminal.

    Raises:
        DatasetError: an item cannot be read, or two have the same name.
        OutputError: the folder cannot be written.
    """
    names = [source_of(sample.image.stem) for sample in data.samples]
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            raise DatasetError(
                f"{data.describe(first[name])} and {data.describe(index)} would have the same mask {name}.png; rename "
                "one of them, or export the data set without augmented versions"
            )
    with writing(folder), replacing_folder(folder) as temporary:
        indices = track(range(len(data)), "writing", console=console, disable=not console.is_terminal)
        for index in indices:
            _, mask = data.item(index)
            write_picture(temporary / f"{names[index]}.png", mask, durable=False)
        text = yaml.safe_dump(data.class_names, allow_unicode=True)
        (temporary / CLASSES_FILE).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.export_masks",
        __doc__,
        "DATA [--output FOLDER] [--data.key value ...]",
        MaskSettings,
        lambda options, overrides: _read_settings(options.data, overrides),
    )
    parser.add_argument("data", metavar="DATA", help=f"folder of images and labels; or {DATA_HELP}")
    add_output(parser, "masks")

    def work(words: list[str]) -> None:
        options, overrides = parser.parse_settings(words)
        section, console = _read_settings(options.data, overrides).data, Console(markup=False)
        with new_folder(options.output):
            check_outside(options.output, section.root)
            for line in section.found(all_splits=True).lines():
                say(console, line)
            data = section.open_all()
            export_masks(data, options.output, console)
        say(console, f"{len(data)} masks of {len(data.class_names)} classes written to {options.output}")

    return run_command(parser, work, arguments, "nothing was written")


def _read_settings(source: str, overrides: Sequence[str]) -> MaskSettings:
    """The settings of a folder or of a recipe.

    Raises:
        RecipeError: there is neither.
        DatasetError: the recipe's data set is a published one.
    """
    if Path(source).is_dir():
        return apply_overrides(MaskSettings(data=AutoData(root=source)), overrides)
    section = load_data(source).data
    if not isinstance(section, LabelledFolderData):
        raise DatasetError(
            f"the recipe {source} is for the data set '{section.name}', which comes with masks; give a recipe with "
            "data.name auto or folder, or a folder"
        )
    return apply_overrides(MaskSettings.model_validate({"data": section}), overrides)


if __name__ == "__main__":
    sys.exit(main())
