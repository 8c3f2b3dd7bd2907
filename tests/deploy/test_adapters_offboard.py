"""What an autopilot is told: frames in closed form, health from the real governor, and life only while there is health."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kineflow.deploy.adapters.frames import heading, ned_from_flu
from kineflow.deploy.adapters.offboard import Mode, Offboard
from kineflow.deploy.adapters.settings import G1Settings, MavlinkSettings, OffboardSettings
from kineflow.deploy.governor import Command, Health, Intent
from kineflow.deploy.ros2.governed import Governed
from kineflow.interface import KineflowError
from tests.deploy.governed import FAST, Drive

S = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("attitude", "forward", "left", "up"),
    [
        ((1.0, 0.0, 0.0, 0.0), (1, 0, 0), (0, -1, 0), (0, 0, -1)),  # level, nose to the north: left is west
        ((S, 0.0, 0.0, S), (0, 1, 0), (1, 0, 0), (0, 0, -1)),  # nose to the east: left is north
        ((0.0, 0.0, 0.0, 1.0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)),  # to the south: left is east
        ((S, 0.0, S, 0.0), (0, 0, -1), (0, -1, 0), (-1, 0, 0)),  # pitched up by 90 degrees: forward is up, up is south
        ((S, S, 0.0, 0.0), (1, 0, 0), (0, 0, -1), (0, 1, 0)),  # rolled right by 90 degrees: left is up, up is east
    ],
)
def test_axes_of_the_body_in_ned(attitude, forward, left, up) -> None:  # type: ignore[no-untyped-def]
    for flu, ned in zip(np.eye(3), (forward, left, up)):
        np.testing.assert_allclose(ned_from_flu(flu, attitude), ned, atol=1e-12)


def test_any_attitude_against_rotation_matrices() -> None:
    """Oracle: R_z(yaw) R_y(pitch) R_x(roll) diag(1, -1, -1), from the angles instead of the quaternion."""
    for yaw, pitch, roll in itertools.product((-2.5, 0.3, 3.0), (-1.2, 0.0, 0.7), (-0.4, 2.0)):
        (cy, cp, cr), (sy, sp, sr) = (tuple(f(a) for a in (yaw, pitch, roll)) for f in (math.cos, math.sin))
        turned = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ [[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]
        turned = turned @ [[1, 0, 0], [0, cr, -sr], [0, sr, cr]] @ np.diag([1.0, -1, -1])
        half = [(math.cos(a / 2), math.sin(a / 2)) for a in (yaw, pitch, roll)]
        (cy, sy), (cp, sp), (cr, sr) = half
        w, x = cy * cp * cr + sy * sp * sr, cy * cp * sr - sy * sp * cr
        y, z = cy * sp * cr + sy * cp * sr, sy * cp * cr - cy * sp * sr
        flu = np.array([0.3, -1.1, 0.7])
        np.testing.assert_allclose(ned_from_flu(flu, (w, x, y, z)), turned @ flu, atol=1e-12)
    c, s = math.cos(0.3), math.sin(0.3)
    np.testing.assert_allclose(ned_from_flu(flu, heading(0.3)), [0.3 * c - 1.1 * s, 0.3 * s + 1.1 * c, -0.7], atol=1e-12)


def test_a_left_turn_is_negative_in_ned() -> None:
    assert ned_from_flu(np.array([0.0, 0.0, 0.5]), heading(1.0)).tolist() == pytest.approx([0, 0, -0.5])


# Health, as the real governor says it


def test_health_of_what_the_governor_says() -> None:
    drive = Drive(FAST)
    assert drive.tick([0.2, 0, 0, 0]).health == "follows"
    assert drive.tick([9.0, 0, 0, 0]).health == "follows"  # clamped
    assert drive.tick(None).health == "waits"
    assert drive.tick([math.nan, 0, 0, 0]).health == "fault"
    resting = Intent(None, "no goal", drive.now_s, rests=True)
    assert drive.governor.govern(resting, drive.now_s + 0.02).health == "rests"
    drive.now_s += 0.02
    drive.alive.discard("observation")
    drive.run([0.2, 0, 0, 0], 0.24)
    assert drive.tick([0.2, 0, 0, 0]).health == "fault"
    drive.alive.add("observation")
    assert drive.tick([0.2, 0, 0, 0]).health == "follows"
    drive.alive.discard("supervisor")
    drive.run([0.2, 0, 0, 0], 0.6)
    assert drive.tick([0.2, 0, 0, 0]).health == "fault"
    drive.alive.add("supervisor")
    drive.governor.estop(True, drive.now_s)
    assert drive.tick([0.2, 0, 0, 0]).health == "fault"


def test_a_robot_that_waits_is_healthy_with_a_policy_that_has_a_plan() -> None:
    drive = Drive(FAST)
    governed = Governed(drive.governor, waits=lambda now_s: "in mode HOLD")

    def health(action: np.ndarray | None, rests: bool = False) -> tuple[Health, tuple[str, ...]]:
        drive.now_s += 0.02
        drive.governor.supervisor(drive.now_s)
        said = governed.govern(Intent(action, "no chunk yet", drive.now_s, rests=rests), drive.now_s)
        assert not said.values.any()
        return said.health, said.reasons

    assert health(np.array([0.3, 0, 0, 0])) == ("rests", ("in mode HOLD",))
    assert health(np.array([math.nan, 0, 0, 0]))[0] == "waits"
    assert health(None) == ("waits", ("in mode HOLD",))  # a policy that hangs proves no life by not being wanted
    assert health(None, rests=True)[0] == "rests"
    governed.paused = "cancelled"
    assert health(None) == ("rests", ("cancelled",))


# What follows from health


def command(health: Health, vx: float = 0.5) -> Command:
    return Command(np.array([vx, 0.0, 0.0, 0.0]), "pass", (), None, False, health)


class Stream:
    """An `Offboard` ticked at 50 Hz; what it said, by time."""

    def __init__(self, proving: bool, rate_hz: float = 50.0) -> None:
        self.offboard = Offboard(OffboardSettings(), rate_hz, setpoints_prove_life=proving)
        self.now_s, self.period_s = 10.0, 1 / rate_hz
        self.mode = Mode("OFFBOARD", True, True, math.inf)
        self.beats: list[float] = []
        self.flown: list[tuple[float, float]] = []

    def run(self, seconds: float, health: Health, vx: float = 0.5) -> None:
        for _ in range(round(seconds / self.period_s)):
            self.now_s += self.period_s
            self.offboard.hear(Mode(self.mode.name, self.mode.obeys, self.mode.armed, self.now_s))
            told = self.offboard.tick(command(health, vx), self.now_s)
            if told.beat:
                self.beats.append(self.now_s)
            if told.setpoint is not None:
                self.flown.append((self.now_s, float(told.setpoint[0])))


@pytest.mark.parametrize("rate_hz", [20.0, 30.0, 50.0, 100.0])
def test_twenty_beats_a_second_at_any_rate_of_commands(rate_hz: float) -> None:
    stream = Stream(True, rate_hz)
    stream.run(5.0, "follows")
    assert len(stream.beats) == pytest.approx(100, abs=2)
    assert np.diff(stream.beats).max() <= 0.05 + 1 / rate_hz + 1e-9


@pytest.mark.parametrize("health", ["fault", "waits"])
@pytest.mark.parametrize("rate_hz", [10.0, 50.0])
def test_after_a_fault_a_stream_brakes_says_zero_and_is_silent(health: Health, rate_hz: float) -> None:
    stream = Stream(True, rate_hz)
    stream.run(1.0, "follows")
    fault_s = stream.now_s
    stream.run(2.0, health, 0.3)
    assert max(stream.beats) <= fault_s
    after = [(now, vx) for now, vx in stream.flown if now > fault_s]
    assert after[-1][0] - fault_s <= 0.2 + 1e-9
    assert after[-1][1] == 0.0
    if rate_hz == 50:
        assert after[0][1] == 0.3  # braking is passed on
    stream.run(0.5, "follows")
    assert stream.beats[-1] > fault_s
    assert stream.flown[-1][1] == 0.5


@pytest.mark.parametrize(("stall_s", "words"), [(0.22, [0.0]), (0.24, [])])
def test_a_stream_that_stalled_says_its_zero_late_or_not_at_all(stall_s: float, words: list[float]) -> None:
    stream = Stream(True)
    stream.run(1.0, "follows")
    stream.now_s += stall_s - 0.02
    said = len(stream.flown)
    stream.run(0.2, "fault", 0.3)
    assert [vx for _, vx in stream.flown[said:]] == words


def test_beside_a_proof_of_life_setpoints_go_on_braking() -> None:
    stream = Stream(False)
    stream.run(1.0, "follows")
    fault_s = stream.now_s
    stream.run(1.0, "fault", 0.3)
    assert max(stream.beats) <= fault_s
    assert stream.flown[-1] == (stream.now_s, 0.3)


@pytest.mark.parametrize("proving", [True, False])
@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (Mode("HOLD", False, True), "in mode HOLD"),
        (Mode("OFFBOARD", True, False), "not armed"),
    ],
)
def test_no_setpoints_outside_the_mode(proving: bool, mode: Mode, why: str) -> None:
    stream = Stream(proving)
    stream.mode = mode
    stream.run(1.0, "follows")
    assert stream.flown == []
    assert len(stream.beats) >= 19
    assert why in stream.offboard.waits(stream.now_s)


def test_an_autopilot_that_falls_silent_is_in_no_mode() -> None:
    offboard = Offboard(OffboardSettings(heard_s=1.0), 50.0, setpoints_prove_life=True)
    assert offboard.waits(5.0) == "the autopilot is not heard"
    offboard.hear(Mode("OFFBOARD", True, True, 5.0))
    assert offboard.tick(command("follows"), 5.9).setpoint is not None
    assert offboard.tick(command("follows"), 4.999).setpoint is not None, "heard while the tick was under way"
    assert offboard.tick(command("follows"), 6.1).setpoint is None


def test_the_first_plan_may_take_its_time_and_no_longer() -> None:
    stream = Stream(True)
    stream.run(0.5, "rests", 0.0)
    begin = stream.now_s
    stream.run(4.0, "waits", 0.0)
    assert max(stream.beats) - begin == pytest.approx(2.0, abs=0.06)
    never = Stream(True)
    never.run(1.0, "waits")
    assert never.beats == []  # rest was never wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OffboardSettings(silent_s=0.3), "0.23 s after a fault is the latest"),
        (lambda: OffboardSettings(heartbeat_hz=1.0), "autopilots want more than 2 Hz"),
        (lambda: MavlinkSettings(address="14540"), "mavlink.address is '14540'; write HOST:PORT"),
        (lambda: MavlinkSettings(system=0), "mavlink.system is 0"),
        (lambda: G1Settings(duration_s=1.0), "g1.duration_s is 1.0; a velocity may last 0.5 s at most"),
        (lambda: G1Settings(refresh_hz=2.0), "g1.refresh_hz is 2.0"),
        (lambda: G1Settings(timeout_s=0.5), "g1.timeout_s is 0.5"),
        (lambda: G1Settings(walking=()), "at least one state in `walking`"),
    ],
)
def test_settings_that_break_a_promise_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KineflowError) as refused:
        make()
    assert message in str(refused.value)
