"""Run two heads on one backbone pass, in PyTorch: python examples/two_heads_one_backbone.py [BUNDLE]"""

import sys

import torch

from dinov3_seg_ros import build_head, load_bundle, upsample_argmax
from dinov3_seg_ros.scenes import sample

bundle = load_bundle(sys.argv[1] if len(sys.argv) > 1 else "demo")
manifest = bundle.manifest
backbone = bundle.load_backbone()
trained = bundle.load_head()
yours = build_head("linear", backbone.channels, backbone.strides, num_classes=2).eval()  # random weights, to train

rgb, _ = sample("val", 0, manifest.input.network_size)
mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (manifest.input.mean, manifest.input.std))
images = (torch.tensor(rgb).permute(2, 0, 1)[None] / 255 - mean) / std  # (1, 3, H, W)
with torch.inference_mode():
    maps = backbone(images)  # a list of (1, C, h, w): computed once
    for name, head in (("trained", trained), ("yours", yours)):
        logits = head(maps, images)  # an image-guided head reads both
        labels = upsample_argmax(logits, (480, 640))[0]  # (480, 640) uint8
        print(f"{name}: {len(labels.unique())} of {head.num_classes} classes")
