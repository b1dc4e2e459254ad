"""A few threads for work that releases the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

from dinov3_seg_ros.support.cpu import usable_cores

_MOST_THREADS = 8
_limit = 0


def run_parts(work: Callable[[int, int], None], parts: int) -> None:
    """Call ``work(part, parts)`` for every part at once, one of them in the calling thread; return when all are done.

    Safe to call from several threads: they share the pool, and no part waits for another.
    """
    if parts == 1:
        work(0, 1)
        return
    others = [_pool().submit(work, part, parts) for part in range(1, parts)]
    try:
        work(0, parts)
    finally:
        wait(others)
    for other in others:
        other.result()


def set_thread_limit(threads: int) -> None:
    """Decode with at most so many threads from now on, in the whole process; 0 sets no limit."""
    global _limit
    if threads != _limit:
        _limit = threads
        thread_count.cache_clear()
        _pool.cache_clear()


def is_limited() -> bool:
    """Whether `set_thread_limit` has set a limit."""
    return _limit > 0


@lru_cache(maxsize=1)
def thread_count() -> int:
    """Threads that can run at once in this process."""
    allowed = usable_cores()
    return min(allowed, _limit or allowed, _MOST_THREADS)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, thread_count() - 1), thread_name_prefix="decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has the pool, but none of its threads
