"""Folders of four training and two validation images as labelling tools write them, all with the same labels.

`BUILDERS[format](root)` writes one in the way that the tool's documentation describes; `truth(seed)` is what each must
come to. Regions are rectangles, so that polygons give them exactly.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import tiny_datasets
import yaml
from PIL import Image

from training.data.labelled_folder import AutoData

HEIGHT, WIDTH = tiny_datasets.HEIGHT, tiny_datasets.WIDTH
NAMES = ["background", "door", "road", "tree"]
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
SPLITS = {"train": "train", "val": "valid"}

#: Class, first row and column, last row and column.
Region = tuple[int, int, int, int, int]


def regions(seed: int) -> list[Region]:
    """Rectangles of an image, the lowest first: a tree on a road, and a door."""
    move = seed % 5
    return [(2, 10 + move, 2, 30 + move, 40), (1, 1, 3, 6, 9 + move), (3, 15 + move, 10, 20 + move, 22)]


def truth(seed: int) -> np.ndarray:
    """The labels (HEIGHT, WIDTH) of an image."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, top, left, bottom, right in regions(seed):
        labels[top : bottom + 1, left : right + 1] = value
    return labels


def corners(region: Region) -> list[list[int]]:
    """x and y of the corner pixels of a region."""
    _, top, left, bottom, right = region
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def items() -> Iterable[tuple[str, str, int]]:
    """Split, stem and seed of each image."""
    for split in tiny_datasets.COUNTS:
        for seed in tiny_datasets.seeds(split):
            yield split, f"{split}_{seed:04d}", seed


def put(path: Path, content: object) -> None:
    """Write text, JSON, or an array as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def run_lengths(region: np.ndarray) -> list[int]:
    """Lengths of the runs outside and inside of a region in turn, along its rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], region.ravel().astype(int)])))
    return np.diff(np.concatenate([[0], edges, [region.size]])).tolist()


def compressed_runs(lengths: list[int]) -> str:
    """Run lengths as COCO compresses them to text."""
    text = ""
    for index, length in enumerate(lengths):
        value, more = length - lengths[index - 2] if index > 2 else length, True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr(48 + (bits | 0x20 if more else bits))
    return text


def build_cvat_mask(root: Path) -> None:
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True)))  # fmt: skip
    build_voc_masks(root, lambda labels: np.array(COLOURS, np.uint8)[labels])


def build_cvat_images(root: Path) -> None:
    labels = "".join(f"<label><name>{name}</name><color>#102030</color></label>" for name in NAMES[1:])
    images = []
    for number, (split, stem, seed) in enumerate(items()):
        tiny_datasets.save_image(root / "images" / f"{stem}.jpg", seed)
        road, door, tree = regions(seed)
        points = ";".join(f"{x}.00,{y}.00" for x, y in corners(road))
        (left, top), (right, bottom) = corners(door)[0], corners(door)[2]
        covered = (truth(seed) == 3)[tree[1] - 1 : tree[3] + 1, tree[2] - 1 : tree[4] + 1]  # a pixel beyond its corner
        runs = ", ".join(map(str, run_lengths(covered)))
        shapes = [
            f'<mask label="tree" rle="{runs}" left="{tree[2] - 1}" top="{tree[1] - 1}" width="{covered.shape[1]}" '
            f'height="{covered.shape[0]}" z_order="10"/>',
            f'<polygon label="road" points="{points}" z_order="9"/>',
            f'<box label="door" xtl="{left}" ytl="{top}" xbr="{right}.5" ybr="{bottom}.5" z_order="1"/>',
            '<points label="door" points="1.0,30.0" z_order="3"/><tag label="road"/>',
        ]
        subset = {"train": "Train", "val": "Validation"}[split]
        images.append(
            f'<image id="{number}" name="{stem}.jpg" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">'
            f"{''.join(shapes)}</image>"
        )
    meta = f"<meta><task><name>rooms</name><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>{meta}{"".join(images)}'
    put(root / "annotations.xml", f"{text}</annotations>")


