"""What an evaluation of visual navigation asks of a policy.

kineflow eval RUN --config eval/navigation --navigation.embodiment drone --navigation.goal image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kineflow.contracts import CameraSpec, GoalSpec, KineflowError, PolicyContract
from kineflow.policies.intervals import Estimate, bootstrap_interval, wilson_interval

KIND_OF_GOAL = {"video": "video", "image": "image", "instruction": "language"}


@dataclass(frozen=True)
class NavigationTrial:
    """One body, one way to tell the goal, one loop. Episodes end by the policy's stop, a crash, a fall, or the time limit alone.

    `loop`: "closed" sees the camera at each replan; "open" sees the goal clip only, and counts on driving as the clip does.
    `stop_threshold`, `stop_consecutive`: the robot stops when so many answers in a row are above it (policies/stop.py).
    `randomised`: light, textures, camera pose, friction, delay and noise are drawn as in the training data, by other seeds.
    """

    embodiment: Literal["wheeled", "drone", "humanoid"] = "wheeled"
    goal: Literal["video", "image", "instruction"] = "video"
    loop: Literal["closed", "open"] = "closed"
    world: Literal["indoor", "outdoor", "mixed"] = "mixed"
    radius_m: float = 1.0
    time_limit_s: float = 60.0
    movers: int = 0
    randomised: bool = True
    stop_threshold: float = 0.5
    stop_consecutive: int = 3

    def __post_init__(self) -> None:
        if self.loop == "open" and self.goal != "video":
            raise KineflowError(f"navigation.loop is open with goal {self.goal}; only a video says how to drive without looking")
        if not 0 < self.stop_threshold < 1 or self.stop_consecutive < 1:
            raise KineflowError(
                f"navigation.stop_threshold {self.stop_threshold:g} must be between 0 and 1, stop_consecutive "
                f"{self.stop_consecutive} at least 1"
            )

    def environment(self, contract: PolicyContract) -> Any:
        """The environment, with pictures of the size that the policy sees.

        Raises:
            ContractError: the policy takes no such goal.
        """
        from kineflow.envs.navigation.navigation import Navigation
        from kineflow.envs.navigation.randomise import RandomisationRanges
        from kineflow.envs.navigation.stage import Picture
        from kineflow.envs.navigation.tasks import Task

        goals = contract.interface.goals
        seen: tuple[CameraSpec | GoalSpec, ...] = (*contract.interface.cameras.values(), *goals.values())
        sizes = [Picture(spec.height, spec.width) for spec in seen if spec.height]
        task = Task(
            KIND_OF_GOAL[self.goal],  # type: ignore[arg-type]
            self.world,
            radius_m=self.radius_m,
            time_limit_s=self.time_limit_s,
            movers=self.movers,
        )
        env = Navigation(
            task,
            self.embodiment,
            picture=sizes[0] if sizes else Picture(),
            randomisation=RandomisationRanges() if self.randomised else None,
            told=(self.goal,),
            ends_at_goal=False,
        )
        # It tells the whole clip, so a window of it has as many frames, and as far apart, as the policy takes.
        videos = {name: spec for name, spec in goals.items() if spec.kind == "video" and name in env.interface.goals}
        cut = {n: replace(env.interface.goals[n], frames=v.frames, rate_hz=v.rate_hz) for n, v in videos.items()}
        env.interface = replace(env.interface, goals={**env.interface.goals, **cut})
        return env


def trip_estimates(trips: Sequence[Any], successes: Sequence[bool], seed: int) -> dict[str, Estimate]:
    """Means with intervals of the `TripMetrics` of some episodes; none without any.

    `stop_accuracy` is of the successful episodes: at rest within the radius at the end; `false_stops` is the share of all that
    rested elsewhere for 0.5 s or longer after they had begun to move.
    """
    if not trips or any(trip is None for trip in trips):
        return {}
    rested = [trip.stop_ok for trip, success in zip(trips, successes, strict=True) if success]
    estimates = {
        "success_05m": wilson_interval(sum(t.success_05m and s for t, s in zip(trips, successes, strict=True)), len(trips)),
        "false_stops": wilson_interval(sum(trip.false_stops > 0 for trip in trips), len(trips)),
    }
    if rested:
        estimates["stop_accuracy"] = wilson_interval(sum(rested), len(rested))
    for name in ("goal_error", "ate", "collisions", "direction_accuracy"):
        estimates[name] = bootstrap_interval([float(getattr(trip, name)) for trip in trips], seed)
    weighted = [trip.shortest_length / max(trip.path_length, trip.shortest_length) * s for trip, s in zip(trips, successes)]
    return {"spl": bootstrap_interval(weighted, seed), **estimates}
