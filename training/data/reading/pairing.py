"""Finds which file is the mask of which image, by their names."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from dinov3_seg_ros.frames.image_files import MASK_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.paths import SPLIT_NAMES, plain, split_of, stem
from training.data.reading.protocol import NO_PATTERNS, Patterns, Sample
from training.data.reading.tree import Tree

# Words in the names of folders and files. What an image and its mask have in common is left when they are taken away.
_IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "photos", "rgb", "jpegimages", "frames", "raw"}
_MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "groundtruth"}
_MASK_WORDS |= {"truth", "seg", "segmentation", "semantic", "segmentationclass", "target", "targets"}
_MASK_WORDS |= {"labelid", "labelids", "labeltrainids"}
# Of several masks of one image, those that hold numbers are taken, and those of colours last.
_NUMBER_WORDS = {"id", "ids", "labelid", "labelids", "trainid", "trainids", "labeltrainids"}
_COLOUR_WORDS = {"color", "colors", "colour", "colours", "colored"}
# Other pictures that lie beside masks.
_OTHER_WORDS = {"instance", "instances", "instanceids", "depth", "disparity", "overlay", "vis", "preview"}
_WORD = re.compile(
    rf"(?:{'|'.join(SPLIT_NAMES)})(?=annot|mask|label|image)|[a-z]+(?=annot(?![a-z]))|[a-z]+|\d+|[^a-z\d]+"
)
_MASK_ENDING = re.compile(rf"[^a-z\d]+(?:{'|'.join(sorted(_MASK_WORDS))})$")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")

Key: TypeAlias = tuple[str, ...]
Role: TypeAlias = Literal["image", "mask", "other"]


@dataclass
class Pairing:
    """Images with their masks.

    Attributes:
        rule: how the masks were told from the images, for people.
        pairs: names of image and mask, relative to the root, in the order of the images.
        missing: images without a mask.
        spare: masks without an image; further pictures of an image that has a mask, such as one of colours, are none.
        twice: two images, or two masks of one image, of the same name.
    """

    rule: str
    pairs: list[tuple[str, str]]
    missing: list[str]
    spare: list[str]
    twice: tuple[str, str] | None = None

    def samples(self, tree: Tree) -> dict[Split | None, list[Sample]]:
        """Samples by the split that the folders name.

        Images without a mask are among them, with the path that it should have, so that whoever opens their split is
        told.
        """
        partners = dict(self.pairs)
        partners |= {image: self._expected_mask(image) for image in self.missing}
        samples: dict[Split | None, list[Sample]] = {}
        for image in sorted(partners):
            split = split_of(image) or split_of(partners[image])
            samples.setdefault(split, []).append(Sample(tree.path(image), tree.path(partners[image])))
        return samples

    def _expected_mask(self, image: str) -> str:
        """Where the mask of an image should be, after the example of the first pair."""
        if not self.pairs:
            return f"{stem(image)}.png"
        example, mask = self.pairs[0]
        *folders, _ = image.split("/")
        partner_of = dict(zip(example.split("/")[:-1], mask.split("/")[:-1], strict=False))
        before, found, after = _stem(mask).partition(_stem(example))
        name = f"{before if found else ''}{_stem(image)}{after}{os.path.splitext(mask)[1]}"
        return "/".join([*(partner_of.get(folder, folder) for folder in folders), name])


def find_pairing(tree: Tree, patterns: Patterns = NO_PATTERNS) -> Pairing | None:
    """The rule that pairs most images with a mask; None where none pairs any."""
    best: Pairing | None = None
    if patterns == NO_PATTERNS:
        divided, keys = {rule: divide(tree) for rule, divide in _RULES.items()}, [_whole_key, _bare_key]
    else:
        divided = {"data.images, data.masks": _by_patterns(tree, patterns)}
        keys = [_whole_key, _bare_key, _stem_key]
    for rule, files in divided.items():
        for key_of in keys:
            of_image, of_mask = (functools.partial(key_of, pattern=pattern) for pattern in patterns)
            found = _paired(rule, files, of_image, of_mask)
            if found.pairs and (best is None or len(found.pairs) > len(best.pairs)):
                best = found
    return best if best is not None or patterns != NO_PATTERNS else _by_stems(tree)


def _by_stems(tree: Tree) -> Pairing | None:
    """Pair files of folders that have nothing else in common, such as ``image_2`` and ``semantic``; each stem once."""
    files = _by_folders(tree)
    files = _Files(files.images or files.others, files.masks, [])
    found = _paired("by the names of files in folders of images and of masks", files, _stem_key, _stem_key)
    return found if found.pairs and not found.twice else None


def _by_ending(tree: Tree, ending: str) -> Pairing | None:
    """Pair each mask with the image whose name it has but for its ending, whatever the words in that name."""
    masks = [name for name in tree.images if name.endswith(ending)]
    images = sorted(set(tree.images).difference(masks))
    found = _paired(
        f"masks end in {ending}",
        _Files(images, masks, []),
        lambda image: (plain(stem(image)),),
        lambda mask: (plain(mask.removesuffix(ending)),),
    )
    return found if found.pairs else None


def require_pairing(tree: Tree, patterns: Patterns = NO_PATTERNS, ending: str | None = None) -> Pairing:
    """As `find_pairing`; without patterns, an ending alone may tell masks from images.

    Raises:
        DatasetError: no image has a mask, two images have the same name, or the masks are of a format that changes
            values.
    """
    if ending is not None and patterns == NO_PATTERNS:
        pairing = _by_ending(tree, ending)
    else:
        pairing = find_pairing(tree, patterns)
    if pairing is None:
        raise DatasetError(_nothing(tree, patterns))
    if pairing.twice:
        first, second = pairing.twice
        folders = [part if part in second.split("/") else "*" for part in first.split("/")[:-1]]
        raise DatasetError(
            f"{first} and {second} in {tree.root} have the same stem; remove one of them, or say by data.images and "
            "data.masks which files are meant, with a * for what an image has in common with its mask, such as "
            f"'{'/'.join([*folders, '*'])}{os.path.splitext(first)[1]}'"
        )
    lossy = [(image, mask) for image, mask in pairing.pairs if _has_suffix(mask, LOSSY_SUFFIXES)]
    if lossy:
        swapped = not any(_has_suffix(image, LOSSY_SUFFIXES) for image, _ in lossy)
        raise DatasetError(
            f"{tree.path(lossy[0][1])} is a mask in a format that changes values ({len(lossy)} of {len(pairing.pairs)} "
            "masks are): export the masks as PNG" + (". Or are images and masks swapped?" if swapped else "")
        )
    return pairing


class _Files(NamedTuple):
    """Files that are said to be images, those that are said to be masks, and those of which nothing is said."""

    images: list[str]
    masks: list[str]
    others: list[str]


def _paired(rule: str, files: _Files, key_of_image: Callable[[str], Key], key_of_mask: Callable[[str], Key]) -> Pairing:
    """Pair files of the same key.

    Of files of which nothing is said, those with a mask are images too; and all of them, where images are rarely called
    so. Nothing else tells an image without a mask from a picture of something else.
    """
    images, others = ([(key_of_image(name), name) for name in names] for names in (files.images, files.others))
    masks = [(key_of_mask(name), name) for name in files.masks]
    named, with_mask = {key for key, _ in images}, {key for key, _ in masks}
    others = [other for other in others if other[0] not in named]
    labelled = [other for other in others if other[0] in with_mask]
    image_of: dict[Key, str] = {}
    twice = None
    for key, name in [*images, *(labelled if len(labelled) < len(named & with_mask) else others)]:
        if image_of.setdefault(key, name) != name:
            twice = twice or (image_of[key], name)
    mask_of: dict[Key, str] = {}
    for key, name in sorted(masks, key=lambda mask: (_rank(mask[1]), mask[1])):
        first = mask_of.setdefault(key, name)
        if first != name and _rank(first) == _rank(name):
            twice = twice or (first, name)
    pairs = [(name, mask_of[key]) for key, name in image_of.items() if key in mask_of]
    missing = [name for key, name in image_of.items() if key not in mask_of]
    shown = {_picture_key(mask) for _, mask in pairs}
    without = [name for key, name in mask_of.items() if key not in image_of]
    spare = sorted(name for name in without if _picture_key(name) not in shown)
    return Pairing(rule, pairs, missing, spare, twice)


def _by_roles(roles: Mapping[str, Role | None]) -> _Files:
    def of(wanted: Role | None) -> list[str]:
        return [name for name, role in roles.items() if role == wanted]

    return _Files(of("image"), of("mask"), of(None))


def _by_folders(tree: Tree) -> _Files:
    """Masks lie in folders whose names say so: ``masks``, ``train_labels``, ``camera_annotations``."""
    return _by_roles({name: _role_of_folders(name) for name in tree.images})


def _by_names(tree: Tree) -> _Files:
    """The first or the last word of a file's name says what it is: ``a_mask.png``, ``labels.png``.

    What has a mask is none itself: ``label_1.jpg`` beside ``label_1_mask.png``.
    """
    roles = {name: _role_of_name(name) for name in tree.images}
    stems = {name: plain(stem(name)) for name, role in roles.items() if role == "mask"}
    of_masks = {_MASK_ENDING.sub("", stem) for stem in stems.values() if _MASK_ENDING.search(stem)}
    return _by_roles(roles | {name: None for name, stem in stems.items() if stem in of_masks})


def _by_suffixes(tree: Tree) -> _Files:
    """Photos and masks lie side by side: ``a.jpg`` and ``a.png``."""
    photos = [name for name in tree.images if _has_suffix(name, LOSSY_SUFFIXES)]
    stems = set(map(stem, photos))
    masks = [name for name in tree.images if _has_suffix(name, MASK_SUFFIXES) and stem(name) in stems]
    return _Files(photos if masks else [], masks, [])


def _by_patterns(tree: Tree, patterns: Patterns) -> _Files:
    """The recipe says what is what; or half of it, and the other half follows."""
    known = set(tree.images)
    images = [] if patterns.images is None else [name for name in tree.matching(patterns.images) if name in known]
    masks = [] if patterns.masks is None else [name for name in tree.matching(patterns.masks) if name in known]
    others: list[str] = []
    if patterns.images is None:
        with_mask = {_stem_key(name, patterns.masks) for name in masks}
        for name in sorted(known.difference(masks)):
            by_folders, by_name = _role_of_folders(name), _role_of_name(name)
            if by_name == "mask" and _stem_key(name) in with_mask:  # what has a mask is none itself
                by_name = None
            if "mask" not in (by_folders, by_name):
                (images if "image" in (by_folders, by_name) else others).append(name)
    if patterns.masks is None:
        rest = known.difference(images)
        masks = sorted(name for name in rest if "mask" in (_role_of_folders(name), _role_of_name(name)))
    chosen = set(masks)
    return _Files([name for name in images if name not in chosen], masks, others)


_RULES: dict[str, Callable[[Tree], _Files]] = {
    "by the names of folders": _by_folders,
    "by the names of files": _by_names,
    "JPEG and PNG of the same name": _by_suffixes,
}


def _role_of_folders(name: str) -> Role | None:
    """What the folders of a file say it is; the nearest that says something decides."""
    return next(filter(None, map(role_of_words, reversed(name.split("/")[:-1]))), None)


def _role_of_name(name: str) -> Role | None:
    """What the first and the last word of a file's name say it is."""
    words = [word for word in _words(_stem(name)) if word.isalpha()]
    return _role([*words[:1], *words[-2:]])


