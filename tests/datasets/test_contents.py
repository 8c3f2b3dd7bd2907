"""Everything an episode may carry comes back to the bit, and what cannot be stored is refused with its name."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Goal, Interface, Span, VectorSpec
from kineflow.datasets.annotations import GOAL_WIDTHS
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError
from kineflow.datasets.segment import episode_digest
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

REWARD = FeatureSpec(VectorSpec(("reward",), ("1",), "", (0.0,), (1.0,)), 10.0)
EVERYTHING = Interface(
    {**INTERFACE.features, "reward": REWARD},
    INTERFACE.action,
    {"front": CameraSpec(4, 5, 10.0), "wrist": CameraSpec(3, 3, 10.0), "front_depth": CameraSpec(4, 5, 10.0, "depth")},
)
BARE = [sample_episode(number, EVERYTHING) for number in range(3)]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
LANGUAGES = st.sampled_from(["und", "en", "de-CH", "ja"])
SHAPES = st.sampled_from([(2, 3, 3), (5, 4, 3), (1, 1, 3)])

pytestmark = pytest.mark.usefixtures("quick_disk")


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    kind = draw(st.sampled_from(["image", "video", "pose", "point"]))
    frame = draw(TEXTS)
    if kind in ("image", "video"):
        shape = draw(SHAPES) if kind == "image" else (draw(st.integers(1, 3)), *draw(SHAPES))
        return Goal(kind, draw(arrays.arrays(np.uint8, shape)), frame)
    finite = arrays.arrays(np.float32, GOAL_WIDTHS[kind], elements=st.floats(-9, 9, width=32))
    value = draw(finite)
    if kind == "pose":
        quaternion = draw(st.sampled_from([(0.0, 0.0, 0.0, 1.0), (0.5, -0.5, 0.5, 0.5), (0.6, 0.0, 0.8, 0.0)]))
        value[3:] = quaternion
    return Goal(kind, value, frame)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    bare = draw(st.sampled_from(BARE))
    starts = draw(st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(1, 2**40)), max_size=3))
    return replace(
        bare,
        instruction=draw(TEXTS),
        success=draw(st.none() | st.booleans()),
        source=draw(TEXTS),
        clock=draw(TEXTS),
        language=draw(LANGUAGES),
        spans=tuple(Span(draw(TEXTS), start, start + length, draw(LANGUAGES)) for start, length in starts),
        goals=draw(st.dictionaries(TEXTS.filter(bool), goals(), max_size=3)),
        split=draw(st.sampled_from(["", "train", "validation", "prüfung"])),
        seed=draw(st.none() | st.integers(0, 2**63 - 1)),
        operator=draw(TEXTS),
    )


@settings(max_examples=12, deadline=None)
@given(written=st.lists(episodes(), min_size=1, max_size=4), episodes_per_commit=st.integers(1, 4))
def test_everything_comes_back_to_the_bit(written: list[Episode], episodes_per_commit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = EpisodeStore.create(Path(folder) / "s.eps", EVERYTHING)
        with store.writer(episodes_per_commit) as writer:
            for episode in written:
                writer.add(episode)
        reopened = EpisodeStore.open(store.path)
        for index, episode in enumerate(written):
            assert_equal_episodes(reopened.episode(index), episode)
        assert [f for f in check_store(store.path) if f.severity == "error"] == []
        for name in {episode.split for episode in written}:
            expected = [index for index, episode in enumerate(written) if episode.split == name]
            assert reopened.split(name).tolist() == expected


def test_what_no_episode_has_costs_no_file(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    with store.writer(9) as writer:
        writer.add(replace(sample_episode(0, LOW_DIM), source="", clock=""))
        writer.add(replace(sample_episode(3, LOW_DIM), source="", clock=""))
    columns = {f.path.split("/")[1] for f in store.manifest.segments[0].files if f.path.startswith("episodes/")}
    moments = {f"{name}_moments" for name in ("pose", "force", "action")}
    assert columns == {"start", "length", "t0_ns", "digest", *moments, "zarr.json"}
    assert {f.path.split("/")[0] for f in store.manifest.segments[0].files} == {"steps", "cameras", "episodes", "zarr.json"}


GOAL = Goal("image", np.full((2, 2, 3), 7, np.uint8), "front")
BASE = replace(sample_episode(1, LOW_DIM), spans=(Span("reach", 1, 2), Span("grasp", 2, 3, "en")), goals={"end": GOAL})


@pytest.mark.parametrize(
    "change",
    [
        {"language": "en"},
        {"spans": BASE.spans[::-1]},
        {"spans": (Span("reach", 1, 2), Span("grasp", 2, 3, "de"))},
        {"goals": {}},
        {"goals": {"start": GOAL}},
        {"goals": {"end": replace(GOAL, frame="wrist")}},
        {"goals": {"end": replace(GOAL, value=GOAL.value + np.uint8(1))}},
        {"split": "train"},
        {"seed": 0},
        {"operator": "ana"},
    ],
)
def test_the_digest_covers(change: dict[str, Any]) -> None:
    assert episode_digest(replace(BASE, **change)) != episode_digest(BASE)


def test_numpy_scalars_and_texts_are_stored_as_pythons_own(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    episode: Any = replace(BASE, success=np.True_, seed=np.int64(5), operator=np.str_("ana"), split=np.str_("train"))
    with store.writer() as writer:
        writer.add(replace(episode, spans=(Span("x", *np.array([1, 2])),)))
    assert check_store(store.path) == []
    assert store.fingerprint() == EpisodeStore.open(store.path).fingerprint()
    assert store.episode(0).seed == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": ""}, "language: '' is not a text.*'und'"),
        ({"operator": None}, "operator: None is not a text"),
        ({"split": "\ud800"}, "split: .* is not valid Unicode"),
        ({"seed": -1}, "seed -1 is not in"),
        ({"seed": 2**63}, "seed 9223372036854775808 is not in"),
        ({"spans": (Span("reach", 5, 5),)}, "span 'reach': from 5 ns to 5 ns; the start must lie before the stop"),
        ({"goals": {"": GOAL}}, "goal '': kind 'image'; a goal has a name"),
        ({"goals": {"end": replace(GOAL, kind="sound")}}, "goal 'end': kind 'sound'.*one of image, video, pose, point"),
        (
            {"goals": {"end": replace(GOAL, kind="video")}},
            r"goal 'end': uint8 \[2, 2, 3\]; the video of a goal is uint8 \[T, H, W, 3\]",
        ),
        ({"goals": {"end": Goal("image", np.zeros((2, 2, 3)))}}, r"float64 \[2, 2, 3\]; the image"),
        ({"goals": {"end": Goal("point", np.array([1.0, np.nan, 0.0]))}}, "3 finite numbers"),
        ({"goals": {"end": Goal("pose", np.arange(7.0))}}, "quaternion .* has not length 1; normalise it"),
        ({"jpeg": {"front": [b""]}}, "source JPEGs of 'front', which is not an RGB camera"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    with pytest.raises(StoreError, match=rf"episode 0 \(log 1\).*{message}"), store.writer() as writer:
        writer.add(replace(BASE, **change))
    assert store.num_episodes == 0


def test_source_jpegs_must_be_one_a_frame(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with pytest.raises(StoreError, match=r"camera 'front': 1 source JPEGs for \d+ frames"), store.writer() as writer:
        writer.add(replace(sample_episode(1), jpeg={"front": [b"x"]}))


def test_depth_is_uint16_of_the_size_of_the_schema(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", EVERYTHING)
    depth = BARE[0].streams["front_depth"]
    for wrong in (depth.values.astype(np.float32), depth.values.astype(np.uint8), depth.values[..., None], depth.values[:, :3]):
        streams = {**BARE[0].streams, "front_depth": replace(depth, values=wrong)}
        with pytest.raises(StoreError, match=r"'front_depth'.*the schema says uint16 \[T, 4, 5\]"), store.writer() as writer:
            writer.add(replace(BARE[0], streams=streams))


def test_a_reward_is_one_number(tmp_path: Path) -> None:
    terms = FeatureSpec(VectorSpec(("a", "b"), ("1", "1"), "", (0.0, 0.0), (1.0, 1.0)), 10.0)
    with pytest.raises(StoreError, match=r"feature 'reward' has the dimensions \['a', 'b'\]; a reward is one number"):
        EpisodeStore.create(tmp_path / "s.eps", replace(LOW_DIM, features={"reward": terms}))


def test_unknown_splits_list_those_there_are(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    with pytest.raises(StoreError, match="no episode in split 'train'; it has none"):
        store.split("train")
    with store.writer() as writer:
        writer.add(replace(BASE, split="train"))
    with pytest.raises(StoreError, match=r"no episode in split 'test'; it has \['train'\]"):
        store.split("test")
    with pytest.raises(StoreError, match="no episode in split ''"):
        store.split("")


def test_zarr_python_reads_spans_and_goals(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    with store.writer(2) as writer:
        writer.add(replace(BASE, spans=(), goals={}))
        writer.add(BASE)
    group = zarr.open_group(store.path / "segments" / store.manifest.segments[0].id, mode="r")
    labels: Any = group["episodes"].attrs["labels"]
    spans, table, frames = (np.asarray(group[path]) for path in ("spans", "goals/table", "goals/frames_2x2"))
    assert [(row, start, stop, labels[text]) for row, start, stop, text, _ in spans.tolist()] == [
        (1, 1, 2, "reach"),
        (1, 2, 3, "grasp"),
    ]
    assert (spans[0, 4], labels[spans[1, 4]]) == (-1, "en")
    ((row, name, kind, frame, *extent),) = table.tolist()
    assert (row, labels[name], group["goals"].attrs["kinds"][kind], labels[frame], extent) == (
        1,
        "end",
        "image",
        "front",
        [2, 2, 0, 1],
    )
    np.testing.assert_array_equal(frames[0], GOAL.value)
