"""Formats of labelled folders, one file each; the registry finds them by itself.

To add one: write a module with a subclass of `training.data.reading.protocol.Format`. Nothing else names it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from types import ModuleType

from dinov3_seg_ros.support.errors import DatasetError, nearest
from training.data.reading.protocol import Format, Match
from training.data.reading.tree import Tree

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_OTHER_MASKS = (".npy", ".npz", ".mat", ".gif", ".exr")


@functools.lru_cache(maxsize=1)
def all_formats() -> dict[str, Format]:
    """Every format by its name."""
    modules = [importlib.import_module(module.name) for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    kinds = [kind for module in modules for kind in vars(module).values() if _is_format_of(kind, module)]
    return {kind.name: kind() for kind in sorted(kinds, key=lambda kind: kind.name)}


def _is_format_of(kind: object, module: ModuleType) -> bool:
    """Whether it is a format that a module defines; others it may import, to go on from them."""
    is_format = isinstance(kind, type) and issubclass(kind, Format) and not inspect.isabstract(kind)
    return is_format and kind.__module__ == module.__name__


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        DatasetError: there is none.
    """
    formats = all_formats()
    if name not in formats:
        raise DatasetError(
            f"data.format is '{name}'{nearest(name, list(formats))}; the formats are: auto, {', '.join(formats)}"
        )
    return formats[name]


def detect(tree: Tree) -> tuple[Format, Match]:
    """The format that is surest of a folder.

    Raises:
        DatasetError: none knows it, or two are equally sure.
    """
    matches = [(kind, match) for kind in all_formats().values() if (match := kind.detect(tree)) is not None]
    if not matches:
        raise DatasetError(f"{tree.root} is of no known format: it has {_summary(tree)}. {_advice(tree)}")
    surest = max(match.sure for _, match in matches)
    best = [(kind, match) for kind, match in matches if match.sure == surest]
    if len(best) > 1:
        found = "; ".join(f"{kind.name} ({match.why})" for kind, match in best)
        raise DatasetError(f"{tree.root} may be of several formats: {found}. Set data.format to one of them")
    return best[0]


def _advice(tree: Tree) -> str:
    """What to do about a folder that no format knows."""
    nearly = next(filter(None, (kind.nearly(tree) for kind in all_formats().values())), None)
    if nearly is not None:
        return nearly
    if tree.with_suffix(*_ARCHIVES) and not tree.images:
        return "Unpack the archive, and set data.root to the folder that holds its files"
    if tree.with_suffix(*_OTHER_MASKS):
        return f"Masks must be PNG, BMP or TIFF files: convert those of the types {', '.join(_OTHER_MASKS)}"
    return (
        "docs/data.md shows what each format looks like; for images and masks, data.images and data.masks say which "
        "files are which"
    )


def _summary(tree: Tree) -> str:
    """What a folder holds, for people."""
    suffixes: dict[str, int] = {}
    for name in tree.files:
        suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
        suffixes[suffix] = suffixes.get(suffix, 0) + 1
    most = sorted(suffixes, key=lambda suffix: -suffixes[suffix])[:5]
    return ", ".join(f"{suffixes[suffix]} .{suffix}" for suffix in most) if most else "no files"
