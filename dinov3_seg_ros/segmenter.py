"""Frames in, segmentations out: the one place where preprocessing, runtime and decode meet. Imports no ROS."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from dinov3_seg_ros import decode
from dinov3_seg_ros.bundle.loading import Bundle, check_shared_backbone, load_bundle
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.decode.parallel import is_limited, set_thread_limit
from dinov3_seg_ros.frames.preprocessing import (
    Placement,
    check_geometry,
    check_image,
    fill_canvas,
    mask_size,
    nearest_in_aspect,
    place,
)
from dinov3_seg_ros.frames.smoothing import Logits, TemporalSmoother
from dinov3_seg_ros.options import FRAME_SIZED, ComputeOptions, RuntimeName, ValueRange
from dinov3_seg_ros.runtimes.choice import open_runtime, runtime_options
from dinov3_seg_ros.runtimes.failures import runtime_failures
from dinov3_seg_ros.runtimes.protocol import Computation, Runtime, sizes_in_words
from dinov3_seg_ros.support.cpu import quota_threads
from dinov3_seg_ros.support.errors import ImageError, ParameterError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import StageTimes

if TYPE_CHECKING:
    import torch


class HeadSegmentation:
    """One head's result for one frame. Labels and confidence are decoded when they are first read.

    Args:
        logits: (1, C, h, w) float, a NumPy array or a PyTorch tensor on any device.
        size: (height, width) of labels and confidence, pixels.
        window: the part of the logits that the frame covers, in cells; see `decode.upsample_argmax`.
        times: where the decode's time is recorded.
        groups: of classes to merge; see `merged`.

    Attributes:
        logits, window: as given.
    """

    def __init__(
        self,
        logits: Any,
        size: tuple[int, int],
        window: tuple[float, float, float, float],
        times: StageTimes,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.logits, self.window, self._size, self._times, self._groups = logits, window, size, times, groups
        self._labels: np.ndarray | None = None
        self._confidence: np.ndarray | None = None

    def with_logits(self, logits: Any, window: tuple[float, float, float, float]) -> HeadSegmentation:
        """The result of other logits for the same frame."""
        return HeadSegmentation(logits, self._size, window, self._times, self._groups)

    def merged(self, groups: Sequence[Sequence[int]]) -> HeadSegmentation:
        """The result with classes merged: labels are positions in ``groups``, each as probable as its classes together.

        Args:
            groups: class ids; each class is in one group. They are merged before the decode, so that between the cells
                of the logits it is the merged ones that are interpolated; see `decode.merge_classes`.
        """
        return HeadSegmentation(self.logits, self._size, self.window, self._times, groups)

    @property
    def labels(self) -> np.ndarray:
        """(H, W) class ids, uint8 up to 255 classes, else uint16."""
        if self._labels is None:
            with self._decoding():
                self._labels = _to_numpy(decode.upsample_argmax(self._decoded(), self._size, self.window))[0]
        return self._labels

    @property
    def confidence(self) -> np.ndarray:
        """(H, W) uint8, round(255 * the largest softmax probability).

        Decoding it decodes the labels too, where they were not read before.
        """
        if self._confidence is None:
            with self._decoding():
                labels, confidence = decode.upsample_argmax_confidence(self._decoded(), self._size, self.window)
                self._confidence = _to_numpy(confidence)[0]
                if self._labels is None:  # else the caller has them, and may have changed them
                    self._labels = _to_numpy(labels)[0]
        return self._confidence

    def _decoded(self) -> Any:
        """The logits that are decoded."""
        return self.logits if self._groups is None else decode.merge_classes(self.logits, self._groups)

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        with self._times.stage("decode"), runtime_failures("the decode"):
            yield


class Segmentation:
    """The results of all heads for one frame.

    Attributes:
        heads: `HeadSegmentation` by bundle name, in the order of the bundles.
    """

    def __init__(self, heads: dict[str, HeadSegmentation]) -> None:
        self.heads = heads

    @property
    def labels(self) -> np.ndarray:
        """The first head's labels, (H, W)."""
        return next(iter(self.heads.values())).labels

    @property
    def confidence(self) -> np.ndarray:
        """The first head's confidence, (H, W) uint8."""
        return next(iter(self.heads.values())).confidence

    def smoothed(self, smoother: TemporalSmoother, image: np.ndarray, seconds: float) -> Segmentation:
        """This frame's results, smoothed over time. Logits on a GPU are copied from it, and decoded on the CPU.

        Args:
            smoother: of the camera; it is given each of its frames, in order.
            image: (H, W, 3) uint8 RGB, the frame.
            seconds: the frame's stamp.
        """
        given = {name: Logits(head.logits, head.window) for name, head in self.heads.items()}
        with runtime_failures("the copy of the logits"):
            found = smoother.smooth(image, seconds, given)
        return Segmentation({name: head.with_logits(*found[name]) for name, head in self.heads.items()})


