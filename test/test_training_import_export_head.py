"""Heads of dinov3_ros, imported and exported: what they compute, and which files are refused."""

from __future__ import annotations

import codecs
import functools
from pathlib import Path

import pytest
import torch
import yaml
from bundles import write_tiny_bundle
from full_disk import full_disk
from torch import nn

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import (
    BackboneError,
    BundleError,
    ExportError,
    HeadError,
    OutputError,
    ParameterError,
)
from training import export_head as export_command
from training import import_head as import_command
from training.dinov3_ros import read_class_names
from training.export_head import export_head
from training.import_head import import_head

NAMES = ["background", *(f"thing {i}" for i in range(133))]
SIZE = (64, 64)


def relu_norm(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU()]


class Published(nn.Module):
    """The published head in our words: 384 -> 576 -> 288, four 3x3 branches of 288, fused to 576, a separable block.

    Batch norm and ReLU follow every convolution but the depthwise one and the classifier; the depthwise one alone has
    no bias. Its last step, enlarging the logits, is left out.
    """

    def __init__(self, classes: int, channels: int = 384) -> None:
        super().__init__()
        self.initial = nn.Sequential(*relu_norm(channels, 576))
        self.project = nn.Sequential(*relu_norm(576, 288))
        self.branches = nn.ModuleList(nn.Conv2d(288, 288, 3, padding=1) for _ in range(4))
        self.branches_bn = nn.ModuleList(nn.BatchNorm2d(288) for _ in range(4))
        self.fuse = nn.Sequential(*relu_norm(4 * 288, 576))
        self.ds = nn.ModuleDict(
            {
                "dw": nn.Conv2d(576, 576, 3, padding=1, groups=576, bias=False),
                "pw": nn.Conv2d(576, 576, 1),
                "bn": nn.BatchNorm2d(576),
            }
        )
        self.classifier = nn.Conv2d(576, classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        narrow = self.project(self.initial(features))
        scales = [self.branches_bn[i](self.branches[i](narrow)).relu() for i in range(4)]
        fused = self.fuse(torch.cat(scales, 1))
        return self.classifier(self.ds["bn"](self.ds["pw"](self.ds["dw"](fused))).relu())


@functools.cache
def published(classes: int = len(NAMES), channels: int = 384) -> Published:
    """Random weights, with statistics of every norm as training leaves them."""
    torch.manual_seed(0)
    module = Published(classes, channels)
    for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.num_batches_tracked.fill_(1000)
    return module.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The two files of dinov3_ros, and a ViT of 384 channels in place of ViT-S+/16."""
    folder = tmp_path_factory.mktemp("dinov3_ros")
    torch.manual_seed(1)
    config = {"model_type": "dinov3_vit", "num_attention_heads": 6, "intermediate_size": 64, "num_hidden_layers": 2}
    save_backbone(build_backbone({**config, "hidden_size": 384}), folder / "vit")
    torch.save(published().state_dict(), folder / "model.pth")
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    return {"weights": folder / "model.pth", "names": folder / "class_names.txt", "backbone": folder / "vit"}


@pytest.fixture(scope="module")
def bundle(files, tmp_path_factory) -> Bundle:
    output = tmp_path_factory.mktemp("bundles") / "imported"
    return import_head(files["weights"], files["names"], str(files["backbone"]), output, network_size=SIZE)


def imported(files: dict[str, Path], output: Path, **changed: Path) -> Bundle:
    used = {**files, **changed}
    return import_head(used["weights"], used["names"], str(used["backbone"]), output, network_size=SIZE)


@torch.inference_mode()
def test_an_imported_head_computes_the_published_logits(bundle):
    loaded = load_bundle(bundle.path)
    features = loaded.load_backbone()(torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(2)))
    expected = published()(features[0])
    assert expected.shape == (2, 134, 6, 4)
    assert expected.std() > 0.05, "constant logits would prove nothing"
    torch.testing.assert_close(loaded.load_head()(features), expected, atol=1e-5, rtol=0)


def test_an_imported_bundle_sees_frames_as_dinov3_ros_does(bundle):
    manifest = load_bundle(bundle.path).manifest
    assert manifest.classes.names == NAMES
    assert (manifest.head.name, manifest.head.variant) == ("aspp", "plain")
    assert (manifest.backbone.storage, manifest.backbone.layers, manifest.backbone.feature_norm) == (
        "reference",
        [1],
        "final",
    )
    assert manifest.input.geometry == "stretch"
    assert manifest.input.mean == (0.485, 0.456, 0.406)
    image = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8).numpy()
    assert Segmenter.from_bundle(bundle.path, runtime="torch").segment([image])[0].labels.shape == (48, 80)


def test_the_bundle_refuses_another_backbone_later(bundle, files, tmp_path):
    torch.manual_seed(5)
    config = load_bundle(bundle.path).load_backbone().model.config.to_dict()
    save_backbone(build_backbone(config), tmp_path / "other")
    manifest = bundle.manifest
    moved = manifest.backbone.model_copy(update={"source": str(tmp_path / "other")})
    saved = save_bundle(
        tmp_path / "b", manifest.model_copy(update={"backbone": moved}), bundle.load_head().state_dict()
    )
    with pytest.raises(BundleError, match="not the one this head was trained on"):
        saved.load_backbone()


def without(name):
    return lambda tensors: tensors.pop(name)


WRONG_WEIGHTS = {
    "a missing tensor": (without("ds.dw.weight"), r"1 missing: ds\.dw\.weight"),
    "an unexpected tensor": (lambda t: t.update(extra=torch.ones(1)), "1 unexpected: extra"),
    "a wrong shape": (
        lambda t: t.update({"fuse.0.weight": torch.ones(576, 10, 1, 1)}),
        r"1 of a wrong shape: fuse\.0\.weight \(576, 10, 1, 1\) instead of \(576, 1152, 1, 1\)",
    ),
    "another module": (without("initial.0.weight"), "starts with initial.0.weight"),
    "more classes than names": (
        lambda t: t.update({"classifier.weight": torch.ones(150, 576, 1, 1), "classifier.bias": torch.ones(150)}),
        "150 classes, but 134 names",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_of_something_else_are_refused_by_what_differs(files, tmp_path, change, message):
    tensors = dict(published().state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(HeadError, match=message):
        imported(files, tmp_path / "bundle", weights=tmp_path / "model.pth")
    assert not (tmp_path / "bundle").exists()


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"initial.0.weight": torch.ones(1)}}, "a dictionary with model"),
        ([torch.ones(1)], "but list"),
        (Malicious(), "code besides tensors, which is never run"),
    ],
    ids=["a training checkpoint", "a list", "code"],
)
def test_a_file_that_is_no_state_dict_is_refused_and_never_run(files, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(HeadError, match=message):
        imported(files, tmp_path / "bundle", weights=tmp_path / "model.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""], ids=["pointer", "empty"])
def test_a_damaged_file_is_named(files, tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(HeadError, match=r"model\.pth cannot be read as PyTorch weights"):
        imported(files, tmp_path / "bundle", weights=tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb", "line 2 of .* is empty"),
        ("a\nb\na", "line 3 of .* names 'a' a second"),
        ("a\nb\n", "134 classes, but 2 names"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(files, tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(HeadError, match=message):
        imported(files, tmp_path / "bundle", names=tmp_path / "names.txt")


def test_a_backbone_of_other_channels_is_refused(files, tmp_path):
    torch.save(published(channels=64).state_dict(), tmp_path / "model.pth")
    with pytest.raises(HeadError, match=r"a map of 64 channels and stride 16; the last of the backbone .* has 384"):
        imported(files, tmp_path / "bundle", weights=tmp_path / "model.pth")


def test_an_absent_backbone_is_refused_with_the_way_to_get_it(files, tmp_path):
    with pytest.raises(BackboneError, match=r"weights/README\.md"):
        imported(files, tmp_path / "bundle", backbone=tmp_path / "nowhere.pth")


def test_wrong_network_sizes_and_folders_in_use_are_refused(files, tmp_path):
    with pytest.raises(ParameterError, match="multiples of 16"):
        import_head(files["weights"], files["names"], str(files["backbone"]), tmp_path / "b", network_size=(60, 60))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        imported(files, tmp_path / "used")
    assert (tmp_path / "used" / "mine.txt").read_text() == "precious"


def test_an_exported_head_equals_the_imported_files(bundle, files, tmp_path):
    advice = export_head(bundle, "dinov3_ros", tmp_path / "plugin")
    assert "dinov3_toolkit/head_segmentation" in advice[0]
    assert len(advice) == 1
    tensors = torch.load(tmp_path / "plugin" / "weights" / "model.pth", weights_only=True)
    expected = published().state_dict()
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    assert (tmp_path / "plugin" / "class_names.txt").read_bytes() == files["names"].read_bytes()
    parameters = yaml.safe_load((tmp_path / "plugin" / "params.yaml").read_text())["dinov3_node"]["ros__parameters"]
    assert parameters["dino_model"] == {"n_layers": 2, "embed_dim": 384}
    assert (parameters["img_size"], parameters["segmentation_model"]["target_size"]) == (64, 32)
    again = imported(
        {**files, "weights": tmp_path / "plugin/weights/model.pth", "names": tmp_path / "plugin/class_names.txt"},
        tmp_path / "again",
    )
    assert again.manifest.files == bundle.manifest.files
    assert again.manifest.classes == bundle.manifest.classes


def test_class_names_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "class_names.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"wall\nfloor\n")
    assert read_class_names(path) == ["wall", "floor"]


def test_a_full_disk_leaves_no_part_of_an_exported_head(bundle, tmp_path):
    with full_disk(100_000), pytest.raises(OutputError, match="plugin cannot be written"):
        export_head(bundle, "dinov3_ros", tmp_path / "plugin")
    assert not list(tmp_path.iterdir())


def test_exporting_a_letterboxed_head_warns_of_the_difference(bundle, tmp_path):
    manifest = changed(bundle, input={"geometry": "letterbox"})
    saved = save_bundle(tmp_path / "boxed", manifest, bundle.load_head().state_dict())
    assert "stretches" in export_head(saved, "dinov3_ros", tmp_path / "plugin")[1]


def changed(bundle: Bundle, **sections: dict):
    content = bundle.manifest.model_dump()
    for section, fields in sections.items():
        content[section].update(fields)
    return type(bundle.manifest).model_validate(content)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"input": {"network_size": (64, 96)}}, "network size is 64x96; dinov3_ros makes every frame a square"),
        ({"backbone": {"storage": "embedded"}}, "stored as 'embedded'"),
        ({"backbone": {"model_type": "dinov2"}}, "backbone is a dinov2"),
        ({"classes": {"names": [" a", *NAMES[1:]]}}, "blanks around it"),
    ],
)
def test_a_bundle_that_dinov3_ros_cannot_run_is_refused(bundle, tmp_path, sections, message):
    other = Bundle(bundle.path, changed(bundle, **sections))
    with pytest.raises(ExportError, match=message):
        export_head(other, "dinov3_ros", tmp_path / "plugin")
    assert not list(tmp_path.iterdir())


def test_the_commands_say_what_they_did_or_why_not(files, tmp_path, capsys):
    words = [str(files["weights"]), str(files["names"]), "--backbone", str(files["backbone"]), "--size", "64", "64"]
    assert import_command.main([*words, "--output", str(tmp_path / "bundle"), "--name", "coco"]) == 0
    assert "bundle 'coco' with 134 classes" in capsys.readouterr().out
    assert load_bundle(tmp_path / "bundle").manifest.name == "coco"
    assert import_command.main([*words, "--output", str(tmp_path / "bundle")]) == 1
    assert "exists already" in capsys.readouterr().err
    words = ["--format", "dinov3_ros", "--output", str(tmp_path / "plugin")]
    assert export_command.main([str(tmp_path / "bundle"), *words]) == 0
    assert "copy class_names.txt" in capsys.readouterr().out
    other = write_tiny_bundle(tmp_path / "tiny")
    assert export_command.main([str(other.path), "--format", "dinov3_ros", "--output", str(tmp_path / "no")]) == 1
    assert "its head is aspp (default); only aspp (plain)" in capsys.readouterr().err
