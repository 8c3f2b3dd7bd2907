"""What a report says of visual navigation."""

from __future__ import annotations

from collections.abc import Callable

from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.navigation_trial import NavigationTrial
from kineflow.policies.report_parts import Column, Description, Distribution, EpisodeFacts, Headline, Outcome, Trace
from kineflow.policies.running_episode import EpisodeResult

_BODIES = {"wheeled": "Wheeled robot", "drone": "Drone", "humanoid": "Humanoid"}
_GOALS = {"video": "goal video", "image": "goal image", "instruction": "instruction"}
_LEVELS_M = (0.25, 0.5, 1.0, 2.0)
_WORLDS = {"indoor": "indoors", "outdoor": "outdoors", "mixed": "indoors and outdoors"}


def describe_navigation(config: EvalConfig, result: EvalResult) -> Description:
    """Arrivals, ways and stops."""
    trial, episodes = config.navigation, result.episodes
    errors = [e.metrics.goal_error for e in episodes]
    farthest = max(2.0 * trial.radius_m, min(max(errors), 6.0))
    return Description(
        task=f"{_BODIES[trial.embodiment]}, {_GOALS[trial.goal]}, {trial.loop} loop",
        starts=f"{len(episodes)} trips in worlds never trained in, {_WORLDS[trial.world]}",
        headlines=_headlines(trial, result),
        episodes=tuple(_facts(e, trial) for e in episodes),
        columns=_columns(result),
        distribution=Distribution(
            heading="Episodes by distance to the goal at the end",
            label="distance to the goal at the end, m",
            values=errors,
            levels=tuple(sorted({*_LEVELS_M, trial.radius_m})),
            threshold=trial.radius_m,
            threshold_label="success",
            high=farthest,
            is_lower_better=True,
            unit=" m",
        ),
        videos="Replays at twice the speed of the robot: its live view, what it is told, what the policy sees, a map. The "
        "plan is drawn from {ramp}now to its end, 0.3 m below the camera, and as seen from above on the map, where the "
        "reference way is dashed, the way driven blue, the region of success green, a touch a cross. Below each: the distance to "
        "the goal over time, which the policy never sees.",
        fans="Chunks of commands sampled from one observation with different noise, at three moments of the median episode. A "
        "wide fan means that the policy sees several ways to go on.",
        outcomes="How far from the goal each episode ended, and what the computer needed for it.",
        seeds="Each seed is one world, start and goal. A seed gives the same result however many environments run together.",
        command=_command(config),
    )


def _headlines(trial: NavigationTrial, result: EvalResult) -> tuple[Headline, ...]:
    succeeded, scores = sum(e.success for e in result.episodes), result.metrics
    near = Headline(
        "Success rate", result.success_rate, f"{succeeded} of {len(result.episodes)} within {trial.radius_m:g} m", "%"
    )
    spl = Headline("SPL", scores["spl"], "success weighted by path length")
    error = Headline("Distance at the end", scores["goal_error"], "mean over all episodes", "m", 3 * trial.radius_m)
    if trial.goal == "instruction" and "stop_accuracy" in scores:
        return near, Headline("Stopped there", scores["stop_accuracy"], "of the successes: at rest inside the radius", "%"), spl
    return near, spl, error


def _facts(episode: EpisodeResult, trial: NavigationTrial) -> EpisodeFacts:
    trip, distances = episode.metrics, episode.trajectory.distance
    assert distances is not None  # of navigation
    touches = "" if not trip.collisions else f" · {trip.collisions} touch{'es' if trip.collisions > 1 else ''}"
    facts = (
        f"{trip.goal_error:.2f} m from the goal · drove {trip.path_length:.1f} m where {trip.shortest_length:.1f} m would do"
        f"{touches} · {episode.steps / 10:.1f} s · seed {episode.seed}"
    )
    high = max(float(distances.max()), 2 * trial.radius_m)
    trace = Trace(distances.tolist(), trial.radius_m, "Distance to the goal over the episode", high)
    return EpisodeFacts(Outcome(episode.outcome, episode.success), facts, trace)


def _columns(result: EvalResult) -> tuple[Column, ...]:
    episodes = result.episodes

    def of(title: str, value: Callable[[EpisodeResult], float], style: str = ".2f", as_meter: bool = False) -> Column:
        return Column(title, [value(e) for e in episodes], style, as_meter)

    return (
        of("SPL", lambda e: e.metrics.spl * e.success, as_meter=True),
        of("From the goal, m", lambda e: e.metrics.goal_error),
        of("From the way (ATE), m", lambda e: e.metrics.ate),
        of("Driven, m", lambda e: e.metrics.path_length, ".1f"),
        of("Shortest, m", lambda e: e.metrics.shortest_length, ".1f"),
        of("Direction", lambda e: e.metrics.direction_accuracy),
        of("Touches", lambda e: e.metrics.collisions, "d"),
        of("False stops", lambda e: e.metrics.false_stops, "d"),
        of("Steps", lambda e: e.steps, "d"),
        of("Clipped actions", lambda e: e.clipped_actions, "d"),
    )


def _command(config: EvalConfig) -> str:
    trial = config.navigation
    return (
        f"kineflow eval RUN --config eval/navigation --navigation.embodiment {trial.embodiment} --navigation.goal {trial.goal} "
        f"--navigation.loop {trial.loop} --episodes {config.episodes} --seed-start {config.seed_start}"
    )
