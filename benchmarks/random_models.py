"""Bundles with random weights in the published architectures, whose masks still show many classes.

The classifier separates clusters of the head's features, although no weight has been trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from dinov3_seg_ros.bundle.manifest import BACKBONE_FOLDER, InputSection, Manifest
from dinov3_seg_ros.bundle.saving import describe_backbone, describe_head, save_bundle
from dinov3_seg_ros.frames.classes import ClassesSection, default_palette
from dinov3_seg_ros.model.heads import Head, build_head
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.model.pretrained.normalisation import IMAGENET
from dinov3_seg_ros.model.weights import build_backbone

MEAN, STD = IMAGENET
# Spread of what an image-guided branch adds to the logits, as a share of their own spread: it moves edges, not regions.
CORRECTION = 0.1
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


def random_bundle(
    folder: Path,
    model: str,
    size: tuple[int, int],
    frames: Sequence[np.ndarray],
    classes: int,
    head_name: str = "linear",
    in_view: int | None = None,
    detail: bool = False,
) -> Path:
    """Write a bundle with random weights; return its folder.

    Args:
        folder: folder to write.
        model: one of `MODELS`.
        size: (height, width) of the network input, pixels.
        frames: (H, W, 3) uint8 RGB each; their features are clustered.
        classes: number of classes.
        head_name: name of the head.
        in_view: approximate mean number of classes that a frame shows. The logits of the other classes are lower
            everywhere. None: each cluster is a class.
        detail: whether the head is image-guided.
    """
    torch.manual_seed(0)
    backbone = build_backbone(MODELS[model])
    backbone.freeze()
    backbone.eval()
    options = {"detail": True} if detail else {}
    head = build_head(head_name, backbone.channels, backbone.strides, classes, **options).eval()
    canvases = torch.from_numpy(np.stack([cv2.resize(frame, size[::-1]) for frame in frames]))
    with torch.inference_mode():
        seen = [(backbone(images), images) for images in Normalise(MEAN, STD)(canvases).split(1)]
        _set_classifier(head.classifier, _cells(head, [maps for maps, _ in seen]), in_view)
        if head.detail is not None:
            _weaken_correction(head, *seen[0])
    manifest = Manifest(
        name=model,
        backbone=describe_backbone(backbone, storage="embedded", source="random", identity=backbone_identity(backbone)),
        input=InputSection(network_size=size, geometry="stretch", mean=MEAN, std=STD),
        classes=ClassesSection(names=[f"cluster_{i}" for i in range(classes)], palette=default_palette(classes)),
        head=describe_head(head, head_name, **options),
    )
    save_bundle(folder, manifest, head.state_dict(), lambda path: save_backbone(backbone, path / BACKBONE_FOLDER))
    return folder


def _cells(head: Head, maps_of_frames: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Return the classifier's input for each frame: (frames, cells, channels)."""
    seen: list[torch.Tensor] = []
    hook = head.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for maps in maps_of_frames:
        head.classify(head.extract(maps))
    hook.remove()
    return torch.cat(seen).flatten(2).transpose(1, 2).contiguous().numpy()


def _weaken_correction(head: Head, maps: Sequence[torch.Tensor], images: torch.Tensor) -> None:
    """Scale what the image-guided branch adds to the logits, whose own weights are random."""
    assert head.detail is not None
    features = head.extract(maps)
    logits = head.classify(features)
    correction = head.detail(images, features, torch.zeros_like(logits))
    factor = CORRECTION * logits.std() / correction.std()
    for parameter in head.detail.classifier.parameters():
        parameter.mul_(factor)


def _set_classifier(classifier: torch.nn.Conv2d, cells: np.ndarray, in_view: int | None) -> None:
    """Set the weights so that each cell gets the class of the nearest cluster of normalised features."""
    classes, flat = classifier.out_channels, cells.reshape(-1, cells.shape[-1])
    centre, spread = flat.mean(0), flat.std(0)
    # Channels that hardly vary would get weights that half precision cannot hold.
    spread = np.maximum(spread, 0.05 * spread.mean())
    points = (flat - centre) / spread
    for count in range(in_view or classes, classes + 1):
        clusters, labels = _clusters(points, count)
        mean_in_view = np.mean([len(np.unique(frame)) for frame in labels.reshape(len(cells), -1)])
        if in_view is None or mean_in_view >= in_view:
            break
    bias = -0.5 * (clusters**2).sum(1)
    if len(clusters) < classes:
        # Further classes like those of a trained head: close behind, but never first, not even between two cells.
        others = np.random.default_rng(0).permuted(np.resize(clusters, (classes, clusters.shape[1])), axis=1)
        others = others[len(clusters) :]
        lead = (points @ clusters.T + bias).max(1, keepdims=True) - points @ others.T
        clusters, bias = np.vstack([clusters, others]), np.concatenate([bias, lead.min(0) - 0.5 * lead.std(0)])
    weight = clusters / spread
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        classifier.bias.copy_(torch.from_numpy(bias - weight @ centre))


def _clusters(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres (count, channels), and the cluster of each point."""
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0.0)
    _, labels, centres = cv2.kmeans(points, count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    return centres, labels
