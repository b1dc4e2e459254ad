"""PyTorch's compiler, for GPUs: fewer and larger kernels, which read and write less memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from dinov3_seg_ros.support.files import cache_folder

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

Output = TypeVar("Output")


class Compiled(Generic[Output]):
    """A module that is compiled for each shape of its inputs; where it cannot be, the module as it is.

    What is compiled is kept on disk, for the next start.

    Args:
        module: takes and returns tensors on the GPU.
        what: the module, for people, such as "backbone".
    """

    def __init__(self, module: Callable[..., Output], what: str) -> None:
        # PyTorch's own folder is in /tmp, which is empty after the robot is switched on.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
        self._what, self._module = what, module
        self._function: Callable[..., Output] = torch.compile(module, dynamic=False)

    def __call__(self, *inputs: torch.Tensor) -> Output:
        """Return what the module returns."""
        try:
            return self._function(*inputs)
        except RuntimeError as error:  # no triton, no C compiler for what it generates
            if self._function is self._module:
                raise
            _logger.warning("the %s runs without being compiled, slower: %s", self._what, error)
            self._function = self._module
            return self._module(*inputs)
