"""Checkpoints as people have them: every layout must give the features of the same network in Hugging Face's form."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub, point_the_hub_at, serving
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from trainings import forget_accelerator, tiny_recipe

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.pretrained.normalisation import IMAGENET, SATELLITE
from dinov3_seg_ros.model.weights import build_backbone, load_backbone
from dinov3_seg_ros.support.errors import BackboneError, RecipeError
from training.loop.trainer import Trainer
from training.recipes.resolve import resolve

VIT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
CONFIGS = {
    "dinov3_vit": {
        **VIT,
        "model_type": "dinov3_vit",
        "intermediate_size": 256,
        "num_register_tokens": 4,
        "key_bias": False,
    },
    "dinov3_vit_gated": {
        **VIT,
        "model_type": "dinov3_vit",
        "intermediate_size": 192,
        "num_register_tokens": 4,
        "key_bias": False,
        "use_gated_mlp": True,
        "hidden_act": "silu",
    },
    "dinov3_convnext": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "dinov2": {**VIT, "model_type": "dinov2", "image_size": 64},
    "dinov2_gated": {**VIT, "model_type": "dinov2", "image_size": 64, "use_swiglu_ffn": True},
    "dinov2_with_registers": {
        **VIT,
        "model_type": "dinov2_with_registers",
        "image_size": 64,
        "num_register_tokens": 4,
    },
}


def build(name: str) -> Backbone:
    """A frozen backbone whose weights are all different."""
    torch.manual_seed(0)
    backbone = build_backbone(CONFIGS[name])
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.freeze()
    return backbone.eval()


def images() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def assert_same_features(source: Path | str, backbone: Backbone) -> Backbone:
    """Load a source, which must compute what ``backbone`` does."""
    loaded = load_backbone(source)
    torch.testing.assert_close(loaded(images()), backbone(images()), atol=1e-5, rtol=0)
    return loaded


def renamed(tensors: dict[str, Tensor], names: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors with the names that a list of patterns gives, all that match being applied in turn."""
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def fuse_attention(tensors: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Join query, key and value, which ``pattern`` finds as block and kind, into Meta's qkv."""
    fused, parts = {}, {}
    for name, tensor in tensors.items():
        found = re.fullmatch(pattern, name)
        if found:
            parts.setdefault((found["block"], found["kind"]), {})[found["which"][0]] = tensor
        else:
            fused[name] = tensor
    for (block, kind), part in parts.items():
        key = part.get("k", torch.zeros_like(part["q"]))
        fused[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([part["q"], key, part["v"]])
    return fused


def dinov2_as_meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pattern = r"encoder\.layer\.(?P<block>\d+)\.attention\.attention\.(?P<which>\w+)\.(?P<kind>\w+)"
    return renamed(
        fuse_attention(tensors, pattern),
        [
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^embeddings\.", ""),
            (r"^layernorm", "norm"),
            (r"^encoder\.layer\.", "blocks."),
            (r"attention\.output\.dense", "attn.proj"),
            (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
            (r"weights_in", "w12"),
            (r"weights_out", "w3"),
        ],
    )


def dinov2_as_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    meta = dinov2_as_meta(tensors)
    del meta["mask_token"]
    if "register_tokens" in meta:
        positions = meta.pop("pos_embed")
        meta["reg_token"] = meta.pop("register_tokens")
        meta["cls_token"], meta["pos_embed"] = meta["cls_token"] + positions[:, :1], positions[:, 1:]
    return renamed(meta, [(r"mlp\.w12", "mlp.fc1"), (r"mlp\.w3", "mlp.fc2")])


def dinov3_as_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm's variants with a bias for query and value, which are named ``qkvb``."""
    pattern = r"layer\.(?P<block>\d+)\.attention\.(?P<which>[qkv])_proj\.(?P<kind>weight)"
    names = [
        (r"^embeddings\.register_tokens", "reg_token"),
        (r"^embeddings\.patch_embeddings", "patch_embed.proj"),
        (r"^embeddings\.", ""),
        (r"^layer\.", "blocks."),
        (r"attention\.([qv])_proj\.bias", r"attn.\1_bias"),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"gamma_\1"),
        (r"mlp\.gate_proj", "mlp.fc1_g"),
        (r"mlp\.up_proj", "mlp.fc1_x" if "layer.0.mlp.gate_proj.weight" in tensors else "mlp.fc1"),
        (r"mlp\.down_proj", "mlp.fc2"),
    ]
    result = renamed(fuse_attention(tensors, pattern), names)
    del result["mask_token"]
    return result


def convnext_as_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed(
        tensors,
        [
            (r"^model\.", ""),
            (r"^layer_norm", "head.norm"),
            (r"^stages\.0\.downsample_layers", "stem"),
            (r"downsample_layers", "downsample"),
            (r"\.layers\.", ".blocks."),
            (r"depthwise_conv", "conv_dw"),
            (r"pointwise_conv", "mlp.fc"),
            (r"layer_norm", "norm"),
        ],
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pth_with_hugging_faces_names_needs_no_configuration(name, tmp_path):
    backbone = build(name)
    torch.save(backbone.checkpoint_tensors(), tmp_path / "anything.pth")
    loaded = assert_same_features(tmp_path / "anything.pth", backbone)
    assert backbone_identity(loaded) == backbone_identity(backbone)


@pytest.mark.parametrize("layout", [dict, dinov2_as_meta])
def test_positions_of_dinov2_that_are_no_square_are_refused(layout, tmp_path):
    tensors = dict(build("dinov2").checkpoint_tensors())
    positions = tensors["embeddings.position_embeddings"]
    tensors["embeddings.position_embeddings"] = positions[:, :-1]
    torch.save(layout(tensors), tmp_path / "any.pth")
    said = f"any.pth: its {positions.shape[1] - 1} positions are not those of a class token and a square"
    with pytest.raises(BackboneError, match=said):
        load_backbone(tmp_path / "any.pth")


@pytest.mark.parametrize("name", ["dinov2", "dinov2_gated", "dinov2_with_registers"])
@pytest.mark.parametrize("layout", [dinov2_as_meta, dinov2_as_timm])
def test_dinov2_loads_in_the_layouts_of_meta_and_timm(name, layout, tmp_path):
    backbone = build(name)
    torch.save(layout(backbone.checkpoint_tensors()), tmp_path / "any.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))  # of another file that lies there
    assert_same_features(tmp_path / "any.pth", backbone)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("dinov3_vit", dinov3_as_timm),
        ("dinov3_vit_gated", dinov3_as_timm),
        ("dinov3_convnext", convnext_as_timm),
    ],
)
def test_dinov3_loads_in_the_layout_of_timm(name, layout, tmp_path):
    backbone = build(name)
    save_file(layout(backbone.checkpoint_tensors()), tmp_path / "model.safetensors")
    described = {"architecture": "any", "pretrained_cfg": {"mean": SATELLITE[0], "std": SATELLITE[1]}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert assert_same_features(tmp_path, backbone).normalisation == SATELLITE


def test_timms_variants_without_a_bias_have_zeros(tmp_path):
    tensors = dinov3_as_timm(build("dinov3_vit").checkpoint_tensors())
    biases = [name for name in tensors if name.endswith(("q_bias", "v_bias"))]
    save_file({**tensors, **{name: torch.zeros(128) for name in biases}}, tmp_path / "zeros.safetensors")
    save_file({name: tensors[name] for name in tensors if name not in biases}, tmp_path / "none.safetensors")
    zeros, none = (load_backbone(tmp_path / f"{kind}.safetensors") for kind in ("zeros", "none"))
    assert backbone_identity(zeros) == backbone_identity(none)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "epoch": 3},
        lambda tensors: {"model": {n: torch.zeros_like(t) for n, t in tensors.items()}, "model_ema": tensors},
        lambda tensors: {"teacher": {**{f"backbone.{n}": t for n, t in tensors.items()}, "head.weight": torch.ones(1)}},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}},
    ],
    ids=["model", "average", "teacher.backbone", "module", "compiled"],
)
def test_the_backbone_is_found_in_what_a_training_stored(wrap, tmp_path):
    backbone = build("dinov2")
    torch.save(wrap(dinov2_as_meta(backbone.checkpoint_tensors())), tmp_path / "checkpoint.pth")
    assert_same_features(tmp_path / "checkpoint.pth", backbone)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {**{f"backbone.{n}": t for n, t in tensors.items()}, "head.weight": torch.ones(1)},
        lambda tensors: {f"model.{n}" if n.startswith("layer.") else n: t for n, t in tensors.items()},
    ],
    ids=["module", "backbone", "transformers in memory"],
)
def test_the_backbone_is_found_in_a_safetensors_file_of_a_training(wrap, tmp_path):
    backbone = build("dinov3_vit")
    save_file(wrap(backbone.checkpoint_tensors()), tmp_path / "checkpoint.safetensors")
    assert_same_features(tmp_path / "checkpoint.safetensors", backbone)


