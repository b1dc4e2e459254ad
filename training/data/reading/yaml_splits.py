"""The splits that a YAML file of Ultralytics' form names: by folders, or by text files that list images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.tree import SPLIT_NAMES, Tree, parent, path_parts, plain, read_text, split_of

_LIST = ".txt"
#: A list of these splits that is not there is an error; a test split often comes without its images.
_NEEDED: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class YamlSplits:
    """Which split each image is in. What several splits name is in the first of train, val and test.

    Attributes:
        folders: the split of each folder, whose name ends with a slash.
        listed: the split of each image that a list names.
        by_list: the splits that have a list; only images that it names are in them.
        absent: number of lines that name no image of the folder.
    """

    folders: Mapping[str, Split] = field(default_factory=dict)
    listed: Mapping[str, Split] = field(default_factory=dict)
    by_list: frozenset[Split] = frozenset()
    absent: int = 0

    def of(self, image: str) -> Split | None:
        """The split of an image; None where it is in none."""
        if image in self.listed:
            return self.listed[image]
        split = self._of_folder(image) or split_of(image)
        return None if split in self.by_list else split

    def name(self, image: str) -> bool:
        """Whether the file names an image, or a folder above it."""
        return image in self.listed or self._of_folder(image) is not None

    def _of_folder(self, image: str) -> Split | None:
        return next((split for folder, split in self.folders.items() if image.startswith(folder)), None)


def read_splits(tree: Tree, configuration: str, content: Mapping[str, object]) -> YamlSplits:
    """Find what the keys ``train``, ``val`` and ``test`` of a YAML file name.

    Paths come from other machines. A list is looked for beside the YAML file first, an image beside its list; else
    those are taken whose paths end alike.

    Args:
        tree: the folder.
        configuration: the YAML file in it.
        content: of that file.

    Raises:
        DatasetError: a list of images for training or validation is missing or empty, or names no image of the folder.
    """
    folders: dict[str, Split] = {}
    listed: dict[str, Split] = {}
    by_list: set[Split] = set()
    absent = 0
    for path, split in _paths(content):
        if not path.lower().endswith(_LIST):
            for folder in _folders_of(tree, path_parts(path)):
                folders.setdefault(folder, split)
            continue
        try:
            lines, images = _images_of_list(tree, configuration, path)
        except DatasetError:
            if split in _NEEDED:
                raise
            continue
        by_list.add(split)
        absent += lines - len(images)
        for image in images:
            listed.setdefault(image, split)
    return YamlSplits(folders, listed, frozenset(by_list), absent)


def _paths(content: Mapping[str, object]) -> Iterator[tuple[str, Split]]:
    for key, split in SPLIT_NAMES.items():
        written = content.get(key)
        for path in written if isinstance(written, list) else [written]:
            if isinstance(path, str):
                yield path, split


def _folders_of(tree: Tree, parts: list[str]) -> Iterator[str]:
    """The folder of images that a path of another machine means, if it is here."""
    # One word is too little to know a folder of another path by.
    ends = [parts[start:] for start in range(len(parts)) if start == 0 or len(parts) - start >= 2]
    for end in ends:
        start = plain("/".join(end)) + "/"
        here = {"/".join(image.split("/")[: len(end)]) for image in tree.images if plain(image).startswith(start)}
        if here:
            yield from (f"{folder}/" for folder in sorted(here))
            return


def _images_of_list(tree: Tree, configuration: str, path: str) -> tuple[int, list[str]]:
    """Number of lines of a list, and the images that they name."""
    beside = "/".join(filter(None, [parent(configuration), *path_parts(path)]))
    lists = [name for name in tree.with_suffix(_LIST) if _end_alike(name, path)]
    if not lists:
        raise DatasetError(f"{configuration} names {path}, which is not in {tree.root}; copy it there")
    file = min(lists, key=lambda name: (plain(name) != plain(beside), -len(path_parts(name)), name))
    lines = [line.strip() for line in read_text(tree.path(file)).splitlines() if path_parts(line.strip())]
    if not lines:
        raise DatasetError(f"{tree.path(file)} is empty; list the images in it, one in each line")
    near = dict.fromkeys([parent(file), parent(configuration)])
    found = [image for line in lines if (image := tree.find_image(line, near)) and _end_alike(image, line)]
    if not found:
        raise DatasetError(f"{tree.path(file)} names none of the images in {tree.root}; correct its paths")
    return len(lines), found


def _end_alike(name: str, path: str) -> bool:
    """Whether one of two paths ends with the other."""
    first, second = path_parts(plain(name)), path_parts(plain(path))
    shared = min(len(first), len(second))
    return first[-shared:] == second[-shared:]
