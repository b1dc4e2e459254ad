"""The command line of every command that can divide its work among many processes."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import NamedTuple

from dinov3_seg_ros.support.command_line import CommandParser, UsageError, whole_number

_NEED_CLUSTER = ("processes", "partition", "resume")
_PARTITION = 64


class ClusterSettings(NamedTuple):
    """How work is divided.

    Attributes:
        address: of a Ray cluster; auto: Ray is started on this machine, and ended with the command.
        processes: their number; None: one for each GPU, or for each group of cores.
        partition: frames in one partition, about.
        resume: whether to go on with what the output folder holds.
    """

    address: str
    processes: int | None
    partition: int
    resume: bool


def add_cluster_arguments(parser: CommandParser, leave_out: Collection[str] = ()) -> None:
    """Add how work is divided.

    Args:
        parser: gets the options.
        leave_out: those that the command does not take.
    """
    group = parser.add_argument_group("cluster options")
    for flag, settings in {
        "--cluster": {
            "metavar": "auto|ADDRESS",
            "help": "divide the work among processes: on this machine, or on the Ray cluster with this address",
        },
        "--processes": {
            "type": whole_number(1),
            "metavar": "NUMBER",
            "help": "processes (default: one for each GPU; without GPUs, one for each four cores)",
        },
        "--partition": {
            "type": whole_number(1),
            "metavar": "FRAMES",
            "help": "frames that are done whole or not at all (default: 64)",
        },
        "--resume": {"action": "store_true", "help": "go on with an interrupted run in the output folder"},
    }.items():
        if flag not in leave_out:
            parser.remember(group.add_argument(flag, **settings))  # type: ignore[arg-type]


def read_cluster_arguments(options: argparse.Namespace) -> ClusterSettings | None:
    """How work is divided; None where it is not.

    Raises:
        UsageError: options of a cluster without one.
    """
    if options.cluster is None:
        given = [name for name in _NEED_CLUSTER if getattr(options, name, None)]
        if given:
            raise UsageError(f"--{given[0]} belongs to --cluster; add --cluster auto for processes on this machine")
        return None
    resume = getattr(options, "resume", False)
    return ClusterSettings(options.cluster, options.processes, options.partition or _PARTITION, resume)
