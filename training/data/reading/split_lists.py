"""Lists that tell the splits: text and CSV files named train, val or test, with an image in every line."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.content import read_csv, read_text
from training.data.reading.paths import folder_ends, least_end, parent, path_ends, plain, split_named, stem
from training.data.reading.tree import Tree

_SUFFIXES = (".txt", ".lst", ".csv")
# Lists of one class say behind each name whether the image shows it.
_SECOND_COLUMN = re.compile(r"\s+(-1|0|1)$")
_WITH_SUFFIX = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))[\"']?(?:[\s,;]|$)", re.IGNORECASE)


@dataclass
class ListedSplits:
    """What lists say of the splits.

    Attributes:
        split_of: the split of each listed image, relative to the root.
        unread: lists of which no line names an image, each with its split.
        absent: number of lines that name no image.
    """

    split_of: dict[str, Split] = field(default_factory=dict)
    unread: dict[str, Split] = field(default_factory=dict)
    absent: int = 0

    def check(self, tree: Tree, told: Container[Split | None], image: str) -> None:
        """Raise DatasetError where a list for training or validation is unread, and nothing else tells its split.

        Args:
            tree: the folder.
            told: the splits that something else tells.
            image: one of the images, as an example.
        """
        for name, split in self.unread.items():
            if split not in {"test", *self.split_of.values()} and split not in told:
                raise DatasetError(
                    f"{tree.path(name)} is named as the list of the {split} images, but none of its lines names an "
                    f"image of the folder, such as {image}; correct its lines, or rename the file if it is no list of "
                    "images"
                )


def split_lists(tree: Tree) -> list[tuple[str, Split]]:
    """The files that are named as lists of a split, with it; test before train and val."""
    named = ((name, split_named(stem(name).rpartition("/")[2])) for name in tree.with_suffix(*_SUFFIXES))
    return sorted(((name, split) for name, split in named if split is not None), key=lambda found: found[::-1])


def read_split_lists(tree: Tree, lists: Iterable[tuple[str, Split]], mask_of: Mapping[str, str]) -> ListedSplits:
    """Find the images that lists name by their paths, by an end of them, or by their names, with or without suffix.

    Names may differ in case or in how accents are written; those that do not go first. An image of several lists is in
    the split of the first. A name that several images have tells nothing, unless one of them lies in fewer folders. If
    there are images in the folder of a list, its lines name these, unless the folder of a path is elsewhere alone. A
    path of an image's mask names the image.

    Args:
        tree: the folder.
        lists: as `split_lists` gives them.
        mask_of: the path of each image's mask by that of the image, both relative to the root.

    Raises:
        DatasetError: a list cannot be read.
    """
    by_end = _ByEnd(mask_of, folder_ends(tree.images))
    listed = ListedSplits()
    for name, split in lists:
        lines = list(_lines(tree, name, by_end))
        listed.absent += sum(not found for found in lines)
        if not any(lines):
            listed.unread[name] = split
        for found in lines:
            if len(found) == 1:
                listed.split_of.setdefault(found[0], split)
    return listed


class _ByEnd:
    """Images by each end of their paths, without suffix.

    Args:
        mask_of: see `read_split_lists`.
        ends: the ends of the paths of all folders that an entry may mean, those of masks too; see `folder_ends`.
    """

    def __init__(self, mask_of: Mapping[str, str], ends: Container[str]) -> None:
        self._mask_of = mask_of
        self._folder_ends = ends
        self._exact: dict[str, list[str]] = {}
        self._alike: dict[str, list[str]] = {}
        for image, mask in mask_of.items():
            of_mask = [end for end in path_ends(stem(mask)) if "/" in end]  # its name alone is that of the image
            for end in dict.fromkeys([*path_ends(stem(image)), *of_mask]):
                self._exact.setdefault(end, []).append(image)
                self._alike.setdefault(plain(end), []).append(image)

    def around(self, name: str) -> list[str]:
        """The images in the nearest folder above a file that holds some."""
        folder, found = name, list[str]()
        while folder and not found:
            folder = parent(folder)
            found = [image for image in self._mask_of if image.startswith(f"{folder}/" if folder else "")]
        return found

    def folder_ends(self, images: Iterable[str]) -> frozenset[str]:
        """The ends of the paths of the folders that hold images and their masks; see `paths.folder_ends`."""
        return folder_ends(name for image in images for name in (image, self._mask_of[image]))

    def find(self, entry: str, around: Container[str], folder_ends_around: Container[str]) -> list[str]:
        """The images whose path ends as the longest end of an entry, in the fewest folders; see `least_end`.

        Args:
            entry: a name or a path.
            around: the images around the list. If the folder that the entry names is there, it is one of these.
            folder_ends_around: the ends of the paths of their folders.
        """
        least = least_end(entry, self._folder_ends)
        ends = (end for end in path_ends(entry) if end.count("/") + 1 >= least)
        found = next(filter(None, (self._exact.get(end) or self._alike.get(plain(end)) for end in ends)), [])
        if least == least_end(entry, folder_ends_around):
            found = [image for image in found if image in around]
        fewest = min((image.count("/") for image in found), default=0)
        return [image for image in found if image.count("/") == fewest]


def _lines(tree: Tree, name: str, images: _ByEnd) -> Iterator[Sequence[str]]:
    """The images that each line of a list names, without the head that a table may have."""
    around = frozenset(images.around(name))
    ends = images.folder_ends(around)

    def named(cells: Iterable[str]) -> Sequence[str]:
        entries = (entry for cell in cells for entry in _entries(cell))
        return next(filter(None, (images.find(entry, around, ends) for entry in entries)), [])

    if not name.lower().endswith(".csv"):
        yield from (named([line]) for line in read_text(tree.path(name)).splitlines() if line.strip())
        return
    for index, row in enumerate(read_csv(tree.path(name))):
        files = [cell for cell in row if cell.strip().lower().endswith(IMAGE_SUFFIXES)]
        found = named(files or row[:1])
        if index or files or found:
            yield found


def _entries(line: str) -> list[str]:
    """What a line may name, the likeliest first: the image of a pair of paths, all of it, or its first column."""
    text = line.strip().replace("\\", "/")
    file = _WITH_SUFFIX.match(text)
    written = [stem(file[1])] if file else [text, _SECOND_COLUMN.sub("", text)]
    return [path.strip("\"'").strip("/") for path in written]
