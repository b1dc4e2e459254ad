"""Segmentation by the average of several views of an image: sliding windows, scales, mirror images.

For evaluation, and for pictures without a deadline; the robot computes one view (`dinov3_seg_ros.segmenter`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.frames.preprocessing import Placement, check_geometry, check_image, fill_canvas, place
from dinov3_seg_ros.options import FRAME_SIZED, ComputeOptions
from dinov3_seg_ros.runtimes.choice import open_runtime
from dinov3_seg_ros.runtimes.failures import runtime_failures
from dinov3_seg_ros.runtimes.protocol import Runtime, sizes_in_words
from dinov3_seg_ros.segmenter import HeadSegmentation, Segmentation, Segmenter, limit_threads
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.timing import StageTimes
from training.support.section import Section
from training.support.sides import opposite_sides

Size: TypeAlias = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Window: TypeAlias = tuple[float, float, float, float]


class Inference(Section):
    """Views of an image whose results are averaged; the default is one view, the robot's."""

    mode: Literal["whole", "slide"] = "whole"
    """whole: the image as the robot sees it. slide: windows of the network size over the image; logits of overlapping
    windows are averaged. With geometry pad and native the image has the size that training gives it. With letterbox
    and stretch, which show the whole image in one window, it is scaled to the smallest size that covers one window."""
    stride: Size | Literal["auto"] = "auto"
    """Rows and columns from one window to the next; auto: two thirds of the network size."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    """Sizes of the image, as factors of its size in mode; the probabilities are averaged."""
    flip: bool = False
    """Whether each view is also computed mirrored; the probabilities are averaged."""

    @property
    def looks_once(self) -> bool:
        """Whether there is only one view, the robot's."""
        return self.mode == "whole" and self.scales == (1.0,) and not self.flip

    def has_one_canvas(self, geometry: str) -> bool:
        """Whether all views have canvases of the network size, for frames of any size."""
        return self.mode == "slide" or (geometry not in FRAME_SIZED and self.scales == (1.0,))

    def stride_of(self, network_size: Size) -> Size:
        """Rows and columns from one window to the next.

        Args:
            network_size: (height, width) of the windows, pixels.

        Raises:
            ParameterError: they leave gaps between windows.
        """
        if self.stride == "auto":
            height, width = network_size
            return max(round(height * 2 / 3), 1), max(round(width * 2 / 3), 1)
        if self.mode == "slide" and any(step > side for step, side in zip(self.stride, network_size, strict=True)):
            raise ParameterError(
                f"a stride of {self.stride} leaves gaps between windows of {tuple(network_size)} pixels; set "
                "inference.stride to auto, or to at most that"
            )
        return self.stride


class AveragingSegmenter:
    """Segments by the average of several views, as `dinov3_seg_ros.segmenter.Segmenter` does by one view.

    Args:
        bundle: source of the head and the network input.
        runtime: a runtime with that bundle loaded.
        inference: the views.

    Attributes:
        runtime: as given.
        max_batch: number of images that are segmented together, always 1.

    Raises:
        ParameterError: the stride leaves gaps between windows.
    """

    max_batch = 1

    def __init__(self, bundle: Bundle, runtime: Runtime, inference: Inference) -> None:
        manifest = bundle.manifest
        self._name, self._input, self._multiple = manifest.name, manifest.input, manifest.backbone.multiple
        self._window: tuple[int, int] = manifest.input.network_size
        self.runtime, self._inference = runtime, inference
        self._mirrored_ids = list(range(len(manifest.classes.names)))
        for left, right in opposite_sides(manifest.classes.names):
            self._mirrored_ids[left], self._mirrored_ids[right] = right, left
        self._stride = inference.stride_of(self._window)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Segment frames, one after the other.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.

        Raises:
            ImageError: an image is not (H, W, 3) uint8.
            ParameterError: a view has a size for which the runtime has no graph.
            RuntimeFailedError: the runtime failed, such as for want of memory.
        """
        return [self._segment(image) for image in images]

    def warm_up(self) -> None:
        """Segment one frame, so that the first real one is as fast as the others; see `Segmenter.warm_up`."""
        _ = self.segment([np.zeros((*self._window, 3), np.uint8)])[0].labels

    def close(self) -> None:
        """Release the model."""
        self.runtime.close()

    def _segment(self, image: np.ndarray) -> Segmentation:
        check_image(image)
        mirrors = (False, True) if self._inference.flip else (False,)
        views = [(scale, mirrored) for scale in self._inference.scales for mirrored in mirrors]
        with runtime_failures("averaging the views"):
            if len(views) == 1:
                logits, window = self._compute_view(image, views[0][0])
            else:
                logits, window = self._average(image, views)
        head = HeadSegmentation(logits, image.shape[:2], window, StageTimes())
        return Segmentation({self._name: head})

    def _average(self, image: np.ndarray, views: Sequence[tuple[float, bool]]) -> tuple[Tensor, Window]:
        """Logarithms of the mean probabilities, at the frame's size at scale 1."""
        placement = self._place(image.shape[:2], 1.0)
        height, width = placement.height, placement.width
        total: Tensor | None = None
        for scale, mirrored in views:
            seen = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
            probabilities = sample(*self._compute_view(seen, scale), (height, width)).softmax(1)
            if mirrored:
                probabilities = probabilities.flip(-1)[:, self._mirrored_ids]
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None  # there is at least one view
        tiny = torch.finfo(total.dtype).tiny  # an infinite logarithm would be decoded slowly
        return (total / len(views)).clamp(min=tiny).log(), (0.0, 0.0, float(height), float(width))

    def _compute_view(self, image: np.ndarray, scale: float) -> tuple[Tensor, Window]:
        """Logits (1, C, h, w) of one view, and the part of them that the frame covers."""
        placement = self._place(image.shape[:2], scale)
        canvas = np.empty((*placement.canvas_size, 3), np.uint8)
        fill_canvas(image, placement, self._input.mean, canvas)
        logits = self._logits(canvas) if self._inference.mode == "whole" else self._slide(canvas)
        rows, columns = logits.shape[-2:]
        return logits, placement.window((rows, columns))

    def _place(self, frame_size: tuple[int, int], scale: float) -> Placement:
        """Position of the frame on its canvas: in the middle, where the canvas is larger."""
        placement = place(frame_size, self._input.geometry, self._window, self._multiple)
        if self._inference.mode == "slide":
            if self._input.geometry in FRAME_SIZED:
                height, width = _scaled((placement.height, placement.width), scale)
            else:
                cover = max(side / frame for side, frame in zip(self._window, frame_size, strict=True))
                height, width = _scaled(frame_size, cover * scale)
            return _centred(frame_size, (height, width), (max(height, self._window[0]), max(width, self._window[1])))
        if scale == 1.0:
            return placement
        padded = place(_scaled((placement.height, placement.width), scale), "pad", self._window, self._multiple)
        return dataclasses.replace(padded, frame_size=frame_size)

    def _slide(self, canvas: np.ndarray) -> Tensor:
        """Logits (1, C, H, W) of every pixel of a canvas, averaged over the windows that show the pixel."""
        height, width = self._window
        total: Tensor | None = None
        windows = torch.zeros(canvas.shape[:2])
        for top in _starts(canvas.shape[0], height, self._stride[0]):
            for left in _starts(canvas.shape[1], width, self._stride[1]):
                rows, columns = slice(top, top + height), slice(left, left + width)
                logits = self._logits(np.ascontiguousarray(canvas[rows, columns]))
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *canvas.shape[:2])
                total[..., rows, columns] += F.interpolate(logits, (height, width), mode="bilinear")
                windows[rows, columns] += 1
        assert total is not None  # there is at least one window
        return total.div_(windows.to(total.device))

    def _logits(self, canvas: np.ndarray) -> Tensor:
        size = canvas.shape[:2]
        if self.runtime.sizes is not None and size not in self.runtime.sizes:
            sizes = sizes_in_words(self.runtime.sizes)
            raise ParameterError(
                f"a view by these settings of inference has {size[0]}x{size[1]} pixels, and runtime "
                f"'{self.runtime.name}' has graphs for {sizes} only; use --runtime torch without --providers, which "
                "takes any size"
            )
        with runtime_failures(self.runtime.description):
            return torch.as_tensor(self.runtime.start(canvas[None], [self._name]).logits()[self._name]).float()


