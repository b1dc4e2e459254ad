"""When the decode's kernel is compiled, what decodes meanwhile, and what numba's cache on disk is keyed by."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba.core import event
from test_decode import scene_logits

from dinov3_seg_ros import decode
from dinov3_seg_ros.decode import compilation, numba_form
from dinov3_seg_ros.decode.numba_kernel import entry

ROOT = Path(__file__).resolve().parents[1]
#: For what takes some seconds, and on a busy machine minutes.
DEADLINE_S = 300


@pytest.fixture
def slow_compiler(monkeypatch):
    """A compiler that has to compile, does not end before the event given here is set, and then gives the kernel."""
    compile_decode, may_end, started = entry.compile_decode, threading.Event(), []

    def compile_slowly(label_type):
        started.append(label_type)
        event.broadcast(event.Event("numba:compile", event.EventStatus.START))
        assert may_end.wait(DEADLINE_S)
        return compile_decode(label_type)

    monkeypatch.setattr(entry, "compile_decode", compile_slowly)
    monkeypatch.setattr(compilation, "_compilations", {})
    may_end.started = started
    yield may_end
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "compile decode":
            thread.join(DEADLINE_S)


def test_numpy_decodes_until_the_kernel_is_compiled(slow_compiler):
    logits = scene_logits(30, 10, 12)
    early = decode.upsample_argmax_confidence(logits, (80, 96))
    assert decode.backend() == "numpy"
    slow_compiler.set()
    assert decode.backend(wait=True) == "numba"
    late = decode.upsample_argmax_confidence(logits, (80, 96))
    np.testing.assert_array_equal(early[0], late[0])
    assert np.abs(early[1].astype(int) - late[1]).max() <= 1


def test_threads_that_decode_at_once_start_one_compiler_for_each_type(slow_compiler):
    few, many = scene_logits(30, 5, 5), scene_logits(300, 5, 5)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: decode.upsample_argmax((few, many)[n % 2], (20, 20)), range(32)))
    assert sorted(map(str, slow_compiler.started)) == ["uint16", "uint8"]
    slow_compiler.set()
    assert decode.backend(wait=True) == "numba"
    for n, labels in enumerate(results):
        np.testing.assert_array_equal(labels, decode.upsample_argmax((few, many)[n % 2], (20, 20)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_the_compiler_works_has_its_own(slow_compiler):
    decode.upsample_argmax(scene_logits(30, 10, 12), (80, 96))

    def work():
        slow_compiler.set()
        os._exit(0 if decode.backend(wait=True) == "numba" else 1)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    child.kill()
    child.join()
    assert child.exitcode == 0


def test_a_kernel_from_the_cache_is_waited_for(monkeypatch):
    entry.compile_decode(np.dtype(np.uint8))  # it is in the cache from here on

    load = entry.compile_decode.__wrapped__

    def load_late(label_type):
        time.sleep(0.2)
        return load(label_type)

    monkeypatch.setattr(entry, "compile_decode", load_late)
    monkeypatch.setattr(compilation, "_compilations", {})
    assert decode.backend() == "numpy", "asking waits for nothing"
    decode.upsample_argmax(np.ones((1, 2, 1, 1), np.float32), (1, 1))
    assert decode.backend() == "numba"


def test_numpy_stays_where_the_kernel_cannot_be_compiled(monkeypatch, caplog):
    def fail(label_type):
        raise SystemError("no compiler for this processor")

    monkeypatch.setattr(entry, "compile_decode", fail)
    monkeypatch.setattr(compilation, "_compilations", {})
    with caplog.at_level(logging.WARNING):
        assert decode.backend(wait=True) == "numpy"
    assert "no compiler for this processor" in caplog.text
    assert decode.upsample_argmax(np.ones((1, 2, 1, 1), np.float32), (1, 1)).item() == 0


@pytest.mark.parametrize("fault", ["labels", "confidence"])
def test_a_kernel_that_decodes_otherwise_than_numpy_is_not_used(monkeypatch, caplog, fault):
    right = numba_form.decode

    def wrong(logits, grid, labels, confidence):
        right(logits, grid, labels, confidence)
        spoilt = labels if fault == "labels" else confidence
        spoilt[:] = (spoilt + 2) % 40

    monkeypatch.setattr(numba_form, "decode", wrong)
    monkeypatch.setattr(compilation, "_compilations", {})
    with caplog.at_level(logging.WARNING):
        assert decode.backend(wait=True) == "numpy"
    assert "the compiled kernel decodes otherwise than NumPy" in caplog.text


#: Parameters of one of the kernel's algorithms.
ROWS = "logits, rows, columns, labels, confidence, with_confidence, part, parts"


class TestHashOfCode:
    SOURCE = '"""What it does."""\nLANES = 16\n\n\ndef double(x):\n    """Twice."""\n    return 2 * x\n'

    @pytest.mark.parametrize(
        "same",
        [
            SOURCE.replace("Twice", "Double of it"),
            SOURCE.replace("2 * x", "2 * x  # exactly"),
            SOURCE.replace("\n\n\n", "\n"),
            SOURCE.replace('    """Twice."""\n', ""),
        ],
        ids=["docstring", "comment", "layout", "no docstring"],
    )
    def test_comments_docstrings_and_layout_leave_it(self, same):
        assert entry.hash_code([same]) == entry.hash_code([self.SOURCE])

    @pytest.mark.parametrize("change", [("2 * x", "3 * x"), ("16", "8"), ("double", "twice")])
    def test_other_code_changes_it(self, change):
        assert entry.hash_code([self.SOURCE.replace(*change)]) != entry.hash_code([self.SOURCE])


@pytest.fixture
def quick_kernel(tmp_path):
    """The folder of a copy of the kernel with algorithms that compile at once."""
    package = tmp_path / "dinov3_seg_ros" / "decode"
    shutil.copytree(ROOT / "dinov3_seg_ros" / "support", tmp_path / "dinov3_seg_ros" / "support")
    shutil.copytree(
        ROOT / "dinov3_seg_ros" / "decode" / "numba_kernel",
        package / "numba_kernel",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("grid.py", "kernel_cache.py"):
        shutil.copy(ROOT / "dinov3_seg_ros" / "decode" / name, package)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    cells = "logits, rows, columns, labels, confidence, with_confidence, reach, part, parts"
    _write_stub(package / "numba_kernel" / "by_cells.py", "decode_cells", cells, 1)
    _write_stub(package / "numba_kernel" / "by_rows.py", "decode_rows", ROWS, 2)
    return package / "numba_kernel"


def test_the_cache_on_disk_follows_the_code_of_every_file_of_the_kernel(quick_kernel, tmp_path):
    """numba itself looks only at the entry's file."""
    callee = quick_kernel / "by_rows.py"
    assert _compile_and_run(tmp_path) == "compiled 2"
    os.utime(callee, (1, 1))
    callee.write_text(callee.read_text() + "# a comment\n")
    assert _compile_and_run(tmp_path) == "loaded 2"
    _write_stub(callee, "decode_rows", ROWS, 3)
    assert _compile_and_run(tmp_path) == "compiled 3"


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*.nbi", "cut"),
        ("*.nbc", "cut"),
        ("*.nbi", "a block of zeros"),
        ("*.nbc", "a block of zeros"),
        ("*.sha256.json", "cut"),
    ],
)
def test_a_damaged_cache_on_disk_is_never_loaded_and_made_anew(quick_kernel, tmp_path, pattern, damage):
    """numba loads what it finds: a block of zeros, as a power cut leaves it, ends the process."""
    _compile_and_run(tmp_path)
    (path,) = (quick_kernel / "__pycache__").glob(pattern)
    content, zeros = path.read_bytes(), bytes(100)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + (b"" if damage == "cut" else zeros + content[middle + len(zeros) :]))
    assert _compile_and_run(tmp_path) == "compiled 2"
    assert _compile_and_run(tmp_path) == "loaded 2"


