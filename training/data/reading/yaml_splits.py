"""The splits that YAML files of Ultralytics' form name: by folders, or by text files that list images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.content import read_text
from training.data.reading.paths import SPLIT_NAMES, Paths, parent, path_ends, path_parts, plain, split_of
from training.data.reading.tree import Tree

_LIST = ".txt"
#: A list of these splits that is not there is an error; a test split often comes without its images.
_NEEDED: tuple[Split, ...] = ("train", "val")


@dataclass
class YamlSplits:
    """Which split each image is in. What several splits name is in the first of train, val and test.

    Attributes:
        by_list: the splits for which each YAML file has a list, the files in the deepest folders first; only images
            that the list names are in them.
        folders: the split of each folder, whose name ends with a slash.
        listed: the split of each image that a list names.
        absent: number of lines that name no image of the folder.
    """

    by_list: dict[str, set[Split]] = field(default_factory=dict)
    folders: dict[str, Split] = field(default_factory=dict)
    listed: dict[str, Split] = field(default_factory=dict)
    absent: int = 0

    def of(self, image: str) -> Split | None:
        """The split of an image; None where it is in none."""
        if image in self.listed:
            return self.listed[image]
        split = self._of_folder(image) or split_of(image)
        return None if split in self.by_list.get(self.decider(image), ()) else split

    def name(self, image: str) -> bool:
        """Whether the file names an image, or a folder above it."""
        return image in self.listed or self._of_folder(image) is not None

    def decider(self, name: str) -> str:
        """The YAML file that decides on a file or folder: the deepest above it, or else the nearest to the root."""
        above = (file for file in self.by_list if name.startswith(f"{parent(file)}/"))
        return next(above, next(reversed(self.by_list), ""))

    def _of_folder(self, image: str) -> Split | None:
        return next((split for folder, split in self.folders.items() if image.startswith(folder)), None)


def read_splits(tree: Tree, configurations: Mapping[str, Mapping[str, object]]) -> YamlSplits:
    """Find what the keys ``train``, ``val`` and ``test`` of YAML files name.

    Paths come from other machines. An end of the path of a folder or list is looked for below the YAML file's folder
    first, then below the root; an image is looked for beside its list first, else that is taken whose path ends alike.
    Each of several files decides on what lies below its own folder. One of which a file above it names a part decides
    on nothing.

    Args:
        tree: the folder.
        configurations: the content of each YAML file in it.

    Raises:
        DatasetError: a list of images for training or validation is missing or empty, or names no image of the folder.
    """
    starts = (start for image in tree.images for start in itertools.accumulate(image.split("/"), "{}/{}".format))
    known = Paths({*starts, *tree.with_suffix(_LIST)})
    found = YamlSplits({name: set() for name in _deciding(tree, known, configurations)})
    decided = set(map(found.decider, tree.images))
    for file in [name for name in found.by_list if name in decided]:
        for path, split, ends in _paths(configurations[file]):
            places = (_below(known, folder, ends) for folder in (parent(file), ""))
            here = next((place for place in places if place and found.decider(f"{place}/") == file), None)
            if not _is_list(path):
                if here is not None:
                    found.folders.setdefault(f"{here}/", split)
                continue
            try:
                if here is None:
                    raise DatasetError(f"{file} names {path}, which is not in {tree.path(parent(file))}; copy it there")
                lines, images = _images_of_list(tree, found, file, here)
            except DatasetError:
                if split in _NEEDED:
                    raise
                continue
            found.by_list[file].add(split)
            found.absent += lines - len(images)
            for image in images:
                found.listed.setdefault(image, split)
    return found


def _deciding(tree: Tree, known: Paths, configurations: Mapping[str, Mapping[str, object]]) -> list[str]:
    """One YAML file of each folder, the deepest first, without those of which a file above them names a part."""
    deepest_first = sorted(configurations, key=lambda name: (name.count("/"), name), reverse=True)
    of_folder = {parent(name): name for name in deepest_first}
    for folder, file in reversed([*of_folder.items()]):
        inner = [other for other in of_folder if other != folder and (not folder or other.startswith(f"{folder}/"))]
        if folder not in of_folder or not inner:
            continue
        named = {f"{name}/" for name in _named_below(tree, known, folder, configurations[file])}
        for other in inner:
            if any(name.startswith(f"{other}/") or f"{other}/".startswith(name) for name in named):
                del of_folder[other]
    return list(of_folder.values())


def _named_below(tree: Tree, known: Paths, folder: str, content: Mapping[str, object]) -> Iterator[str]:
    """The folders, the lists and their images that a YAML file names by the whole path from its folder."""
    for path, _, ends in _paths(content):
        here = _below(known, folder, ends)
        if here is None:
            continue
        yield here
        lines = _lines(tree, here) if _is_list(path) else []
        yield from filter(None, (_below(known, folder, path_ends("/".join(path_parts(line)))) for line in lines))


def _paths(content: Mapping[str, object]) -> Iterator[tuple[str, Split, list[str]]]:
    """Each path of a YAML file, its split, and the ends of the path by which its folder or list may be known."""
    base = path_parts(str(content.get("path") or ""))
    for key, split in SPLIT_NAMES.items():
        written = content.get(key)
        for path in written if isinstance(written, list) else [written]:
            if isinstance(path, str) and (parts := path_parts(path)):
                whole = [*base, *parts]
                # One word is too little to know a folder of another path by.
                last = len(whole) if _is_list(path) else max(len(base) + 1, len(whole) - 1)
                yield path, split, ["/".join(whole[start:]) for start in range(last)]


def _is_list(path: str) -> bool:
    return path.lower().endswith(_LIST)


def _below(known: Paths, folder: str, ends: Iterable[str]) -> str | None:
    """What is known below a folder by the longest of the ends of a path."""
    found = (known.find(f"{folder}/{end}" if folder else end) for end in ends)
    return next(filter(None, found), None)


def _lines(tree: Tree, file: str) -> list[str]:
    return [line.strip() for line in read_text(tree.path(file)).splitlines() if path_parts(line.strip())]


def _images_of_list(tree: Tree, splits: YamlSplits, configuration: str, file: str) -> tuple[int, list[str]]:
    """Number of lines of a list, and the images that they name."""
    folder, lines = parent(configuration), _lines(tree, file)
    if not lines:
        raise DatasetError(f"{tree.path(file)} is empty; list the images in it, one in each line")

    def is_meant(name: str, line: str) -> bool:
        ends_alike = any(_end_alike(name.removeprefix(start), line) for start in ("", f"{folder}/"))
        return ends_alike and splits.decider(name) == configuration

    images = tree.find_images(lines, file, [parent(file), folder])
    found = [image for image, line in zip(images, lines, strict=True) if image and is_meant(image, line)]
    if not found:
        raise DatasetError(f"{tree.path(file)} names none of the images in {tree.root}; correct its paths")
    return len(lines), found


def _end_alike(name: str, path: str) -> bool:
    """Whether one of two paths ends with the other."""
    first, second = path_parts(plain(name)), path_parts(plain(path))
    shared = min(len(first), len(second))
    return first[-shared:] == second[-shared:]
