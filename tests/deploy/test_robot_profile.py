"""Robot profiles: the shipped ones load, and each mistake in a limit is refused by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kineflow.config import CONFIG_ROOT, load_config, save_config
from kineflow.contracts import Interface, KineflowError
from kineflow.deploy.keep_out import Mount
from kineflow.deploy.robot_profile import Geofence, KeepOut, RobotProfile, Watchdogs

ROBOTS = sorted(file.stem for file in (CONFIG_ROOT / "robots").glob("*.yaml"))


@pytest.mark.parametrize("name", ROBOTS)
def test_shipped_profiles_load_and_survive_saving(name: str, tmp_path: Path) -> None:
    profile = load_config(RobotProfile, f"robots/{name}")
    assert profile.name == name
    save_config(profile, tmp_path / "again.yaml")
    assert load_config(RobotProfile, tmp_path / "again.yaml") == profile


def test_every_embodiment_is_shipped() -> None:
    assert set(ROBOTS) >= {"wheeled", "g1", "drone", "arm", "drone_px4", "wheeled_path"}


def test_every_adapter_is_shipped() -> None:
    """But plain Twist, which is one word in robots/wheeled."""
    adapters = {load_config(RobotProfile, f"robots/{name}").adapter for name in ROBOTS}
    assert adapters == {"twist_stamped", "g1", "mavlink", "px4", "joint_trajectory", "path"}


@pytest.mark.parametrize(
    ("robot", "change", "message"),
    [
        ("wheeled", "adapter: g1\nmavlink: {autopilot: px4}", "has adapter 'g1' and settings of ['mavlink']"),
        ("arm", "adapter: twist\njoint_trajectory: null", "adapter 'twist' does not carry commands of kind position"),
        ("wheeled", "adapter: joint_trajectory", "adapter 'joint_trajectory' does not carry commands of kind velocity"),
        ("drone", "adapter: g1\nmavlink: null", "adapter 'g1' does not carry 'vz'"),
        ("g1", "g1: {duration_s: 864000.0}", "g1.duration_s is 864000.0; a velocity may last 0.5 s at most"),
        ("g1", "g1: {interfaces: eth0}", "unknown key 'interfaces'; did you mean 'interface'?"),
        ("drone", "mavlink: {autopilot: betaflight}", "got 'betaflight'; one of ('px4', 'ardupilot')"),
        ("drone", "mavlink: {offboard: {silent_s: 1.0}}", "offboard.silent_s is 1.0; 0.23 s after a fault is the latest"),
        ("drone", "mavlink: {address: ttyUSB0}", "mavlink.address is 'ttyUSB0'; write HOST:PORT"),
        ("arm", "joint_trajectory: {lead_s: 0.0}", "lead_s is from 0 to 1 s"),
        ("wheeled_path", "path: {rate_hz: 0.0}", "rate_hz is from 0 to 50"),
    ],
)
def test_a_wrong_adapter_is_named(robot: str, change: str, message: str, tmp_path: Path) -> None:
    """YAML's later keys win: each change is written below a shipped profile."""
    file = tmp_path / "robot.yaml"
    file.write_text(f"{(CONFIG_ROOT / 'robots' / f'{robot}.yaml').read_text()}\n{change}\n")
    with pytest.raises(KineflowError) as refused:
        load_config(RobotProfile, file)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["wheeled", "g1", "drone"])
def test_bodies_take_the_command_of_the_navigation_policies(name: str) -> None:
    action = load_config(Interface, "interfaces/navigation").action.vector
    profile = load_config(RobotProfile, f"robots/{name}")
    assert (profile.command.names, profile.command.units, profile.command.frame) == (action.names, action.units, action.frame)
    assert all(low >= bound for low, bound in zip(profile.limits.low, action.low))
    assert all(high <= bound for high, bound in zip(profile.limits.high, action.high))


def test_the_wheeled_base_has_the_promised_defaults() -> None:
    profile = load_config(RobotProfile, "robots/wheeled")
    limits, dogs = profile.limits, profile.watchdogs
    assert (limits.high[0], limits.high[3]) == (0.5, 1.0)
    assert (limits.acceleration[0], limits.acceleration[3], limits.jerk[0]) == (2.5, 3.2, 10.0)
    assert (profile.rate_hz, dogs.observation_s, dogs.supervisor_s) == (50.0, 0.2, 0.5)
    assert (dogs.stamp_age_s, dogs.stamp_ahead_s, dogs.estop, profile.chunk.in_a_row) == (0.5, 0.1, True, 3)
    assert load_config(RobotProfile, "robots/arm").limits.margin == 0.1


