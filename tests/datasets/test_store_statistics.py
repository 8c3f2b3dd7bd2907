"""Statistics on request against numpy on the samples, and the keys that keep them from being used for other data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import CameraSpec, Episode, Interface
from kineflow.datasets import store_statistics as module
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError, read_manifest, write_manifest
from kineflow.datasets.statistics import Moments, join, measure, totals
from kineflow.datasets.store_statistics import (
    LEVELS,
    StatisticsRequest,
    Summary,
    kept_statistics,
    read_statistics,
    statistics_key,
    store_statistics,
    write_statistics,
)
from tests.datasets.sample_episodes import LOW_DIM, sample_episode

SPLITS = ("train", "test", "", "train", "train", "test")

pytestmark = pytest.mark.usefixtures("quick_disk")


def in_split(number: int) -> Episode:
    return replace(sample_episode(number, LOW_DIM), split=SPLITS[number % len(SPLITS)])


def filled(path: Path, numbers: Sequence[int], episodes_per_commit: int = 2) -> EpisodeStore:
    store = EpisodeStore.create(path, LOW_DIM)
    with store.writer(episodes_per_commit) as writer:
        for number in numbers:
            writer.add(in_split(number))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return filled(tmp_path_factory.mktemp("statistics") / "s.eps", range(8))


def samples(name: str, numbers: Sequence[int]) -> np.ndarray:
    return np.concatenate([in_split(n).streams[name].values for n in numbers]).astype(np.float64)


def assert_summary(found: Summary, values: np.ndarray) -> None:
    assert found.count == len(values)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal([found.min, found.max], [values.min(0), values.max(0)])
    np.testing.assert_allclose(list(found.quantiles.values()), np.quantile(values, list(LEVELS.values()), axis=0), rtol=1e-12)


def test_every_statistic_is_that_of_the_samples(store: EpisodeStore) -> None:
    for request, numbers in (
        (StatisticsRequest(), range(8)),
        (StatisticsRequest(split="train"), [0, 3, 4, 6]),
        (StatisticsRequest(split=""), [2]),
        (StatisticsRequest(episodes=(5, 1)), [1, 5]),
    ):
        for quantiles in ("exact", "sketch"):  # episodes this short are whole in their sketches
            found = store_statistics(store, replace(request, quantiles=quantiles))
            for name in ("pose", "force", "action"):
                assert_summary(found.streams[name], samples(name, numbers))
    assert store_statistics(store).streams["pose"].for_policy() == store.statistics()["pose"]


def test_sketched_quantiles_read_no_samples(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    request = StatisticsRequest(split="train", quantiles="sketch")
    expected = store_statistics(store, request)
    monkeypatch.setattr(EpisodeStore, "low_dim", None)
    assert store_statistics(store, request) == expected
    with pytest.raises(TypeError):  # so that the test can fail
        store_statistics(store, replace(request, quantiles="exact"))


@pytest.mark.parametrize("padded", ["excluded", "clamped"])
def test_each_step_of_the_horizon(store: EpisodeStore, padded: str) -> None:
    request = StatisticsRequest(split="train", horizon=4, padded=padded)  # type: ignore[arg-type]
    found = store_statistics(store, request)
    assert len(found.horizon) == 4
    for step, summary in enumerate(found.horizon):
        values = []
        for number in (0, 3, 4, 6):
            actions = in_split(number).streams["action"].values.astype(np.float64)
            for now in range(len(actions)):
                if now + step < len(actions) or padded == "clamped":
                    values.append(actions[min(now + step, len(actions) - 1)])
        assert_summary(summary, np.array(values))
    assert found.horizon[0] == found.streams["action"]


def test_a_horizon_beyond_every_episode_is_refused(store: EpisodeStore) -> None:
    with pytest.raises(StoreError, match=r"no action \d+ steps after another: the longest .* ask for a shorter horizon"):
        store_statistics(store, StatisticsRequest(horizon=40))


def test_image_channels(tmp_path: Path) -> None:
    cameras = {"front": CameraSpec(4, 5, 10.0), "depth": CameraSpec(4, 5, 10.0, "depth")}
    interface = Interface(LOW_DIM.features, LOW_DIM.action, cameras)
    written = EpisodeStore.create(tmp_path / "s.eps", interface)
    with written.writer(2) as writer:
        for number in range(3):
            episode = sample_episode(number, interface)
            episode.streams["depth"].values[:, 0] = 0  # not measured
            writer.add(episode)
    episodes = [written.episode(index) for index in (0, 2)]
    colour = np.concatenate([e.streams["front"].values for e in episodes])
    depth = np.concatenate([e.streams["depth"].values for e in episodes])
    depth = depth[depth > 0]
    found = store_statistics(written, StatisticsRequest(episodes=(0, 2), frames=1000)).cameras
    assert found["front"].frames == len(colour)
    np.testing.assert_allclose(found["front"].mean, colour.reshape(-1, 3).mean(0))
    np.testing.assert_allclose(found["front"].std, colour.reshape(-1, 3).std(0))
    np.testing.assert_allclose([*found["depth"].mean, *found["depth"].std], [depth.mean(), depth.std()])
    fewer = store_statistics(written, StatisticsRequest(episodes=(0, 2), frames=2)).cameras["front"]
    np.testing.assert_allclose(fewer.mean, colour[[0, -1]].reshape(-1, 3).mean(0))


def test_kept_statistics_are_used_for_their_key_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = filled(tmp_path / "s.eps", range(4))
    measured: list[StatisticsRequest] = []
    real = store_statistics

    def counted(store: EpisodeStore, request: StatisticsRequest) -> module.StoreStatistics:
        measured.append(request)
        return real(store, request)

    monkeypatch.setattr(module, "store_statistics", counted)
    train = StatisticsRequest(split="train", horizon=2)
    first = kept_statistics(written, train)
    assert kept_statistics(EpisodeStore.open(written.path), train) == first == real(written, train)
    assert len(measured) == 1
    assert kept_statistics(written, replace(train, padded="clamped")) != first
    with written.writer() as writer:
        writer.add(in_split(4))
    assert kept_statistics(written, train) == real(written, train) != first
    assert len(measured) == 3
    assert check_store(written.path) == []
    for file in (written.path / "statistics").iterdir():
        file.write_text(file.read_text().replace('"count":', '"count":1'))
    assert kept_statistics(written, train) == real(written, train)
    assert len(measured) == 4


def test_statistics_under_another_key_are_refused(store: EpisodeStore, tmp_path: Path) -> None:
    request, file = StatisticsRequest(split="train"), tmp_path / "statistics.json"
    write_statistics(file, store_statistics(store, request))
    assert read_statistics(file, statistics_key(store, request)) == store_statistics(store, request)
    for other, differ in (
        (StatisticsRequest(split="test"), "split, episodes"),
        (StatisticsRequest(episodes=(0, 3, 4, 6)), "split"),
        (replace(request, quantiles="sketch"), "quantiles"),
        (replace(request, horizon=1), "horizon"),
    ):
        with pytest.raises(StoreError, match=rf"other data or options \({differ} differ\)"):
            read_statistics(file, statistics_key(store, other))
    with pytest.raises(StoreError, match=r"\(segments differ\)"):
        read_statistics(file, statistics_key(filled(tmp_path / "again.eps", range(8)), request))
    with pytest.raises(StoreError, match="cannot be read as statistics"):
        read_statistics(tmp_path / "none.json", statistics_key(store, request))
    data = json.loads(file.read_text())
    data["streams"]["pose"]["count"] += 1
    file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="damaged"):
        read_statistics(file, statistics_key(store, request))


def test_requests_that_contradict_themselves_are_refused(store: EpisodeStore) -> None:
    with pytest.raises(StoreError, match="give one of the two"):
        StatisticsRequest(split="train", episodes=(1,))
    with pytest.raises(StoreError, match="at least 0"):
        StatisticsRequest(horizon=-1)
    with pytest.raises(StoreError, match="no episode in split 'validation'"):
        store_statistics(store, StatisticsRequest(split="validation"))


@settings(max_examples=8, deadline=None)
@given(numbers=st.lists(st.integers(0, 11), min_size=1, max_size=6), episodes_per_commit=st.integers(1, 3))
def test_totals_of_splits_are_kept_while_writing(numbers: list[int], episodes_per_commit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = filled(Path(folder) / "s.eps", numbers, episodes_per_commit)
        for split in (None, *sorted({in_split(n).split for n in numbers} - {""})):
            chosen = [n for n in numbers if split in (None, in_split(n).split)]
            for name, found in written.totals(split).items():
                expected = totals(measure(samples(name, chosen)))
                assert (found.count, found.min, found.max) == (expected.count, expected.min, expected.max)
                np.testing.assert_allclose([found.mean, found.m2], [expected.mean, expected.m2], rtol=1e-9, atol=1e-12)
        assert written.totals("validation") == {}


def test_totals_of_other_segments_are_recounted_not_used(tmp_path: Path) -> None:
    written = filled(tmp_path / "s.eps", range(4))
    manifest = read_manifest(written.path)
    lost = replace(manifest, segments=manifest.segments[:1])  # as a careless tool would delete a segment
    write_manifest(written.path, lost)
    reopened = EpisodeStore.open(written.path)
    assert reopened.totals()["pose"].count == len(samples("pose", [0, 1]))
    assert reopened.totals("train")["pose"].count == len(samples("pose", [0]))
    with reopened.writer() as writer:
        writer.add(in_split(3))
    assert EpisodeStore.open(written.path).manifest.stats["pose"].count == len(samples("pose", [0, 1, 3]))


def test_doctor_finds_wrong_totals_of_a_split(tmp_path: Path) -> None:
    written = filled(tmp_path / "s.eps", range(4))
    manifest = read_manifest(written.path)
    train = manifest.split_stats["train"]
    wrong = {**train, "pose": replace(train["pose"], count=train["pose"].count + 1)}
    write_manifest(written.path, replace(manifest, split_stats={**manifest.split_stats, "train": wrong}))
    assert [f.problem for f in check_store(written.path)] == ["statistics of split 'train' do not match those of its episodes"]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=3, max_size=7), seed=st.integers(0, 2**16), data=st.data())
def test_moments_merge_in_any_order_and_grouping(lengths: list[int], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    parts = [measure(rng.normal(rng.uniform(-1e3, 1e3), rng.uniform(0.1, 10), (n, 2))) for n in lengths]
    cut = data.draw(st.integers(1, len(parts) - 1))
    shuffled: list[Moments] = data.draw(st.permutations(parts))
    one = join(parts).merged()
    for other in (
        join([join(parts[:cut]).merged(), join(parts[cut:]).merged()]).merged(),
        join(shuffled).merged(),
    ):
        assert other.count == one.count
        np.testing.assert_allclose(other.rows, one.rows, rtol=1e-9, atol=1e-9)
