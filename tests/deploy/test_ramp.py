"""The limiter: bounds hold at every tick whatever the tick times and targets, and nothing is slower than it must be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from kineflow.config import load_config
from kineflow.deploy.ramp import ZERO, Ramp
from kineflow.deploy.robot_profile import RobotProfile

DRONE = load_config(RobotProfile, "robots/drone")
ARM = load_config(RobotProfile, "robots/arm")
TICKS = st.one_of(st.sampled_from([1e-6, 0.005, 0.019, 0.02, 0.02, 0.021, 0.1]), st.floats(1e-4, 0.1))


def with_limits(profile: RobotProfile, direction: str = "axis", **limits: Any) -> RobotProfile:
    return dataclasses.replace(profile, direction=direction, keep_out=None, limits=dataclasses.replace(profile.limits, **limits))


SOFT_START = with_limits(DRONE, acceleration=(1.0, 1.0, 1.0, 1.0), deceleration=(4.0, 4.0, 4.0, 4.0))
SOFT_STOP = with_limits(DRONE, acceleration=(4.0, 4.0, 4.0, 4.0), deceleration=(1.0, 1.0, 1.0, 1.0))
TOGETHER = with_limits(SOFT_START, "common")
NARROW = with_limits(DRONE, low=(-0.01, -0.3, 0.0, 0.0), high=(1.0, 0.02, 0.0, 1.0))


def targets(profile: RobotProfile) -> st.SearchStrategy[tuple[float, ...]]:
    """Within the limits, often at their ends and at zero: there the curve binds."""
    ramp = Ramp(profile)
    axes = [
        st.one_of(st.sampled_from([low, high, min(max(0.0, low), high)]), st.floats(low, high))
        for low, high in zip(ramp.low, ramp.high)
    ]
    return st.tuples(*axes)


@pytest.mark.parametrize(
    "profile", [DRONE, SOFT_START, SOFT_STOP, TOGETHER, NARROW, ARM], ids=lambda p: f"{p.name}-{p.direction}"
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_bound_holds_at_every_tick(profile: RobotProfile, data: st.DataObject) -> None:
    ramp = Ramp(profile)
    middle = [(low + high) / 2 if profile.kind == "position" else 0.0 for low, high in zip(ramp.low, ramp.high)]
    ramp.start(middle)
    limits, velocity = profile.limits, profile.kind == "velocity"
    change = limits.jerk if velocity else limits.acceleration
    rates, last_dt = [0.0] * len(middle), 0.02
    for target, dt, repeat in data.draw(
        st.lists(st.tuples(targets(profile), TICKS, st.integers(1, 12)), min_size=3, max_size=12)
    ):
        for _ in range(repeat):
            before = list(ramp.value)
            ramp.step(target, dt)
            for i, (old, new) in enumerate(zip(before, ramp.value)):
                rate, rounding = (new - old) / dt, 1e-14 / dt
                assert ramp.low[i] - 1e-9 <= new <= ramp.high[i] + 1e-9
                assert abs(rate) <= _bound(profile, i, old, new) + 1e-9 + rounding
                assert abs(rate - rates[i]) <= change[i] * dt + 1e-9 + rounding + 1e-14 / last_dt
                rates[i] = rate
            last_dt = dt


def _bound(profile: RobotProfile, i: int, old: float, new: float) -> float:
    limits = profile.limits
    if profile.kind == "position":
        return limits.velocity[i]
    if old * new < 0 and min(abs(old), abs(new)) > 2 * ZERO:
        return min(limits.acceleration[i], limits.deceleration[i])
    return limits.acceleration[i] if abs(new) > abs(old) else limits.deceleration[i]


def shortest(distance: float, rate: float, change: float) -> float:
    """Seconds of the time-optimal move from rest to rest with bounded rate and change of rate."""
    peak = min(rate, math.sqrt(distance * change))
    return distance / peak + peak / change


@pytest.mark.parametrize("distance", [0.01, 0.1, 0.3, 0.5, 1.0])
def test_a_step_takes_at_most_two_ticks_more_than_the_optimum(distance: float) -> None:
    ramp = Ramp(DRONE)
    ticks = 0
    while abs(ramp.value[0] - distance) > 1e-4:
        ramp.step([distance, 0.0, 0.0, 0.0], 0.02)
        assert ramp.value[0] <= distance
        ticks += 1
    optimum = shortest(distance, DRONE.limits.acceleration[0], DRONE.limits.jerk[0])
    assert optimum - 0.02 <= ticks * 0.02 <= optimum + 0.04 + 1e-9


def test_joints_move_as_fast_as_velocity_and_acceleration_allow() -> None:
    ramp = Ramp(ARM)
    ticks = 0
    while abs(ramp.value[0] - 1.0) > 1e-4:
        ramp.step([1.0] + [0.0] * 5, 0.02)
        ticks += 1
    assert ticks * 0.02 == pytest.approx(shortest(1.0, ARM.limits.velocity[0], ARM.limits.acceleration[0]), abs=0.05)


@pytest.mark.parametrize("direction", ["axis", "common"])
def test_a_slow_target_passes_unchanged(direction: str) -> None:
    ramp = Ramp(with_limits(DRONE, direction))
    for k in range(1, 400):
        target = [0.2 * math.sin(0.015 * k), 0.1 * math.cos(0.015 * k) - 0.1, 0.0, 0.3]
        ramp.step(target, 0.02)
        if k > 100:  # the yaw rate starts with a jump
            assert ramp.value == pytest.approx(target, abs=1e-12)


def test_a_quick_target_is_followed_with_the_lag_that_stopping_on_it_needs() -> None:
    """At 1 m/s^2 the speed still grows by a^2 / 2j when the target stops at once: the command stays that far behind."""
    ramp = Ramp(DRONE)
    for k in range(45):
        ramp.step([0.02 * k, 0.0, 0.0, 0.0], 0.02)
    assert 0.0 <= 0.02 * 44 - ramp.value[0] <= 1.0 / 20 + 1.0 * 0.02
    for _ in range(50):
        ramp.step([0.02 * 44, 0.0, 0.0, 0.0], 0.02)
        assert ramp.value[0] <= 0.02 * 44 + 0.002  # j dt^2 / 2


def test_a_new_target_behind_turns_round_as_early_as_jerk_allows() -> None:
    """While speeding up at 2.5 m/s^2, the least overshoot is a^2 / 2j: the acceleration must first come down."""
    ramp = Ramp(with_limits(DRONE, low=(-3.0,) * 4, high=(3.0,) * 4))
    while ramp.rate[0] < 2.5:
        ramp.step([3.0, 0.0, 0.0, 0.0], 0.02)
    start, rate = ramp.value[0], ramp.rate[0]
    highest = start
    for _ in range(100):
        ramp.step([0.0, 0.0, 0.0, 0.0], 0.02)
        highest = max(highest, ramp.value[0])
    assert highest - start <= rate * rate / (2 * DRONE.limits.jerk[0])
    assert ramp.value[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("profile", [SOFT_START, SOFT_STOP], ids=["soft start", "soft stop"])
def test_through_zero_the_smaller_bound_counts(profile: RobotProfile) -> None:
    """Slowing down and speeding up the other way are one motion: no jump of acceleration at zero."""
    ramp, crossed = Ramp(profile), []
    for _ in range(150):
        ramp.step([1.0, 0.0, 0.0, 0.0], 0.02)
    for _ in range(200):
        before = ramp.value[0]
        ramp.step([-1.0, 0.0, 0.0, 0.0], 0.02)
        if before > 0 > ramp.value[0]:
            crossed.append(-ramp.rate[0])
    assert crossed == pytest.approx([1.0])
    assert ramp.value[0] == pytest.approx(-1.0)


def test_together_the_direction_is_kept_from_rest_to_rest() -> None:
    profile = with_limits(DRONE, "common", jerk=(10.0, 4.0, 8.0, 2.0), acceleration=(2.5, 1.0, 2.0, 0.5))
    ramp, target = Ramp(profile), [1.0, -0.5, 0.25, 0.5]
    for aim in (target, [0.0] * 4, [-t for t in target], [0.5 * t for t in target]):
        for _ in range(200):
            ramp.step(aim, 0.02)
            assert all(v * target[0] == pytest.approx(t * ramp.value[0], abs=1e-9) for v, t in zip(ramp.value, target))
        assert ramp.value == pytest.approx(aim, abs=1e-6)


def test_together_the_clamp_keeps_the_direction_and_ignores_missing_axes() -> None:
    wheeled = load_config(RobotProfile, "robots/wheeled")
    assert Ramp(wheeled).clamp([1.0, 3.0, -1.0, 0.5]) == pytest.approx([0.5, 0.0, 0.0, 0.25])
    apart = dataclasses.replace(wheeled, direction="axis")
    assert Ramp(apart).clamp([1.0, 3.0, -1.0, 0.5]) == pytest.approx([0.5, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("direction", ["axis", "common"])
def test_braking_takes_speed_over_deceleration(direction: str) -> None:
    profile = with_limits(DRONE, direction)
    ramp = Ramp(profile)
    for _ in range(100):
        ramp.step([1.0, -0.5, 0.0, 0.8], 0.02)
    for k in range(1, 21):
        ramp.brake(0.02)
        assert ramp.value[0] == pytest.approx(max(0.0, 1.0 - 2.5 * 0.02 * k), abs=1e-6)
        if direction == "common" and ramp.value[0] > 1e-9:
            assert ramp.value[1] == pytest.approx(-0.5 * ramp.value[0])
    assert ramp.value == pytest.approx([0.0] * 4, abs=1e-6)


def test_a_joint_brakes_and_holds_within_its_limits() -> None:
    ramp = Ramp(ARM)
    while ramp.value[0] < 2.9:
        ramp.step([3.04] + [0.0] * 5, 0.02)
    speed = ramp.rate[0]
    place = ramp.value[0]
    for _ in range(30):
        ramp.brake(0.02)
    assert ramp.rate[0] == 0.0
    assert place < ramp.value[0] <= min(place + speed**2 / (2 * 4.0), ramp.high[0])
