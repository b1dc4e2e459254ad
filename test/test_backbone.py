"""Backbones: every family passes the checks of `TestEveryFamily`; what only some do is tested after them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from hub_server import Hub, point_the_hub_at, serving
from safetensors.torch import load_file, save_file
from torch import nn

from dinov3_seg_ros.bundle.onnx_folder import CANVASES
from dinov3_seg_ros.export import graphs
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.model.weights import build_backbone, load_backbone
from dinov3_seg_ros.support.errors import BackboneError, ImageError

HEIGHT, WIDTH = 64, 96


@dataclass(frozen=True)
class Family:
    """A tiny member of an architecture family, and what its layers must look like."""

    config: dict
    channels: list[int]
    strides: list[int]
    options: dict = field(default_factory=dict)
    """Of `build_backbone` and `load_backbone`."""

    def build(self, layers: list[int] | None = None, **options: object) -> Backbone:
        """A frozen backbone in evaluation mode in which no weight is a constant such as 0, 1 or 1e-6."""
        torch.manual_seed(0)
        backbone = build_backbone(self.config, layers, **{**self.options, **options})
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        backbone.freeze()
        return backbone.eval()

    def load(self, folder: Path, layers: list[int] | None = None, **options: object) -> Backbone:
        return load_backbone(folder, layers, **self.options, **options)


VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16, "drop_path_rate": 0.3}
FAMILIES = {
    "dinov3_vit": Family(
        {**VIT, "model_type": "dinov3_vit", "intermediate_size": 64, "num_register_tokens": 4}, [32] * 4, [16] * 4
    ),
    "dinov3_vit_gated": Family(
        {
            **VIT,
            "model_type": "dinov3_vit",
            "intermediate_size": 48,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
        [32] * 4,
        [16] * 4,
    ),
    "dinov3_convnext": Family(
        {
            "model_type": "dinov3_convnext",
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 2, 1],
            "drop_path_rate": 0.3,
        },
        [8, 16, 24, 32],
        [4, 8, 16, 32],
    ),
    "dinov2": Family({**VIT, "model_type": "dinov2", "image_size": 64}, [32] * 4, [16] * 4),
    "dinov2_gated": Family(
        {**VIT, "model_type": "dinov2", "image_size": 64, "use_swiglu_ffn": True}, [32] * 4, [16] * 4
    ),
    "dinov2_with_registers": Family(
        {**VIT, "model_type": "dinov2_with_registers", "image_size": 64, "num_register_tokens": 4}, [32] * 4, [16] * 4
    ),
    "resnet": Family(
        {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]},
        [8, 16, 24, 32],
        [4, 8, 16, 32],
    ),
    "resnet_basic": Family(
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "downsample_in_first_stage": True,
        },
        [8, 16],
        [8, 16],
    ),
}
FAMILIES |= {
    "dinov3_vit_class_token": replace(FAMILIES["dinov3_vit"], channels=[64] * 4, options={"class_token": True}),
    "dinov2_class_token": replace(FAMILIES["dinov2"], channels=[64] * 4, options={"class_token": True}),
    "resnet_dilated": replace(FAMILIES["resnet"], strides=[4, 8, 8, 8], options={"output_stride": 8}),
}
ALL_LAYERS = {name: list(range(len(family.strides))) for name, family in FAMILIES.items()}


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def assert_same_maps(maps: list[torch.Tensor], expected: list[torch.Tensor], atol: float = 0.0) -> None:
    torch.testing.assert_close(list(maps), list(expected), atol=atol, rtol=0.0)


def edit_config(folder: Path, option: dict) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **option}))


def last_part(key: str) -> str:
    """The end of a tensor's name, which transformers has in common between its files and its modules."""
    return key.rsplit(".", 1)[1]


