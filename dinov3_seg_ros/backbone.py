"""Vision backbones over transformers: an image batch in, a list of feature maps out.

Weights come from a Hugging Face id, from a local folder in Hugging Face form (``config.json`` and
``model.safetensors``), or from one of Meta's original DINOv3 ``.pth`` files. Only training and the torch runtime
import this module; it needs torch and transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Backbone, DINOv3ConvNextBackbone, DINOv3ViTBackbone, PreTrainedConfig, ResNetBackbone
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import logging as transformers_logging

from dinov3_seg_ros.errors import BackboneError, ImageError
from dinov3_seg_ros.files import replacing_folder, write_json
from dinov3_seg_ros.meta_checkpoint import read_meta_checkpoint

FeatureNorm = Literal["final", "none"]
TrainableBlocks = int | Literal["all"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_HELP = (
    "DINOv3's weights are gated: accept the licence at https://huggingface.co/{id} and run `hf auth login`, or "
    "download Meta's .pth file and give its path instead. See weights/README.md."
)

_META_SUFFIXES = (".pth", ".pt")
_HUB_TIMEOUT_S = 10.0
# Published ResNet and DINOv2 checkpoints may carry the classifier they were trained with.
_CLASSIFIER_PREFIX = "classifier."
# Only pretraining with masked patches reads it, so it neither trains here nor says anything about the features.
_MASK_TOKEN = "embeddings.mask_token"
# These say which maps to return and which library wrote the file, not what the network computes.
_VOLATILE_CONFIG_KEYS = ("out_features", "out_indices", "stage_names", "transformers_version", "dtype", "architectures")


class _NormedConvNextBackbone(DINOv3ConvNextBackbone):
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


class _DilatableResNetBackbone(ResNetBackbone):
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
class _Family:
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


_FAMILIES = {
    "dinov3_vit": _Family(
        DINOv3ViTBackbone,
        _vit_strides,
        ("final",),
        ("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta"),
        has_class_token=True,
    ),
    "dinov3_convnext": _Family(
        _NormedConvNextBackbone, _convnext_strides, ("none", "final"), ("hidden_act", "layer_norm_eps")
    ),
    "dinov2": _Family(
        Dinov2Backbone,
        _vit_strides,
        ("final",),
        ("num_attention_heads", "hidden_act", "layer_norm_eps"),
        has_class_token=True,
    ),
    "resnet": _Family(
        _DilatableResNetBackbone,
        operator.attrgetter("strides"),
        ("none",),
        ("hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck"),
    ),
}


class _LeadingBlocks(nn.ModuleList):
    """A list of blocks that iterates over its first ``run`` only.

    The blocks behind them are never computed but keep their names and weights, so that the backbone is saved,
    identified and shared as a whole whatever layers the heads ask for.
    """

    def __init__(self, blocks: nn.ModuleList, run: int) -> None:
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
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None = None,
        feature_norm: FeatureNorm | None = None,
        class_token: bool = False,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        config = model.config
        family = _FAMILIES[config.model_type]
        if class_token and not family.has_class_token:
            raise BackboneError(f"class_token is true, but a {config.model_type} has no class token; a ViT has one.")
        if output_stride is not None:
            _limit_stride(model, output_stride)
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
        self.feature_norm = _apply_feature_norm(model, family, feature_norm)
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
        return dict(revert_weight_conversion(self.model, self.model.state_dict()))

    @property
    def _blocks(self) -> _LeadingBlocks:
        return self.model.get_submodule(self._blocks_path)

    def _with_class_token(self, feature_map: Tensor, tokens: Tensor) -> Tensor:
        """A map and the normalised class token of the same block's tokens (B, N, C): (B, 2 C, h, w)."""
        token = _final_norm(self.model)(tokens[:, 0])[:, :, None, None]
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
        norms = [_final_norm(self.model)] if self._norm_is_used else []
        return [*list(self._blocks)[run - trainable_blocks :], *norms]

    @property
    def _norm_is_used(self) -> bool:
        last_stage_only = isinstance(self.model, _NormedConvNextBackbone)
        return self.feature_norm == "final" and not (last_stage_only and self._blocks.run < len(self._blocks))

    def _unused_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that no output depends on; training over several devices would wait for their gradients."""
        for index in range(self._blocks.run, len(self._blocks)):
            yield from self._blocks[index].parameters()
        norm = _final_norm(self.model)
        if norm is not None and not self._norm_is_used:
            yield from norm.parameters()
        yield from (parameter for name, parameter in self.model.named_parameters() if name == _MASK_TOKEN)


def load_backbone(
    source: str | os.PathLike[str],
    layers: Sequence[int] | None = None,
    feature_norm: FeatureNorm | None = None,
    class_token: bool = False,
    output_stride: int | None = None,
    changed: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Load a backbone, frozen, in evaluation mode, as float32 on the CPU.

    Args:
        source: a Hugging Face id, a local folder in Hugging Face form, or one of Meta's DINOv3 .pth files. A copy in
            the local Hugging Face cache is used without asking the network.
        layers: 0-based blocks (ViT) or stages (ConvNeXt, ResNet), negatives counting from the end; default the last.
        feature_norm: "final" applies the model's final LayerNorm, to all maps of a ViT or to the last stage of a
            ConvNeXt (as Meta's ``norm=True`` does); "none" does not. Default "final" for a ViT, "none" otherwise.
        class_token: give each map of a ViT twice the channels: behind its own, in every cell alike, the class token of
            the same block, normalised as the map is.
        output_stride: the largest stride of a ResNet's stages, 8 or 16 for instance: later stages are dilated instead,
            with the same weights. None: the architecture's own, 32.
        changed: tensors that take the place of the source's, named as in `Backbone.checkpoint_tensors`.

    Raises:
        BackboneError: the weights are absent, gated or damaged, do not fit their architecture, or the architecture,
            the layers, the norm, the class token or the stride are not supported.
    """
    config, tensors, where = _read_source(source)
    if changed:
        tensors = {**tensors, **changed}
    model = _model_with_weights(config, tensors, where)
    return Backbone(model, layers, feature_norm, class_token, output_stride).eval()


