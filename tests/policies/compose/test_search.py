"""The weight search: seeds that never meet, differences that are paired, baselines that are what their names say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kineflow.contracts import Horizons, KineflowError
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.baselines import FinalActions, chosen_one, seeds_of
from kineflow.policies.compose.build import build
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.played_arms import NOT_KEPT, PlayedArms
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.compose.report import build_search_report
from kineflow.policies.compose.search import SearchConfig, SearchResult, one_hot, reweighted, search, simplex
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.load import load_policy
from kineflow.policies.running_episode import EpisodeResult
from tests.policies.compose.conftest import DIFFUSION, Make, ask, look
from tests.policies.conftest import INTERFACE

QUIET = Console(quiet=True)
CONFIG = SearchConfig(EvalConfig(episodes=4, num_envs=4, batch=4), search_start=5000, search_episodes=3, spacing=0.5)


@dataclass
class Reach:
    """Reward is how near the action's first number comes to `target`: a composition can beat both parents. Logs its seeds."""

    target: float
    log: list[int] = field(default_factory=list)
    interface = INTERFACE

    def reset(self, *, seed: int | None = None):
        assert seed is not None
        self.log.append(seed)
        self.rng, self.steps = np.random.default_rng(seed), 0
        return self._look(), {"coverage": 0.0}

    def step(self, action: np.ndarray):
        self.steps += 1
        reward = float(np.exp(-abs(action[0] - self.target)))
        return self._look(), reward, False, self.steps >= 8, {"coverage": reward, "is_success": reward > 0.8}

    def frame(self, size: int, plans: np.ndarray | None = None, target: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError

    def _look(self):
        return {"state": np.array([*self.rng.uniform(-1, 1, 2), 2.0], np.float32)}


@pytest.fixture(scope="module")
def pair(make: Make) -> tuple[ChunkPolicy, ChunkPolicy]:
    return make(0), make(1, objective=DIFFUSION)


@pytest.fixture(scope="module")
def composed(pair: tuple[ChunkPolicy, ChunkPolicy]) -> ComposedPolicy:
    return compose(pair, ("flow", "diffusion"), Composition(("flow", "diffusion"), (0.5, 0.5), steps=2))


@pytest.fixture(scope="module")
def middle(pair: tuple[ChunkPolicy, ChunkPolicy]) -> float:
    """Between what the two parents do on average."""
    means = [float(p.predict(look(2, 32), ask(32)).actions[..., 0].mean()) for p in pair]
    return sum(means) / 2


Searched = tuple[ComposedPolicy, SearchResult, list[int]]


@pytest.fixture(scope="module")
def searched(composed: ComposedPolicy, middle: float) -> Searched:
    log: list[int] = []
    return *search(composed, CONFIG, QUIET, lambda contract: lambda: Reach(middle, log)), log


def test_search_never_sees_report_seeds(searched: Searched) -> None:
    """Until the choice is made only search seeds were reset; afterwards each arm plays exactly the report seeds."""
    _, result, log = searched
    search_plays, report_plays = len(result.sweep) * 3, len(result.report) * 4
    assert set(log[:search_plays]) == set(CONFIG.search_seeds)
    assert sorted(log[search_plays:]) == sorted(list(CONFIG.evaluation.seeds) * len(result.report))
    assert len(log) == search_plays + report_plays
    assert [a.weights for a in result.sweep] == [(1, 0), (0.5, 0.5), (0, 1)]


def test_overlapping_seeds_are_refused() -> None:
    with pytest.raises(KineflowError, match=r"search seeds 99950 to 100049 and report seeds 100000 to 100199 overlap"):
        SearchConfig(search_start=99_950)
    SearchConfig(search_start=99_900)
    SearchConfig(search_start=100_200)
    with pytest.raises(KineflowError, match=r"overlap"):
        SearchConfig(search_start=100_199)
    with pytest.raises(KineflowError, match=r"spacing .* must divide 1"):
        SearchConfig(spacing=0.3)


def test_best_weights_and_paired_differences(searched: Searched) -> None:
    final, result, _ = searched
    best = max(result.sweep, key=lambda arm: arm.reward.value)
    assert result.chosen.reward.value == best.reward.value
    assert final.composition.weights == result.chosen.weights
    composed_arm, parents = result.report[0], result.report[1:3]
    assert [p.name for p in parents] == ["flow", "diffusion"]
    alone = {arm.name: arm.reward.value for arm in result.sweep if max(arm.weights) == 1}
    assert result.names[result.best_parent] == max(alone, key=lambda name: alone[name])
    by_hand = [m.max_reward - o.max_reward for m, o in zip(composed_arm.episodes, parents[result.best_parent].episodes)]
    assert result.gain.value == pytest.approx(np.mean(by_hand))
    assert result.gain.n == 4
    names = [arm.name for arm in result.report[3:]]
    assert names[-3:] == ["mean of final actions, shared noise", "mean of final actions, independent noise", "random switching"]
    data = result.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data["findings"]) >= {"better_parent", "gain", "gain_is_above_zero", "largest_weight_on_better_parent"}


