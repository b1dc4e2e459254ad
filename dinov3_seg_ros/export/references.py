"""The network inputs that an export keeps, and what the PyTorch model gives for them; see `runtimes.gate`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dinov3_seg_ros.runtimes import gate
from dinov3_seg_ros.runtimes.agreement import cosine
from dinov3_seg_ros.runtimes.protocol import Runtime

# By the name of a map, or of a head.
_Arrays: TypeAlias = Mapping[str, np.ndarray]

# The largest cosine of maps or logits that is different enough: int8 must reach 0.98 (`agreement.THRESHOLDS`).
_DIFFERENT = 0.95


class ReferenceMaker:
    """Makes the references of the heads of one export.

    Args:
        model: the PyTorch model in float32.
        heads: names of the heads.
        precision: of the graphs.
        found: what runs the graphs; None where they cannot be run.
    """

    def __init__(self, model: Runtime, heads: Sequence[str], precision: str, found: Runtime | None) -> None:
        self._model, self._heads, self._precision, self._found = model, heads, precision, found

    def make(self, laid_out: Iterator[np.ndarray]) -> dict[str, gate.Reference]:
        """Return the reference of each head, by its name.

        Args:
            laid_out: network inputs (1, H, W, 3) to choose from, at least one.
        """
        return self._references(self._choose(laid_out))

    def _references(self, canvases: np.ndarray) -> dict[str, gate.Reference]:
        maps, logits = self._run_model(canvases)
        references = {name: gate.Reference.of(canvases, maps, array) for name, array in logits.items()}
        if self._found is None:
            return references
        for name, reference in references.items():
            labels = [stage.figure for stage in gate.measure(self._found, name, reference) if stage.kind == "labels"]
            references[name] = dataclasses.replace(reference, reached=labels[0])
        return references

    def _passes(self, canvases: np.ndarray) -> bool:
        """Whether the graphs pass the gate with these network inputs; True where they cannot be run."""
        return self._found is None or not any(
            gate.shortfall(stage, self._precision, reference)
            for name, reference in self._references(canvases).items()
            for stage in gate.measure(self._found, name, reference)
        )

    def _choose(self, laid_out: Iterator[np.ndarray]) -> np.ndarray:
        """Return two network inputs (2, H, W, 3) that the model tells apart.

        With two alike, a runtime would pass that mixes up the frames of a batch. Where all images are like the first,
        the second is the first turned, or artificial, if the graphs pass the gate with it: integer graphs are
        calibrated on the images alone.
        """
        first = second = next(laid_out)
        expected, least = self._run_model(first), math.inf
        size = first.shape[1], first.shape[2]
        made = (first[:, ::-1], first[:, :, ::-1], gate.artificial_canvases(size)[:1])
        for is_made, other in itertools.chain(zip(itertools.repeat(False), laid_out), ((True, one) for one in made)):
            likeness = _likeness(expected, self._run_model(other))
            if likeness >= least or (is_made and not self._passes(np.concatenate([first, other]))):
                continue
            second, least = other, likeness
            if likeness < _DIFFERENT:
                break
        return np.concatenate([first, second])

    def _run_model(self, canvases: np.ndarray) -> tuple[_Arrays, _Arrays]:
        """Return the model's maps, and the logits of all heads."""
        computed = self._model.start(canvases, self._heads)
        return computed.maps(), computed.logits()


def _likeness(one: tuple[_Arrays, _Arrays], other: tuple[_Arrays, _Arrays]) -> float:
    """Return the least cosine of two inputs' maps and logits; of several heads, that of the most alike."""
    of_maps, of_logits = (
        [cosine(expected[name], found[name]) for name in expected] for expected, found in zip(one, other, strict=True)
    )
    return min(*of_maps, max(of_logits))
