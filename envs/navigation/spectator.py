"""Watches an episode for people: remembers the way, and draws a panel of any moment. It changes nothing of what it watches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from kineflow.envs.navigation.drawing import SUBSTEPS, draw_plans, integrate, to_world
from kineflow.envs.navigation.embodiments.embodiment import LACKING
from kineflow.envs.navigation.goal_clip import Cursor, GoalClip
from kineflow.envs.navigation.ground_truth import camera_pose, intrinsics
from kineflow.envs.navigation.lens import Lens
from kineflow.envs.navigation.map_drawing import MapView, TripState, draw_trip, draw_world
from kineflow.envs.navigation.panel import GAP, MARGIN, Ending, Fact, GoalCard, Layout, compose, compose_portrait
from kineflow.envs.navigation.stage import Stage
from kineflow.envs.navigation.tasks import Task, Trip
from kineflow.envs.navigation.values import CONTROL_HZ

# Plans are drawn so far below the camera: of the ground none sees the part that is nearer than 0.6 m, where most of a chunk lies.
BELOW_CAMERA_M = 0.3
TURNING = 0.12  # share of a turn that who follows the body makes in a step: a gait's sway shall not shake the picture
GOAL_TITLES = {"video": "goal clip", "image": "goal image", "instruction": "instruction", "point": "goal"}


@dataclass(frozen=True)
class Moment:
    """What is said beside the pictures. `stop_probability` and `cursor` (frame of the clip): the policy's, None: unknown.

    `blind`: the policy drives by the clip alone, and is shown that in place of its camera.
    """

    stop_probability: float | None = None
    cursor: int | None = None
    blind: bool = False
    ending: Ending | None = None


class Spectator:
    """Of one episode on one stage. `told` names what the policy is told; the first of them is shown."""

    def __init__(self, stage: Stage, task: Task, trip: Trip, clip: GoalClip | None, told: tuple[str, ...]) -> None:
        self._stage, self._task, self._trip, self._clip, self._told = stage, task, trip, clip, told
        has_way = clip is not None and len(clip.places) > 1
        self._cursor = Cursor(clip.places, clip.rate_hz) if has_way and clip is not None else None
        self._heading = stage.yaw
        self._way = [stage.position[:2]]
        self._touches: list[tuple[float, float]] = []
        self._maps: dict[int, tuple[MapView, np.ndarray]] = {}

    def follow(self, is_new_touch: bool) -> None:
        """After each step."""
        x, y, _ = self._stage.position
        self._way.append((x, y))
        self._heading += TURNING * math.remainder(self._stage.yaw - self._heading, math.tau)
        if is_new_touch:
            self._touches.append((x, y))
        if self._cursor is not None:
            self._cursor.advance(x, y, self._stage.yaw)

    def panel(
        self, size: int, lens: Lens, plans: Float[np.ndarray, "N H 4"] | None, moment: Moment
    ) -> UInt8[np.ndarray, "size W 3"]:
        """The panel of now, `size` pixels high; `plans` are chunks of commands, drawn as far as the body can follow them."""
        spec = self._stage.picture_spec
        layout = Layout(size, spec.width / spec.height)
        places = None if plans is None else self._places(np.asarray(plans, np.float64))
        view, world_map = self._drawn_map(layout.map_size, places)
        seen, title = self._stage.rgb(), ""
        if moment.blind and self._clip is not None:
            seen, title = self._clip.frames[self._frame(moment.cursor)], "no camera"
        return compose(
            layout,
            self._live(lens, layout.live, places),
            self._goal_card(moment.cursor),
            lens.follower(*layout.inset, self._heading),
            seen,
            world_map,
            self._facts(moment),
            view.scale,
            moment.ending,
            title,
        )

    def portrait(self, size: int, lens: Lens, plans: Float[np.ndarray, "N H 4"]) -> UInt8[np.ndarray, "size W 3"]:
        """The live view above the map, with many plans."""
        spec, layout = self._stage.picture_spec, Layout(round(0.65 * size))
        half = (size - 2 * layout.px(MARGIN) - layout.px(GAP)) // 2
        places = self._places(np.asarray(plans, np.float64))
        live = self._live(lens, (round(half * spec.width / spec.height), half), places)
        view, world_map = self._drawn_map(size - 2 * layout.px(MARGIN) - layout.px(GAP) - half, places)
        return compose_portrait(live, world_map, layout, view.scale)

    def _live(self, lens: Lens, size: tuple[int, int], places: Float[np.ndarray, "N S 3"] | None) -> UInt8[np.ndarray, "H W 3"]:
        live, scene = lens.picture(*size), self._stage.scene
        if places is None:
            return live
        position, rotation = camera_pose(scene.model, scene.data, scene.camera)
        k = intrinsics(scene.model, scene.camera, *size)
        return draw_plans(live, places, position, rotation, k, max(0.0, float(position[2]) - BELOW_CAMERA_M))

    def _drawn_map(
        self, size: int, places: Float[np.ndarray, "N S 3"] | None
    ) -> tuple[MapView, UInt8[np.ndarray, "size size 3"]]:
        stage, spec = self._stage, self._stage.picture_spec
        if size not in self._maps:
            view = MapView.around(self._trip.path.points, size, stage.world.bounds)
            self._maps[size] = view, draw_world(stage.world, view)
        view, background = self._maps[size]
        focal = float(intrinsics(stage.scene.model, stage.scene.camera, spec.width, spec.height)[0, 0])
        trip = TripState(
            pose=(*stage.position[:2], stage.yaw),
            radius_body_m=stage.embodiment.radius_m,
            driven=np.array(self._way),
            reference=self._trip.path.points,
            goal=self._trip.goal,
            radius_m=self._task.radius_m,
            plans=places,
            walkers=tuple(stage.walkers),
            touches=tuple(self._touches),
            sight_rad=2 * math.atan(spec.width / 2 / focal),
        )
        return view, draw_trip(background, view, trip)

    def _places(self, plans: Float[np.ndarray, "N H 4"]) -> Float[np.ndarray, "N S 3"]:
        limits = self._stage.embodiment.limits
        low, high = np.array(limits.low), np.array(limits.high)
        can = np.where(high > LACKING, np.clip(plans, low, high), 0.0)
        x, y, _ = self._stage.position
        return to_world(integrate(can, SUBSTEPS), x, y, self._stage.yaw)

    def _frame(self, cursor: int | None) -> int:
        """Frame of the clip: where the policy says it is, or else the one nearest to where the body is."""
        assert self._clip is not None
        own = self._cursor.frame if self._cursor else 0
        return min(max(own if cursor is None else cursor, 0), len(self._clip.frames) - 1)

    def _goal_card(self, cursor: int | None) -> GoalCard | None:
        told = self._told[0]
        title = GOAL_TITLES.get(told, told)
        if told == "instruction":
            return GoalCard(title, words=self._trip.instruction)
        if told == "point":
            x, y = self._trip.goal
            return GoalCard(title, words=f"x {x:.1f} m, y {y:.1f} m")
        if self._clip is None:
            return None
        if told == "image" or self._cursor is None:
            return GoalCard(title, self._clip.image)
        frame = self._frame(cursor)
        return GoalCard(title, self._clip.frames[frame], progress=frame / max(len(self._clip.frames) - 1, 1))

    def _facts(self, moment: Moment) -> list[Fact]:
        stage = self._stage
        steps, distance = len(self._way) - 1, math.dist(stage.position[:2], self._trip.goal)
        turn = round(math.degrees(float(stage.robot.velocity()[3])))
        facts = [
            Fact("", stage.embodiment.name),
            Fact("time", f"{steps / CONTROL_HZ:.1f} s", "00.0 s"),
            Fact("speed", f"{stage.speed:.2f} m/s", "0.00 m/s"),
            Fact("turn", f"{turn:+d} \u00b0/s" if turn else "0 \u00b0/s", "+00 \u00b0/s"),
            Fact("goal", f"{distance:.1f} m away (not seen by the policy)", "00.0 m away (not seen by the policy)"),
            Fact("touches", f"{len(self._touches)}"),
        ]
        if moment.stop_probability is not None:
            facts.append(Fact("stop", f"{100 * moment.stop_probability:.0f} %", "100 %"))
        return facts
