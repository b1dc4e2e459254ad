"""Bundles on the Hugging Face Hub: pushed to and loaded from a stand-in that speaks its HTTP API."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from bundles import tiny_backbone, write_tiny_bundle
from closed_folder import make_closed_folder
from graphs import write_graphs
from hub_server import Repository, SharingHub, point_the_hub_at, serving

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.bundle import hub as bundle_hub
from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.manifest import TrainingSection
from dinov3_seg_ros.bundle.onnx_folder import find_exports
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.pretrained.hub import repository_of
from dinov3_seg_ros.support.errors import BackboneError, BundleError, SegmentationError
from dinov3_seg_ros.support.hub import HUB_TIMEOUT_S
from training.push import main
from training.sharing.shareable import prepare
from training.support.section import Folder, Section

META = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub at which everything here is pointed, with a cache of its own, and a token that may write."""
    for name, value in (
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "writer")
    forget(monkeypatch)
    handler = type("ThisHub", (SharingHub,), {"repositories": {}, "stored": {}, "requests": []})
    with serving(handler) as address:
        point_the_hub_at(address, monkeypatch)
        handler.address = address
        yield handler


def forget(monkeypatch) -> None:
    """As a new process would."""
    monkeypatch.setattr(bundle_hub, "_fetched", {})
    monkeypatch.setattr(bundle_hub, "_fetched_again", set())


def with_storage(bundle: Bundle, path: Path, storage: str, source: str, **changes: object) -> Bundle:
    """A copy of a bundle that names its backbone."""
    section = bundle.manifest.backbone.model_copy(update={"storage": storage, "source": source})
    manifest = bundle.manifest.model_copy(update={"backbone": section, **changes})
    return save_bundle(path, manifest, bundle.load_head().state_dict())