@pytest.mark.parametrize("name", FAMILIES)
class TestEveryFamily:
    """A check added here holds for each architecture."""

    def test_maps_have_the_announced_shapes_at_a_rectangular_size(self, name):
        family = FAMILIES[name]
        backbone = family.build(ALL_LAYERS[name])

        maps = backbone(images())

        assert backbone.channels == family.channels
        assert backbone.strides == family.strides
        assert backbone.patch_multiple == max(family.strides)
        assert [tuple(feature.shape) for feature in maps] == [
            (2, channels, HEIGHT // stride, WIDTH // stride)
            for channels, stride in zip(family.channels, family.strides, strict=True)
        ]

    def test_weights_have_the_names_that_are_published(self, name):
        backbone = FAMILIES[name].build()

        prefix = f"{backbone.model.base_model_prefix}."  # of some releases of transformers
        assert [key for key in backbone.checkpoint_tensors() if key.startswith(prefix)] == []

    def test_the_last_layer_is_the_default(self, name):
        backbone = FAMILIES[name].build()

        assert backbone.layers == [len(FAMILIES[name].strides) - 1]
        assert backbone.channels == FAMILIES[name].channels[-1:]

    def test_maps_come_in_the_order_of_layers_negatives_from_the_end(self, name):
        everything = FAMILIES[name].build(ALL_LAYERS[name])(images())

        backbone = FAMILIES[name].build([-1, 0, -2] if len(everything) > 2 else [-1, 0])

        assert_same_maps(backbone(images()), [everything[layer] for layer in backbone.layers])
        assert backbone.channels == [feature.shape[1] for feature in backbone(images())]

    def test_a_block_behind_the_deepest_layer_is_not_computed(self, name):
        backbone = FAMILIES[name].build([0])
        expected = backbone(images())

        with torch.no_grad():
            for parameter in backbone._blocks[1].parameters():
                parameter.fill_(torch.nan)

        assert_same_maps(backbone(images()), expected)

    def test_a_size_that_is_no_multiple_is_refused(self, name):
        backbone = FAMILIES[name].build()

        with pytest.raises(ImageError, match=rf"64x97.*multiples of {backbone.patch_multiple}"):
            backbone(torch.zeros(1, 3, 64, 97))

    def test_a_frozen_backbone_builds_no_graph(self, name):
        backbone = FAMILIES[name].build([0])

        maps = backbone(images().requires_grad_())

        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not any(feature.requires_grad for feature in maps)

    def test_a_frozen_backbone_in_training_mode_stays_deterministic(self, name):
        backbone = FAMILIES[name].build(ALL_LAYERS[name])
        expected = backbone(images())
        before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}

        backbone.train()

        assert backbone.training
        for _ in range(2):
            assert_same_maps(backbone(images()), expected)
        torch.testing.assert_close(backbone.state_dict(), before, atol=0.0, rtol=0.0)

    def test_with_one_block_unfrozen_only_it_and_the_final_norm_train(self, name):
        backbone = FAMILIES[name].build([0, 1])
        first, last = backbone._blocks
        backbone.freeze(1)
        backbone.train()

        sum(feature.square().sum() for feature in backbone(images())).backward()

        expected = set(last.parameters())
        if backbone.feature_norm == "final":
            expected.update(
                *(norm.parameters() for norm in backbone.model.children() if isinstance(norm, nn.LayerNorm))
            )
        assert {parameter for parameter in backbone.parameters() if parameter.grad is not None} == expected
        assert {parameter for parameter in backbone.parameters() if parameter.requires_grad} == expected
        assert last.training and not first.training

    def test_unfrozen_as_a_whole_every_trainable_parameter_gets_a_gradient(self, name):
        backbone = FAMILIES[name].build([1])
        backbone.freeze("all")

        sum(feature.square().sum() for feature in backbone(images())).backward()

        waiting = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
        assert len(waiting) > 10
        assert [key for key in waiting if backbone.get_parameter(key).grad is None] == []

    def test_freezing_again_stops_training(self, name):
        backbone = FAMILIES[name].build()
        backbone.freeze("all")
        backbone.train()

        backbone.freeze()

        assert not any(module.training for module in backbone.model.modules())
        assert not backbone(images())[0].requires_grad

    @pytest.mark.parametrize("count", [-1, 3, 1.5, "some"])
    def test_an_impossible_number_of_trainable_blocks_is_refused(self, name, count):
        with pytest.raises(BackboneError, match="number from 0 to 2"):
            FAMILIES[name].build([1]).freeze(count)

    def test_saved_with_few_layers_and_loaded_with_all_it_is_the_same_network(self, name, tmp_path):
        whole = FAMILIES[name].build(ALL_LAYERS[name])
        save_backbone(FAMILIES[name].build([0]), tmp_path / "saved")

        loaded = FAMILIES[name].load(tmp_path / "saved", ALL_LAYERS[name])

        assert not loaded.training and loaded.trainable_blocks == 0
        assert_same_maps(loaded(images()), whole(images()))
        assert backbone_identity(loaded) == backbone_identity(whole)

    def test_in_half_precision_it_agrees_to_rounding_and_keeps_its_identity(self, name, tmp_path):
        backbone = FAMILIES[name].build(ALL_LAYERS[name])
        save_backbone(backbone, tmp_path / "once", torch.float16)
        once = FAMILIES[name].load(tmp_path / "once", ALL_LAYERS[name])
        save_backbone(once, tmp_path / "twice", torch.float16)

        assert {t.dtype for t in load_file(tmp_path / "once" / "model.safetensors").values()} <= {
            torch.float16,
            torch.int64,
        }
        assert_same_maps(once(images()), backbone(images()), atol=0.05)
        assert backbone_identity(load_backbone(tmp_path / "twice")) == backbone_identity(once)
        assert backbone_identity(once) != backbone_identity(backbone)

    def test_a_saved_folder_is_one_that_hugging_face_reads_without_complaint(self, name, tmp_path):
        save_backbone(FAMILIES[name].build(), tmp_path / "saved")

        # AutoBackbone.from_pretrained asks the hub about local folders too, so its class is looked up by hand.
        kind = type(transformers.AutoBackbone.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "saved")))
        model, report = kind.from_pretrained(tmp_path / "saved", output_loading_info=True)

        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert report["unexpected_keys"] <= {"layer_norm.weight", "layer_norm.bias"}
        assert_same_maps(model(images()).feature_maps, load_backbone(tmp_path / "saved")(images()))

    def test_loading_says_nothing(self, name, tmp_path, capfd, caplog):
        save_backbone(FAMILIES[name].build(), tmp_path / "saved")
        capfd.readouterr()

        load_backbone(tmp_path / "saved", [0])

        assert capfd.readouterr() == ("", "")
        assert caplog.records == []

    def test_of_a_configuration_only_the_architecture_counts(self, name, tmp_path):
        save_backbone(FAMILIES[name].build(), tmp_path / "saved")
        expected = load_backbone(tmp_path / "saved")
        edit_config(
            tmp_path / "saved",
            {
                "attn_implementation": "someone/kernel",
                "_attn_implementation": "flash_attention_2",
                "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
                "auto_map": {"AutoModel": "code.Model"},
                "dtype": "evil",
                "num_labels": -1,
                "id2label": "none",
                "return_dict": False,
            },
        )

        loaded = load_backbone(tmp_path / "saved")

        assert loaded.model.config.to_dict() == expected.model.config.to_dict()
        assert_same_maps(loaded(images()), expected(images()))

    def test_changed_tensors_take_the_place_of_the_saved_ones(self, name, tmp_path):
        backbone = FAMILIES[name].build()
        save_backbone(backbone, tmp_path / "saved")
        key, tensor = next((k, t) for k, t in backbone.checkpoint_tensors().items() if t.ndim == 4)

        changed = load_backbone(tmp_path / "saved", changed={key: tensor + 1})

        torch.testing.assert_close(changed.checkpoint_tensors()[key], tensor + 1)
        with pytest.raises(BackboneError, match="unexpected: nonsense"):
            load_backbone(tmp_path / "saved", changed={"nonsense": tensor})

    def test_weights_that_do_not_fit_are_refused_by_name(self, name, tmp_path):
        save_backbone(FAMILIES[name].build(), tmp_path / "saved")
        tensors = load_file(tmp_path / "saved" / "model.safetensors")
        absent, misshapen = sorted(key for key, tensor in tensors.items() if tensor.ndim == 2 or tensor.ndim == 4)[:2]
        del tensors[absent]
        tensors[misshapen] = tensors[misshapen][:1]
        save_file({**tensors, "nonsense": torch.zeros(1)}, tmp_path / "saved" / "model.safetensors")

        with pytest.raises(BackboneError) as refusal:
            load_backbone(tmp_path / "saved")

        complaints = str(refusal.value)
        assert "1 missing" in complaints and last_part(absent) in complaints
        assert "1 unexpected: nonsense" in complaints
        assert "1 of a wrong shape" in complaints and "instead of" in complaints

    @pytest.mark.usefixtures("operators_listed_once")
    def test_its_exported_graph_gives_the_same_maps_at_any_batch(self, name, tmp_path):
        backbone, mean, std = FAMILIES[name].build([1, 0]), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
        canvases = np.random.default_rng(1).integers(256, size=(3, HEIGHT, WIDTH, 3), dtype=np.uint8)
        expected = backbone(Normalise(mean, std)(torch.from_numpy(canvases)))

        graph = graphs.BackboneGraph(backbone, (HEIGHT, WIDTH), mean, std)
        graphs.export_backbone(graph, (HEIGHT, WIDTH), tmp_path / "backbone.onnx", {})
        session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])

        for ours, its in zip(session.run(None, {CANVASES: canvases}), expected, strict=True):
            np.testing.assert_allclose(ours, its.numpy(), atol=1e-4, rtol=0)