class StartedSegmentation:
    """Frames that the network is computing; see `Segmenter.start`."""

    def __init__(self, count: int, batches: Sequence[_StartedBatch], times: StageTimes, runtime: Runtime) -> None:
        self._count, self._batches, self._times, self._runtime = count, batches, times, runtime

    def finish(self) -> list[Segmentation]:
        """Wait for the network.

        Returns:
            One `Segmentation` for each image, in order; labels and confidence are decoded when they are read.

        Raises:
            RuntimeFailedError: the runtime failed.
        """
        results: dict[int, Segmentation] = {}
        for batch in self._batches:
            with runtime_failures(self._runtime.description):
                logits, durations = batch.computation.logits(), batch.computation.seconds()
            for stage, seconds in durations.items():
                self._times.add(stage, seconds)
            for i, (index, placement) in enumerate(batch.placements.items()):
                heads = {
                    name: HeadSegmentation(
                        some[i : i + 1],
                        mask_size(batch.size, placement),
                        placement.window(tuple(some.shape[-2:])),
                        self._times,
                    )
                    for name, some in logits.items()
                }
                results[index] = Segmentation(heads)
        return [results[index] for index in range(self._count)]


class _StartedBatch(NamedTuple):
    """One computation; by the index of each of its frames, where that lies on its canvas; and the labels' size."""

    computation: Computation
    placements: dict[int, Placement]
    size: str | tuple[int, int]


