"""Print the model card of a bundle: ``python -m training.bundle_info BUNDLE [--json FILE]``.

In a file or a pipe the card is Markdown: ``python -m training.bundle_info BUNDLE > MODEL_CARD.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, load_bundle
from dinov3_seg_ros.support.command_line import CommandParser, run_command
from dinov3_seg_ros.support.files import write_json
from training.reports.model_card import card, describe
from training.support.writing import writing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = CommandParser("training.bundle_info", "Print the model card of a bundle.")
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what it says as JSON")

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        console, description = Console(markup=False), describe(load_bundle(options.bundle))
        if options.json is not None:
            with writing(options.json):
                write_json(options.json, description)
        text = card(description)
        if console.is_terminal:
            console.print(Markdown(text))
        else:
            print(text, end="")

    return run_command(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