def save_as_hugging_face_model(kind: type, config: dict, folder: Path) -> nn.Module:
    """A whole model (not only a backbone) with random weights, written by transformers itself."""
    torch.manual_seed(0)
    model = kind(kind.config_class.from_dict(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


class TestHuggingFaceModels:
    @pytest.mark.parametrize(
        ("kind", "name", "prefix_tokens"),
        [
            (transformers.DINOv3ViTModel, "dinov3_vit", 5),
            (transformers.DINOv3ConvNextModel, "dinov3_convnext", 1),
            (transformers.Dinov2Model, "dinov2", 1),
            (transformers.Dinov2WithRegistersModel, "dinov2_with_registers", 5),
        ],
    )
    def test_the_last_map_with_final_norm_is_the_models_own_output(self, kind, name, prefix_tokens, tmp_path):
        model = save_as_hugging_face_model(kind, FAMILIES[name].config, tmp_path)

        (feature,) = load_backbone(tmp_path, feature_norm="final")(images())

        with torch.no_grad():
            tokens = model(images()).last_hidden_state[:, prefix_tokens:]
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens, atol=1e-6, rtol=0)

    def test_block_n_is_transformers_stage_n_plus_one(self, tmp_path):
        config = {**FAMILIES["dinov3_vit"].config, "out_indices": [2]}
        model = save_as_hugging_face_model(transformers.DINOv3ViTBackbone, config, tmp_path)

        with torch.no_grad():
            assert_same_maps(load_backbone(tmp_path, [1])(images()), model(images()).feature_maps)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (transformers.ResNetForImageClassification, "resnet"),
            (transformers.Dinov2ForImageClassification, "dinov2"),
        ],
    )
    def test_a_published_classifier_serves_as_backbone(self, kind, name, tmp_path):
        model = save_as_hugging_face_model(kind, FAMILIES[name].config, tmp_path / "classifier")
        base = getattr(model, model.base_model_prefix)
        base.save_pretrained(tmp_path / "base")

        backbone = load_backbone(tmp_path / "classifier")

        assert backbone_identity(backbone) == backbone_identity(load_backbone(tmp_path / "base"))