def open_segmenter(
    bundle: Bundle, inference: Inference, options: ComputeOptions | None = None
) -> Segmenter | AveragingSegmenter:
    """Load the network of a bundle into a segmenter: the robot's own for one view, else one that averages views.

    Args:
        bundle: holds the network.
        inference: the views of an image.
        options: how to compute, with network size and geometry in place of the bundle's. The runtime ``auto`` is torch
            where views are of other sizes than the exports.

    Raises:
        BundleError, BackboneError, ExportError, RuntimeUnavailableError, ParameterError: what is wrong, and where.
    """
    options = options or ComputeOptions()
    if inference.looks_once:
        return Segmenter.from_bundle(bundle, **options.model_dump())
    if options.max_batch > 1:
        raise ParameterError(
            f"max_batch is {options.max_batch}, but averaged views are computed one after the other; leave it at 1"
        )
    limit_threads(options.threads)
    bundle = _with_input(bundle, options)
    network = bundle.manifest.input
    size = network.network_size if inference.has_one_canvas(network.geometry) else None
    # The exports have the size of the robot's view.
    runtime = "torch" if size is None and options.runtime == "auto" else options.runtime
    options = options.model_copy(update={"network_size": size, "runtime": runtime})
    return AveragingSegmenter(bundle, open_runtime([bundle], options)[0], inference)


def _with_input(bundle: Bundle, options: ComputeOptions) -> Bundle:
    """A bundle with the network size and geometry of the options, where these are set."""
    manifest = bundle.manifest
    wanted = {"network_size": options.network_size, "geometry": options.geometry}
    network = manifest.input.model_copy(update={name: value for name, value in wanted.items() if value is not None})
    check_geometry(network.geometry, network.network_size, manifest.backbone.multiple)
    return dataclasses.replace(bundle, manifest=manifest.model_copy(update={"input": network}))


def sample(logits: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Bilinear samples of a part of a map, as `decode.upsample_argmax` takes them.

    Args:
        logits: (B, C, h, w) floating.
        window: (top, left, height, width) in cells of the map.
        size: (H, W) of the result.
    """
    top, left, height, width = window
    rows = (torch.arange(size[0], device=logits.device) + 0.5) * (height / size[0]) + top
    columns = (torch.arange(size[1], device=logits.device) + 0.5) * (width / size[1]) + left
    # grid_sample takes the map's edges as -1 and 1.
    y, x = (2 * cells / side - 1 for cells, side in zip((rows, columns), logits.shape[-2:], strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """A size times a factor, rounded to whole pixels, at least 1."""
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _centred(frame_size: tuple[int, int], size: tuple[int, int], canvas_size: tuple[int, int]) -> Placement:
    top, left = ((canvas - side) // 2 for canvas, side in zip(canvas_size, size, strict=True))
    return Placement(frame_size, canvas_size, top, left, *size)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows that cover ``length``, which is at least one window; the last one ends at its end."""
    return [*range(0, length - window, stride), length - window]