def card_of(repository: Repository) -> tuple[dict, str]:
    _, metadata, text = repository.files()["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_pushed_bundle_is_loaded_by_its_name_without_torch(hub, tmp_path, capsys):
    assert main(["demo", "lab/demo"]) == 0

    found = hub.repositories["lab/demo"].files()
    assert {"head.safetensors", "backbone/model.safetensors", "onnx/224x320-fp32/backbone.onnx"} <= set(found)
    metadata, text = card_of(hub.repositories["lab/demo"])
    assert metadata["license"] == "apache-2.0" and "onnx" in metadata["tags"] and "onnx/224x320-fp32" in text
    assert "load it with bundle:=lab/demo" in capsys.readouterr().out
    load = (
        "import sys, numpy as np; from dinov3_seg_ros import Segmenter; "
        "s = Segmenter.from_bundle('lab/demo', runtime='onnx'); "
        "np.save(sys.argv[1], s.segment([np.load(sys.argv[2])])[0].labels); assert 'torch' not in sys.modules"
    )
    np.save(tmp_path / "image.npy", IMAGE)
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "elsewhere")}
    words = [sys.executable, "-c", load, str(tmp_path / "labels.npy"), str(tmp_path / "image.npy")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = Segmenter.from_bundle("demo", runtime="onnx").segment([IMAGE])[0].labels
    assert np.array_equal(np.load(tmp_path / "labels.npy"), here)


def test_only_a_bundles_own_files_are_fetched_and_then_no_network_is_needed(hub, tmp_path, monkeypatch, caplog):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    files = {p.relative_to(bundle.path).as_posix(): p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}
    extra = {"run.py": b"raise SystemExit", "model.pth": b"pickle", "onnx/64x96-fp32/fused.onnx": b"large"}
    hub.repositories["lab/tiny"] = Repository()
    commit = hub.repositories["lab/tiny"].commit({**files, **extra})

    loaded = load_bundle("lab/tiny")

    assert loaded.manifest == bundle.manifest
    assert {p.relative_to(loaded.path).as_posix() for p in loaded.path.rglob("*") if p.is_file()} == set(files)
    asked = len(hub.requests)
    assert load_bundle("lab/tiny").path == loaded.path
    forget(monkeypatch)
    assert load_bundle(f"lab/tiny@{commit}").path == loaded.path
    assert len(hub.requests) == asked, "a commit never changes"
    forget(monkeypatch)
    point_the_hub_at("http://127.0.0.1:9", monkeypatch)
    assert load_bundle("lab/tiny").path == loaded.path
    assert "of the local cache" in caplog.text


@pytest.mark.parametrize("hangs", ["hub", "look-up of its address"])
def test_a_hub_that_does_not_answer_delays_a_cached_bundle_little(hub, tmp_path, monkeypatch, caplog, hangs):
    assert main([str(write_tiny_bundle(tmp_path / "tiny").path), "lab/tiny", "--licence", "mit"]) == 0
    loaded = load_bundle("lab/tiny")
    forget(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "127.0.0.1" if hangs == "hub" else "localhost"
        point_the_hub_at(f"http://{address}:{silent.getsockname()[1]}", monkeypatch)
        if hangs != "hub":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(HUB_TIMEOUT_S))
        began = time.monotonic()
        assert load_bundle("lab/tiny").path == loaded.path
    assert time.monotonic() - began < HUB_TIMEOUT_S / 2
    assert "it cannot be reached on Hugging Face" in caplog.text


def test_a_copied_commit_asks_nobody(hub, tmp_path, monkeypatch):
    assert main([str(write_tiny_bundle(tmp_path / "tiny").path), "lab/tiny", "--licence", "mit"]) == 0
    name = f"lab/tiny@{hub.repositories['lab/tiny'].branches['main']}"
    load_bundle(name)
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "cache", copied, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(copied))
    forget(monkeypatch)
    asked = len(hub.requests)
    assert load_bundle(name).path.is_relative_to(copied)
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    "name",
    ["bundle.json", "head.safetensors", "onnx/64x96-fp32/export.json", "onnx/64x96-fp32/backbone.onnx"],
)
def test_what_a_power_cut_damaged_in_the_cache_is_fetched_again(hub, tmp_path, monkeypatch, name):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    write_graphs(bundle, size=(64, 96), reference=False)
    assert main([str(bundle.path), "lab/tiny", "--licence", "mit"]) == 0
    path = load_bundle("lab/tiny").path

    def errors() -> str:
        forget(monkeypatch)
        try:
            exports, refused = find_exports(load_bundle("lab/tiny"))
            for found in exports:
                found.graph("backbone.onnx")
        except SegmentationError as error:
            refused = [str(error)]
        return "".join(refused)

    os.truncate(path / name, 0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert name.rpartition("/")[2] in errors() and "hf cache rm model/lab/tiny" in errors()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert errors() == ""
    assert (path / name).read_bytes() == hub.repositories["lab/tiny"].files()[name]


def test_an_update_that_breaks_off_leaves_the_earlier_bundle(hub, tmp_path, monkeypatch):
    first, second = (write_tiny_bundle(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    for bundle in (first, second):
        assert main([str(bundle.path), "lab/tiny", "--licence", "mit"]) == 0
        if bundle is first:
            load_bundle("lab/tiny")
    forget(monkeypatch)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("cut off"))
    )
    assert load_bundle("lab/tiny").manifest.files == first.manifest.files
    forget(monkeypatch)
    point, address = point_the_hub_at, hub.address
    point("http://127.0.0.1:9", monkeypatch)
    assert load_bundle("lab/tiny").manifest.files == first.manifest.files
    forget(monkeypatch)
    point(address, monkeypatch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", real)
    assert load_bundle("lab/tiny").manifest.files == second.manifest.files


def test_a_folder_goes_before_a_repository_of_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(Path("lab/tiny"))
    assert load_bundle("lab/tiny").path == tmp_path / "lab/tiny"
    assert hub.requests == []


def test_what_is_no_bundle_on_the_hub_is_one_error_that_says_what_to_do(hub, tmp_path, monkeypatch):
    files = {
        p.relative_to(tmp_path / "tiny").as_posix(): p.read_bytes()
        for p in write_tiny_bundle(tmp_path / "tiny").path.rglob("*")
        if p.is_file()
    }
    manifest = json.loads(files["bundle.json"])
    broken = {
        "foreign": {"config.json": b"{}", "model.safetensors": b"large"},
        "newer": {**files, "bundle.json": json.dumps({**manifest, "schema_version": 9}).encode()},
        "cut": {**files, "bundle.json": b"{"},
        "outside": {
            **files,
            "bundle.json": json.dumps({**manifest, "files": {**manifest["files"], "../x": ""}}).encode(),
        },
        "missing": {name: content for name, content in files.items() if name != "head.safetensors"},
        "damaged": {**files, "head.safetensors": b"version https://git-lfs"},
    }
    for name, content in broken.items():
        hub.repositories[f"lab/{name}"] = Repository()
        hub.repositories[f"lab/{name}"].commit(content)
    hub.repositories["lab/gated"] = Repository(gated=True)
    hub.repositories["lab/gated"].commit(files)
    for name, words in {
        "foreign": "'lab/foreign' has no bundle.json on Hugging Face.*training.push",
        "newer": "schema_version is 9",
        "cut": "cannot be read as JSON.*pushed again",
        "outside": "lists ../x, which lies outside",
        "missing": "head.safetensors is missing; .*pushed again",
        "damaged": "head.safetensors is damaged.*hf cache rm model/lab/damaged",
        "gated": "is gated.*https://huggingface.co/lab/gated.*hf auth login",
        "absent": "'lab/absent' does not exist on Hugging Face.*Correct the name.*hf auth login",
        "missing@v9": "'lab/missing@v9' has no such revision",
    }.items():
        with pytest.raises(BundleError, match=words):
            load_bundle(f"lab/{name}")
    assert not list((tmp_path / "cache").rglob("model.safetensors")) or "lab--foreign" not in str(
        list((tmp_path / "cache").rglob("model.safetensors"))
    )
    point_the_hub_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(BundleError, match=r"cannot be reached.*Try again with a network"):
        load_bundle("lab/never_seen")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"no such folder.*pip install '.*\[hub\]'"):
        load_bundle("lab/never_seen")


def test_a_head_on_a_gated_backbone_is_shared_alone(hub, tmp_path, monkeypatch, capsys):
    whole = write_tiny_bundle(tmp_path / "tiny")
    scores = {"miou": 0.625, "aacc": 0.9, "per_class_iou": {"class_0": 0.5}}
    recipe = {
        "name": "tiny", "data": {"name": "auto", "root": "/home/me/halls"},
        "cache": {"folder": "../me/features"}, "output": "me/runs", "head": {"start_from": "./me/best"},
    }  # fmt: skip
    run = tmp_path / "run"
    bundle = with_storage(
        whole, run / "best", "reference", "/home/me/dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth",
        training=TrainingSection(recipe=recipe, metrics=scores), licences=["Own images"],
    )  # fmt: skip
    (run / "recipe.yaml").write_text("")
    (run / "predictions.png").write_bytes(b"picture")
    (bundle.path / "onnx" / "64x96-fp32").mkdir(parents=True)
    (bundle.path / "onnx" / "64x96-fp32" / "backbone.onnx").write_bytes(b"weights of Meta")

    assert main([str(bundle.path), "lab/head", "--private"]) == 0

    repository = hub.repositories["lab/head"]
    names = {"bundle.json", "head.safetensors", "README.md", "LICENCES.txt", "pictures/predictions.png"}
    assert set(repository.files()) == {*names, ".gitattributes"} and repository.private
    shared = json.loads(repository.files()["bundle.json"])
    assert (shared["backbone"]["source"], shared["backbone"]["identity"]) == (META, whole.manifest.backbone.identity)
    assert "me/" not in shared["training"]["recipe"].__repr__() and "/home/me" not in str(repository.files())
    metadata, text = card_of(repository)
    assert metadata["library_name"] == "dinov3_seg_ros" and metadata["pipeline_tag"] == "image-segmentation"
    assert (metadata["license"], metadata["license_name"], metadata["base_model"]) == ("other", "dinov3-license", META)
    (result,) = metadata["model-index"][0]["results"]
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("halls", 0.625)
    for wanted in (
        "bundle:=lab/head image_topic:=/camera/image_raw",
        f"identity `{whole.manifest.backbone.identity}`",
        "hf auth login",
        "| 0 | class_0 | #",
        "(pictures/predictions.png)",
        "- Own images",
    ):
        assert wanted in text, wanted
    # Another machine without access to the backbone.
    hub.repositories[META] = Repository(gated=True)
    hub.repositories[META].commit({"config.json": b"{}", "model.safetensors": b""})
    loaded = load_bundle("lab/head")
    loaded.load_head()
    with pytest.raises(BackboneError, match=rf"gated.*https://huggingface.co/{META}"):
        loaded.load_backbone()


@pytest.mark.parametrize(("name", "pictures"), [("best", {"predictions.png", "curves.png"}), ("last", {"curves.png"})])
def test_pictures_of_predictions_are_shared_with_the_best_model_alone(hub, tmp_path, name, pictures):
    bundle = write_tiny_bundle(tmp_path / "run" / name)
    for file in ("recipe.yaml", "predictions.png", "curves.png"):
        (tmp_path / "run" / file).write_bytes(b"")
    shared = prepare(bundle, licence="apache-2.0").files
    assert {path for path in shared if path.startswith("pictures/")} == {f"pictures/{file}" for file in pictures}


@pytest.mark.parametrize("gated", [True, False])
def test_weights_derived_from_metas_keep_their_own_name_and_metas_licence(hub, tmp_path, capsys, gated):
    derived = "me/dinov3-convnext-tiny-pretrain-lvd1689m-thermal"
    bundle = with_storage(write_tiny_bundle(tmp_path / "tiny"), tmp_path / "head", "reference", derived)
    write_graphs(bundle, size=(64, 96), reference=False)
    assert main([str(bundle.path), "lab/head"]) == 1
    assert f"the backbone {derived} cannot be told: it does not exist" in capsys.readouterr().err
    hub.repositories[derived] = Repository(gated=gated)
    hub.repositories[derived].commit({})
    assert main([str(bundle.path), "lab/head"]) == 0
    assert ("which is gated" in capsys.readouterr().out) == gated
    files = hub.repositories["lab/head"].files()
    assert not [name for name in files if name.startswith("onnx/")]
    assert json.loads(files["bundle.json"])["backbone"]["source"] == derived
    metadata, text = card_of(hub.repositories["lab/head"])
    assert (metadata["license_name"], metadata["base_model"]) == ("dinov3-license", derived)
    assert "holds the head alone" in text and ("which is gated" in text) == gated


@pytest.mark.parametrize("storage", ["reference", "embedded"])
def test_weights_derived_from_metas_stay_so_under_another_name(hub, tmp_path, storage):
    save_backbone(tiny_backbone(), tmp_path / "open")
    hub.repositories["lab/open"] = Repository()
    hub.repositories["lab/open"].commit({p.name: p.read_bytes() for p in (tmp_path / "open").iterdir()})
    bundle = write_tiny_bundle(tmp_path / "head")
    section = {"storage": storage, "source": "/weights/dinov3_convnext_tiny_pretrain_lvd1689m_finetuned.pth"}
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    manifest["backbone"] |= section
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    write_graphs(bundle, size=(64, 96), reference=False)
    done = main([str(bundle.path), "lab/head", "--backbone", "lab/open", "--licence", "mit"])
    if storage == "embedded":
        assert done == 1 and "lab/head" not in hub.repositories
        return
    assert done == 0
    assert not [name for name in hub.repositories["lab/head"].files() if name.startswith("onnx/")]
    metadata, _ = card_of(hub.repositories["lab/head"])
    assert (metadata["license_name"], metadata["base_model"]) == ("dinov3-license", "lab/open")


@pytest.mark.parametrize(
    ("name", "repository"),
    [("dinov3-convnext-tiny-pretrain-lvd1689m", META), ("dinov3-convnext-tiny-pretrain-lvd1689m-thermal", None)],
)
def test_a_backbone_given_by_its_path_is_shared_by_its_id_alone(hub, tmp_path, capsys, name, repository):
    save_backbone(tiny_backbone(), tmp_path / name)
    bundle = with_storage(write_tiny_bundle(tmp_path / "tiny"), tmp_path / "head", "reference", "/weights/mine")
    words = [str(bundle.path), "lab/head", "--backbone", str(tmp_path / name)]
    if repository is None:
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"the backbone '{tmp_path / name}', which others do not have" in said
        assert "--backbone OWNER/NAME" in said and "embedded" not in said, "which would be refused"
        assert hub.repositories == {}
        return
    assert main(words) == 0
    assert json.loads(hub.repositories["lab/head"].files()["bundle.json"])["backbone"]["source"] == repository
    metadata, _ = card_of(hub.repositories["lab/head"])
    assert metadata["base_model"] == repository
    assert str(tmp_path) not in str(hub.repositories["lab/head"].files())


def test_graphs_for_other_programs_are_left_out_and_named(hub, tmp_path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    export = write_graphs(bundle, size=(64, 96), reference=False)
    (export / "fused.onnx").write_bytes(b"both")
    manifest = json.loads((export / "export.json").read_text())
    manifest["files"]["fused.onnx"] = hashlib.sha256(b"both").hexdigest()
    (export / "export.json").write_text(json.dumps(manifest))
    assert main([str(bundle.path), "lab/tiny", "--licence", "mit"]) == 0
    assert "left out: onnx/64x96-fp32/fused.onnx, which robots do not read" in capsys.readouterr().out
    files = hub.repositories["lab/tiny"].files()
    assert "onnx/64x96-fp32/backbone.onnx" in files and "onnx/64x96-fp32/fused.onnx" not in files


@pytest.mark.parametrize(("user_images", "said"), [(True, "holds"), (None, "may hold"), (False, "")])
def test_without_pictures_no_export_that_holds_the_users_images_is_shared(tmp_path, user_images, said):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    export = write_graphs(bundle, size=(64, 96))
    manifest = json.loads((export / "export.json").read_text())
    (export / "export.json").write_text(json.dumps({**manifest, "user_images": user_images}))
    assert "onnx/64x96-fp32/reference.npz" in prepare(bundle, licence="mit").files
    shared = prepare(bundle, licence="mit", pictures=False)
    assert ("onnx/64x96-fp32/reference.npz" in shared.files) == ("onnx/64x96-fp32/export.json" in shared.files)
    assert ("onnx/64x96-fp32/reference.npz" in shared.files) == (not said)
    note = f"left out: onnx/64x96-fp32, whose reference.npz {said} two of your images; "
    assert shared.notes == ([f"{note}export it again without --images to share it"] if said else [])


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("backbone.onnx", 1000, "is damaged or was changed"),
        ("backbone.onnx", None, "is missing"),
        ("reference.npz", None, "is missing"),
        ("weights.part.1", None, "is missing"),
    ],
)
def test_an_export_that_is_not_whole_is_left_out(tmp_path, name, size, said):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    export = write_graphs(bundle, size=(64, 96))
    manifest = json.loads((export / "export.json").read_text())
    manifest["files"].setdefault(name, "0" * 64)
    (export / "export.json").write_text(json.dumps(manifest))
    if size is None:
        (export / name).unlink(missing_ok=True)
    else:
        os.truncate(export / name, size)
    shared = prepare(bundle, licence="mit")
    assert set(shared.files) == set(bundle.manifest.files)
    start = f"left out: onnx/64x96-fp32: {export / name} {said}"
    assert [start] == [note[: len(start)] for note in shared.notes]


