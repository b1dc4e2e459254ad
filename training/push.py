"""Share a bundle on Hugging Face: ``python -m training.push BUNDLE OWNER/NAME [--private] [--revision BRANCH]``.

Robots then take it by its name: ``bundle:=OWNER/NAME``. A bundle on a gated backbone, such as Meta's, is shared as its
head alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.filesize import decimal

from dinov3_seg_ros.bundle.hub import HubId, parse_hub_id
from dinov3_seg_ros.bundle.loading import BUNDLE_HELP, load_bundle
from dinov3_seg_ros.support.command_line import CommandParser, UsageError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = CommandParser("training.push", "Share a bundle on Hugging Face.")
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; made where it is absent")
    parser.add_argument("--private", action="store_true", help="only the owner and those whom they let in can read it")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch; made where it is absent (default: main)")
    parser.add_argument(
        "--licence",
        metavar="NAME",
        help="what the weights are subject to, such as apache-2.0, beside the recipe's notes",
    )
    parser.add_argument(
        "--backbone", metavar="ID", help="id of the backbone on Hugging Face, where the bundle names a path"
    )
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="leave out your images: the run's pictures, and exports made with --images, which hold two of them",
    )

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        hub_id = parse_hub_id(options.repository)
        if hub_id is None or (hub_id.revision and options.revision):
            raise UsageError(
                f"'{options.repository}' is no repository of the form OWNER/NAME; --help lists all options"
            )
        from training.sharing.shareable import prepare
        from training.sharing.upload import push

        hub_id = HubId(hub_id.repository, options.revision or hub_id.revision)
        bundle = load_bundle(options.bundle)
        shared = prepare(bundle, options.backbone, options.licence, pictures=not options.no_pictures)
        commit = push(shared, hub_id, options.private)
        size = decimal(sum(path.stat().st_size for path in shared.files.values()))
        print(f"{bundle.path}: {len(shared.files)} files, {size}, are in https://huggingface.co/{hub_id.repository}")
        print(*shared.notes, f"load it with bundle:={hub_id}, this very one with bundle:={hub_id.repository}@{commit}",
              sep="\n")  # fmt: skip

    return run_command(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
