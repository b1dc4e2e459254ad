"""The environment for sending images, and what the doctor says of it."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from exported_bundles import write_exported_bundle

from dinov3_seg_ros.doctor import communication
from dinov3_seg_ros.doctor.__main__ import examine, main
from dinov3_seg_ros.doctor.findings import FAULT, OK, WARNING
from dinov3_seg_ros.ros.local_graph import node_command, prepare
from dinov3_seg_ros.ros.shared_memory import remove_dead_segments
from dinov3_seg_ros.ros.transport import (
    LOCAL_PROFILE,
    PROFILE,
    PROFILE_VARIABLES,
    TRANSPORT_VARIABLES,
    configure_transport,
    our_setting,
    profile_variable,
    remedy_for_lost_images,
)
from dinov3_seg_ros.support.resources import resource_path

FAST_DDS = "rmw_fastrtps_cpp"
# As docs/node.md exports them.
AS_DOCUMENTED = dict.fromkeys(PROFILE_VARIABLES, str(resource_path(PROFILE)))


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", [{}, {"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, {"FASTDDS_BUILTIN_TRANSPORTS": ""}])
def test_the_profile_is_set_where_the_user_has_chosen_nothing(in_empty_folder, given):
    environment = dict(given)
    assert configure_transport(environment) == f"{profile_variable()}={resource_path(PROFILE)}"
    assert environment == {**given, profile_variable(): str(resource_path(PROFILE))}
    assert configure_transport(environment) == our_setting(), "a process that this one starts finds it set"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA"),
        ("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4"),
        ("FASTDDS_DEFAULT_PROFILES_FILE", "/own/profile.xml"),
        ("FASTRTPS_DEFAULT_PROFILES_FILE", "/own/profile.xml"),
        ("RMW_FASTRTPS_USE_QOS_FROM_XML", "1"),
        ("ROS2_EASY_MODE", "127.0.0.1"),
        ("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp"),
    ],
)
def test_a_transport_that_the_user_has_chosen_is_left_alone(in_empty_folder, variable, value):
    environment = {variable: value}
    assert configure_transport(environment) == f"{variable}={value}"
    assert environment == {variable: value}


def test_a_profile_in_the_working_directory_is_left_alone(in_empty_folder):
    profile = in_empty_folder / "DEFAULT_FASTDDS_PROFILES.xml"
    profile.write_text("<profiles/>")
    environment = {}
    assert configure_transport(environment) == str(profile)
    assert environment == {}
    configure_transport(skipping := {"SKIP_DEFAULT_XML_FILE": "1"})
    assert profile_variable() in skipping


def test_on_humble_a_node_that_shall_stay_on_its_machine_gets_no_profile(in_empty_folder, monkeypatch):
    """Humble would keep the profile's transport to other machines."""
    environment = {"ROS_LOCALHOST_ONLY": "1"}
    assert configure_transport(dict(environment)) == our_setting(), "later distributions restrict the profile's"
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.3.15")
    assert configure_transport(environment) == "ROS_LOCALHOST_ONLY=1"
    assert environment == {"ROS_LOCALHOST_ONLY": "1"}
    remedy = remedy_for_lost_images(FAST_DDS, environment)
    assert remedy.endswith(f"unset ROS_LOCALHOST_ONLY everywhere and set {our_setting(LOCAL_PROFILE)} instead")
    assert configure_transport(elsewhere := {"ROS_LOCALHOST_ONLY": "0"}) == our_setting()
    assert elsewhere[profile_variable()] == str(resource_path(PROFILE))


@pytest.mark.parametrize(
    ("given", "release", "expected"),
    [
        ({}, "9.1.0", {"FASTDDS_DEFAULT_PROFILES_FILE": PROFILE}),
        ({}, "3.3.15", {"FASTRTPS_DEFAULT_PROFILES_FILE": LOCAL_PROFILE}),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, "3.3.15", {"ROS_LOCALHOST_ONLY": "1"}),
        (AS_DOCUMENTED, "9.1.0", {}),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", **AS_DOCUMENTED}, "9.1.0", {}),
        (AS_DOCUMENTED, "3.3.15", {"FASTRTPS_DEFAULT_PROFILES_FILE": LOCAL_PROFILE}),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/own/profile.xml"}, "3.3.15", {}),
    ],
)
def test_a_graph_of_our_own_stays_on_this_machine(in_empty_folder, monkeypatch, given, release, expected):
    names = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "RMW_IMPLEMENTATION", *TRANSPORT_VARIABLES)
    with monkeypatch.context() as environment:
        environment.setattr("importlib.metadata.version", lambda name: release)
        for name in names:
            environment.setenv(name, "")  # so that it is put back
            del os.environ[name]
        os.environ.update(given)
        prepare()
        found = {name: os.environ[name] for name in names if name in os.environ}
    paths = {name: str(resource_path(value)) if "/" in value else value for name, value in expected.items()}
    assert found == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **given, **paths}


