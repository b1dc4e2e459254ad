"""Which processors compute 8-bit exports alike."""

from __future__ import annotations

import pytest

from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.support.cpu import Cpu, cpu_quota, quota_threads, read_cpu, this_cpu, usable_cores

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


@pytest.mark.parametrize(
    ("allowed", "quota", "threads", "expected"),
    [(3, None, 0, 3), (8, None, 0, 0), (3, None, 2, 2), (3, None, 5, 5), (8, 2, 0, 2), (3, 9, 0, 3), (8, 2, 4, 4)],
)
def test_onnx_runtime_starts_no_threads_for_cores_it_may_not_use(
    small_exported_bundle, allowed, quota, threads, expected, cores, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    cores(allowed, quota)
    runtime = OnnxRuntime.candidates([small_exported_bundle], ComputeOptions(threads=threads))[0].open()
    options = [session._session.get_session_options() for session in runtime._sessions]
    assert {each.intra_op_num_threads for each in options} == {expected}


V2, V1 = {"cpu.max": "{quota} 100000"}, {"cpu.cfs_quota_us": "{quota}", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"": (V2, 200000)}, 2),  # docker run --cpus=2
        ("0::/", {"": (V2, 150000)}, 2),
        ("0::/", {"": (V2, "max")}, None),
        ("0::/robot.slice/node.service", {"robot.slice": (V2, 300000), "robot.slice/node.service": (V2, "max")}, 3),
        ("0::/robot.slice/node.service", {"robot.slice": (V2, 300000), "robot.slice/node.service": (V2, 50000)}, 1),
        ("0::/robot.slice", {"other.slice": (V2, 100000)}, None),
        ("4:cpu,cpuacct:/docker/0f\n3:memory:/docker/0f", {"cpu": (V1, 400000)}, 4),  # the host's name of the group
        ("1:cpu:/robot\n0::/", {"cpu": (V1, -1), "cpu/robot": (V1, 250000)}, 3),
        ("1:cpu:/robot", {"cpu/robot": (V1, -1)}, None),
        ("3:cpuset:/robot", {"robot": (V2, 100000), "cpu/robot": (V1, 100000)}, None),
        (None, {}, None),
    ],
)
def test_the_least_quota_of_a_group_and_those_above_counts(groups, limits, expected, tmp_path):
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups + "\n")
    for folder, (files, quota) in limits.items():
        (tmp_path / "mounted" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / "mounted" / folder / name).write_text(text.format(quota=quota) + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "mounted") == expected


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"), [(8, None, (8, 0)), (8, 2, (2, 2)), (8, 8, (8, 0)), (2, 8, (2, 0))]
)
def test_a_quota_bounds_the_cores_and_what_heeds_only_cpusets(allowed, quota, expected, cores):
    cores(allowed, quota)
    assert (usable_cores(), quota_threads()) == expected