@pytest.mark.parametrize(
    ("robot", "changes", "message"),
    [
        ("wheeled", {"high": (0.5, 0.0, 0.0)}, "limits.high has 3 entries"),
        ("wheeled", {"low": (0.1, 0.0, 0.0, -1.0)}, "velocity 'vx' is bounded by 0.1..0.5; 0 must lie between"),
        ("wheeled", {"jerk": (10.0, 10.0, 10.0, math.inf)}, "limits.jerk of 'yaw_rate' is inf"),
        ("wheeled", {"acceleration": (0.0, 2.5, 2.5, 3.2)}, "limits.acceleration of 'vx' is 0.0"),
        ("wheeled", {"acceleration": (math.nan, 2.5, 2.5, 3.2)}, "limits.acceleration of 'vx' is nan"),
        ("wheeled", {"high": (math.nan, 0.0, 0.0, 1.0)}, "0 must lie between"),
        ("wheeled", {"velocity": (1.0, 1.0, 1.0, 1.0)}, "limits.velocity is not used by commands of kind velocity"),
        ("wheeled", {"deceleration": (1.0, 1.0, 1.0, 1.0)}, "keep_out.deceleration 1.5 is more than limits.deceleration 1"),
        ("arm", {"margin": 3.2}, "position 'joint_1' with margin 3.2 has no room"),
        ("arm", {"deceleration": (1.0,) * 6}, "limits.deceleration of 'joint_1' must not be below its acceleration"),
        ("arm", {"jerk": (1.0,) * 6}, "limits.jerk is not used by commands of kind position"),
    ],
)
def test_a_wrong_limit_is_named(robot: str, changes: dict[str, Any], message: str) -> None:
    profile = load_config(RobotProfile, f"robots/{robot}")
    with pytest.raises(KineflowError) as refused:
        dataclasses.replace(profile, limits=dataclasses.replace(profile.limits, **changes))
    assert message in str(refused.value)


def test_other_parts_are_checked_too() -> None:
    arm = load_config(RobotProfile, "robots/arm")
    with pytest.raises(KineflowError, match="are about a moving base"):
        dataclasses.replace(arm, keep_out=KeepOut(deceleration=1.0))
    with pytest.raises(KineflowError, match="at least three finite corners"):
        Geofence(polygon=((0.0, 0.0), (1.0, 0.0)))
    with pytest.raises(KineflowError, match=r"watchdogs.supervisor_s is 0"):
        Watchdogs(supervisor_s=0.0)


CORNERS = ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Geofence(CORNERS, margin_m=math.nan), "margin_m nan not negative and finite"),
        (lambda: Geofence(CORNERS, margin_m=-1.0), "margin_m -1.0 not negative and finite"),
        (lambda: Geofence((CORNERS[0], CORNERS[2], CORNERS[1], CORNERS[3])), "cross; give the corners in order"),
        (lambda: Geofence(((0.0, 0.0), (1.0, 1.0), (2.0, 2.0))), "encloses nothing"),
        (lambda: KeepOut(1.5, latency_s=math.inf), "not negative and finite"),
        (lambda: KeepOut(1.5, margin_m=math.inf), "not negative and finite"),
        (lambda: Mount(yaw=math.nan), "finite numbers"),
        (lambda: dataclasses.replace(load_config(RobotProfile, "robots/wheeled"), rate_hz=math.inf), "both finite"),
        (lambda: dataclasses.replace(load_config(RobotProfile, "robots/wheeled"), footprint_radius_m=math.inf), "both finite"),
    ],
)
def test_what_would_open_a_fence_or_see_no_obstacle_is_refused(wrong: Callable[[], object], message: str) -> None:
    """No comparison holds with NaN: such a margin would never stop anything."""
    with pytest.raises(KineflowError, match=message):
        wrong()
    Geofence((*CORNERS, (0.5, 2.0)))  # not convex is well
