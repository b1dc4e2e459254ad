"""Find what keeps an installation from its first mask, and name one remedy for each finding.

``python -m dinov3_seg_ros.doctor [BUNDLE ...] [--clean]``
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from dinov3_seg_ros.doctor import communication, computing, installation
from dinov3_seg_ros.doctor.findings import FAULT, OK, Finding, surviving
from dinov3_seg_ros.doctor.integrity import bundles_and_exports
from dinov3_seg_ros.ros.shared_memory import SHARED_MEMORY, remove_dead_segments
from dinov3_seg_ros.support.command_line import DONE, FAILED, CommandParser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where there is a fault."""
    parser = CommandParser("dinov3_seg_ros.doctor", __doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="bundles to check (default: the demo)")
    parser.add_argument(
        "--clean", action="store_true", help=f"first remove what killed processes left in {SHARED_MEMORY}"
    )

    def work(words: list[str]) -> int:
        options = parser.parse_command(words)
        if options.clean:
            for path in remove_dead_segments():
                print(f"removed  {path}")
        faults = 0
        for finding in examine(options.bundles):
            _print(finding)
            faults += finding.level == FAULT
        print(f"\n{faults or 'no'} fault{'' if faults == 1 else 's'}")
        return FAILED if faults else DONE

    return run_command(parser, work, arguments)


def examine(bundles: Sequence[Path] = ()) -> Iterator[Finding]:
    """Check everything; ``bundles`` default to the demo's."""
    yield Finding(OK, "Python", f"{platform.python_version()} ({sys.executable})")
    checks = (
        installation.packages,
        installation.conflicts,
        installation.executable,
        installation.ros,
        communication.transport,
        communication.shared_memory,
        partial(computing.runtimes, bundles),
        partial(computing.providers, bundles),
        computing.stores,
        computing.engines,
        computing.decoders,
        partial(bundles_and_exports, bundles),
    )
    yield from surviving(checks)


def _print(finding: Finding) -> None:
    print(f"{finding.level:<8} {finding.subject:<24} {finding.detail}")
    if finding.remedy:
        print(f"{'':<8} {'':<24} -> {finding.remedy}")


if __name__ == "__main__":
    sys.exit(main())
