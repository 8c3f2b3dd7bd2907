"""Windows against a slow reader that follows the definition step by step; the sampler's order, coverage and resume."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import Episode, Horizons, KineflowError, Stream, Window
from kineflow.datasets.episode_split import split_episodes
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.window_sampler import WindowSampler
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, sample_episode

LENGTHS = (1, 7, 2, 12, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path_factory.mktemp("windows") / "s.eps", LOW_DIM)
    with store.writer(2) as writer:
        for number, length in enumerate(LENGTHS):
            writer.add(sample_episode(number, LOW_DIM, length))
    return store


def test_windows_with_images_equal_the_slow_definition(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "i.eps", INTERFACE)
    with store.writer() as writer:
        for number in range(4):
            writer.add(sample_episode(number))
    chosen, horizons = [3, 1], Horizons(3, 2, 1)
    reader = WindowReader(store, ["pose"], horizons, chosen, ["front"])
    window = reader.read(np.arange(len(reader)))
    expected = []
    for number in chosen:
        frames = sample_episode(number).streams["front"].values
        expected += [[frames[max(s, 0)] for s in range(step - 2, step + 1)] for step in range(len(frames))]
    np.testing.assert_array_equal(window.images["front"], np.array(expected))
    assert reader.read(np.arange(2), images=False).images == {}
    alone = WindowReader(store, [], horizons, chosen, ["front"]).read(np.arange(5))
    assert alone.state.shape == (5, 3, 0)
    np.testing.assert_array_equal(alone.images["front"], window.images["front"][:5])
    with pytest.raises(KineflowError, match=r"no camera 'wrist'; it has \['front'\]"):
        WindowReader(store, [], horizons, chosen, ["wrist"])


def slow_window(episode: Episode, features: list[str], horizons: Horizons, step: int) -> Window:
    """One window, from the definition in the module's diagram."""
    length = len(episode.streams["action"].values)
    state, state_pad, action, action_pad = [], [], [], []
    for s in range(step - horizons.observation + 1, step + 1):
        state.append(np.concatenate([episode.streams[name].values[s if s >= 0 else 0] for name in features]))
        state_pad.append(s < 0)
    for s in range(step, step + horizons.prediction):
        action.append(episode.streams["action"].values[s if s < length else length - 1])
        action_pad.append(s >= length)
    return Window(np.stack(state), np.stack(action), np.array(state_pad), np.array(action_pad))


@settings(max_examples=80, deadline=None)
@given(
    observation=st.integers(1, 15),
    prediction=st.integers(1, 20),
    features=st.sampled_from([["pose"], ["force"], ["force", "pose"], ["pose", "force"]]),
    episodes=st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True),
)
def test_windows_equal_the_slow_definition(
    store: EpisodeStore, observation: int, prediction: int, features: list[str], episodes: list[int]
) -> None:
    horizons = Horizons(observation, prediction, 1)
    reader = WindowReader(store, features, horizons, episodes)
    expected = [
        slow_window(sample_episode(e, LOW_DIM, LENGTHS[e]), features, horizons, step)
        for e in episodes
        for step in range(LENGTHS[e])
    ]
    assert len(reader) == len(expected)
    order = np.random.default_rng(observation).permutation(len(expected))
    found = reader.read(order)
    for field in ("state", "action", "state_is_pad", "action_is_pad"):
        wanted = np.stack([getattr(expected[i], field) for i in order])
        np.testing.assert_array_equal(getattr(found, field), wanted)
        assert getattr(found, field).dtype == wanted.dtype


def test_the_diagram_is_right(store: EpisodeStore) -> None:
    # Episode 3 has 12 steps, its windows start at 0 when it is the only one.
    reader = WindowReader(store, ["pose"], Horizons(2, 8, 4), [3])
    window = reader.read(np.array([0, 9]))
    assert window.state_is_pad.tolist() == [[True, False], [False, False]]
    assert window.action_is_pad.tolist() == [[False] * 8, [False] * 3 + [True] * 5]
    pose = sample_episode(3, LOW_DIM, 12).streams["pose"].values
    np.testing.assert_array_equal(window.state, [[pose[0], pose[0]], [pose[8], pose[9]]])


def test_no_indices_give_an_empty_batch(store: EpisodeStore) -> None:
    assert WindowReader(store, ["pose"], Horizons(2, 4, 1), [1]).read(np.zeros(0, np.int64)).state.shape == (0, 2, 3)


@pytest.mark.parametrize("index", [-1, 7])
def test_indices_out_of_range_are_refused(store: EpisodeStore, index: int) -> None:
    with pytest.raises(IndexError, match=r"not all in 0 \.\. 6"):
        WindowReader(store, ["pose"], Horizons(2, 4, 1), [1]).read(np.array([0, index]))


@pytest.mark.parametrize(
    ("features", "episodes", "message"),
    [
        (["poze"], [0], r"no feature 'poze'; it has \['force', 'pose'\]"),
        ([], [0], "a feature or a camera, and an episode"),
        (["pose"], [], "a feature or a camera, and an episode"),
        (["pose"], [5], r"not all in 0 \.\. 4"),
        (["pose"], [-1], r"not all in 0 \.\. 4"),
    ],
)
def test_what_the_store_lacks_is_one_clear_error(
    store: EpisodeStore, features: list[str], episodes: list[int], message: str
) -> None:
    with pytest.raises(KineflowError, match=message):
        WindowReader(store, features, Horizons(2, 4, 1), episodes)


