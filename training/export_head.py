"""Write a bundle's head in the form of another project.

``python -m training.export_head BUNDLE --format dinov3_ros --output FOLDER``
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.model.heads import Head
from dinov3_seg_ros.support.command_line import CommandParser, run_command
from dinov3_seg_ros.support.files import replacing_folder
from training.dinov3_ros import write_plugin
from training.support.writing import new_folder, writing

Writer = Callable[[Manifest, Head, Path], list[str]]

#: Name of a form -> function that writes the head's files into a folder and returns advice, or raises ExportError.
FORMATS: dict[str, Writer] = {"dinov3_ros": write_plugin}


def export_head(bundle: Bundle, form: str, folder: Path) -> list[str]:
    """Write the files of a bundle's head, all of them or none.

    Args:
        bundle: has the head.
        form: a key of `FORMATS`.
        folder: must be new or empty.

    Returns:
        Instructions and warnings for the user.

    Raises:
        ExportError: the head cannot take that form.
        BundleError: its weights cannot be read.
        OutputError: the folder holds something, or cannot be written.
    """
    with new_folder(folder), writing(folder), replacing_folder(folder) as temporary:
        return FORMATS[form](bundle.manifest, bundle.load_head(), temporary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = CommandParser("training.export_head", __doc__)
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("--format", choices=FORMATS, required=True, help="the other project")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must be new or empty")

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        advice = export_head(load_bundle(options.bundle), options.format, options.output)
        print(f"written to {options.output}", *advice, sep="\n")

    return run_command(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
