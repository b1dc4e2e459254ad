"""One error type for each kind of mistake.

Every message says what was wrong, where, and what to do about it, so it can be shown to a user as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

ItemFault: TypeAlias = Literal["unreadable file", "sizes differ", "value of no class", "other"]


class SegmentationError(Exception):
    """Base of every error that this project raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would call the kind with the message alone, which some do not take: a pool of processes would hang.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BackboneError(SegmentationError):
    """A backbone's weights are missing, gated, unreadable, or have an unknown architecture."""


class HeadError(SegmentationError):
    """A head's name, options, weights or input channels do not fit."""


class BundleError(SegmentationError):
    """A bundle on disk is missing or damaged, has another schema version, or does not match its own description."""


class ImageError(SegmentationError):
    """An image (or a message that carries one) has a wrong shape, type, encoding or size."""


class MessageError(ImageError):
    """A message that arrived on a topic cannot be used.

    Args:
        fault: the kind of fault in a few words, the same for all messages with this fault.
        details: what is wrong with this message.

    Attributes:
        fault: as given; diagnostics count the faults of each kind.
    """

    def __init__(self, fault: str, details: str) -> None:
        super().__init__(details)
        self.fault = fault


class RuntimeUnavailableError(SegmentationError):
    """The requested inference runtime is not installed, or the bundle holds no export for it."""


class RuntimeFailedError(SegmentationError):
    """An inference runtime failed while it computed, such as for want of memory; whichever library it is."""


class ExportError(SegmentationError):
    """An exported graph is missing, damaged or stale, cannot be made, or does not compute what the model computes."""


class DisagreementError(ExportError):
    """A runtime computes something else than the PyTorch model.

    Args:
        details: what differs, and by how much.
        stage: the first that differs: ``maps``, ``logits``, ``labels`` or ``confidence``.
        head: the name of the head that was compared.
        size: (height, width) of the network input, pixels.

    Attributes:
        stage, head, size: as given.
    """

    def __init__(self, details: str, stage: str, head: str, size: tuple[int, int]) -> None:
        super().__init__(details)
        self.stage, self.head, self.size = stage, head, size


class ParameterError(SegmentationError):
    """A parameter of the node or an option of the Segmenter has a value that cannot be used."""


class TransportError(SegmentationError):
    """ROS 2 communication is unavailable or not set up."""


class RecipeError(SegmentationError):
    """A training recipe has an unknown key or a value that cannot be used."""


class DatasetError(SegmentationError):
    """A data set on disk is missing, incomplete or inconsistent with its description."""


class ItemError(DatasetError):
    """One image of a data set, or its mask, cannot be used.

    Args:
        message: see `SegmentationError`.
        fault: kind of the fault.

    Attributes:
        fault: as given; checks of data sets count the faults of each kind.
    """

    def __init__(self, message: str, fault: ItemFault = "other") -> None:
        super().__init__(message)
        self.fault = fault


class SharingError(SegmentationError):
    """A bundle may not be shared as it is, or the Hugging Face Hub does not take it."""


class ClusterError(SegmentationError):
    """A cluster cannot be reached or has too little, or its processes fail."""


class OutputError(SegmentationError):
    """Results cannot be written: the folder holds something else, or the disk is full or read-only."""


def one_line(error: Exception) -> str:
    """The message of an error, without line breaks."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def first_of(names: Iterable[object], most: int = 3) -> str:
    """List names for a message: at most so many, and how many more there are."""
    named = [str(name) for name in names]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


def nearest(word: str, words: Iterable[str], least: float = 0.6) -> str:
    """Return a hint for an error message, " (did you mean '...'?)" with the most similar of ``words``, or "".

    Args:
        least: similarity from 0 to 1 below which there is no hint.
    """
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=least)
    return f" (did you mean '{close[0]}'?)" if close else ""


def utf8_fault(names: Iterable[str]) -> str:
    """What is wrong with the first name that is not in UTF-8, so that no result could hold it; empty where all are."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="backslashreplace").decode()
            return f"{shown} is not in UTF-8, which other programs could not read; rename it, such as with convmv"
    return ""