class TestConvNextFeatureNorm:
    def test_final_norms_the_channels_of_the_last_stage_only(self):
        plain = FAMILIES["dinov3_convnext"].build([3, 2])
        normed = FAMILIES["dinov3_convnext"].build([3, 2], feature_norm="final")
        norm = normed.model.layer_norm

        last, middle = plain(images())
        expected = nn.functional.layer_norm(last.permute(0, 2, 3, 1), (32,), norm.weight, norm.bias, norm.eps)

        assert (plain.feature_norm, normed.feature_norm) == ("none", "final")
        assert_same_maps(normed(images()), [expected.permute(0, 3, 1, 2), middle], atol=1e-6)

    @pytest.mark.parametrize("layers", [[3], [1]])
    def test_final_trains_where_it_is_applied_and_nowhere_else(self, layers):
        backbone = FAMILIES["dinov3_convnext"].build(layers, feature_norm="final")
        backbone.freeze("all")

        backbone(images())[0].square().sum().backward()

        assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)
        assert backbone.model.layer_norm.weight.requires_grad == (layers == [3])

    def test_the_identity_does_not_depend_on_it(self):
        build = FAMILIES["dinov3_convnext"].build

        assert backbone_identity(build(feature_norm="final")) == backbone_identity(build())

    def test_a_checkpoint_without_the_norm_serves_all_but_final(self, tmp_path):
        config = FAMILIES["dinov3_convnext"].config
        model = save_as_hugging_face_model(transformers.DINOv3ConvNextBackbone, config, tmp_path / "bare")

        backbone = load_backbone(tmp_path / "bare")

        with torch.no_grad():
            assert_same_maps(backbone(images()), model(images()).feature_maps)
        save_backbone(backbone, tmp_path / "again")
        assert backbone_identity(load_backbone(tmp_path / "again")) == backbone_identity(backbone)
        with pytest.raises(BackboneError, match="no final norm"):
            load_backbone(tmp_path / "bare", feature_norm="final")

    @pytest.mark.parametrize(("name", "norm"), [("dinov3_vit", "none"), ("resnet", "final"), ("dinov2", "first")])
    def test_a_norm_that_the_family_does_not_offer_is_refused(self, name, norm):
        with pytest.raises(BackboneError, match=f"feature_norm is '{norm}'"):
            FAMILIES[name].build(feature_norm=norm)