def build_datumaro(root: Path) -> None:
    labels = [{"name": name, "parent": "", "attributes": []} for name in NAMES[1:]]
    for split in tiny_datasets.COUNTS:
        records = []
        for own, stem, seed in items():
            if own != split:
                continue
            tiny_datasets.save_image(root / "images" / split / f"{stem}.jpg", seed)
            road, door, tree = regions(seed)
            (left, top), (right, bottom) = corners(door)[0], corners(door)[2]
            counts = compressed_runs(run_lengths((truth(seed) == 3).T))
            points = [number + 0.25 for corner in corners(road) for number in corner]
            found = [
                {
                    "type": "mask",
                    "label_id": tree[0] - 1,
                    "rle": {"size": [HEIGHT, WIDTH], "counts": counts},
                    "z_order": 2,
                },
                {"type": "polygon", "label_id": road[0] - 1, "points": points, "z_order": 0},
                {
                    "type": "bbox",
                    "label_id": door[0] - 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "z_order": 1,
                },
                {"type": "label", "label_id": 0},
            ]
            image = {"path": f"{stem}.jpg", "size": [HEIGHT, WIDTH]}
            records.append({"id": stem, "annotations": found, "attr": {}, "image": image})
        content = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": records}
        put(root / "annotations" / f"{split}.json", content)


def build_via(root: Path) -> None:
    for split in tiny_datasets.COUNTS:
        images = {}
        for own, stem, seed in items():
            if own != split:
                continue
            tiny_datasets.save_image(root / split / f"{stem}.jpg", seed)
            found = []
            for value, top, left, bottom, right in regions(seed):
                shape: dict[str, object] = {"name": "polygon", "all_points_x": [left, right, right, left]}
                shape["all_points_y"] = [top, top, bottom, bottom]
                if value == 1:
                    shape = {"name": "rect", "x": left, "y": top, "width": right - left, "height": bottom - top}
                found.append({"shape_attributes": shape, "region_attributes": {"class": NAMES[value], "note": ""}})
            found[2]["region_attributes"] = {"class": {"tree": True, "road": False}}
            size = (root / split / f"{stem}.jpg").stat().st_size
            images[f"{stem}.jpg{size}"] = {
                "filename": f"{stem}.jpg", "size": size, "regions": found, "file_attributes": {}
            }  # fmt: skip
        put(root / split / "via_region_data.json", images)


def build_voc_folders(root: Path) -> None:
    put(root / "class_names.txt", "__ignore__\n_background_\n" + "\n".join(NAMES[1:]))
    build_voc_masks(root, lambda labels: labels)


def build_voc_masks(root: Path, paint: Callable[[np.ndarray], np.ndarray]) -> None:
    for split, stem, seed in items():
        tiny_datasets.save_image(root / "JPEGImages" / f"{stem}.jpg", seed)
        put(root / "SegmentationClass" / f"{stem}.png", paint(truth(seed)))
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        with listed.open("a") as file:
            file.write(f"{stem}\n")


def build_labelme(root: Path) -> None:
    for split, stem, seed in items():
        tiny_datasets.save_image(root / split / f"{stem}.jpg", seed)
        shapes = [
            {"label": NAMES[region[0]], "points": corners(region), "shape_type": "polygon"} for region in regions(seed)
        ]
        shapes[1].update(points=corners(regions(seed)[1])[::2], shape_type="rectangle")
        _, top, left, bottom, right = regions(seed)[2]
        picture = io.BytesIO()
        Image.fromarray(np.full((bottom - top + 1, right - left + 1), 255, np.uint8)).save(picture, "PNG")
        shapes[2].update(
            points=[[left, top], [right, bottom]], shape_type="mask", mask=base64.b64encode(picture.getvalue()).decode()
        )
        put(root / split / f"{stem}.json", {
            "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None,
            "imageHeight": HEIGHT, "imageWidth": WIDTH})  # fmt: skip