def test_findings_rest_on_the_arms_that_they_name(searched: Searched) -> None:
    """Success and lead of the parents from the search seeds, the gain of the mixture from the report seeds."""
    _, result, _ = searched
    gains, drags, weighs = result.gpc
    better = result.best_parent
    rates = [sum(e.success for e in arm.episodes) / 3 for arm in (result.sweep[0], result.sweep[2])]
    parents = f"flow {rates[0]:.0%}, diffusion {rates[1]:.0%}"
    assert parents in gains.seen
    assert parents in drags.seen
    lead = np.mean([e.max_reward for e in result.sweep[2 * better].episodes]) - np.mean(
        [e.max_reward for e in result.sweep[2 - 2 * better].episodes]
    )
    assert f"{result.names[better]} leads by {lead:+.3f}" in weighs.seen
    mixture = next(arm for arm in result.report if arm.weights == (0.5, 0.5))
    gain = np.mean([e.max_reward for e in mixture.episodes]) - np.mean([e.max_reward for e in result.report[1 + better].episodes])
    assert f"(0.5, 0.5) minus the better parent: reward {gain:+.3f}" in gains.seen
    assert [one["verdict"] for one in result.to_json()["findings"]["gpc"]] == [one.verdict for one in result.gpc]
    page = build_search_report(result, searched[0].composition)
    assert all(f"<td>{one.verdict}</td>" in page and one.claim in page for one in result.gpc)


def test_unpaired_differences_are_refused(searched: Searched) -> None:
    result = searched[1]
    shifted = replace(result.report[0], episodes=tuple(replace(e, seed=e.seed + 1) for e in result.report[0].episodes))
    with pytest.raises(KineflowError, match="must be paired"):
        shifted.minus(result.report[1])


@pytest.mark.parametrize(("parents", "spacing", "count"), [(2, 0.0, 11), (2, 0.25, 5), (3, 0.0, 15), (3, 0.5, 6)])
def test_weights_on_the_simplex(parents: int, spacing: float, count: int) -> None:
    weights = simplex(parents, spacing)
    assert len(weights) == len(set(weights)) == count
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in weights)
    assert all(one_hot(i, parents) in weights for i in range(parents))


