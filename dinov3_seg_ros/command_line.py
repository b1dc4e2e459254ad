"""What all commands share: flags made from the options, one error line, and exit codes.

Exit codes: 0, done; 1, could not be done (one line on standard error says why, and what to do); 2, the command line is
wrong; 130, interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from dinov3_seg_ros.options import Option, Options, describe_options, select
from dinov3_seg_ros.support.errors import ParameterError, SegmentationError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

AnyOptions = TypeVar("AnyOptions", bound=Options)


def run_command(name: str, work: Callable[[], int | None], note: str = "") -> int:
    """Run a command's work; return its exit code.

    Args:
        name: of the command, for the error line.
        work: does it; returns an exit code, or None for 0.
        note: what to say when the user interrupts it.
    """
    try:
        return work() or DONE
    except SegmentationError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted{f'; {note}' if note else ''}", file=sys.stderr)
        return INTERRUPTED


def command_parser(name: str, documentation: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m NAME``, described by the first line of its module's documentation."""
    description = (documentation or "").strip().splitlines()[0]
    return argparse.ArgumentParser(prog=f"python -m {name}", description=description, allow_abbrev=False)


def add_flags(parser: argparse.ArgumentParser, model: type[Options], leave_out: Collection[str] = ()) -> None:
    """Add a flag for each option of a model: ``max_batch`` becomes ``--max-batch``.

    Args:
        parser: gets the flags.
        model: the options.
        leave_out: names of options that the command does not take.
    """
    group = parser.add_argument_group(f"{model.__name__.removesuffix('Options').lower()} options")
    for option in describe_options(model).values():
        if option.name not in leave_out:
            group.add_argument(f"--{option.name.replace('_', '-')}", **_argument(option))


def read_flags(model: type[AnyOptions], arguments: argparse.Namespace) -> AnyOptions:
    """The options that a parsed command line holds; what it lacks has its default.

    Raises:
        ParameterError: a value cannot be used; the message names the flag.
    """
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    texts = [option.name for option in describe_options(model).values() if option.kind in ("texts", "size")]
    try:
        return select(model, {n: tuple(value) if n in texts else value for n, value in given.items()})
    except ParameterError as error:
        words = str(error).split(" ", 1)
        name, colon = words[0].rstrip(":"), ":" if words[0].endswith(":") else ""
        if name in model.model_fields:
            raise ParameterError(f"--{name.replace('_', '-')}{colon} {words[1]}") from error
        raise


def _argument(option: Option) -> dict[str, Any]:
    """Keyword arguments of `argparse.ArgumentParser.add_argument`."""
    shown = "" if option.default in (None, "", ()) else f" (default: {option.default})"
    found: dict[str, Any] = {"help": f"{option.description}{shown}".replace("%", "%%"), "default": None}
    if option.kind == "bool":
        found["action"] = argparse.BooleanOptionalAction
        return found
    if option.choices:
        found["choices"] = option.choices
    if option.kind == "size":
        found |= {"nargs": 2, "type": int, "metavar": ("HEIGHT", "WIDTH")}
    elif option.kind == "texts":
        found |= {"nargs": "+", "metavar": option.name.rstrip("s").upper()}
    elif option.kind in ("int", "float"):
        found |= {"type": int if option.kind == "int" else float, "metavar": "NUMBER"}
    elif not option.choices:
        found["metavar"] = option.name.rpartition("_")[2].upper()
    return found
