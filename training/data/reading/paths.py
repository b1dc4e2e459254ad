"""Paths relative to a folder, with ``/``: their parts, the splits that they name, and which are the same."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator

from training.data.base import Split

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

# Of test_drive_3 nobody knows that it is no sequence, so that only words for images and masks may stand beside.
_ROLE = "images?|imgs?|masks?|labels?|annotations?|annot|rgb|gt"
_WORDS = re.compile(r"[_\-.]")
_SPLIT_FOLDER = re.compile(rf"(?:(?:{_ROLE})[_-]?)?({'|'.join(SPLIT_NAMES)})(?:20\d\d)?(?:[_-]?(?:{_ROLE}))?")


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


def split_of_file(name: str) -> Split | None:
    """The split that a file of labels is of: its folders or a word in its name say so."""
    words = _WORDS.split(stem(name).rpartition("/")[2].lower())
    return split_of(name) or next(filter(None, map(split_named, words)), None)


def folders_of_images(name: str) -> list[str]:
    """Where the images of a file of labels may lie, the likeliest first."""
    folder, top = parent(name), parent(parent(name))
    own = stem(name).rpartition("/")[2]
    # CVAT writes images/site_a for instances_site_a.json.
    ends = [own, *(own[found.end() :] for found in _WORDS.finditer(own))]
    words = list(dict.fromkeys(filter(None, [*ends, *_WORDS.split(own)])))
    below = [f"{top}/images".strip("/"), *(f"{top}/images/{word}".strip("/") for word in words)]
    return [folder, f"{folder}/images".strip("/"), *below, *(f"{top}/{word}".strip("/") for word in words), top]


def split_named(word: str) -> Split | None:
    """The split that the name of a folder or of a list stands for; None where it stands for none."""
    found = _SPLIT_FOLDER.fullmatch(word.lower())
    return SPLIT_NAMES[found[1]] if found else None
