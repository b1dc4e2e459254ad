"""DDS domains that no other test of this machine uses at the same time, and how long tests with processes wait."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# On a loaded machine a process takes long to import its libraries: there more may be given.
TIMEOUT_S = float(os.environ.get("ROS_TEST_TIMEOUT_S", "40"))

_FOLDER = Path(tempfile.gettempdir(), f"ros_test_domains_{os.getuid()}")
_DOMAINS = range(1, 101)  # above 101, ports of a domain meet those that Linux hands out
# One after the other: in the one that was just left, others still wait for what was killed there.
_candidates = itertools.cycle((*_DOMAINS[os.getpid() * 7 % 100 :], *_DOMAINS[: os.getpid() * 7 % 100]))


@contextlib.contextmanager
def claimed_domain() -> Iterator[int]:
    """Hold a ROS_DOMAIN_ID of one's own; test processes that run beside this one get others."""
    _FOLDER.mkdir(exist_ok=True)
    for candidate in itertools.islice(_candidates, len(_DOMAINS)):
        with (_FOLDER / str(candidate)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield candidate
            return
    raise RuntimeError(f"all {len(_DOMAINS)} ROS domains are in use by other tests")
