"""Model cards: what a bundle says of itself."""

from __future__ import annotations

import json
import shutil

import pytest
from bundles import write_tiny_bundle
from safetensors.torch import load_file

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import TrainingSection
from dinov3_seg_ros.bundle.onnx_folder import ExportManifest, export_folder
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.support.errors import BundleError
from dinov3_seg_ros.support.files import write_json
from training.bundle_info import main
from training.reports.model_card import card, describe

METRICS = {"epoch": 3, "loss": 0.51234, "miou": 0.625, "per_class_iou": {"class_0": 0.25, "class_1": None}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """An exported bundle with a history, whose backbone is embedded."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    plain = write_tiny_bundle(path)
    training = TrainingSection(recipe={"name": "mine", "epochs": 7}, metrics=METRICS, git_revision="0123abcd")
    manifest = plain.manifest.model_copy(update={"training": training, "licences": ["Apache-2.0"]})
    backbone = plain.load_backbone()

    save_bundle(
        path, manifest, plain.load_head().state_dict(), lambda folder: save_backbone(backbone, folder / "backbone")
    )
    made = load_bundle(path)
    describe_export(made)
    return made


def describe_export(bundle: Bundle) -> None:
    """The description of an export, as the exporter leaves it beside its graphs; making these would take long."""
    section = bundle.manifest
    manifest = ExportManifest(
        precision="fp32",
        network_size=(64, 96),
        layers=section.backbone.layers,
        backbone_identity=section.backbone.identity,
        head_weights=section.files["head.safetensors"],
        mean=section.input.mean,
        std=section.input.std,
        verified=True,
        parity={"heads": {section.name: {"cosine": 0.9999999, "max_abs": 1e-5, "labels_equal": 0.9998}}},
        files={},
    )
    folder = export_folder(bundle, (64, 96), "fp32")
    write_json(folder / "export.json", manifest.model_dump(mode="json"))
    (folder / "head.onnx").write_bytes(b"graph")


def test_a_description_counts_parameters_and_bytes(bundle):
    described = describe(bundle)
    head = bundle.load_head()
    assert described["head"]["parameters"] == sum(parameter.numel() for parameter in head.parameters())
    stored = load_file(bundle.path / "backbone" / "model.safetensors").values()
    assert described["backbone"]["parameters"] == sum(tensor.numel() for tensor in stored)
    assert described["files"]["head.safetensors"] == (bundle.path / "head.safetensors").stat().st_size
    assert set(bundle.manifest.files) < set(described["files"])
    (exported,) = described["exports"]
    assert (exported["folder"], exported["verified"]) == ("onnx/64x96-fp32", True)
    assert (exported["cosine"], exported["labels_equal"]) == (0.9999999, 0.9998)
    assert exported["size"] == sum(
        size for name, size in described["files"].items() if name.startswith(exported["folder"])
    )


def test_a_card_tells_origin_scores_and_licences(bundle):
    text = card(describe(bundle))
    for wanted in (
        "# tiny",
        "| backbone | dinov3_convnext, random weights |",
        f"| identity | {bundle.manifest.backbone.identity} |",
        "| network size | 64 x 96 (height x width) |",
        "1 (16 channels, stride 8); 2 (24 channels, stride 16); 3 (32 channels, stride 32); feature norm: none",
        "| head | aspp, width 16, ",
        "| 0 | class_0 | #",
        "| 25.00 % |",
        "| undefined |",
        "| miou | 62.50 % |",
        "| loss | 0.5123 |",
        "Revision of the code: 0123abcd.",
        "epochs: 7",
        "- Apache-2.0",
        "| onnx/64x96-fp32 | yes | 0.9999999 | 99.98 % | ",
        "| head.safetensors | ",
    ):
        assert wanted in text, wanted


def test_an_export_of_another_training_is_called_unusable(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", seed=9)
    shutil.copytree(bundle.path / "onnx", other.path / "onnx")
    described = describe(other)
    assert not described["exports"]
    assert "exported with another head" in card(described)


def test_a_bundle_without_a_history_says_so(tmp_path):
    text = card(describe(write_tiny_bundle(tmp_path / "tiny")))
    for wanted in (
        "No description.",
        "No metrics were recorded.",
        "No recipe was recorded.",
        "None was noted.",
        "None; ",
    ):
        assert wanted in text, wanted


def test_the_command_prints_markdown_and_writes_json(bundle, tmp_path, capsys):
    assert main([str(bundle.path), "--json", str(tmp_path / "card.json")]) == 0
    assert capsys.readouterr().out == card(describe(bundle))
    assert json.loads((tmp_path / "card.json").read_text()) == describe(bundle)


def test_a_path_that_is_no_bundle_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "holds no bundle.json" in capsys.readouterr().err
    broken = write_tiny_bundle(tmp_path / "tiny")
    wider = broken.manifest.head.model_copy(update={"options": {"width": 32}})
    with pytest.raises(BundleError, match="does not fit head"):
        describe(Bundle(broken.path, broken.manifest.model_copy(update={"head": wider})))