def _write_stub(path: Path, name: str, parameters: str, label: int) -> None:
    path.write_text(
        "from dinov3_seg_ros.decode.numba_kernel.shared import compiled\n\n\n"
        f"@compiled\ndef {name}({parameters}):\n    labels[:] = {label}\n"
    )


def _compile_and_run(folder: Path) -> str:
    code = (
        "import numpy as np\n"
        "from dinov3_seg_ros.decode.grid import plan_grid\n"
        "from dinov3_seg_ros.decode.numba_kernel.entry import compile_decode\n"
        "kernel = compile_decode(np.dtype(np.uint8))\n"
        "rows, columns = plan_grid((1, 2, 1, 1), (1, 1), None).axes\n"
        "labels, confidence = np.zeros((1, 1, 1), np.uint8), np.zeros((1, 0, 0), np.uint8)\n"
        "kernel(np.zeros((1, 2, 1, 1), np.float32), rows, columns, labels, confidence, False, 0.0, False, 0, 1)\n"
        "print('loaded' if kernel.stats.cache_hits else 'compiled', labels.item())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _cache_of_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])


def _cache_that_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    def load(*_: object) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr(caching.IndexDataCacheFile, "load", load)


@pytest.mark.parametrize("break_cache", [_cache_of_no_folder, _cache_that_is_damaged])
def test_without_a_usable_cache_the_kernel_is_compiled_in_memory(monkeypatch, caplog, break_cache):
    def quickly_compiled(
        logits, rows, columns, labels, confidence, with_confidence, reach, by_cells, part, parts
    ) -> None:
        labels[0, 0, 0] = 7

    monkeypatch.setattr(entry, "make_decode_part", lambda code_hash: quickly_compiled)
    monkeypatch.setattr(numba_form, "compile_decode", entry.compile_decode.__wrapped__)
    monkeypatch.setattr(decode.upsampling, "host_decoder", lambda label_type: numba_form.decode)
    break_cache(monkeypatch)
    with caplog.at_level(logging.WARNING):
        labels = decode.upsample_argmax(np.zeros((1, 8, 1, 1), np.float32), (1, 1))
    assert labels.item() == 7
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_a_process_that_ends_while_the_kernel_is_compiled_ends_quietly(tmp_path):
    code = (
        "import numpy as np\n"
        "from dinov3_seg_ros.decode.compilation import host_decoder\n"
        "host_decoder(np.dtype(np.uint8))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
