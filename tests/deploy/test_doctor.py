"""`kineflow doctor`: each fault that was made on purpose is found, with what to do; it works without ROS."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from kineflow.cli import main
from kineflow.contracts import KineflowError
from kineflow.deploy.doctor import Finding, examine, fifo, lines_of, runtime_threads, spinning, torch_threads
from kineflow.deploy.ros2.doctor import (
    discovery,
    domain,
    examine_ros,
    fast_dds_profile,
    judged,
    logs,
    middleware,
    picture_rate,
    rclpy_found,
    rest_of_wheels,
    segments,
    shared_memory,
)
from kineflow.deploy.ros2.environment import PROFILE, RosInstallation

FAST = RosInstallation("wheels", ("rmw_fastrtps_cpp",), "kilted")
DDS, RTPS = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"


def is_level(finding: Finding, level: str, said: str = "", to_do: str = "") -> None:
    assert finding.level == level, finding
    assert said in finding.found, finding
    assert to_do in finding.to_do, finding
    assert bool(finding.to_do) == (level != "ok"), "each fault has something to do, and nothing else has"


def test_threads_that_spin() -> None:
    is_level(spinning({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}), "ok")
    is_level(spinning({"OMP_WAIT_POLICY": "passive"}), "ok")
    is_level(spinning({}), "warn", "not set", "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0")
    is_level(spinning({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}), "warn", "1000")


def test_threads_leave_a_core() -> None:
    is_level(torch_threads({}, 4), "warn", "4 threads", "OMP_NUM_THREADS=3")
    is_level(torch_threads({"OMP_NUM_THREADS": "3,1"}, 4), "ok", "3 threads")
    is_level(torch_threads({"OMP_NUM_THREADS": "all"}, 4), "fail", "all", "whole number")
    is_level(runtime_threads(1, 2), "ok", "not spinning")
    is_level(runtime_threads(2, 2), "warn", "2 threads of 2 cores", "at most 1")
    with pytest.raises(KineflowError, match="--threads 0"):
        examine(0)


def test_a_runtime_that_spins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr("kineflow.deploy.runtimes.onnx_options", lambda threads: onnxruntime.SessionOptions())
    monkeypatch.setattr("onnxruntime.SessionOptions.get_session_config_entry", lambda self, name: "1")
    is_level(runtime_threads(1, 4), "fail", "spinning", "another version")


def test_fifo_is_really_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = os.sched_getscheduler(0)
    assert fifo().level in ("ok", "warn")
    assert os.sched_getscheduler(0) == before, "only the thread that asked takes it"
    monkeypatch.setattr("os.sched_setscheduler", refused)
    is_level(fifo(20), "warn", "not permitted", "rtprio 20")


def test_no_ros_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kineflow.deploy.ros2.doctor.importlib.util.find_spec", lambda name: None)
    installation, found = rclpy_found({})
    assert installation is None
    is_level(found, "fail", "not installed", "make ros2")
    is_level(picture_rate("front", 30.0, 1.0, os.environ), "fail", "no rclpy here")


def test_wheels_in_a_sourced_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package and its metadata as the wheel lays them out, found as Python finds them."""
    (tmp_path / "rclpy").mkdir()
    (tmp_path / "rclpy" / "__init__.py").touch()
    info = tmp_path / "ros_rclpy-9.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ros-rclpy\nVersion: 9.1.2\n")
    other = tmp_path / "ros_rmw_fastrtps_cpp-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ros-rmw-fastrtps-cpp\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    installation, found = rclpy_found({})
    assert installation == FAST
    is_level(found, "ok", str(tmp_path))
    for sourced in ({"AMENT_PREFIX_PATH": "/opt/ros/jazzy"}, {"LD_LIBRARY_PATH": "/opt/ros/humble/lib"}):
        none, mixed = rclpy_found(sourced)
        assert none is None
        is_level(mixed, "fail", "/opt/ros/", "Use a shell without it".removeprefix("Use a "))
    (tmp_path / "ros_wheels_bootstrapper").mkdir()
    (tmp_path / "ros_wheels_bootstrapper" / "__init__.py").touch()
    guard = {"_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
    is_level(rest_of_wheels({**guard, "LD_LIBRARY_PATH": "/x"}, FAST)[0], "ok")
    is_level(rest_of_wheels(guard, FAST)[0], "fail", "LD_LIBRARY_PATH", "unset")
    is_level(rest_of_wheels({}, RosInstallation("apt", (), "jazzy"))[0], "warn", "distribution's")


@pytest.mark.parametrize(
    ("environ", "level", "said"),
    [
        ({}, "ok", "rmw_fastrtps_cpp"),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, "ok", "rmw_fastrtps_cpp"),
        ({"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}, "fail", "'rmw_zenoh_cpp', installed here: rmw_fastrtps_cpp"),
    ],
)
def test_middleware(environ: Mapping[str, str], level: str, said: str) -> None:
    is_level(middleware(environ, FAST), level, said)


def test_domain_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_level(domain({}), "ok", "0")
    is_level(domain({"ROS_DOMAIN_ID": "77"}), "ok", "77")
    is_level(domain({"ROS_DOMAIN_ID": "233"}), "fail", "233", "0 to 232")
    is_level(logs({"ROS_LOG_DIR": str(tmp_path / "new")}), "ok", "new")
    is_level(logs({}), "fail", "HOME", "ROS_LOG_DIR")
    file = tmp_path / "file"
    file.touch()
    is_level(logs({"ROS_LOG_DIR": str(file / "log")}), "fail", "cannot be written", "ROS_LOG_DIR")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # of another user; a superuser may write everywhere
    is_level(logs({"ROS_LOG_DIR": str(tmp_path)}), "fail", "cannot be written", "ROS_LOG_DIR")


@pytest.mark.parametrize(
    ("asked", "level"), [("LOCALHOST", "ok"), ("", "warn"), ("SUBNET", "warn"), ("OFF", "warn"), ("localhost", "fail")]
)
def test_discovery(asked: str, level: str) -> None:
    is_level(discovery({"ROS_AUTOMATIC_DISCOVERY_RANGE": asked}), level, asked)
    is_level(discovery({"ROS_LOCALHOST_ONLY": "1"}), "warn", "ROS_LOCALHOST_ONLY", "LOCALHOST")


def test_profile(tmp_path: Path) -> None:
    is_level(fast_dds_profile({DDS: str(PROFILE)}, FAST), "ok", "16 MB")
    is_level(fast_dds_profile({}, FAST), "warn", "no profile", f"{DDS}={PROFILE}")
    is_level(fast_dds_profile({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, FAST), "ok", "not needed")
    is_level(fast_dds_profile({DDS: str(PROFILE), RTPS: str(PROFILE)}, FAST), "warn", "both", "unset")
    is_level(fast_dds_profile({DDS: str(tmp_path / "none.xml")}, FAST), "fail", "No such file", str(PROFILE))
    broken = tmp_path / "broken.xml"
    broken.write_text("<dds><profiles>")
    is_level(fast_dds_profile({RTPS: str(broken)}, FAST), "fail", "broken.xml", "readable")
    small = tmp_path / "small.xml"
    small.write_text(PROFILE.read_text().replace("16777216", "524288"))
    is_level(fast_dds_profile({DDS: str(small)}, FAST), "warn", "524288 bytes", "16777216")


def test_shared_memory(tmp_path: Path) -> None:
    is_level(shared_memory(tmp_path), "ok", "MB free")
    is_level(shared_memory(tmp_path / "none"), "fail", "cannot be written", "tmpfs")
    is_level(segments(tmp_path), "ok", "none")
    left = tmp_path / "fastdds_00000000000000ab"
    left.write_bytes(bytes(2**20))
    is_level(segments(tmp_path), "warn", "1 with 1 MB", str(left))
    assert left.exists(), "the doctor changes nothing"


def measured(rate_hz: float, offered: str = "best effort, volatile") -> dict[str, object]:
    return {"rate_hz": rate_hz, "offered": offered, "bytes": 921600, "type": "sensor_msgs/msg/Image"}


def test_rates_are_judged_as_the_node_does() -> None:
    is_level(judged("front", measured(29.5), 30.0), "ok", "29.5 Hz of 30, 0.92 MB")
    is_level(judged("front", measured(14.0), 30.0), "fail", "14.0 Hz", DDS)
    is_level(judged("front", measured(20.0, "reliable, volatile"), 30.0), "warn", "20.0 Hz", "load")


def test_the_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert {finding["what"] for finding in found["findings"]} >= {"torch", "ONNX Runtime", "real-time priority"}
    assert main(["doctor", "--topic", "front"]) == 2
    assert "--ros" in capsys.readouterr().err
    monkeypatch.setenv("ROS_DOMAIN_ID", "300")
    assert main(["doctor", "--ros", "--topic", "front"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  domain: ROS_DOMAIN_ID is '300'" in said
    assert "not measured: a node could not start here" in said
    assert lines_of([Finding("warn", "a", "b", "c")]) == ["warn  a: b", "      -> c"]
    assert all(bool(f.to_do) == (f.level != "ok") for f in examine_ros(environ={}))
