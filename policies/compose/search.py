"""`kineflow compose A B --search`: weights chosen on search seeds, judged on other seeds beside what they must beat.

The rollouts that pick a weight flatter it: with 100 episodes the best of ten equal arms looks points better than it is. So the
report seeds are played once, after the choice, by the chosen weights and by the baselines, and differences are paired by start.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from kineflow.contracts import KineflowError, Policy, PolicyContract, to_plain
from kineflow.policies.compose.baselines import FinalActions
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.findings import MODERATE, Evidence, Finding, gpc_findings
from kineflow.policies.compose.played_arms import PlayedArms
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.evaluation import environment_factory
from kineflow.policies.intervals import Estimate, bootstrap_interval, wilson_interval
from kineflow.policies.rollout import Rollout
from kineflow.policies.running_episode import Environment, EpisodeResult

Score = Literal["reward", "success"]
MakeEnvironment = Callable[[PolicyContract], Callable[[], Environment]]
BEST_MIXTURE = "best mixture"  # the name of its arm, played where the search chose one parent alone


@dataclass(frozen=True)
class SearchConfig:
    """`evaluation` names the environment and the report seeds; `kineflow eval` of the result plays the same ones."""

    evaluation: EvalConfig = field(default_factory=EvalConfig)
    search_start: int = 300_000
    search_episodes: int = 100
    spacing: float = 0.0  # of the weights; 0: 0.1 for two parents, 0.25 for more
    score: Score = "reward"  # what the search maximises

    def __post_init__(self) -> None:
        search, report = self.search_seeds, self.evaluation.seeds
        if self.search_episodes < 1 or self.search_start < 0:
            raise KineflowError(
                f"search needs episodes and a seed that is not negative, got {self.search_episodes} from {search}"
            )
        if search.start < report.stop and report.start < search.stop:
            raise KineflowError(
                f"search seeds {search.start} to {search.stop - 1} and report seeds {report.start} to {report.stop - 1} overlap: "
                "weights would be judged on the episodes that chose them; move search_start"
            )
        if self.evaluation.sampling:
            raise KineflowError(
                f"evaluation: {', '.join(self.evaluation.sampling)} would change nothing here: parents are judged as they were "
                "saved, and the composition is sampled as --solver, --steps, --grid and --diffusion say"
            )
        if self.spacing and not (0 < self.spacing <= 0.5 and abs(round(1 / self.spacing) * self.spacing - 1) < 1e-9):
            raise KineflowError(f"spacing of the weights is {self.spacing:g}; it must divide 1, e.g. 0.1, 0.125 or 0.25")

    @property
    def search_seeds(self) -> range:
        return range(self.search_start, self.search_start + self.search_episodes)


@dataclass(frozen=True)
class Arm:
    """One way to act and its episodes, in the order of their seeds."""

    name: str
    weights: tuple[float, ...]
    episodes: tuple[EpisodeResult, ...]

    @property
    def reward(self) -> Estimate:
        return bootstrap_interval([e.max_reward for e in self.episodes], seed=0)

    @property
    def success(self) -> Estimate:
        return wilson_interval(sum(e.success for e in self.episodes), len(self.episodes))

    @property
    def coverage(self) -> Estimate:
        return bootstrap_interval([e.max_coverage for e in self.episodes], seed=0)

    def score(self, name: Score) -> float:
        return self.success.value if name == "success" else self.reward.value

    def minus(self, other: Arm, score: Score = "reward") -> Estimate:
        """Mean difference of the max reward, or of success, paired by start."""
        pairs = list(zip(self.episodes, other.episodes, strict=True))
        if any(mine.seed != theirs.seed for mine, theirs in pairs):
            raise KineflowError(f"'{self.name}' and '{other.name}' played other seeds; differences must be paired")
        name = "success" if score == "success" else "max_reward"
        return bootstrap_interval([float(getattr(m, name)) - float(getattr(o, name)) for m, o in pairs], seed=0)

    def to_json(self) -> dict[str, Any]:
        scores = {"mean_max_reward": self.reward, "success_rate": self.success, "mean_max_coverage": self.coverage}
        return {"name": self.name, "weights": list(self.weights), **{k: to_plain(v) for k, v in scores.items()}}


@dataclass(frozen=True)
class SearchResult:
    """`sweep` on search seeds, its parents included; `report` on report seeds: the composition first, then the parents."""

    config: SearchConfig
    names: tuple[str, ...]
    sweep: tuple[Arm, ...]
    chosen: Arm
    report: tuple[Arm, ...]

    @property
    def best_parent(self) -> int:
        """The better parent, as the search seeds say."""
        return max(range(len(self.names)), key=lambda i: self.parents[i].score(self.config.score))

    @property
    def parents(self) -> tuple[Arm, ...]:
        """Each parent alone, on search seeds."""
        return tuple(next(a for a in self.sweep if a.weights == one_hot(i, len(self.names))) for i in range(len(self.names)))

    @property
    def gain(self) -> Estimate:
        """The composition minus the better parent on report seeds."""
        return self.report[0].minus(self.report[1 + self.best_parent])

    @property
    def findings(self) -> dict[str, Any]:
        """What the page says in words, and the same for a program; `gpc` are the publication's three."""
        largest = max(self.chosen.weights)
        return {
            "better_parent": self.names[self.best_parent],
            "gain": to_plain(self.gain),
            "gain_is_above_zero": self.gain.low > 0,
            "all_parents_above_30_percent_success": all(p.success.value > MODERATE for p in self.parents),
            "largest_weight_on_better_parent": self.chosen.weights[self.best_parent] == largest,
            "gpc": to_plain(self.gpc),
        }

    @property
    def gpc(self) -> tuple[Finding, ...]:
        """GPC's three findings, held against this search."""
        better, score = self.best_parent, self.config.score
        others = [arm for i, arm in enumerate(self.parents) if i != better]
        lead = self.parents[better].minus(max(others, key=lambda arm: arm.score(score)), score)
        mixture = next((arm for arm in self.report if arm.name == BEST_MIXTURE), self.report[0])
        success = [arm.success.value for arm in self.parents]
        gain = mixture.minus(self.report[1 + better])
        return gpc_findings(Evidence(self.names, success, better, lead, mixture.weights, gain))

    def to_json(self) -> dict[str, Any]:
        composed = self.report[0]
        rows = [arm.to_json() | {"composed_minus_this": to_plain(composed.minus(arm))} for arm in self.report[1:]]
        return {
            "weights": list(self.chosen.weights),
            "findings": self.findings,
            "report": [composed.to_json(), *rows],
            "sweep": [arm.to_json() for arm in self.sweep],
            "config": to_plain(self.config),
        }


