"""What execution providers compile is kept on disk, and given to them only as they wrote it."""

from __future__ import annotations

import fcntl
import threading

import pytest

from dinov3_seg_ros.runtimes.onnx.caches import GraphCache

GRAPH = {"graph": "a"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dinov3_seg_ros" / "graphs"


def opened(grows=False):
    """A cache whose provider has compiled a graph."""
    cache = GraphCache(GRAPH, grows)
    with cache.opened() as place:
        (place / "graph.blob").write_bytes(b"compiled")
    return cache


def was_found():
    cache = GraphCache(GRAPH)
    with cache.opened():
        return cache.was_found


@pytest.mark.parametrize("grows", [False, True])
def test_a_file_that_changes_while_the_node_runs_is_kept_only_of_a_provider_that_changes_it(grows):
    cache = opened(grows)
    (cache.folder / "graph.blob").write_bytes(b"other bytes")
    with cache.closing():
        pass
    assert was_found() == grows


def test_what_a_provider_writes_when_its_session_is_released_is_kept():
    cache = opened()
    with cache.closing():
        (cache.folder / "later.blob").write_bytes(b"written at the end")
    assert was_found()


def test_no_other_process_reads_the_folder_while_a_session_is_released_or_removed(folder):
    cache = opened()

    def is_locked():
        with open(next(folder.glob("*.lock")), "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    assert not is_locked()
    with cache.closing():
        assert is_locked()
        remover = threading.Thread(target=cache.remove)
        remover.start()
        remover.join(0.2)
        assert cache.folder.exists(), "removed under the eyes of who holds the lock"
    remover.join(10)
    assert not was_found()


def test_a_cache_that_another_process_removed_is_not_recorded_again():
    one, other = opened(), GraphCache(GRAPH)
    other.remove()
    with one.closing():
        pass
    assert not was_found()
