"""The files below a folder, listed once."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import logging
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path, PurePosixPath

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, unread_pictures
from dinov3_seg_ros.support.errors import DatasetError, utf8_fault
from training.data.reading.paths import (
    Paths,
    folder_ends,
    folders_of_images,
    least_end,
    parent,
    path_parts,
    plain,
    stem,
)

_logger = logging.getLogger(__name__)

#: What `training.select` writes beside the images that it chose.
SELECTION_FILE, SHEET_FILE = "selection.json", "contact_sheet.png"

_UNFINISHED_SUFFIXES = (".part", ".partial", ".crdownload", ".download", ".aria2", ".filepart")
_NEVER_EMPTY_SUFFIXES = (".json", ".jsonl", ".csv", ".yaml", ".yml", ".lst", ".parquet", ".arrow")
_LABEL_SUFFIXES = (".txt", ".xml")
# Hidden folders, and those of macOS, of Windows, of Linux and of network storage.
_FOREIGN_FOLDERS = (".", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "#recycle")


class Tree:
    """All files below a folder, as paths relative to it with ``/``, in the order of their names.

    Hidden files and folders, what operating systems add to folders and archives, and what is no file, such as a pipe,
    are left out. Links to folders are followed, except to a folder that holds them.

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
            where = "" if self.root.is_absolute() else f" in {Path.cwd()}"
            raise DatasetError(f"{root}: there is no such folder{where}; set data.root to the folder of the data set")
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
            shown = (name for name in names if not name.startswith("."))
            seen = [f"{prefix}{name}" for name in shown if not _is_special(os.path.join(folder, name))]
            if fault := utf8_fault(seen):
                raise DatasetError(f"the name of the file {fault}")
            yield from seen

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
    def _names(self) -> frozenset[str]:
        return frozenset(part for name in self.images for part in plain(name).split("/"))

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

    def find_images(self, written: Iterable[str], labels: str, first: Sequence[str] = ()) -> list[str | None]:
        """The image files that a file names by paths of its own machine, by parts of them, or by their names.

        Args:
            written: paths as the file has them.
            labels: the file, relative to the root. Images in `folders_of_images` and below its folder are preferred.
            first: folders that are preferred to these, best first.

        Returns:
            For each path the file that shares the longest end of it. None where there is none, where several are as
            good, or where a file elsewhere is another image. It is another one if the folder that the path names holds
            images, or if the path may as well mean a folder in which preferred ones of other paths lie.
        """
        near, folder = [*map(plain, [*first, *folders_of_images(labels)])], plain(parent(labels))
        paths = [self._spelt_here(path.split("?")[0]) for path in written]
        found = [self._find_image(path, near, folder) for path in paths]
        own = {PurePosixPath(name).parent for name, preferred in found if name and preferred}
        return [
            None if name and not preferred and _is_anothers(name, path, own) else name
            for (name, preferred), path in zip(found, paths, strict=True)
        ]

    def _spelt_here(self, written: str) -> str:
        """A path, whose names are unquoted where they are quoted as in addresses, and nothing here has such a name."""
        names = (
            urllib.parse.unquote(name) if "%" in name and plain(name) not in self._names else name
            for name in path_parts(written)
        )
        return "/".join(path_parts("/".join(names)))

    def _find_image(self, path: str, near: Iterable[str], folder: str) -> tuple[str | None, bool]:
        """An image file, and whether it is preferred to those elsewhere."""
        shared = {name: _common_end(name, path) for name in self._by_basename.get(plain(path.rpartition("/")[2]), [])}
        longest = max(shared.values(), default=0)
        if longest < least_end(path, self._folder_ends):
            return None, False
        equal = [name for name, length in shared.items() if length == longest]
        preferred = _near(equal, near, longest) or _below(equal, folder)
        best = preferred or equal
        best = [name for name in best if PurePosixPath(name).name == PurePosixPath(path).name] or best
        return best[0] if len(best) == 1 else None, bool(preferred)


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in its subfolders, sorted by path; hidden ones are left out, as in `Tree`.

    The contact sheet of a selection is none of them.

    Raises:
        DatasetError: there are none; or see `Tree`.
    """
    tree = Tree(folder)
    sheets = {f"{name.removesuffix(SELECTION_FILE)}{SHEET_FILE}" for name in tree.named(SELECTION_FILE)}
    images = [name for name in tree.images if name not in sheets]
    unread = unread_pictures(folder, tree.files)
    if not images:
        raise DatasetError(unread or f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of images")
    if unread:
        _logger.warning(unread)
    return sorted(map(tree.path, images))


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename} cannot be read: {error.strerror}; let this user read it") from error


def _is_special(path: str) -> bool:
    """Whether a path leads to a pipe, a socket or a device, whose reader would wait; a link may lead nowhere."""
    return not os.path.isfile(path) and os.path.exists(path)


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


def _near(names: Sequence[str], folders: Iterable[str], most: int) -> list[str]:
    """Those files that lie at most so many names below the first folder of which there are any."""
    for folder in folders:
        depth = folder.count("/") + bool(folder) + most
        inside = [name for name in _below(names, folder) if name.count("/") < depth]
        if inside:
            return inside
    return []


def _below(names: Sequence[str], folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    return [name for name in names if plain(name).startswith(start)]


def _is_anothers(name: str, path: str, own: Set[PurePosixPath]) -> bool:
    """Whether a file lies outside all folders of own images, one of which the path may as well mean."""
    file, shared = PurePosixPath(name), _common_end(name, path)
    return own.isdisjoint(file.parents) and any(_common_end(str(folder / file.name), path) >= shared for folder in own)
