"""How near exported graphs are to the model, and how fast they run: made-up weights in the published architectures.

    python benchmarks/export.py --models vits16plus convnext_tiny --sizes 640x640 480x640 224x224 --precisions fp32 int8

The head is a classifier fitted to clusters of the features, so that the maps compared hold many classes although no
weight has learnt anything. Times are of the backbone, of all precisions in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from dinov3_seg_ros.artefacts import export_folder
from dinov3_seg_ros.backbone import backbone_identity, build_backbone, save_backbone
from dinov3_seg_ros.bundle import (
    BACKBONE_FOLDER,
    ClassesSection,
    HeadSection,
    InputSection,
    Manifest,
    describe_backbone,
    load_bundle,
    save_bundle,
)
from dinov3_seg_ros.demo import scenes
from dinov3_seg_ros.errors import ExportError
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.heads import build_head
from dinov3_seg_ros.overlay import default_palette
from dinov3_seg_ros.pipeline import Segmenter
from dinov3_seg_ros.runtimes.pytorch import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 24
MODELS = {
    "vits16plus": {
        "model_type": "dinov3_vit", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
        "intermediate_size": 1536, "patch_size": 16, "num_register_tokens": 4, "use_gated_mlp": True,
        "hidden_act": "silu", "layerscale_value": 1.0,
    },
    "convnext_tiny": {
        "model_type": "dinov3_convnext", "hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3],
        "layer_scale_init_value": 1.0,
    },
}  # fmt: skip


def made_up_bundle(folder: Path, model: str, size: tuple[int, int]) -> Path:
    """A bundle whose linear head tells clusters of the last map's features apart."""
    torch.manual_seed(0)
    backbone = build_backbone(MODELS[model])
    backbone.freeze()
    backbone.eval()
    rooms = np.stack([cv2.resize(scenes.sample("train", 40 * i, (480, 640))[0], size[::-1]) for i in range(3)])
    with torch.inference_mode():
        (features,) = backbone(normalise(torch.from_numpy(rooms), MEAN, STD))
    cells = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()
    centre, spread = cells.mean(0), cells.std(0) + 1e-6
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0.0)
    _, _, clusters = cv2.kmeans((cells - centre) / spread, CLASSES, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    head = build_head("linear", backbone.channels, backbone.strides, CLASSES)
    with torch.no_grad():
        head.norm.running_mean.copy_(torch.from_numpy(centre))
        head.norm.running_var.copy_(torch.from_numpy(spread**2))
        head.classifier.weight.copy_(torch.from_numpy(clusters)[:, :, None, None])
        head.classifier.bias.copy_(torch.from_numpy(-0.5 * (clusters**2).sum(1)))
    manifest = Manifest(
        name=model,
        backbone=describe_backbone(
            backbone, storage="embedded", source="made up", identity=backbone_identity(backbone)
        ),
        input=InputSection(network_size=size, geometry="stretch", mean=MEAN, std=STD),
        classes=ClassesSection(names=[f"cluster_{i}" for i in range(CLASSES)], palette=default_palette(CLASSES)),
        head=HeadSection(name="linear"),
    )
    save_bundle(folder, manifest, head.state_dict(), lambda path: save_backbone(backbone, path / BACKBONE_FOLDER))
    return folder


def interleaved_ms(segmenters: dict[str, Segmenter], size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Median milliseconds of one backbone pass of each, taken in turn."""
    canvas = cv2.resize(scenes.sample("val", 0, (480, 640))[0], size[::-1])[None]
    times: dict[str, list[float]] = {name: [] for name in segmenters}
    for _ in range(rounds):
        for name, segmenter in segmenters.items():
            start = time.perf_counter()
            segmenter.runtime.features(canvas)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.median(values[1:])), 1) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", default=["640x640", "480x640", "224x224"], metavar="HxW")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        for model in options.models:
            for text in options.sizes:
                size = tuple(int(side) for side in text.split("x"))
                bundle = made_up_bundle(Path(work) / f"{model}-{text}", model, size)
                results.append({"model": model, "size": text, **measure(bundle, size, options)})
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(bundle: Path, size: tuple[int, int], options: argparse.Namespace) -> dict:
    """Parity and times of all precisions of one bundle at one size."""
    result, segmenters = {}, {"torch": Segmenter.from_bundle(bundle, "torch", network_size=size)}
    for precision in options.precisions:
        try:
            export([bundle], ExportOptions(size=size, precision=precision))
        except ExportError as error:
            result[precision] = str(error)
            continue
        segmenters[precision] = Segmenter.from_bundle(bundle, "onnx", network_size=size, precision=precision)
        folder = export_folder(load_bundle(bundle), size, precision)
        result[precision] = json.loads((folder / "export.json").read_text())["parity"]
    return {**result, "backbone_ms": interleaved_ms(segmenters, size, options.rounds)}


if __name__ == "__main__":
    main()
