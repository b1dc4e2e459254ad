"""The gate of an export: compares what a graph computes with what the PyTorch model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dinov3_seg_ros.bundle.loading import Bundle, shared_layers
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.bundle.onnx_folder import map_name
from dinov3_seg_ros.decode import upsample_argmax
from dinov3_seg_ros.export.samples import Sample
from dinov3_seg_ros.frames.preprocessing import Placement, fill_canvas, place
from dinov3_seg_ros.runtimes.agreement import THRESHOLDS, Difference
from dinov3_seg_ros.runtimes.protocol import Runtime
from dinov3_seg_ros.support.errors import ExportError
from dinov3_seg_ros.support.metrics import ConfusionMatrix

_SIGNIFICANT_SHARE = 0.01
# What is compared, in words for messages; each takes a name.
_STAGES = {"features": "feature map {}", "heads": "logits of {}", "fused": "logits of the fused graph of {}"}

#: From network inputs (N, H, W, 3) uint8 to logits (N, C, h, w) float32.
Logits = Callable[[np.ndarray], np.ndarray]


class _Head:
    """The logits and labels of one head, by the model (reference) and by the graph (found)."""

    def __init__(self, classes: int) -> None:
        self.logits = Difference()
        self.equal, self.seen = 0, np.zeros(classes, np.int64)
        self.pixels, self.worst = 0, 1.0
        self.truth = {which: ConfusionMatrix(classes) for which in ("reference", "found")}

    def update(self, reference: np.ndarray, found: np.ndarray, placement: Placement, truth: np.ndarray | None) -> None:
        """Compare the logits (1, C, h, w) of one network input; ``truth`` is the frame's mask (H, W), if any."""
        self.logits.update(reference, found)
        window = placement.window(reference.shape[-2:])
        shown = placement.frame_size if truth is not None else (placement.height, placement.width)
        expected, actual = (upsample_argmax(np.nan_to_num(array), shown, window)[0] for array in (reference, found))
        equal = int((expected == actual).sum())
        self.equal += equal
        self.pixels += expected.size
        self.worst = min(self.worst, equal / expected.size)
        self.seen += np.bincount(expected.ravel(), minlength=len(self.seen))
        if truth is not None:
            self.truth["reference"].update(truth, expected)
            self.truth["found"].update(truth, actual)

    def record(self) -> dict[str, Any]:
        """Return the figures for the report."""
        share = self.seen / max(self.pixels, 1)
        record: dict[str, Any] = {
            **self.logits.record(),
            "labels_equal": round(self.equal / max(self.pixels, 1), 6),
            "labels_equal_worst_image": round(self.worst, 6),
            "classes_of_1_percent": int((share >= _SIGNIFICANT_SHARE).sum()),
        }
        if self.truth["reference"].counts.any():
            scores = {which: round(float(np.nanmean(matrix.iou())), 5) for which, matrix in self.truth.items()}
            record["miou_reference"], record["miou"] = scores["reference"], scores["found"]
        return record


def lay_out(image: np.ndarray, manifest: Manifest, size: tuple[int, int]) -> tuple[np.ndarray, Placement]:
    """Lay an image (H, W, 3) uint8 RGB on the network input, as the robot does for a graph of fixed size.

    Returns:
        The network input (1, height, width, 3) uint8 of ``size`` (height, width), and where the image lies on it.
    """
    geometry = "stretch" if manifest.input.geometry == "stretch" else "letterbox"
    placement = place(image.shape[:2], geometry, size, manifest.backbone.multiple)
    canvas = np.empty((1, *size, 3), np.uint8)
    fill_canvas(image, placement, manifest.input.mean, canvas[0])
    return canvas, placement


