"""The store's own promises beyond the conformance suite: what it refuses, merges, shares and shows to zarr-python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from kineflow.contracts import Episode, FeatureSpec, Interface, Stream
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import Calibration, CameraRecord, StoreError
from tests.datasets.sample_episodes import COMMAND, FORCE, INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode


def filled(path: Path, numbers: range, interface: Interface = INTERFACE, episodes_per_commit: int = 100) -> EpisodeStore:
    store = EpisodeStore.create(path, interface)
    with store.writer(episodes_per_commit) as writer:
        for number in numbers:
            writer.add(sample_episode(number, interface))
    return store


def changed(episode: Episode, name: str, values: np.ndarray | None = None, stamp_ns: np.ndarray | None = None) -> Episode:
    old = episode.streams[name]
    new = Stream(old.values if values is None else values, old.stamp_ns if stamp_ns is None else stamp_ns)
    return replace(episode, streams={**episode.streams, name: new})


def test_segmentation_does_not_change_fingerprint_statistics_or_streams(tmp_path: Path) -> None:
    stores = [filled(tmp_path / str(n), range(7), LOW_DIM, n) for n in (1, 3, 100)]
    assert [len(s.manifest.segments) for s in stores] == [7, 3, 1]
    assert len({s.fingerprint() for s in stores}) == 1
    assert stores[0].statistics() == stores[1].statistics() == stores[2].statistics()
    for name in ("pose", "force", "action"):
        expected = np.concatenate([sample_episode(n, LOW_DIM).streams[name].values for n in range(7)])
        for store in stores:
            np.testing.assert_array_equal(store.low_dim(name), expected)


def test_statistics_of_a_subset_are_those_of_its_samples(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(9), LOW_DIM, 4)
    chosen = [7, 0, 3]
    for name, found in store.statistics(chosen).items():
        samples = np.concatenate([sample_episode(n, LOW_DIM).streams[name].values for n in chosen]).astype(np.float64)
        assert found.count == len(samples)
        np.testing.assert_allclose(found.mean, samples.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.std, samples.std(0), rtol=1e-12)
        np.testing.assert_allclose([found.q01, found.q99], np.quantile(samples, [0.01, 0.99], axis=0), rtol=1e-12)
    assert sorted(store.statistics()) == ["action", "force", "pose"]


@pytest.mark.parametrize("episodes", [[], [1, 1], [0, 9], [-1, 0]])
def test_statistics_of_no_repeated_or_unknown_episodes_are_refused(tmp_path: Path, episodes: list[int]) -> None:
    with pytest.raises(StoreError, match=r"each named once|no episode"):
        filled(tmp_path / "s", range(3), LOW_DIM).statistics(episodes)


def test_fingerprint_covers_metadata_clock_and_schema(tmp_path: Path) -> None:
    base = sample_episode(1, LOW_DIM)
    stamps = base.streams["pose"].stamp_ns + 1
    later = replace(base, streams={n: Stream(s.values, stamps) for n, s in base.streams.items()})
    variants = [base, replace(base, success=False), replace(base, instruction="x"), replace(base, source="y"), later]
    prints = set()
    for number, episode in enumerate(variants):
        store = EpisodeStore.create(tmp_path / str(number), LOW_DIM)
        with store.writer() as writer:
            writer.add(episode)
        prints.add(store.fingerprint())
    slower = Interface(LOW_DIM.features, FeatureSpec(COMMAND, 5.0))
    prints.add(filled(tmp_path / "slower", range(1, 2), slower).fingerprint())
    assert len(prints) == len(variants) + 1


def test_zarr_python_opens_a_segment(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(4))
    group = zarr.open_group(store.path / "segments" / store.manifest.segments[0].id, mode="r")
    episodes = [sample_episode(n) for n in range(4)]
    for path, stream in (("steps/pose", "pose"), ("steps/action", "action"), ("cameras/front", "front")):
        array = group[path]
        assert isinstance(array, zarr.Array)
        np.testing.assert_array_equal(array[...], np.concatenate([e.streams[stream].values for e in episodes]))
    stamps, length = group["steps/timestamp"], group["episodes/length"]
    assert isinstance(stamps, zarr.Array)
    assert isinstance(length, zarr.Array)
    np.testing.assert_array_equal(stamps[...], np.concatenate([e.streams["action"].stamp_ns for e in episodes]))
    np.testing.assert_array_equal(length[...], store.lengths)
    assert group.metadata.consolidated_metadata is not None


def test_streams_with_clocks_of_their_own_keep_lengths_and_stamps(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", INTERFACE)
    episodes = [sample_episode(number) for number in range(4)]
    for number in (1, 3):
        slow = episodes[number].streams["front"]
        fast = np.arange(50, dtype=np.int64) * 1_000_000 + 10**18
        episodes[number] = changed(episodes[number], "front", slow.values[::2], slow.stamp_ns[::2] + 5)
        episodes[number] = changed(episodes[number], "force", np.arange(50, dtype=np.float32)[:, None], fast)
    with store.writer(2) as writer:
        for episode in episodes:
            writer.add(episode)
    for number, episode in enumerate(episodes):
        assert_equal_episodes(EpisodeStore.open(store.path).episode(number), episode)
    assert (store.has_own_clock("force"), store.has_own_clock("front"), store.has_own_clock("pose")) == (True, True, False)
    assert store.stream_lengths("force").tolist() == [len(e.streams["force"].stamp_ns) for e in episodes]
    assert store.statistics([1])["force"].count == 50
    assert check_store(store.path) == []


def test_an_exception_drops_only_what_is_not_committed(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", LOW_DIM)

    def record_and_fail() -> None:
        with store.writer(2) as writer:
            for number in range(3):
                writer.add(sample_episode(number, LOW_DIM))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_and_fail()
    assert EpisodeStore.open(store.path).num_episodes == 2


def test_pending_episodes_do_not_hold_raw_frames(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", INTERFACE)
    writer = store.writer(10)
    writer.add(sample_episode(0))
    (pending,) = writer._pending
    assert pending.episode.streams["front"].values.base is None
    assert pending.episode.streams["front"].values.nbytes == 0


def test_manifest_facts_survive(tmp_path: Path) -> None:
    pose = ((1.0, 0.0, 0.0, 0.2), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    calibration = Calibration(((100.0, 0.0, 4.0), (0.0, 100.0, 3.0), (0.0, 0.0, 1.0)), "none", (), pose)
    cameras = {"front": CameraRecord(calibration=calibration)}
    EpisodeStore.create(tmp_path / "s", INTERFACE, "sensor", "our robot", "CC0-1.0", cameras)
    manifest = EpisodeStore.open(tmp_path / "s").manifest
    assert (manifest.provenance, manifest.licence, manifest.clock, manifest.cameras) == (
        "our robot",
        "CC0-1.0",
        "sensor",
        cameras,
    )
    assert list(manifest.schema.features) == list(INTERFACE.features)


@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_by_stream_step_and_episode(tmp_path: Path, value: float, position: int) -> None:
    store = filled(tmp_path / "s", range(2), LOW_DIM)
    values = sample_episode(2, LOW_DIM, length=6).streams["pose"].values.astype(np.float64)
    values[position, 1] = value
    message = rf"episode 2 \(log 2\), stream 'pose', step {position}, dimension 1: value .* not finite"
    with pytest.raises(StoreError, match=message), store.writer() as writer:
        writer.add(changed(sample_episode(2, LOW_DIM, length=6), "pose", values))
    assert EpisodeStore.open(store.path).num_episodes == 2


def bad_episodes() -> dict[str, tuple[Episode, str]]:
    good = sample_episode(0, length=5)
    streams, stamps = good.streams, good.streams["pose"].stamp_ns
    repeated, backwards = stamps.copy(), stamps.copy()
    repeated[3], backwards[2] = repeated[2], 0
    missing = replace(good, streams={n: s for n, s in streams.items() if n != "force"})
    return {
        "missing stream": (missing, "'force' is missing"),
        "unknown stream": (replace(good, streams={**streams, "sonar": streams["force"]}), "'sonar' is not in the store's schema"),
        "wrong width": (changed(good, "pose", np.zeros((5, 2), np.float32)), r"shape \[5, 2\], the schema says \[T, 3\]"),
        "one dimension": (changed(good, "force", np.zeros(5, np.float32)), r"shape \[5\]"),
        "text": (changed(good, "force", np.full((5, 1), "a")), "is not a number"),
        "large integers": (changed(good, "force", np.full((5, 1), 2**24 + 1)), "would lose digits"),
        "empty": (sample_episode(0, length=0), "T >= 1"),
        "repeated stamp": (changed(good, "pose", stamp_ns=repeated), "'pose', step 3: timestamp .* does not come after"),
        "time runs back": (changed(good, "front", stamp_ns=backwards), "'front', step 2: timestamp 0 ns"),
        "stamps in seconds": (changed(good, "pose", stamp_ns=stamps / 1e9), "needed is int64 ns"),
        "too few stamps": (changed(good, "pose", stamp_ns=stamps[:4]), r"needed is int64 ns \[5\]"),
        "float frames": (changed(good, "front", streams["front"].values / 255), "the schema says uint8"),
        "frame size": (changed(good, "front", streams["front"].values[:, :5]), r"\[5, 5, 8, 3\]"),
    }


@pytest.mark.parametrize("name", bad_episodes())
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    episode, message = bad_episodes()[name]
    store = EpisodeStore.create(tmp_path / "s", INTERFACE)
    with pytest.raises(StoreError, match="episode 0 .*" + message), store.writer() as writer:
        writer.add(episode)
    assert EpisodeStore.open(store.path).num_episodes == 0


def test_other_number_types_are_converted(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", LOW_DIM)
    with store.writer() as writer:
        writer.add(changed(sample_episode(0, LOW_DIM, length=3), "force", np.array([[True], [False], [True]])))
        writer.add(changed(sample_episode(1, LOW_DIM, length=3), "force", np.array([[-3], [0], [7]], np.int16)))
    assert store.low_dim("force").ravel().tolist() == [1, 0, 1, -3, 0, 7]


@pytest.mark.parametrize("name", ["action", "my stream", "../pose", "pose_timestamp", "pose_length", "", "1d"])
def test_names_that_cannot_be_arrays_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="rename the stream"):
        EpisodeStore.create(tmp_path / "s", Interface({name: FeatureSpec(FORCE, 1.0)}, FeatureSpec(COMMAND, 1.0)))
    assert not (tmp_path / "s").exists()


def test_one_name_for_feature_and_camera_is_refused(tmp_path: Path) -> None:
    features = {"front": FeatureSpec(FORCE, 1.0)}
    with pytest.raises(StoreError, match="'front' cannot be used"):
        EpisodeStore.create(tmp_path / "s", Interface(features, FeatureSpec(COMMAND, 1.0), INTERFACE.cameras))


def test_create_and_open_refuse_the_wrong_path(tmp_path: Path) -> None:
    EpisodeStore.create(tmp_path / "s", LOW_DIM)
    with pytest.raises(StoreError, match="exists already"):
        EpisodeStore.create(tmp_path / "s", LOW_DIM)
    with pytest.raises(StoreError, match="is not an episode store"):
        EpisodeStore.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no low-dimensional stream 'poze'; it has"):
        EpisodeStore.open(tmp_path / "s").low_dim("poze")
    with pytest.raises(StoreError, match="at least 1"):
        EpisodeStore.open(tmp_path / "s").writer(0)
