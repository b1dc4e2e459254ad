"""The node's models load in a thread of their own: bundles first, then what computes."""

from __future__ import annotations

import threading

import pytest

from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros import model_loader
from dinov3_seg_ros.ros.model_loader import Models
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support import files
from dinov3_seg_ros.support.errors import RuntimeFailedError
from dinov3_seg_ros.support.files import sha256_of_file


def fail(error):
    pytest.fail(str(error))


@pytest.fixture
def options(small_exported_bundle):
    return NodeOptions(bundle=str(small_exported_bundle.path), runtime="onnx")


def test_manifests_are_there_while_old_models_are_still_being_closed(options):
    news, frame_ends = threading.Semaphore(0), threading.Event()
    models = Models(news.release, fail)
    models.load(options)
    assert news.acquire(timeout=60), "of the manifests"
    assert news.acquire(timeout=60), "of the models"
    assert models.error is None
    models.release(frame_ends.wait)
    models.load(options)
    assert news.acquire(timeout=60)
    assert list(models.manifests) == ["tiny"]
    assert models.segmenter is None, "the memory of the old ones is not free yet"
    frame_ends.set()
    assert models.wait(60)
    assert models.segmenter is not None
    models.release()
    assert models.join(60)


def test_auto_takes_the_next_runtime_where_the_first_cannot_warm_up(monkeypatch):
    warm_up, failed = Segmenter.warm_up, []

    def short_of_memory(segmenter):
        if segmenter.runtime.name == "onnx":
            failed.append(segmenter)
            raise RuntimeFailedError("there is not enough memory on the GPU")
        warm_up(segmenter)

    monkeypatch.setattr(Segmenter, "warm_up", short_of_memory)
    for runtime, is_loaded in (("auto", True), ("onnx", False)):
        models = Models(lambda: None, fail)
        models.load(NodeOptions(bundle="demo", runtime=runtime))
        assert models.wait(60)
        assert (models.error is None) == is_loaded
        if is_loaded:
            assert models.segmenter.runtime.name == "torch"
            assert "there is not enough memory on the GPU" in models.segmenter.runtime_reason
        models.release()
        assert models.join(60)
    assert len(failed) == 2


def test_an_abandoned_loading_ends_before_another_begins(options, monkeypatch):
    began, may_end, at_once, closed = threading.Semaphore(0), threading.Event(), [], []
    load = Segmenter.from_bundle

    def load_slowly(*arguments, **settings):
        at_once.append("loading")
        count = len(at_once)
        began.release()
        assert may_end.wait(60)
        at_once.pop()
        assert count == 1, "two may not fit into memory"
        return load(*arguments, **settings)

    def close(segmenter):
        closed.append(segmenter)

    monkeypatch.setattr(Segmenter, "from_bundle", load_slowly)
    monkeypatch.setattr(Segmenter, "close", close)
    models = Models(lambda: None, fail)
    models.load(options)
    assert began.acquire(timeout=60)
    for _ in range(3):  # as of a manager that resets and starts up the node again and again
        models.load(options)
    assert not began.acquire(timeout=0.5), "the next one waits"
    may_end.set()
    assert models.wait(60)
    assert models.error is None
    assert began.acquire(timeout=60), "the last one"
    assert not began.acquire(timeout=0), "those between are not wanted any more"
    assert len(closed) == 1, "the abandoned one"
    monkeypatch.undo()
    models.release()
    assert models.join(60)


def test_a_loading_that_hangs_does_not_keep_the_next_one_from_its_try(options, monkeypatch):
    hangs, load, may_end = threading.Event(), Segmenter.from_bundle, threading.Event()

    def hang_at_first(*arguments, **settings):
        if not hangs.is_set():
            hangs.set()
            assert may_end.wait(60)
        return load(*arguments, **settings)

    monkeypatch.setattr(Segmenter, "from_bundle", hang_at_first)
    monkeypatch.setattr(model_loader, "_LOAD_FIRST_S", 0.1)
    models = Models(lambda: None, fail)
    models.load(options)
    assert hangs.wait(60)
    models.load(options)
    assert models.wait(60)
    assert models.segmenter is not None
    may_end.set()
    models.release()
    assert models.join(60)


def test_a_bundles_files_are_hashed_once(options, monkeypatch):
    hashed = []

    def note(path):
        hashed.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(files, "sha256_of_file", note)
    models = Models(lambda: None, fail)
    models.load(options)
    assert models.wait(60)
    assert models.error is None
    assert hashed.count("head.safetensors") == 1, "an export's graphs are hashed again when they are opened"
    models.release()
    assert models.join(60)
