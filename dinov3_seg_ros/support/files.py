"""Files that are never half written: they are written to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.errors import OutputError

# From Linux's fcntl.h and fs.h.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: How names of temporary files and folders end, for `glob`; another hidden name may be the user's.
RANDOM_END = "[a-z0-9_]" * 8


@contextlib.contextmanager
def replacing_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success rename it over ``path``, on error remove it.

    A reader sees the old file or the new one, never a part of one. The temporary name keeps the suffix of ``path``,
    since many writers choose the format by it. A link stays, and the file that it leads to is replaced; a device or a
    pipe, such as ``/dev/stdout``, stays too, and gets the content.

    Args:
        path: the file to write; its folder is made if missing.
        durable: whether this also holds after a power cut, which takes some milliseconds.
    """
    path = Path(path)
    if stays(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with open(temporary, "rb") as content, open(path, "wb") as stream:
                shutil.copyfileobj(content, stream)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
        temporary = path.parent / f".{path.stem}.{secrets.token_hex(4)}{path.suffix}"
        temporary.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        with _naming(path, temporary):
            yield temporary
        if durable:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        os.chmod(temporary, mode)  # a writer may have made the file anew
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def find_temporaries(path: str | os.PathLike[str]) -> list[Path]:
    """Temporary names of ``path``: what a killed process left there, or another one is writing now."""
    path = Path(path)
    stem, name, suffix = map(glob.escape, (path.stem, path.name, path.suffix))
    files = [left for left in path.parent.glob(f".{stem}.{RANDOM_END}{suffix}") if left.is_file()]
    folders = [left for end in ("", "old.") for left in path.parent.glob(f".{name}.{end}{RANDOM_END}") if left.is_dir()]
    return [left for left in (*files, *folders) if not left.is_symlink()]


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove `find_temporaries` of ``path``. Nobody may be writing it."""
    for left in find_temporaries(path):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it takes the place of ``path``.

    On Linux the two folders change places in one step, so ``path`` always holds a whole one. Elsewhere the old folder
    is moved aside first and removed last, so an error at any point leaves one of the two whole. A link stays, and the
    folder that it leads to is replaced.

    Raises:
        NotADirectoryError: ``path`` is a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        temporary.mkdir()
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        with _naming(path, temporary):
            yield temporary
        # Some writers make files that only the owner can read, but another user may run the robot.
        for entry in (temporary, *temporary.rglob("*")):
            os.chmod(entry, mode if entry.is_dir() else mode & 0o666)
            if entry.is_file():
                with open(entry, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists() and _exchange(temporary, path):
            shutil.rmtree(temporary, ignore_errors=True)
            return
        aside = None
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
            os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except BaseException:
            if aside is not None:
                os.rename(aside, path)
            raise
        finally:
            if aside is not None:
                shutil.rmtree(aside.parent, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder.

    The lock ends with the process that holds it, however the process ends. The file stays.

    Args:
        path: an existing folder; or a file, which is made if missing.
        wait: whether to wait while another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is false.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_if_possible(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a file or folder, see `locked`; or none, where the file cannot be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(path))
        yield


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON; a reader sees the old file or the new one."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def lies_in(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is ``folder`` or lies below it, also by links. Neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def check_outside(output: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Raise OutputError where ``output`` would lie in the folder ``source`` that is read; a file has nothing in it."""
    if Path(source).is_dir() and lies_in(output, source):
        raise OutputError(
            f"{output} lies in {source}, so the next run would read what this one writes; choose a folder outside of it"
        )


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def why_not_whole(path: Path, digest: str, listed_in: str, again: str) -> str:
    """What is wrong with a file of this SHA-256, which ``listed_in`` gives, and what to do; empty where it is whole.

    ``again`` says how to get a whole copy.
    """
    try:
        found = sha256_of_file(path) if path.is_file() else None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}; let this user read it, or {again}"
    if found is None:
        return f"{path} is missing; {again}"
    if found != digest:
        return (
            f"{path} is damaged or was changed: its SHA-256 differs from the one in {listed_in}; {again} "
            "(with git, check that the file is not a Git LFS pointer)"
        )
    return ""


def sha256_of_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value of JSON types; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cache_folder(name: str) -> Path:
    """Return the folder of the user's caches: ``$XDG_CACHE_HOME/dinov3_seg_ros/<name>``, by default in ``~/.cache``.

    The folder need not exist. For a user without a home, as in some containers, it cannot be written.
    """
    caches = os.environ.get("XDG_CACHE_HOME")
    if not caches:
        try:
            caches = str(Path.home() / ".cache")
        except RuntimeError:
            caches = os.devnull
    return Path(caches) / "dinov3_seg_ros" / name


def is_writable(folder: Path) -> bool:
    """Whether files can be written into a folder, or where it does not exist, whether it can be made."""
    # Path.exists raises where this user may not look, as into another's home.
    nearest = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)
    return nearest is not None and nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def stays(path: Path) -> bool:
    """Whether a path leads to what no file replaces: a device, a pipe, or what a process has open (``/dev/stdout``)."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return True
    target = path.parent / os.readlink(path) if path.is_symlink() else path
    return os.path.realpath(target.parent).startswith("/proc/")


@contextlib.contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make errors name ``path`` in place of its temporary; None: one that could not be made."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike):
            named = Path(error.filename)
            if temporary is None:
                error.filename = str(path)
            elif named.is_relative_to(temporary):
                error.filename = str(path / named.relative_to(temporary))
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    status: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return status == 0
