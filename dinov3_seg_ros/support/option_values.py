"""One option: what it is called, which values it takes, and how text and ROS parameters hold them.

The launch files import this module. They run under the system's Python, which lacks the libraries of the node's
environment, so it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dinov3_seg_ros.support.errors import ParameterError

Kind = Literal["text", "texts", "size", "range", "int", "float", "bool"]

_WANTED: dict[Kind, str] = {
    "text": "a text",
    "texts": "a list of texts, such as [front, left]",
    "range": "a word or two whole numbers",
    "size": "two positive whole numbers, height and width in pixels",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


@dataclass(frozen=True)
class Option:
    """One option, as parameters, flags and tables show it.

    Attributes:
        name: of the field.
        kind: the type of its value; "texts" are a tuple of str, "size" is (height, width), "range" is one of
            ``choices`` or (low, high).
        default: of the field.
        description: one or two sentences.
        choices: the values that can be used; empty where others bound them.
        range: the least and the greatest value; None where there is none.
        live: whether a change takes effect at the next frame.
    """

    name: str
    kind: Kind
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    live: bool = False

    def explain(self, quote: str = "") -> str:
        """The description with the values that can be used, each between ``quote``."""
        parts = [self.description]
        if self.choices and self.kind != "range":
            parts.append(f"One of {', '.join(f'{quote}{choice}{quote}' for choice in self.choices)}.")
        if self.range:
            parts.append(f"{self.range[0]} to {self.range[1]}.")
        return " ".join(parts)

    def wanted(self, as_text: bool = False) -> str:
        """The values that can be used, to follow "use"; ``as_text``: as they are written in a launch argument."""
        if self.choices and self.kind != "range":
            return f"one of: {', '.join(self.choices)}"
        if self.kind == "size" and as_text:
            return "height,width in pixels"
        within = f" from {_number(self.range[0])} to {_number(self.range[1])}" if self.range else ""
        return f"{_WANTED[self.kind]}{within}"


def read_options(path: Path) -> dict[str, Option]:
    """The options by name, from the file that `options_as_json` made."""
    options = [Option(**fields) for fields in json.loads(path.read_text(encoding="utf-8"), object_hook=_with_tuples)]
    return {option.name: option for option in options}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def options_as_json(options: Iterable[Option]) -> str:
    """A JSON list of the options, one on each line, for `read_options`."""
    return "[\n" + ",\n".join(f"  {json.dumps(asdict(option))}" for option in options) + "\n]\n"


def parse_option(option: Option, text: str) -> Any:
    """The value of an option written as text, as in a launch argument: lists are separated by commas.

    Raises:
        ParameterError: the text is no value of the option's type, or not within its choices and range. What a model
            asks beyond these, it asks when it is made.
    """
    try:
        value = _parse(option, text)
        allowed = _is_allowed(option, value)
    except (ValueError, KeyError):
        allowed = False
    if not allowed:
        raise ParameterError(f"{option.name} is '{text}'; use {option.wanted(as_text=True)}")
    return value


def _parse(option: Option, text: str) -> Any:
    parts = [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]
    match option.kind:
        case "texts":
            return tuple(parts)
        case "size":
            return from_parameter(option, tuple(map(int, parts)))
        case "range":
            return _choice_or_pair(option, text)
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bool":
            return {"true": True, "false": False}[text.strip().lower()]
    return text


def _is_allowed(option: Option, value: Any) -> bool:
    match option.kind:
        case "text":
            return not option.choices or value in option.choices
        case "size":
            return value is None or (len(value) == 2 and bool(min(value) >= 1))
        case "int" | "float":
            low, high = option.range or (-math.inf, math.inf)
            return bool(low <= value <= high)
    return True


def to_parameter(option: Option, value: Any) -> Any:
    """The value of an option as a ROS parameter, which knows neither None nor tuples."""
    if option.kind == "size":
        return list(value or (0, 0))
    if option.kind == "texts":
        return list(value) or [""]
    if option.kind == "range":
        return value if isinstance(value, str) else list(value)
    return "" if value is None else value


def from_parameter(option: Option, value: Any) -> Any:
    """The value of an option from a ROS parameter, in which an empty text, list or [0, 0] stands for the default."""
    if option.kind == "size":
        return None if not value or tuple(value) == (0, 0) else tuple(value)
    if option.kind == "texts":
        if value in (None, ""):  # a file's empty list has no type, and arrives as None
            return ()
        return tuple(text for text in value if text != "") if isinstance(value, list | tuple) else value
    if option.kind == "range" and value not in (None, ""):
        return _choice_or_pair(option, value)
    return option.default if value == "" else value


def number_pair(value: Any) -> tuple[int, int] | None:
    """Two whole numbers from a pair of them or from text such as ``0,4095``; None where it is neither."""
    given = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        first, second = map(_whole, given)
    except (TypeError, ValueError, OverflowError):  # the last for infinity
        return None
    return first, second


def _choice_or_pair(option: Option, value: Any) -> Any:
    """One of the choices, or two numbers; what is neither stays as it is, for the model to refuse."""
    return value if value in option.choices else number_pair(value) or value


def _whole(value: Any) -> int:
    """A whole number from a number or text; ValueError for one with a fraction, and for true and false."""
    whole = int(value)
    if isinstance(value, bool) or whole != float(value):
        raise ValueError(value)
    return whole


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