class TestClassToken:
    @pytest.mark.parametrize(
        ("kind", "name"), [(transformers.DINOv3ViTModel, "dinov3_vit"), (transformers.Dinov2Model, "dinov2")]
    )
    def test_it_follows_the_map_in_every_cell_and_is_the_models_own(self, kind, name, tmp_path):
        model = save_as_hugging_face_model(kind, FAMILIES[name].config, tmp_path)

        (feature,) = load_backbone(tmp_path, class_token=True)(images())

        with torch.no_grad():
            token = model(images()).last_hidden_state[:, 0, :, None, None]
        assert_same_maps([feature[:, :32]], load_backbone(tmp_path)(images()))
        torch.testing.assert_close(feature[:, 32:], token.expand(-1, -1, 4, 6), atol=1e-6, rtol=0)

    def test_each_map_has_the_token_of_its_own_block(self):
        build = FAMILIES["dinov3_vit_class_token"].build
        first, last = build([0])(images())[0], build([3])(images())[0]

        assert not torch.equal(first[:, 32:], last[:, 32:])
        assert_same_maps(build([3, 0])(images()), [last, first])

    @pytest.mark.parametrize("name", ["dinov3_convnext", "resnet"])
    def test_a_network_without_one_says_so(self, name):
        with pytest.raises(BackboneError, match=f"a {name} has no class token; a ViT has one"):
            FAMILIES[name].build(class_token=True)