def test_parameters_that_are_off_or_zero_are_given_to_a_node_too():
    command = node_command("robot", {"bundle": "demo", "threads": None, "cuda_graphs": False, "max_rate": 0.0})
    assert command[1:3] == ["-m", "dinov3_seg_ros.node"]
    assert command[3:] == [
        "--ros-args", "-r", "__ns:=/robot", "-p", "bundle:=demo", "-p", "cuda_graphs:=False", "-p", "max_rate:=0.0",
    ]  # fmt: skip


def test_the_profile_of_a_local_graph_sends_to_no_other_machine():
    profile, local = (ElementTree.parse(resource_path(name)).getroot() for name in (PROFILE, LOCAL_PROFILE))
    assert [address.text for address in local.iterfind(".//{*}interfaceWhiteList/{*}address")] == ["127.0.0.1"]
    for name in ("segment_size", "count", "nanosec", "useBuiltinTransports"):
        assert local.findtext(f".//{{*}}{name}") == profile.findtext(f".//{{*}}{name}")
    used = [name.text for name in local.iterfind(".//{*}userTransports/{*}transport_id")]
    assert used == [name.text for name in local.iterfind(".//{*}transport_descriptor/{*}transport_id")]


@pytest.mark.parametrize("release", ["7.1.0", "9.1.0"])  # Jazzy, Kilted
def test_the_remedy_for_lost_images_fits_what_was_chosen(in_empty_folder, monkeypatch, release):
    monkeypatch.setattr("importlib.metadata.version", lambda name: release)
    assert profile_variable() == PROFILE_VARIABLES[release < "8"]
    ours = f"start the publisher with {our_setting()}"
    assert remedy_for_lost_images(FAST_DDS, {}).startswith(ours)
    assert remedy_for_lost_images(FAST_DDS, {profile_variable(): str(resource_path(PROFILE))}).startswith(ours)
    assert remedy_for_lost_images(FAST_DDS, AS_DOCUMENTED).startswith(ours)
    read, other = profile_variable(), next(name for name in PROFILE_VARIABLES if name != profile_variable())
    assert f"with {read}=/own/profile.xml: this" in remedy_for_lost_images(FAST_DDS, {other: "/own/profile.xml"})
    assert "/own/profile.xml decides" in remedy_for_lost_images(
        FAST_DDS, {read: "/own/profile.xml", other: "/other.xml"}
    )
    assert "unset FASTDDS_BUILTIN_TRANSPORTS" in remedy_for_lost_images(
        FAST_DDS, {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}
    )
    assert "give rmw_zenoh_cpp larger buffers" in remedy_for_lost_images("rmw_zenoh_cpp", {}), (
        "which may be the only one"
    )
    assert "/own/profile.xml decides" in remedy_for_lost_images(FAST_DDS, {profile_variable(): "/own/profile.xml"})


@pytest.mark.parametrize(
    ("environment", "level", "detail", "remedy"),
    [
        ({}, WARNING, "use the default, which loses best-effort images", "export {ours}"),
        (
            {"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"},
            WARNING,
            "the node keeps FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA, which loses best-effort images",
            "let the camera driver publish reliably, or for all processes: unset FASTDDS_BUILTIN_TRANSPORTS; export",
        ),
        ({"{read}": "/nowhere.xml"}, FAULT, "/nowhere.xml does not exist", "correct or unset {read}"),
        ({"{read}": __file__}, OK, "(from {read})", ""),
        ({"{other}": __file__}, WARNING, "does not read that variable", "export {read}="),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, OK, "rmw_cyclonedds_cpp: set its own buffers", ""),
    ],
)
def test_the_doctor_names_the_transport(monkeypatch, in_empty_folder, environment, level, detail, remedy):
    other = next(name for name in PROFILE_VARIABLES if name != profile_variable())
    names = {"read": profile_variable(), "other": other, "ours": our_setting()}
    for variable in (*TRANSPORT_VARIABLES, "RMW_IMPLEMENTATION"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable.format(**names), value)
    (finding,) = communication.transport()
    assert finding.level == level
    assert detail.format(**names) in finding.detail
    assert finding.remedy.startswith(remedy.format(**names)) and bool(finding.remedy) == bool(remedy)


