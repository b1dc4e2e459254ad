"""What Label Studio exports, and what its tasks say of images and regions."""

from __future__ import annotations

import codecs
import json
import shutil
import urllib.parse

import labelled_folders
import numpy as np
import pytest
import tiny_datasets
from labelled_folders import check_truth, edit, regions_of, shorten
from PIL import Image

from dinov3_seg_ros.support.errors import DatasetError
from training.data.labelled_folder import AutoData

pytestmark = pytest.mark.usefixtures("own_cache")


def test_masks_of_label_studio_without_their_tasks_are_explained(tmp_path):
    labelled_folders.build_label_studio_png(tmp_path)
    (tmp_path / "project.csv").unlink()
    with pytest.raises(DatasetError, match=r"which image task 7 is \(6 of 6 tasks\): export the same project as CSV"):
        AutoData(root=str(tmp_path)).open("train")


def test_masks_of_label_studio_are_of_the_nearest_export(tmp_path):
    for site in ("site_a", "site_b"):
        labelled_folders.build_label_studio_png(tmp_path / site)
    data = AutoData(root=str(tmp_path)).open_all()
    sites = [{path.relative_to(tmp_path).parts[0] for _, path in sample.entry} for sample in data.samples]
    assert [{sample.image.relative_to(tmp_path).parts[0]} for sample in data.samples] == sites
    assert sorted(sites, key=min) == [{"site_a"}] * 6 + [{"site_b"}] * 6
    table = tmp_path / "site_a/project.csv"
    table.with_stem("other").write_text(table.read_text().replace("0000", "0001"))
    with pytest.raises(
        DatasetError, match=r"site_a/other\.csv and site_a/project\.csv differ in the image of task 7 .*; keep"
    ):
        AutoData(root=str(tmp_path)).open_all()
    table.with_stem("other").unlink()
    text = table.read_text()
    table.write_text(text.replace("0000", "0001"))
    with pytest.raises(DatasetError, match=r"train_0001\.jpg is in .*task-7-.* and in .*task-8-.*; keep one"):
        AutoData(root=str(tmp_path)).open_all()
    table.write_text(text)
    next(tmp_path.rglob("site_a/*/*/*train_0000.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"which image task 7 is \(1 of 6 tasks\)"):
        AutoData(root=str(tmp_path)).open_all()


def test_masks_of_label_studio_may_be_made_smaller(tmp_path):
    labelled_folders.build_label_studio_png(tmp_path)
    for path in tmp_path.rglob("task-*.png"):
        Image.fromarray(np.array(Image.open(path)) >= 128).save(path)
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("name", ["Küche 1.jpg", "50% light.jpg"])
@pytest.mark.parametrize(
    "address",
    ["/data/local-files/?d=images/train/{}", "https://host/{}?X=1", "s3://photos/{}", "/data/upload/1/0a1b2c3d-{}"],
)
def test_addresses_of_label_studios_images_are_unquoted(tmp_path, address, name):
    labelled_folders.build_label_studio(tmp_path)
    (tmp_path / "images/train/0a1b2c3d-train_0000.jpg").rename(tmp_path / "images/train" / name)
    written = address.format(urllib.parse.quote(name))
    edit(tmp_path / "project.json", lambda tasks: tasks[0]["data"].update(image=written))
    data = AutoData(root=str(tmp_path)).open_all()
    index = [data.describe(index) for index in range(len(data))].index(name)
    assert np.array_equal(data.item(index)[1], labelled_folders.truth(0))


def test_label_studios_image_may_follow_other_texts(tmp_path):
    labelled_folders.build_label_studio(tmp_path)

    def add(tasks):
        for task in tasks:
            task["data"] = {"site": "depot", **task["data"], "note": "a.jpg"}

    edit(tmp_path / "project.json", add)
    check_truth(AutoData(root=str(tmp_path)))
    next(tmp_path.rglob("*train_0000.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"1 images of project\.json are not in .*, such as .*train_0000\.jpg"):
        AutoData(root=str(tmp_path)).open("train")


@pytest.mark.parametrize("kind", ["bitmasklabels", "labels"])
@pytest.mark.parametrize("all_regions", [False, True])
def test_regions_of_label_studio_that_cannot_be_read_are_refused(tmp_path, kind, all_regions):
    labelled_folders.build_label_studio(tmp_path)

    def rename(tasks):
        for task in tasks if all_regions else tasks[:1]:
            for region in [own for done in task["annotations"] for own in done["result"]]:
                of_its_kind = next(key for key in region["value"] if key.endswith("labels"))
                region["value"][kind] = region["value"].pop(of_its_kind)

    edit(tmp_path / "project.json", rename)
    with pytest.raises(
        DatasetError, match=rf"project\.json holds \d+ regions of the kind {kind}, such as 'road' of .*jpg"
    ):
        AutoData(root=str(tmp_path)).open("train")


def test_results_of_label_studio_that_are_no_regions_need_no_label(tmp_path):
    labelled_folders.build_label_studio(tmp_path)

    def add(tasks):
        results = regions_of(tasks)
        results[0]["id"] = "r1"
        points, size = results[0]["value"]["points"], {k: v for k, v in results[0].items() if k.startswith("original")}
        for kind, value in (
            ("polygon", {"points": points}),
            ("choices", {"points": points, "choices": ["blurred"]}),
            ("textarea", {"points": points, "text": ["a note"]}),
            ("keypointlabels", {"x": 1, "y": 1, "width": 1, "keypointlabels": ["door"]}),
        ):
            results.append({"id": "r1" if kind == "polygon" else kind, "type": kind, "value": value, **size})

    edit(tmp_path / "project.json", add)
    check_truth(AutoData(root=str(tmp_path)))


def test_answers_in_json_min_need_no_label(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    triangle, rectangle = {"points": [[1, 1], [9, 1], [9, 9]]}, {"x": 1, "y": 1, "width": 9, "height": 9}
    written = {"blurred": {"choices": ["yes"]}, "seen": {"datetime": "2026-11-28"}, "note": {"text": ["a note"]}}
    answers = {key: [{**shape, **answer} for shape in (triangle, rectangle)] for key, answer in written.items()}
    points = [{"x": 1, "y": 1, "width": 1, "keypointlabels": ["door"]}]
    edit(tmp_path / "project.json", lambda tasks: shorten(tasks, **answers, corner=points))
    check_truth(AutoData(root=str(tmp_path)))


def test_a_json_of_label_studio_may_begin_with_a_byte_order_mark(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    path = tmp_path / "project.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["/data/upload/1", "s3://photos"])
def test_only_what_label_studio_puts_before_a_name_is_left_out(tmp_path, folder):
    labelled_folders.build_label_studio(tmp_path)
    image = next(tmp_path.rglob("*train_0000.jpg"))
    image.rename(image.with_name("0001.jpg"))
    for name, found in (("0a1b2c3d-0001.jpg", True), ("left-0001.jpg", False)):
        edit(tmp_path / "project.json", lambda tasks, name=name: tasks[0]["data"].update(image=f"{folder}/{name}"))
        section = AutoData(root=str(tmp_path))
        if found:
            assert image.with_name("0001.jpg") in [sample.image for sample in section.open_all().samples]
            continue
        with pytest.raises(DatasetError, match=r"1 images of project\.json are not in .*, such as .*left-0001\.jpg"):
            section.open_all()


def test_the_numbered_folder_of_an_upload_is_none_of_the_users(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    tiny_datasets.save_image(tmp_path / "images/1/another.jpg", 0)
    check_truth(AutoData(root=str(tmp_path)))


def test_exports_of_label_studio_side_by_side_may_repeat_names(tmp_path):
    for site in ("site_a", "site_b"):
        labelled_folders.build_label_studio(tmp_path / site)
        for path in (tmp_path / site).rglob("*.jpg"):
            path.rename(tmp_path / site / "images" / path.name)
    samples = AutoData(root=str(tmp_path)).open_all().samples
    assert [sample.image.parent.parent for sample in samples] == [sample.labels.parent for sample in samples]
    assert len({sample.image for sample in samples}) == 12
    (tmp_path / "site_b/images").rename(tmp_path / "site_b/photos")
    shutil.copytree(tmp_path / "site_b/photos", tmp_path / "site_b/images/copies")
    with pytest.raises(DatasetError, match=r"6 images of site_b/project\.json are not in .*, or in several of its"):
        AutoData(root=str(tmp_path)).open_all()
    shutil.rmtree(tmp_path / "site_b/images")
    (tmp_path / "site_b/photos").rename(tmp_path / "site_b/images")
    (tmp_path / "site_a/images/0a1b2c3d-train_0001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 images of site_a/project\.json are not in .*train_0001\.jpg"):
        AutoData(root=str(tmp_path)).open_all()


def test_a_json_of_label_studio_without_a_region_is_background(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    tasks = json.loads((tmp_path / "project.json").read_text())
    (tmp_path / "project.json").unlink()
    labelled_folders.put(tmp_path / "train/project.json", [task for task in tasks if task["id"] < 100])
    labelled_folders.put(tmp_path / "val/project.json", [task for task in tasks if task["id"] >= 100])
    labelled_folders.put(tmp_path / "val/something_else.json", [{"image": "elsewhere.jpg"}])
    check_truth(AutoData(root=str(tmp_path)))

    def empty(tasks):
        for annotation in [done for task in tasks for done in task["annotations"]]:
            annotation["result"] = []

    edit(tmp_path / "val/project.json", empty)
    section = AutoData(root=str(tmp_path))
    assert [section.open("val").item(index)[1].any() for index in range(2)] == [False, False]
    assert len(section.open("train")) == 4
    edit(tmp_path / "train/project.json", empty)
    with pytest.raises(DatasetError, match="is of no known format"):
        section.open("train")


def test_answers_to_other_questions_are_no_labels_of_label_studio(tmp_path):
    labelled_folders.build_label_studio(tmp_path)
    tasks = json.loads((tmp_path / "project.json").read_text())
    for annotation in [done for task in tasks for done in task["annotations"]]:
        annotation["result"] = [{"type": "choices", "value": {"choices": ["sunny"]}}]
    labelled_folders.put(tmp_path / "weather.json", tasks)
    check_truth(AutoData(root=str(tmp_path)))


def test_a_table_of_label_studio_may_have_long_cells(tmp_path):
    labelled_folders.build_label_studio_png(tmp_path)
    header, *rows = (tmp_path / "project.csv").read_text().splitlines()
    long = '"' + "0, " * 100_000 + '"'
    lines = [f"{header},tag", *(f"{row},{long}" for row in rows)]
    (tmp_path / "project.csv").write_text("\n".join(lines))
    check_truth(AutoData(root=str(tmp_path)))
