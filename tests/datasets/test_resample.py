"""Resampling against slow definitions, SciPy's rotations, and windows over streams whose clocks differ from the actions'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation, Slerp

from kineflow.cli import main
from kineflow.contracts import Episode, Goal, Horizons, KineflowError, Stream
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord
from kineflow.datasets.resample import Resample, resample_episode, resampled, resampled_interface, source_rows
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode

MS = 1_000_000
stamps = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(lambda t: np.array(sorted(t), np.int64) * 10 * MS)
times = st.lists(st.integers(-10, 70), min_size=1, max_size=20).map(lambda t: np.array(t, np.int64) * 10 * MS)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(stamps, times, st.sampled_from([0.01, 0.05, 0.3]))
def test_nearest_and_hold_equal_their_definitions(stamp_ns: np.ndarray, at_ns: np.ndarray, gap_s: float) -> None:
    rows, usable = source_rows(stamp_ns, at_ns, Resample("nearest", gap_s))
    for t, row, good in zip(at_ns, rows, usable, strict=True):
        best = min(range(len(stamp_ns)), key=lambda i: (abs(stamp_ns[i] - t), i))
        assert good == (abs(stamp_ns[best] - t) <= gap_s * 1e9)
        assert row == best
    rows, usable = source_rows(stamp_ns, at_ns, Resample("hold", gap_s))
    for t, row, good in zip(at_ns, rows, usable, strict=True):
        past = [i for i in range(len(stamp_ns)) if stamp_ns[i] <= t]
        assert good == (bool(past) and t - stamp_ns[past[-1]] <= gap_s * 1e9)
        assert not good or row == past[-1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(stamps, times, st.sampled_from([0.01, 0.05, 0.3]))
def test_linear_is_interpolation_within_gaps_and_never_beyond_the_ends(
    stamp_ns: np.ndarray, at_ns: np.ndarray, gap_s: float
) -> None:
    values = np.random.default_rng(len(stamp_ns)).normal(size=(len(stamp_ns), 2)).astype(np.float32)
    found, usable = resampled(values, stamp_ns, at_ns, Resample("linear", gap_s))
    for t, value, good in zip(at_ns, found, usable, strict=True):
        if t in stamp_ns:
            assert good
        else:
            around = [i for i in range(len(stamp_ns) - 1) if stamp_ns[i] < t < stamp_ns[i + 1]]
            assert good == (bool(around) and stamp_ns[around[0] + 1] - stamp_ns[around[0]] <= gap_s * 1e9)
        if good:
            exact = [np.interp(t, stamp_ns, values[:, d].astype(np.float64)) for d in range(2)]
            np.testing.assert_allclose(value, exact, rtol=1e-6, atol=1e-6)


def test_slerp_equals_scipy_whatever_the_signs() -> None:
    rng = np.random.default_rng(0)
    stamp_ns = np.cumsum(rng.integers(5, 50, 40)).astype(np.int64) * MS
    turns = Rotation.random(40, random_state=1)
    signs = rng.choice([-1.0, 1.0], (40, 1))
    values = np.concatenate([rng.normal(size=(40, 3)), turns.as_quat() * signs], axis=1).astype(np.float32)
    at_ns = np.sort(rng.integers(stamp_ns[0], stamp_ns[-1], 500))
    found, usable = resampled(values, stamp_ns, at_ns, Resample("slerp", 1.0, quaternion=3))
    assert usable.all()
    wanted = Slerp(stamp_ns / 1e9, turns)(at_ns / 1e9)
    assert (Rotation.from_quat(found[:, 3:]) * wanted.inv()).magnitude().max() < 1e-5
    for d in range(3):
        np.testing.assert_allclose(found[:, d], np.interp(at_ns, stamp_ns, values[:, d]), atol=1e-5)
    with pytest.raises(KineflowError, match="columns 2 to 5 are not unit quaternions"):
        resampled(values, stamp_ns, at_ns, Resample("slerp", 1.0, quaternion=2))


def test_slerp_turns_the_short_way_between_nearly_equal_rotations() -> None:
    values = np.array([[0, 0, 0, 1], [1e-9, 0, 0, -1]], np.float32)
    found, _ = resampled(values, np.array([0, 100]), np.array([50]), Resample("slerp", 1.0, quaternion=0))
    np.testing.assert_allclose(np.abs(found), [[0, 0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hold", 0.0), "max_gap_s is 0.0"),
        (("nearest", float("inf")), "max_gap_s is inf"),
        (("slerp", 1.0), "needs the column of qx"),
        (("linear", 1.0, 2), "only slerp"),
    ],
)
def test_rules_that_say_nothing_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        Resample(*arguments)


# --- windows over streams with clocks of their own -----------------------------------------------------------------------


def skewed(number: int, skew_ms: int = 30, hole: slice = slice(0, 0)) -> Episode:
    """The sample episode with `pose` at other times (and with a hole) and with two camera frames for three steps."""
    episode = sample_episode(number, INTERFACE, 12)
    streams, action = dict(episode.streams), episode.streams["action"].stamp_ns
    pose, front = streams["pose"], streams["front"]
    kept = np.setdiff1d(np.arange(12), np.arange(12)[hole])
    streams["pose"] = Stream(pose.values[kept], (action - skew_ms * MS)[kept])
    streams["front"] = Stream(front.values[:8], action[0] + np.arange(8, dtype=np.int64) * 150 * MS)
    return Episode(streams, clock=episode.clock)


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer(2) as writer:
        for number in range(3):
            writer.add(skewed(number, hole=slice(5, 8) if number == 1 else slice(0, 0)))
    return store


RULES = {"pose": Resample("hold", 0.25), "front": Resample("nearest", 0.06)}


def test_windows_hold_what_the_rules_say_and_leave_out_gaps(store: EpisodeStore) -> None:
    reader = WindowReader(store, ["pose"], Horizons(2, 3, 1), [0, 1], ["front"], RULES)
    window, expected = reader.read(np.arange(len(reader))), []
    for number in (0, 1):
        episode = store.episode(number)
        pose, front, action = (episode.streams[name] for name in ("pose", "front", "action"))
        for step in range(12):
            states, frames = [], []
            for seen in (max(step - 1, 0), step):
                now = action.stamp_ns[seen]
                held = [i for i, t in enumerate(pose.stamp_ns) if t <= now and now - t <= 0.25e9]
                shown = [i for i, t in enumerate(front.stamp_ns) if abs(t - now) <= 0.06e9]
                states += [pose.values[held[-1]]] if held else []
                frames += [front.values[min(shown, key=lambda i: abs(front.stamp_ns[i] - now))]] if shown else []
            if len(states) == len(frames) == 2:
                expected.append((np.array(states), np.array(frames), action.values[step]))
    assert len(expected) == len(reader) < 24
    for row, (states, frames, first) in enumerate(expected):
        np.testing.assert_array_equal(window.state[row], states)
        np.testing.assert_array_equal(window.images["front"][row], frames)
        np.testing.assert_array_equal(window.action[row, 0], first)
    assert sum(reader.dropped.values()) == 24 - len(reader)
    assert set(reader.dropped) == {"pose", "front"}


def test_without_a_rule_a_clock_of_its_own_is_refused(store: EpisodeStore) -> None:
    with pytest.raises(KineflowError, match=r"'pose' has a clock of its own; say how .* resample: \{pose:"):
        WindowReader(store, ["pose"], Horizons(1, 1, 1), [0])
    with pytest.raises(KineflowError, match="images cannot be resampled by linear"):
        WindowReader(store, [], Horizons(1, 1, 1), [0], ["front"], {"front": Resample("linear", 0.1)})
    with pytest.raises(KineflowError, match="every window observes a gap"):
        WindowReader(store, ["pose"], Horizons(1, 1, 1), [0], resample={"pose": Resample("hold", 0.001)})


def test_a_rule_changes_nothing_for_streams_on_the_clock_of_the_actions(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer() as writer:
        writer.add(sample_episode(0))
    plain = WindowReader(store, ["pose"], Horizons(2, 3, 1), [0], ["front"])
    ruled = WindowReader(store, ["pose"], Horizons(2, 3, 1), [0], ["front"], RULES)
    assert ruled.dropped == {}
    one, two = plain.read(np.arange(len(plain))), ruled.read(np.arange(len(ruled)))
    np.testing.assert_array_equal(one.state, two.state)
    np.testing.assert_array_equal(one.images["front"], two.images["front"])


# --- a common clock --------------------------------------------------------------------------------------------------------


def test_an_episode_on_a_common_clock_is_cut_at_gaps() -> None:
    goal = {"g": Goal("point", np.zeros(3, np.float32), "map")}
    episode = skewed(1, hole=slice(5, 8))
    episode = Episode(episode.streams, "push", True, "log", goals=goal, split="train")
    rules = {**dict.fromkeys(episode.streams, Resample("linear", 0.25)), "front": Resample("nearest", 0.1)}
    result = resample_episode(episode, 20.0, rules)
    assert [p.instruction for p in result.pieces] == ["push", "push"]
    assert result.pieces[0].goals == goal
    assert result.dropped["pose"] > 0
    start = max(int(s.stamp_ns[0]) for s in episode.streams.values())
    end = min(int(s.stamp_ns[-1]) for s in episode.streams.values())
    steps = sum(len(p.streams["action"].stamp_ns) for p in result.pieces)
    assert steps + result.dropped["pose"] + result.dropped.get("single steps between gaps", 0) == (end - start) // (50 * MS) + 1
    for piece in result.pieces:
        clock = piece.streams["action"].stamp_ns
        assert (np.diff(clock) == 50 * MS).all()
        assert piece.clock == "resampled_20hz"
        for name, stream in piece.streams.items():
            np.testing.assert_array_equal(stream.stamp_ns, clock)
            if name == "front":
                continue
            source = episode.streams[name]
            exact = [np.interp(clock, source.stamp_ns, source.values[:, d]) for d in range(source.values.shape[1])]
            np.testing.assert_allclose(stream.values, np.stack(exact, 1), rtol=1e-5, atol=1e-5)


def test_a_step_alone_between_two_gaps_is_dropped_and_counted() -> None:
    stamp_ns = np.array([0, 1, 2, 5, 8, 9], np.int64) * 100 * MS
    action = Stream(np.zeros((6, 2), np.float32), stamp_ns)
    result = resample_episode(Episode({"action": action}), 10.0, {"action": Resample("hold", 0.05)})
    assert [len(p.streams["action"].values) for p in result.pieces] == [3, 2]
    assert result.dropped == {"action": 4, "single steps between gaps": 1}


@pytest.mark.parametrize("rounded", [np.round, np.floor])
@pytest.mark.parametrize("rate_hz", [3.0, 7.0, 10.0, 29.97, 30.0, 60.0])
def test_a_stream_that_has_the_rate_already_keeps_every_step(rate_hz: float, rounded: np.ufunc) -> None:
    """Its times are rounded to whole nanoseconds, often down: the last one counts as reached."""
    for steps in range(2, 80):
        stamp_ns = 10**18 + rounded(np.arange(steps) * (1e9 / rate_hz)).astype(np.int64)
        action = Stream(np.arange(2 * steps, dtype=np.float32).reshape(-1, 2), stamp_ns)
        result = resample_episode(Episode({"action": action}), rate_hz, {"action": Resample("hold", 1e-6)})
        (piece,) = result.pieces
        assert result.dropped == {}
        np.testing.assert_array_equal(piece.streams["action"].values, action.values)


def test_a_common_clock_needs_every_rule_and_common_time() -> None:
    episode = skewed(0)
    with pytest.raises(KineflowError, match=r"no resampling rule for \['action', 'force', 'front'\]"):
        resample_episode(episode, 10.0, {"pose": Resample("hold", 1.0)})
    apart = {**episode.streams, "pose": Stream(episode.streams["pose"].values, episode.streams["pose"].stamp_ns + 10**12)}
    with pytest.raises(KineflowError, match="no time in common"):
        resample_episode(Episode(apart), 10.0, dict.fromkeys(apart, Resample("hold", 1.0)))


def test_a_store_on_a_common_clock(store: EpisodeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "resample", str(store.path), str(tmp_path / "c.eps"), "--rate-hz", "10", "--json"]
    rules = ["--rule", "*=hold:0.15", "--rule", "front=nearest:0.1"]
    assert main([*words, *rules]) == 0
    report = json.loads(capsys.readouterr().out)
    made = EpisodeStore.open(tmp_path / "c.eps")
    assert (report["episodes"], report["steps"]) == (made.num_episodes, made.lengths.sum())
    assert made.num_episodes > store.num_episodes == report["episodes_read"]
    assert report["dropped"]["pose"] > 0
    assert not any(made.has_own_clock(name) for name in ("pose", "force", "front"))
    assert check_store(made.path) == []
    assert (made.manifest.clock, made.interface) == ("resampled_10hz", resampled_interface(INTERFACE, 10.0))
    piece = made.episode(0)
    first = int(np.flatnonzero(store.episode(0).streams["action"].stamp_ns <= piece.streams["action"].stamp_ns[0])[-1])
    np.testing.assert_array_equal(piece.streams["action"].values[0], store.episode(0).streams["action"].values[first])
    assert main([*words, *rules]) == 2
    for rule, message in {
        "pose": "is no resampling rule",
        "pse=hold:1": "rules for",
        "pose=linear": "is no",
        "pose=hold:1": "no resampling",
    }.items():
        assert main([*words[:3], str(tmp_path / "d.eps"), *words[4:], "--rule", rule]) == 2
        assert message in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "d.eps"), *words[4:], "--rule", "*=hold:0.000001"]) == 2
    assert not (tmp_path / "d.eps").exists()


def test_jpegs_of_the_source_are_picked_not_encoded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episode, rng = sample_episode(1, INTERFACE, 12), np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 6, 8, 3), np.uint8)
    jpegs = [simplejpeg.encode_jpeg(frame, 70) for frame in frames]
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer() as writer:
        writer.add(replace(episode, jpeg={"front": jpegs}))
    own = EpisodeStore.create(tmp_path / "own.eps", INTERFACE, cameras={"front": CameraRecord("jpeg:70")})
    with own.writer() as writer:
        writer.add(episode)
    stamp_ns = episode.streams["front"].stamp_ns
    for source, again in ((store, ""), (own, "front")):
        made = source.path.with_name(f"{again}5.eps")
        words = ["data", "resample", str(source.path), str(made), "--rate-hz", "5", "--rule", "*=nearest:0.2", "--json"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["encoded_again"] == ([again] if again else [])
        found = EpisodeStore.open(made)
        clock = found.episode(0).streams["action"].stamp_ns
        nearest = [int(np.abs(stamp_ns - t).argmin()) for t in clock]
        if not again:
            assert found.jpegs(0, "front") == [jpegs[row] for row in nearest]


def test_the_interface_says_the_new_rate() -> None:
    turned = resampled_interface(INTERFACE, 7.0)
    rates = [turned.action.rate_hz, *(f.rate_hz for f in turned.features.values()), *(c.rate_hz for c in turned.cameras.values())]
    assert set(rates) == {7.0}
