"""The node's models load in a thread of their own: bundles first, then what computes."""

from __future__ import annotations

import threading

import pytest

from dinov3_seg_ros.bundle import loading
from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros.model_loader import Models
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


def test_a_bundles_files_are_hashed_once(options, monkeypatch):
    hashed = []

    def note(path):
        hashed.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(loading, "sha256_of_file", note)
    models = Models(lambda: None, fail)
    models.load(options)
    assert models.wait(60)
    assert models.error is None
    assert "head.safetensors" in hashed
    assert len(hashed) == len(set(hashed))
    models.release()
    assert models.join(60)
