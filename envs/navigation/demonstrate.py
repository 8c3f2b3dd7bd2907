"""Demonstrations: the expert drives a trip cleanly, and again disturbed, and what is recorded is what it meant to do.

    state x_t --expert--> command u_t  (recorded as the action)
                            |  + kicks and noise  (executed only)
    state x_t+1 <-----------+

So each disturbed state comes with the command that leads back from it (DART: Laskey et al. 2017), and a policy that learns from
them knows what to do beside the path, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.goal_clip import Cursor, GoalClip, cut, expert_for
from kineflow.envs.navigation.metrics import AT_REST_MPS, AT_REST_RADPS
from kineflow.envs.navigation.randomise import Randomisation
from kineflow.envs.navigation.stage import Stage
from kineflow.envs.navigation.tasks import Trip
from kineflow.envs.navigation.values import CONTROL_HZ, EMBODIMENTS, FRONT

FLOW_UNITS = 64.0  # stored steps per pixel of optical flow
FLOW_ZERO = 32768
KICK_ROOM_M = 0.15  # free space around the body below which it is not kicked on
LOOK_AHEAD_S = 0.5  # of its motion, for that
GOAL_M = 0.35  # how near to its path's end the expert has to stop for a demonstration to count


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong in a disturbed run. Speeds are shares of the body's limits, times are seconds.

    A kick adds a wrong yaw rate and speed, drawn evenly up to `kick_turn` and `kick_speed`, for a time between both of `kick_s`,
    on average `kicks_per_s` times a second. `noise`: standard deviation of what is always added, which changes slowly (0.5 s).
    `start_m`, `start_rad`: how far from the trip's start, along x and y each and in heading, the run begins.
    """

    kicks_per_s: float = 0.4
    kick_s: tuple[float, float] = (0.3, 0.8)
    kick_turn: float = 1.0
    kick_speed: float = 0.4
    noise: float = 0.05
    start_m: float = 0.3
    start_rad: float = math.radians(15.0)


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One run of T steps at 10 Hz: `streams[name]` [T, ...]; see `record`. `touches`: contacts with obstacles."""

    trip: Trip
    clip: GoalClip
    streams: Mapping[str, np.ndarray]
    success: bool
    touches: int


@dataclass(frozen=True)
class Recording:
    """What is recorded beside pictures, velocity, embodiment, pose, cursor, stop and action."""

    clip_rate_hz: float = 5.0
    rest_s: float = 1.5
    depth: bool = False
    flow: bool = False
    limit_s: float = 90.0


@dataclass
class _Log:
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)


def record(
    stage: Stage,
    trip: Trip,
    recording: Recording,
    clip: GoalClip | None = None,
    disturbance: Disturbance | None = None,
    look: Randomisation | None = None,
    seed: int = 0,
) -> Demonstration:
    """Drive `trip` once. Without `clip` this run, which should then be a clean one, is the clip.

    Streams: `front` uint8 [T, H, W, 3]; `velocity` [T, 4]; `embodiment` [T, 3]; `pose` [T, 7]; `action` [T, 4], what the expert
    meant; `cursor` [T, 1], the frame of the clip where it is; `stop` [T, 1], 1 where it has arrived and rests. The last
    `rest_s` seconds are at rest. With `depth`: `front_depth` uint16 [T, H, W], mm, 0 in the sky. With `flow`: `flow_x` and
    `flow_y` uint16 [T, H, W]: where the picture before went, `(value - 32768) / 64` pixels, 0: nothing is known.
    """
    generator = np.random.default_rng([seed, 0xDA27])
    trouble = None if disturbance is None else _Trouble(disturbance, stage, generator)
    stage.begin(*(trip.start if trouble is None else trouble.start(trip.start)), look, seed)
    expert = expert_for(stage, trip)
    cursor = None if clip is None else Cursor(clip.places, clip.rate_hz)
    log, places, rested, touches, was_touching = _Log(), list[tuple[float, float, float]](), 0, 0, False
    ground_truth = _GroundTruth(stage, recording)
    one_hot = np.array([float(name == stage.embodiment.name) for name in EMBODIMENTS], np.float32)
    for _ in range(round(recording.limit_s * CONTROL_HZ)):
        velocity, (x, y, z), yaw = stage.robot.velocity(), stage.position, stage.yaw
        command = expert.command(x, y, z, yaw, velocity, stage.walkers)
        is_still = stage.speed < AT_REST_MPS and abs(float(velocity[3])) < AT_REST_RADPS
        # Once at rest it is, until the expert drives again: a hovering body sways.
        is_resting = expert.is_resting and (is_still or rested > 0)
        log.add(front=stage.rgb(), velocity=velocity, embodiment=one_hot, pose=stage.pose, action=command, stop=[is_resting])
        log.add(**ground_truth.read())
        if cursor is not None:
            log.add(cursor=[cursor.advance(x, y, yaw)])
        places.append((x, y, yaw))
        rested = rested + 1 if is_resting else 0
        if rested > recording.rest_s * CONTROL_HZ:
            break
        stage.drive(command if trouble is None or expert.is_resting else trouble.executed(command))
        touches += stage.touched and not was_touching
        was_touching = stage.touched
        if stage.robot.fallen():
            break
    if clip is None:
        moving = max(1, len(places) - rested + 1)  # the first picture at rest is the last of the clip
        clip = cut(log.rows["front"][:moving], places[:moving], recording.clip_rate_hz)
        every = CONTROL_HZ / recording.clip_rate_hz
        log.rows["cursor"] = [[min(int(step / every), len(clip.frames) - 1)] for step in range(len(places))]
    is_there = math.dist(places[-1][:2], trip.goal) <= GOAL_M
    streams = {name: np.asarray(rows, _DTYPES.get(name, np.float32)) for name, rows in log.rows.items()}
    return Demonstration(trip, clip, streams, bool(rested and is_there), touches)


_DTYPES: dict[str, Any] = {FRONT: np.uint8, "front_depth": np.uint16, "flow_x": np.uint16, "flow_y": np.uint16}


class _Trouble:
    """Kicks and noise of one run."""

    def __init__(self, disturbance: Disturbance, stage: Stage, generator: np.random.Generator) -> None:
        if not 0 < disturbance.kick_s[0] <= disturbance.kick_s[1]:
            raise KineflowError(f"Disturbance.kick_s is {disturbance.kick_s}; give a shortest and a longest time above 0")
        self._disturbance, self._stage, self._generator = disturbance, stage, generator
        high = np.array(stage.embodiment.limits.high)
        self._high = np.where(high > 1e-3, high, 0.0)
        self._noise, self._kick, self._left = np.zeros(4), np.zeros(4), 0

    def start(self, start: tuple[float, float, float]) -> tuple[float, float, float]:
        """A free place near the start; the start itself where none is found."""
        how, generator = self._disturbance, self._generator
        turned = start[2] + float(generator.uniform(-how.start_rad, how.start_rad))
        for _ in range(10):
            x, y = (start[i] + float(generator.uniform(-how.start_m, how.start_m)) for i in (0, 1))
            if self._stage.planner.free_at(x, y) > KICK_ROOM_M:
                return x, y, turned
        return start[0], start[1], turned

    def executed(self, command: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
        """What is done in place of `command`, float64."""
        how, generator = self._disturbance, self._generator
        keep = math.exp(-1 / (0.5 * CONTROL_HZ))
        fresh = generator.normal(size=4) * how.noise * self._high
        self._noise = keep * self._noise + math.sqrt(1 - keep**2) * fresh
        if self._left == 0 and generator.random() < how.kicks_per_s / CONTROL_HZ:
            self._left = max(1, round(float(generator.uniform(*how.kick_s)) * CONTROL_HZ))
            share = generator.uniform(-1.0, 1.0, 4) * [how.kick_speed, how.kick_speed, 0.5 * how.kick_speed, how.kick_turn]
            self._kick = share * self._high
        done = np.asarray(command, np.float64) + self._noise
        if self._left:
            self._left -= 1
            if self._has_room():
                return done + self._kick
            self._left = 0
        return done

    def _has_room(self) -> bool:
        (x, y, _), yaw, planner = self._stage.position, self._stage.yaw, self._stage.planner
        vx, vy, _, _ = self._stage.robot.velocity().tolist()
        ahead_x = x + LOOK_AHEAD_S * (math.cos(yaw) * vx - math.sin(yaw) * vy)
        ahead_y = y + LOOK_AHEAD_S * (math.sin(yaw) * vx + math.cos(yaw) * vy)
        return min(planner.free_at(x, y), planner.free_at(ahead_x, ahead_y)) > KICK_ROOM_M


class _GroundTruth:
    """Depth and optical flow of each step, where they are wanted."""

    def __init__(self, stage: Stage, recording: Recording) -> None:
        self._stage, self._recording = stage, recording
        self._before: Any = None

    def read(self) -> dict[str, np.ndarray]:
        if not (self._recording.depth or self._recording.flow):
            return {}
        now = self._stage.look()
        read = {"front_depth": millimetres(now[1])} if self._recording.depth else {}
        if self._recording.flow:
            flow = None if self._before is None else self._stage.flow_to(self._before, now[0], now[1])
            shape = now[1].shape
            for axis, name in enumerate(("flow_x", "flow_y")):
                read[name] = np.zeros(shape, np.uint16) if flow is None else flow_units(flow.pixels[:, :, axis], flow.valid)
        self._before = now
        return read


def millimetres(depth: Float[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """Depth in m as uint16 mm; 0 where nothing is, 65535 from 65.5 m on."""
    return np.where(np.isfinite(depth), np.minimum(np.rint(depth * 1000.0), 65535), 0).astype(np.uint16)


def flow_units(pixels: Float[np.ndarray, "H W"], valid: np.ndarray) -> UInt16[np.ndarray, "H W"]:
    """Flow along one axis in 1/64 pixel around 32768, uint16; 0 where it is not valid."""
    units = np.clip(np.rint(pixels * FLOW_UNITS) + FLOW_ZERO, 1, 65535)
    return np.where(valid, units, 0).astype(np.uint16)