def compare(
    bundles: Sequence[Bundle],
    reference: Runtime,
    found: Runtime,
    size: tuple[int, int],
    samples: Iterable[Sample],
    fused: Mapping[str, Logits] | None = None,
) -> dict[str, Any]:
    """Run the model and the graphs on every sample.

    Args:
        bundles: whose heads are compared.
        reference: the PyTorch model in float32.
        found: what runs the graphs.
        size: (height, width) of the network input, pixels.
        samples: images (H, W, 3) uint8 RGB of any size; their masks (H, W) of class ids by bundle name, if any.
        fused: what runs the graph of backbone and head in one, by bundle name.

    Returns:
        ``images``, their number; ``features`` by map name and ``heads`` by bundle name, each with ``cosine`` and
        ``max_abs``; heads also with ``labels_equal`` (share of all pixels, 0..1), ``labels_equal_worst_image`` and,
        with masks, ``miou`` and ``miou_reference``; ``fused`` like ``heads``, where there are any.
    """
    first = bundles[0].manifest
    features = {map_name(layer): Difference() for layer in shared_layers(bundles)}
    classes = {bundle.manifest.name: len(bundle.manifest.classes.names) for bundle in bundles}
    heads = {name: _Head(number) for name, number in classes.items()}
    fused = fused or {}
    fused_heads = {name: _Head(classes[name]) for name in fused}
    count = 0
    for image, truths in samples:
        count += 1
        canvas, placement = lay_out(image, first, size)
        expected, actual = (runtime.start(canvas, list(heads)) for runtime in (reference, found))
        maps = expected.maps(), actual.maps()
        for name, difference in features.items():
            difference.update(*(some[name] for some in maps))
        for name, head in heads.items():
            logits = expected.logits()[name]
            head.update(logits, actual.logits()[name], placement, truths.get(name))
            if name in fused:
                fused_heads[name].update(logits, fused[name](canvas), placement, truths.get(name))
    record = {
        "images": count,
        "features": {name: difference.record() for name, difference in features.items()},
        "heads": {name: head.record() for name, head in heads.items()},
    }
    if fused:
        record["fused"] = {name: head.record() for name, head in fused_heads.items()}
    return record


def check(
    record: Mapping[str, Any],
    precision: str,
    least_labels: float | None = None,
    subject: str = "the exported graphs",
    outcome: str = "Nothing was written",
) -> None:
    """Require that what `compare` returned reaches the precision's thresholds.

    Args:
        record: from `compare`.
        precision: a key of `THRESHOLDS`.
        least_labels: share of equal labels to require in place of the threshold's, 0..1.
        subject: what was compared, for the message.
        outcome: what the caller does on an error, for the message.

    Raises:
        ExportError: it does not; names the stage.
    """
    threshold = THRESHOLDS[precision]
    least = threshold.labels if least_labels is None else least_labels
    for part, stage in _STAGES.items():
        for name, difference in record.get(part, {}).items():
            if not difference["cosine"] >= threshold.cosine:
                raise ExportError(
                    f"{subject} do not compute what the model computes: {stage.format(name)} has cosine "
                    f"{difference['cosine']} with PyTorch's (largest difference {difference['max_abs']}); "
                    f"{precision} must reach {threshold.cosine}. {outcome}; try another precision, and if it is "
                    "fp32, report it"
                )
            if difference.get("labels_equal", 1.0) < least:
                raise ExportError(
                    f"{subject} label too many pixels otherwise than the model: by {stage.format(name)} only "
                    f"{difference['labels_equal']:.4%} are equal; {precision} must reach {least:.4%}. {outcome}; "
                    "try another precision, or accept it with --least-labels"
                )


def report(record: Mapping[str, Any], title: str) -> str:
    """Format the comparison as a Markdown table."""
    lines = [f"# {title}", ""]
    if "unverified" in record:
        return "\n".join([*lines, f"Not verified: {record['unverified']}", ""])
    lines += [f"Compared with the PyTorch model in float32 on {record['images']} images, {record['machine']}.", ""]
    lines.append("| | cosine | largest difference | equal labels (worst image) | mIoU (PyTorch's) |")
    lines.append("|---|---|---|---|---|")
    fused = {f"{name}, fused": values for name, values in record.get("fused", {}).items()}
    for name, values in {**record["features"], **record["heads"], **fused}.items():
        equal = ""
        if "labels_equal" in values:
            equal = f"{values['labels_equal']:.4%} ({values['labels_equal_worst_image']:.4%})"
        miou = f"{values['miou']:.4f} ({values['miou_reference']:.4f})" if "miou" in values else ""
        lines.append(f"| {name} | {values['cosine']:.7f} | {values['max_abs']:.3g} | {equal} | {miou} |")
    if record.get("float_nodes"):
        lines += ["", "Kept in float, as measured to be the most sensitive: " + ", ".join(record["float_nodes"])]
    return "\n".join([*lines, ""])
