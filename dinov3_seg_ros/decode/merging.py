"""Logits of classes that stand together, before the decode: what is then decoded is as probable as all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def merge_classes(
    logits: NDArray[Any] | torch.Tensor, groups: Sequence[Sequence[int]]
) -> NDArray[np.float32] | torch.Tensor:
    """Merge the classes of each group: its probability is the sum of theirs.

    The logit of a group is the logarithm of the sum of its classes' exponentials. So the softmax of what is returned
    is the softmax of ``logits``, added up over each group, in every cell of the map.

    Args:
        logits: (B, C, h, w) of any floating type, a NumPy array or a torch tensor.
        groups: the class ids of each group; each class is in one of them.

    Returns:
        (B, number of groups, h, w) float32, of the kind and on the device of ``logits``. Groups of one class keep its
        logits.
    """
    if isinstance(logits, np.ndarray):
        logits = logits.astype(np.float32, copy=False)
        merged = np.empty((logits.shape[0], len(groups), *logits.shape[2:]), np.float32)
        for index, group in enumerate(groups):
            merged[:, index] = logits[:, group[0]] if len(group) == 1 else _log_sum_exp(logits[:, list(group)])
        return merged
    import torch

    return torch.stack(
        [
            logits[:, group[0]].float() if len(group) == 1 else torch.logsumexp(logits[:, list(group)].float(), 1)
            for group in groups
        ],
        1,
    )


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logarithm of the sum of exponentials over axis 1."""
    peak = logits.max(1, keepdims=True)
    peak[~np.isfinite(peak)] = 0.0  # else infinite logits would give NaN
    with np.errstate(divide="ignore", over="ignore"):
        total: NDArray[np.float32] = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    return total