class TestOutputStride:
    @pytest.mark.parametrize(
        "changes",
        [
            {"depths": [1, 2, 2, 3]},
            {"depths": [1, 2, 2, 2], "downsample_in_bottleneck": True},
            {"depths": [1, 2, 2, 2], "layer_type": "basic"},
            {"depths": [1, 2, 2], "hidden_sizes": [8, 16, 24], "downsample_in_first_stage": True},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("output_stride", [8, 16])
    def test_the_dilated_network_has_the_original_one_on_the_coarse_grid(self, changes, output_stride):
        family = replace(FAMILIES["resnet"], config={**FAMILIES["resnet"].config, **changes})
        layers = range(len(changes["depths"]))
        coarse = family.build(layers)
        fine = family.build(layers, output_stride=output_stride)

        assert fine.strides == [min(stride, output_stride) for stride in coarse.strides]
        assert fine.patch_multiple == output_stride
        for coarse_map, fine_map, stride in zip(coarse(images()), fine(images()), coarse.strides, strict=True):
            step = max(1, stride // output_stride)
            torch.testing.assert_close(fine_map[..., ::step, ::step], coarse_map, atol=1e-4, rtol=1e-4)

    def test_resnet_50_has_stride_32_or_dilated_8_with_the_same_weights(self):
        with torch.device("meta"):
            plain, dilated = (
                build_backbone({"model_type": "resnet"}, range(4), output_stride=stride) for stride in (None, 8)
            )
            maps = dilated(torch.zeros(1, 3, 224, 224))

        assert (plain.strides, plain.output_stride) == ([4, 8, 16, 32], None)
        assert (dilated.strides, dilated.output_stride) == ([4, 8, 8, 8], 8)
        assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 28, 28), (2048, 28, 28)]
        shapes = [{name: t.shape for name, t in network.state_dict().items()} for network in (plain, dilated)]
        assert shapes[0] == shapes[1]

    def test_sizes_between_the_original_multiples_are_welcome(self):
        (feature,) = FAMILIES["resnet_dilated"].build()(torch.zeros(1, 3, 40, 56))

        assert feature.shape == (1, 32, 5, 7)

    def test_neither_the_identity_nor_what_is_saved_depends_on_it(self, tmp_path):
        dilated, plain = FAMILIES["resnet_dilated"].build(), FAMILIES["resnet"].build()
        save_backbone(dilated, tmp_path)

        assert backbone_identity(dilated) == backbone_identity(plain)
        assert load_backbone(tmp_path).strides == [32]
        assert_same_maps(load_backbone(tmp_path)(images()), plain(images()))

    def test_a_backbone_made_from_a_dilated_model_announces_what_it_gives(self):
        model = FAMILIES["resnet_dilated"].build([1]).model

        assert Backbone(model, [3]).strides == [8]

    @pytest.mark.parametrize("stride", [0, 2, 12, 64])
    def test_a_stride_the_network_does_not_pass_through_is_refused(self, stride):
        with pytest.raises(BackboneError, match=f"output_stride is {stride}; this resnet offers 4, 8, 16, 32"):
            FAMILIES["resnet"].build(output_stride=stride)

    @pytest.mark.parametrize("name", ["dinov3_convnext", "dinov2"])
    def test_only_a_resnet_can_be_dilated(self, name):
        with pytest.raises(BackboneError, match=f"only a resnet can be dilated; this is a {name}"):
            FAMILIES[name].build(output_stride=8)


class TestDinov2Sizes:
    """The four that Oquab et al., "DINOv2" (2023, arXiv:2304.07193) published, at patch 14 and 518 pixels."""

    @pytest.mark.parametrize(
        ("hidden_size", "depth", "heads", "swiglu", "parameters"),
        [
            (384, 12, 6, False, 22_056_576),
            (768, 12, 12, False, 86_580_480),
            (1024, 24, 16, False, 304_368_640),
            (1536, 40, 24, True, 1_136_480_768),
        ],
        ids=["small", "base", "large", "giant"],
    )
    def test_it_has_the_published_number_of_parameters(self, hidden_size, depth, heads, swiglu, parameters):
        config = {
            "model_type": "dinov2",
            "hidden_size": hidden_size,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "use_swiglu_ffn": swiglu,
            "image_size": 518,
            "patch_size": 14,
        }
        with torch.device("meta"):
            backbone = build_backbone(config, range(depth - 4, depth))

        assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
        assert (backbone.channels, backbone.strides) == ([hidden_size] * 4, [14] * 4)

    def test_at_patch_14_maps_have_one_cell_for_each_patch(self):
        family = replace(FAMILIES["dinov2"], config={**FAMILIES["dinov2"].config, "patch_size": 14, "image_size": 56})
        backbone = family.build()

        for height, width in [(4, 4), (3, 5), (6, 4)]:
            assert backbone(torch.zeros(1, 3, 14 * height, 14 * width))[0].shape == (1, 32, height, width)


class TestTrainingMode:
    """What must not happen to a frozen backbone does happen to one that trains."""

    def test_an_unfrozen_vit_jitters_its_positions(self):
        backbone = FAMILIES["dinov3_vit"].build()
        backbone.freeze("all")
        backbone.train()

        first, second = backbone(images())[0], backbone(images())[0]

        assert not torch.equal(first, second)

    def test_only_an_unfrozen_resnet_stage_updates_its_statistics(self):
        backbone = FAMILIES["resnet"].build()
        before = {key: tensor.clone() for key, tensor in backbone.state_dict().items() if "running" in key}
        backbone.freeze(1)
        backbone.train()

        backbone(images())

        moved = {key for key, tensor in before.items() if not torch.equal(backbone.state_dict()[key], tensor)}
        assert moved == {key for key in before if "stages.3" in key}

    def test_a_backbone_built_from_scratch_is_ready_to_train(self):
        backbone = build_backbone(FAMILIES["resnet"].config)

        assert backbone.training and backbone.trainable_blocks == "all"


class TestIdentity:
    def test_it_is_a_sha256_that_layers_do_not_change(self):
        build = FAMILIES["dinov3_vit"].build

        assert len(backbone_identity(build())) == 64
        assert backbone_identity(build([0])) == backbone_identity(build([1, 2]))

    @pytest.mark.parametrize("name", ["dinov3_vit", "dinov2"])
    def test_the_mask_token_which_only_pretraining_uses_leaves_it(self, name):
        backbone = FAMILIES[name].build()
        before = backbone_identity(backbone)

        with torch.no_grad():
            backbone.get_parameter("model.embeddings.mask_token").add_(1.0)

        assert backbone_identity(backbone) == before

    def test_the_smallest_change_of_a_weight_changes_it(self):
        backbone = FAMILIES["dinov3_vit"].build()
        before = backbone_identity(backbone)

        with torch.no_grad():
            backbone._blocks[3].norm1.bias[0] += 1e-6

        assert backbone_identity(backbone) != before

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            *(("dinov3_vit", {"num_attention_heads": 4}), ("dinov3_vit", {"layer_norm_eps": 1e-6})),
            *(("dinov3_vit", {"rope_theta": 50.0}), ("dinov3_vit", {"hidden_act": "relu"})),
            *(("dinov3_convnext", {"layer_norm_eps": 1e-5}), ("dinov3_convnext", {"hidden_act": "relu"})),
            *((name, {"num_attention_heads": 4}) for name in ("dinov2", "dinov2_with_registers")),
            *((name, {"layer_norm_eps": 1e-5}) for name in ("dinov2", "dinov2_with_registers")),
            *((name, {"hidden_act": "relu"}) for name in ("dinov2", "dinov2_with_registers")),
            *(("resnet", {"hidden_act": "gelu"}), ("resnet", {"downsample_in_bottleneck": True})),
        ],
        ids=str,
    )
    def test_configuration_that_weights_do_not_tell_changes_it(self, name, option):
        family = FAMILIES[name]
        other = Family({**family.config, **option}, family.channels, family.strides)

        assert backbone_identity(other.build()) != backbone_identity(family.build())

    @pytest.mark.parametrize("option", [{"image_size": 512}, {"drop_path_rate": 0.0}, {"out_indices": [1]}])
    def test_configuration_that_features_do_not_depend_on_leaves_it(self, option):
        family = FAMILIES["dinov3_vit"]
        other = family.build()
        for key, value in option.items():
            setattr(other.model.config, key, value)

        assert backbone_identity(other) == backbone_identity(family.build())