class Segmenter:
    """Frames in, segmentations out, with one backbone pass for each batch, however many heads there are.

    Use it from one thread at a time. What `start` returns may be finished in another thread.

    In the code here and in the runtimes, a *canvas* is the network input: one frame resized and padded, (H, W, 3) uint8
    RGB.

    Args:
        bundles: at least one; they share a backbone.
        runtime: what computes the network.
        network_size: (height, width) of the network input, pixels; None takes the first bundle's.
        geometry: how a frame is laid on the network input; None takes the first bundle's.
        max_batch: the most frames in one backbone pass.

    Attributes:
        manifests: manifest by bundle name, in order.
        runtime: as given.
        runtime_reason: why this runtime was chosen, for people.
        max_batch: as given.
        value_range: which values of 16-bit images the bundles take for black and white; see `options.ValueRange`.
        times: durations of the stages preprocess, backbone, heads and decode, and of the copies to and from a GPU.
        warm_up_s: seconds that the longest pass of `warm_up` took; 0 before it.

    Raises:
        ParameterError: size or geometry do not fit the backbone or the runtime.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        runtime: Runtime,
        network_size: tuple[int, int] | None = None,
        geometry: str | None = None,
        max_batch: int = 1,
    ) -> None:
        first = bundles[0].manifest
        self.manifests: dict[str, Manifest] = {bundle.manifest.name: bundle.manifest for bundle in bundles}
        self.runtime = runtime
        self.runtime_reason = ""
        self.times = StageTimes()
        self._geometry = geometry or first.input.geometry
        self._network_size = network_size or first.input.network_size
        # Heads may read different layers of one backbone, and coarser ones need a larger multiple.
        self._multiple = math.lcm(*(bundle.manifest.backbone.multiple for bundle in bundles))
        self._mean = first.input.mean
        self.value_range: ValueRange = first.input.value_range
        check_geometry(self._geometry, self._network_size, self._multiple)
        if runtime.sizes is not None and self._geometry not in FRAME_SIZED and self._network_size not in runtime.sizes:
            sizes = sizes_in_words(runtime.sizes)
            raise ParameterError(f"the runtime has no graph for network size {self._network_size}; it has: {sizes}")
        if max_batch < 1:
            raise ParameterError(f"max_batch must be at least 1; got {max_batch}")
        self.max_batch = max_batch
        self.warm_up_s = 0.0
        self._is_closed = False

    @classmethod
    def from_bundle(
        cls,
        bundles: Bundle | str | os.PathLike[str] | Sequence[Bundle | str | os.PathLike[str]],
        runtime: RuntimeName = "auto",
        avoid: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Segmenter:
        """Load one bundle, or several that share a backbone.

        The option ``threads`` sets the CPU threads of PyTorch, the decode and OpenCV in the whole process; 0 leaves the
        program's own, unless a CPU quota allows fewer. Where PyTorch computes on a GPU, this sets TF32 off in the whole
        process.

        Args:
            bundles: folder or folders, names of shipped ones, or ``owner/name`` on the Hugging Face Hub; see
                `bundle.loading.load_bundle`. What that returned is taken as it is, and not checked again.
            runtime: ``auto`` (the fastest that can run here), ``torch``, ``onnx`` or ``tensorrt``.
            avoid: runtimes that ``auto`` passes over, with the reason for each.
            options: further fields of `options.ComputeOptions`, such as ``device``, ``precision`` and ``network_size``.

        Raises:
            BundleError, BackboneError, ExportError, RuntimeUnavailableError, ParameterError: what is wrong, and where.
        """
        given = [bundles] if isinstance(bundles, Bundle | str | os.PathLike) else list(bundles)
        if not given:
            raise ParameterError("no bundle was given; name the folder of at least one")
        loaded = [one if isinstance(one, Bundle) else load_bundle(one) for one in given]
        check_shared_backbone(loaded)
        wanted = ComputeOptions(runtime=runtime, **options)
        limit_threads(wanted.threads)
        opened, reason = open_runtime(loaded, runtime_options(loaded, wanted), avoid)
        try:
            segmenter = cls(loaded, opened, wanted.network_size, wanted.geometry, wanted.max_batch)
        except BaseException:
            opened.close()
            raise
        segmenter.runtime_reason = reason
        return segmenter

    def segment(
        self,
        images: Sequence[np.ndarray],
        *,
        heads: Sequence[str] | None = None,
        size: str | tuple[int, int] = "source",
    ) -> list[Segmentation]:
        """Segment frames. Frames with network inputs of one size go through the backbone together.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.
            heads: names of the bundles whose heads to run, at least one; None for all.
            size: size of the labels: ``source`` (the frame's), ``network`` (the frame at the network's resolution,
                without padding) or (height, width) in pixels.

        Returns:
            One `Segmentation` for each image, in order; labels and confidence are decoded when they are read.

        Raises:
            ImageError: an image is not (H, W, 3) uint8.
            ParameterError: unknown head or size.
            RuntimeFailedError: the runtime failed, such as for want of memory.
            RuntimeUnavailableError: the Segmenter is closed.
        """
        return self.start(images, heads=heads, size=size).finish()

    def start(
        self,
        images: Sequence[np.ndarray],
        *,
        heads: Sequence[str] | None = None,
        size: str | tuple[int, int] = "source",
    ) -> StartedSegmentation:
        """Start what `segment` does. Where a GPU computes, this does not wait for it.

        So the next frames can be prepared and uploaded while the GPU computes these, and another thread can call
        `StartedSegmentation.finish` and decode. Frames are computed in the order in which they are started.
        """
        if self._is_closed:
            raise RuntimeUnavailableError("the Segmenter is closed; make another with Segmenter.from_bundle")
        names = list(self.manifests) if heads is None else list(heads)
        if not names:
            raise ParameterError(f"heads is empty; name some of {', '.join(self.manifests)}, or leave heads out")
        for name in names:
            if name not in self.manifests:
                raise ParameterError(f"there is no head '{name}'; the heads are: {', '.join(self.manifests)}")
        if isinstance(images, np.ndarray) and images.ndim == 3:
            raise ImageError(f"got one array of shape {images.shape}; give a list of images, such as segment([image])")
        for image in images:
            check_image(image)
        placements = [self._place((image.shape[0], image.shape[1])) for image in images]
        for placement in placements:
            mask_size(size, placement)  # an unknown one is refused before anything is computed
        batches = []
        for indices in self._batches(placements):
            of_batch = {index: placements[index] for index in indices}
            canvases = self._fill_canvases([images[index] for index in indices], list(of_batch.values()))
            with runtime_failures(self.runtime.description):
                batches.append(_StartedBatch(self.runtime.start(canvases, names), of_batch, size))
        return StartedSegmentation(len(images), batches, self.times, self.runtime)

    def canvas_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the network input for a frame of (height, width), in pixels."""
        return self._place(frame_size).canvas_size

    def warm_up(self) -> None:
        """Do what would otherwise make the first frames slow.

        The runtime plans its memory for each size of network input, and the compiler of the decode starts: until it is
        done, NumPy decodes (`decode.backend`). On a GPU the libraries also choose their kernels, and CUDA graphs are
        recorded, for each number of frames up to ``max_batch``. With native geometry the frame size is not yet known,
        so warm up at the bundle's size.
        """
        sizes_are_known = self.runtime.sizes is not None or self._geometry not in FRAME_SIZED
        # The largest batch first: the PyTorch runtime records a limited number, and under load the batches are full.
        counts = range(self.max_batch, 0, -1) if self.runtime.device != "cpu" and sizes_are_known else [1]
        for size in self.runtime.sizes or [self._network_size]:
            for count in counts:
                began = time.monotonic()
                results = self.segment([np.zeros((*size, 3), np.uint8)] * count)
                for head in results[0].heads.values():
                    _ = head.labels, head.confidence
                self.warm_up_s = max(self.warm_up_s, time.monotonic() - began)
        self.times.clear()

    def close(self) -> None:
        """Release the models. The end of a ``with`` block does so, too."""
        self._is_closed = True
        self.runtime.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, frame_size: tuple[int, int]) -> Placement:
        if self.runtime.sizes is None or self._geometry not in FRAME_SIZED:
            return place(frame_size, self._geometry, self._network_size, self._multiple)
        # The runtime's graphs have fixed sizes, so the frame cannot have a size of its own.
        return place(frame_size, "letterbox", nearest_in_aspect(frame_size, self.runtime.sizes), self._multiple)

    def _batches(self, placements: Sequence[Placement]) -> list[list[int]]:
        by_canvas: dict[tuple[int, int], list[int]] = {}
        for index, placement in enumerate(placements):
            by_canvas.setdefault(placement.canvas_size, []).append(index)
        return [
            indices[start : start + self.max_batch]
            for indices in by_canvas.values()
            for start in range(0, len(indices), self.max_batch)
        ]

    def _fill_canvases(self, images: Sequence[np.ndarray], placements: Sequence[Placement]) -> np.ndarray:
        with self.times.stage("preprocess"):
            canvases = np.empty((len(images), *placements[0].canvas_size, 3), np.uint8)
            for canvas, image, placement in zip(canvases, images, placements, strict=True):
                fill_canvas(image, placement, self._mean, canvas)
        return canvases


def limit_threads(threads: int) -> None:
    """Limit the threads of decode and OpenCV in the whole process; the runtime limits its own.

    Args:
        threads: 0 lifts a limit that was set here, and else leaves OpenCV's number as the program has set it, unless a
            CPU quota allows fewer.
    """
    if threads or is_limited():
        cv2.setNumThreads(threads or -1)
    if not threads and quota_threads():
        cv2.setNumThreads(min(cv2.getNumThreads(), quota_threads()))
    set_thread_limit(threads)


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