def build_coco(root: Path) -> None:
    for split, folder in SPLITS.items():
        images, annotations = [], []
        for own, stem, seed in items():
            if own != split:
                continue
            tiny_datasets.save_image(root / folder / f"{stem}.jpg", seed)
            images.append({"id": seed, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT})
            for region in regions(seed):
                points = [number for corner in corners(region) for number in corner]
                annotation = {"id": len(annotations), "image_id": seed, "category_id": region[0], "iscrowd": 0}
                parts = [points[:2] * 3, points] if region[0] == 2 else [points]  # a corner of the road once more
                annotations.append(annotation | {"segmentation": parts})
            counts = run_lengths((truth(seed) == 1).T)  # the door once more
            annotations[-2]["segmentation"] = {"counts": counts, "size": [HEIGHT, WIDTH]}
        categories = [{"id": 0, "name": "rooms", "supercategory": "none"}]
        categories += [{"id": index, "name": NAMES[index], "supercategory": "rooms"} for index in (1, 3, 2)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        put(root / folder / "_annotations.coco.json", content)


def build_coco_panoptic(root: Path) -> None:
    categories = [{"id": 10 * index, "name": name} for index, name in enumerate(NAMES) if index]
    for split in tiny_datasets.COUNTS:
        images, annotations = [], []
        for own, stem, seed in items():
            if own != split:
                continue
            tiny_datasets.save_image(root / "images" / split / f"{stem}.jpg", seed)
            ids = truth(seed).astype(np.uint32) * 300
            put(root / "annotations" / f"panoptic_{split}" / f"{stem}.png",
                np.stack([ids % 256, ids // 256, ids // 65536], -1).astype(np.uint8))  # fmt: skip
            images.append({"id": seed, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT})
            segments = [{"id": 300 * value, "category_id": 10 * value} for value in (1, 2, 3)]
            annotations.append({"image_id": seed, "file_name": f"{stem}.png", "segments_info": segments})
        content = {"images": images, "annotations": annotations, "categories": categories}
        put(root / "annotations" / f"panoptic_{split}.json", content)


def build_yolo(root: Path) -> None:
    put(root / "data.yaml", yaml.safe_dump({"train": "../train/images", "val": "../valid/images", "names": NAMES[1:]}))
    for split, stem, seed in items():
        tiny_datasets.save_image(root / SPLITS[split] / "images" / f"{stem}.jpg", seed)
        lines = []
        for region in regions(seed):
            shares = [f"{(x + 0.5) / WIDTH:.6f} {(y + 0.5) / HEIGHT:.6f}" for x, y in corners(region)]
            lines.append(f"{region[0] - 1} {' '.join(shares)}\n")
        put(root / SPLITS[split] / "labels" / f"{stem}.txt", "".join(lines))


def build_roboflow_masks(root: Path) -> None:
    for split, stem, seed in items():
        tiny_datasets.save_image(root / SPLITS[split] / f"{stem}.jpg", seed)
        put(root / SPLITS[split] / f"{stem}_mask.png", truth(seed))
        rows = "\n".join(f"{index}, {name}" for index, name in enumerate(NAMES))
        put(root / SPLITS[split] / "_classes.csv", f"Pixel Value, Class\n{rows}")


def build_supervisely(root: Path) -> None:
    put(root / "meta.json", {"classes": [{"title": name, "shape": "any"} for name in NAMES[1:]], "tags": []})
    for split, stem, seed in items():
        tiny_datasets.save_image(root / split / "img" / f"{stem}.jpg", seed)
        objects = [
            {"classTitle": NAMES[region[0]], "geometryType": "polygon",
             "points": {"exterior": corners(region), "interior": []}} for region in regions(seed)]  # fmt: skip
        value, top, left, bottom, right = regions(seed)[2]
        picture = io.BytesIO()
        Image.fromarray(np.full((bottom - top + 1, right - left + 1), 255, np.uint8)).convert("1").save(picture, "PNG")
        data = base64.b64encode(zlib.compress(picture.getvalue())).decode()
        objects[2] = {
            "classTitle": NAMES[value],
            "geometryType": "bitmap",
            "bitmap": {"data": data, "origin": [left, top]},
        }
        content = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
        put(root / split / "ann" / f"{stem}.jpg.json", content)


def build_label_studio(root: Path) -> None:
    tasks = []
    for split, stem, seed in items():
        tiny_datasets.save_image(root / "images" / split / f"0a1b2c3d-{stem}.jpg", seed)
        size = {"original_height": HEIGHT, "original_width": WIDTH}
        results = []
        for region in regions(seed):
            points = [[100 * (x + 0.5) / WIDTH, 100 * (y + 0.5) / HEIGHT] for x, y in corners(region)]
            value = {"points": points, "polygonlabels": [NAMES[region[0]]]}
            results.append({"type": "polygonlabels", "value": value, **size})
        value = {"format": "rle", "rle": packed_brush(truth(seed) == 3), "brushlabels": [NAMES[3]]}
        results[2] = {"type": "brushlabels", "value": value, **size}
        image = f"/data/upload/1/0a1b2c3d-{stem}.jpg"
        done = [{"was_cancelled": True, "result": results[:1]}, {"was_cancelled": False, "result": results}]
        done.append({"was_cancelled": False, "result": results[1:]})  # of another annotator, which does not count
        tasks.append({"id": seed, "data": {"image": image}, "annotations": done})
    put(root / "project.json", tasks)


def packed_brush(region: np.ndarray) -> list[int]:
    """A region as Label Studio packs brushes: run lengths of the words of RGBA pixels."""
    words = np.where(region.reshape(-1, 1), np.uint8(255), np.array([0, 0, 0, 127], np.uint8)).ravel()
    bits = f"{words.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    edges = np.flatnonzero(np.diff(words)) + 1
    for start, end in zip([0, *edges], [*edges, words.size], strict=True):
        bits += f"1{3:02b}{end - start - 1:016b}{words[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[index : index + 8], 2) for index in range(0, len(bits), 8)]


def build_ultralytics_semantic(root: Path) -> None:
    settings = {"path": ".", "train": "images/train", "val": "images/val", "masks_dir": "ground"}
    put(root / "rooms.yaml", yaml.safe_dump({**settings, "names": dict(enumerate(NAMES))}))
    for split, stem, seed in items():
        tiny_datasets.save_image(root / "images" / split / f"{stem}.jpg", seed)
        put(root / "ground" / split / f"{stem}.png", truth(seed))


def build_huggingface_images(root: Path) -> None:
    put(root / "id2label.json", {str(index): name for index, name in enumerate(NAMES)})
    for split in tiny_datasets.COUNTS:
        rows = []
        for own, stem, seed in items():
            if own == split:
                tiny_datasets.save_image(root / split / f"{stem}.jpg", seed)
                put(root / split / "labels" / f"{stem}.png", truth(seed))
                rows.append(json.dumps({"file_name": f"{stem}.jpg", "label_file_name": f"labels/{stem}.png"}))
        put(root / split / "metadata.jsonl", "\n".join(rows))


def build_pair_lists(root: Path) -> None:
    put(root / "classes.txt", "\n".join(NAMES))
    for split in tiny_datasets.COUNTS:
        lines = []
        for own, stem, seed in items():
            if own == split:
                tiny_datasets.save_image(root / "00000" / "pylon_camera_node" / f"{stem}.jpg", seed)
                put(root / "00000" / "pylon_camera_node_label_id" / f"{stem}.png", truth(seed))
                folder = "00000/pylon_camera_node"
                lines.append(f"{folder}/{stem}.jpg {folder}_label_id/{stem}.png")
        put(root / f"{split}.lst", "\n".join(lines))


def build_folder(root: Path) -> None:
    put(root / "classes.yaml", yaml.safe_dump(NAMES))
    for split, stem, seed in items():
        tiny_datasets.save_image(root / split / "images" / f"{stem}.jpg", seed)
        put(root / split / "masks" / f"{stem}.png", truth(seed))


def build_label_studio_png(root: Path) -> None:
    rows = ["id,image,annotator"]
    for number, (split, stem, seed) in enumerate(items(), start=7):
        tiny_datasets.save_image(root / "images" / split / f"0a1b2c3d-{stem}.jpg", seed)
        rows.append(f"{number},/data/upload/1/0a1b2c3d-{stem}.jpg,1")
        for label in NAMES[1:]:
            layer = np.where(truth(seed) == NAMES.index(label), np.uint8(255), np.uint8(127))
            put(root / "masks" / f"task-{number}-annotation-{number + 50}-by-1-tag-{label}-0.png", layer)
            # A later annotation of the same task does not count.
            put(root / "masks" / f"task-{number}-annotation-{number + 90}-by-2-tag-{label}-0.png", 255 - layer)
    put(root / "project.csv", "\n".join(rows))


def build_huggingface_datasets(root: Path) -> None:
    put(root / "id2label.json", {str(index): name for index, name in enumerate(NAMES)})
    for split, word in (("train", "train"), ("val", "validation")):
        path = root / "data" / f"{word}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(picture_table(split), path, row_group_size=2)


def build_save_to_disk(root: Path) -> None:
    """The same as `datasets` leaves it after ``save_to_disk``."""
    put(root / "id2label.json", {str(index): name for index, name in enumerate(NAMES)})
    put(root / "dataset_dict.json", {"splits": ["train", "validation"]})
    for split, word in (("train", "train"), ("val", "validation")):
        table = picture_table(split)
        put(root / word / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": word})
        with (
            pyarrow.OSFile(str(root / word / "data-00000-of-00001.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table, max_chunksize=1)


def picture_table(split: str) -> pyarrow.Table:
    """Rows of an image and its mask as `datasets` keeps pictures: the bytes of their files, and their paths."""
    rows = []
    for own, stem, seed in items():
        if own == split:
            image, mask = io.BytesIO(), io.BytesIO()
            Image.fromarray(tiny_datasets.image_of(seed)).save(image, "JPEG")
            Image.fromarray(truth(seed)).save(mask, "PNG")
            picture = {"bytes": image.getvalue(), "path": f"{stem}.jpg"}
            rows.append({"image": picture, "annotation": {"bytes": mask.getvalue(), "path": None}, "scene": "room"})
    picture_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = [("image", picture_type), ("annotation", picture_type), ("scene", pyarrow.string())]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))


BUILDERS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("build_"): build
    for name, build in list(globals().items())
    if name.startswith("build_") and name not in ("build_voc_masks", "build_save_to_disk")
}


def labels_by_name(data, index: int) -> np.ndarray:
    """Names of the classes of an item's pixels."""
    names = np.array([*data.class_names, *[""] * (255 - len(data.class_names)), "ignored"])
    return names[data.item(index)[1]]


def check_truth(section: AutoData) -> None:
    """Both splits have the labels that `labelled_folders` writes, also in another process."""
    for split, count in tiny_datasets.COUNTS.items():
        data = pickle.loads(pickle.dumps(section.open(split)))
        assert len(data) == count and data.class_names == NAMES
        for index, seed in enumerate(tiny_datasets.seeds(split)):
            expected = np.array(NAMES)[truth(seed)]
            assert np.array_equal(labels_by_name(data, index), expected), (split, index)
            assert np.array_equal(data.item(index)[1], data.mask(index))
        assert data.contents().files


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change the content of a JSON, or of the last line of several."""
    *lines, last = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    content = json.loads(last)
    change(content)
    path.write_text("\n".join([*lines, json.dumps(content)]))


def regions_of(tasks: list[dict]) -> list[dict]:
    """The results of the first task's annotation that counts."""
    return tasks[0]["annotations"][1]["result"]


def shorten(tasks: list[dict], **answers: list[dict]) -> None:
    """Make the tasks "JSON-MIN"; the results in ``answers`` are added to the first, with the size of its image."""
    for index, task in enumerate(tasks):
        results = regions_of(tasks[index:])
        size = {key: value for key, value in results[0].items() if key.startswith("original")}
        values = {"label": [result["value"] for result in results], **({} if index else answers)}
        found = {key: [{**value, **size} for value in own] for key, own in values.items()}
        tasks[index] = {"image": task["data"]["image"], **found}


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, channels) uint16: grey and alpha, RGB or RGBA, none of which Pillow writes."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
