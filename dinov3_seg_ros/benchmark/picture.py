"""The stages of several pipelines as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import replacing_file
from dinov3_seg_ros.support.timing import GPU_STAGES

Stages = Mapping[str, Mapping[str, float] | None]

_COLOURS = (
    "#9c755f",
    "#59a14f",
    "#edc948",
    "#4e79a7",
    "#f28e2b",
    "#ff9da7",
    "#e15759",
    "#b07aa1",
    "#bab0ac",
)
# Share of the longest bar; a narrower part has no room for its number.
_LEAST_LABELLED = 0.045


def check_can_draw(path: Path) -> str:
    """Check that a picture can be drawn, before minutes of measuring.

    Args:
        path: file to write.

    Returns:
        Its format, as matplotlib names it.

    Raises:
        OutputError: matplotlib is missing, or does not know the format.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise OutputError("a picture needs matplotlib: pip install matplotlib, or leave --picture out") from error
    known, name = FigureCanvasBase.get_supported_filetypes(), path.suffix.lstrip(".").lower() or "png"
    if name not in known:
        raise OutputError(
            f"the picture {path} cannot be written: matplotlib has no format '{name}', only {', '.join(sorted(known))}"
        )
    return name


def draw_stages(pipelines: Mapping[str, Stages], path: Path) -> None:
    """Draw one bar for each pipeline, the first at the top, from the medians of its stages.

    Args:
        pipelines: name -> stage -> ``{"median": ms}``; None for a stage that the pipeline lacks.
        path: file to write; its suffix chooses the format: PNG, SVG, PDF.

    Raises:
        OutputError: see `check_can_draw`, or the file cannot be written.
    """
    format_name = check_can_draw(path)
    from matplotlib.figure import Figure

    medians = {
        name: {stage: times["median"] for stage in GPU_STAGES if (times := stages.get(stage))}
        for name, stages in pipelines.items()
    }
    longest = max(sum(stages.values()) for stages in medians.values())
    figure = Figure(figsize=(10, 1.5 + 0.6 * len(medians)), layout="constrained")
    axes = figure.subplots()
    ends = [0.0] * len(medians)
    for stage, colour in zip(GPU_STAGES, _COLOURS, strict=True):
        widths = [stages.get(stage, 0.0) for stages in medians.values()]
        if not any(widths):
            continue
        bars = axes.barh(range(len(medians)), widths, left=ends, color=colour, label=stage, height=0.65)
        texts = [f"{width:.0f}" if width >= _LEAST_LABELLED * longest else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=11)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for row, end in enumerate(ends):
        axes.text(end + 0.01 * longest, row, f"{end:.0f} ms" if end >= 100 else f"{end:.1f} ms", va="center")
    axes.set_yticks(range(len(medians)), medians, fontsize=12)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1 * longest), xlabel="ms, medians")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(GPU_STAGES), frameon=False)
    try:
        with replacing_file(path) as temporary:
            figure.savefig(temporary, dpi=120, format=format_name)
    except OSError as error:
        raise OutputError(f"the picture {path} cannot be written: {error}") from error
