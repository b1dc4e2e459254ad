"""PyTorch's compiler, for GPUs: fewer and larger kernels, which read and write less memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException  # the only base of what its compiler raises

from dinov3_seg_ros.support.files import cache_folder, is_writable

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

Output = TypeVar("Output")


@torch.inference_mode()
def compile_for(
    module: Callable[..., Output], what: str, examples: Sequence[Sequence[torch.Tensor]]
) -> tuple[Callable[..., Output], list[Output], bool]:
    """Compile a module for inputs of these shapes; others are compiled when they come, which takes half a minute.

    What is compiled is kept on disk, for the next start, if the user's caches can be written.

    Args:
        module: takes and returns tensors on the GPU.
        what: the module, for people, such as "backbone".
        examples: inputs of each shape.

    Returns:
        What to call in place of the module; what it returns for each example; and whether it is compiled. The module
        itself is returned, with a warning, where the compiler cannot be used, as without a C compiler.
    """
    # PyTorch's own folder is in /tmp, which is empty after the robot is switched on.
    folder = cache_folder("compiled")
    if is_writable(folder):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    compiled: Callable[..., Output] = torch.compile(module, dynamic=False)

    # Not the module that torch.compile returns: who exchanges a part of that, as `Recorded` does, has it compiled anew.
    def run(*tensors: torch.Tensor) -> Output:
        return compiled(*tensors)

    try:
        return run, [run(*inputs) for inputs in examples], True
    except TorchDynamoException as error:
        _logger.warning("the %s runs without being compiled, slower: %s", what, error)
        return module, [module(*inputs) for inputs in examples], False
