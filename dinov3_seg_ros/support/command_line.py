"""What all commands share: one way to read the command line, one error line, and exit codes.

Exit codes: 0, done; 1, could not be done; 2, the command line is wrong; 130, interrupted by Ctrl-C, SIGTERM or SIGHUP.
For 1 and 2, one line on standard error says what is wrong and what to do: ``NAME: error: ...``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dinov3_seg_ros.support.errors import ParameterError, SegmentationError, nearest, one_line, utf8_fault

if TYPE_CHECKING:  # the doctor must start without pydantic, which the options need
    from dinov3_seg_ros.support.option_model import Options
    from dinov3_seg_ros.support.option_values import Option

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_HELP = ("-h", "--help")
_NANOSECONDS = {"ms": 10**6, "s": 10**9, "min": 60 * 10**9}

AnyOptions = TypeVar("AnyOptions", bound="Options")


class UsageError(SegmentationError):
    """The command line is wrong."""


class CommandParser(argparse.ArgumentParser):
    """A parser for ``python -m MODULE``: options may stand anywhere, and every error is one line.

    Args:
        module: its last part names the command in error lines.
        documentation: of the module; its first line describes the command.
        usage: replaces argparse's usage line.
    """

    def __init__(self, module: str, documentation: str | None, usage: str | None = None) -> None:
        self._arguments: list[argparse.Action] = []
        program = f"python -m {module}"
        super().__init__(
            prog=program,
            usage=usage and f"{program} {usage}",
            description=(documentation or "").strip().splitlines()[0],
            allow_abbrev=False,
        )
        self.name = module.rpartition(".")[2]

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument as argparse does."""
        action = super().add_argument(*names, **settings)
        self.remember(action)
        return action

    def remember(self, action: argparse.Action) -> None:
        """Count an argument that was added to one of the parser's groups."""
        self._arguments.append(action)

    def needs_words(self) -> bool:
        """Whether the command can do nothing without arguments."""
        # argparse calls an argument with any number of values required.
        return any(argument.required and argument.nargs != "*" for argument in self._arguments)

    def known_options(self) -> list[str]:
        """All options, for hints at the nearest."""
        return [option for argument in self._arguments for option in argument.option_strings]

    def value_count(self, option: str) -> int | None:
        """How many values follow an option; None for any number of them.

        Raises:
            UsageError: the option is unknown; the message names the nearest one.
        """
        argument = next((argument for argument in self._arguments if option in argument.option_strings), None)
        if argument is None:
            raise UsageError(f"unknown option {option}{nearest(option, self.known_options())}; --help lists all")
        if argument.nargs is None:
            return 1
        return argument.nargs if isinstance(argument.nargs, int) else None

    def split(self, words: Sequence[str]) -> tuple[list[list[str]], list[str]]:
        """Take a command line apart.

        An option with any number of values takes all words up to the next option. Where positional arguments are
        missing then, the last such option hands its last words over to them.

        Returns:
            Each option with its values, in order, and the positional arguments.

        Raises:
            UsageError: an option is unknown.
        """
        options: list[list[str]] = []
        positionals: list[str] = []
        greedy: list[str] = []
        rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                positionals.append(word)
                continue
            count = self.value_count(word)
            end = next((index for index, value in enumerate(rest) if value.startswith("--")), len(rest))
            end = end if count is None else min(end, count)
            options.append([word, *rest[:end]])
            greedy = options[-1] if count is None else greedy
            del rest[:end]
        missing = sum(not argument.option_strings and argument.nargs != "*" for argument in self._arguments)
        missing -= len(positionals)
        if missing > 0 and len(greedy) > missing + 1:
            positionals += greedy[-missing:]
            del greedy[-missing:]
        return options, positionals

    def parse_command(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line.

        Raises:
            UsageError: what is wrong with it.
        """
        options, positionals = self.split(words)
        return self.parse_split(options, positionals)

    def parse_split(self, options: Sequence[Sequence[str]], positionals: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line that `split` took apart.

        Raises:
            UsageError: what is wrong with it.
        """
        words = [word for option in options for word in option]
        arguments, extra = self.parse_known_args([*words, "--", *positionals] if positionals else words)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(word for word in extra if word != '--')}")
        return arguments

    def show_help(self, words: Sequence[str]) -> None:
        """Print what ``--help`` shows; ``words`` are the others of the command line."""
        self.print_help()

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, where argparse itself prints several lines and exits."""
        raise UsageError(f"{message}; --help lists all options")


def run_command(
    parser: CommandParser,
    work: Callable[[list[str]], int | None],
    arguments: Sequence[str] | None = None,
    note: str = "",
) -> int:
    """Do a command's work; return its exit code.

    ``--help`` anywhere, and no arguments where the command needs some, print the help instead.

    Args:
        parser: the command's.
        work: gets the words of the command line; returns an exit code, or None for 0.
        arguments: the words; None for those of this process.
        note: what to say when the user interrupts the command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if any(word in _HELP for word in words) or (not words and parser.needs_words()):
            parser.show_help([word for word in words if word not in _HELP])
            return DONE
        if fault := utf8_fault(words):
            raise UsageError(fault)
        with _ended_by_signals():
            code = work(words) or DONE
        sys.stdout.flush()
        return code
    except SegmentationError as error:
        print(f"{parser.name}: error: {one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a full disk, a folder that may not be read
        print(f"{parser.name}: error: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{parser.name}: interrupted{f'; {note}' if note else ''}", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the work as Ctrl-C does, unless they are handled, or ignored as under nohup.

    The first one lets both be ignored from then on: what clears up must not be interrupted in turn.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # no other may handle signals
    ending = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    taken = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is interrupt:
                signal.signal(number, signal.SIG_DFL)


def add_flags(parser: CommandParser, model: type[Options], leave_out: Collection[str] = ()) -> None:
    """Add a flag for each option of a model: ``max_batch`` becomes ``--max-batch``.

    Args:
        parser: gets the flags.
        model: the options.
        leave_out: names of options that the command does not take.
    """
    from dinov3_seg_ros.support.option_model import describe_options

    group = parser.add_argument_group(f"{model.__name__.removesuffix('Options').lower()} options")
    for option in describe_options(model).values():
        if option.name not in leave_out:
            parser.remember(group.add_argument(_flag(option.name), **_argument(option)))


def read_flags(model: type[AnyOptions], arguments: argparse.Namespace, **values: Any) -> AnyOptions:
    """The options that a parsed command line holds; what it lacks has its default.

    Args:
        model: the options.
        arguments: of a parser with the model's flags.
        values: options in place of those of the command line.

    Raises:
        UsageError: a value cannot be used; the message names the flag.
    """
    from dinov3_seg_ros.support.option_model import select

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    try:
        return select(model, given | lists | values)
    except ParameterError as error:
        # Messages begin with the option's name.
        message = str(error)
        name = message.split(maxsplit=1)[0].rstrip(":")
        if name in model.model_fields:
            message = f"{_flag(name)}{message.removeprefix(name)}"
        raise UsageError(message) from error


def write_flags(values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these values to the flags of `add_flags`."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(_flag(name if value else f"no_{name}"))
        else:
            words += [_flag(name), *map(str, value if isinstance(value, tuple) else [value])]
    return words


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The ``type`` of an argument that is a whole number of at least ``least``, and at most ``most``."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {bounds}")
        return int(text)

    return convert


def share(text: str) -> float:
    """A number from 0 to 1; the ``type`` of an argument."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share; write a number from 0 to 1, such as 0.95")
    return found


def duration(text: str) -> int:
    """Nanoseconds of a duration such as ``0.5s``; the ``type`` of an argument."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min)", text, re.ASCII)
    nanoseconds = round(float(found[1]) * _NANOSECONDS[found[2]]) if found else 0
    if nanoseconds < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration; write a number with its unit: 0.5s, 200ms or 2min")
    return nanoseconds


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _argument(option: Option) -> dict[str, Any]:
    """Keyword arguments of `argparse.ArgumentParser.add_argument`."""
    default = str(option.default).lower() if option.kind == "bool" else option.default
    shown = "" if default in (None, "", ()) else f" (default: {default})"
    found: dict[str, Any] = {"help": f"{option.description}{shown}".replace("%", "%%"), "default": None}
    if option.kind == "bool":
        found["action"] = argparse.BooleanOptionalAction
        return found
    if option.kind == "range":
        found["metavar"] = f"{'|'.join(option.choices)}|LOW,HIGH"
    elif option.choices:
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
