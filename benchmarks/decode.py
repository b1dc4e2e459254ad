"""How much faster the decode is than torch: ``python benchmarks/decode.py [--rounds N]``.

Both sides run in turns in one process, and the least time of each counts. "labels" is compared with interpolate +
argmax, "confidence" with interpolate + softmax + max.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinov3_seg_ros import decode


class Case(NamedTuple):
    kind: str
    classes: int
    map_size: tuple[int, int]
    size: tuple[int, int]


HEADLINE = [
    Case(kind, 134, (40, 40), size) for kind in ("scene", "noise") for size in ((480, 640), (640, 640), (1080, 1920))
]
OTHER_SHAPES = [
    Case("noise", 1, (1, 1), (1, 1)),
    Case("noise", 1, (40, 40), (480, 640)),
    Case("noise", 2, (40, 40), (480, 640)),
    Case("noise", 19, (40, 40), (8, 8)),
    Case("noise", 134, (1, 1), (480, 640)),
    Case("noise", 300, (40, 40), (10, 10)),
    Case("noise", 134, (40, 40), (20, 20)),
    Case("noise", 134, (40, 40), (40, 40)),
    Case("noise", 134, (40, 40), (60, 60)),
    Case("noise", 19, (120, 160), (60, 80)),
    Case("noise", 19, (120, 160), (40, 53)),
    Case("noise", 134, (120, 160), (60, 80)),
    Case("noise", 134, (120, 160), (120, 160)),
    Case("noise", 134, (120, 160), (240, 320)),
    Case("scene", 134, (120, 160), (480, 640)),
    Case("noise", 134, (120, 160), (480, 640)),
    Case("noise", 300, (40, 40), (480, 640)),
    Case("noise", 300, (200, 300), (37, 41)),
]
# What a call costs before it has decoded anything.
TINY = [
    Case("noise", classes, map_size, size)
    for classes in (2, 21)
    for map_size, size in (((1, 1), (1, 1)), ((1, 1), (8, 8)), ((2, 2), (1, 1)), ((4, 4), (4, 4)), ((4, 4), (8, 8)))
]


def scene_logits(classes: int, map_size: tuple[int, int], visible: int = 12) -> torch.Tensor:
    """Logits as a trained head gives them, (1, C, h, w): some classes in smooth regions, the others far below."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, classes, *map_size, generator=generator) * 0.5 - 4
    fields = torch.randn(1, min(visible, classes), 6, 6, generator=generator)
    seen = torch.randperm(classes, generator=generator)[:visible]
    logits[:, seen] += 2 + 6 * functional.interpolate(fields, map_size, mode="bicubic", align_corners=False)
    return logits


def noise_logits(classes: int, map_size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(1, classes, *map_size, generator=torch.Generator().manual_seed(0))


def torch_labels(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


def torch_confidence(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1).max(1)


def least_times(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Least milliseconds of each side; quick sides are repeated within a round."""
    least = [float("inf")] * len(sides)
    for _ in range(rounds):
        for index, side in enumerate(sides):
            repeats = 1 if least[index] > 2 else 10 if least[index] > 0.05 else 500
            start = time.perf_counter()
            for _ in range(repeats):
                side()
            least[index] = min(least[index], 1e3 * (time.perf_counter() - start) / repeats)
    return least


def report(case: Case, rounds: int) -> None:
    logits = (scene_logits if case.kind == "scene" else noise_logits)(case.classes, case.map_size)
    sides = [
        lambda: torch_labels(logits, case.size),
        lambda: decode.upsample_argmax(logits, case.size),
        lambda: torch_confidence(logits, case.size),
        lambda: decode.upsample_argmax_confidence(logits, case.size),
    ]
    torch_ms, ours_ms, torch_confidence_ms, ours_confidence_ms = least_times(sides, rounds)
    print(
        f"{case.kind} {case.classes:4d}  {case.map_size!s:>10} -> {case.size!s:>12} "
        f"{torch_ms:10.3f} {ours_ms:8.3f} {torch_ms / ours_ms:7.1f} "
        f"{torch_confidence_ms:10.3f} {ours_confidence_ms:8.3f} {torch_confidence_ms / ours_confidence_ms:7.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    rounds = parser.parse_args().rounds
    backend = decode.backend(wait=True)
    print(f"{backend}, torch {torch.__version__} with {torch.get_num_threads()} threads; milliseconds")
    print(f"{'logits':43s} {'torch':>10} {'labels':>8} {'ratio':>7} {'torch':>10} {'conf.':>8} {'ratio':>7}")
    for case in HEADLINE + OTHER_SHAPES + TINY:
        report(case, rounds)


if __name__ == "__main__":
    main()
