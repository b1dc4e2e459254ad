"""Models of options: described once, read from keyword arguments, flags, ROS parameters and launch arguments.

`dinov3_seg_ros.options` holds the options themselves. Importing this module imports no other library than pydantic.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from dinov3_seg_ros.support.errors import ParameterError, nearest

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
class Live:
    """Marks an option whose change takes effect at the next frame."""


class Options(BaseModel):
    """Base of the models: immutable, and a value that cannot be used raises ParameterError."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ParameterError(_complaint(error, type(self), values)) from error


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


def describe_options(model: type[Options]) -> dict[str, Option]:
    """The options of a model by name, in the order of its fields."""
    return {name: _describe(name, field) for name, field in model.model_fields.items()}


AnyOptions = TypeVar("AnyOptions", bound=Options)


def select(model: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """A model of those of ``values`` that are its own."""
    return model(**{name: value for name, value in values.items() if name in model.model_fields})


def parse_option(option: Option, text: str) -> Any:
    """The value of an option written as text, as in a launch argument: lists are separated by commas.

    Raises:
        ParameterError: the text is no value of the option's type.
    """
    parts = [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]
    try:
        match option.kind:
            case "texts":
                return tuple(parts)
            case "size":
                return tuple(map(int, parts))
            case "range":
                return _choice_or_pair(option, text)
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"true": True, "false": False}[text.strip().lower()]
        return text
    except (ValueError, KeyError):
        wanted = "height,width in pixels" if option.kind == "size" else _WANTED[option.kind]
        raise ParameterError(f"{option.name} is '{text}'; give {wanted}") from None


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
        return tuple(value) if value is not None and any(value) else None
    if option.kind == "texts":
        # A file's empty list has no type, and arrives as None.
        return tuple(text for text in value if text != "") if isinstance(value, list | tuple) else value or ()
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


def _describe(name: str, field: FieldInfo) -> Option:
    bounds = {key: getattr(mark, key) for mark in field.metadata for key in ("ge", "le") if hasattr(mark, key)}
    return Option(
        name,
        _kind_of(field.annotation),
        field.default,
        field.description or "",
        _choices_of(field.annotation),
        (bounds["ge"], bounds["le"]) if len(bounds) == 2 else None,
        any(isinstance(mark, Live) for mark in field.metadata),
    )


def _kind_of(annotation: Any) -> Kind:
    if annotation is bool:
        return "bool"
    if annotation is int:
        return "int"
    if annotation is float:
        return "float"
    members = [part for part in _members(annotation) if part is not type(None)]
    if any(typing.get_origin(part) is tuple for part in members):
        if len(members) > 1:
            return "range"
        return "texts" if str in typing.get_args(members[0]) else "size"
    return "text"


def _choices_of(annotation: Any) -> tuple[str, ...]:
    parts = _members(annotation)
    if not any(typing.get_origin(part) is Literal for part in parts):
        return ()
    return tuple(value for part in parts for value in typing.get_args(part) if isinstance(value, str))


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _complaint(error: ValidationError, model: type[Options], values: Mapping[str, Any]) -> str:
    """The first of pydantic's complaints, with what can be used instead."""
    problem = error.errors()[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    value = values.get(name, problem["input"])
    if problem["type"] == "extra_forbidden":
        known = list(model.model_fields)
        return f"unknown option '{name}'{nearest(name, known)}; the options are: {', '.join(known)}"
    option = describe_options(model).get(name)
    if problem["type"] == "value_error":
        said = str(problem["ctx"]["error"])
        return said if said.startswith(name) else f"{name}: {said}"
    if option is None:
        return f"{name}: {problem['msg']}"
    if option.choices:
        return f"{name} is {value!r}; use one of: {', '.join(option.choices)}"
    within = f" from {_number(option.range[0])} to {_number(option.range[1])}" if option.range else ""
    return f"{name} is {value!r}; use {_WANTED[option.kind]}{within}"


def _whole(value: Any) -> int:
    """A whole number from a number or text; ValueError for one with a fraction."""
    whole = int(value)
    if whole != float(value):
        raise ValueError(value)
    return whole


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
