"""Compare what each precision and provider computes on this processor with the PyTorch model, on labelled images.

    python -m dinov3_seg_ros.export BUNDLE --images TRAIN/images                        # fp32, which bf16 runs too
    python -m dinov3_seg_ros.export BUNDLE --images TRAIN/images --precision int8_qdq   # calibrated on these images
    python benchmarks/precisions.py BUNDLE --images VAL/images --masks VAL/masks --json precisions.json

Each row has the share of equal labels, the cosine of the logits and the mIoU at the images' own size. Ways that have no
export, or that this machine does not have, say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.export import parity
from dinov3_seg_ros.export.samples import open_samples
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.onnx.providers import CPU, OPENVINO
from dinov3_seg_ros.runtimes.pytorch.runtime import PyTorchRuntime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.cpu import this_cpu
from dinov3_seg_ros.support.errors import SegmentationError, one_line
from dinov3_seg_ros.support.files import write_json

WAYS = [
    *((precision, CPU) for precision in ("fp32", "int8", "int8_qdq")),
    *((precision, OPENVINO) for precision in ("fp32", "bf16", "int8_qdq")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, required=True, help="folder of their masks")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one for each core")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    samples = open_samples(options.images, options.masks, [bundle])
    size = bundle.manifest.input.network_size
    model = PyTorchRuntime([bundle], ComputeOptions(device="cpu", precision="fp32", threads=options.threads))
    rows: list[dict[str, Any]] = []
    for precision, provider in WAYS:
        row = {"precision": precision, "provider": provider}
        how = {"precision": precision, "providers": [provider], "threads": options.threads}
        try:
            with contextlib.closing(Segmenter.from_bundle(options.bundle, "onnx", **how)) as segmenter:
                record = parity.compare([bundle], model, segmenter.runtime, size, samples)
                row |= {"runtime": segmenter.runtime.description, "images": record["images"]}
        except SegmentationError as error:
            row["not_run"] = one_line(error)
        else:
            row |= record["heads"][bundle.manifest.name]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        write_json(options.json, {"processor": this_cpu().model_dump(mode="json"), "rows": rows})


if __name__ == "__main__":
    main()