def role_of_words(name: str) -> Role | None:
    """What the words of a name say it is, such as that of a column in a table."""
    return _role(_words(name))


def _role(words: Sequence[str]) -> Role | None:
    if not _OTHER_WORDS.isdisjoint(words):
        return "other"
    if not _MASK_WORDS.isdisjoint(words):
        return "mask"
    return None if _IMAGE_WORDS.isdisjoint(words) else "image"


def _words(part: str) -> list[str]:
    """The words of a name, without what follows "with": images-with-annotations are images."""
    words = _WORD.findall(plain(part))
    return words[: words.index("with")] if "with" in words else words


def _rank(mask: str) -> int:
    """Which of several masks of one image is taken: the lowest."""
    words = {word for part in stem(mask).split("/") for word in _words(part)}
    return 0 if words & _NUMBER_WORDS else 2 if words & (_COLOUR_WORDS | {"rgb"}) else 1


def _whole_key(name: str, pattern: str | None) -> Key:
    """The folders without words for images and masks, and the whole stem."""
    folders, stem = _without_pattern(name, pattern)
    return (*filter(None, map(_bare, folders)), stem)


def _bare_key(name: str, pattern: str | None) -> Key:
    """The folders and the stem without words for images and masks."""
    folders, stem = _without_pattern(name, pattern)
    return (*filter(None, map(_bare, folders)), _bare(stem))


