"""Models of options: described once, read from keyword arguments and flags.

`dinov3_seg_ros.options` holds the options themselves, `option_values` how text and ROS parameters hold one. Importing
this module imports no other library than pydantic.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from dinov3_seg_ros.support.errors import ParameterError, nearest
from dinov3_seg_ros.support.option_checks import CHECKS
from dinov3_seg_ros.support.option_values import Kind, Option


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

    @field_validator("*")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        if (check := CHECKS.get(info.field_name or "")) is not None:
            as_value_error(check)(value)
        return value


def as_value_error(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function with the error that pydantic expects of a validator, in place of ParameterError."""

    def call(value: Any) -> Any:
        try:
            return function(value)
        except ParameterError as error:
            raise ValueError(str(error)) from error

    return call


def describe_options(model: type[Options]) -> dict[str, Option]:
    """The options of a model by name, in the order of its fields."""
    return {name: _describe(name, field) for name, field in model.model_fields.items()}


AnyOptions = TypeVar("AnyOptions", bound=Options)


def select(model: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """A model of those of ``values`` that are its own."""
    return model(**{name: value for name, value in values.items() if name in model.model_fields})


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
    return f"{name} is {value!r}; use {option.wanted()}"
