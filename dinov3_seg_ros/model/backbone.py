"""Vision backbones over transformers: an image batch in, a list of feature maps out.

`weights.load_backbone` and `weights.build_backbone` make one. Only training, export and the PyTorch runtime import this
module; it needs torch and transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from dinov3_seg_ros.model.families import (
    FAMILIES,
    BackboneModel,
    FeatureNorm,
    NormedConvNextBackbone,
    apply_feature_norm,
    final_norm,
    limit_stride,
)
from dinov3_seg_ros.model.pretrained.normalisation import Normalisation
from dinov3_seg_ros.support.errors import BackboneError, ImageError

TrainableBlocks = int | Literal["all"]
#: Only pretraining with masked patches reads it, so it neither trains here nor says anything about the features.
MASK_TOKEN = "embeddings.mask_token"


class LeadingBlocks(nn.ModuleList):
    """A list of blocks that iterates over its first ``run`` only.

    The blocks behind them are never computed. They keep their names and weights, so that the backbone is saved,
    identified and shared as a whole, whichever layers the heads ask for.
    """

    def __init__(self, blocks: nn.Module, run: int) -> None:
        super().__init__(blocks.children())
        self.run = run

    def __iter__(self) -> Iterator[nn.Module]:
        return itertools.islice(super().__iter__(), self.run)


class Backbone(nn.Module):
    """A vision backbone that returns the feature maps of chosen layers; frozen until `freeze` says otherwise.

    Attributes:
        layers: the 0-based blocks (ViT) or stages (ConvNeXt, ResNet) returned, in the order they were asked for.
        channels: the channels of each map.
        strides: input pixels per cell of each map.
        patch_multiple: height and width of the input must be multiples of this.
        feature_norm: "final" when the model's final LayerNorm is applied (to every map of a ViT, to the last stage
            of a ConvNeXt), else "none".
        class_token: whether each map is followed, as further channels, by the class token of its block.
        output_stride: the largest stride allowed, None for the architecture's own.
        trainable_blocks: what `freeze` was last told.
        model: the transformers model underneath.
        normalisation: mean and standard deviation that the weights were trained with; None where nothing tells.
        normalisation_is_certain: whether a recipe must agree with them; else they are what the weights suggest.
    """

    normalisation: Normalisation | None = None
    normalisation_is_certain: bool = True

    def __init__(
        self,
        model: BackboneModel,
        layers: Sequence[int] | None = None,
        feature_norm: FeatureNorm | None = None,
        class_token: bool = False,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        config = model.config
        family = FAMILIES[config.model_type]
        if class_token and not family.has_class_token:
            raise BackboneError(f"class_token is true, but a {config.model_type} has no class token; a ViT has one.")
        if output_stride is not None:
            limit_stride(model, output_stride)
        self.class_token, self.output_stride = class_token, output_stride
        strides = family.strides(model)
        self.layers = _resolve_layers(layers, len(strides))
        self.strides = [strides[layer] for layer in self.layers]
        self.patch_multiple = max(self.strides)
        # transformers counts the stem as stage 0 and returns maps in order of depth.
        self.channels = [model.num_features[layer + 1] * (2 if class_token else 1) for layer in self.layers]
        config.out_indices = [layer + 1 for layer in sorted(self.layers)]
        self._depth_rank = [sorted(self.layers).index(layer) for layer in self.layers]
        self._blocks_path = _run_leading_blocks(model, total=len(strides), run=max(self.layers) + 1)
        self.feature_norm = apply_feature_norm(model, family, feature_norm)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H / stride, W / stride) in the order of `layers`.

        Args:
            images: (B, 3, H, W) float, normalised with the backbone's mean and standard deviation; H and W
                multiples of `patch_multiple`.

        Raises:
            ImageError: H or W is not such a multiple.
        """
        height, width = images.shape[-2:]
        if height % self.patch_multiple or width % self.patch_multiple:
            raise ImageError(
                f"The backbone's input is {height}x{width} (height x width); "
                f"both must be multiples of {self.patch_multiple}."
            )
        if self.trainable_blocks == 0:
            images = images.detach()
        if not self.class_token:
            maps = self.model(images).feature_maps
            return [maps[rank] for rank in self._depth_rank]
        output = self.model(images, output_hidden_states=True)
        return [
            self._with_class_token(output.feature_maps[rank], output.hidden_states[layer + 1])
            for rank, layer in zip(self._depth_rank, self.layers, strict=True)
        ]

    def freeze(self, trainable_blocks: TrainableBlocks = 0) -> None:
        """Choose what trains; everything else takes no gradient and stays in evaluation mode, even after train().

        Args:
            trainable_blocks: 0 for nothing; n for the last n blocks (stages of a ConvNeXt or ResNet) up to the
                deepest layer returned, and the final norm where it is applied; "all" for the whole network. Blocks
                behind the deepest layer are not computed and never train.

        Raises:
            BackboneError: more blocks than are computed, or a negative number.
        """
        modules = self._modules_to_train(trainable_blocks)
        self.trainable_blocks: TrainableBlocks = trainable_blocks
        self._trainable = modules
        self.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        for parameter in self._unused_parameters():
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Like Module.train, but frozen parts stay in evaluation mode.

        A DINOv3 ViT in training mode jitters its position encoding at random, and a ResNet updates its batch
        statistics; neither may happen to a part that does not train.
        """
        super().train(False)
        self.training = mode
        for module in self._trainable:
            module.train(mode)
        return self

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights, detached, under the names Hugging Face publishes; those in memory vary with its releases."""
        # What some releases of transformers write in front of ConvNeXt's names, and what is published has not.
        prefix = f"{self.model.base_model_prefix}."
        tensors = revert_weight_conversion(self.model, self.model.state_dict())
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    @property
    def _blocks(self) -> LeadingBlocks:
        blocks = self.model.get_submodule(self._blocks_path)
        assert isinstance(blocks, LeadingBlocks)
        return blocks

    def _with_class_token(self, feature_map: Tensor, tokens: Tensor) -> Tensor:
        """A map and the normalised class token of the same block's tokens (B, N, C): (B, 2 C, h, w)."""
        norm = final_norm(self.model)
        assert norm is not None  # a ViT has one
        token = norm(tokens[:, 0])[:, :, None, None]
        return torch.cat([feature_map, token.expand_as(feature_map)], dim=1)

    def _modules_to_train(self, trainable_blocks: TrainableBlocks) -> list[nn.Module]:
        if trainable_blocks == "all":
            return [self.model]
        run = self._blocks.run
        if not isinstance(trainable_blocks, int) or not 0 <= trainable_blocks <= run:
            raise BackboneError(
                f"trainable_blocks is {trainable_blocks!r}; it must be 'all' or a number from 0 to {run}, "
                f"the blocks computed for the layers {self.layers}."
            )
        if trainable_blocks == 0:
            return []
        blocks = list(self._blocks)[run - trainable_blocks :]
        norm = final_norm(self.model)
        return [*blocks, norm] if norm is not None and self._norm_is_used else blocks

    @property
    def _norm_is_used(self) -> bool:
        last_stage_only = isinstance(self.model, NormedConvNextBackbone)
        return self.feature_norm == "final" and not (last_stage_only and self._blocks.run < len(self._blocks))

    def _unused_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that no output depends on; training over several devices would wait for their gradients."""
        for index in range(self._blocks.run, len(self._blocks)):
            yield from self._blocks[index].parameters()
        norm = final_norm(self.model)
        if norm is not None and not self._norm_is_used:
            yield from norm.parameters()
        yield from (parameter for name, parameter in self.model.named_parameters() if name == MASK_TOKEN)


def _resolve_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    asked = [-1] if layers is None else list(layers)
    resolved = [layer + count if layer < 0 else layer for layer in asked]
    if not asked or any(not 0 <= layer < count for layer in resolved):
        raise BackboneError(f"layers is {asked}; this backbone has the layers 0 to {count - 1} (or -{count} to -1).")
    if len(set(resolved)) < len(resolved):
        raise BackboneError(f"layers is {asked}, which names a layer twice.")
    return resolved


def _run_leading_blocks(model: BackboneModel, total: int, run: int) -> str:
    """Make ``model`` compute only its first ``run`` of ``total`` blocks or stages; return where it keeps them."""
    lists = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    path: str = next(name for name, module in lists if len(module) == total)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, LeadingBlocks(model.get_submodule(path), run))
    return path
