"""The supported backbone architectures: transformers' classes, what they lack, and what differs between them."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from transformers import (
    Dinov2Backbone,
    Dinov2WithRegistersBackbone,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ViTBackbone,
    ResNetBackbone,
)
from transformers.modeling_outputs import BackboneOutput

from dinov3_seg_ros.support.errors import BackboneError

FeatureNorm = Literal["final", "none"]


class NormedConvNextBackbone(DINOv3ConvNextBackbone):  # type: ignore[no-untyped-call] # transformers'
    """Hugging Face's backbone with the final LayerNorm that its checkpoints hold and that it leaves out.

    ``layer_norm`` is None when the checkpoint came without one.
    """

    def __init__(self, config: DINOv3ConvNextConfig) -> None:
        super().__init__(config)
        self.layer_norm: nn.LayerNorm | None = nn.LayerNorm(self.num_features[-1], eps=config.layer_norm_eps)
        self.norm_last_stage = False
        self.post_init()  # type: ignore[no-untyped-call] # transformers'

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:  # type: ignore[override] # its parent's
        output: BackboneOutput = super().forward(pixel_values, **kwargs)
        maps: tuple[Tensor, ...] = output.feature_maps or ()
        if self.norm_last_stage and self.layer_norm is not None and self.stage_names[-1] in self.out_features:
            last = self.layer_norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            output.feature_maps = (*maps[:-1], last)
        return output


class DilatableResNetBackbone(ResNetBackbone):  # type: ignore[no-untyped-call] # transformers'
    """Hugging Face's backbone whose last stages can be dilated."""

    @property
    def strides(self) -> list[int]:
        """Input pixels per cell after each stage; the stem's are 4."""
        first_blocks = [blocks[0] for blocks in self._stages]
        factors = [math.prod(conv.stride[0] for conv in _convolutions(block, "layer")) for block in first_blocks]
        return [4 * factor for factor in itertools.accumulate(factors, operator.mul)]

    def limit_stride(self, output_stride: int) -> None:
        """Replace what strides beyond ``output_stride`` by dilation; the weights stay as they are.

        Behind a stride that is left out, neighbours lie twice as far apart, so every later convolution dilates twice as
        much. The cells on the original network's coarser grid are equal to the original's. The rule is that of Yu et
        al., "Dilated Residual Networks" (2017, arXiv:1705.09472), and of Chen et al., "DeepLab" (2016,
        arXiv:1606.00915).
        """
        dilation = 1
        for blocks, stride in zip(self._stages, self.strides, strict=True):
            if stride <= output_stride:
                continue
            for block in blocks:
                for conv in _convolutions(block, "layer"):
                    conv.dilation = (dilation, dilation)
                    conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
                    dilation *= conv.stride[0]
                    conv.stride = (1, 1)
                for conv in _convolutions(block, "shortcut"):
                    conv.stride = (1, 1)

    @property
    def _stages(self) -> list[list[nn.Module]]:
        """The blocks of each stage."""
        # Iterating the list of stages itself may stop early: see `backbone.LeadingBlocks`.
        stages = self.get_submodule("encoder.stages").children()
        return [list(stage.get_submodule("layers").children()) for stage in stages]


def _convolutions(block: nn.Module, path: str) -> Iterator[nn.Conv2d]:
    return (child for child in block.get_submodule(path).modules() if isinstance(child, nn.Conv2d))


#: A backbone of transformers, of one of the `FAMILIES`.
BackboneModel: TypeAlias = (
    DINOv3ViTBackbone | NormedConvNextBackbone | Dinov2Backbone | Dinov2WithRegistersBackbone | DilatableResNetBackbone
)


@dataclass(frozen=True)
class Family:
    """What differs between the architectures.

    Attributes:
        model_class: the class of transformers, or ours over it.
        strides: gives one stride per block or stage, in pixels per cell.
        feature_norms: the norms that can be asked for; the first is the default.
        identity_fields: configuration that changes the features and that names and shapes of the weights do not tell.
        has_class_token: whether the tokens of a block begin with one for the whole image.
    """

    model_class: type[BackboneModel]
    strides: Callable[[BackboneModel], list[int]]
    feature_norms: tuple[FeatureNorm, ...]
    identity_fields: tuple[str, ...]
    has_class_token: bool = False


def _vit_strides(model: BackboneModel) -> list[int]:
    patch_size = model.config.patch_size
    assert isinstance(patch_size, int)  # published models have square patches
    return [patch_size] * model.config.num_hidden_layers


def _convnext_strides(model: BackboneModel) -> list[int]:
    return [4 * 2**stage for stage in range(len(model.num_features) - 1)]  # the stem counts as a stage


FAMILIES = {
    "dinov3_vit": Family(
        DINOv3ViTBackbone,
        _vit_strides,
        ("final",),
        ("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta"),
        has_class_token=True,
    ),
    "dinov3_convnext": Family(
        NormedConvNextBackbone, _convnext_strides, ("none", "final"), ("hidden_act", "layer_norm_eps")
    ),
    "dinov2": Family(
        Dinov2Backbone,
        _vit_strides,
        ("final",),
        ("num_attention_heads", "hidden_act", "layer_norm_eps"),
        has_class_token=True,
    ),
    "dinov2_with_registers": Family(
        Dinov2WithRegistersBackbone,
        _vit_strides,
        ("final",),
        ("num_attention_heads", "hidden_act", "layer_norm_eps"),
        has_class_token=True,
    ),
    "resnet": Family(
        DilatableResNetBackbone,
        operator.attrgetter("strides"),
        ("none",),
        ("hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck"),
    ),
}


def final_norm(model: BackboneModel) -> nn.LayerNorm | None:
    """The model's final LayerNorm; None where it has none."""
    return next((module for module in model.children() if isinstance(module, nn.LayerNorm)), None)


def apply_feature_norm(model: BackboneModel, family: Family, wanted: FeatureNorm | None) -> FeatureNorm:
    """Make ``model`` apply its final norm as wanted; return what it does."""
    norm = family.feature_norms[0] if wanted is None else wanted
    if norm not in family.feature_norms:
        raise BackboneError(
            f"feature_norm is {norm!r}; {model.config.model_type} offers {' or '.join(family.feature_norms)}."
        )
    if norm == "final" and final_norm(model) is None:
        raise BackboneError("feature_norm is 'final', but this checkpoint has no final norm (layer_norm.weight).")
    if isinstance(model, NormedConvNextBackbone):
        model.norm_last_stage = norm == "final"
    return norm


def limit_stride(model: BackboneModel, output_stride: int) -> None:
    """Dilate a ResNet's last stages so that no stride is above ``output_stride``."""
    if not isinstance(model, DilatableResNetBackbone):
        raise BackboneError(
            f"output_stride is {output_stride}, but only a resnet can be dilated; this is a {model.config.model_type}."
        )
    if output_stride not in model.strides:
        raise BackboneError(
            f"output_stride is {output_stride}; this resnet offers {', '.join(map(str, sorted(set(model.strides))))}."
        )
    model.limit_stride(output_stride)