@pytest.mark.ros
def test_the_doctor_knows_a_middleware_that_is_the_only_one_installed(monkeypatch, in_empty_folder):
    utilities = pytest.importorskip("rclpy.utilities", reason="no ROS 2 here")
    monkeypatch.setattr(utilities, "get_rmw_implementation_identifier", lambda: "rmw_cyclonedds_cpp")
    for variable in (*TRANSPORT_VARIABLES, "RMW_IMPLEMENTATION"):
        monkeypatch.delenv(variable, raising=False)
    (finding,) = communication.transport()
    assert (finding.level, finding.subject) == (OK, "DDS")
    assert "rmw_cyclonedds_cpp" in finding.detail


def test_the_profile_gives_32_mb_of_shared_memory_and_keeps_udp():
    root = ElementTree.parse(resource_path(PROFILE)).getroot()
    namespace = {"p": root.tag[1:].partition("}")[0]}
    assert root.find(".//p:segment_size", namespace).text == str(32 << 20)
    assert {t.text for t in root.findall(".//p:transport_descriptor/p:type", namespace)} == {"SHM", "UDPv4"}


def test_a_new_node_announces_itself_until_the_usual_period_takes_over():
    """Half of the starts took 2 s longer with Fast DDS's own five announcements: see the profile."""
    profile = ElementTree.parse(resource_path(PROFILE)).getroot()
    (announcements,) = profile.iterfind(".//{*}initialAnnouncements")
    period_s = float(announcements.findtext("{*}period/{*}sec")) + 1e-9 * float(
        announcements.findtext("{*}period/{*}nanosec")
    )
    assert period_s <= 0.2
    assert int(announcements.findtext("{*}count")) * period_s > 3.0, "Fast DDS announces every 3 s afterwards"


def page_faults_of_later_frames(before):
    """Of a new process that frees four buffers of 6 MB together, several times; what it does before is given."""
    code = f"""
import resource
from dinov3_seg_ros.ros.transport import keep_freed_memory
{before}
for _ in range(5):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    frames = [b"x" * (6 << 20) for _ in range(4)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    root = Path(__file__).resolve().parent.parent
    return int(subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are not told")
def test_buffers_of_frames_are_not_returned_to_the_kernel():
    assert page_faults_of_later_frames("assert keep_freed_memory()") < 100 < page_faults_of_later_frames("")


def test_the_doctor_tells_a_sound_bundle_from_a_damaged_one(tmp_path, capsys):
    bundle = write_exported_bundle(tmp_path / "bundle")
    assert not [f for f in examine([bundle.path]) if f.level == FAULT and "bundle" in f.subject]
    (bundle.path / "head.safetensors").write_bytes(b"cut")
    assert main([str(bundle.path)]) == 1
    assert "head.safetensors is damaged" in capsys.readouterr().out


def test_every_finding_that_is_not_fine_has_a_remedy(tmp_path):
    assert [f for f in examine([tmp_path]) if f.level != "ok" and not f.remedy and "runtime" not in f.subject] == []


def test_only_segments_left_empty_by_a_killed_process_are_removed(tmp_path):
    old = time.time() - 60
    for name, content, modified in (
        ("fastdds_port7001", b"", old),
        ("fastrtps_port7413", b"", old),
        ("fastdds_port7003_el", b"", old),
        ("fastdds_port7004", b"", time.time()),
        ("other", b"", old),
    ):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (modified, modified))
    remove_dead_segments(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"fastdds_port7003_el", "fastdds_port7004", "other"}


def test_ports_are_removed_once_no_process_reads_them(tmp_path):
    old = time.time() - 60
    for port in ("fastdds_port7001", "fastdds_port7003", "fastrtps_port7005"):
        for name in (port, f"sem.{port}_mutex", f"{port}_{'sl' if port.endswith('1') else 'el'}"):
            (tmp_path / name).write_bytes(b"content")
            os.utime(tmp_path / name, (old, old))
    (tmp_path / "fastdds_port7001_el").touch()  # free, but the other lock is held
    os.utime(tmp_path / "fastdds_port7001_el", (old, old))
    (tmp_path / "fastdds_port7007").write_bytes(b"new")
    with (
        (tmp_path / "fastdds_port7001_sl").open("rb") as first,
        (tmp_path / "fastdds_port7003_el").open("rb") as second,
    ):
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_EX)
        removed = remove_dead_segments(tmp_path)
    assert [path.name for path in removed] == [
        "fastrtps_port7005",
        "fastrtps_port7005_el",
        "sem.fastrtps_port7005_mutex",
    ]


def test_data_segments_are_removed_once_no_process_holds_their_lock(tmp_path):
    old = time.time() - 60
    for name in ("fastdds_held", "fastdds_held_el", "fastrtps_left", "fastrtps_left_el", "fastdds_port7001_el"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "fastdds_new_el").touch()
    with (tmp_path / "fastdds_held_el").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        removed = remove_dead_segments(tmp_path)
    assert [path.name for path in removed] == ["fastrtps_left", "fastrtps_left_el"]
