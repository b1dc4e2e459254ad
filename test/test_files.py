"""Files are replaced whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from closed_folder import make_closed_folder

from dinov3_seg_ros.support.files import (
    cache_folder,
    is_writable,
    lies_in,
    locked,
    remove_temporaries,
    replacing_file,
    replacing_folder,
    sha256_of_file,
    write_json,
)


def test_an_error_while_writing_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_only_the_old_folder(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise OSError("disk full")
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(("replacing", "inner"), [(replacing_file, ""), (replacing_folder, "a/b.txt")])
def test_an_error_names_what_was_to_be_written(tmp_path, replacing, inner):
    path, long = tmp_path / "results.json", tmp_path / f"{'a' * 250}.json"
    with pytest.raises(OSError, match=rf": '{path / inner}'$"), replacing(path) as temporary:
        os.rmdir(temporary / inner)
    with pytest.raises(OSError, match=f"too long: '{long}'$"), replacing(long):
        pass


def test_only_what_a_killed_writer_left_is_removed(tmp_path):
    kept = {"a.txt", ".a.txt.swp", ".a.backup.txt", "bundle", ".bundle.backup", ".bundle.link____"}
    for name in ("a.txt", ".a.txt.swp", ".a.backup.txt", ".a.k1ll3d__.txt"):
        (tmp_path / name).touch()
    for name in ("bundle", ".bundle.backup", ".bundle.k1ll3d__", ".bundle.old.k1ll3d__"):
        (tmp_path / name / "weights").mkdir(parents=True)
    (tmp_path / ".bundle.link____").symlink_to(tmp_path / "bundle")
    for name in ("a.txt", "bundle"):
        remove_temporaries(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "bundle"
    for content in ("first", "second"):
        with replacing_folder(folder) as temporary:
            (temporary / content).write_text(content)
    assert [file.name for file in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    for name in ("file", "folder"):
        (tmp_path / f"link to {name}").symlink_to(tmp_path / name)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    write_json(tmp_path / "link to file", "new")
    with replacing_folder(tmp_path / "link to folder") as temporary:
        (temporary / "new").touch()
    assert json.loads((tmp_path / "file").read_text()) == "new"
    assert (tmp_path / "folder" / "new").exists()
    assert sum(path.is_symlink() for path in tmp_path.iterdir()) == 2 and len(list(tmp_path.iterdir())) == 4


def test_a_folder_takes_no_files_place(tmp_path):
    (tmp_path / "notes").write_text("old")
    with pytest.raises(NotADirectoryError), replacing_folder(tmp_path / "notes"):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_pipe_gets_the_content_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, "new")
    assert json.loads(os.read(reader, 100)) == "new"
    os.close(reader)
    assert pipe.is_fifo()
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is, which root may replace
    write = f"from {write_json.__module__} import *; write_json({str(tmp_path / 'stdout')!r}, 'new')"
    for output in (subprocess.PIPE, (tmp_path / "redirected").open("w+b")):
        done = subprocess.run([sys.executable, "-c", write], stdout=output, check=True)
        if output != subprocess.PIPE:
            output.seek(0)
        assert json.loads(done.stdout if output == subprocess.PIPE else output.read()) == "new"
        assert (tmp_path / "stdout").is_symlink()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets two folders change places")
def test_a_folder_exists_at_every_moment_of_its_replacement(tmp_path, monkeypatch):
    folder, original = tmp_path / "bundle", os.rename

    def watched(source, target):
        original(source, target)
        assert folder.exists()

    monkeypatch.setattr(os, "rename", watched)
    for content in ("first", "second"):
        with replacing_folder(folder) as temporary:
            (temporary / content).touch()
    assert [file.name for file in folder.iterdir()] == ["second"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_has_one_holder(tmp_path, kind):
    path = tmp_path / "lock" if kind == "file" else tmp_path
    with locked(path), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


def test_what_is_replaced_is_readable_by_others_whatever_the_writer_made(tmp_path):
    with replacing_file(tmp_path / "weights") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    with replacing_folder(tmp_path / "bundle") as temporary:
        (temporary / "weights").mkdir()
        (temporary / "weights" / "a").touch(mode=0o600)
    mask = os.umask(0)
    os.umask(mask)
    for file in (tmp_path / "weights", tmp_path / "bundle" / "weights" / "a"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_path_lies_in_a_folder_by_links_too(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert lies_in(tmp_path / "link" / "out", tmp_path / "images")
    assert lies_in(tmp_path / "images" / "out", tmp_path / "link")
    assert not lies_in(tmp_path / "images_out", tmp_path / "images")


def test_threads_that_write_at_once_leave_the_permissions_of_new_files(tmp_path, monkeypatch):
    set_mask = os.umask

    def slow(mask):
        before = set_mask(mask)
        time.sleep(0.01)
        return before

    own = set_mask(0o027)
    try:
        monkeypatch.setattr(os, "umask", slow)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: write_json(tmp_path / f"{number}.json", number), range(12)))
        assert set_mask(0o027) == 0o027
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        set_mask(own)


def test_the_digest_of_a_json_file_follows_its_content(tmp_path):
    write_json(tmp_path / "a.json", {"größe": 1})
    first = sha256_of_file(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"größe": 1}
    write_json(tmp_path / "a.json", {"größe": 2})
    assert sha256_of_file(tmp_path / "a.json") != first


def test_a_user_without_a_home_has_no_cache_and_no_error(monkeypatch):
    def unknown(_user):
        raise KeyError

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)  # as of a container that runs as any number
    assert not is_writable(cache_folder("graphs"))


def test_a_folder_below_one_that_may_not_be_looked_into_is_not_writable(tmp_path, monkeypatch):
    closed = make_closed_folder(tmp_path / "closed", monkeypatch)
    assert not is_writable(closed / "home" / ".cache") and is_writable(tmp_path / "home" / ".cache")
