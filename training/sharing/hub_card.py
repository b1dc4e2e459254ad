"""The README.md of a shared bundle: Hugging Face's metadata, how to use the bundle, and its model card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from dinov3_seg_ros.bundle.hub import HubId
from dinov3_seg_ros.model.pretrained.hub import DINOV3_LICENCE
from training.reports.model_card import card, describe
from training.sharing.shareable import PICTURES_FOLDER, Shareable

#: The file of the licence notes in a repository.
LICENCES_FILE = "LICENCES.txt"

# How notes name licences that Hugging Face has an id for.
_LICENCES = {
    "apache-2.0": r"apache[- ](licen[cs]e,? )?(version )?2(\.0)?",
    "mit": r"mit",
    "bsd-3-clause": r"bsd[- ]3[- ]clause",
    "cc0-1.0": r"cc[- ]?0([- ]1\.0)?",
    "cc-by-4.0": r"cc[- ]by[- ]4\.0",
    "cc-by-sa-4.0": r"cc[- ]by[- ]sa[- ]4\.0",
    "cc-by-nc-4.0": r"cc[- ]by[- ]nc[- ]4\.0",
    "cc-by-nc-sa-4.0": r"cc[- ]by[- ]nc[- ]sa[- ]4\.0",
    "gpl-3.0": r"gpl[- ](v?3|3\.0)",
    "agpl-3.0": r"agpl[- ](v?3|3\.0)",
}
_CAPTIONS = {
    "predictions.png": "Images of the validation split: image, truth, prediction",
    "curves.png": "Training loss and mIoU",
}
# Hugging Face's ids of the scores, and their names.
_SCORES = {"miou": ("mean_iou", "mIoU"), "macc": ("mean_accuracy", "mAcc"), "aacc": ("accuracy", "aAcc")}


def hub_card(shared: Shareable, hub_id: HubId) -> str:
    """The README.md of a repository.

    Raises:
        BundleError: the head's weights do not fit the bundle's description.
    """
    described = describe(shared.bundle)
    described["files"] = {name: path.stat().st_size for name, path in sorted(shared.files.items())}
    shown = {name.rpartition("/")[0] for name in shared.files}
    described["exports"] = [export for export in described["exports"] if export["folder"] in shown]
    described["unusable_exports"] = []
    licence = licence_of(shared)
    metadata = ModelCardData(
        library_name="dinov3_seg_ros",
        pipeline_tag="image-segmentation",
        base_model=shared.backbone,
        tags=[
            "semantic-segmentation",
            "dinov3_seg_ros",
            "ros2",
            "robotics",
            *(["onnx"] if described["exports"] else []),
        ],
        model_name=described["name"],
        eval_results=_results(described),
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    text = card(described, [*_how_to_use(shared, hub_id), *_pictures(shared)])
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"


def licence_of(shared: Shareable) -> dict[str, str]:
    """The licence in Hugging Face's metadata: an id, or the name and the address of another one."""
    if shared.is_of_meta:
        return {"license": "other", "license_name": "dinov3-license", "license_link": DINOV3_LICENCE}
    notes = " ".join(licence_notes(shared)).lower()
    found = [name for name, words in _LICENCES.items() if re.search(rf"(?<![\w-]){words}(?![\w-])", notes)]
    if len(found) == 1 and not shared.gated:
        return {"license": found[0]}
    if not notes:
        return {}
    return {"license": "other", "license_name": "several", "license_link": LICENCES_FILE}


def licence_notes(shared: Shareable) -> list[str]:
    """What the bundle is subject to, one line each."""
    notes = list(shared.bundle.manifest.licences)
    if shared.is_of_meta:
        notes.append(
            f"The head was trained on features of {shared.backbone}, which is subject to the DINOv3 License "
            f"({DINOV3_LICENCE})."
        )
    elif shared.gated:
        notes.append(
            f"The backbone, {shared.backbone}, has terms of its own: https://huggingface.co/{shared.backbone}."
        )
    return notes


def _results(described: dict[str, Any]) -> list[EvalResult] | None:
    metrics, data = described["training"]["metrics"], described["training"]["recipe"].get("data", {})
    kind = str(data.get("name", "unknown"))
    # The name of a folder says more than the word for finding its format.
    name = PurePath(str(data.get("root") or kind)).name
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=kind,
            dataset_name=name,
            dataset_split="val",
            metric_type=metric,
            metric_name=title,
            metric_value=round(metrics[score], 4),
        )
        for score, (metric, title) in _SCORES.items()
        if metrics.get(score) is not None
    ] or None


def _how_to_use(shared: Shareable, hub_id: HubId) -> Iterator[str]:
    backbone, manifest = shared.backbone, shared.bundle.manifest
    is_own = manifest.backbone.storage == "embedded"
    yield from ("", "## Use it on a robot", "")
    yield "With [ROS 2](https://docs.ros.org) and dinov3_seg_ros:"
    yield from (
        "",
        "```bash",
        f"ros2 launch dinov3_seg_ros seg.launch.py bundle:={hub_id} image_topic:=/camera/image_raw",
    )
    yield from ("```", "", "Or in Python:", "", "```python", "from dinov3_seg_ros import Segmenter", "")
    yield f'segmenter = Segmenter.from_bundle("{hub_id}")'
    yield from ("labels = segmenter.segment([rgb])[0].labels  # rgb: (H, W, 3) uint8", "```")
    if not is_own and (shared.gated or shared.is_of_meta):
        access = ", which is gated: accept its terms on its page and run `hf auth login` once on each machine"
        yield from (
            "",
            f"This repository holds the head alone. The backbone is [{backbone}](https://huggingface.co/{backbone}) "
            f"(identity `{manifest.backbone.base_identity or manifest.backbone.identity}`)"
            f"{access if shared.gated else ''}. It is computed by PyTorch, or after "
            f"`python -m dinov3_seg_ros.export {hub_id}` by ONNX Runtime or TensorRT.",
        )


def _pictures(shared: Shareable) -> Iterator[str]:
    for name in sorted(shared.files):
        if name.startswith(f"{PICTURES_FOLDER}/"):
            yield from ("", f"![{_CAPTIONS.get(PurePath(name).name, name)}]({name})")