class TestMistakes:
    def test_a_backbone_over_the_model_of_another_has_all_its_blocks(self):
        whole = FAMILIES["dinov3_vit"].build([0, 3])
        few = FAMILIES["dinov3_vit"].build([0])

        assert_same_maps(Backbone(few.model, [0, 3])(images()), whole(images()))

    @pytest.mark.parametrize("layers", [[], [4], [-5], [0, 4]])
    def test_layers_out_of_range_are_refused(self, layers):
        with pytest.raises(BackboneError, match="layers 0 to 3"):
            FAMILIES["dinov3_vit"].build(layers)

    @pytest.mark.parametrize("layers", [[1, 1], [3, -1]])
    def test_a_layer_named_twice_is_refused(self, layers):
        with pytest.raises(BackboneError, match="twice"):
            FAMILIES["dinov3_vit"].build(layers)

    @pytest.mark.parametrize("model_type", ["vit", ["dinov3_vit"]])
    def test_an_unknown_architecture_is_refused_with_those_known(self, model_type):
        with pytest.raises(BackboneError, match=f"{re.escape(repr(model_type))}; supported are dinov3_vit"):
            build_backbone({"model_type": model_type})

    def test_a_configuration_value_of_a_wrong_type_is_refused(self):
        with pytest.raises(BackboneError, match="hidden_size"):
            build_backbone({"model_type": "dinov3_vit", "hidden_size": "wide"})

    @pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
    def test_a_folder_that_lacks_a_file_is_refused(self, absent, tmp_path):
        save_backbone(FAMILIES["resnet"].build(), tmp_path / "saved")
        (tmp_path / "saved" / absent).unlink()

        with pytest.raises(BackboneError, match=rf"saved has no {absent};.*weights/README.md"):
            load_backbone(tmp_path / "saved")

    def test_truncated_weights_are_refused(self, tmp_path):
        save_backbone(FAMILIES["resnet"].build(), tmp_path / "saved")
        weights = tmp_path / "saved" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])

        with pytest.raises(BackboneError, match=r"model.safetensors are damaged or incomplete"):
            load_backbone(tmp_path / "saved")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_weights_that_are_not_finite_are_refused(self, suffix, value, tmp_path):
        tensors = FAMILIES["dinov3_convnext"].build().checkpoint_tensors()
        name = next(key for key in tensors if last_part(key) == "bias")
        tensors[name][0] = value
        path = tmp_path / f"backbone{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(tensors, path)

        with pytest.raises(BackboneError, match=rf"{path} cannot be used: .*bias holds values that are not finite"):
            load_backbone(path)

    @pytest.mark.parametrize(
        "option",
        [
            {"hidden_act": "x"}, {"depths": []}, {"hidden_sizes": [8, 16, 24, -32]}, {"out_features": ["stage9"]},
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("family", ["dinov3_convnext", "resnet"])
    def test_a_configuration_that_builds_no_network_is_refused(self, family, option, tmp_path):
        save_backbone(FAMILIES[family].build(), tmp_path / "saved")
        edit_config(tmp_path / "saved", option)

        with pytest.raises(
            BackboneError, match=rf"The {family} configuration from {tmp_path / 'saved'} is not valid: "
        ):
            load_backbone(tmp_path / "saved")

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
    @pytest.mark.parametrize("text", ["{", 100_000 * "["], ids=["cut", "deep"])
    def test_a_file_that_is_no_json_is_refused(self, text, name, tmp_path):
        save_backbone(FAMILIES["resnet"].build(), tmp_path / "saved")
        (tmp_path / "saved" / name).write_text(text)

        with pytest.raises(BackboneError, match=rf"{name} cannot be read as JSON"):
            load_backbone(tmp_path / "saved")

    def test_a_configuration_that_is_no_json_object_is_refused(self, tmp_path):
        save_backbone(FAMILIES["resnet"].build(), tmp_path / "saved")
        (tmp_path / "saved" / "config.json").write_text("[1]")

        with pytest.raises(BackboneError, match=r"config\.json is not a JSON object"):
            load_backbone(tmp_path / "saved")

    @pytest.mark.parametrize("source", ["/nowhere/at/all", "one/two/three", "not an id"])
    def test_what_is_neither_path_nor_id_is_refused(self, source):
        where = "" if source.startswith("/") else f" in {re.escape(os.getcwd())}"
        with pytest.raises(BackboneError, match=f"'{source}' is no folder and no file{where}, no Hugging Face id"):
            load_backbone(source)


class TestHub:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        save_backbone(FAMILIES["resnet"].build(), tmp_path / "served")
        handler = type("ThisHub", (Hub,), {"files": tmp_path / "served", "requests": []})
        with serving(handler) as address:
            point_the_hub_at(address, monkeypatch)
            yield handler

    def test_an_id_is_fetched_once_and_then_taken_from_the_cache_unasked(self, hub):
        fetched = load_backbone("lab/resnet-tiny")
        asked = len(hub.requests)

        again = load_backbone("lab/resnet-tiny")

        assert backbone_identity(fetched) == backbone_identity(FAMILIES["resnet"].build())
        assert backbone_identity(again) == backbone_identity(fetched)
        assert asked > 0 and len(hub.requests) == asked

    @pytest.mark.parametrize(
        ("repository", "reason"),
        [
            ("GatedRepo", "is gated and this machine has no access"),
            ("RepoNotFound", "does not exist on Hugging Face"),
            ("EntryNotFound", "has no model.safetensors on Hugging Face"),
            ("Broken", "was refused by Hugging Face"),
        ],
    )
    def test_a_refusal_says_why_and_how_to_get_the_weights(self, hub, repository, reason):
        with pytest.raises(BackboneError, match=rf"'lab/{repository}' {reason}.*hf auth login.*weights/README.md"):
            load_backbone(f"lab/{repository}")

    def test_without_a_network_it_fails_at_once(self, monkeypatch, caplog):
        point_the_hub_at("http://127.0.0.1:9", monkeypatch)

        with pytest.raises(BackboneError, match=r"cannot be reached.*hf auth login"):
            load_backbone("facebook/dinov3-vits16-pretrain-lvd1689m")

        assert "Retrying" not in caplog.text

    def test_offline_mode_is_respected(self, hub, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

        with pytest.raises(BackboneError, match="HF_HUB_OFFLINE"):
            load_backbone("lab/resnet-tiny")

        assert hub.requests == []


def test_the_configuration_on_disk_names_no_layers_and_no_library_version(tmp_path):
    save_backbone(FAMILIES["dinov3_vit"].build([1]), tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())

    assert config["model_type"] == "dinov3_vit" and config["dtype"] == "float32"
    assert not {"out_indices", "out_features", "transformers_version"} & config.keys()
