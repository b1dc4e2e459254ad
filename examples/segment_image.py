"""Segment one image: python examples/segment_image.py [IMAGE] [--bundle BUNDLE] [--mask MASK.png]"""

import argparse
from pathlib import Path

import cv2

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.frames.image_files import read_image
from dinov3_seg_ros.scenes import sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", nargs="?", type=Path, help="default: a rendered room")
parser.add_argument("--bundle", default="weights/demo", help="default: %(default)s")
parser.add_argument("--mask", type=Path, help="PNG file to write the class ids to")
options = parser.parse_args()

rgb = read_image(options.image) if options.image else sample("val", 0, (480, 640))[0]
segmenter = Segmenter.from_bundle(options.bundle)
result = segmenter.segment([rgb])[0]  # labels (H, W) uint8 and confidence (H, W) uint8, decoded when they are read
(manifest,) = segmenter.manifests.values()
for index, name in enumerate(manifest.classes.names):
    print(f"{name:<12} {(result.labels == index).mean():6.1%}")
if options.mask:
    options.mask.write_bytes(cv2.imencode(".png", result.labels)[1].tobytes())  # imwrite hides failures
