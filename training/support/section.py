"""The base of every section of a recipe, and the types of keys that many have."""

from __future__ import annotations

import os
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict

#: A key that holds a folder: a path, whose ``~`` is the user's folder.
Folder: TypeAlias = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Settings of one part of training. A section lives in the module that reads it.

    Unknown keys, and numbers that are infinite or NaN, are errors.
    """

    # The texts below the fields describe them to whoever asks for --help.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
