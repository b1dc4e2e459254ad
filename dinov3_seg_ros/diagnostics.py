"""What became of the frames, and how /diagnostics tells it."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from dinov3_seg_ros.timing import Rate, StageTimes

#: Why a frame was dropped though nothing was wrong with it.
REPLACED = "replaced by a newer one"
UNWANTED = "nobody subscribes"
SWITCHED_OFF = "switched off"
STOPPED = "waiting when the node was deactivated"

_PERIOD_S = 1.0
#: How long a fault shows in the level.
_MEMORY_S = 10.0
#: A camera silent for so long is stale.
_SILENCE_S = 3.0
#: A stamp older than this was made by another clock.
_LONGEST_DELAY_S = 60.0
# What `_latencies` writes.
_STAGE, _DURATIONS = re.compile(r"stage (\w+) \[ms\]"), re.compile(r"median ([\d.]+), 95th percentile ([\d.]+)")


class Fault(NamedTuple):
    """Something wrong with what a camera sent.

    Attributes:
        name: its kind.
        details: what is wrong, for people.
        moment: when it was seen, by the monotonic clock.
        lost_frame: whether it cost the frame.
    """

    name: str
    details: str
    moment: float
    lost_frame: bool = False


class CameraStatistics:
    """What became of one camera's frames since activation. Any thread may record, any may read.

    Every frame received is counted once more: as segmented, or as dropped under its cause. The difference is in work.
    What a camera sent is what was received and what was lost before the node.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._last_received: float | None = None
        self._last_segmented = float("-inf")
        self._last_stamp: float | None = None
        self._input, self._output = Rate(), Rate()
        self._received = self._lost = self._segmented = 0
        self._dropped: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._faults: deque[Fault] = deque(maxlen=100)
        self._latency = StageTimes()

    def received(self, stamp: float, lost: int = 0) -> Fault | None:
        """Record a frame's arrival; return what is wrong with its stamp.

        Args:
            stamp: its header's, seconds.
            lost: how many frames were sent between the one before and this one, and did not arrive.
        """
        with self._lock:
            self._received += 1
            self._lost += lost
            self._input.add()
            self._last_received = time.monotonic()
            last, self._last_stamp = self._last_stamp, stamp
            if last is None or stamp >= last:
                return None
            return self._note("stamp runs backwards", f"stamp {stamp:.3f} follows {last:.3f}")

    def segmented(self, received: float, delay: float) -> Fault | None:
        """Record a frame as published; return what is wrong with its stamp.

        Args:
            received: when it arrived, by the monotonic clock.
            delay: seconds from its stamp until now, by the node's clock.
        """
        with self._lock:
            self._segmented += 1
            self._output.add()
            self._last_segmented = time.monotonic()
            self._latency.add("in the node", self._last_segmented - received)
            if 0.0 <= delay < _LONGEST_DELAY_S:
                self._latency.add("end to end", delay)
                return None
            # Usual where a recording is played, and so no reason for a warning level.
            self._noted["stamp of another clock"] += 1
            return Fault(
                "stamp of another clock",
                f"the image's stamp and the node's clock differ by {abs(delay):.3f} s, so that no latency can be told; "
                "a recording is best played with --clock, to a node with the parameter use_sim_time",
                self._last_segmented,
            )

    def dropped(self, cause: str, details: str = "") -> None:
        """Record a frame as dropped; with details when it is a fault."""
        with self._lock:
            self._dropped[cause] += 1
            if details:
                self._faults.append(Fault(cause, details, time.monotonic(), lost_frame=True))

    def noted(self, name: str, details: str) -> Fault:
        """Record a fault that costs no frame; return it."""
        with self._lock:
            return self._note(name, details)

    def summary(self) -> str:
        """All counts in one line."""
        with self._lock:
            counts = {
                "received": self._received,
                "segmented": self._segmented,
                **self._dropped,
                "lost before the node": self._lost,
            }
        return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "none"

    def status(self, name: str, topic: str) -> DiagnosticStatus:
        """The camera's line of /diagnostics."""
        with self._lock:
            level, message = self._judge(topic)
            values = {
                "topic": topic,
                "input rate [Hz]": f"{self._input.per_second():.1f}",
                "output rate [Hz]": f"{self._output.per_second():.1f}",
                "frames received": self._received,
                "frames lost before the node": self._lost,
                "frames segmented": self._segmented,
                **{f"dropped: {cause}": count for cause, count in self._dropped.items()},
                **{f"noted: {fault}": count for fault, count in self._noted.items()},
                **_latencies("latency {}", self._latency.summary_ms()),
            }
            if self._faults:
                values["last error"] = self._faults[-1].details
        return _status(level, name, message, values)

    def _note(self, name: str, details: str) -> Fault:
        fault = Fault(name, details, time.monotonic())
        self._noted[name] += 1
        self._faults.append(fault)
        return fault

    def _judge(self, topic: str) -> tuple[bytes, str]:
        now = time.monotonic()
        silence = now - (self._last_received or self._start)
        if silence > _SILENCE_S:
            kind = "no further image" if self._last_received else "no image yet"
            return DiagnosticStatus.STALE, f"{kind} on {topic} for {silence:.0f} s"
        recent = [fault for fault in self._faults if now - fault.moment < _MEMORY_S]
        if recent:
            found = ", ".join(sorted({fault.name for fault in recent}))
            if now - self._last_segmented > _MEMORY_S and any(fault.lost_frame for fault in recent):
                return DiagnosticStatus.ERROR, f"no frame could be segmented: {found}"
            return DiagnosticStatus.WARN, f"faults in the last {_MEMORY_S:.0f} s: {found}"
        return DiagnosticStatus.OK, (
            f"{self._output.per_second():.1f} of {self._input.per_second():.1f} frames per second segmented"
        )