def test_nan_that_got_into_a_store_is_named(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    values = store.low_dim("pose").copy()
    values[LENGTHS[0] + LENGTHS[1] + 1, 2] = np.nan
    monkeypatch.setattr(EpisodeStore, "low_dim", lambda self, name: values)
    with pytest.raises(KineflowError, match="'pose' is not finite in episode 2, step 1"):
        WindowReader(store, ["pose"], Horizons(1, 1, 1), [0])


def test_a_stream_with_its_own_clock_is_refused(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    episode = sample_episode(0, LOW_DIM)
    pose = episode.streams["pose"]
    with store.writer() as writer:
        writer.add(Episode({**episode.streams, "pose": Stream(pose.values, pose.stamp_ns + 1)}))
    with pytest.raises(KineflowError, match="'pose' has a clock of its own; say how"):
        WindowReader(store, ["pose"], Horizons(1, 1, 1), [0])
    assert len(WindowReader(store, ["force"], Horizons(1, 1, 1), [0])) == len(pose.stamp_ns)


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 1000), epochs=st.integers(1, 4))
def test_every_epoch_has_each_window_once(num: int, batch: int, seed: int, epochs: int) -> None:
    batches = list(itertools.islice(WindowSampler(num, batch, seed), -(-num * epochs // batch)))
    assert {len(b) for b in batches} == {batch}
    stream = np.concatenate(batches)
    for epoch in range(epochs):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 1000), stop=st.integers(0, 20))
def test_resume_is_exact(num: int, batch: int, seed: int, stop: int) -> None:
    first, second = WindowSampler(num, batch, seed), WindowSampler(num, batch, seed)
    for _ in range(stop):
        next(first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    for _ in range(5):
        np.testing.assert_array_equal(next(second), next(first))


def test_order_depends_on_seed_and_epoch_only() -> None:
    def epochs(seed: int, batch: int) -> list[list[int]]:
        sampler = WindowSampler(60, batch, seed)
        return np.concatenate(list(itertools.islice(sampler, 180 // batch))).reshape(3, 60).tolist()

    assert epochs(5, 20) == epochs(5, 60) == epochs(5, 30)
    assert len({tuple(e) for e in epochs(5, 20) + epochs(6, 20)}) == 6


@pytest.mark.parametrize("other", [(9, 4, 0), (10, 5, 0), (10, 4, 1)])
def test_a_state_of_another_run_is_refused(other: tuple[int, int, int]) -> None:
    with pytest.raises(KineflowError, match="resume with the data and config"):
        WindowSampler(10, 4, 0).load_state_dict(WindowSampler(*other).state_dict())


@pytest.mark.parametrize("arguments", [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_impossible_samplers_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(KineflowError, match="need num_windows"):
        WindowSampler(*arguments)


@settings(max_examples=100, deadline=None)
@given(num=st.integers(2, 300), fraction=st.floats(0, 0.99), seed=st.integers(0, 100))
def test_split_is_a_partition(num: int, fraction: float, seed: int) -> None:
    train, validation = split_episodes(num, fraction, seed)
    assert sorted([*train, *validation]) == list(range(num))
    assert len(train) >= 1
    assert list(train) == sorted(train)
    assert list(validation) == sorted(validation)
    assert abs(len(validation) - num * fraction) <= 1
    assert (len(validation) > 0) == (fraction > 0)


@settings(max_examples=100, deadline=None)
@given(num=st.integers(18, 300), block=st.integers(1, 9), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 100))
def test_neighbours_are_held_out_together(num: int, block: int, fraction: float, seed: int) -> None:
    train, validation = split_episodes(num, fraction, seed, block)
    assert sorted([*train, *validation]) == list(range(num))
    assert len(train)
    assert len(validation)
    assert not {i // block for i in train} & {i // block for i in validation}
    assert abs(len(validation) - num * fraction) <= 2 * block


def test_split_depends_on_the_seed() -> None:
    splits = {tuple(split_episodes(206, 0.1, seed)[1]) for seed in range(5)}
    assert len(splits) == 5
    assert split_episodes(206, 0.1, 3)[1].tolist() == split_episodes(206, 0.1, 3)[1].tolist()
    assert len(split_episodes(206, 0.1, 3)[1]) == 21


@pytest.mark.parametrize(("num", "fraction"), [(0, 0.0), (1, 0.5), (10, 1.0), (10, -0.1)])
def test_impossible_splits_are_refused(num: int, fraction: float) -> None:
    with pytest.raises(KineflowError, match="cannot hold out"):
        split_episodes(num, fraction, 0)
    with pytest.raises(KineflowError, match="cannot hold out"):
        split_episodes(9, 0.5, 0, block=9)
    with pytest.raises(KineflowError, match="blocks of 0"):
        split_episodes(9, 0.5, 0, block=0)
