"""Tells a frame that hangs from one that is slow.

A thread that waits for a GPU cannot be stopped, and what it holds cannot be released: neither the runtime nor its
process's share of the GPU can be replaced while it waits. So a hang is reported, and left to who can end the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dinov3_seg_ros.ros.cameras.worker import Pace

#: A frame hangs when it takes longer than this, and this many times longer than both frames before, or the warm-up;
#: frames that are segmented together may take as many times longer.
LIMIT_S, LIMIT_TIMES = 10.0, 5.0


class HangWatch:
    """Says once of each frame that it hangs, and that it has ended after all.

    Args:
        logger: of the node.
        end_process: called once, when a frame hangs for longer than is allowed.

    Attributes:
        hangs: whether a frame hangs.
    """

    def __init__(self, logger: Any, end_process: Callable[[], None]) -> None:
        self._logger, self._end_process = logger, end_process
        self.hangs = self._is_late = self._ends = False

    def look(self, pace: Pace, exit_after_s: float) -> str:
        """Say in words that a frame hangs; empty where none does. Call about once a second.

        Args:
            pace: of the frames.
            exit_after_s: how long a frame may hang until the process ends; 0: for ever.
        """
        hang = f"the frame being processed has not ended for {pace.oldest_s:.0f} s: the runtime or the GPU hangs"
        if not self.hangs:
            was_late, self._is_late = self._is_late, pace.oldest_s > max(LIMIT_S, LIMIT_TIMES * pace.expected_s)
            if not (was_late and self._is_late):  # late once: the whole process may have been stopped for a while
                return ""
            self.hangs = True
            self._logger.error(
                f"{hang}. No mask is made until it ends. A thread that hangs cannot be stopped: start the process "
                "again (Ctrl-C ends it within seconds). If it hangs again, look at the GPU's driver ('dmesg', "
                "'nvidia-smi'). The parameter exit_after_hang lets the process end by itself"
            )
        elif pace.oldest_s < LIMIT_S:
            self.hangs = self._is_late = False
            self._logger.info("the frame that hung has ended after all; the node goes on")
            return ""
        if 0 < exit_after_s < pace.oldest_s and not self._ends:
            self._ends = True
            self._logger.error(f"the process ends, since exit_after_hang is {exit_after_s:.0f} s")
            self._end_process()
        return hang