def test_mean_of_final_actions(pair: tuple[ChunkPolicy, ChunkPolicy], composed: ComposedPolicy) -> None:
    observation = look(2)
    answers = [p.predict(observation, ask()).actions for p in pair]
    shared = FinalActions(composed, (0.3, 0.7)).predict(observation, ask()).actions
    np.testing.assert_allclose(shared, 0.3 * answers[0] + 0.7 * answers[1], rtol=1e-5, atol=1e-5)
    own = [p.predict(observation, replace(ask(), seeds=seeds_of(ask().seeds, i))).actions for i, p in enumerate(pair)]
    apart = FinalActions(composed, (0.3, 0.7), noise="independent").predict(observation, ask()).actions
    np.testing.assert_allclose(apart, 0.3 * own[0] + 0.7 * own[1], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(*[seeds_of(ask().seeds, i) for i in (0, 1)])


def test_random_switching_takes_whole_chunks_at_the_given_rate(
    pair: tuple[ChunkPolicy, ChunkPolicy], composed: ComposedPolicy
) -> None:
    observation = look(2, rows=64)
    answers = np.stack([p.predict(observation, ask(64)).actions for p in pair])
    switched = FinalActions(composed, (0.3, 0.7), "switch").predict(observation, ask(64)).actions
    is_first = np.isclose(switched, answers[0], atol=1e-5).all(axis=(1, 2))
    is_second = np.isclose(switched, answers[1], atol=1e-5).all(axis=(1, 2))
    assert (is_first ^ is_second).all()
    assert chosen_one((0.3, 0.7), np.arange(3000))[0].mean() == pytest.approx(0.3, abs=0.03)


def test_baselines_of_different_horizons_leave_the_tail_to_the_long_one(make: Make) -> None:
    long, short = make(0), make(1, horizons=Horizons(1, 4, 2))
    both = compose((long, short), ("long", "short"), Composition(("long", "short"), (0.5, 0.5), steps=2))
    answer = FinalActions(both, (0.5, 0.5)).predict(look(2), ask()).actions
    np.testing.assert_allclose(answer[:, 4:], long.predict(look(2), ask()).actions[:, 4:], rtol=1e-5, atol=1e-5)


def test_operators_without_weights_have_nothing_to_search(pair: tuple[ChunkPolicy, ChunkPolicy]) -> None:
    both = compose(pair, ("a", "b"), Composition(("a", "b"), (), operator="and", solver="ddpm", steps=2))
    with pytest.raises(KineflowError, match="--search looks for constant weights"):
        search(both, CONFIG, QUIET, lambda contract: lambda: Reach(0.0))


def test_search_writes_a_policy_and_a_page_without_requests(
    pair: tuple[ChunkPolicy, ChunkPolicy], middle: float, tmp_path: Path
) -> None:
    sources = [str(policy.save_pretrained(tmp_path / name)) for name, policy in zip(("flow", "dif<b>"), pair)]
    built = build(
        sources, tmp_path / "out", {"steps": 2}, searched=CONFIG, make_env=lambda c: lambda: Reach(middle), console=QUIET
    )
    assert built.result is not None
    loaded = load_policy(tmp_path / "out")
    assert isinstance(loaded, ComposedPolicy)
    assert loaded.composition.weights == built.result.chosen.weights
    page = (tmp_path / "out" / "search" / "report.html").read_text()
    assert "dif&lt;b&gt;" in page
    assert "dif<b>" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "$" not in page[: page.index("<style>")]
    saved = json.loads((tmp_path / "out" / "search" / "search.json").read_text())
    assert saved == built.result.to_json()
    lines = [json.loads(line) for line in (tmp_path / "out" / "search" / "episodes.jsonl").read_text().splitlines()]
    assert {(row["phase"], row["seed"]) for row in lines} == set(_expected())
    assert built.to_json()["weights"] == list(loaded.composition.weights)


def test_a_stopped_search_goes_on_and_plays_nothing_twice(
    pair: tuple[ChunkPolicy, ChunkPolicy], middle: float, tmp_path: Path
) -> None:
    sources = [str(policy.save_pretrained(tmp_path / name)) for name, policy in zip(("flow", "diffusion"), pair)]
    log: list[int] = []

    def play(out: str, arms: int) -> SearchResult:
        """The first `arms` arms get an environment; the next one stops the search."""
        log.clear()
        left = iter(range(arms))

        def make_env(contract):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return lambda: Reach(middle, log)

        built = build(sources, tmp_path / out, {"steps": 2}, searched=CONFIG, make_env=make_env, console=QUIET)
        assert built.result is not None
        return built.result

    whole = play("whole", 99)
    played = len(log)
    with pytest.raises(KeyboardInterrupt):
        play("out", 5)  # three weights, then two on report seeds
    stopped = len(log)
    result = play("out", 99)
    assert stopped == 3 * 3 + 2 * 4
    assert len(log) == played - stopped
    assert result == whole
    with pytest.raises(KineflowError, match="is not empty"):
        play("out", 99)


def test_what_another_search_played_is_never_read(
    pair: tuple[ChunkPolicy, ChunkPolicy], composed: ComposedPolicy, tmp_path: Path
):
    """Other weights of a parent, another sampler, other rows of a call, other seeds, another arm."""

    def kept(policy: ComposedPolicy = composed, **changes) -> PlayedArms:
        return PlayedArms.of(tmp_path, policy, replace(CONFIG.evaluation, **changes))

    episodes = [EpisodeResult(seed, True, 0.1 + seed, 1.0, 0.5, 3.0, 8, 0, (), (), NOT_KEPT) for seed in (1, 2)]
    kept().keep("search", "a", (0.5, 0.5), range(1, 3), episodes)
    assert list(kept(num_envs=2).find("search", "a", (0.5, 0.5), range(1, 3)) or ()) == episodes
    assert kept(reweighted(composed, (0.1, 0.9))).identity == kept().identity
    other = copy.deepcopy(pair[0])
    next(other.network.head.parameters()).data.flatten()[0] += 1e-3
    for name, stranger in {
        "parent": kept(replace(composed, parents=(other, pair[1]))),
        "steps": kept(replace(composed, composition=replace(composed.composition, steps=3))),
        "batch": kept(batch=5),
    }.items():
        assert stranger.find("search", "a", (0.5, 0.5), range(1, 3)) is None, name
    assert kept().find("report", "a", (0.5, 0.5), range(1, 3)) is None
    assert kept().find("search", "b", (0.5, 0.5), range(1, 3)) is None
    assert kept().find("search", "a", (0.4, 0.6), range(1, 3)) is None
    assert kept().find("search", "a", (0.5, 0.5), range(2, 4)) is None


def test_where_one_parent_is_chosen_the_page_still_judges_the_best_mixture(composed: ComposedPolicy) -> None:
    class Nearest(Reach):
        """The further from zero the action, the better: mixtures lie in between."""

    mean = composed.parents[0].predict(look(2, 32), ask(32)).actions[..., 0].mean()
    _, result = search(composed, CONFIG, QUIET, lambda contract: lambda: Nearest(100 * float(mean)))
    assert 1.0 in result.chosen.weights
    parent = result.report[1 + result.chosen.weights.index(1.0)]
    assert result.report[0].episodes == parent.episodes
    mixture = result.report[3]
    assert (mixture.name, mixture.weights) == ("best mixture", (0.5, 0.5))
    assert mixture.episodes != parent.episodes
    assert [arm.weights for arm in result.report[3:]] == [(0.5, 0.5)] * 5
    gain = mixture.minus(result.report[1 + result.best_parent])
    assert gain.value != 0
    assert f"(0.5, 0.5) minus the better parent: reward {gain.value:+.3f}" in result.gpc[0].seen
    assert "best mixture (0.5, 0.5)" in build_search_report(result, composed.composition)


def test_sampling_of_the_evaluation_is_refused_because_it_would_change_nothing() -> None:
    with pytest.raises(KineflowError, match=r"solver, steps would change nothing here.*--solver"):
        SearchConfig(EvalConfig(solver="heun", steps=3))


def _expected() -> Iterator[tuple[str, int]]:
    yield from (("search", seed) for seed in CONFIG.search_seeds)
    yield from (("report", seed) for seed in CONFIG.evaluation.seeds)
