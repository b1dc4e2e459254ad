"""Meta's .pth files. Names and shapes of their layout are written down here apart from the loader, from the published
models, and so is the placing of the same numbers into transformers' modules."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.pretrained.reading import convert
from dinov3_seg_ros.model.weights import load_backbone
from dinov3_seg_ros.support.errors import BackboneError

HEAD_CHANNELS = 64
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ViT:
    """One of the published DINOv3 ViTs with 16-pixel patches."""

    channels: int
    depth: int
    hidden: int
    gated: bool = False
    local_cls_norm: bool = False

    def shapes(self) -> Shapes:
        """Every tensor in its .pth file."""
        c = self.channels
        shapes: Shapes = {
            "cls_token": (1, 1, c),
            "storage_tokens": (1, 4, c),
            "mask_token": (1, c),
            "patch_embed.proj.weight": (c, 3, 16, 16),
            "patch_embed.proj.bias": (c,),
            "rope_embed.periods": (HEAD_CHANNELS // 4,),
            "norm.weight": (c,),
            "norm.bias": (c,),
        }
        if self.local_cls_norm:
            shapes |= {"local_cls_norm.weight": (c,), "local_cls_norm.bias": (c,)}
        for block in range(self.depth):
            shapes |= {f"blocks.{block}.{name}": shape for name, shape in self._block_shapes()}
        return shapes

    def _block_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, h = self.channels, self.hidden
        yield from [("norm1.weight", (c,)), ("norm1.bias", (c,)), ("norm2.weight", (c,)), ("norm2.bias", (c,))]
        yield from [("attn.qkv.weight", (3 * c, c)), ("attn.qkv.bias", (3 * c,)), ("attn.qkv.bias_mask", (3 * c,))]
        yield from [("attn.proj.weight", (c, c)), ("attn.proj.bias", (c,))]
        yield from [("ls1.gamma", (c,)), ("ls2.gamma", (c,))]
        if self.gated:
            yield from [("mlp.w1.weight", (h, c)), ("mlp.w1.bias", (h,))]
            yield from [("mlp.w2.weight", (h, c)), ("mlp.w2.bias", (h,))]
            yield from [("mlp.w3.weight", (c, h)), ("mlp.w3.bias", (c,))]
        else:
            yield from [("mlp.fc1.weight", (h, c)), ("mlp.fc1.bias", (h,))]
            yield from [("mlp.fc2.weight", (c, h)), ("mlp.fc2.bias", (c,))]


@dataclass(frozen=True)
class ConvNeXt:
    """One of the published DINOv3 ConvNeXts."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]

    def shapes(self) -> Shapes:
        """Every tensor in its .pth file."""
        first, last = self.channels[0], self.channels[-1]
        shapes: Shapes = {
            "downsample_layers.0.0.weight": (first, 3, 4, 4),
            "downsample_layers.0.0.bias": (first,),
            "downsample_layers.0.1.weight": (first,),
            "downsample_layers.0.1.bias": (first,),
            "norm.weight": (last,),
            "norm.bias": (last,),
            "norms.3.weight": (last,),
            "norms.3.bias": (last,),
        }
        for stage in (1, 2, 3):
            before, c = self.channels[stage - 1 : stage + 1]
            shapes |= {
                f"downsample_layers.{stage}.0.weight": (before,),
                f"downsample_layers.{stage}.0.bias": (before,),
                f"downsample_layers.{stage}.1.weight": (c, before, 2, 2),
                f"downsample_layers.{stage}.1.bias": (c,),
            }
        for stage, (depth, c) in enumerate(zip(self.depths, self.channels, strict=True)):
            for block in range(depth):
                prefix = f"stages.{stage}.{block}"
                shapes |= {
                    f"{prefix}.gamma": (c,),
                    f"{prefix}.dwconv.weight": (c, 1, 7, 7),
                    f"{prefix}.dwconv.bias": (c,),
                    f"{prefix}.norm.weight": (c,),
                    f"{prefix}.norm.bias": (c,),
                    f"{prefix}.pwconv1.weight": (4 * c, c),
                    f"{prefix}.pwconv1.bias": (4 * c,),
                    f"{prefix}.pwconv2.weight": (c, 4 * c),
                    f"{prefix}.pwconv2.bias": (c,),
                }
        return shapes


PUBLISHED = {
    "ViT-S/16": ViT(384, 12, 1536),
    "ViT-S+/16": ViT(384, 12, 1536, gated=True),
    "ViT-B/16": ViT(768, 12, 3072),
    "ViT-L/16": ViT(1024, 24, 4096),
    "ViT-L/16 satellite": ViT(1024, 24, 4096, local_cls_norm=True),
    "ViT-H+/16": ViT(1280, 32, 5120, gated=True),
    "ConvNeXt-T": ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768)),
    "ConvNeXt-S": ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768)),
    "ConvNeXt-B": ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024)),
    "ConvNeXt-L": ConvNeXt((3, 3, 27, 3), (192, 384, 768, 1536)),
}
TINY_VIT = ViT(128, 2, 256)
TINY_CONVNEXT = ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32))


