"""What became of each camera's frames, and how well it goes."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus

from dinov3_seg_ros.support.timing import Rate, StageTimes

#: Why a frame was dropped although nothing was wrong with it.
REPLACED = "replaced by a newer one"
UNWANTED = "nobody subscribes"
SWITCHED_OFF = "switched off"
STOPPED = "unfinished when the node was deactivated"
LOADING = "the runtime is being replaced"
LIMITED = "above max_rate"

#: The kind of fault that many images do not reach the node.
LOST = "images dropped by the transport"

#: How long a fault, or a loss, raises the level.
_MEMORY_S = 10.0
#: A loss raises the level from so many images on, and from this share of those that were sent.
_LEAST_LOST, _LEAST_LOST_SHARE = 3, 0.05
#: A camera is stale after so long a silence.
_STALE_AFTER_S = 3.0
#: A larger difference between stamp and clock means that another clock made the stamp. A simulator sends its time at a
#: lower rate than images: their stamps may be ahead of the node's clock by one of its steps.
_LONGEST_DELAY_S, _LONGEST_LEAD_S = 60.0, 1.0


class CameraReport(NamedTuple):
    """What /diagnostics tells of a camera.

    Attributes:
        level: how it does, as DiagnosticStatus has it.
        message: the same in words.
        values: counts and rates by name.
        latency: median and 95th percentile in ms, by where it was measured.
        last_error: details of the last fault; empty for none.
    """

    level: bytes
    message: str
    values: dict[str, Any]
    latency: dict[str, dict[str, float]]
    last_error: str


class Fault(NamedTuple):
    """Something wrong with what a camera sent.

    Attributes:
        name: its kind.
        details: what is wrong, for people.
        moment: when it was seen, seconds of the monotonic clock.
        lost_frame: whether the frame was dropped.
    """

    name: str
    details: str
    moment: float
    lost_frame: bool = False


class CameraStatistics:
    """Counts what became of one camera's frames since the subscription. Any thread may record, any may read.

    Every frame received is counted a second time, as segmented or as dropped under its cause; the difference is the
    frames being processed. The camera sent what was received and what the transport dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._start = time.monotonic()
        self._last_received: float | None = None
        self._last_segmented = float("-inf")
        # Since when frames were replaced and none was processed to its end.
        self._busy_since: float | None = None
        self._last_stamp: float | None = None
        self._input, self._output = Rate(), Rate()
        # Of the images of the last seconds: when each came, and how many were lost just before.
        self._arrivals: deque[tuple[float, int]] = deque(maxlen=2000)
        self._silence_reason = ""
        self._received = self._lost = self._segmented = 0
        self._dropped: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._faults: deque[Fault] = deque(maxlen=100)
        self._latency = StageTimes()

    def received(self, stamp: float, lost: int = 0) -> Fault | None:
        """Record the arrival of a frame; return what is wrong with its stamp.

        Args:
            stamp: of its header, seconds; 0 where the driver leaves it empty.
            lost: how many frames the transport dropped between the previous one and this one.
        """
        with self._lock:
            self._received += 1
            self._lost += lost
            self._input.add()
            self._last_received = time.monotonic()
            self._arrivals.append((self._last_received, lost))
            self._silence_reason = ""
            if not stamp:
                return self.noted(
                    "no stamp",
                    "the camera's driver leaves the stamp of its images at 0, and the masks have it from them: no "
                    "latency can be measured, and what needs the time of a mask, such as tf, cannot use it; correct "
                    "the driver",
                    raises_level=False,
                )
            last, self._last_stamp = self._last_stamp, stamp
            if last is None or stamp >= last:
                return None
            return self.noted("stamp runs backwards", f"stamp {stamp:.3f} follows {last:.3f}")

    def segmented(self, received: float, delay: float | None) -> Fault | None:
        """Record that a frame was published; return what is wrong with its stamp.

        Args:
            received: when it arrived, seconds of the monotonic clock.
            delay: seconds from its stamp until now, by the node's clock; None where one of them is unknown.
        """
        with self._lock:
            self._segmented += 1
            self._output.add()
            self._last_segmented = time.monotonic()
            self._busy_since = None
            self._latency.add("in the node", self._last_segmented - received)
            if delay is None:
                return None
            if -_LONGEST_LEAD_S <= delay < _LONGEST_DELAY_S:
                if delay >= 0.0:
                    self._latency.add("end to end", delay)
                return None
            # Usual where a recording is played.
            return self.noted(
                "stamp of another clock",
                f"the image's stamp and the node's clock differ by {abs(delay):.3f} s, so no latency can be measured; "
                "play a recording with --clock, and set the node's parameter use_sim_time",
                raises_level=False,
            )

    def dropped(self, cause: str, details: str = "") -> None:
        """Record that a frame was dropped; ``details`` make it a fault."""
        with self._lock:
            self._dropped[cause] += 1
            if cause == REPLACED:
                self._busy_since = self._busy_since or time.monotonic()
            elif cause != LIMITED:  # the node was free for this frame, or is not asked to be
                self._busy_since = None
            if details:
                self._faults.append(Fault(cause, details, time.monotonic(), lost_frame=True))

    def noted(self, name: str, details: str, raises_level: bool = True) -> Fault:
        """Record a fault that drops no frame; return it. One that lasts, where the masks are right, raises no level."""
        with self._lock:
            fault = Fault(name, details, time.monotonic())
            self._noted[name] += 1
            if raises_level:
                self._faults.append(fault)
            return fault

    def silence_s(self) -> float:
        """Seconds since the last image, or since the subscription where there was none."""
        with self._lock:
            return time.monotonic() - (self._last_received or self._start)

    def receives(self, within_s: float) -> bool:
        """Whether an image has arrived in the last seconds."""
        with self._lock:
            return self._last_received is not None and self.silence_s() < within_s

    def explain_silence(self, reason: str) -> None:
        """Record why no image arrives; the next one makes it void."""
        with self._lock:
            self._silence_reason = reason

    def loss(self) -> tuple[int, int] | None:
        """How many images of the last seconds were dropped by the transport, and how many were sent; None for few."""
        with self._lock:
            start = time.monotonic() - _MEMORY_S
            recent = [lost for moment, lost in self._arrivals if moment > start]
            lost, sent = sum(recent), sum(recent) + len(recent)
            return (lost, sent) if lost >= max(_LEAST_LOST, _LEAST_LOST_SHARE * sent) else None

    def summary(self) -> str:
        """All counts, in one line."""
        with self._lock:
            counts = {
                "received": self._received,
                "segmented": self._segmented,
                **self._dropped,
                "dropped by the transport": self._lost,
            }
        return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "none"

    def report(self, topic: str, reliability: str = "", info_topic: str = "") -> CameraReport:
        """What to tell of a camera.

        Args:
            topic: full name of its images' topic.
            reliability: what is asked for there, in words.
            info_topic: full name of its calibration's topic.
        """
        with self._lock:
            level, message = self._judge(topic)
            values = {
                "topic": topic,
                "camera_info topic": info_topic,
                "reliability": reliability,
                "input rate [Hz]": f"{self._input.per_second():.1f}",
                "output rate [Hz]": f"{self._output.per_second():.1f}",
                "frames received": self._received,
                "frames dropped by the transport": self._lost,
                "frames segmented": self._segmented,
                **{f"dropped: {cause}": count for cause, count in self._dropped.items()},
                **{f"noted: {fault}": count for fault, count in self._noted.items()},
            }
            last_error = self._faults[-1].details if self._faults else ""
            return CameraReport(level, message, values, self._latency.summary_ms(), last_error)

    def _judge(self, topic: str) -> tuple[bytes, str]:
        now = time.monotonic()
        if (silence := self.silence_s()) > _STALE_AFTER_S:
            kind = "no further image" if self._last_received else "no image yet"
            reason = f": {self._silence_reason}" if self._silence_reason else ""
            return DiagnosticStatus.STALE, f"{kind} on {topic} for {silence:.0f} s{reason}"
        recent = [fault for fault in self._faults if now - fault.moment < _MEMORY_S]
        if recent:
            found = ", ".join(sorted({fault.name for fault in recent}))
            if now - self._last_segmented > _MEMORY_S and any(fault.lost_frame for fault in recent):
                return DiagnosticStatus.ERROR, f"no frame could be segmented: {found}"
            return DiagnosticStatus.WARN, f"faults in the last {_MEMORY_S:.0f} s: {found}"
        if loss := self.loss():
            return DiagnosticStatus.WARN, f"{LOST}: {describe_loss(*loss)}"
        if self._busy_since is not None and now - self._busy_since > _MEMORY_S:
            return DiagnosticStatus.WARN, f"no mask for {now - self._busy_since:.0f} s: the frames take too long"
        return DiagnosticStatus.OK, (
            f"{self._output.per_second():.1f} of {self._input.per_second():.1f} frames per second segmented"
        )


def describe_loss(lost: int, sent: int) -> str:
    """A loss from `CameraStatistics.loss`, in words."""
    return f"{lost} of {sent} in the last {_MEMORY_S:.0f} s"
