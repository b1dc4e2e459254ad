"""What few labels are worth: mIoU of runs against the number of labels, and the share that a strategy saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dinov3_seg_ros.support.files import replacing_file
from training.evaluation.bootstrap import Ratios, draw_images

DRAWS = 1000
#: The strategy that the others are compared with.
RANDOM = "random"


class Round(NamedTuple):
    """One round of one run: the images with labels, and counts of each validation image and class."""

    labelled: list[int]
    correct: np.ndarray
    union: np.ndarray


def miou(correct: np.ndarray, union: np.ndarray) -> float:
    """Of all validation images."""
    return _ratios(correct, union).mean() or 0.0


def drawn(correct: np.ndarray, union: np.ndarray) -> np.ndarray:
    """MIoU of random draws of the validation images, (DRAWS,)."""
    return _ratios(correct, union).draws(draw_images(len(correct), DRAWS))[:, -1]


def _ratios(correct: np.ndarray, union: np.ndarray) -> Ratios:
    ratios = Ratios(correct.shape[1])
    for row in zip(correct, union, strict=True):
        ratios.add(*row)
    return ratios


def labels_needed(curve: np.ndarray, counts: Sequence[int], target: float) -> float:
    """The number of labels at which a curve reaches a mIoU, interpolated; bounded by the first and the last."""
    rising = np.maximum.accumulate(curve)
    if target <= rising[0]:
        return float(counts[0])
    if target > rising[-1]:
        return float(counts[-1])
    after = int(np.searchsorted(rising, target))
    low, high = rising[after - 1], rising[after]
    part = (target - low) / (high - low)
    return math.exp((1 - part) * math.log(counts[after - 1]) + part * math.log(counts[after]))


def summarise(runs: dict[str, list[list[Round]]], counts: Sequence[int]) -> dict[str, Any]:
    """MIoU of each strategy and round, and the share of labels that it saves, with intervals."""
    exact = {
        name: np.array([[miou(r.correct, r.union) for r in rounds] for rounds in own]) for name, own in runs.items()
    }
    boot = {
        name: np.array([[drawn(r.correct, r.union) for r in rounds] for rounds in own]) for name, own in runs.items()
    }
    random = np.random.default_rng(0)
    means = {}  # (DRAWS, rounds): a draw of runs and of validation images
    for name, values in boot.items():
        picked = random.integers(len(values), size=(DRAWS, len(values)))
        means[name] = values[picked, :, np.arange(DRAWS)[:, None]].mean(1)
    found: dict[str, Any] = {}
    for name, values in exact.items():
        curve = values.mean(0)
        found[name] = {
            "miou": curve.tolist(),
            "spread": values.std(0, ddof=1).tolist() if len(values) > 1 else None,
            "interval": np.percentile(means[name], [2.5, 97.5], axis=0).T.tolist(),
        }
        if RANDOM not in exact or name == RANDOM:
            continue
        saved = {}
        for number, count in enumerate(counts[1:], 1):
            needed = labels_needed(curve, counts, float(exact[RANDOM].mean(0)[number]))
            draws = [
                1 - labels_needed(mine, counts, theirs[number]) / count
                for mine, theirs in zip(means[name], means[RANDOM], strict=True)
            ]
            ends = np.percentile(draws, [2.5, 97.5]).tolist()
            saved[str(count)] = {"needed": needed, "saved": 1 - needed / count, "interval": ends}
        found[name]["against_random"] = saved
    return found


def table(found: dict[str, Any], counts: Sequence[int]) -> str:
    """The summary in Markdown."""
    columns = [f"mIoU, {count}" for count in counts]
    columns += [f"labels for random's mIoU of {count}, saved" for count in counts[1:]]
    lines = [f"| strategy | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, own in found.items():
        cells = [f"{value:.4f}" for value in own["miou"]]
        for saved in own.get("against_random", {}).values():
            low, high = saved["interval"]
            cells.append(f"{saved['needed']:.1f}, {saved['saved']:.0%} ({low:.0%} to {high:.0%})")
        cells += [""] * (len(columns) - len(cells))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], counts: Sequence[int], path: Path) -> None:
    """The curves as a PNG file."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, own in found.items():
        (line,) = axes.plot(counts, own["miou"], marker="o", label=name, linestyle="--" if name == RANDOM else "-")
        low, high = np.array(own["interval"]).T
        axes.fill_between(counts, low, high, alpha=0.1, color=line.get_color())
    axes.set(xlabel="labelled images", ylabel="validation mIoU", xscale="log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing_file(path) as temporary:
        figure.savefig(temporary)
