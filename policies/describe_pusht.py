"""What a report says of PushT."""

from __future__ import annotations

from kineflow.envs.pusht import SUCCESS_COVERAGE
from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.report_parts import Column, Description, Distribution, EpisodeFacts, Headline, Outcome, Trace
from kineflow.policies.running_episode import EpisodeResult

_LEVELS = (0.5, 0.8, 0.9, SUCCESS_COVERAGE)


def describe_pusht(config: EvalConfig, result: EvalResult) -> Description:
    """Rewards and coverage of the goal."""
    episodes = result.episodes
    succeeded = sum(e.success for e in episodes)
    return Description(
        task="PushT",
        starts=f"{len(episodes)} unseen starts",
        headlines=(
            Headline("Mean max reward", result.mean_max_reward, "coverage / 0.95, at most 1"),
            Headline("Success rate", result.success_rate, f"{succeeded} of {len(episodes)} episodes", "%"),
            Headline("Mean best coverage", result.mean_max_coverage, "of the goal, at its best moment", "%"),
        ),
        episodes=tuple(_facts(e) for e in episodes),
        columns=(
            Column("Max reward", [e.max_reward for e in episodes], as_meter=True),
            Column("Best coverage", [e.max_coverage for e in episodes]),
            Column("Final coverage", [e.final_coverage for e in episodes]),
            Column("Steps", [e.steps for e in episodes], "d"),
            Column("Clipped actions", [e.clipped_actions for e in episodes], "d"),
        ),
        distribution=Distribution(
            heading="Episodes by best coverage of the goal",
            label="best coverage of the goal",
            values=[e.max_coverage for e in episodes],
            levels=_LEVELS,
            threshold=SUCCESS_COVERAGE,
            threshold_label="success",
        ),
        videos="Replays at twice the speed of the robot. The plan ahead is drawn from {ramp}near to far, the cross is the "
        "current target. Below each: coverage of the goal over time.",
        fans="Action chunks sampled from one observation with different noise, at three moments of the median episode. A wide "
        "fan means that the policy sees several ways to go on.",
        outcomes="Best coverage that each episode reached, and what the computer needed for it.",
        seeds="Each seed is one start. A seed gives the same result however many environments run together.",
        command=f"kineflow eval RUN --episodes {config.episodes} --seed-start {config.seed_start}",
    )


def _facts(episode: EpisodeResult) -> EpisodeFacts:
    return EpisodeFacts(
        outcome=Outcome("success", True) if episode.success else Outcome("time out", False),
        facts=f"reward {episode.max_reward:.2f} · {episode.steps} steps · seed {episode.seed}",
        trace=Trace(episode.trajectory.coverage.tolist(), SUCCESS_COVERAGE, "Coverage over the episode"),
    )
