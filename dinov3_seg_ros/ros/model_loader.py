"""The node's models, loaded and closed in threads of their own: the node answers meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinov3_seg_ros.bundle.loading import Bundle, check_shared_backbone, load_bundle
from dinov3_seg_ros.bundle.manifest import Manifest
from dinov3_seg_ros.options import ComputeOptions, NodeOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ParameterError, RuntimeFailedError, RuntimeUnavailableError
from dinov3_seg_ros.support.option_model import select

# Models should be gone before others take their memory. One that hangs must not keep the node from trying again.
_CLOSE_FIRST_S = 10.0
_LOAD_FIRST_S = 600.0


class Models:
    """The segmenter of a node: loaded, replaced and closed without waiting for it.

    Args:
        changed: called in the loading thread when the manifests are read, and when loading has ended, well or not.
        close_failed: called with the error when models cannot be closed.
    """

    def __init__(self, changed: Callable[[], None], close_failed: Callable[[Exception], None]) -> None:
        self._changed, self._close_failed = changed, close_failed
        self._attempt: _Attempt | None = None
        self._closing: threading.Thread | None = None
        self._loading: threading.Thread | None = None

    @property
    def are_wanted(self) -> bool:
        """Whether they are loaded, being loaded, or could not be loaded."""
        return self._attempt is not None

    @property
    def loading_s(self) -> float | None:
        """For how many seconds they have been loading; None where they are not being loaded."""
        attempt = self._attempt
        return None if attempt is None or attempt.is_over.is_set() else time.monotonic() - attempt.began

    @property
    def segmenter(self) -> Segmenter | None:
        """The segmenter, once it is loaded."""
        return self._attempt.segmenter if self._attempt is not None and self._attempt.is_over.is_set() else None

    @property
    def error(self) -> Exception | None:
        """Why the models could not be loaded."""
        return self._attempt.error if self._attempt is not None and self._attempt.is_over.is_set() else None

    @property
    def manifests(self) -> Mapping[str, Manifest] | None:
        """The bundles' manifests by name, from when the bundles are read, before the models; None until then."""
        return self._attempt.manifests if self._attempt is not None else None

    def load(self, options: NodeOptions, avoid: Mapping[str, str] | None = None) -> None:
        """Start to load what the options name, in place of what there is.

        Args:
            options: which bundles, and how to compute.
            avoid: runtimes that ``auto`` passes over while there is another, with the reason for each.
        """
        self.release()
        self._attempt = _Attempt(options, avoid or {})
        # A loading cannot be stopped, only abandoned: the next one waits for it.
        before = {self._loading: _LOAD_FIRST_S, self._closing: _CLOSE_FIRST_S}
        arguments = self._attempt, {thread: timeout_s for thread, timeout_s in before.items() if thread is not None}
        self._loading = threading.Thread(target=self._load, args=arguments, name="load models", daemon=True)
        self._loading.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until loading has ended, at most until ``timeout_s`` seconds after it began; whether it has."""
        attempt = self._attempt
        return attempt is None or attempt.is_over.wait(max(0.0, attempt.began + timeout_s - time.monotonic()))

    def release(self, wait_for_frame: Callable[[float], bool] | None = None) -> None:
        """Close the models, or abandon their loading: they are then closed when it ends.

        Args:
            wait_for_frame: waits until a frame that is being processed is finished; called in the thread that closes.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is not None and attempt.abandon():
            self._closing = threading.Thread(
                target=self._close, args=(attempt, wait_for_frame), name="close models", daemon=True
            )
            self._closing.start()

    def fail(self, error: Exception, wait_for_frame: Callable[[float], bool] | None = None) -> None:
        """Close the models, which cannot be used any more; `error` tells why until they are loaded anew or released."""
        manifests = self.manifests
        self.release(wait_for_frame)
        self._attempt = _Attempt.failed(error, manifests)

    def join(self, timeout_s: float) -> bool:
        """Wait until released models are closed; False where they are not after ``timeout_s``."""
        if self._closing is not None:
            self._closing.join(timeout_s)
        return self._closing is None or not self._closing.is_alive()

    def _load(self, attempt: _Attempt, before: Mapping[threading.Thread, float]) -> None:
        try:
            attempt.read()
            self._changed()
            for thread, timeout_s in before.items():
                thread.join(timeout_s)
            if not attempt.is_abandoned:
                attempt.load()
        except Exception as error:
            attempt.error = error
        if attempt.end():
            self._close(attempt)
        else:
            self._changed()

    def _close(self, attempt: _Attempt, wait_for_frame: Callable[[float], bool] | None = None) -> None:
        if wait_for_frame is not None:
            wait_for_frame(threading.TIMEOUT_MAX)
        segmenter, attempt.segmenter = attempt.segmenter, None
        if segmenter is not None:
            try:
                segmenter.close()
            except Exception as error:
                self._close_failed(error)


class _Attempt:
    """One loading, and what came of it."""

    def __init__(self, options: NodeOptions, avoid: Mapping[str, str]) -> None:
        self._options, self._avoid = options, avoid
        self._lock = threading.Lock()
        self.is_abandoned = False
        self._bundles: list[Bundle] = []
        self.began = time.monotonic()
        self.is_over = threading.Event()
        self.manifests: Mapping[str, Manifest] | None = None
        self.segmenter: Segmenter | None = None
        self.error: Exception | None = None

    @classmethod
    def failed(cls, error: Exception, manifests: Mapping[str, Manifest] | None) -> _Attempt:
        """One that has failed."""
        attempt = cls(NodeOptions(), {})
        attempt.error, attempt.manifests = error, manifests
        attempt.is_over.set()
        return attempt

    def read(self) -> None:
        """Read and check the bundles, which fetches those on the Hub."""
        paths = self._options.bundles or (self._options.bundle,)
        if not paths[0]:
            raise ParameterError(
                "parameter 'bundle' is empty; set it to the folder of a bundle, to the name of a shipped one or to "
                "OWNER/NAME on Hugging Face, for example: --ros-args -p bundle:=demo"
            )
        self._bundles = [load_bundle(path) for path in paths]
        check_shared_backbone(self._bundles)
        self.manifests = {bundle.manifest.name: bundle.manifest for bundle in self._bundles}

    def load(self) -> None:
        """Load the models of the bundles that were read, and make their first frames fast."""
        options: dict[str, Any] = select(ComputeOptions, dict(self._options)).model_dump()
        avoid = dict(self._avoid)
        while True:
            self.segmenter = _segmenter(self._bundles, options, avoid)
            try:
                return self.segmenter.warm_up()
            except RuntimeFailedError as error:  # such as for want of memory, in a batch of another size
                runtime = self.segmenter.runtime.name
                if options["runtime"] != "auto" or runtime in avoid:
                    raise
                avoid[runtime] = str(error)
                self.segmenter.close()
                self.segmenter = None

    def abandon(self) -> bool:
        """Say that nobody wants it any more; whether it is over, so that the caller has to close it."""
        with self._lock:
            self.is_abandoned = True
            return self.is_over.is_set()

    def end(self) -> bool:
        """Say that it is over; whether it was abandoned, so that the caller has to close it."""
        with self._lock:
            self.is_over.set()
            return self.is_abandoned


def _segmenter(bundles: Sequence[Bundle], options: dict[str, Any], avoid: Mapping[str, str]) -> Segmenter:
    try:
        return Segmenter.from_bundle(bundles, avoid=avoid, **options)
    except RuntimeUnavailableError:
        if not avoid:
            raise
        return Segmenter.from_bundle(bundles, **options)  # there is no other: the same, loaded anew, may do
