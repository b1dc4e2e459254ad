"""Keys of caches and resumed trainings: they follow content, not paths, time stamps, comments or modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_datasets
import torch
import yaml
from rich.console import Console
from trainings import CONVNEXT, forget_accelerator, records, tiny_recipe, train

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.support.errors import OutputError
from training.data import DATASETS, contents
from training.data.contents import Contents, digest_files
from training.data.labelled_folder import FolderData
from training.data.scenes import ScenesData
from training.loop.trainer import Trainer
from training.recipes.loading import load_recipe
from training.recipes.schema import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch) -> Path:
    """Folder of the remembered digests, in place of the user's."""
    folder = tmp_path / "digests"
    monkeypatch.setattr(contents, "cache_folder", lambda _name: folder)
    return folder


def write_data(root: Path) -> Path:
    """Write a folder data set of two classes: four training images and two for validation."""
    for split in tiny_datasets.COUNTS:
        for seed in tiny_datasets.seeds(split):
            tiny_datasets.save_image(root / split / "images" / f"{seed}.bmp", seed)
            tiny_datasets.save_mask(root / split / "masks" / f"{seed}.bmp", tiny_datasets.values_of([0, 1], seed))
    (root / "classes.yaml").write_text("[floor, wall]")
    return root


def change_image(path: Path) -> None:
    """Change one pixel, and neither size nor time stamp of the file."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def train_contents(root: Path, **changes: object) -> Contents:
    return FolderData(root=str(root), **changes).open("train").contents()


def test_touched_files_keep_the_key(tmp_path):
    root = write_data(tmp_path / "data")
    before = train_contents(root)
    for path in root.rglob("*.bmp"):
        os.utime(path, (0, 0))
    assert train_contents(root) == before


def test_a_moved_data_set_keeps_the_key(tmp_path):
    root = write_data(tmp_path / "data")
    before = train_contents(root)
    root.rename(tmp_path / "elsewhere")
    assert train_contents(tmp_path / "elsewhere").digest() == before.digest()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_changed_file_changes_the_key_and_is_named(tmp_path, folder):
    root = write_data(tmp_path / "data")
    before = train_contents(root)
    change_image(root / "train" / folder / "2.bmp")
    after = train_contents(root)
    assert after.digest() != before.digest()
    assert after.changes_since(before) == f"changed: train/{folder}/2.bmp"


def test_the_other_splits_files_do_not_change_the_key(tmp_path):
    root = write_data(tmp_path / "data")
    before = train_contents(root)
    change_image(root / "val" / "images" / "100.bmp")
    assert train_contents(root) == before


def test_added_and_removed_images_change_the_key_and_are_named(tmp_path):
    root = write_data(tmp_path / "data")
    before = train_contents(root)
    for folder in ("images", "masks"):
        shutil.copy(root / "train" / folder / "1.bmp", root / "train" / folder / "9.bmp")
        (root / "train" / folder / "1.bmp").unlink()
    removed, added = "train/images/1.bmp, train/masks/1.bmp", "train/images/9.bmp, train/masks/9.bmp"
    assert train_contents(root).changes_since(before) == f"removed: {removed}; added: {added}"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"classes": ["ground", "door"]}, "'classes' changed"), ({"ignore": [7]}, "'labels' changed")],
)
def test_another_meaning_of_the_masks_changes_the_key(tmp_path, changes, named):
    root = write_data(tmp_path / "data")
    before, after = train_contents(root), train_contents(root, **changes)
    assert after.digest() != before.digest()
    assert after.changes_since(before) == named


@pytest.mark.parametrize("name", sorted(tiny_datasets.BUILDERS))
def test_every_data_set_has_a_key_without_its_root(tmp_path, name):
    roots = (tmp_path / "a", tmp_path / "b" / "c")
    for root in roots:
        tiny_datasets.BUILDERS[name](root)
    one, other = (DATASETS[name](root=str(root)).open("train").contents() for root in roots)
    assert one == other and len(one.files) >= 2 * tiny_datasets.COUNTS["train"]
    assert not one.changes_since(other)


def test_an_image_that_is_listed_twice_changes_the_key(tmp_path):
    tiny_datasets.build_voc(tmp_path, augmented=False)
    before = DATASETS["voc"](root=str(tmp_path)).open("train").contents()
    listed = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text(listed.read_text() + listed.read_text().splitlines()[0] + "\n")
    after = DATASETS["voc"](root=str(tmp_path)).open("train").contents()
    assert after.digest() != before.digest()
    assert after.changes_since(before) == "'repeated' changed"


def test_another_label_of_a_coco_segment_changes_the_key(tmp_path):
    tiny_datasets.build_coco_panoptic(tmp_path)
    before = DATASETS["coco_panoptic"](root=str(tmp_path)).open("val").contents()
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"category_id": 2,', '"category_id": 3,', 1))
    after = DATASETS["coco_panoptic"](root=str(tmp_path)).open("val").contents()
    assert after.changes_since(before) == "changed: annotations/panoptic_val2017.json"


def test_files_that_stay_as_they_are_are_read_once(tmp_path, monkeypatch):
    root, hashed, original = write_data(tmp_path / "data"), [], contents.sha256_of_file
    monkeypatch.setattr(contents, "sha256_of_file", lambda path: hashed.append(path) or original(path))
    monkeypatch.setattr(contents, "_SETTLED_NS", -(10**9))  # as though the files were older
    paths = sorted(root.rglob("*.bmp"))
    first = digest_files(root, paths)
    assert digest_files(root, paths) == first
    assert len(hashed) == len(paths)
    change_image(paths[3])
    assert digest_files(root, paths) != first
    assert hashed[len(paths) :] == [paths[3]]


def test_a_folder_whose_name_is_not_in_utf_8_can_be_read(tmp_path):
    root = write_data(tmp_path / "caf\udce9")  # by a link, or as the working folder
    assert len(digest_files(root, root.rglob("*.bmp"))) == 12


def test_digests_of_files_written_just_now_are_not_remembered(tmp_path, index):
    root = write_data(tmp_path / "data")
    digest_files(root, root.rglob("*.bmp"))
    assert not index.exists()


@pytest.mark.parametrize("damage", ["[]", "{", '{"0.bmp": [1]}'])
def test_a_damaged_index_of_digests_is_ignored(tmp_path, index, monkeypatch, damage):
    root = write_data(tmp_path / "data")
    paths = sorted(root.rglob("*.bmp"))
    monkeypatch.setattr(contents, "_SETTLED_NS", -(10**9))
    first = digest_files(root, paths)
    (path,) = index.iterdir()
    path.write_text(damage)
    assert digest_files(root, paths) == first


def test_an_index_that_cannot_be_written_is_left_out(tmp_path, index, monkeypatch):
    root = write_data(tmp_path / "data")
    index.write_text("in the way")
    monkeypatch.setattr(contents, "_SETTLED_NS", -(10**9))
    assert len(digest_files(root, root.rglob("*.bmp"))) == 12


# Trainings -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images_seen(monkeypatch) -> list[int]:
    """Number of images in each batch that went through a backbone."""
    seen, original = [], Backbone.forward

    def counted(self, images):
        if len(images) > 1:
            seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    return seen


def folder_recipe(folder: Path, root: Path, **changes: object) -> Recipe:
    """A recipe for the data of `write_data` with a cache of features."""
    if not (folder / "source").exists():
        torch.manual_seed(3)
        save_backbone(build_backbone(CONVNEXT), folder / "source")
    content = {
        "data": {"name": "folder", "root": str(root)},
        "backbone": {"source": str(folder / "source"), "layers": [1, 2, 3]},
        "cache": {"views": 1, "folder": str(folder / "features")},
        "epochs": 1,
    }
    return tiny_recipe(folder, **{**content, **changes})


def test_a_moved_and_touched_data_set_resumes_and_keeps_its_features(tmp_path, images_seen):
    data = write_data(tmp_path / "data")
    train(folder_recipe(tmp_path, data))
    assert sum(images_seen) == 4
    moved = shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    train(folder_recipe(tmp_path, moved), resume=True)
    train(folder_recipe(tmp_path, moved, output=str(tmp_path / "again")))
    assert sum(images_seen) == 4


def test_a_changed_image_is_refused_by_name_and_has_other_features(tmp_path):
    data = write_data(tmp_path / "data")
    recipe = folder_recipe(tmp_path, data)
    output = train(recipe).output
    before = (output / "origins.json").read_bytes()
    change_image(data / "train" / "images" / "2.bmp")
    with pytest.raises(OutputError, match=r"train split .*changed: train/images/2\.bmp\).*--output"):
        train(recipe, resume=True)
    assert (output / "origins.json").read_bytes() == before
    train(folder_recipe(tmp_path, data, output=str(tmp_path / "again")))
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_a_changed_mask_of_the_validation_changes_no_features(tmp_path, images_seen):
    data = write_data(tmp_path / "data")
    recipe = folder_recipe(tmp_path, data)
    output = train(recipe).output
    before = (output / "origins.json").read_bytes()
    change_image(data / "val" / "masks" / "101.bmp")
    train(recipe, resume=True)
    assert sum(images_seen) == 4
    assert (output / "origins.json").read_bytes() != before


def test_classes_that_move_into_their_own_file_do_not_block_resuming(tmp_path):
    data = write_data(tmp_path / "data")
    (data / "classes.yaml").unlink()
    section = {"name": "folder", "root": str(data)}
    train(folder_recipe(tmp_path, data, data={**section, "classes": ["floor", "wall"]}))
    (data / "classes.yaml").write_text("[floor, wall]")
    train(folder_recipe(tmp_path, data), resume=True)
    (data / "classes.yaml").write_text("[floor, door]")
    with pytest.raises(OutputError, match="'classes' changed"):
        train(folder_recipe(tmp_path, data), resume=True)


def test_a_moved_backbone_resumes_and_another_one_is_refused(tmp_path):
    data = write_data(tmp_path / "data")
    train(folder_recipe(tmp_path, data))
    moved = {"source": str(shutil.copytree(tmp_path / "source", tmp_path / "moved")), "layers": [1, 2, 3]}
    train(folder_recipe(tmp_path, data, backbone=moved), resume=True)
    torch.manual_seed(4)
    save_backbone(build_backbone(CONVNEXT), tmp_path / "moved")
    with pytest.raises(OutputError, match=r"backbone\.source holds other weights"):
        train(folder_recipe(tmp_path, data, backbone=moved), resume=True)


def test_a_moved_bundle_to_start_from_resumes_and_another_one_is_refused(tmp_path):
    data = write_data(tmp_path / "data")
    first = train(folder_recipe(tmp_path, data, output=str(tmp_path / "first"))).output / "best"

    def recipe(bundle: Path) -> Recipe:
        return folder_recipe(tmp_path, data, head={"options": {"width": 16}, "start_from": str(bundle)})

    train(recipe(first))
    train(recipe(shutil.copytree(first, tmp_path / "moved")), resume=True)
    other = train(folder_recipe(tmp_path, data, seed=5, output=str(tmp_path / "other"))).output / "best"
    with pytest.raises(OutputError, match=r"head\.start_from holds other weights"):
        train(recipe(other), resume=True)


def test_a_changed_comment_in_the_recipe_does_not_block_resuming(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(tiny_recipe(tmp_path, epochs=1).model_dump(mode="json"))
    path.write_text(text)
    train(load_recipe(path))
    path.write_text(f"# now with a comment\n{text}")
    output = train(load_recipe(path, ["--description", "other words"]), resume=True).output
    assert len(records(output)) == 1


def test_a_key_that_the_training_did_not_have_yet_counts_as_its_default(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    path = train(recipe).output / "recipe.yaml"
    before = records(path.parent)
    content = yaml.safe_load(path.read_text())
    del content["accumulate"]
    path.write_text(yaml.safe_dump(content))
    assert records(train(recipe, resume=True).output) == before


def test_origins_that_lack_a_split_are_called_damaged(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    origins = train(recipe).output / "origins.json"
    content = json.loads(origins.read_text())
    del content["data"]["val"]
    origins.write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"origins\.json is absent or damaged"):
        train(recipe, resume=True)


def test_without_its_origins_a_training_is_not_resumed(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    (train(recipe).output / "origins.json").unlink()
    with pytest.raises(OutputError, match=r"origins\.json is absent or damaged"):
        train(recipe, resume=True)


def test_features_that_another_library_computed_are_computed_again(tmp_path, images_seen, monkeypatch):
    data = write_data(tmp_path / "data")
    train(folder_recipe(tmp_path, data))
    original = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, images: [1.2 * m for m in original(self, images)])
    for name in ("again", "and_again"):
        train(folder_recipe(tmp_path, data, output=str(tmp_path / name)))
        assert sum(images_seen) == 8  # once more, not twice
    assert [path.name.startswith(".") for path in (tmp_path / "features").iterdir()] == [False]


KEYS_OF = """
import sys
from pathlib import Path
from rich.console import Console
import test_training_contents as tests
print(*tests.keys(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def keys(folder: Path, data: Path) -> list[str]:
    """Names of the cache of features and of the cache of scenes, for recipes in ``folder``."""
    forget_accelerator()
    trainer = Trainer(folder_recipe(folder, data), Console(quiet=True))
    return [
        trainer.caches(trainer.data_digest()).by_stage[0].folder.name,
        ScenesData(cache="scenes").open("train")._folder.as_posix(),
    ]


def test_comments_in_the_code_and_new_modules_keep_the_keys(tmp_path):
    data = write_data(tmp_path / "data")
    expected = keys(tmp_path, data)
    for package in ("training", "dinov3_seg_ros"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    commented = ("training/samples/transforms.py", "dinov3_seg_ros/model/backbone.py", "dinov3_seg_ros/scenes/views.py")
    for name in (*commented, "dinov3_seg_ros/frames/image_files.py"):
        with open(tmp_path / "code" / name, "a") as module:
            module.write("# one more comment\n")
    (tmp_path / "code" / "training" / "data" / "another.py").write_text('"""One more data set."""\n')
    path = os.pathsep.join([str(tmp_path / "code"), str(ROOT / "test")])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "caches")}
    command = [sys.executable, "-c", KEYS_OF, str(tmp_path), str(data)]
    found = subprocess.run(
        command, cwd=tmp_path / "code", env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.split() == expected
