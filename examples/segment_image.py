"""Segment one image: python examples/segment_image.py [IMAGE] [--bundle BUNDLE] [--mask MASK.png]"""

import argparse

import cv2

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.scenes import sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", nargs="?", help="default: a rendered room")
parser.add_argument("--bundle", default="demo", help="default: %(default)s")
parser.add_argument("--mask", help="PNG file to write the class ids to")
options = parser.parse_args()

bgr = cv2.imread(options.image) if options.image else sample("val", 0, (480, 640))[0][..., ::-1]
if bgr is None:
    parser.error(f"{options.image} cannot be read as an image")
segmenter = Segmenter.from_bundle(options.bundle)
result = segmenter.segment([bgr[..., ::-1]])[0]  # labels and confidence, (H, W) uint8, decoded when they are read
(manifest,) = segmenter.manifests.values()
for index, name in enumerate(manifest.classes.names):
    print(f"{name:<12} {(result.labels == index).mean():6.1%}")
if options.mask and not cv2.imwrite(options.mask, result.labels):
    parser.error(f"{options.mask} cannot be written")
