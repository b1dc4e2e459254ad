"""What every segmentation head has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dinov3_seg_ros.support.errors import HeadError

# Of many tensors, a message names so many.
_NAMED = 3


class Head(nn.Module):
    """A decoder from feature maps to class logits.

    Subclasses implement ``forward(maps)``: ``maps`` is a list of (B, C_i, h_i, w_i) float tensors in the order of
    ``in_channels``; the result is (B, num_classes, h, w), before any upsampling to the image. It must be exportable
    with static spatial sizes and a dynamic batch.

    Attributes:
        in_channels: channels of each map.
        strides: input pixels per cell of each map.
        num_classes: output channels.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if not in_channels or len(in_channels) != len(strides):
            raise HeadError(
                f"a head needs one stride for each feature map; got channels {list(in_channels)} and "
                f"strides {list(strides)}"
            )
        if num_classes < 1:
            raise HeadError(f"a head needs at least one class; got num_classes={num_classes}")
        self.in_channels = list(in_channels)
        self.strides = list(strides)
        self.num_classes = num_classes

    def check_maps(self, maps: Sequence[torch.Tensor]) -> None:
        """Raise HeadError unless ``maps`` has the number and the channels this head was built for."""
        got = [int(m.shape[1]) for m in maps]
        if got != self.in_channels:
            raise HeadError(
                f"{type(self).__name__} was built for feature maps of {self.in_channels} channels and was given "
                f"{got}; choose the backbone and layers that the head was trained with"
            )

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over all parameters and running statistics, by name.

        Raises:
            HeadError: they are not those of a head of this shape; says what differs. Nothing has been changed.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        differences = {
            "missing": [name for name in own if name not in given],
            "unexpected": [name for name in given if name not in own],
            "of a wrong shape": [
                f"{name} {given[name]} instead of {shape}"
                for name, shape in own.items()
                if given.get(name, shape) != shape
            ],
        }
        complaints = [f"{len(names)} {what}: {_first_of(names)}" for what, names in differences.items() if names]
        if complaints:
            raise HeadError(f"tensors {'; '.join(complaints)}")
        self.load_state_dict(dict(tensors))


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