def build_backbone(
    config: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    feature_norm: FeatureNorm | None = None,
    class_token: bool = False,
    output_stride: int | None = None,
) -> Backbone:
    """A backbone with new random weights, all of it trainable, in training mode.

    Args:
        config: a Hugging Face configuration, e.g. ``{"model_type": "dinov3_convnext", "depths": [...], ...}``.
        layers, feature_norm, class_token, output_stride: as for `load_backbone`.

    Raises:
        BackboneError: the configuration or one of the other arguments is not supported.
    """
    model_class, model_config = _parse_config(config, "the given configuration")
    backbone = Backbone(model_class(model_config), layers, feature_norm, class_token, output_stride)
    backbone.freeze("all")
    return backbone


def save_backbone(backbone: Backbone, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors in Hugging Face form; the whole network, whatever its `layers`.

    Args:
        backbone: what to save.
        folder: where; replaced as a whole if it exists.
        dtype: convert floating-point weights to this, e.g. torch.float16; default as they are.
    """
    tensors = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in backbone.checkpoint_tensors().items()
    }
    saved_dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    config = {key: value for key, value in backbone.model.config.to_dict().items() if key not in _VOLATILE_CONFIG_KEYS}
    config["dtype"] = str(saved_dtype).removeprefix("torch.")
    with replacing_folder(folder) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})


def backbone_identity(backbone: Backbone) -> str:
    """Hexadecimal SHA-256 of the network, whatever it was loaded from and whichever of its features are asked for.

    It covers the architecture, the configuration fields that weights do not tell, and every floating-point weight:
    name as Hugging Face publishes it, shape, and values as float32. So fp16 weights and the same values in fp32 are
    equal, and a copy rounded to fp16 is another backbone. The mask token, which only pretraining uses, is left out, and
    so is how the network is read: layers, feature norm, class token and output stride.
    """
    config = backbone.model.config
    fields = {name: getattr(config, name) for name in _FAMILIES[config.model_type].identity_fields}
    digest = hashlib.sha256(json.dumps([config.model_type, fields]).encode())
    for name, tensor in sorted(backbone.checkpoint_tensors().items()):
        if tensor.is_floating_point() and name != _MASK_TOKEN:
            digest.update(json.dumps([name, list(tensor.shape)]).encode())
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()


def _resolve_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    asked = [-1] if layers is None else list(layers)
    resolved = [layer + count if layer < 0 else layer for layer in asked]
    if not asked or any(not 0 <= layer < count for layer in resolved):
        raise BackboneError(f"layers is {asked}; this backbone has the layers 0 to {count - 1} (or -{count} to -1).")
    if len(set(resolved)) < len(resolved):
        raise BackboneError(f"layers is {asked}, which names a layer twice.")
    return resolved


def _run_leading_blocks(model: nn.Module, total: int, run: int) -> str:
    """Make ``model`` compute only its first ``run`` of ``total`` blocks or stages; return where it keeps them."""
    path = next(
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == total
    )
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, _LeadingBlocks(model.get_submodule(path), run))
    return path


def _final_norm(model: nn.Module) -> nn.LayerNorm | None:
    return next((module for module in model.children() if isinstance(module, nn.LayerNorm)), None)


def _apply_feature_norm(model: nn.Module, family: _Family, wanted: FeatureNorm | None) -> FeatureNorm:
    """Make ``model`` apply its final norm as wanted; return what it does."""
    norm = family.feature_norms[0] if wanted is None else wanted
    if norm not in family.feature_norms:
        raise BackboneError(
            f"feature_norm is {norm!r}; {model.config.model_type} offers {' or '.join(family.feature_norms)}."
        )
    if norm == "final" and _final_norm(model) is None:
        raise BackboneError("feature_norm is 'final', but this checkpoint has no final norm (layer_norm.weight).")
    if isinstance(model, _NormedConvNextBackbone):
        model.norm_last_stage = norm == "final"
    return norm


def _limit_stride(model: nn.Module, output_stride: int) -> None:
    """Dilate a ResNet's last stages so that no stride is above ``output_stride``."""
    if not isinstance(model, _DilatableResNetBackbone):
        raise BackboneError(
            f"output_stride is {output_stride}, but only a resnet can be dilated; this is a {model.config.model_type}."
        )
    if output_stride not in model.strides:
        raise BackboneError(
            f"output_stride is {output_stride}; this resnet offers {', '.join(map(str, sorted(set(model.strides))))}."
        )
    model.limit_stride(output_stride)


def _read_source(source: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Configuration, weights under Hugging Face's names, and where they came from in words."""
    path = Path(source).expanduser()
    if path.is_file() or path.suffix in _META_SUFFIXES:
        return *read_meta_checkpoint(path), str(path)
    if path.is_dir():
        files = [path / CONFIG_FILE, path / WEIGHTS_FILE]
        _require_files(files, path)
    else:
        files = [Path(_cached_or_downloaded(str(source), name)) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return _read_json(files[0]), _read_safetensors(files[1]), str(source)


def _require_files(files: Sequence[Path], folder: Path) -> None:
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BackboneError(
            f"The folder {folder} has no {' and no '.join(absent)}; a backbone in Hugging Face form is a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}. See weights/README.md."
        )


def _cached_or_downloaded(repository: str, name: str) -> str:
    """Path of a repository's file in the Hugging Face cache, fetched into it when it is not there yet."""
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError as error:
        raise BackboneError(
            f"{repository!r} is no folder, no file and no Hugging Face id such as "
            "facebook/dinov3-vits16plus-pretrain-lvd1689m. See weights/README.md."
        ) from error
    with contextlib.suppress(hub_errors.LocalEntryNotFoundError):
        return hf_hub_download(repository, name, local_files_only=True)
    try:
        # Fails at once where hf_hub_download alone would try again and again, with a warning each time.
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_HUB_TIMEOUT_S)
        return hf_hub_download(repository, name)
    except Exception as error:
        raise BackboneError(
            f"The backbone {repository!r} {_why_not_fetched(error, name)}. {WEIGHTS_HELP.format(id=repository)}"
        ) from error


def _why_not_fetched(error: Exception, name: str) -> str:
    if isinstance(error, hub_errors.GatedRepoError):
        return "is gated and this machine has no access to it"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return "does not exist on Hugging Face (or is private), nor is there a local path of that name"
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        return f"has no {name} on Hugging Face"
    if isinstance(error, hub_errors.HfHubHTTPError):
        return f"was refused by Hugging Face ({_one_line(error)})"
    return (
        "is no local path, is not in the local cache, and Hugging Face cannot be reached "
        f"({type(error).__name__}: {_one_line(error)})"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"The backbone's configuration {path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BackboneError(f"The backbone's configuration {path} is not a JSON object.")
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"The backbone's weights {path} are damaged or incomplete ({error}); "
            "delete the file and fetch it again. See weights/README.md."
        ) from error


def _parse_config(config: Mapping[str, Any], where: str) -> tuple[type, PreTrainedConfig]:
    """The model class and its configuration."""
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise BackboneError(
            f"The backbone from {where} is of the type {model_type!r}; supported are {', '.join(_FAMILIES)}."
        )
    model_class = _FAMILIES[model_type].model_class
    try:
        return model_class, model_class.config_class.from_dict(dict(config))
    except (hub_errors.StrictDataclassError, TypeError, ValueError) as error:
        raise BackboneError(f"The {model_type} configuration from {where} is not valid: {_one_line(error)}") from error


def _model_with_weights(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """A transformers backbone in which every weight comes from ``tensors``."""
    model_class, model_config = _parse_config(config, where)
    prefix = f"{model_class.base_model_prefix}."
    state = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER_PREFIX)
    }
    with _quiet_transformers():
        model, report = model_class.from_pretrained(
            None,
            config=model_config,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing = set(report["missing_keys"])
    if isinstance(model, _NormedConvNextBackbone) and {"layer_norm.weight", "layer_norm.bias"} <= missing:
        model.layer_norm = None
        missing -= {"layer_norm.weight", "layer_norm.bias"}
    _refuse_misfits(missing, report, where)
    return model


def _refuse_misfits(missing: set[str], report: Mapping[str, Any], where: str) -> None:
    """transformers gives random values to weights that are absent or misshapen; that must never go unnoticed."""
    wrong_shapes = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    complaints = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", report["unexpected_keys"]),
            ("of a wrong shape", wrong_shapes),
        )
        if names
    ]
    if complaints:
        raise BackboneError(
            f"The weights from {where} do not fit their configuration. Tensors {'; '.join(complaints)}. "
            "Fetch the checkpoint again, or correct the configuration. See weights/README.md."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()