def _stem_key(name: str, pattern: str | None = None) -> Key:
    """The stem alone: for folders that have nothing in common."""
    return (_without_pattern(name, pattern)[1],)


def _picture_key(name: str) -> Key:
    """The folders and the stem without words for images, masks, and further pictures of an image."""
    taken = _IMAGE_WORDS | _MASK_WORDS | _NUMBER_WORDS | _COLOUR_WORDS | _OTHER_WORDS
    parts = (tuple(word for word in _words(part) if word.isalnum() and word not in taken)
             for part in stem(name).split("/"))  # fmt: skip
    return tuple("_".join(words) for words in parts if words)


def _bare(part: str) -> str:
    """A name without words for images and masks, and without what joined them to the rest."""
    words = _words(part)
    taken = _IMAGE_WORDS | _MASK_WORDS
    if not taken.isdisjoint(words):
        taken |= _NUMBER_WORDS | _COLOUR_WORDS
    return "_".join(word for word in words if word.isalnum() and word not in taken)


def _without_pattern(name: str, pattern: str | None) -> tuple[list[str], str]:
    """Folders and stem of a file, without those that a pattern names, which differ between images and masks."""
    *folders, file = unicodedata.normalize("NFC", name).split("/")
    if pattern is None:
        return folders, _stem(file)
    *pattern_folders, last = [part for part in pattern.strip("/").split("/") if part != "."]
    if not any(sign in pattern for sign in "*?["):
        pattern_folders.append(last)
    elif last.count("*") == 1 and "[" not in last and "?" not in last:
        before, _, after = last.partition("*")
        file = file.removeprefix(before).removesuffix(after) + ("" if "." not in after else ".x")
    literal = {part for part in pattern_folders if not any(sign in part for sign in "*?[")}
    return [folder for folder in folders if folder not in literal], _stem(file)


def _stem(name: str) -> str:
    return stem(name.rpartition("/")[2])


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _nothing(tree: Tree, patterns: Patterns) -> str:
    for key, pattern in patterns._asdict().items():
        if pattern is not None and not tree.matching(pattern):
            return f"{tree.root} holds no file that matches data.{key} '{pattern}'"
    return (
        f"{tree.root} holds no image with a mask of a matching name ({len(tree.images)} image files). Name the folders "
        "images and masks, or say by data.images and data.masks which files are which, such as '*_image.png'"
    )
