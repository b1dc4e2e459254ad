"""From the values and colours of masks to class ids, and the message for a value that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dinov3_seg_ros.frames.classes import VALUE_COUNT, Colour, default_palette, unlabelled_value
from dinov3_seg_ros.frames.image_files import value_colour
from dinov3_seg_ros.frames.mask_labels import LabelTable, MaskLabels, as_colour, as_number, ranges
from dinov3_seg_ros.support.errors import DatasetError, first_of, nearest
from training.data.classes.items import Items, checked_name, parse_classes, parse_ignored

_NAMED = 10
_COLOUR_ADVICE = (
    "which no class has: correct the mask, or add the colour to data.ignore. Colours between those of two classes come "
    "from resizing with interpolation, or from JPEG"
)


class SourceClass(NamedTuple):
    """A class as a folder names it.

    Attributes:
        name: the folder's name for it.
        values: its values in masks.
        colours: its colours in masks, as `colour_value` gives them.
    """

    name: str
    values: tuple[int, ...] = ()
    colours: tuple[int, ...] = ()


@dataclass(frozen=True)
class SourceClasses:
    """The classes that a folder names.

    Attributes:
        classes: in the folder's order; none where the folder names none.
        origin: where the names stand, for messages.
        ignored: values and colours that the folder itself says belong to no class.
        drawn: whether labels are drawn from shapes with names: then values are the positions of the classes, and a
            recipe can refer to names alone.
    """

    classes: tuple[SourceClass, ...] = ()
    origin: str = ""
    ignored: SourceClass = field(default_factory=lambda: SourceClass(""))
    drawn: bool = False

    @classmethod
    def of_names(cls, names: Sequence[str], origin: str, drawn: bool = False) -> SourceClasses:
        """Classes whose values are their positions."""
        return cls(tuple(SourceClass(name, (index,)) for index, name in enumerate(names)), origin, drawn=drawn)

    @property
    def value_of(self) -> dict[str, int]:
        """The value of each class, by its name, where labels are drawn."""
        return {entry.name: entry.values[0] for entry in self.classes}


class ClassMap(NamedTuple):
    """Class names, and the label of every value and colour.

    Attributes:
        names: by class id.
        palette: RGB colour of each class.
        masks: labels of the values of masks.
    """

    names: list[str]
    palette: list[Colour]
    masks: MaskLabels


def number_map(source: SourceClasses) -> ClassMap:
    """The classes of a published data set, whose masks hold numbers; each class has one colour, for people."""
    count = len(source.classes)
    label_of = {value: index for index, entry in enumerate(source.classes) for value in entry.values}
    label_of |= dict.fromkeys(source.ignored.values, unlabelled_value(count))
    advice = f"allowed are {ranges(label_of)}: replace the file by the data set's own"
    return ClassMap(
        [entry.name for entry in source.classes],
        [value_colour(entry.colours[0]) for entry in source.classes],
        MaskLabels(LabelTable(label_of, count, as_number, advice), no_colours="its pixels must hold numbers"),
    )


def map_classes(written: Any, ignore: Any, source: SourceClasses) -> ClassMap:
    """Join what a recipe says of the classes with what the folder says.

    Args:
        written: ``data.classes``, see `items.parse_classes`; None: the folder's own, which must be some, without those
            that ``ignore`` names.
        ignore: ``data.ignore``, see `items.parse_ignored`.
        source: the classes that the folder names.

    Raises:
        DatasetError: a value is of two classes, or of one and ignored; a name is unknown; or a class of the folder
            belongs to no class of the recipe, or has a name that cannot be used.
    """
    try:
        return _Joined(parse_classes(written) if written is not None else None, parse_ignored(ignore), source).map()
    except ValueError as error:
        raise DatasetError(f"data.classes or data.ignore cannot be used: {error}") from error


@dataclass
class _Joined:
    """Works out a `ClassMap`; see `map_classes`."""

    written: dict[str, Items | None] | None
    ignore: Items | None
    source: SourceClasses
    by_name: dict[str, SourceClass] = field(default_factory=dict)

    def map(self) -> ClassMap:
        for entry in self.source.classes:
            for value in entry.values:
                if not 0 <= value < VALUE_COUNT:
                    raise DatasetError(
                        f"{self.source.origin} gives '{entry.name}' the value {value}; values of masks are from 0 "
                        f"to {VALUE_COUNT - 1}"
                    )
        self.by_name = {entry.name: entry for entry in self.source.classes}
        items = self._items()
        names, count = list(items), len(items)
        for name in names:
            try:
                checked_name(name)
            except ValueError as error:  # those that the recipe writes are checked as it is read
                raise DatasetError(f"{self.source.origin}: {error}") from error
        ignored = self._resolved(self.ignore, "data.ignore") if self.ignore is not None else Items()
        values = self._owners({name: own.values for name, own in items.items()}, as_number)
        colours, twice = self._colour_owners(items)
        if not values:
            values = self._values_without_any(items)
        advice = _counted_from_one(names, values) if self.ignore is not None and self.ignore.values else ""
        _check_ignored(ignored.values, values, as_number, advice)
        _check_ignored(ignored.colours, colours, as_colour, "")
        if self.ignore is None:
            ignored.values = [value for value in [unlabelled_value(count)] if value not in values]
        ignored.values += [value for value in self.source.ignored.values if value not in values]
        ignored.colours += [colour for colour in self.source.ignored.colours if colour not in colours]
        rest = self._rest(items, ignored)
        if rest is None:
            absent = [name for name in names if self.source.drawn and name not in values.values()]
            self._check_all_used({*values, *ignored.values}, {*colours, *ignored.colours}, absent)
        ids, unlabelled = {name: index for index, name in enumerate(names)}, unlabelled_value(count)
        numbers = {value: ids[name] for value, name in values.items()} | dict.fromkeys(ignored.values, unlabelled)
        hues = {colour: ids[name] for colour, name in colours.items()} | dict.fromkeys(ignored.colours, unlabelled)
        number_advice = _number_advice(names, values, ignored.values)
        without = [own.colours[0] for name, own in items.items() if own.colours and name not in values.values()]
        no_numbers = f"but data.classes has colours without a value: {_as_values(without)}" if without else ""
        masks = MaskLabels(
            LabelTable(numbers, count, as_number, number_advice, rest),
            LabelTable(hues, count, as_colour, _COLOUR_ADVICE, rest) if colours and not twice else None,
            no_colours=f"{twice}; give every class a colour, no two the same" if twice else MaskLabels.NO_COLOURS,
            no_numbers="" if self.source.drawn else no_numbers,
        )
        return ClassMap(names, _palette(items), masks)

    def _items(self) -> dict[str, Items]:
        """The items of each class, without names.

        Raises:
            DatasetError: a name is unknown, or ``data.ignore`` leaves none of the folder's own classes.
        """
        if self.written is None:
            ignored = self.ignore.names if self.ignore is not None else []
            own = [entry for entry in self.source.classes if entry.name not in ignored]
            if not own:
                raise DatasetError(f"data.ignore names every class of {self.source.origin}; remove some of them")
            return {entry.name: Items(list(entry.values), list(entry.colours)) for entry in own}
        if all(own is None for own in self.written.values()):
            return self._listed(list(self.written))
        return {name: self._resolved(own or Items(), f"the class '{name}'") for name, own in self.written.items()}

    def _values_without_any(self, items: Mapping[str, Items]) -> dict[int, str]:
        """The class of each value where the classes are given by colours alone; masks may hold numbers all the same.

        They are the folder's own where it has classes of these names. Where it has none of them, masks hold class ids,
        unless something takes the rest: then no id would be too many, and three values in place of a colour would not
        be noticed. Shapes may lack some of the classes: the labels of many tools name only those that occur.

        Raises:
            DatasetError: shapes have none of the classes, and none takes the rest.
        """
        names = [name for name, own in items.items() if not own.rest]
        known = [name for name in names if name in self.by_name]
        rest = len(names) < len(items) or (self.ignore is not None and self.ignore.rest)
        if len(known) == len(names) or (known and self.source.drawn):
            return self._owners({name: self.by_name[name].values for name in known}, as_number)
        if self.source.drawn and self.by_name and len(names) == len(items):
            raise DatasetError(
                f"{self.source.origin} has none of the classes {first_of(names, _NAMED)}, but "
                f"{first_of(self.by_name, _NAMED)}; say in data.classes of which of these each consists. If the labels "
                "show none of the classes, list them in classes.yaml beside the labels"
            )
        return {} if known or self.source.drawn or rest else dict(enumerate(names))

    def _listed(self, names: list[str]) -> dict[str, Items]:
        """The items of a mere list of names: the folder's classes of these names; of others, the positions."""
        known = [name for name in names if name in self.by_name]
        if len(known) == len(names):
            return {name: self._resolved(Items(names=[name]), name) for name in names}
        if known or self.source.drawn:
            unknown = next(name for name in names if name not in self.by_name)
            raise self._unknown(unknown, "data.classes")
        return {name: Items([index]) for index, name in enumerate(names)}

    def _resolved(self, items: Items, owner: str) -> Items:
        """Items with values and colours in place of names."""
        if items.values and self.source.drawn:
            raise DatasetError(
                f"{owner} has the value {items.values[0]}, but the labels of this folder are shapes with names; write "
                f"names: {first_of(self.by_name, _NAMED)}"
            )
        resolved = Items(list(items.values), list(items.colours), rest=items.rest)
        for name in items.names:
            if name not in self.by_name:
                raise self._unknown(name, owner)
            resolved.values += self.by_name[name].values
            resolved.colours += self.by_name[name].colours
        return resolved

    def _unknown(self, name: str, owner: str) -> DatasetError:
        if not self.by_name:
            return DatasetError(
                f"{owner} has the name '{name}', but the folder names no classes; write values or colours instead"
            )
        return DatasetError(
            f"{owner} has the name '{name}', which is none of the classes in {self.source.origin}"
            f"{nearest(name, list(self.by_name))}; they are: {first_of(self.by_name, _NAMED)}"
        )

    def _owners(self, values_of: Mapping[str, Iterable[int]], describe: Callable[[int], str]) -> dict[int, str]:
        """The class of each value.

        Raises:
            DatasetError: a value is of two classes.
        """
        owners: dict[int, str] = {}
        for name, values in values_of.items():
            for value in values:
                if owners.setdefault(value, name) != name:
                    raise DatasetError(
                        f"data.classes gives {describe(value)} to '{owners[value]}' and to '{name}'; remove one. If "
                        "colours are meant, their numbers must be 0 to 255"
                    )
        return owners

    def _colour_owners(self, items: Mapping[str, Items]) -> tuple[dict[int, str], str]:
        """The class of each colour; and, where two classes share one, which, since only masks of colours mind."""
        try:
            return self._owners({name: own.colours for name, own in items.items()}, as_colour), ""
        except DatasetError as error:
            return {}, str(error).partition("; remove one")[0]

    def _rest(self, items: Mapping[str, Items], ignored: Items) -> int | None:
        """The label of what nothing covers; None where that is an error."""
        owners = [name for name, own in items.items() if own.rest]
        if len(owners) + ignored.rest > 1:
            raise DatasetError("rest stands in two places of data.classes and data.ignore; write it in one")
        if ignored.rest:
            return unlabelled_value(len(items))
        return list(items).index(owners[0]) if owners else None

    def _check_all_used(self, values: set[int], colours: set[int], absent: Sequence[str]) -> None:
        """Raise DatasetError where a class of the folder is of no class; it names those of which there is no shape."""
        lost = [
            entry.name
            for entry in self.source.classes
            if values.isdisjoint(entry.values) and colours.isdisjoint(entry.colours)
        ]
        if lost and self.written is not None:
            raise DatasetError(
                f"data.classes says nothing of {len(lost)} classes in {self.source.origin}: {first_of(lost, _NAMED)}; "
                "add them to a class or to data.ignore, or write ignore: rest"
                + (f". Of these classes there is no label: {first_of(absent, _NAMED)}" if absent else "")
            )


