"""What is computed and written of each frame."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dinov3_seg_ros.options import TemporalSmoothing, ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.evaluation.inference import Inference
from training.support.section import Section


class PredictionSettings(Section):
    """The settings that the command line can change."""

    inference: Inference = Inference()
    """Which views of each image are averaged."""
    masks: bool = True
    """Whether to write the class id of each pixel, as PNG: 8 bits up to 255 classes, else 16."""
    confidence: bool = False
    """Whether to write round(255 * the largest softmax probability) of each pixel, as PNG."""
    overlays: bool = True
    """Whether to write the classes' colours over the image: as JPEG, or as a video."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the colours in overlays."""
    names: bool = True
    """Whether overlays carry the names of the classes."""
    rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Frames per second of the video that is written; auto: of the video that is read, of a webcam 10."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """The most that is segmented; null: all."""
    temporal_smoothing: TemporalSmoothing = 0.0
    """Of a video or webcam: the weight of previous frames, as the node's parameter of this name."""
    flicker: bool = False
    """Whether to measure how much the labels of a video or webcam flicker; takes longer than segmenting."""
    value_range: ValueRange = "auto"
    """Which values of 16-bit images are black and white: auto (the bundle's; else 0 and the largest of the sensor's,
    learned as they come), full (0 and 65535) or two numbers."""

    def check_rate(self, rate: float | None) -> None:
        """Refuse what only a stream can have.

        Args:
            rate: frames per second of the input; None where it is no stream.

        Raises:
            DatasetError: `temporal_smoothing` or `flicker` is set, and the input is no stream.
        """
        if rate is None and (self.temporal_smoothing or self.flicker):
            raise DatasetError(
                "temporal_smoothing and flicker are for a video or a webcam, whose frames follow one another in time; "
                "leave them out. `python -m dinov3_seg_ros.bag` steadies the masks of a recording"
            )

    def video_rate(self, rate: float) -> float:
        """Frames per second of the video that is written of a stream with ``rate`` frames per second."""
        return rate if self.rate == "auto" else self.rate