@pytest.mark.parametrize("name", ["{folder}/secret", "../secret", "more/secret"])
def test_an_export_that_lists_a_file_outside_of_it_is_refused(tmp_path, name):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    export = write_graphs(bundle, size=(64, 96), reference=False)
    for folder in (tmp_path, export.parent, export / "more"):
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_bytes(b"key")
    name = name.format(folder=tmp_path)
    manifest = json.loads((export / "export.json").read_text())
    manifest["files"][name] = hashlib.sha256(b"key").hexdigest()
    (export / "export.json").write_text(json.dumps(manifest))
    shared = prepare(bundle, licence="mit")
    assert set(shared.files) == set(bundle.manifest.files)
    said = f"left out: {export / 'export.json'}: 'files' lists {name}, which is no plain file name; export the bundle "
    assert [said] == [note[: len(said)] for note in shared.notes]


def test_a_backbone_that_is_a_file_in_a_repository_stays_named_by_it(hub, tmp_path):
    file = "lab/open/model.pt"
    bundle = with_storage(write_tiny_bundle(tmp_path / "tiny"), tmp_path / "head", "reference", file)
    hub.repositories["lab/open"] = Repository()
    hub.repositories["lab/open"].commit({})
    assert main([str(bundle.path), "lab/head"]) == 0
    assert json.loads(hub.repositories["lab/head"].files()["bundle.json"])["backbone"]["source"] == file
    assert card_of(hub.repositories["lab/head"])[0]["base_model"] == "lab/open"


