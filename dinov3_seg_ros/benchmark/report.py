"""The result of `session.Session.run` as text."""

from __future__ import annotations

from typing import Any

from dinov3_seg_ros.support.timing import GPU_STAGES


def table(result: dict[str, Any]) -> str:
    """The result as a table and some sentences."""
    columns = columns_of(result)
    width = max(map(len, columns)) + 10
    lines = [
        f"{result['bundle']}: {result['runtime']}, frames {_size(result['frame_size'])}, "
        f"network {_size(result['network_size'])}" + (f", batches of {result['batch']}" if result["batch"] > 1 else ""),
        f"{'median ms (95th percentile)':<28}" + "".join(f"{name:>{width}}" for name in columns),
    ]
    for stage in (*GPU_STAGES, "total"):
        times = [c["total_ms"] if stage == "total" else c["stages_ms"].get(stage) for c in columns.values()]
        if any(times):
            cells = [f"{t['median']:.2f} ({t['p95']:.2f})" if t else "" for t in times]
            lines.append(f"{stage:<28}" + "".join(f"{cell:>{width}}" for cell in cells))
    shared = " with the baselines in the same process" if "baselines" in result and "ros" not in result else ""
    lines += [
        f"{result['frames_per_second']} frames per second, peak memory {result['peak_memory_mb']} MB{shared}; "
        f"{result['classes_in_view']} classes in view; outside the backbone {result['outside_backbone']:.1%} of its "
        "time",
        _rates(result["backbone"], result["gemm_gflops"], result["gemm_type"]),
    ]
    if result["overlapped_frames_per_second"] is not None:
        lines.append(
            f"{result['overlapped_frames_per_second']} frames per second when the next frame starts before the "
            "previous one is finished"
        )
    if "ros" in result:
        ros = result["ros"]
        lines += [
            f"first mask {ros['startup_s']:.1f} s after the start of the node's process; from stamp to arrival: mask "
            f"{_ms(ros['latency_ms']['mask'])}, overlay {_ms(ros['latency_ms']['overlay'])}",
            f"ROS adds {_ms(ros['overhead_ms'])} to the pipeline without a node; the node's stages but backbone and "
            f"heads take {ros['node_overhead_ms']:.2f} ms; equal labels {ros['equal_labels']:.4%}",
        ]
    for name, column in result.get("baselines", {}).items():
        equal = "" if column["equal_labels"] is None else f"; equal labels {column['equal_labels']:.4%}"
        lines.append(f"{column['ratio']} times faster than the {name} pipeline on the CPU{equal}")
    return "\n".join(lines)


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pipelines that stand side by side: name -> its ``stages_ms`` and ``total_ms``."""
    if "ros" in result:
        return {"through ROS": result, "without a node": result["pipeline"], **result.get("baselines", {})}
    return {"dinov3_seg_ros": result, **result.get("baselines", {})}


def _rates(backbone: dict[str, Any] | None, gemm_gflops: float | None, gemm_type: str) -> str:
    gemm = "" if gemm_gflops is None else f"the measured {gemm_type} GEMM rate {gemm_gflops:.0f} GFLOP/s"
    if backbone is None:
        missing = "the backbone's operations were not counted: that needs PyTorch, transformers and the weights"
        return "; ".join(filter(None, (gemm, missing)))
    share = "" if gemm_gflops is None else f", {backbone['share_of_gemm']:.0%} of {gemm}"
    return f"backbone {backbone['gflop']:.1f} GFLOP, {backbone['gflops']:.0f} GFLOP/s{share}"


def _size(size: list[int]) -> str:
    return "x".join(map(str, size))


def _ms(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} ({times['p95']:.2f}) ms"
