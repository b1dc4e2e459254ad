"""The licences that exported graphs are subject to: those of the weights that they hold."""

from __future__ import annotations

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.manifest import FROM_SCRATCH
from dinov3_seg_ros.model.pretrained.hub import DINOV3_LICENCE, is_dinov3, is_known_by_form, repository_of

_DINOV3_TERMS = (
    f"subject to the DINOv3 License, {DINOV3_LICENCE}, whose text must go along when the graph is passed on. The head "
    "graph contains none of them."
)


def licences_of_graphs(bundle: Bundle) -> str:
    """Return the licences that the graphs of a bundle are subject to, one a line."""
    lines = list(bundle.manifest.licences)
    backbone = bundle.manifest.backbone
    is_embedded = backbone.storage == "embedded"
    repository = repository_of(backbone.source)
    # An embedded backbone may have come from a folder of two parts, which is not here.
    is_certain = repository is not None and (not is_embedded or is_known_by_form(repository))
    if is_dinov3(backbone.source):
        lines.append(
            "The backbone graph contains weights of DINOv3 by Meta, or weights derived from them. They are "
            f"{_DINOV3_TERMS}"
        )
    elif is_certain:
        lines.append(
            f"The backbone graph contains weights of {repository}, or weights derived from them. Their own licence "
            "applies. The head graph contains none of them."
        )
    elif (
        backbone.model_type.startswith("dinov3")
        and not backbone.source.startswith(FROM_SCRATCH)
        and not (is_embedded and bundle.manifest.licences)
    ):
        lines.append(
            "The backbone graph has the architecture of DINOv3, and the bundle does not tell whose weights it "
            f"contains. If they are Meta's, or derived from them, they are {_DINOV3_TERMS}"
        )
    if repository is not None and not is_certain:
        name = repository.partition("/")[2]
        lines.append(
            f"The weights of the backbone graph come from '{name}'. If that is a published backbone, its own licence "
            "applies to them. The head graph contains none of them."
        )
    return "\n".join(lines)
