"""The splits that YAML files of Ultralytics' form name: by folders, or by text files that list images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.tree import SPLIT_NAMES, Tree, parent, path_parts, plain, read_text, split_of

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

    Paths come from other machines. A folder or list is looked for beside the YAML file first, an image beside its list;
    else those are taken whose paths end alike. Each of several files decides on what lies below its own folder.

    Args:
        tree: the folder.
        configurations: the content of each YAML file in it.

    Raises:
        DatasetError: a list of images for training or validation is missing or empty, or names no image of the folder.
    """
    deepest_first = sorted(configurations, key=lambda name: (name.count("/"), name), reverse=True)
    of_folder = {parent(name): name for name in deepest_first}
    found = YamlSplits({name: set() for name in of_folder.values()})
    for file in found.by_list:
        for path, split in _paths(configurations[file]):
            if not path.lower().endswith(_LIST):
                for folder in _folders_of(tree, found, file, path_parts(path)):
                    found.folders.setdefault(folder, split)
                continue
            try:
                lines, images = _images_of_list(tree, found, file, path)
            except DatasetError:
                if split in _NEEDED:
                    raise
                continue
            found.by_list[file].add(split)
            found.absent += lines - len(images)
            for image in images:
                found.listed.setdefault(image, split)
    return found


def _paths(content: Mapping[str, object]) -> Iterator[tuple[str, Split]]:
    for key, split in SPLIT_NAMES.items():
        written = content.get(key)
        for path in written if isinstance(written, list) else [written]:
            if isinstance(path, str) and path_parts(path):
                yield path, split


def _folders_of(tree: Tree, splits: YamlSplits, configuration: str, parts: list[str]) -> Iterator[str]:
    """The folder of images that a path of another machine means, if it is here."""
    # One word is too little to know a folder of another path by.
    ends = [parts[start:] for start in range(len(parts)) if start == 0 or len(parts) - start >= 2]
    for end in [[*path_parts(parent(configuration)), *parts], *ends]:
        start = plain("/".join(end)) + "/"
        below = (image for image in tree.images if plain(image).startswith(start))
        here = {"/".join(image.split("/")[: len(end)]) for image in below if splits.decider(image) == configuration}
        if here:
            yield from (f"{folder}/" for folder in sorted(here))
            return


def _images_of_list(tree: Tree, splits: YamlSplits, configuration: str, path: str) -> tuple[int, list[str]]:
    """Number of lines of a list, and the images that they name."""
    folder = parent(configuration)

    def is_meant(name: str, written: str) -> bool:
        ends_alike = any(_end_alike(name.removeprefix(start), written) for start in ("", f"{folder}/"))
        return ends_alike and splits.decider(name) == configuration

    beside = "/".join(filter(None, [folder, *path_parts(path)]))
    lists = [name for name in tree.with_suffix(_LIST) if is_meant(name, path)]
    if not lists:
        raise DatasetError(f"{configuration} names {path}, which is not in {tree.path(folder)}; copy it there")
    file = min(lists, key=lambda name: (plain(name) != plain(beside), -len(path_parts(name)), name))
    lines = [line.strip() for line in read_text(tree.path(file)).splitlines() if path_parts(line.strip())]
    if not lines:
        raise DatasetError(f"{tree.path(file)} is empty; list the images in it, one in each line")
    near = dict.fromkeys([parent(file), folder])
    found = [image for line in lines if (image := tree.find_image(line, near)) and is_meant(image, line)]
    if not found:
        raise DatasetError(f"{tree.path(file)} names none of the images in {tree.root}; correct its paths")
    return len(lines), found


def _end_alike(name: str, path: str) -> bool:
    """Whether one of two paths ends with the other."""
    first, second = path_parts(plain(name)), path_parts(plain(path))
    shared = min(len(first), len(second))
    return first[-shared:] == second[-shared:]
