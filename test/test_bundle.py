"""A bundle is complete, or it is refused with the file and the reason."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundles import tiny_backbone, write_tiny_bundle
from graphs import write_graphs
from safetensors.torch import load_file, save_file

from dinov3_seg_ros.bundle.loading import check_shared_backbone, load_bundle
from dinov3_seg_ros.bundle.manifest import DELTA_FILE, HEAD_FILE
from dinov3_seg_ros.bundle.onnx_folder import find_exports
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.support.errors import BackboneError, BundleError
from dinov3_seg_ros.support.files import sha256_of_file


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "bundle")


def change_manifest(bundle, change):
    path = bundle.path / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_saved_bundle_loads_with_the_same_weights(bundle):
    loaded = load_bundle(bundle.path)
    assert loaded.manifest == bundle.manifest
    backbone, head = loaded.load_backbone(), loaded.load_head()
    assert backbone_identity(backbone) == bundle.manifest.backbone.identity
    assert not any(p.requires_grad for p in backbone.parameters())
    with torch.inference_mode():
        assert head(backbone(torch.zeros(1, 3, 64, 96))).shape == (1, 5, 8, 12)


def test_a_bundle_is_read_from_where_it_lay_when_it_was_loaded(bundle, monkeypatch):
    monkeypatch.chdir(bundle.path.parent)
    loaded = load_bundle(bundle.path.name)
    monkeypatch.chdir("/")
    loaded.load_head()


def test_saving_over_a_bundle_keeps_the_old_one_when_it_fails(bundle):
    with pytest.raises(OSError, match="no space"):

        def fail(folder):
            raise OSError("no space left on device")

        save_bundle(bundle.path, bundle.manifest, {}, fail)
    load_bundle(bundle.path).load_head()


@pytest.mark.parametrize("name", ["head.safetensors", "backbone/model.safetensors", "backbone/config.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(bundle, name, damage):
    file = bundle.path / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is (missing|damaged)"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), "schema_version is 99"),
        (lambda m: m.pop("head"), "head: Field required"),
        (lambda m: m["classes"]["names"].pop(), "4 names but 5 colours"),
        (lambda m: m["classes"]["names"].__setitem__(0, " "), "classes: .*a class has an empty name"),
        (
            lambda m: m["classes"]["names"].__setitem__(0, "floor\n\x1b[2J"),
            r"classes.names.0: .*'floor\\n\\x1b\[2J' holds control characters",
        ),
        (lambda m: m.update(description="Halls\x1b[2J"), r"description: .*'Halls\\x1b\[2J' holds control characters"),
        (lambda m: m.update(licences=["MIT", "\x9b"]), r"licences.1: .*'\\x9b' holds control characters"),
        (lambda m: m["backbone"].update(source="lab/\x07"), r"backbone.source: .*'lab/\\x07' holds control characters"),
        (lambda m: m["classes"]["palette"].__setitem__(0, [0, 0, 256]), "classes.palette.0.2"),
        (lambda m: m["input"].update(geometry="squash"), "unknown geometry 'squash'"),
        (lambda m: m["input"].update(mean=[0.5, float("nan"), 0.5]), "input.mean.1: Input should be a finite number"),
        (lambda m: m["input"].update(std=[0.5, 0.5, float("inf")]), "input.std.2: Input should be a finite number"),
        (lambda m: m["input"].update(std=[0.5, 0.0, 0.5]), "input.std.1: Input should be greater than 0"),
        (lambda m: m["backbone"]["layers"].pop(), "backbone: .*layers, channels and strides are not equally many"),
        (lambda m: m["input"].update(network_size=[63, 96]), "multiples of 32"),
        (
            lambda m: m["input"].update(scale=2),
            "input.scale: Extra inputs are not permitted; a newer release may have written this file: install that$",
        ),
        (
            lambda m: m.update(name="Tiny Bundle"),
            "name: .*'Tiny Bundle' is no name; use lower-case letters, digits and _, beginning with a letter",
        ),
        (lambda m: m["files"].pop("head.safetensors"), "does not list head.safetensors"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_field_named(bundle, change, message):
    change_manifest(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(bundle.path)
    assert "bundle.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schema_version": 2, "scale": 2},
            "schema_version is 2, this release reads 1; install the release that wrote the export, or export the "
            "bundle again",
        ),
        (
            {"scale": 2},
            "scale: Extra inputs are not permitted; a newer release may have written this file: install that, or "
            "export the bundle again",
        ),
        (
            {"verified": "?"},
            "verified: Input should be a valid boolean, unable to interpret input; export the bundle again",
        ),
    ],
)
def test_a_wrong_manifest_of_an_export_is_refused_with_the_field_named(bundle, change, message):
    path = write_graphs(bundle, reference=False) / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert find_exports(bundle) == ([], [f"{path}: {message}"])


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "Expecting"), ('{"a":' * 100_000, "it is nested too deeply")], ids=["cut", "deep"]
)
def test_a_manifest_that_is_no_json_is_refused(bundle, text, reason):
    (bundle.path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=rf"bundle.json cannot be read as JSON: {reason}"):
        load_bundle(bundle.path)


def test_a_path_that_is_no_bundle_is_refused(bundle, tmp_path):
    said = f"{bundle.path / 'bundle.json'}: this is a file in the folder {bundle.path}; give the folder of a bundle"
    with pytest.raises(BundleError, match=re.escape(said)):
        load_bundle(bundle.path / "bundle.json")
    with pytest.raises(BundleError, match="no such folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"holds no bundle.json$"):
        load_bundle(tmp_path)


def test_the_folder_of_a_training_names_its_bundle(bundle, tmp_path):
    bundle.path.rename(tmp_path / "best")
    with pytest.raises(BundleError, match=rf"holds no bundle.json; did you mean {tmp_path / 'best'}\?"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [("x" * 5000, r"the bundle x+\.\.\. cannot be read: File name too long"), ("~no such user/x", "cannot be read: ")],
)
def test_a_path_that_cannot_be_looked_for_is_refused(path, message):
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(path)
    assert len(str(caught.value)) < 400


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that nobody can read")
def test_a_file_that_cannot_be_read_is_named(bundle):
    (bundle.path / HEAD_FILE).unlink()
    (bundle.path / HEAD_FILE).symlink_to("/proc/self/mem")
    with pytest.raises(BundleError, match=rf"{HEAD_FILE} cannot be read: .*; let this user read it, or copy the"):
        load_bundle(bundle.path)


def test_a_head_that_does_not_fit_its_description_is_refused(bundle):
    change_manifest(bundle, lambda m: m["head"]["options"].update(width=32))
    with pytest.raises(BundleError, match=r"head.safetensors does not fit"):
        load_bundle(bundle.path).load_head()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_head_with_weights_that_are_not_finite_is_refused(bundle, value):
    weights = load_file(bundle.path / HEAD_FILE)
    weights["classifier.bias"][0] = value
    save_file(weights, bundle.path / HEAD_FILE)
    change_manifest(bundle, lambda m: m["files"].update({HEAD_FILE: sha256_of_file(bundle.path / HEAD_FILE)}))
    with pytest.raises(BundleError, match=r"head\.safetensors: classifier\.bias holds values that are not finite"):
        load_bundle(bundle.path).load_head()


def test_a_head_that_is_not_installed_is_told_with_what_runs_without_it(bundle):
    change_manifest(bundle, lambda m: m["head"].update(name="mine"))
    message = r"bundle\.json: unknown head 'mine' .*; for another, install the package .*; or use an ONNX export"
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle.path).load_head()


@pytest.mark.parametrize(("detail", "said", "does"), [(True, "false", "reads"), (False, "true", "does not read")])
def test_a_manifest_that_is_wrong_about_what_the_head_reads_is_refused(tmp_path, detail, said, does):
    bundle = write_tiny_bundle(tmp_path / "bundle", detail=detail)
    change_manifest(bundle, lambda m: m["head"].update(reads_images=not detail))
    with pytest.raises(BundleError, match=rf"head\.reads_images is {said}, but a head 'aspp' .* {does} the image"):
        load_bundle(bundle.path).load_head()


def test_another_backbone_than_the_heads_is_refused(bundle):
    change_manifest(bundle, lambda m: m["backbone"].update(identity="0" * 64))
    with pytest.raises(BundleError, match="not the one this head was trained on"):
        load_bundle(bundle.path).load_backbone()


def test_a_missing_referenced_backbone_says_how_to_get_it(bundle, tmp_path):
    change_manifest(bundle, lambda m: m["backbone"].update(storage="reference", source=str(tmp_path / "none.pth")))
    with pytest.raises(BackboneError, match=r"none\.pth"):
        load_bundle(bundle.path).load_backbone()


def test_a_delta_restores_the_backbone_that_was_fine_tuned(bundle, tmp_path):
    base = tiny_backbone()
    save_backbone(base, tmp_path / "base")
    tuned = tiny_backbone()
    with torch.no_grad():
        changed_name, tensor = next((n, t) for n, t in tuned.checkpoint_tensors().items() if t.ndim == 4)
        tensor += 0.1
    section = bundle.manifest.backbone.model_copy(
        update={
            "storage": "delta",
            "source": str(tmp_path / "base"),
            "base_identity": backbone_identity(base),
            "identity": backbone_identity(tuned),
        }
    )
    manifest = bundle.manifest.model_copy(update={"backbone": section})
    changed = {changed_name: tuned.checkpoint_tensors()[changed_name]}
    saved = save_bundle(
        tmp_path / "delta", manifest, bundle.load_head().state_dict(), lambda f: save_file(changed, f / DELTA_FILE)
    )
    assert sorted(saved.manifest.files) == [DELTA_FILE, HEAD_FILE]
    assert backbone_identity(load_bundle(saved.path).load_backbone()) == backbone_identity(tuned)
    shutil.rmtree(tmp_path / "base")
    save_backbone(tuned, tmp_path / "base")
    with pytest.raises(BundleError, match="not the one this head was trained on"):
        load_bundle(saved.path).load_backbone()
    shutil.rmtree(tmp_path / "base")
    save_backbone(base, tmp_path / "base")
    save_file({changed_name: torch.full_like(tensor, torch.nan)}, saved.path / DELTA_FILE)
    with pytest.raises(BundleError, match=rf"{DELTA_FILE}: {changed_name} holds values that are not finite"):
        saved.load_backbone()


TINY_VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TINY_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("config", "option", "channels", "strides"),
    [(TINY_VIT, {"class_token": True}, [32], [16]), (TINY_RESNET, {"output_stride": 8}, [32], [8])],
    ids=["class token", "output stride"],
)
def test_how_the_backbone_is_read_is_part_of_the_bundle(tmp_path, config, option, channels, strides):
    def made(**options):
        torch.manual_seed(0)
        return build_backbone(config, **options).eval()

    backbone = made(**option)
    bundle = write_tiny_bundle(tmp_path / "read", backbone=backbone)
    loaded = load_bundle(bundle.path)
    assert (loaded.manifest.backbone.channels, loaded.manifest.backbone.strides) == (channels, strides)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.load_backbone()(images), backbone(images))
        loaded.load_head()(backbone(images))
    plain = write_tiny_bundle(tmp_path / "plain", name="plain", backbone=made())
    assert plain.manifest.backbone.identity == bundle.manifest.backbone.identity
    with pytest.raises(BundleError, match=rf"backbone\.{next(iter(option))} is "):
        check_shared_backbone([bundle, plain])


def test_a_manifest_without_backbone_options_means_their_defaults(bundle):
    def forget(manifest):
        del manifest["backbone"]["class_token"], manifest["backbone"]["output_stride"]

    change_manifest(bundle, forget)
    assert load_bundle(bundle.path).manifest == bundle.manifest


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("backbone", "identity", "0" * 64),
        ("backbone", "feature_norm", "final"),
        ("input", "network_size", (96, 96)),
        ("input", "geometry", "stretch"),
        ("input", "mean", (0.5, 0.5, 0.5)),
        ("input", "std", (0.5, 0.5, 0.5)),
        ("input", "value_range", (0, 4095)),
    ],
)
def test_bundles_that_cannot_share_a_pass_name_the_field(bundle, tmp_path, section, field, value):
    alike = write_tiny_bundle(tmp_path / "alike", name="alike", num_classes=3, seed=5)
    check_shared_backbone([bundle, alike])
    changed = getattr(alike.manifest, section).model_copy(update={field: value})
    other = replace(alike, manifest=alike.manifest.model_copy(update={section: changed}))
    ours = getattr(getattr(bundle.manifest, section), field)
    with pytest.raises(BundleError, match=re.escape(f"{section}.{field} is {ours} in one and {value} in the other")):
        check_shared_backbone([bundle, other])


def test_bundles_of_one_name_cannot_share_a_pass(bundle):
    with pytest.raises(BundleError, match="named 'tiny'"):
        check_shared_backbone([bundle, bundle])
