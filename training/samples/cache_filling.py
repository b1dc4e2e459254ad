"""Fills feature caches when a training starts, within the bound that the recipe sets to their folder.

One training at a time fills the caches of a folder, so that together they keep to its bound.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import Progress

from dinov3_seg_ros.support.errors import RecipeError
from dinov3_seg_ros.support.files import locked
from training.samples.feature_cache import DISCARDED, KEY_FILE, KEY_LENGTH, CacheSettings, Extract, FeatureCache
from training.samples.loader import Key
from training.support.text import say
from training.support.writing import writing

#: Computes the keys that each cache lacks; yields numbers of samples that were written.
Compute: TypeAlias = Callable[[Sequence[Sequence[Key]]], Iterator[int]]

# A temporary file of this age belongs to a process that was killed: writing a sample takes less than a second.
_STALE_SECONDS = 3600


def fill_caches(
    caches: Sequence[FeatureCache],
    settings: CacheSettings,
    extract: Extract,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
    console: Console,
    compute: Compute | None = None,
) -> None:
    """Compute the samples that caches lack, each process a share; prints beforehand how much of the disk they take.

    Args:
        caches: all caches of one training.
        settings: folder of the caches and its bound.
        extract, batch_size, workers: see `FeatureCache.fill`.
        accelerator: the processes that share the work.
        console: for people.
        compute: computes this process's share of the `distinct` caches elsewhere; None: here.

    Raises:
        RecipeError: the bound or the disk is too small; nothing has been computed.
        RecipeError, OutputError, DatasetError: see `FeatureCache.fill`.
    """
    caches = distinct(caches)
    samples = sum(len(cache) * cache.views for cache in caches)
    main = accelerator.is_main_process

    def here(own: Sequence[Sequence[Key]]) -> Iterator[int]:
        for cache, keys in zip(caches, own, strict=True):
            yield from cache.fill(keys, extract, batch_size, workers)

    is_outdated = _decided_by_main(main and any(cache.is_outdated(extract) for cache in caches))
    if not is_outdated and not sum(map(len, _missing(caches, accelerator)[1])):
        say(console, f"feature cache: all {samples} samples are there")
        return
    folder = Path(settings.folder)
    with contextlib.ExitStack() as stack:
        if main:
            stack.enter_context(_alone_in(folder, console))
            _remove_stale(folder)
            if is_outdated:
                _discard_outdated(caches, extract, console)
        accelerator.wait_for_everyone()
        # Another training may have computed some of them meanwhile.
        own, everybodys = _missing(caches, accelerator)
        lacking = sum(map(len, everybodys))
        needed = sum(len(keys) * cache.sample_bytes() for cache, keys in zip(caches, everybodys, strict=True))
        present = _check_room(settings, needed)
        say(
            console,
            f"feature cache: {lacking} of {samples} samples to compute, {_gb(needed)}; all caches in {folder} "
            f"take {_gb(present)} so far, at most {settings.max_gb:g} GB",
        )
        accelerator.wait_for_everyone()  # until all have looked how full the disk is
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("computing features", total=sum(map(len, own)))
            for count in compute(own) if compute is not None else here(own):
                progress.advance(task, count)
        accelerator.wait_for_everyone()


def distinct(caches: Sequence[FeatureCache]) -> list[FeatureCache]:
    """Caches without those that share another one's folder, and so its samples."""
    return list({cache.folder: cache for cache in caches}.values())


def _decided_by_main(decision: bool) -> bool:
    """The main process's decision, in every process."""
    return bool(broadcast_object_list([decision])[0])


def _discard_outdated(caches: Sequence[FeatureCache], extract: Extract, console: Console) -> None:
    for cache in caches:
        if cache.is_outdated(extract):
            say(
                console,
                f"feature cache: the samples in {cache.folder} are not what is computed now (another version of a "
                "library computed them); they are computed again",
            )
            cache.discard()


def _missing(caches: Sequence[FeatureCache], accelerator: Accelerator) -> tuple[list[list[Key]], list[list[Key]]]:
    """The keys that each cache lacks: in this process's share, and in all processes' shares."""
    own = [cache.missing(accelerator.process_index, accelerator.num_processes) for cache in caches]
    return own, [gather_object(keys) for keys in own]


@contextlib.contextmanager
def _alone_in(folder: Path, console: Console) -> Iterator[None]:
    """Hold the lock of a folder of caches; waits until no other training holds it."""
    with writing(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            say(console, f"feature cache: another training is filling {folder}; waiting for it")
            stack.enter_context(locked(folder))
        held = stack.pop_all()
    with held:
        yield


def _check_room(settings: CacheSettings, needed: int) -> int:
    """Return how many bytes the folder's caches take; raise RecipeError where ``needed`` more are too many."""
    folder = Path(settings.folder)
    present = _size_of(folder)
    if needed and present + needed > settings.max_gb * 1e9:
        raise RecipeError(
            f"the feature cache needs {_gb(needed)} and {folder} holds {_gb(present)} already, together more than "
            f"cache.max_gb = {settings.max_gb:g}; raise it (and start again with --resume), lower cache.views, or "
            f"remove caches that are no longer needed (the {KEY_FILE} of each describes it)"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise RecipeError(
            f"the feature cache needs {_gb(needed)} and the disk of {folder} has {_gb(free)} left; lower cache.views, "
            "or set cache.folder to a folder on another disk"
        )
    return present


def _size_of(folder: Path) -> int:
    """Bytes of all files in a folder; files may come and go meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size


def _remove_stale(folder: Path) -> None:
    """Remove leftovers of killed processes, and nothing else: the user chooses the folder and may keep more in it."""
    for discarded in folder.glob(f".{'[0-9a-f]' * KEY_LENGTH}{DISCARDED}"):
        shutil.rmtree(discarded, ignore_errors=True)
    oldest = time.time() - _STALE_SECONDS
    for key in folder.glob(f"*/{KEY_FILE}"):
        for path in key.parent.glob("[0-9][0-9][0-9]/[0-9][0-9][0-9][0-9]/.[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