def random_tensors(shapes: Shapes) -> dict[str, Tensor]:
    """Numbers of a size that keeps features near 1, and the three tensors that a published file fixes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 or "token" in name else torch.Size(shape[1:]).numel() ** -0.5
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = centre + scale * torch.randn(shape, generator=generator)
        if name.endswith("bias_mask"):
            tensors[name] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(shape[0] // 3)
    if "rope_embed.periods" in tensors:
        count = HEAD_CHANNELS // 4
        tensors["rope_embed.periods"] = torch.tensor([100.0 ** (index / count) for index in range(count)])
    if "norms.3.weight" in tensors:
        tensors["norms.3.weight"], tensors["norms.3.bias"] = tensors["norm.weight"], tensors["norm.bias"]
    return tensors


def modules_of(model: nn.Module, class_name: str) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == class_name]


def put(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Give a linear layer, convolution or norm the weight and bias of that name."""
    module.weight.copy_(tensors[f"{name}.weight"])
    module.bias.copy_(tensors[f"{name}.bias"])


@torch.no_grad()
def vit_by_hand(architecture: ViT, tensors: dict[str, Tensor]) -> nn.Module:
    """transformers' ViT holding the same numbers, returning the maps of all blocks."""
    c = architecture.channels
    config = transformers.DINOv3ViTConfig(
        hidden_size=c,
        intermediate_size=architecture.hidden,
        num_hidden_layers=architecture.depth,
        num_attention_heads=c // HEAD_CHANNELS,
        num_register_tokens=4,
        use_gated_mlp=architecture.gated,
        hidden_act="silu" if architecture.gated else "gelu",
        out_indices=list(range(1, architecture.depth + 1)),
    )
    model = transformers.DINOv3ViTBackbone(config).eval()
    model.embeddings.cls_token.copy_(tensors["cls_token"])
    model.embeddings.register_tokens.copy_(tensors["storage_tokens"])
    put(model.embeddings.patch_embeddings, tensors, "patch_embed.proj")
    put(model.norm, tensors, "norm")
    for index, layer in enumerate(modules_of(model, "DINOv3ViTLayer")):
        block = f"blocks.{index}"
        put(layer.norm1, tensors, f"{block}.norm1")
        put(layer.norm2, tensors, f"{block}.norm2")
        weight, bias = tensors[f"{block}.attn.qkv.weight"], tensors[f"{block}.attn.qkv.bias"]
        layer.attention.q_proj.weight.copy_(weight[:c])
        layer.attention.k_proj.weight.copy_(weight[c : 2 * c])
        layer.attention.v_proj.weight.copy_(weight[2 * c :])
        layer.attention.q_proj.bias.copy_(bias[:c])
        layer.attention.v_proj.bias.copy_(bias[2 * c :])
        put(layer.attention.o_proj, tensors, f"{block}.attn.proj")
        layer.layer_scale1.lambda1.copy_(tensors[f"{block}.ls1.gamma"])
        layer.layer_scale2.lambda1.copy_(tensors[f"{block}.ls2.gamma"])
        if architecture.gated:
            put(layer.mlp.gate_proj, tensors, f"{block}.mlp.w1")
            put(layer.mlp.up_proj, tensors, f"{block}.mlp.w2")
            put(layer.mlp.down_proj, tensors, f"{block}.mlp.w3")
        else:
            put(layer.mlp.up_proj, tensors, f"{block}.mlp.fc1")
            put(layer.mlp.down_proj, tensors, f"{block}.mlp.fc2")
    return model


@torch.no_grad()
def convnext_by_hand(architecture: ConvNeXt, tensors: dict[str, Tensor]) -> nn.Module:
    """transformers' ConvNeXt holding the same numbers, returning the maps of all stages."""
    config = transformers.DINOv3ConvNextConfig(
        depths=list(architecture.depths), hidden_sizes=list(architecture.channels), out_indices=[1, 2, 3, 4]
    )
    model = transformers.DINOv3ConvNextBackbone(config).eval()
    for index, stage in enumerate(modules_of(model, "DINOv3ConvNextStage")):
        put(stage.downsample_layers[0], tensors, f"downsample_layers.{index}.0")
        put(stage.downsample_layers[1], tensors, f"downsample_layers.{index}.1")
        for number, block in enumerate(stage.layers):
            name = f"stages.{index}.{number}"
            block.gamma.copy_(tensors[f"{name}.gamma"])
            put(block.depthwise_conv, tensors, f"{name}.dwconv")
            put(block.layer_norm, tensors, f"{name}.norm")
            put(block.pointwise_conv1, tensors, f"{name}.pwconv1")
            put(block.pointwise_conv2, tensors, f"{name}.pwconv2")
    return model


