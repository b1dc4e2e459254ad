"""One error type per kind of mistake.

Every message says what was wrong, where, and what to do about it, so that it can be shown to a user as it is.
"""

import difflib
from collections.abc import Iterable


class SegmentationError(Exception):
    """Base of every error that this project raises on purpose."""


class BackboneError(SegmentationError):
    """A backbone's weights are missing, gated, unreadable, or not of an architecture we know."""


class HeadError(SegmentationError):
    """A head's name, options, weights or input channels do not fit."""


class BundleError(SegmentationError):
    """A bundle on disk is absent, damaged, of another schema, or does not match its own description."""


class ImageError(SegmentationError):
    """An image (or a message that carries one) has a wrong shape, type, encoding or size."""


class MessageError(ImageError):
    """A message that arrived on a topic cannot be used.

    Args:
        fault: the kind of fault in a few words, the same for all messages that have it.
        details: what is wrong with this message.

    Attributes:
        fault: as given; diagnostics count by it.
    """

    def __init__(self, fault: str, details: str) -> None:
        super().__init__(details)
        self.fault = fault


class RuntimeUnavailableError(SegmentationError):
    """The requested inference runtime is not installed, or the bundle holds no artefact for it."""


class ExportError(SegmentationError):
    """An exported graph is absent, damaged or stale, cannot be made, or does not compute what the model computes."""


class ParameterError(SegmentationError):
    """A parameter of the node or an option of the Segmenter has a value that cannot be used."""


class TransportError(SegmentationError):
    """ROS 2 communication is not available or not set up."""


class RecipeError(SegmentationError):
    """A training recipe has an unknown key or a value that cannot be used."""


class DatasetError(SegmentationError):
    """A data set on disk is absent, incomplete or inconsistent with its description."""


class OutputError(SegmentationError):
    """Results cannot be written: the folder holds something else, or the disk is full or read-only."""


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for a message, at the most similar of ``words``; empty where none is similar."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