class TestParts:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        save_backbone(build("dinov3_vit"), tmp_path)
        tensors, weight_map = load_file(tmp_path / "model.safetensors"), {}
        for number in (0, 1):
            part = dict(sorted(tensors.items())[number::2])
            name = f"model-0000{number + 1}-of-00002.safetensors"
            save_file(part, tmp_path / name)
            weight_map |= dict.fromkeys(part, name)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (tmp_path / "model.safetensors").unlink()
        return tmp_path

    def test_weights_in_several_parts_load_as_one(self, folder):
        assert_same_features(folder, build("dinov3_vit"))

    def test_an_absent_part_is_named(self, folder):
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(BackboneError, match=r"lacks 1 of the 2 parts .*: model-00002-of-00002\.safetensors"):
            load_backbone(folder)

    def test_a_part_without_a_tensor_of_the_index_is_refused(self, folder):
        shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
        with pytest.raises(BackboneError, match="lack tensors that it lists: "):
            load_backbone(folder)


class TestIds:
    @pytest.fixture(autouse=True)
    def hub(self, tmp_path, monkeypatch):
        """A hub that holds lab/..., with caches of their own."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        (tmp_path / "served").mkdir()
        handler = type("ThisHub", (Hub,), {"files": tmp_path / "served", "requests": []})
        with serving(handler) as address:
            point_the_hub_at(address, monkeypatch)
            yield handler

    @pytest.mark.parametrize(
        ("source", "repository"),
        [
            ("dinov2_vits14", "facebook/dinov2-small"),
            ("dinov2_vitg14_reg", "facebook/dinov2-with-registers-giant"),
            ("dinov3_vits16plus", "facebook/dinov3-vits16plus-pretrain-lvd1689m"),
            ("dinov3_convnext_tiny", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"),
            ("vit_small_patch16_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m"),
            ("vit_small_patch14_reg4_dinov2", "timm/vit_small_patch14_reg4_dinov2.lvd142m"),
            ("vit_large_patch16_dinov3_qkvb.sat493m", "timm/vit_large_patch16_dinov3_qkvb.sat493m"),
            ("hf_hub:timm/convnext_tiny.dinov3_lvd1689m", "timm/convnext_tiny.dinov3_lvd1689m"),
            ("convnext_tiny.dinov3_lvd1689m", "timm/convnext_tiny.dinov3_lvd1689m"),
        ],
    )
    def test_names_of_timm_and_torch_hub_lead_to_a_repository(self, source, repository):
        with pytest.raises(BackboneError, match=f"The backbone '{re.escape(repository)}' does not exist"):
            load_backbone(source)

    def test_torch_hubs_own_copy_is_taken_unasked(self, hub, tmp_path):
        backbone = build("dinov2_with_registers")
        kept = tmp_path / "torch/hub/checkpoints/dinov2_vits14_reg4_pretrain.pth"
        kept.parent.mkdir(parents=True)
        torch.save(dinov2_as_meta(backbone.checkpoint_tensors()), kept)
        assert_same_features("dinov2_vits14_reg", backbone)
        assert hub.requests == []

    def test_what_only_begins_like_torch_hubs_own_copy_is_not_taken(self, tmp_path):
        kept = tmp_path / "torch/hub/checkpoints/dinov3_vits16_pretrain_lvd1689m_finetuned.pth"
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"")
        with pytest.raises(BackboneError, match="'facebook/dinov3-vits16-pretrain-lvd1689m' does not exist"):
            load_backbone("dinov3_vits16")

    def test_a_file_in_a_repository_can_be_named(self, hub):
        backbone = build("dinov3_convnext")
        torch.save(backbone.checkpoint_tensors(), hub.files / "model.pt")
        assert_same_features("lab/vision/model.pt", backbone)

    @pytest.mark.parametrize(
        "source",
        ["meta/dinov3/vits16.pth", "meta/dinov3/vits16.safetensors", "a/b/c/vits16.bin", "~nobody_here/a/vits16.pth"],
    )
    def test_an_absent_file_is_said_before_that_no_repository_has_it(self, source, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BackboneError, match=rf"^There is no file {source} in {tmp_path}\. Nor .* Hugging Face: "):
            load_backbone(source)

    @pytest.mark.parametrize("source", ["vits.pth", "meta/vits.safetensors", "./meta/dinov3/vits.pt", "a/vits.bin"])
    def test_what_can_only_be_a_file_is_looked_for_here_alone(self, source, hub, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BackboneError, match=rf"^There is no file {Path(source)} in {tmp_path}\. Download "):
            load_backbone(source)
        assert hub.requests == []

    def test_what_is_downloaded_and_from_where_is_said_first(self, hub, caplog):
        save_backbone(build("dinov3_convnext"), hub.files)
        load_backbone("lab/vision")
        assert re.search(r"downloading http://\S+/lab/vision/resolve/main/model\.safetensors \(0\.\d MB\)", caplog.text)

    def test_parts_and_normalisation_are_downloaded_too(self, hub):
        backbone = build("dinov3_convnext")
        save_backbone(backbone, hub.files)
        (hub.files / "model.safetensors").rename(hub.files / "part.safetensors")
        index = {"weight_map": dict.fromkeys(backbone.checkpoint_tensors(), "part.safetensors")}
        (hub.files / "model.safetensors.index.json").write_text(json.dumps(index))
        write_preprocessor(hub.files, *SATELLITE)
        assert assert_same_features("lab/vision", backbone).normalisation == SATELLITE
        asked = len(hub.requests)
        assert assert_same_features("lab/vision", backbone).normalisation == SATELLITE
        assert len(hub.requests) == asked


def write_preprocessor(folder: Path, mean: object, std: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))


@pytest.fixture
def recipe(tmp_path) -> Callable[..., object]:
    """Recipes on a backbone in tmp_path/backbone, with sections of choice."""
    save_backbone(build("dinov3_convnext"), tmp_path / "backbone")

    def make(**network: object) -> object:
        forget_accelerator()
        backbone = {"source": str(tmp_path / "backbone"), "layers": [3]}
        return tiny_recipe(tmp_path, backbone=backbone, input={"network_size": [64, 96], **network})

    return make


class TestNormalisation:
    def test_the_preprocessor_beside_the_weights_sets_it(self, recipe, tmp_path):
        write_preprocessor(tmp_path / "backbone", *SATELLITE)
        assert Trainer(recipe(), Console(quiet=True)).recipe.input.normalisation == SATELLITE

    def test_where_nothing_tells_it_is_that_of_imagenet(self, recipe):
        assert Trainer(recipe(), Console(quiet=True)).recipe.input.normalisation == IMAGENET

    def test_where_nothing_tells_the_recipe_may_say(self, recipe):
        mean = (0.5, 0.5, 0.5)
        trainer = Trainer(recipe(mean=mean), Console(quiet=True))
        assert trainer.recipe.input.normalisation == (mean, IMAGENET[1])
        assert trainer.model.backbone.normalisation == (mean, IMAGENET[1]), "an embedded copy says it too"

    def test_a_recipe_that_says_otherwise_is_refused_with_both(self, recipe, tmp_path):
        write_preprocessor(tmp_path / "backbone", *SATELLITE)
        said = r"input\.mean is \[0\.485, 0\.456, 0\.406\], but .* trained with \[0\.43, 0\.411, 0\.296\]; remove"
        with pytest.raises(RecipeError, match=said):
            Trainer(recipe(mean=IMAGENET[0], std=IMAGENET[1]), Console(quiet=True))
        Trainer(recipe(mean=SATELLITE[0], std=(0.2130, 0.1559, 0.143)), Console(quiet=True))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("dinov3-vitl16-pretrain-sat493m", SATELLITE), ("dinov2.lvd142m", IMAGENET), ("my_own", None)],
    )
    def test_the_names_of_published_weights_tell(self, name, expected, tmp_path):
        torch.save(build("dinov3_convnext").checkpoint_tensors(), tmp_path / f"{name}.pth")
        assert load_backbone(tmp_path / f"{name}.pth").normalisation == expected

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("dinov3_vits16_pretrain_lvd1689m-08c60483.pth", IMAGENET),
            ("dinov3_vits16_pretrain_lvd1689m_finetuned.pth", SATELLITE),
            ("vits16_lvd1689m_finetuned_thermal.pth", SATELLITE),
            ("my_own.pth", SATELLITE),
        ],
    )
    def test_a_published_name_counts_before_what_lies_beside_the_file(self, name, expected, tmp_path):
        torch.save(build("dinov3_vit").checkpoint_tensors(), tmp_path / name)
        write_preprocessor(tmp_path, *SATELLITE)
        assert load_backbone(tmp_path / name).normalisation == expected

    def test_a_vit_l_with_a_second_norm_takes_the_satellites_by_default_alone(self, recipe, tmp_path, caplog):
        torch.manual_seed(0)
        vit_l = {**CONFIGS["dinov3_vit"], "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 1}
        tensors = dinov3_as_timm(build_backbone(vit_l).checkpoint_tensors())
        norm = {f"local_cls_norm.{kind}": torch.ones(1024) for kind in ("weight", "bias")}
        for name in ("renamed.pth", "dinov3_vitl16-eadcf0ff.pth", "dinov3_vitl16_pretrain_lvd1689m.pth"):
            torch.save({**tensors, **norm}, tmp_path / name)
        renamed = load_backbone(tmp_path / "renamed.pth")
        own = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
        assert resolve(recipe(), renamed).input.normalisation == SATELLITE
        assert "nothing says which mean" in caplog.text and "set input.mean and input.std" in caplog.text
        caplog.clear()
        assert resolve(recipe(**own), renamed).input.normalisation == tuple(own.values())
        satellite = load_backbone(tmp_path / "dinov3_vitl16-eadcf0ff.pth")
        with pytest.raises(RecipeError, match=r"input\.mean is"):
            resolve(recipe(**own), satellite)
        assert load_backbone(tmp_path / "dinov3_vitl16_pretrain_lvd1689m.pth").normalisation == IMAGENET
        assert "mean" not in caplog.text

    def test_a_saved_backbone_keeps_it(self, tmp_path):
        backbone = build("dinov3_convnext")
        backbone.normalisation = SATELLITE
        save_backbone(backbone, tmp_path / "saved")
        assert load_backbone(tmp_path / "saved").normalisation == SATELLITE

    def test_a_preprocessor_that_does_not_normalise_tells_nothing(self, recipe, tmp_path):
        content = {"do_normalize": False, "image_mean": SATELLITE[0], "image_std": SATELLITE[1]}
        (tmp_path / "backbone" / "preprocessor_config.json").write_text(json.dumps(content))
        assert load_backbone(tmp_path / "backbone").normalisation is None

    @pytest.mark.parametrize("mean", [[0.5, 0.5], "grey", [0.5, 0.5, None]])
    def test_a_damaged_preprocessor_is_named(self, mean, recipe, tmp_path):
        write_preprocessor(tmp_path / "backbone", mean, [0.2, 0.2, 0.2])
        with pytest.raises(BackboneError, match=r"preprocessor_config\.json: image_mean and image_std must be three"):
            Trainer(recipe(), Console(quiet=True))

    @pytest.mark.parametrize(("mean", "std"), [(123.7, 58.4), (0.5, 0.0), (-0.5, 0.5), (0.5, float("nan"))])
    def test_a_preprocessor_of_other_values_is_refused(self, mean, std, tmp_path):
        save_backbone(build("dinov3_convnext"), tmp_path / "backbone")
        write_preprocessor(tmp_path / "backbone", 3 * [mean], 3 * [std])
        with pytest.raises(BackboneError, match=r"preprocessor_config\.json: image_mean .* are not of values 0\.\.1"):
            load_backbone(tmp_path / "backbone")
