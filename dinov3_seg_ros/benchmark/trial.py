"""What became of a stream of frames that was sent at a fixed rate."""

from __future__ import annotations

from dataclasses import dataclass

#: A rate counts as held while less than this share of the frames is dropped.
MOST_DROPS = 0.05


@dataclass(frozen=True)
class Trial:
    """What became of a stream of frames.

    Attributes:
        rate_hz: at which the camera sent them.
        sent: number of frames.
        received: number of their masks that arrived.
        latency_ms: ``{"median", "p95"}`` from a frame's stamp to the arrival of its mask; None without a mask.
    """

    rate_hz: float
    sent: int
    received: int
    latency_ms: dict[str, float] | None

    @property
    def drops(self) -> float:
        """The share of the frames without a mask, 0..1."""
        return 1.0 - self.received / self.sent

    @property
    def is_held(self) -> bool:
        """Whether the node held the rate."""
        return self.drops < MOST_DROPS