class DiagnosticsPublisher:
    """Publishes on /diagnostics once a second, in every state of the node.

    Args:
        node: the node that publishes.
        collect: called in the executor's thread; its statuses are published.
    """

    def __init__(self, node: Node, collect: Callable[[], list[DiagnosticStatus]]) -> None:
        self._node, self._collect = node, collect
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Not the node's clock: simulated time may stand still.
        self._timer = node.create_timer(_PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish now."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = self._collect()
        self._publisher.publish(message)


def node_status(
    name: str,
    state: str,
    last_error: str,
    runtime: str,
    decode: str,
    switches: Mapping[str, bool],
    stages: Mapping[str, Mapping[str, float]],
    mismatches: Sequence[str],
) -> DiagnosticStatus:
    """The node's own line of /diagnostics.

    Args:
        name: the node's.
        state: its lifecycle state.
        last_error: of a transition that failed, until one succeeds; empty for none.
        runtime: what computes the network, and in which precision.
        decode: what decodes its logits, from `decode.backend`.
        switches: what can be switched -> whether it is on.
        stages: from `StageTimes.summary_ms`.
        mismatches: from `Endpoints.mismatches`.
    """
    level, message = DiagnosticStatus.OK, state
    off = [what for what, on in switches.items() if not on]
    if last_error:
        level, message = DiagnosticStatus.ERROR, f"{state}: {last_error.splitlines()[0]}"
    elif mismatches:
        level, message = DiagnosticStatus.WARN, f"{state}: {mismatches[0]}"
    elif state != "active":
        level = DiagnosticStatus.WARN
    elif off:
        message = f"{state}; off: {', '.join(off)}"
    values = {
        "state": state,
        "runtime": runtime,
        "decode": decode,
        "last error": last_error or "none",
        **{what: "on" if on else "off" for what, on in switches.items()},
        **_latencies("stage {}", stages),
        **{f"mismatch {number}": line for number, line in enumerate(mismatches, 1)},
    }
    return _status(level, name, message, values)


def stages_of(status: DiagnosticStatus) -> dict[str, dict[str, float]]:
    """The stages in a status that `node_status` made: ``{stage: {"median": ms, "p95": ms}}``."""
    found = ((_STAGE.fullmatch(pair.key), _DURATIONS.fullmatch(pair.value)) for pair in status.values)
    return {key[1]: {"median": float(value[1]), "p95": float(value[2])} for key, value in found if key and value}


def _status(level: bytes, name: str, message: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id="dinov3_seg_ros", values=pairs)


def _latencies(key: str, summary: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    return {
        f"{key.format(stage)} [ms]": f"median {found['median']:.2f}, 95th percentile {found['p95']:.2f}"
        for stage, found in summary.items()
    }
