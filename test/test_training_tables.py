"""Labelled folders whose labels are in tables: Parquet, Arrow and lists of metadata."""

from __future__ import annotations

import contextlib
import json
import shutil

import labelled_folders
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_datasets
from full_disk import full_disk
from labelled_folders import check_truth, png_of_16_bits

from dinov3_seg_ros.support.errors import DatasetError
from training.data import IncompleteError
from training.data.labelled_folder import AutoData
from training.data.reading import tables

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    check_truth(AutoData(root=str(tmp_path)))


def test_the_content_of_a_split_tells_which_rows_of_a_table_it_has(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    shutil.rmtree(tmp_path / "validation")
    halves = [AutoData(root=str(tmp_path), val_fraction=0.5, group="none").open(split) for split in ("train", "val")]
    assert [len(half) for half in halves] == [2, 2]
    assert halves[0].contents().files == halves[1].contents().files
    assert halves[0].contents().digest() != halves[1].contents().digest()


def test_16_bit_images_in_a_table_are_found(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    pixels = tiny_datasets.image_of(0).astype(np.uint16) * 257
    rows = [row | {"image": {"bytes": png_of_16_bits(pixels), "path": None}} for row in table.to_pylist()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), path)
    assert "4 images have 16 bits" in str(AutoData(root=str(tmp_path)).found().notes)


def test_columns_of_a_table_can_be_named(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    with pytest.raises(
        DatasetError, match=r"data\.masks is 'mask', but the columns of images .*\['image', 'annotation'\]"
    ):
        AutoData(root=str(tmp_path), format="huggingface_datasets", masks="mask").open("train")
    check_truth(AutoData(root=str(tmp_path), format="huggingface_datasets", images="image", masks="annotation"))


def test_tables_without_pyarrow_say_what_to_install(tmp_path, monkeypatch):
    labelled_folders.build_huggingface_datasets(tmp_path)
    monkeypatch.setattr(tables, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"\.parquet can only be read with pyarrow: pip install '.*\[parquet\]'"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_full_disk_is_told_from_a_damaged_table(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    with full_disk(2000), pytest.raises(DatasetError, match=r"cannot be copied to .*free some space there"):
        AutoData(root=str(tmp_path)).open("train")
    check_truth(AutoData(root=str(tmp_path)))


def test_offsets_of_a_table_that_are_damaged_never_crash(tmp_path):
    labelled_folders.build_save_to_disk(tmp_path)
    path = tmp_path / "train/data-00000-of-00001.arrow"
    content = path.read_bytes()
    for start in range(0, len(content) - 8, max(8, len(content) // 150)):
        path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
        with contextlib.suppress(DatasetError):
            data = AutoData(root=str(tmp_path)).open("train")
            _ = [data.item(index) for index in range(len(data))]


def test_a_negative_value_of_a_class_is_refused(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    (tmp_path / "id2label.json").write_text('{"-1": "nothing", "1": "road"}')
    with pytest.raises(DatasetError, match=r"id2label\.json gives 'nothing' the value -1; values of masks are from 0"):
        AutoData(root=str(tmp_path)).open("train")


def test_pages_of_a_table_that_are_damaged_are_named(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = b"x" * 396
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.parquet cannot be read"):
        AutoData(root=str(tmp_path)).open("train")


def test_a_damaged_table_is_named(tmp_path):
    labelled_folders.build_huggingface_datasets(tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DatasetError, match=r"train-00000-of-00001\.parquet cannot be read .*download or export it anew"
    ):
        AutoData(root=str(tmp_path)).open("train")


def test_a_parquet_file_that_names_masks_is_a_list_of_metadata(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
        path.unlink()
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["", "val"])
def test_metadata_whose_first_row_lacks_its_mask_is_read(tmp_path, folder):
    labelled_folders.build_huggingface_images(tmp_path)
    shutil.copy(tmp_path / "id2label.json", tmp_path / "val")
    min(tmp_path.glob("val/labels/*")).unlink()
    section = AutoData(root=str(tmp_path / folder))
    assert section.found().kind == "huggingface_images"
    with pytest.raises(IncompleteError, match=r"1 of \d images .*val/labels/val_"):
        section.open_all()


def test_lines_of_metadata_end_where_json_says(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) | {"caption": "two\u2028lines\x85 \x0b"} for line in path.read_text().splitlines()]
        path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    check_truth(AutoData(root=str(tmp_path)))


@pytest.mark.parametrize("folder", ["train", "val"])
def test_each_file_of_metadata_may_have_columns_of_its_own(tmp_path, folder):
    labelled_folders.build_huggingface_images(tmp_path)
    path = tmp_path / folder / "metadata.jsonl"
    path.write_text(path.read_text().replace("label_file_name", "mask").replace('"file_name"', '"image"'))
    check_truth(AutoData(root=str(tmp_path)))


def test_the_masks_of_metadata_are_told_from_other_pictures(tmp_path):
    labelled_folders.build_huggingface_images(tmp_path)
    for path in tmp_path.rglob("metadata.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{"file_name": row["file_name"], "depth_file_name": row["file_name"], **row} for row in rows]
        path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recording").mkdir()
    (tmp_path / "recording/metadata.csv").write_text("topic,count\n/image,3\n")
    (tmp_path / "previews").mkdir()
    shutil.copy(min(tmp_path.glob("val/*.jpg")), tmp_path / "previews/a.jpg")
    shutil.copy(min(tmp_path.glob("val/*.jpg")), tmp_path / "previews/b.jpg")
    (tmp_path / "previews/metadata.csv").write_text("file_name,next\na.jpg,b.jpg\n")
    check_truth(AutoData(root=str(tmp_path)))
    min(tmp_path.glob("train/labels/*")).unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 images .*train/labels/train_"):
        AutoData(root=str(tmp_path)).open("train")
