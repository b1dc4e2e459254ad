"""Find faults in the data of a recipe: ``python -m training.check_dataset RECIPE [--data.key value ...]``.

Every image and every mask is read once, as training reads them.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dinov3_seg_ros.support.command_line import DONE, FAILED, run_command, whole_number
from dinov3_seg_ros.support.cpu import usable_cores
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.files import write_json
from training.checks.findings import Findings, check_pseudo_labels, check_split
from training.checks.problems import find_problems, remedy_of
from training.data import DataSection, Found, Split
from training.data.pseudo_labels import JoinedImages
from training.recipes.loading import DATA_HELP, load_data
from training.recipes.overrides import SettingsParser
from training.recipes.schema import Recipe, RecipeData
from training.support.text import percent, say
from training.support.writing import writing

#: How many problems of each kind are printed.
NAMED = 5


def findings_table(splits: Mapping[Split, Findings]) -> Table:
    """A table of the pixels and images of each class."""
    table = Table("id", "class", *(f"{split} {what}" for split in splits for what in ("pixels", "images")))
    for column in table.columns[2:]:
        column.justify = "right"
    class_names = next((findings.class_names for findings in splits.values() if findings.class_names), [])
    for index, name in enumerate(class_names):
        cells = [cell for findings in splits.values() for cell in _class_cells(findings, index)]
        table.add_row(str(index), name, *cells)
    return table


def as_json(found: Found, splits: Mapping[Split, Findings], problems: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What was found, in JSON types: kind of data, pixels of each class by split, and problems."""
    return {
        "found": found.kind,
        "sure": found.sure,
        "why": found.why,
        "notes": [*found.notes, *(f"{split}: {note}" for split, own in splits.items() for note in own.notes())],
        "splits": {
            split: {
                "images": findings.readable,
                "pixels": dict(zip(findings.class_names, findings.pixels.tolist(), strict=True)),
                "ignored": findings.ignored,
            }
            for split, findings in splits.items()
        },
        "problems": [f"{kind}: {description}" for kind, told in problems.items() for description in told],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where there are problems."""
    parser = SettingsParser(
        "training.check_dataset",
        "Read all data of a recipe and report what is wrong with it before training does.",
        "RECIPE [--data.key value ...] [--allow-empty] [--threads N] [--json FILE]",
        Recipe,
        lambda options, overrides: load_data(options.recipe, overrides),
    )
    parser.add_argument("recipe", metavar="RECIPE", help=DATA_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for what was found")
    parser.add_argument("--allow-empty", action="store_true", help="accept classes that training never sees")
    parser.add_argument(
        "--threads", type=whole_number(1), default=usable_cores(), metavar="N", help="items read at once"
    )

    def work(words: list[str]) -> int:
        options, overrides = parser.parse_settings(words)
        console, recipe = Console(markup=False), load_data(options.recipe, overrides)
        found = _found(recipe.data)
        _print_found(found, console)
        names: tuple[Split, ...] = typing.get_args(Split)
        splits = {split: check_split(recipe.data, split, options.threads, console) for split in names}
        if splits["test"].count == splits["test"].unlabelled:  # few data sets have one, or its labels
            del splits["test"]
        taught = _check_pseudo_labels(recipe, options.threads, console)
        problems = find_problems(splits, taught, options.allow_empty)
        if any(findings.readable for findings in splits.values()):
            console.print(findings_table(splits))
        _print_findings(splits, console)
        _print_problems(problems, console)
        if options.json is not None:
            with writing(options.json):
                write_json(options.json, as_json(found, splits, problems))
        return FAILED if problems else DONE

    return run_command(parser, work, arguments)


def _found(section: DataSection) -> Found:
    """What lies in the folder; where it cannot be told, `check_split` reports why."""
    try:
        return section.found()
    except DatasetError:
        return Found("unknown", "not at all", "see the problems")


def _check_pseudo_labels(recipe: RecipeData | Recipe, threads: int, console: Console) -> Findings | None:
    """Read the images that a teacher labelled; None where the recipe has none, or `check_split` reports why.

    Raises:
        DatasetError: see `PseudoLabels.join`.
    """
    try:
        labelled = recipe.data.open("train")
    except DatasetError:
        return None
    data = recipe.pseudo_labels.join(labelled, recipe.data.robot_value_range())
    return check_pseudo_labels(data.taught, threads, console) if isinstance(data, JoinedImages) else None


def _print_found(found: Found, console: Console) -> None:
    for line in found.lines():
        say(console, line)


def _class_cells(findings: Findings, index: int) -> tuple[str, str]:
    if not findings.class_names:
        return "", ""
    total = int(findings.pixels.sum())
    return percent(int(findings.pixels[index]) / total if total else None), str(findings.images[index])


def _print_findings(splits: Mapping[Split, Findings], console: Console) -> None:
    for split, findings in splits.items():
        ignored = percent(findings.ignored / findings.total if findings.total else None)
        say(console, f"{split}: {findings.readable} images, ignored pixels {ignored}")
        for note in findings.notes():
            say(console, f"note: {split}: {note}")
        if split != "train" and findings.readable and findings.never_occurring():
            names = ", ".join(findings.never_occurring())
            say(console, f"{split} never shows these classes, so that their IoU is undefined: {names}")


def _print_problems(problems: dict[str, list[str]], console: Console) -> None:
    for kind, told in problems.items():
        say(console, f"{kind}: {len(told)}", "red")
        for description in told[:NAMED]:
            say(console, f"  {description}")
        if len(told) > NAMED:
            say(console, f"  and {len(told) - NAMED} more")
        if remedy_of(kind):
            say(console, f"  {remedy_of(kind)}")
    if not problems:
        say(console, "no problem found", "green")


if __name__ == "__main__":
    sys.exit(main())