def search(
    policy: ComposedPolicy,
    config: SearchConfig,
    console: Console,
    make_env: MakeEnvironment | None = None,
    keep_in: Path | None = None,
) -> tuple[ComposedPolicy, SearchResult]:
    """The policy with the best weights, and how it was found and judged. Raises KineflowError for operators without weights.

    Each arm is kept in the folder `keep_in` when it has been played; what lies there from the same search is not played again.
    """
    if policy.composition.operator == "and" or policy.composition.schedule:
        raise KineflowError(
            "--search looks for constant weights of operator convex or or; leave --operator and or the schedule out"
        )
    torch.set_num_threads(config.evaluation.threads)
    kept = PlayedArms.of(keep_in, policy, config.evaluation) if keep_in else None
    play = _Player(config, make_env or (lambda contract: environment_factory(config.evaluation, contract)), console, kept)
    sweep = _sweep(policy, config, play)
    # The first of equals, and a parent before a mixture: no weight is claimed that was not earned.
    chosen = max(sweep, key=lambda arm: (arm.score(config.score), max(arm.weights)))
    final = reweighted(policy, chosen.weights)
    arms: list[tuple[str, tuple[float, ...], Policy]] = []
    if 1.0 in chosen.weights:
        # All weight on one parent is that parent as it is: its gain is zero, not what another solver's rounding makes of it.
        arms.append(("composed", chosen.weights, policy.parents[chosen.weights.index(1.0)]))
    else:
        arms.append(("composed", chosen.weights, final))
    arms += [(n, one_hot(i, len(policy.names)), p) for i, (n, p) in enumerate(zip(policy.names, policy.parents))]
    mixed = final
    if 1.0 in chosen.weights:  # what mixing would have given, for an honest page, and something to compare baselines with
        best = max((arm for arm in sweep if max(arm.weights) < 1), key=lambda arm: arm.score(config.score))
        mixed = reweighted(policy, best.weights)
        arms.append((BEST_MIXTURE, best.weights, mixed))
    arms += _baselines(mixed)
    report = tuple(Arm(name, weights, play(name, weights, arm, config.evaluation.seeds)) for name, weights, arm in arms)
    return final, SearchResult(config, policy.names, sweep, chosen, report)


