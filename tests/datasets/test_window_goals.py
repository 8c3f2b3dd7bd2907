"""Goals of training windows against a plain loop over the episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kineflow.contracts import Episode, FeatureSpec, Goal, GoalSpec, Horizons, Interface, KineflowError, Stream, VectorSpec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import content_digest
from kineflow.datasets.window_goals import GoalReader, Goals, GoalWindows
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode

CURSOR = FeatureSpec(VectorSpec(("frame",), ("1",), "clip", (0.0,), (1000.0,)), 10.0)
OFFERED = Interface({**INTERFACE.features, "cursor": CURSOR}, INTERFACE.action, INTERFACE.cameras)
VIDEO, IMAGE, WORDS = GoalSpec("video", 6, 8, frames=3, rate_hz=5.0), GoalSpec("image", 6, 8), GoalSpec("instruction")
SPECS = {"video": VIDEO, "image": IMAGE, "instruction": WORDS}


def episode(number: int, *, clip: int = 0, image: bool = False, **options: int) -> Episode:
    """A sample; with `clip` frames of a video of its own, along which its cursor runs, and a goal image."""
    made, rng = sample_episode(number, **options), np.random.default_rng([9, number])
    steps = len(made.streams["action"].values)
    cursor = np.sort(rng.integers(0, max(clip, 1), steps)).astype(np.float32)[:, None]
    goals = {"video": Goal("video", rng.integers(0, 256, (clip, 6, 8, 3), np.uint8))} if clip else {}
    goals |= {"image": Goal("image", rng.integers(0, 256, (6, 8, 3), np.uint8))} if image else {}
    return replace(made, streams={**made.streams, "cursor": Stream(cursor, made.streams["action"].stamp_ns)}, goals=goals)


def stored(tmp_path: Path, episodes: list[Episode]) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path / "data.eps", OFFERED)
    with store.writer() as writer:
        for one in episodes:
            writer.add(one)
    return store


def reader(store: EpisodeStore, chosen: list[int], goals: Goals) -> WindowReader:
    return WindowReader(store, ["pose"], Horizons(2, 4, 2), chosen, goals=goals)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([10.0, 5.0, 4.0]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_windows_see_what_a_plain_loop_sees(
    tmp_path_factory: pytest.TempPathFactory, makeup: list[tuple[int, bool]], frames: int, rate_hz: float
) -> None:
    episodes = [episode(i, clip=clip, image=image) for i, (clip, image) in enumerate(makeup)]
    store = stored(tmp_path_factory.mktemp("goals"), episodes)
    chosen = list(range(len(episodes)))[::-1]
    specs = {**SPECS, "video": GoalSpec("video", 6, 8, frames=frames, rate_hz=rate_hz)}
    windows = reader(store, chosen, Goals(specs, GoalWindows(cursor="cursor")))
    goals, row = windows.read(np.arange(len(windows))).goals, 0
    assert goals is not None
    for index in chosen:
        own = episodes[index]
        clip = own.goals["video"].value if "video" in own.goals else own.streams["front"].values
        for step in range(len(own.streams["action"].values)):
            at = int(own.streams["cursor"].values[step, 0]) if "video" in own.goals else step
            expected = [clip[min(at + round(k * 10.0 / rate_hz), len(clip) - 1)] for k in range(frames)]
            np.testing.assert_array_equal(goals.values["video"][row], expected)
            np.testing.assert_array_equal(
                goals.values["image"][row], own.goals["image"].value if "image" in own.goals else clip[-1]
            )
            assert goals.left_s is not None
            assert goals.left_s[row] == pytest.approx((len(clip) - 1 - at) / 10.0)
            assert goals.instruction[row] == own.instruction
            assert bool(goals.given["instruction"][row]) == (own.instruction != "")
            row += 1
    assert row == len(windows)
    assert goals.given["video"].all()
    assert goals.given["image"].all()


def test_an_episode_that_is_its_own_clip_at_another_rate(tmp_path: Path) -> None:
    made = sample_episode(0, length=8)
    cursor = Stream(np.zeros((8, 1), np.float32), made.streams["action"].stamp_ns)
    store, frames = stored(tmp_path, [replace(made, streams={**made.streams, "cursor": cursor})]), made.streams["front"].values
    goals = reader(store, [0], Goals({"video": VIDEO}, GoalWindows(rate_hz=5.0))).read(np.arange(8)).goals  # camera: 10 Hz
    assert goals is not None
    clip = frames[[0, 2, 4, 6, 7]]  # every second frame, and how it ends
    for step in range(8):
        np.testing.assert_array_equal(goals.values["video"][step], clip[np.minimum(step // 2 + np.arange(3), 4)])


def test_slack_begins_a_video_beside_the_cursor_and_says_by_how_much(tmp_path: Path) -> None:
    store = stored(tmp_path, [episode(0, length=60, clip=90), episode(1, length=40, clip=90)])
    exact, loose = (
        reader(store, [0, 1], Goals({"video": VIDEO}, GoalWindows(cursor="cursor", rate_hz=10.0, slack=slack)))
        for slack in ((0, 0), (3, 2))
    )
    rows = np.arange(len(loose))
    goals, again = loose.read(rows).goals, loose.read(rows[::-1]).goals
    assert goals is not None
    assert goals.ahead_s is not None
    assert again is not None
    assert again.ahead_s is not None
    np.testing.assert_array_equal(goals.ahead_s, again.ahead_s[::-1])
    frames_ahead = np.rint(goals.ahead_s * 10.0).astype(int)
    np.testing.assert_allclose(goals.ahead_s, frames_ahead / 10.0, atol=1e-6)
    assert (np.bincount(frames_ahead + 2, minlength=6) > 5).all(), "every offset occurs, none rarely"
    assert len(np.bincount(frames_ahead + 2)) == 6
    for place, made in enumerate((episode(0, length=60, clip=90), episode(1, length=40, clip=90))):
        clip, cursor = made.goals["video"].value, made.streams["cursor"].values[:, 0].astype(int)
        for step, at in enumerate(cursor.tolist()):
            row = step + 60 * place
            first = at - frames_ahead[row]
            np.testing.assert_array_equal(goals.values["video"][row, 0], clip[min(first, 89)])
    known = exact.read(rows).goals
    assert known is not None
    assert known.ahead_s is not None
    assert not known.ahead_s.any()


def test_features_stand_for_pictures(tmp_path: Path) -> None:
    store = stored(tmp_path, [episode(0, clip=5), episode(1)])

    def look(digest: bytes, frames: np.ndarray) -> np.ndarray:
        assert digest == content_digest(frames)
        return frames.reshape(len(frames), -1).mean(1).astype(np.float16)[:, None, None]

    plain, seen = (reader(store, [0, 1], Goals(SPECS, GoalWindows(cursor="cursor"), how)) for how in (None, look))
    everything = np.arange(len(plain))
    frames, features = plain.read(everything).goals, seen.read(everything).goals
    assert frames is not None
    assert features is not None
    for name in ("video", "image"):
        means = frames.values[name].reshape(*frames.values[name].shape[:-3], -1).mean(-1).astype(np.float16)
        np.testing.assert_array_equal(features.values[name][..., 0, 0], means)
        assert features.values[name].dtype == np.float16


def test_episodes_of_one_trip_share_their_clip(tmp_path: Path) -> None:
    """It is looked at once and held once; each episode goes through it at a pace of its own."""
    one, other = episode(0, clip=5, image=True), episode(7, clip=5)
    runs = [replace(episode(number, clip=5), goals=one.goals) for number in range(1, 4)]
    store, asked = stored(tmp_path, [one, other, *runs]), []

    def look(digest: bytes, frames: np.ndarray) -> np.ndarray:
        asked.append(len(frames))
        return frames.reshape(len(frames), -1).mean(1).astype(np.float16)[:, None, None]

    counted: list[int] = []
    where = GoalWindows(cursor="cursor")
    goals = Goals(SPECS, where, look, lambda episodes: (counted.append(index) or index for index in episodes))
    shared, plain = GoalReader(store, range(5), goals), GoalReader(store, range(5), Goals(SPECS, where))
    assert counted == [0, 1, 2, 3, 4]
    assert sorted(asked) == [1, 1, 6, 6]  # two clips, each with its rest, and two images
    assert len(plain._pictures["video"]._values) == 12
    for index in range(5):
        steps = np.arange(store.lengths[index])
        seen, frames = (r.read(np.full(len(steps), index), steps).values for r in (shared, plain))
        for name in ("video", "image"):
            means = frames[name].reshape(*frames[name].shape[:-3], -1).mean(-1).astype(np.float16)
            np.testing.assert_array_equal(seen[name][..., 0, 0], means)
    first, second = (plain.read(np.array([index]), np.array([0])).values["image"] for index in (0, 2))
    np.testing.assert_array_equal(first, second)


def test_behind_the_end_of_a_clip_nothing_moves(tmp_path: Path) -> None:
    """Features of motion, as of a frozen backbone: what a window repeats at the end is at rest, as its pictures say."""
    store = stored(tmp_path, [episode(0, clip=4, image=True)])

    def motion(digest: bytes, frames: np.ndarray) -> np.ndarray:
        means = frames.reshape(len(frames), -1).mean(1)
        return np.diff(means, prepend=means[:1]).astype(np.float16)[:, None, None]

    where = GoalWindows(cursor="cursor")
    specs = {"video": replace(VIDEO, rate_hz=10.0)}  # neighbours in the clip, as motion needs
    moving, plain = GoalReader(store, [0], Goals(specs, where, motion)), GoalReader(store, [0], Goals(specs, where))
    steps = np.arange(store.lengths[0])
    seen, frames = (r.read(np.zeros_like(steps), steps).values["video"] for r in (moving, plain))
    repeats = (frames[:, 1:] == frames[:, :-1]).all(axis=(2, 3, 4))
    assert repeats.any()
    assert not repeats.all()
    np.testing.assert_array_equal(seen[:, 1:, 0, 0] == 0, repeats)


def test_goals_only_where_asked(tmp_path: Path) -> None:
    store = stored(tmp_path, [episode(0)])
    assert WindowReader(store, ["pose"], Horizons(2, 4, 2), [0]).read(np.array([0])).goals is None
    assert reader(store, [0], Goals(SPECS)).read(np.array([0]), images=False).goals is None  # statistics need no pictures
    words = reader(store, [0], Goals({"instruction": WORDS})).read(np.array([0])).goals
    assert words is not None
    assert words.values == {}


@pytest.mark.parametrize(
    ("specs", "how", "message"),
    [
        ({"point": GoalSpec("point")}, GoalWindows(), "goal 'point': windows give videos, images and instructions"),
        (SPECS, GoalWindows(camera="rear"), r"no camera 'rear' for goals; it has \['front'\]"),
        (SPECS, GoalWindows(cursor="beat"), "no feature 'beat'"),
        (
            {"image": GoalSpec("image", 9, 9)},
            GoalWindows(cursor="cursor"),
            r"episode 0: its goal image has frames \[6, 8, 3\], .* needs \[9, 9, 3\]",
        ),
    ],
)
def test_what_windows_cannot_give_is_refused(tmp_path: Path, specs: dict[str, GoalSpec], how: GoalWindows, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        reader(stored(tmp_path, [episode(0, clip=4)]), [0], Goals(specs, how))


def test_a_cursor_that_is_no_frame_of_its_clip_is_refused(tmp_path: Path) -> None:
    made = episode(0, clip=4)
    beyond = replace(
        made, streams={**made.streams, "cursor": replace(made.streams["cursor"], values=made.streams["cursor"].values + 2)}
    )
    with pytest.raises(KineflowError, match=r"the cursor is \d .. \d, its clip has 4 frames"):
        reader(stored(tmp_path, [beyond]), [0], Goals(SPECS, GoalWindows(cursor="cursor")))


def test_goals_are_no_part_of_a_store_s_schema(tmp_path: Path) -> None:
    plain = EpisodeStore.create(tmp_path / "plain.eps", OFFERED)
    told = EpisodeStore.create(tmp_path / "told.eps", replace(OFFERED, goals=SPECS))
    assert told.fingerprint() == plain.fingerprint()
    assert EpisodeStore.open(told.path).interface.goals == {}