def test_a_backbone_that_others_can_load_is_checked_and_named(hub, tmp_path, capsys):
    bundle = with_storage(
        write_tiny_bundle(tmp_path / "tiny"), tmp_path / "ref", "reference", str(tmp_path / "weights")
    )
    save_backbone(tiny_backbone(), tmp_path / "open")
    hub.repositories["lab/open"] = Repository()
    hub.repositories["lab/open"].commit({p.name: p.read_bytes() for p in (tmp_path / "open").iterdir()})
    assert main([str(bundle.path), "lab/head"]) == 1
    said = capsys.readouterr().err
    assert "which others do not have" in said and "--backbone OWNER/NAME" in said
    assert "train it again with --backbone.storage embedded" in said
    assert main([str(bundle.path), "lab/head", "--backbone", "lab/open"]) == 0
    assert backbone_identity(load_bundle("lab/head").load_backbone()) == bundle.manifest.backbone.identity
    assert main([str(bundle.path), "lab/head", "--backbone", "lab/absent"]) == 1
    assert "does not exist on Hugging Face" in capsys.readouterr().err


def test_weights_that_may_not_be_shared_stay_here(hub, tmp_path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    satellite = "/weights/dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
    tuned = "/weights/dinov3_vitl16_pretrain_sat493m_finetuned.pth"
    file = "me/dinov3-vits16-pretrain-lvd1689m-thermal/model.pth"
    gated = "they may not be passed on"
    for source, words in (*((source, gated) for source in (META, satellite, tuned, file)), ("my own", "no licence")):
        manifest = json.loads((bundle.path / "bundle.json").read_text())
        manifest["backbone"]["source"] = source
        (bundle.path / "bundle.json").write_text(json.dumps(manifest))
        assert main([str(bundle.path), "lab/tiny"]) == 1
        assert words in capsys.readouterr().err
    assert hub.repositories == {}


def test_a_push_takes_what_is_stale_away_and_leaves_others_alone(hub, tmp_path, capsys, monkeypatch):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    hub.repositories["lab/tiny"] = Repository()
    kept = {"bundle.json": b"{}", "notes.md": b"mine"}
    hub.repositories["lab/tiny"].commit({**kept, "onnx/old/backbone.onnx": b"", "backbone_delta.safetensors": b""})
    push = [str(bundle.path), "lab/tiny", "--licence", "mit"]
    assert main(push) == 0
    files = hub.repositories["lab/tiny"].files()
    assert files["notes.md"] == b"mine" and not [name for name in files if name.startswith(("onnx", "backbone_delta"))]
    assert main([*push, "--revision", "trial"]) == 0
    assert set(hub.repositories["lab/tiny"].branches) == {"main", "trial"}
    assert load_bundle("lab/tiny@trial").manifest.files == bundle.manifest.files
    capsys.readouterr()

    hub.repositories["lab/paper"] = Repository()
    hub.repositories["lab/paper"].commit({"model.safetensors": b"a language model"})
    for words, said in (
        ([push[0], "lab/paper", *push[2:]], "holds something else than a bundle (model.safetensors)"),
        ([*push, "--private"], "exists and is public"),
        ([push[0], "theirs/tiny", *push[2:]], "your token may not write to theirs"),
    ):
        for branch in ([], ["--revision", "refused"]):
            assert main([*words, *branch]) == 1
            assert said in capsys.readouterr().err
    assert hub.repositories["lab/paper"].files() == {"model.safetensors": b"a language model"}
    assert set(hub.repositories["lab/paper"].branches) == {"main"}
    assert set(hub.repositories["lab/tiny"].branches) == {"main", "trial"}
    monkeypatch.setenv("HF_TOKEN", "unknown")
    assert main(push) == 1
    assert "Hugging Face does not know you; run `hf auth login`" in capsys.readouterr().err
    assert main([push[0], "no_owner"]) == 2


def test_a_push_that_breaks_off_is_one_message(hub, tmp_path, monkeypatch, capsys):
    push = [str(write_tiny_bundle(tmp_path / "tiny").path), "lab/tiny", "--licence", "mit"]
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_store", lambda self, _: self._send(400))
        assert main(push) == 1
    assert "lab/tiny was not written: the upload failed (Error while uploading" in (said := capsys.readouterr().err)
    assert "Bad request" in said
    point_the_hub_at("http://127.0.0.1:9", monkeypatch)
    assert main(push) == 1
    assert "lab/tiny was not written: Hugging Face cannot be reached (Connect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("oid"), "the upload failed (KeyError: 'oid')"),
        (PermissionError(13, "Permission denied", "head.safetensors"), "the upload failed (PermissionError: "),
        (TimeoutError("timed out"), "Hugging Face cannot be reached (TimeoutError: timed out)"),
    ],
)
def test_only_an_error_of_the_network_blames_the_connection(hub, tmp_path, monkeypatch, capsys, error, said):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", failing)
    assert main([str(write_tiny_bundle(tmp_path / "tiny").path), "lab/tiny", "--licence", "mit"]) == 1
    assert f"lab/tiny was not written: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "shared"),
    [
        ("runs/customer_x/best/backbone", "backbone"),
        ("customer_x/backbone", "backbone"),
        ("lab/open", "lab/open"),
        ("lab/open/model.pt", "lab/open/model.pt"),
        ("hf_hub:lab/open", "hf_hub:lab/open"),
    ],
)
def test_folders_of_this_machine_are_not_shared(hub, tmp_path, monkeypatch, source, shared):
    monkeypatch.chdir(tmp_path)
    Path("runs/customer_x/best/backbone").mkdir(parents=True)
    hub.repositories["lab/open"] = Repository()
    hub.repositories["lab/open"].commit({})
    data = {"name": "scenes", "cache": "runs/customer_x/scenes"}
    training = TrainingSection(recipe={"data": data, "backbone": {"source": source}})
    bundle = write_tiny_bundle(Path("tiny"))
    manifest = bundle.manifest.model_copy(update={"training": training})
    section = manifest.backbone.model_copy(update={"source": source})
    (bundle.path / "bundle.json").write_text(manifest.model_copy(update={"backbone": section}).model_dump_json())

    assert main(["tiny", "lab/tiny", "--licence", "mit"]) == 0

    files = hub.repositories["lab/tiny"].files()
    assert "customer_x" not in str(files)
    manifest = json.loads(files["bundle.json"])
    assert manifest["backbone"]["source"] == manifest["training"]["recipe"]["backbone"]["source"] == shared


