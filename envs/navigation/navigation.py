"""Visual navigation as a gymnasium environment: a camera, a velocity command, and a goal told as picture, clip, words or point.

    env = Navigation(Task("video"), "wheeled")
    observation, info = env.reset(seed=7)         # seed: world, start, goal, light, delays, everything
    env.goal()                                    # {"video": uint8 [T, 96, 96, 3], "image": uint8 [96, 96, 3]}
    observation, reward, terminated, truncated, info = env.step(command)

Ends: at rest within the goal region for 0.5 s (success), at rest after the policy said that it is done (`declare_stop`), at a
crash (touching something at 0.35 m/s or faster), at a fall; cut off at the task's time limit. Softer touches are counted and go
on. With `ends_at_goal=False` the goal ends nothing: who does not say stop drives on, and only where it is at the end counts. So
evaluations are run, because on a robot nobody says either that it has arrived.
What `info` says of the goal (distance, success) is for metrics: a policy is given the observation and `goal()`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError, VectorSpec
from kineflow.envs.navigation.goal_clip import GoalClip, film
from kineflow.envs.navigation.lens import Lens
from kineflow.envs.navigation.metrics import AT_REST_MPS, AT_REST_RADPS, TripMetrics, trip_metrics
from kineflow.envs.navigation.panel import Ending
from kineflow.envs.navigation.randomise import Randomisation, RandomisationRanges
from kineflow.envs.navigation.spectator import Moment, Spectator
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import Kind, Task, Trip, draw_trip
from kineflow.envs.navigation.values import CONTROL_HZ, EMBODIMENTS, FRONT
from kineflow.envs.navigation.world import generate_world

REST_STEPS = 5  # 0.5 s
COME_TO_REST_STEPS = 30  # 3 s, after the policy said stop: a walker sways for a while
FOLLOW_CLIP, SMALL = Task("video"), Picture()
PASSED_M = 1.0  # how near a route's places in between must be passed
TOLD: dict[Kind, tuple[str, ...]] = {
    "point": ("point",),
    "image": ("image",),
    "video": ("video", "image"),
    "language": ("instruction",),
    "route": ("video", "image"),
}
GoalName = Literal["point", "image", "video", "instruction"]
Observation = dict[str, Any]


class Navigation(gymnasium.Env[Observation, np.ndarray]):
    """See the module, and `interfaces/navigation` for names, units and limits.

    Observation: `front` uint8 [H, W, 3]; `velocity` float32 [4], measured; `embodiment` float32 [3], one-hot; `pose` float32
    [7], privileged. Action: float32 [4], the command (vx, vy, vz, yaw rate), clamped by the body to its own limits.
    Reward: metres of the way to the goal that the step took off, and 10 for success.
    Info: `distance` to the goal (m), `is_success`, `success_1m` and `success_05m` (how near, whatever else), `collisions`
    (touches so far), `crashed`, `fallen`, `at_rest`, `path_length` (m driven), `coverage` (share of the distance done, 0..1).

    `told`: the ways in which `goal()` tells (None: those of the task's kind). `randomisation`: None changes nothing. A clip is
    filmed under a light of its own, by an expert without delay or noise.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's type)

    def __init__(
        self,
        task: Task = FOLLOW_CLIP,
        embodiment: str = "wheeled",
        *,
        picture: Picture = SMALL,
        randomisation: RandomisationRanges | None = None,
        clip_rate_hz: float = 5.0,
        told: tuple[GoalName, ...] | None = None,
        ends_at_goal: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.task, self.body, self.picture, self.ranges = task, embodiment_of(embodiment), picture, randomisation
        self.clip_rate_hz, self.told, self.render_mode = clip_rate_hz, told or TOLD[task.kind], render_mode
        self.ends_at_goal = ends_at_goal
        if task.kind != "language" and "instruction" in self.told:
            raise KineflowError(f"a {task.kind} task has no words; take Task('language'), or leave 'instruction' out of told")
        self.interface = sized(load_config(Interface, "interfaces/navigation"), picture)
        self.observation_space: gymnasium.spaces.Dict[Any] = gymnasium.spaces.Dict(self._spaces())
        self.action_space = _box(self.interface.action.vector)
        self._one_hot = np.array([float(name == embodiment) for name in EMBODIMENTS], np.float32)
        self._stage: Stage | None = None
        self._lens: Lens | None = None
        self._ending: Ending | None = None
        self._world_number = -1
        self._goal: dict[str, Any] = {}
        self.clip: GoalClip | None = None

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of `seed`; without one, of a seed that the environment draws. `options` are not used."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self.trip, self.clip = self._prepare(number)
        self.stage.begin(*self.trip.start, self._look(number, 0), number)
        self._steps = self._touches = self._rested = self._stopping = 0
        self._was_touching = self._stopped = False
        self._track = [self._now()]
        self._travelled = 0.0
        self._passed = 0
        self._distance = self._start_distance = self.distance
        self._goal = self._told_goal()
        self._spectator, self._ending = Spectator(self.stage, self.task, self.trip, self.clip, self.told), None
        return self._observation(), self._info(is_success=False)

    def step(self, action: Float[np.ndarray, "4"]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive with `action` for 0.1 s."""
        stage = self.stage
        before = stage.position
        stage.drive(np.zeros(4) if self._stopped else action)
        self._steps += 1
        self._track.append(self._now())
        self._travelled += math.dist(before[:2], stage.position[:2])
        is_new_touch = stage.touched and not self._was_touching
        self._touches += is_new_touch
        self._spectator.follow(is_new_touch)
        self._was_touching = stage.touched
        self._rested = self._rested + 1 if self.at_rest else 0
        self._pass_places()
        is_there = self.distance <= self.task.radius_m and self._passed == len(self.trip.via)
        is_done = self.ends_at_goal and is_there and self._rested >= REST_STEPS
        is_broken = stage.crashed or stage.robot.fallen()
        self._stopping += self._stopped
        # Who said stop is judged where it comes to rest, or where it is when it does not.
        has_stopped = self._stopped and (self._rested >= REST_STEPS or self._stopping >= COME_TO_REST_STEPS)
        truncated = self._steps >= round(self.task.time_limit_s * CONTROL_HZ)
        ends = is_done or has_stopped or (truncated and not self.ends_at_goal)
        is_success = bool(ends and is_there and not is_broken)
        reward, self._distance = self._distance - self.distance + 10.0 * is_success, self.distance
        terminated = bool(is_done or is_broken or has_stopped)
        self._ending = self._told_ending(is_success) if terminated or truncated else None
        return self._observation(), float(reward), terminated, truncated, self._info(is_success)

    def declare_stop(self) -> None:
        """The policy says that it has arrived: it is no longer driven, and the episode ends when it rests (after 3 s at most)."""
        self._stopped = True

    def metrics(self) -> TripMetrics:
        """Of the episode so far, measured against the planned path.

        Raises:
            KineflowError: before the first step.
        """
        positions, velocities, touched = (np.array(part) for part in zip(*self._track, strict=True))
        return trip_metrics(positions, velocities, touched, self.trip.path.points, self.task.radius_m, CONTROL_HZ)

    def goal(self) -> Mapping[str, Any]:
        """What the policy is told: arrays and strings in the forms of `interface.goals`.

        Except `video`: the whole clip [T, H, W, 3] at `clip_rate_hz`, from which whoever asks the policy cuts what lies ahead.
        `point` is x, y, z in the world, float32 [3].
        """
        return dict(self._goal)

    @property
    def stage(self) -> Stage:
        """World, body and renderer.

        Raises:
            KineflowError: before the first `reset`.
        """
        if self._stage is None:
            raise KineflowError("the environment has no episode yet; call reset() first")
        return self._stage

    @property
    def distance(self) -> float:
        """Metres to the goal over the ground."""
        return math.dist(self.stage.position[:2], self.trip.goal)

    @property
    def at_rest(self) -> bool:
        """Slower than 0.05 m/s and 0.1 rad/s."""
        return self.stage.speed < AT_REST_MPS and abs(float(self.stage.robot.velocity()[3])) < AT_REST_RADPS

    def frame(
        self,
        size: int,
        plans: Float[np.ndarray, "N H 4"] | None = None,
        target: Float[np.ndarray, "4"] | None = None,
        *,
        stop_probability: float | None = None,
        cursor: int | None = None,
        blind: bool = False,
    ) -> UInt8[np.ndarray, "size W 3"]:
        """A panel for people, `size` high and about 2.3 times as wide (even): live view, goal, the policy's picture, map.

        One plan is drawn on view and map; of many there is a portrait, view above map. `target`, the command now, is where it
        begins. `cursor`: the frame of the clip that the policy is at, if it says so; else the one nearest to where the body is.
        `blind`: the policy sees the clip in place of its camera. The episode goes on as if nobody had looked.
        """
        if self._lens is None:
            self._lens = Lens(self.stage)
        if plans is not None and len(plans) > 1:
            return self._spectator.portrait(size, self._lens, plans)
        return self._spectator.panel(size, self._lens, plans, Moment(stop_probability, cursor, blind, self._ending))

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The camera's picture when `render_mode="rgb_array"`."""
        return self.stage.rgb() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._lens is not None:
            self._lens.close()
            self._lens = None
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _prepare(self, seed: int) -> tuple[Trip, GoalClip | None]:
        """Trip and clip of that seed; where a world has no such trip, the seed names another world."""
        for attempt in range(8):
            try:
                self._enter(seed // self.task.episodes_per_world + attempt * 10_000_019)
                trip = draw_trip(self.task, self.stage.world, self.stage.planner, np.random.default_rng([seed, attempt, 0x7219]))
                return trip, self._film(trip, seed) if {"video", "image"} & set(self.told) else None
            except KineflowError as error:
                reason = error
        raise KineflowError(f"seed {seed}: no world with such a task in 8 attempts; the last said: {reason}")

    def _enter(self, number: int) -> None:
        """Make the world of that number the stage; nothing is left of the one before."""
        if number == self._world_number and self._stage is not None:
            return
        self.close()
        textures = None if self.ranges is None else self.ranges.draw(number).texture_seed
        self._stage = Stage(generate_world(self.task.world_config(number)), self.body, self.picture, textures)
        self._world_number = number

    def _look(self, seed: int, part: int) -> Randomisation:
        """The look of a seed's part: 0 the episode, 1 its clip, which a calm expert drives."""
        if self.ranges is None:
            return Randomisation.none()
        drawn = self.ranges.draw(int(np.random.SeedSequence((seed, part)).generate_state(1)[0]))
        return drawn if part == 0 else replace(drawn, delay_steps=0, command_noise=0.0)

    def _film(self, trip: Trip, seed: int) -> GoalClip:
        look = self._look(seed, 1)
        if "video" in self.told:
            return film(self.stage, trip, self.clip_rate_hz, look, seed)
        place = (*trip.goal, trip.end_yaw)
        self.stage.begin(*place, look, seed)
        return GoalClip(self.stage.rgb()[None], np.array([place]), self.clip_rate_hz)

    def _told_ending(self, is_success: bool) -> Ending:
        if is_success:
            return Ending("arrived", True)
        broken = "crash" if self.stage.crashed else "fall" if self.stage.robot.fallen() else ""
        return Ending(broken or ("stopped elsewhere" if self._stopped else "time out"), False)

    def _told_goal(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "point": np.array([*self.trip.goal, self.stage.position[2]], np.float32),
            "instruction": self.trip.instruction,
        }
        if self.clip is not None:
            known |= {"video": self.clip.frames, "image": self.clip.image}
        return {name: known[name] for name in self.told}

    def _now(self) -> tuple[tuple[float, float], np.ndarray, bool]:
        return self.stage.position[:2], self.stage.robot.velocity(), self.stage.touched

    def _pass_places(self) -> None:
        via = self.trip.via
        while self._passed < len(via) and math.dist(self.stage.position[:2], via[self._passed]) <= PASSED_M:
            self._passed += 1

    def _observation(self) -> Observation:
        return {
            FRONT: self.stage.rgb(),
            "velocity": self.stage.robot.velocity(),
            "embodiment": self._one_hot.copy(),
            "pose": self.stage.pose.astype(np.float32),
        }

    def _info(self, is_success: bool) -> dict[str, Any]:
        distance = self.distance
        return {
            "distance": distance,
            "is_success": is_success,
            "success_1m": distance <= 1.0,
            "success_05m": distance <= 0.5,
            "collisions": self._touches,
            "crashed": self.stage.crashed,
            "fallen": self.stage.robot.fallen(),
            "at_rest": self.at_rest,
            "path_length": self._travelled,
            "coverage": min(max(1.0 - distance / max(self._start_distance, 1e-6), 0.0), 1.0),
        }

    def _spaces(self) -> dict[str, gymnasium.Space[Any]]:
        spaces: dict[str, gymnasium.Space[Any]] = {n: _box(f.vector) for n, f in self.interface.features.items()}
        for name, camera in self.interface.cameras.items():
            spaces[name] = gymnasium.spaces.Box(0, 255, camera.frame_shape, np.uint8)
        return spaces


def sized(interface: Interface, picture: Picture) -> Interface:
    """`interface` with its camera and goal pictures in another size."""
    height, width = picture.height, picture.width
    goals = {n: replace(g, height=height, width=width) if g.height else g for n, g in interface.goals.items()}
    cameras = {n: replace(c, height=height, width=width) for n, c in interface.cameras.items()}
    return replace(interface, cameras=cameras, goals=goals)


def _box(vector: VectorSpec) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(np.array(vector.low, dtype=np.float32), np.array(vector.high, dtype=np.float32))
