"""What to do about a runtime that fails: try it again, then another, then give up."""

from __future__ import annotations

import threading
from enum import Enum

from dinov3_seg_ros.support.errors import RuntimeFailedError


class Step(Enum):
    """What follows a failure."""

    TRY_AGAIN, REPLACE, GIVE_UP = range(3)


class Recovery:
    """Counts failures without a mask between them. Any thread may tell of one, any may read.

    Attributes:
        avoid: the runtimes that were replaced, with the reason for each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.avoid: dict[str, str] = {}
        self._failures = 0

    def reset(self) -> None:
        """Forget all failures: the models are configured anew."""
        with self._lock:
            self.avoid, self._failures = {}, 0

    def succeed(self) -> None:
        """Tell of a mask."""
        self._failures = 0

    def fail(self, runtime: str, error: RuntimeFailedError) -> Step:
        """Tell that the runtime of a name failed; return what follows."""
        with self._lock:
            self._failures += 1
            if self._failures == 1:
                return Step.TRY_AGAIN
            self.avoid[runtime] = str(error)
            return Step.REPLACE if self._failures == 2 else Step.GIVE_UP