def images() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "any_name.pth")
    return folder / "any_name.pth"


class TestFeatures:
    @pytest.mark.parametrize(
        "architecture", [PUBLISHED["ViT-S+/16"], TINY_VIT, ViT(64, 2, 128, gated=True, local_cls_norm=True)]
    )
    def test_a_vit_gives_the_features_of_its_hugging_face_form(self, architecture, tmp_path):
        tensors = random_tensors(architecture.shapes())
        by_hand = vit_by_hand(architecture, tensors)

        backbone = load_backbone(saved(tensors, tmp_path), range(architecture.depth))

        with torch.no_grad():
            expected = by_hand(images()).feature_maps
        torch.testing.assert_close(backbone(images()), list(expected), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("architecture", [PUBLISHED["ConvNeXt-T"], TINY_CONVNEXT])
    def test_a_convnext_gives_the_features_of_its_hugging_face_form(self, architecture, tmp_path):
        tensors = random_tensors(architecture.shapes())
        by_hand = convnext_by_hand(architecture, tensors)
        path = saved(tensors, tmp_path)

        maps = load_backbone(path, range(4))(images())
        (normed,) = load_backbone(path, feature_norm="final")(images())

        with torch.no_grad():
            expected = by_hand(images()).feature_maps
        torch.testing.assert_close(maps, list(expected), atol=1e-5, rtol=0)
        norm = nn.functional.layer_norm(
            expected[3].movedim(1, -1), architecture.channels[3:], tensors["norm.weight"], tensors["norm.bias"], 1e-6
        )
        torch.testing.assert_close(normed, norm.movedim(-1, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("architecture", [TINY_VIT, TINY_CONVNEXT])
    def test_both_forms_of_the_same_weights_have_one_identity(self, architecture, tmp_path):
        from_meta = load_backbone(saved(random_tensors(architecture.shapes()), tmp_path))
        save_backbone(from_meta, tmp_path / "folder")

        from_folder = load_backbone(tmp_path / "folder")

        assert backbone_identity(from_folder) == backbone_identity(from_meta)

    def test_without_a_bias_mask_the_bias_of_the_keys_is_kept(self):
        tensors = random_tensors(TINY_VIT.shapes())
        unmasked = {name: tensor for name, tensor in tensors.items() if not name.endswith("bias_mask")}

        config, converted = convert(unmasked)

        assert config["key_bias"] is True
        torch.testing.assert_close(
            converted["layer.1.attention.k_proj.bias"], tensors["blocks.1.attn.qkv.bias"][128:256]
        )


class TestArchitecture:
    """What each published model is told to be, from its tensors alone."""

    @pytest.mark.parametrize("name", [name for name, model in PUBLISHED.items() if isinstance(model, ViT)])
    def test_every_published_vit_is_recognised(self, name):
        architecture = PUBLISHED[name]

        config, _ = convert(without_numbers(architecture.shapes()))

        assert config == {
            "model_type": "dinov3_vit",
            "patch_size": 16,
            "num_channels": 3,
            "hidden_size": architecture.channels,
            "intermediate_size": architecture.hidden,
            "num_hidden_layers": architecture.depth,
            "num_attention_heads": architecture.channels // 64,
            "num_register_tokens": 4,
            "use_gated_mlp": architecture.gated,
            "hidden_act": "silu" if architecture.gated else "gelu",
            "layer_norm_eps": 1e-5,
            "rope_theta": 100.0,
            "query_bias": True,
            "key_bias": False,
            "value_bias": True,
        }

    @pytest.mark.parametrize("name", [name for name, model in PUBLISHED.items() if isinstance(model, ConvNeXt)])
    def test_every_published_convnext_is_recognised(self, name):
        architecture = PUBLISHED[name]

        config, _ = convert(without_numbers(architecture.shapes()))

        assert config == {
            "model_type": "dinov3_convnext",
            "num_channels": 3,
            "hidden_sizes": list(architecture.channels),
            "depths": list(architecture.depths),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        }

    def test_the_7b_model_is_refused_by_name(self):
        shapes = ViT(4096, 1, 8192, gated=True).shapes()

        with pytest.raises(BackboneError, match="ViT-7B/16 is not supported"):
            convert(without_numbers(shapes))


def without_numbers(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes that take no memory, except for those whose values tell something."""
    told = random_tensors({name: shape for name, shape in shapes.items() if name.endswith(("bias_mask", "periods"))})
    return {name: told.get(name, torch.zeros((), dtype=torch.uint8).expand(shape)) for name, shape in shapes.items()}


class Bomb:
    """Unpickling it with code allowed would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class TestMistakes:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"  <!DOCTYPE html><html>", "it is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer"),
            (b"", "damaged, incomplete"),
            (b"not weights at all", "damaged, incomplete"),
        ],
    )
    def test_a_file_that_is_no_checkpoint_is_refused_with_the_reason(self, content, reason, tmp_path):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)

        with pytest.raises(BackboneError, match=rf"weights.pth cannot be read as PyTorch weights: .*{reason}"):
            load_backbone(path)

    def test_a_truncated_file_is_refused(self, tmp_path):
        path = saved(random_tensors(TINY_CONVNEXT.shapes()), tmp_path)
        path.write_bytes(path.read_bytes()[:5000])

        with pytest.raises(BackboneError, match="damaged, incomplete"):
            load_backbone(path)

    def test_a_file_that_holds_code_is_refused_and_the_code_is_not_run(self, tmp_path):
        made = tmp_path / "made_by_code"
        torch.save({"cls_token": Bomb(made)}, tmp_path / "zip.pth")
        (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb(made), protocol=2))

        for name in ("zip.pth", "pickle.pth"):
            with pytest.raises(BackboneError, match="holds code besides tensors"):
                load_backbone(tmp_path / name)

        assert not made.exists()

    def test_an_absent_file_is_refused_with_where_to_get_it(self, tmp_path):
        with pytest.raises(BackboneError, match=r"no file .*dinov3_vits16.pth\. Download .*weights/README.md"):
            load_backbone(tmp_path / "dinov3_vits16.pth")

    @pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"epoch": 3}}, {"epoch": 3}])
    def test_what_is_no_dictionary_of_tensors_is_refused(self, content, tmp_path):
        with pytest.raises(BackboneError, match="is not a state dict"):
            load_backbone(saved(content, tmp_path))

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("pos_embed", "looks like an ordinary ViT"), ("fc.weight", r"named fc\.weight")],
    )
    def test_another_layout_is_refused_with_a_hint(self, name, hint, tmp_path):
        with pytest.raises(BackboneError, match=rf"any_name.pth: not a DINOv2 or DINOv3 backbone in a layout .*{hint}"):
            load_backbone(saved({name: torch.zeros(1)}, tmp_path))

    @pytest.mark.parametrize("architecture", [TINY_VIT, TINY_CONVNEXT])
    def test_an_absent_tensor_is_named_whichever_it_is(self, architecture, tmp_path):
        tensors = random_tensors(architecture.shapes())
        needless = {"local_cls_norm", "norms", "rope_embed"}
        for name in [name for name in tensors if name.split(".")[0] not in needless and "bias_mask" not in name]:
            path = saved({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path)

            with pytest.raises(BackboneError, match=r"missing|not a DINOv2 or DINOv3 backbone"):
                load_backbone(path)

    @pytest.mark.parametrize("name", ["blocks.0.attn.gate.weight", "blocks.1.mlp.fc1.scale", "head.weight"])
    def test_a_tensor_that_does_not_belong_is_named(self, name, tmp_path):
        tensors = random_tensors(TINY_VIT.shapes())

        with pytest.raises(BackboneError, match=rf"the tensor {name} does not belong"):
            load_backbone(saved({**tensors, name: torch.zeros(1)}, tmp_path))

    def test_a_tensor_of_a_wrong_shape_is_refused(self, tmp_path):
        tensors = random_tensors(TINY_VIT.shapes())
        tensors["blocks.1.mlp.fc2.bias"] = torch.zeros(3)

        with pytest.raises(BackboneError, match=r"of a wrong shape: .*mlp\.down_proj\.bias \(3,\) instead of \(128,\)"):
            load_backbone(saved(tensors, tmp_path))

    def test_a_mask_on_another_bias_than_the_keys_is_refused(self, tmp_path):
        tensors = random_tensors(TINY_VIT.shapes())
        tensors["blocks.1.attn.qkv.bias_mask"][0] = 0

        with pytest.raises(BackboneError, match=r"blocks\.1\.attn\.qkv\.bias_mask masks something else"):
            load_backbone(saved(tensors, tmp_path))

    def test_another_position_encoding_is_refused(self, tmp_path):
        tensors = random_tensors(TINY_VIT.shapes())
        tensors["rope_embed.periods"] *= 2

        with pytest.raises(BackboneError, match=r"rope_embed\.periods"):
            load_backbone(saved(tensors, tmp_path))
