"""Saving a backbone in Hugging Face form, and the hash that identifies its network."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch
from safetensors.torch import save_file

from dinov3_seg_ros.model.backbone import MASK_TOKEN, Backbone
from dinov3_seg_ros.model.families import FAMILIES
from dinov3_seg_ros.model.pretrained.files import CONFIG_FILE, WEIGHTS_FILE
from dinov3_seg_ros.model.pretrained.normalisation import PREPROCESSOR_FILE
from dinov3_seg_ros.support.files import replacing_folder, write_json

# These say which maps to return and which library wrote the file, not what the network computes.
_VOLATILE_CONFIG_KEYS = ("out_features", "out_indices", "stage_names", "transformers_version", "dtype", "architectures")


def save_backbone(backbone: Backbone, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors in Hugging Face form; the whole network, whatever its `layers`.

    Where its normalisation is known, preprocessor_config.json says it.

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
    config = {key: value for key, value in _config_of(backbone).items() if key not in _VOLATILE_CONFIG_KEYS}
    config["dtype"] = str(saved_dtype).removeprefix("torch.")
    with replacing_folder(folder) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        if backbone.normalisation is not None:
            mean, std = backbone.normalisation
            write_json(temporary / PREPROCESSOR_FILE, {"do_normalize": True, "image_mean": mean, "image_std": std})


def backbone_identity(backbone: Backbone) -> str:
    """Hexadecimal SHA-256 of the network, wherever it was loaded from and whichever of its maps are asked for.

    It covers the architecture, the configuration fields that weights do not tell, and every floating-point weight: its
    name as Hugging Face publishes it, its shape, and its values as float32. So fp16 weights and the same values in fp32
    have one identity, and a copy rounded to fp16 is another backbone. It leaves out the mask token, which only
    pretraining uses, and how the network is read: layers, feature norm, class token and output stride.
    """
    config = backbone.model.config
    fields = {name: getattr(config, name) for name in FAMILIES[config.model_type].identity_fields}
    digest = hashlib.sha256(json.dumps([config.model_type, fields]).encode())
    for name, tensor in sorted(backbone.checkpoint_tensors().items()):
        if tensor.is_floating_point() and name != MASK_TOKEN:
            digest.update(json.dumps([name, list(tensor.shape)]).encode())
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _config_of(backbone: Backbone) -> dict[str, Any]:
    config: dict[str, Any] = backbone.model.config.to_dict()  # type: ignore[no-untyped-call] # transformers'
    return config
