"""/diagnostics: the state of the node and of each camera."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.node import Node

from dinov3_seg_ros.ros.endpoints.distributions import ClockType
from dinov3_seg_ros.ros.health.camera_statistics import CameraReport

_PERIOD_S = 1.0
# The form in which `_latencies` writes.
_STAGE, _DURATIONS = re.compile(r"stage (\w+) \[ms\]"), re.compile(r"median ([\d.]+), 95th percentile ([\d.]+)")


class DiagnosticsPublisher:
    """Publishes on /diagnostics once a second, in every lifecycle state.

    Args:
        node: the node that publishes.
        collect: called in the executor's thread; its statuses are published.
    """

    def __init__(self, node: Node, collect: Callable[[], list[DiagnosticStatus]]) -> None:
        self._node, self._collect = node, collect
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time, since simulated time may stand still.
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
    peers: Mapping[str, Sequence[str]],
    loading_s: float | None = None,
) -> DiagnosticStatus:
    """The node's own line of /diagnostics.

    Args:
        name: the node's.
        state: its lifecycle state.
        last_error: what keeps it from its work; empty for none.
        runtime: what computes the network, and in which precision.
        decode: what decodes its logits, from `decode.backend`.
        switches: whether each thing that can be switched is on.
        stages: from `StageTimes.summary_ms`.
        peers: what is wrong with other nodes' endpoints, a line for each, by kind.
        loading_s: for how many seconds the models have been loading; None where they are not being loaded.
    """
    level, message = DiagnosticStatus.OK, state
    off = [what for what, on in switches.items() if not on]
    if last_error:
        level, message = DiagnosticStatus.ERROR, f"{state}: {last_error.splitlines()[0]}"
    elif state == "active" and loading_s is not None:
        level, message = DiagnosticStatus.WARN, f"{state}: the models have been loading for {loading_s:.0f} s"
    elif wrong := [line for lines in peers.values() for line in lines]:
        level, message = DiagnosticStatus.WARN, f"{state}: {wrong[0]}"
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
        **{f"{kind} {number}": line for kind, lines in peers.items() for number, line in enumerate(lines, 1)},
    }
    return _status(level, name, message, values)


def camera_status(name: str, report: CameraReport) -> DiagnosticStatus:
    """A camera's line of /diagnostics."""
    values = {**report.values, **_latencies("latency {}", report.latency)}
    if report.last_error:
        values["last error"] = report.last_error
    return _status(report.level, name, report.message, values)


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
