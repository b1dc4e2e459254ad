"""The architectures that are supported, and what differs between them: transformers' classes, with what they lack."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import Dinov2Backbone, DINOv3ConvNextBackbone, DINOv3ViTBackbone, PreTrainedConfig, ResNetBackbone
from transformers.modeling_outputs import BackboneOutput

from dinov3_seg_ros.support.errors import BackboneError

FeatureNorm = Literal["final", "none"]


class NormedConvNextBackbone(DINOv3ConvNextBackbone):
    """Hugging Face's backbone with the final LayerNorm that its checkpoints hold and that it leaves out.

    ``layer_norm`` is None when the checkpoint came without one.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.layer_norm: nn.LayerNorm | None = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.norm_last_stage = False
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        output = super().forward(pixel_values, **kwargs)
        if self.norm_last_stage and self.stage_names[-1] in self.out_features:
            last = self.layer_norm(output.feature_maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            output.feature_maps = (*output.feature_maps[:-1], last)
        return output


class DilatableResNetBackbone(ResNetBackbone):
    """Hugging Face's backbone whose last stages can be dilated."""

    @property
    def strides(self) -> list[int]:
        """Input pixels per cell after each stage; the stem's are 4."""
        first_blocks = [stage.layers[0].layer for stage in self._stages]
        factors = [math.prod(conv.stride[0] for conv in _convolutions(block)) for block in first_blocks]
        return [4 * factor for factor in itertools.accumulate(factors, operator.mul)]

    def limit_stride(self, output_stride: int) -> None:
        """Replace what strides beyond ``output_stride`` by dilation; the weights stay as they are.

        Behind a stride that is left out, neighbours lie twice as far apart, so every later convolution dilates twice as
        much: of the cells computed now, the original network's are those on its coarser grid. The rule is that of Yu et
        al., "Dilated Residual Networks" (2017, arXiv:1705.09472), and of Chen et al., "DeepLab" (2016,
        arXiv:1606.00915).
        """
        dilation = 1
        for stage, stride in zip(self._stages, self.strides, strict=True):
            if stride <= output_stride:
                continue
            for block in stage.layers:
                for conv in _convolutions(block.layer):
                    conv.dilation = (dilation, dilation)
                    conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
                    dilation *= conv.stride[0]
                    conv.stride = (1, 1)
                for conv in _convolutions(block.shortcut):
                    conv.stride = (1, 1)

    @property
    def _stages(self) -> list[nn.Module]:
        # Iterating the list itself may stop early: see _LeadingBlocks.
        return list(self.encoder.stages.children())


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (child for child in module.modules() if isinstance(child, nn.Conv2d))


@dataclass(frozen=True)
class Family:
    """What differs between the architectures."""

    model_class: type
    strides: Callable[[nn.Module], list[int]]
    """One stride per block or stage, in pixels per cell."""
    feature_norms: tuple[FeatureNorm, ...]
    """What can be asked for; the first is the default."""
    identity_fields: tuple[str, ...]
    """Configuration that changes the features and that names and shapes of the weights do not already tell."""
    has_class_token: bool = False
    """Whether the tokens of a block begin with one for the whole image."""


def _vit_strides(model: nn.Module) -> list[int]:
    return [model.config.patch_size] * model.config.num_hidden_layers


def _convnext_strides(model: nn.Module) -> list[int]:
    return [4 * 2**stage for stage in range(len(model.config.depths))]


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
    "resnet": Family(
        DilatableResNetBackbone,
        operator.attrgetter("strides"),
        ("none",),
        ("hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck"),
    ),
}


def final_norm(model: nn.Module) -> nn.LayerNorm | None:
    return next((module for module in model.children() if isinstance(module, nn.LayerNorm)), None)


def apply_feature_norm(model: nn.Module, family: Family, wanted: FeatureNorm | None) -> FeatureNorm:
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


def limit_stride(model: nn.Module, output_stride: int) -> None:
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
