"""The files below a folder, listed once."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import functools
import io
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.yaml_text import parse_yaml
from training.data.base import Split

Content = TypeVar("Content")

#: What reading a file raises whose content has another form than expected.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)

#: What `training.select` writes beside the images that it chose.
SELECTION_FILE, SHEET_FILE = "selection.json", "contact_sheet.png"

#: Names of folders and lists that stand for a split.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


# Regions of one image take more than the module's own limit, 131,072 characters; a C long has 32 bits on some systems.
_LONGEST_CELL = 2**31 - 1
_UNFINISHED_SUFFIXES = (".part", ".partial", ".crdownload", ".download", ".aria2", ".filepart")
_NEVER_EMPTY_SUFFIXES = (".json", ".jsonl", ".csv", ".yaml", ".yml", ".lst", ".parquet", ".arrow")
_LABEL_SUFFIXES = (".txt", ".xml")
# Hidden folders, and those of macOS, of Windows, of Linux and of network storage.
_FOREIGN_FOLDERS = (".", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "#recycle")
# Of test_drive_3 nobody knows that it is no sequence, so that only words for images and masks may stand beside.
_ROLE = "images?|imgs?|masks?|labels?|annotations?|annot|rgb|gt"
_SPLIT_FOLDER = re.compile(rf"(?:(?:{_ROLE})[_-]?)?({'|'.join(SPLIT_NAMES)})(?:20\d\d)?(?:[_-]?(?:{_ROLE}))?")


class Tree:
    """All files below a folder, as paths relative to it with ``/``, in the order of their names.

    Hidden files and folders, and what operating systems add to folders and archives, are left out. Links to folders are
    followed, except to a folder that holds them.

    Attributes:
        root: the folder.
        files: relative paths.

    Raises:
        DatasetError: there is no such folder, one of its folders cannot be read, or the name of a file is not in UTF-8.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if self.root.is_file():
            raise DatasetError(f"{root} is a file; unpack it, and set data.root to the folder that holds the images")
        if not self.root.is_dir():
            raise DatasetError(f"{root}: there is no such folder; set data.root to the folder of the data set")
        self.files = sorted(self._walk())

    def _walk(self) -> Iterator[str]:
        within: dict[str, frozenset[str]] = {}  # each folder, and those above it, by their real paths
        for folder, folders, names in os.walk(self.root, followlinks=True, onerror=_refuse):
            real, above = os.path.realpath(folder), within.get(os.path.dirname(folder), frozenset())
            if real in above:
                folders.clear()
                continue
            within[folder] = above | {real}
            folders[:] = [name for name in folders if not name.startswith(_FOREIGN_FOLDERS)]
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            prefix = "" if below == "." else f"{below}/"
            yield from (_in_utf8(f"{prefix}{name}") for name in names if not name.startswith("."))

    def path(self, name: str) -> Path:
        """Path of a file or folder."""
        return self.root / name

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Files of these suffixes, in upper or lower case."""
        return [name for name in self.files if os.path.splitext(name)[1].lower() in suffixes]

    def named(self, *names: str) -> list[str]:
        """Files of these names, in any folder; those nearest to the root first."""
        found = [name for name in self.files if PurePosixPath(name).name in names]
        return sorted(found, key=lambda name: (name.count("/"), name))

    def matching(self, pattern: str) -> list[str]:
        """Files whose path, or the end of it, matches a pattern such as ``*_image.png`` or ``rgb/*.png``.

        A pattern without ``*``, ``?`` and ``[`` may also be the name of a folder, or the end of its path: then all
        files in folders below it match.
        """
        parts = [part for part in pattern.strip("/").split("/") if part != "."]
        if any(sign in pattern for sign in "*?["):
            return [name for name in self.files if _ends_match(name.split("/"), parts)]
        return [
            name
            for name in self.files
            if name.split("/")[-len(parts) :] == parts or _holds(name.split("/")[:-1], parts)
        ]

    @functools.cached_property
    def images(self) -> list[str]:
        """Files of image formats, masks among them."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @functools.cached_property
    def image_of_stem(self) -> dict[str, str]:
        """Image file by its path without suffix."""
        return {stem(name): name for name in self.images}

    @functools.cached_property
    def _by_basename(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(plain(PurePosixPath(name).name), []).append(name)
        return found

    @functools.cached_property
    def _by_path(self) -> Paths:
        return Paths(self.images)

    @functools.cached_property
    def _folder_ends(self) -> frozenset[str]:
        return folder_ends(self.images)

    def check_complete(self) -> None:
        """Look for what an interrupted download or export leaves.

        Raises:
            DatasetError: a file is unfinished, leads nowhere, or is empty and should not be.
        """
        unfinished = self.with_suffix(*_UNFINISHED_SUFFIXES)
        if unfinished:
            raise DatasetError(
                f"{self.path(unfinished[0])} is an unfinished download ({len(unfinished)} in all); finish it, or "
                "remove it"
            )
        of_labels = self.with_suffix(*_NEVER_EMPTY_SUFFIXES, *_LABEL_SUFFIXES)
        nowhere = [name for name in of_labels if not self.path(name).exists()]
        if nowhere:
            raise DatasetError(
                f"{self.path(nowhere[0])} is a link to a file that is not there ({len(nowhere)} in all); get the file, "
                "or remove the link"
            )
        empty = [name for name in self.with_suffix(*_NEVER_EMPTY_SUFFIXES) if self.path(name).stat().st_size == 0]
        if empty:
            raise DatasetError(f"{self.path(empty[0])} is empty ({len(empty)} in all); get it anew, or remove it")

    def image_at(self, path: str) -> str | None:
        """The image file of a path relative to the root, see `Paths.find`; None where there is none."""
        return self._by_path.find(path)

    def images_ending(self, path: str) -> list[str]:
        """The image files whose paths end with a path, as file systems compare names."""
        length = len(path_parts(path))
        named_like = self._by_basename.get(plain(PurePosixPath(path).name), [])
        return [name for name in named_like if _common_end(name, path) == length]

    def find_image(self, written: str, near: Iterable[str] = ()) -> str | None:
        """The image file that an annotation names by a path of its own machine, by a part of it, or by its name.

        Args:
            written: path as the annotation has it.
            near: folders that are preferred, best first, such as that of the annotation.

        Returns:
            The file that shares the longest end of the path; None where there is none, where several are as good, or
            where the folder that the path names holds other images: then a file elsewhere is another image.
        """
        path = "/".join(path_parts(written.split("?")[0]))
        shared = {name: _common_end(name, path) for name in self._by_basename.get(plain(path.rpartition("/")[2]), [])}
        longest = max(shared.values(), default=0)
        if longest < least_end(path, self._folder_ends):
            return None
        best = _nearest([name for name, length in shared.items() if length == longest], near, longest)
        best = [name for name in best if PurePosixPath(name).name == PurePosixPath(path).name] or best
        return best[0] if len(best) == 1 else None


class Paths:
    """Finds paths as file systems compare names: the same, or the only one that differs in case and accents alone."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_plain: dict[str, list[str]] = {}
        for path in paths:
            self._by_plain.setdefault(plain(path), []).append(path)

    def find(self, path: str) -> str | None:
        """The path among the others; None where there is none, or several are as good."""
        same = self._by_plain.get(plain(path), [])
        return path if path in same else same[0] if len(same) == 1 else None


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in its subfolders, sorted by path; hidden ones are left out, as in `Tree`.

    The contact sheet of a selection is none of them.

    Raises:
        DatasetError: there are none; or see `Tree`.
    """
    tree = Tree(folder)
    sheets = {f"{name.removesuffix(SELECTION_FILE)}{SHEET_FILE}" for name in tree.named(SELECTION_FILE)}
    images = [name for name in tree.images if name not in sheets]
    if not images:
        raise DatasetError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of images")
    return sorted(map(tree.path, images))


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename} cannot be read: {error.strerror}; let this user read it") from error


def _in_utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode(errors="backslashreplace").decode()
        raise DatasetError(
            f"the name of the file {shown} is not in UTF-8, which other programs could not read; rename it, such as "
            "with convmv"
        ) from error
    return name


def plain(name: str) -> str:
    """A name without what file systems treat differently: upper and lower case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def path_parts(path: str) -> list[str]:
    """The names in a path of any system, without those that stand for a folder itself or the one above it."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def path_ends(path: str) -> Iterator[str]:
    """A path, then without its first folder, and so on to the name alone."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def folder_ends(files: Iterable[str]) -> frozenset[str]:
    """The ends of the paths of all folders that hold the files, as file systems compare names."""
    folders = {parent(plain(name)) for name in files}
    return frozenset(end for folder in folders if folder for end in path_ends(folder))


def least_end(path: str, known: Container[str]) -> int:
    """How many names at its end a path must share with a file to mean it: one more than are of a known folder.

    Where the folder that the path names is here, a file of the same name in another folder is another file.

    Args:
        path: as an annotation or a list has it.
        known: see `folder_ends`.
    """
    own_folder = next((end for end in path_ends(plain(parent(path))) if end in known), "")
    return len(path_parts(own_folder)) + 1


def parent(name: str) -> str:
    """Folder of a file, relative to the root; empty for the root."""
    return name.rpartition("/")[0]


def stem(name: str) -> str:
    """Path of a file without its suffix."""
    return os.path.splitext(name)[0]


def split_of(name: str) -> Split | None:
    """The split that the folders of a path name, such as ``train`` or ``val_images``; the first one decides."""
    return next(filter(None, map(split_named, name.split("/")[:-1])), None)


def split_named(word: str) -> Split | None:
    """The split that the name of a folder or of a list stands for; None where it stands for none."""
    found = _SPLIT_FOLDER.fullmatch(word.lower())
    return SPLIT_NAMES[found[1]] if found else None


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; get it anew, or let this user read it") from error


def read_text(path: Path) -> str:
    """Text of a file, UTF-8 with or without a byte order mark.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; get it anew, or let this user read it") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}; export it anew") from error


def read_csv(path: Path) -> list[list[str]]:
    """Rows of a CSV file that are not empty.

    Raises:
        DatasetError: it cannot be read, or is no CSV.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as CSV: {error}; export it anew") from error


def read_csv_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the names in its first row; a short row lacks the last of them.

    Raises:
        DatasetError: see `read_csv`.
    """
    names, *rows = read_csv(path) or [[]]
    return [dict(zip(names, row, strict=False)) for row in rows]


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        DatasetError: it cannot be read, is no YAML, or has a key twice.
    """
    try:
        return parse_yaml(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as YAML: {error}") from error


def read_once(read: Callable[[Path], Content]) -> Callable[[Path], Content]:
    """Let a function read a file once in a process while that file stays as it is."""

    @functools.cache
    def read_version(path: Path, _modified: int) -> Content:
        return read(path)

    @functools.wraps(read)
    def read_or_remember(path: Path) -> Content:
        return read_version(path, path.stat().st_mtime_ns)

    return read_or_remember


@contextlib.contextmanager
def laid_out_like(form: str, path: Path) -> Iterator[None]:
    """Turn what goes wrong in a ``with`` block when a file has another form than it should into a DatasetError."""
    try:
        yield
    except DAMAGED as error:
        raise DatasetError(f"{path} is not laid out like {form} ({error!r}); export it anew") from error


def as_text(value: Any) -> str:
    """The value of a file's key that must be text.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def check_ids(listed: Iterable[Mapping[str, Any]], what: str) -> None:
    """Raise ValueError where two entries have one ``id``, as in files that were put together without new ids."""
    counts = Counter(str(entry["id"]) for entry in listed)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{counts[twice]} {what} have the id {twice}")


def _ends_match(path: list[str], pattern: list[str]) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase("/".join(path), "/".join(pattern).replace("**/", "*").replace("**", "*"))
    return len(path) >= len(pattern) and all(
        fnmatch.fnmatchcase(part, wanted)
        for part, wanted in zip(path[len(path) - len(pattern) :], pattern, strict=True)
    )


def _holds(folders: list[str], wanted: list[str]) -> bool:
    """Whether folders hold the wanted ones, one after the other."""
    return any(folders[index : index + len(wanted)] == wanted for index in range(len(folders)))


def _common_end(path: str, other: str) -> int:
    """Number of names that the ends of two paths share, as file systems compare names."""
    pairs = zip(reversed(plain(path).split("/")), reversed(plain(other).split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _nearest(names: list[str], folders: Iterable[str], most: int) -> list[str]:
    """Those files that lie at most so many names below the first folder of which there are any, or else all."""
    for folder in map(plain, folders):
        start = f"{folder}/" if folder else ""
        depth = start.count("/") + most
        inside = [name for name in names if plain(name).startswith(start) and name.count("/") < depth]
        if inside:
            return inside
    return names
