"""Says what is wrong with a data set, and whether a training on it would make sense at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from rich.console import Console

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.cpu import usable_cores
from dinov3_seg_ros.support.errors import DatasetError
from training.checks.findings import Findings, check_pseudo_labels, check_split
from training.checks.likeness import near_duplicates
from training.data import DataSection, SegmentationDataset, Split
from training.data.classes.lists import BACKGROUND
from training.data.grouping import source_of
from training.support.text import percent, say

#: From the kind of a problem, in one split or between two, to what was found of it.
Problems = dict[str, list[str]]

_BINARY = "0 and 255 only"
_PALETTES = "palettes differ"
_UNLABELLED = "no labelled pixel"
_OTHER_VALUES = "the masks hold other values"
_ONE_CLASS = "only one class"
_MOST_SPARE = "most masks have no image"
# With these a training would fail, or learn nothing that its scores would tell.
_FATAL = (
    *("missing file", "cannot be opened", "unreadable file", "sizes differ", "value of no class", "other"),
    *(_BINARY, _PALETTES, _UNLABELLED, _OTHER_VALUES, f"train: {_ONE_CLASS}", _MOST_SPARE),
)
_OF_ALL_MASKS = (_BINARY, _PALETTES, _OTHER_VALUES)
_SAME = "the same image in {part} and {split}"
_ALIKE = "images of {part} and {split} look alike"
_VERSIONS = "versions of one image in {part} and {split}"
_TAUGHT = "pseudo-labels"
_DIVIDE = (
    "for data.name auto and folder, data.folds divides the images of train and val anew and keeps each video together; "
    "data.group says which images are one video where their names do not"
)
_LABEL_AGAIN = "label again with training.distill, without the stretches of videos that are for {split}"
_REMEDIES = {kind.format(part="train", split="val"): _DIVIDE for kind in (_ALIKE, _VERSIONS)} | {
    kind.format(part=_TAUGHT, split=split): _LABEL_AGAIN.format(split=purpose)
    for kind in (_SAME, _ALIKE, _VERSIONS)
    for split, purpose in (("val", "validation"), ("test", "testing"))
}
# Above this share of ignored pixels, the masks are likely read in another way than they were meant.
_MOSTLY = 0.5
# So many equal masks are no coincidence.
_LEAST_EQUAL = 3
_LONGEST_MAP = 20
_NAMED = 3
#: So many training images are read before a training; `training.check_dataset` reads all.
MOST_BEFORE_TRAINING = 500


def find_problems(
    splits: Mapping[Split, Findings], taught: Findings | None = None, allow_empty: bool = False
) -> Problems:
    """Collect everything that is wrong with a data set: kind -> one description for each.

    Args:
        splits: from `findings.check_split`; train and others.
        taught: from `findings.check_pseudo_labels`, of images that training sees beside those of ``train``.
        allow_empty: a class that training never sees is no problem.
    """
    train, taught = splits["train"], taught or Findings()
    parts = [*splits.items(), (_TAUGHT, taught)]
    problems = {f"{part}: {kind}": told for part, own in parts for kind, told in own.problems.items()}
    # Splits may share a folder of labels; those without an image belong to none.
    spare_masks = sorted({path for own in splits.values() for path in own.spare_masks})
    for path in spare_masks:
        kind = "mask without image" if path.suffix.lower() in IMAGE_SUFFIXES else "labels without an image"
        problems.setdefault(kind, []).append(str(path))
    labelled = len({path for own in splits.values() for path in own.labelled})
    if len(spare_masks) > labelled:
        problems[_MOST_SPARE] = [
            f"{len(spare_masks)} files of labels have no image of a matching name, such as {spare_masks[0]}, and only "
            f"{labelled} have one; correct the names, or remove the files without an image"
        ]
    for split, own in splits.items():
        suspicious = _of_values(own) | _of_labels(own, taught.occurring() if own is train else [])
        problems |= {f"{split}: {kind}": [told] for kind, told in suspicious.items()}
        problems |= {f"{split}: the same image twice": told for told in [_twice(own)] if told}
    alike = _nearly_equal(train.class_names)
    if alike:
        problems["classes of nearly the same name"] = alike
    never = [name for name in train.never_occurring() if name not in taught.occurring()]
    are_read = train.readable or not train.problems  # else what was refused is why nothing occurs
    if never and are_read and all(own.looked_at == own.count for own in (train, taught)) and not allow_empty:
        problems["train: class never occurs"] = never
    for split, own in splits.items():
        if own is not train:
            problems |= _leaks(train, own, "train", split) | _leaks(taught, own, _TAUGHT, split)
    return problems


def is_fatal(kind: str) -> bool:
    """Whether a problem of this kind, as `find_problems` names it, keeps a training from starting."""
    return kind in _FATAL or kind.partition(": ")[2] in _FATAL


def remedy_of(kind: str) -> str:
    """What helps against all problems of a kind; empty where each says that itself."""
    return _REMEDIES.get(kind, "")


def check_before_training(section: DataSection, console: Console, taught: SegmentationDataset | None = None) -> None:
    """Read the validation images and up to `MOST_BEFORE_TRAINING` training images; print what is suspicious.

    Args:
        section: the recipe's ``data``.
        console: for people.
        taught: images that a teacher labelled, to train on beside the others; as many of them are read, and
            those whose files are validation images.

    Raises:
        DatasetError: a training on this data would fail, or its scores would mean nothing.
    """
    threads, most = usable_cores(), MOST_BEFORE_TRAINING
    with console.status("reading the data set, to check it"):
        train = check_split(section, "train", threads, console, most)
        splits: dict[Split, Findings] = {"train": train, "val": check_split(section, "val", threads, console)}
        pseudo_labels = None if taught is None else check_pseudo_labels(taught, threads, console, most, section)
    problems = find_problems(splits, pseudo_labels)
    fatal = {kind: told for kind, told in problems.items() if is_fatal(kind)}
    if fatal:
        # A remedy for the whole data set comes first: the single files that follow are its consequence.
        kinds = sorted(fatal, key=lambda kind: kind.partition(": ")[2] not in _OF_ALL_MASKS)
        said = "; ".join(f"{kind}: {len(fatal[kind])}: {_first(fatal[kind], 1)}" for kind in kinds)
        raise DatasetError(f"{said}. Nothing was written; `python -m training.check_dataset RECIPE` lists everything")
    for kind, told in problems.items():
        said = "; ".join(filter(None, (_first(told), remedy_of(kind))))
        say(console, f"warning: {kind}: {len(told)}: {said}", "yellow")
    for split, own in splits.items():
        for note in own.notes():
            say(console, f"note: {split}: {note}", "yellow")


def _of_labels(own: Findings, elsewhere: Sequence[str]) -> dict[str, str]:
    """What is suspicious in the labels of one split: kind -> description.

    Args:
        own: of the split.
        elsewhere: classes that occur in images that are used beside those of the split.
    """
    if not own.total:
        return {}
    found, occurring = {}, own.occurring()
    ignored = percent(own.ignored / own.total)
    if own.raw.palettes_differ is not None:
        first, second, value = own.raw.palettes_differ
        found[_PALETTES] = (
            f"{first} and {second} give the index {value} different colours, so an index means something else in each "
            "file; give every class its colour in data.classes, then masks are read by colours"
        )
    if (
        own.raw.pixels is not None
        and [*own.raw.pixels] == [0, 255]
        and list(own.raw.ignored) == [255]
        and own.ignored
        and len(occurring) == 1
    ):
        other = next(name for name in own.class_names if name not in occurring) if len(own.class_names) > 1 else "other"
        found[_BINARY] = (
            f"the masks hold the values 0 and 255, and 255 is ignored, so that '{occurring[0]}' alone is left; if 255 "
            f"is the class '{other}', write data.classes as {{{occurring[0]}: 0, {other}: 255}}"
        )
    elif not occurring:
        found[_UNLABELLED] = "every pixel is ignored; check data.classes and data.ignore"
    elif len(own.class_names) == 1:
        found[_ONE_CLASS] = (
            f"there is no class but '{occurring[0]}', so that a network would find it everywhere; make what is around "
            f"it a class of its own in data.classes, such as {BACKGROUND}"
        )
    elif len({*occurring, *elsewhere}) == 1:
        found[_ONE_CLASS] = f"all labelled pixels are '{occurring[0]}', {ignored} of all are ignored"
    elif len(own.masks) == 1 and own.readable >= _LEAST_EQUAL:
        found["every mask is the same"] = f"{own.readable} images have one and the same mask; check the masks' names"
    elif own.ignored > _MOSTLY * own.total:
        found["most pixels are ignored"] = f"{ignored} belong to no class; check data.classes and data.ignore"
    return found


def _of_values(own: Findings) -> dict[str, str]:
    """The map that is meant where masks hold as many values as there are classes, but others: kind -> description."""
    pixels, names = own.raw.pixels, own.class_names
    if not own.problems.get("value of no class") or pixels is None or len(names) > _LONGEST_MAP:
        return {}
    values, unlabelled = [*pixels], unlabelled_value(len(names))
    meant = values if len(values) == len(names) else [value for value in values if value != unlabelled]
    if len(meant) == len(names):
        advice = f"if these are the classes in their order, {_map_of(names, meant)}"
    elif len(meant) == len(names) + 1 and meant[0] == 0:
        first, last = meant[0], meant[-1]
        more = [unlabelled] if unlabelled in values else []
        shares = [percent(pixels[value] / sum(pixels.values())) for value in (first, last)]
        advice = (
            f"if {first} is void, {_map_of(names, meant[1:])} and data.ignore as {[first, *more]}. If {last} is void, "
            f"{_map_of(names, meant[:-1])} and data.ignore as {[last, *more]}. {first} covers {shares[0]} of the "
            f"pixels, {last} covers {shares[1]}: look in a mask which of them is void"
        )
    else:
        return {}
    return {_OTHER_VALUES: f"the masks hold {values}; {advice}"}


def _map_of(names: Sequence[str], values: Sequence[int]) -> str:
    written = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    return f"write data.classes as {{{written}}}"


def _twice(own: Findings) -> list[str]:
    """Pairs of images of one split that are the same."""
    first: dict[bytes, str] = {}
    names = zip(own.names, own.contents, strict=True)
    return [f"{first[content]} and {name}" for name, content in names if first.setdefault(content, name) is not name]


def _nearly_equal(names: Sequence[str]) -> list[str]:
    """Pairs of classes whose names differ in case, spaces and the like alone."""
    first: dict[str, str] = {}
    plain = ((name, "".join(filter(str.isalnum, name.casefold()))) for name in names)
    return [
        f"'{first[key]}' and '{name}'; if they are one class, merge them in data.classes: {{{first[key]}: "
        f"['{first[key]}', '{name}']}}"
        for name, key in plain
        if key and first.setdefault(key, name) != name
    ]


def _leaks(train: Findings, other: Findings, part: str, split: Split) -> Problems:
    """Images of another split that show what those of a part that is trained on show."""
    found: Problems = {}
    contents = dict(zip(reversed(train.contents), reversed(train.names), strict=True))
    named = zip(other.names, other.contents, strict=True)
    same = {name: contents[content] for name, content in named if content in contents}
    if same:
        found[_SAME.format(part=part, split=split)] = sorted(f"{twin} and {name}" for name, twin in same.items())
    sources = {_source(name): name for name in reversed(train.names)}
    twins = [(name, sources[_source(name)]) for name in other.names if _source(name) in sources and name not in same]
    versions = [pair for pair in twins if any(map(_is_version, pair))]
    if versions:
        found[_VERSIONS.format(part=part, split=split)] = [f"{twin} and {name}" for name, twin in versions]
    told = same.keys() | {name for name, _ in versions}
    alike = [
        f"{train.names[twin]} and {other.names[index]} (correlation {likeness:.3f})"
        for index, twin, likeness in near_duplicates(other.thumbnails, train.thumbnails)
        if other.names[index] not in told
    ]
    if alike:
        found[_ALIKE.format(part=part, split=split)] = alike
    return found


def _source(name: str) -> str:
    # Exports put the splits into folders; a version has the same source in each.
    return PurePath(source_of(_stem(name))).name


def _is_version(name: str) -> bool:
    return source_of(_stem(name)) != _stem(name)


def _stem(name: str) -> str:
    return PurePath(name).with_suffix("").as_posix()


def _first(told: Sequence[str], number: int = _NAMED) -> str:
    return "; ".join(told[:number]) + (f"; and {len(told) - number} more" if len(told) > number else "")
