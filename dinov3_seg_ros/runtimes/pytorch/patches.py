"""The patch embedding of a backbone as a matrix product, for GPUs."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn


class PatchProduct(nn.Module):
    """A convolution of images whose patches do not overlap, computed as one product of matrices.

    cuDNN has no fast kernel for three channels: for 8 images of 640x640 the convolution of a ViT-S+/16 took a tenth of
    the whole backbone on an H200.

    Args:
        convolution: `is_patch_embedding`; its weights are shared.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._side = cast(tuple[int, int], convolution.kernel_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W), H and W multiples of the patch -> (B, D, H / patch, W / patch), channels last."""
        batch, channels, height, width = images.shape
        rows, columns = height // self._side[0], width // self._side[1]
        cells = images.reshape(batch, channels, rows, self._side[0], columns, self._side[1])
        patches = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, -1)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def embed_patches_by_products(backbone: nn.Module) -> None:
    """Replace the patch embeddings of a backbone, in place."""
    for owner in list(backbone.modules()):
        for name, module in list(owner.named_children()):
            if is_patch_embedding(module):
                setattr(owner, name, PatchProduct(cast(nn.Conv2d, module)))


def is_patch_embedding(module: nn.Module) -> bool:
    """Return whether a module is a convolution of RGB images whose kernels tile them."""
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels == 3
        and module.groups == 1
        and module.kernel_size == module.stride
        and module.padding == (0, 0)
        and module.dilation == (1, 1)
    )
