"""The base of every section of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings of one part of training. A section lives in the module that reads it; unknown keys are errors."""

    # The texts below the fields describe them to whoever asks for --help.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
