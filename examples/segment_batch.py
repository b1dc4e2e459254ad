"""Segment images in batches: python examples/segment_batch.py [IMAGE ...] [--bundle BUNDLE] [--batch N]"""

import argparse

import cv2

from dinov3_seg_ros import Segmenter
from dinov3_seg_ros.scenes import sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("images", nargs="*", help="default: eight rendered rooms")
parser.add_argument("--bundle", default="demo", help="default: %(default)s")
parser.add_argument("--batch", type=int, default=4, help="images in one backbone pass (default: %(default)s)")
options = parser.parse_args()

images = [(path, cv2.imread(path)) for path in options.images]
for path in (path for path, bgr in images if bgr is None):
    parser.error(f"{path} cannot be read as an image")
frames = [bgr[..., ::-1] for _, bgr in images] or [sample("val", 4 * index, (480, 640))[0] for index in range(8)]
segmenter = Segmenter.from_bundle(options.bundle, max_batch=options.batch)
# On a GPU `start` does not wait, so the next frames can be prepared meanwhile; `segment` is both calls in one.
started = segmenter.start(frames)
for index, result in enumerate(started.finish()):
    confidence = result.confidence.mean() / 255
    print(f"image {index}: {len(set(result.labels.flat))} classes, mean confidence {confidence:.2f}")
