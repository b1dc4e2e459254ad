"""Which processors compute 8-bit exports alike."""

from __future__ import annotations

import pytest

from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.support.cpu import Cpu, read_cpu, this_cpu

X86 = """processor\t: 0
model name\t: Intel(R) Core(TM) i7-1185G7 @ 3.00GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Intel(R) Core(TM) i7-1185G7 @ 3.00GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni
"""
ARM = """processor\t: 0
BogoMIPS\t: 31.25
Features\t: fp asimd aes asimddp
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        (X86, "x86_64", ("Intel(R) Core(TM) i7-1185G7 @ 3.00GHz", ("avx2", "avx512f", "avx512_vnni"))),
        (ARM, "aarch64", ("aarch64", ("asimddp",))),
        (None, "arm64", ("arm64", None)),
    ],
)
def test_name_and_features_are_read_from_the_kernel(text, architecture, expected, tmp_path):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    cpu = read_cpu(tmp_path / "cpuinfo", architecture)
    assert (cpu.name, cpu.features) == expected


def cpu(*features, architecture="x86_64"):
    return Cpu(name="a", architecture=architecture, features=features)


UNKNOWN = Cpu(name="a", architecture="x86_64", features=None)


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        (cpu("avx2", "avx512f", "avx512_vnni"), cpu("avx2", "avx512f", "avx512_vnni"), True),
        (cpu("avx2", "avx512f"), cpu("avx2"), True),
        (cpu("avx2", "avx512f", "avx512_vnni"), cpu("avx2"), True),
        (cpu("avx2", "avx512f"), cpu("avx2", "avx512f", "avx512_vnni"), False),
        (cpu("avx2", "avx_vnni"), cpu("avx2", "avx512f", "avx512_vnni"), False),
        (cpu("avx2"), cpu(architecture="aarch64"), False),
        (cpu("asimddp", "i8mm", architecture="aarch64"), cpu("asimddp", architecture="aarch64"), True),
        (cpu("avx2"), UNKNOWN, False),
        (UNKNOWN, cpu("avx2"), False),
        (UNKNOWN, UNKNOWN, False),
    ],
)
def test_a_processor_is_as_exact_if_it_lacks_no_needed_feature(here, there, same):
    assert here.is_as_exact_as(there) is same


def test_this_processor_has_a_name():
    assert this_cpu().name


@pytest.mark.parametrize(("allowed", "threads", "expected"), [(3, 0, 3), (8, 0, 0), (3, 2, 2), (3, 5, 5)])
def test_onnx_runtime_starts_no_threads_for_cores_it_may_not_use(
    small_exported_bundle, allowed, threads, expected, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(allowed)))
    runtime = OnnxRuntime.candidates([small_exported_bundle], ComputeOptions(threads=threads))[0].open()
    options = [session._session.get_session_options() for session in runtime._sessions]
    assert {each.intra_op_num_threads for each in options} == {expected}