def _palette(items: Mapping[str, Items]) -> list[Colour]:
    """The first colour of each class; where it has none, one of our own."""
    own = [value_colour(entry.colours[0]) if entry.colours else None for entry in items.values()]
    made = default_palette(len(own))
    return [made[index] if colour is None else colour for index, colour in enumerate(own)]


def _number_advice(names: Sequence[str], values: Mapping[int, str], ignored: Iterable[int]) -> str:
    allowed = ranges(values) or "no values"
    return (
        f"allowed are {allowed} (the {len(names)} classes) and the ignored values {sorted(set(ignored))}: "
        "correct the mask, or add the value to a class of data.classes or to data.ignore"
    )


def _counted_from_one(names: Sequence[str], values: Mapping[int, str]) -> str:
    """Advice for classes that seem to count from 1."""
    if values != dict(enumerate(names)):
        return ""
    shown = ", ".join(f"{name}: {index + 1}" for index, name in enumerate(names[:3]))
    return f". If the masks count the classes from 1, write data.classes as {{{shown}, ...}}"


def _check_ignored(ignored: Iterable[int], owner: Mapping[int, str], describe: Callable[[int], str], more: str) -> None:
    """Raise DatasetError where an ignored value is that of a class, since every pixel of it would be lost."""
    for value in ignored:
        if value in owner:
            raise DatasetError(
                f"data.ignore holds {describe(value)}, which is that of the class '{owner[value]}': remove it from "
                f"data.ignore, or mark pixels without a class by another in the masks{more}"
            )


def _as_values(colours: Sequence[int]) -> str:
    """A colour that may have been meant as three values, and how these are written."""
    red, green, blue = value_colour(colours[0])
    return (
        f"[{red}, {green}, {blue}]. If three values are meant, write one of them as a range: "
        f"[{red}, {green}, {blue}-{blue}]; else add the values of these classes"
    )