def settings_of(section: type[Section]) -> Iterator[tuple[str, object]]:
    """Names and types of a section and of all that are derived from it."""
    yield from typing.get_type_hints(section, include_extras=True).items()
    for derived in section.__subclasses__():
        yield from settings_of(derived)


def test_of_a_recipe_only_paths_are_changed(tmp_path):
    folders = {name for name, kind in settings_of(Section) if Folder in (kind, *typing.get_args(kind))}
    assert {"root", "output", "cache", "folder"} <= folders
    recipe = {
        "description": "~200 halls",
        "licences": ["/Own/ images"],
        "data": {
            "name": "auto",
            "images": "./rgb/*.png",
            "group": r".*(drive\d+)/.*",
            "classes": {"folder": "a/b", "other": ["./c"]},
            "ignore": ["/d/e"],
        },
        "head": {"options": {"mode": "/f/g"}},
    }
    paths = dict.fromkeys([*folders, "source", "start_from"], "/home/me/last")
    config = {"config": {"model_type": "dinov3_vit", "_name_or_path": "/home/me/last"}}
    bundle = write_tiny_bundle(tmp_path / "tiny")
    training = TrainingSection(recipe={**recipe, "paths": paths, "backbone": config})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"training": training}))
    shared = prepare(bundle, licence="mit").bundle.manifest.training.recipe
    assert {key: shared[key] for key in recipe} == recipe
    assert shared["paths"] == dict.fromkeys(paths, "last")
    assert shared["backbone"]["config"]["_name_or_path"] == "last"


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        (META, META),
        ("dinov3_convnext_tiny", META),
        ("/weights/dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth", META),
        ("/weights/dinov3-convnext-tiny-pretrain-lvd1689m", META),
        ("/weights/dinov3-convnext-tiny-pretrain-lvd1689m/model.safetensors", META),
        ("dinov3_convnext_tiny_pretrain_lvd1689m.pth", META),
        ("/weights/dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "facebook/dinov3-vitl16-pretrain-sat493m"),
        ("/weights/dinov2_vits14_pretrain.pth", "facebook/dinov2-small"),
        ("dinov2_vitg14_reg4_pretrain.pth", "facebook/dinov2-with-registers-giant"),
        ("dinov2_vits14_pretrain_mine.pth", None),
        ("~/dinov3-vitl16-pretrain-sat493m", "facebook/dinov3-vitl16-pretrain-sat493m"),
        ("/weights/dinov3_vit7b16_pretrain_lvd1689m-a955f4ea.pth", "facebook/dinov3-vit7b16-pretrain-lvd1689m"),
        ("dinov3-vit7b16-pretrain-sat493m", "facebook/dinov3-vit7b16-pretrain-sat493m"),
        ("hf_hub:timm/vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("owner/repository/model.pt", "owner/repository"),
        ("me/dinov3-vits16-pretrain-lvd1689m-thermal", "me/dinov3-vits16-pretrain-lvd1689m-thermal"),
        ("dinov3_vits16_pretrain_lvd1689m_finetuned.pth", None),
        ("/weights/dinov3_vits16_pretrain_lvd1689m-08c60483_finetuned.pth", None),
        ("/weights/dinov3-vits16-pretrain-lvd1689m-thermal/model.safetensors", None),
        ("trained from scratch by recipe mine", None),
        ("/weights/mine", None),
        ("~nobody_here/weights/mine.pth", None),
        ("weights/mine.pth", None),
        ("/weights/dinov3_head", None),
    ],
)
def test_a_published_backbone_is_known_by_its_source(source, repository):
    assert repository_of(source) == repository


def test_a_source_in_another_users_home_tells_no_repository(tmp_path, monkeypatch):
    assert repository_of(str(make_closed_folder(tmp_path / "closed", monkeypatch) / "mine")) is None
