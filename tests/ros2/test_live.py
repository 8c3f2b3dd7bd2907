"""The doctor and the dashboard beside real nodes: rates that are measured, diagnostics that are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kineflow.deploy.ros2.environment import PROFILE
from kineflow.deploy.ros2.rig import wait_for
from kineflow.deploy.ros2.session import Session

pytestmark = pytest.mark.real_time


def kineflow(session: Session, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "ROS_DOMAIN_ID": str(session.rig.domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    settings |= {"ROS_LOG_DIR": str(session.rig.folder), "FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE)}
    command = [sys.executable, "-m", "kineflow.cli", *words]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)


def test_the_dashboard_shows_what_the_node_does(session: Session) -> None:
    for seconds in ("6", "12", "24"):  # a busy machine introduces them late
        done = kineflow(session, "deploy", "watch", "--seconds", seconds, "--json")
        looks = [json.loads(text) for text in done.stdout.splitlines()]
        if len(looks) >= 2:
            break
    assert done.returncode == 0, done.stderr
    assert len(looks) >= 2
    last = looks[-1]
    assert (last["robot"], last["state"]) == ("wheeled", "active")
    assert last["axes"] == ["vx", "vy", "vz", "yaw_rate"]
    assert (last["low"], last["high"]) == ([-0.5, 0.0, 0.0, -1.0], [0.5, 0.0, 0.0, 1.0])
    moving = [look for look in looks if look["outcome"] in ("pass", "clamp")]
    assert moving, looks
    np.testing.assert_allclose(moving[-1]["wanted"], [0.4, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(moving[-1]["commanded"], [0.4, 0, 0, 0], atol=0.05)
    assert last["ages_s"].keys() == {"front", "pose"}
    assert 0 < last["latency_p50_s"] <= last["latency_p95_s"] < 2.0
    assert last["asked"]["chunks"] >= looks[0]["asked"]["chunks"] > 0
    assert last["counts"]["pass"] + last["counts"].get("clamp", 0) > 0
    plain = kineflow(session, "deploy", "watch", "--seconds", "4")
    assert plain.returncode == 0, plain.stderr
    assert "wheeled active" in plain.stdout
    assert "\x1b" not in plain.stdout
    assert kineflow(session, "deploy", "watch", "--seconds", "2", "--node", "nobody").returncode == 1


def test_the_doctor_measures_the_camera(session: Session) -> None:
    def findings() -> tuple[int, dict[str, dict[str, str]]]:
        done = kineflow(session, "doctor", "--ros", "--topic", "front", "--seconds", "3", "--json")
        assert done.stdout, done.stderr
        return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}

    for _ in range(4):  # a busy machine loses pictures
        code, found = findings()
        rate = float(found["pictures on front"]["found"].split(" Hz")[0])
        if rate > 20:
            break
    assert "wheels of PyPI, kilted" in found["rclpy"]["found"]
    assert "rmw_fastrtps_cpp" in found["RMW"]["found"]
    assert found["Fast DDS profile"]["level"] == found["discovery"]["level"] == found["domain"]["level"] == "ok"
    camera = found["pictures on front"]
    assert "0.92 MB each, sensor_msgs/msg/Image" in camera["found"]
    assert 10 < rate < 36  # of 30
    assert code == (1 if rate < 15 else 0)
    session.rig.fault("camera off")
    try:
        code, found = findings()
        assert code == 1
        assert found["pictures on front"]["found"].startswith("0.0 Hz of 30")
        assert found["pictures on front"]["to_do"]
    finally:
        session.recover()
        wait_for(lambda: not session.rig.heard[-1].is_zero, 30.0)