def simplex(parents: int, spacing: float) -> list[tuple[float, ...]]:
    """Weights on a grid, in sum one; two parents: the first one's weight descends."""
    count = round(1 / (spacing or (0.1 if parents == 2 else 0.25)))
    cuts = itertools.product(range(count + 1), repeat=parents - 1)
    whole = [(*cut, count - sum(cut)) for cut in cuts if sum(cut) <= count]
    return [tuple(n / count for n in weights) for weights in sorted(whole, reverse=True)]


def one_hot(index: int, size: int) -> tuple[float, ...]:
    return tuple(float(i == index) for i in range(size))


def reweighted(policy: ComposedPolicy, weights: tuple[float, ...], **changes: Any) -> ComposedPolicy:
    composition: Composition = replace(policy.composition, weights=weights, **changes)
    return compose(policy.parents, policy.names, composition)


def _sweep(policy: ComposedPolicy, config: SearchConfig, play: _Player) -> tuple[Arm, ...]:
    """Each weight on search seeds; all the weight on one parent is that parent as it is."""
    arms = []
    for weights in simplex(len(policy.parents), config.spacing):
        alone = weights.index(1.0) if 1.0 in weights else None
        name = ",".join(f"{w:g}" for w in weights) if alone is None else policy.names[alone]
        actor = reweighted(policy, weights) if alone is None else policy.parents[alone]
        arms.append(Arm(name, weights, play(name, weights, actor, config.search_seeds)))
    return tuple(arms)


def _baselines(final: ComposedPolicy) -> list[tuple[str, tuple[float, ...], Policy]]:
    weights = final.composition.weights
    kinds: list[tuple[str, Policy]] = [
        ("mean of final actions, shared noise", FinalActions(final, weights)),
        ("mean of final actions, independent noise", FinalActions(final, weights, noise="independent")),
        ("random switching", FinalActions(final, weights, how="switch")),
    ]
    if final.composition.operator == "convex":
        kinds.insert(0, ("composed, independent noise", reweighted(final, weights, noise="independent")))
    return [(name, weights, policy) for name, policy in kinds]


@dataclass(frozen=True)
class _Player:
    """Plays an arm, or takes it from what was kept."""

    config: SearchConfig
    make_env: MakeEnvironment
    console: Console
    kept: PlayedArms | None

    def __call__(self, name: str, weights: tuple[float, ...], policy: Policy, seeds: Sequence[int]) -> tuple[EpisodeResult, ...]:
        phase = "search" if seeds == self.config.search_seeds else "report"
        known = self.kept.find(phase, name, weights, seeds) if self.kept else None
        episodes = self._play(f"{phase}: {name}, {len(seeds)} episodes", policy, seeds) if known is None else known
        if self.kept and known is None:
            self.kept.keep(phase, name, weights, seeds, episodes)
        mean = sum(e.max_reward for e in episodes) / len(episodes)
        success = sum(e.success for e in episodes) / len(episodes)
        before = "" if known is None else "  (played before)"
        self.console.print(f"{phase}  {name:44} reward {mean:.3f}  success {success:.0%}{before}")
        return episodes

    def _play(self, what: str, policy: Policy, seeds: Sequence[int]) -> tuple[EpisodeResult, ...]:
        evaluation = self.config.evaluation
        rollout = Rollout(policy, self.make_env(policy.contract), min(evaluation.num_envs, len(seeds)), evaluation.batch)
        with self.console.status(what):
            return tuple(sorted(rollout.run(seeds), key=lambda e: e.seed))
