"""Model cards: what a bundle says of itself, as Markdown and for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.filesize import decimal
from safetensors import safe_open

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.manifest import BACKBONE_FOLDER
from dinov3_seg_ros.bundle.onnx_folder import Export, find_exports
from dinov3_seg_ros.model.pretrained.files import WEIGHTS_FILE
from training.support.text import markdown_table, percent

# Scores are fractions, other metrics are counts, losses and seconds.
_SCORES = ("miou", "macc", "aacc", "boundary_miou")


def describe(bundle: Bundle) -> dict[str, Any]:
    """The content of the card, for JSON; sizes in bytes.

    Raises:
        BundleError: the head's weights do not fit the bundle's description.
    """
    manifest = bundle.manifest
    usable, unusable = find_exports(bundle)
    embedded = bundle.path / BACKBONE_FOLDER / WEIGHTS_FILE
    return {
        **manifest.model_dump(mode="json", include={"name", "description", "input", "licences", "training"}),
        "path": str(bundle.path),
        "classes": {**manifest.classes.model_dump(mode="json"), "unlabelled": manifest.classes.unlabelled},
        "backbone": {
            **manifest.backbone.model_dump(mode="json"),
            "parameters": _count_numbers(embedded) if manifest.backbone.storage == "embedded" else None,
        },
        "head": {
            **manifest.head.model_dump(mode="json"),
            "parameters": sum(parameter.numel() for parameter in bundle.load_head().parameters()),
        },
        "exports": [_describe_export(export) for export in usable],
        "unusable_exports": unusable,
        "files": {
            path.relative_to(bundle.path).as_posix(): path.stat().st_size
            for path in sorted(bundle.path.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        },
    }


def card(description: dict[str, Any], introduction: Sequence[str] = ()) -> str:
    """The model card in Markdown.

    Args:
        description: the result of `describe`.
        introduction: lines to put below the bundle's own description.
    """
    return "\n".join(_lines(description, introduction)) + "\n"


def _lines(described: dict[str, Any], introduction: Sequence[str]) -> Iterator[str]:
    backbone, head, seen = described["backbone"], described["head"], described["input"]
    yield from (f"# {described['name']}", "", described["description"] or "No description.", *introduction)
    yield from ("", "## Model", "")
    yield from markdown_table(
        ("", ""),
        [
            ("backbone", f"{backbone['model_type']}, {backbone['source']}"),
            ("stored as", _storage(backbone)),
            ("identity", backbone["identity"]),
            ("layers", _layers(backbone)),
            ("head", _head(head)),
            ("network size", f"{seen['network_size'][0]} x {seen['network_size'][1]} (height x width)"),
            ("geometry", seen["geometry"]),
            ("mean, standard deviation", f"{seen['mean']}, {seen['std']}"),
            ("unlabelled", described["classes"]["unlabelled"]),
        ],
    )
    metrics = described["training"]["metrics"]
    yield from ("", "## Classes", "")
    scores = metrics.get("per_class_iou", {})
    names, palette = described["classes"]["names"], described["classes"]["palette"]
    yield from markdown_table(
        ("id", "class", "colour", *(["IoU"] if scores else [])),
        [
            (index, name, "#{:02x}{:02x}{:02x}".format(*colour), *([percent(scores.get(name))] if scores else []))
            for index, (name, colour) in enumerate(zip(names, palette, strict=True))
        ],
    )
    yield from ("", "## Training", "")
    figures = [(name, _figure(name, value)) for name, value in metrics.items() if not isinstance(value, dict | list)]
    yield from markdown_table(("metric", ""), figures) if figures else ["No metrics were recorded."]
    revision = described["training"]["git_revision"]
    yield from ("", f"Revision of the code: {revision or 'unknown'}.", "")
    recipe = described["training"]["recipe"]
    if recipe:
        yield from ("```yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip(), "```")
    else:
        yield "No recipe was recorded."
    yield from ("", "## Licences", "")
    yield from [f"- {note}" for note in described["licences"]] or ["None was noted."]
    yield from ("", "## Exports", "")
    yield from _exports(described)
    yield from ("", "## Files", "")
    yield from markdown_table(("file", "size"), [(name, decimal(size)) for name, size in described["files"].items()])


def _exports(described: dict[str, Any]) -> Iterator[str]:
    exports = described["exports"]
    if exports:
        yield from markdown_table(
            ("folder", "verified", "logits' cosine", "equal labels", "size"),
            [
                (
                    export["folder"],
                    "yes" if export["verified"] else "no",
                    export["cosine"],
                    percent(export["labels_equal"]),
                    decimal(export["size"]),
                )
                for export in exports
            ],
        )
    else:
        yield "None; python -m dinov3_seg_ros.export creates them."
    for reason in described["unusable_exports"]:
        yield from ("", f"Not usable: {reason}.")


def _describe_export(export: Export) -> dict[str, Any]:
    head = export.manifest.parity.get("heads", {}).get(export.bundle_name, {})
    return {
        "folder": f"{export.folder.parent.name}/{export.folder.name}",
        "precision": export.manifest.precision,
        "network_size": list(export.manifest.network_size),
        "verified": export.manifest.verified,
        "cosine": head.get("cosine"),
        "labels_equal": head.get("labels_equal"),
        "size": sum(path.stat().st_size for path in export.folder.iterdir() if path.is_file()),
    }


def _storage(backbone: dict[str, Any]) -> str:
    if backbone["parameters"] is not None:
        return f"{backbone['storage']}, {_count(backbone['parameters'])} parameters"
    if backbone["base_identity"] is not None:
        return f"{backbone['storage']} to {backbone['base_identity']}"
    return str(backbone["storage"])


def _layers(backbone: dict[str, Any]) -> str:
    maps = zip(backbone["layers"], backbone["channels"], backbone["strides"], strict=True)
    described = "; ".join(f"{layer} ({channels} channels, stride {stride})" for layer, channels, stride in maps)
    return f"{described}; feature norm: {backbone['feature_norm']}{', class token' if backbone['class_token'] else ''}"


def _head(head: dict[str, Any]) -> str:
    name = head["name"] if head["variant"] is None else f"{head['name']} ({head['variant']})"
    options = ", ".join(f"{key} {value}" for key, value in head["options"].items())
    return f"{name}{', ' if options else ''}{options}, {_count(head['parameters'])} parameters"


def _figure(name: str, value: Any) -> str:
    if name in _SCORES:
        return percent(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count(number: int) -> str:
    return f"{number:,}"


def _count_numbers(weights: Path) -> int:
    """The number of values in a safetensors file; its tensors are not read."""
    with safe_open(weights, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
