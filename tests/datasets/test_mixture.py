"""Mixtures: shares at every time, exact resume, ranks; what a mapping maps, marks and refuses; statistics of each source."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import CameraSpec, FeatureSpec, Horizons, Interface, KineflowError, VectorSpec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.loader import StreamLoader
from kineflow.datasets.mixture import MixtureReader, Source
from kineflow.datasets.mixture_sampler import MixtureSampler
from kineflow.datasets.resize import resized
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=SIZES, batch=st.integers(1, 9), seed=st.integers(0, 99), steps=st.integers(1, 60))
def test_shares_hold_at_every_time_and_each_source_is_gone_through(
    data: st.DataObject, sizes: list[int], batch: int, seed: int, steps: int
) -> None:
    weights = data.draw(st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)))
    sampler = MixtureSampler(sizes, weights, batch, seed)
    drawn = np.concatenate(list(itertools.islice(sampler, steps)))
    offsets = np.cumsum([0, *sizes])
    source = np.searchsorted(offsets, drawn, side="right") - 1
    for number, (size, weight) in enumerate(zip(sizes, weights)):
        mine = drawn[source == number] - offsets[number]
        assert abs(len(mine) - len(drawn) * weight / sum(weights)) <= 3 + np.log2(len(drawn))
        counts = np.bincount(mine, minlength=size)
        assert counts.max() - counts.min() <= 1  # none repeats before all were seen


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 5), world=st.integers(1, 3), seed=st.integers(0, 99), stop=st.integers(0, 15))
def test_resume_is_exact_and_ranks_are_parts_of_one_order(sizes: list[int], batch: int, world: int, seed: int, stop: int) -> None:
    weights = [1.0 + k for k in range(len(sizes))]
    ranks = [MixtureSampler(sizes, weights, batch, seed, rank, world) for rank in range(world)]
    alone = MixtureSampler(sizes, weights, batch * world, seed)
    for _ in range(stop):
        np.testing.assert_array_equal(np.concatenate([next(rank) for rank in ranks]), next(alone))
    resumed = MixtureSampler(sizes, weights, batch, seed, world - 1, world)
    resumed.load_state_dict(json.loads(json.dumps(ranks[0].state_dict())))
    for _ in range(5):
        np.testing.assert_array_equal(next(resumed), next(ranks[-1]))


@pytest.mark.parametrize(
    "arguments", [([5], [1, 2], 1, 0), ([5], [0.0], 1, 0), ([0], [1.0], 1, 0), ([], [], 1, 0), ([5], [1], 0, 0)]
)
def test_impossible_mixtures_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(KineflowError, match="need"):
        MixtureSampler(*arguments)
    with pytest.raises(KineflowError, match="the saved sampler has weights"):
        MixtureSampler([5], [1.0], 2, 0).load_state_dict(MixtureSampler([5], [2.0], 2, 0).state_dict())


ARM = VectorSpec(("x", "y", "grip"), ("m", "m", "m"), "odom", (-9.0, -9.0, 0.0), (9.0, 9.0, 1.0))
MOVE = VectorSpec(("speed", "turn", "lift"), ("m/s", "rad/s", "m/s"), "base", (-2.0,) * 3, (2.0,) * 3)
TARGET = Interface(
    {"arm": FeatureSpec(ARM, 10.0), "force": INTERFACE.features["force"]},
    FeatureSpec(MOVE, 10.0),
    {"eye": CameraSpec(6, 8, 10.0), "wrist": CameraSpec(3, 4, 10.0)},
)
HORIZONS = Horizons(2, 3, 1)
PLAIN: dict[str, Any] = {
    "features": {"arm": "pose"},
    "cameras": {"eye": "front", "wrist": "front"},
    "fill": {"arm.grip": 0.25, "action.lift": -1.0},
    "resize": True,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, EpisodeStore]:
    """One with `pose` and one camera; one with everything under other names and another camera size."""
    folder = tmp_path_factory.mktemp("mixture")
    wide = Interface(
        {"proprio": FeatureSpec(replace(ARM, names=("y", "finger", "x")), 10.0)},
        FeatureSpec(MOVE, 10.0),
        {"eye": CameraSpec(12, 16, 10.0)},
    )
    made = []
    for name, interface in (("a", INTERFACE), ("b", wide)):
        made.append(EpisodeStore.create(folder / f"{name}.eps", interface))
        with made[-1].writer() as writer:
            for number in range(3):
                writer.add(sample_episode(number, interface, 5 + number))
    return made[0], made[1]


def sources(stores: tuple[EpisodeStore, EpisodeStore]) -> list[Source]:
    other = {"arm": "proprio"}
    fill = {"force.force": 0.0, "wrist": 128.0}
    return [
        Source("a", stores[0], [0, 2], **PLAIN),
        Source("b", stores[1], [1], other, {"arm.grip": "finger"}, fill=fill, resize=True),
    ]


def test_windows_of_a_mixture_are_those_of_its_sources(stores: tuple[EpisodeStore, EpisodeStore]) -> None:
    mixture = MixtureReader(TARGET, HORIZONS, sources(stores))
    assert mixture.sizes == [12, 6]
    order = np.random.default_rng(0).permutation(len(mixture))
    mixed = mixture.read(order)
    a = WindowReader(stores[0], ["pose", "force"], HORIZONS, [0, 2], ["front"]).read(order[order < 12])
    b = WindowReader(stores[1], ["proprio"], HORIZONS, [1], ["eye"]).read(order[order >= 12] - 12)
    of_a, of_b = order < 12, order >= 12
    np.testing.assert_array_equal(mixed.source, np.where(of_a, 0, 1))
    np.testing.assert_array_equal(mixed.window.state[of_a][..., [0, 1, 3]], a.state[..., [0, 1, 3]])
    assert (mixed.window.state[of_a][..., 2] == 0.25).all()
    np.testing.assert_array_equal(mixed.window.state[of_b][..., :3], b.state[..., [2, 0, 1]])
    np.testing.assert_array_equal(mixed.window.action[of_a][..., :2], a.action)
    assert (mixed.window.action[of_a][..., 2] == -1).all()
    np.testing.assert_array_equal(mixed.window.action[of_b], b.action)
    np.testing.assert_array_equal(mixed.window.action_is_pad[of_b], b.action_is_pad)
    np.testing.assert_array_equal(mixed.window.state_is_pad[of_a], a.state_is_pad)
    np.testing.assert_array_equal(mixed.window.images["eye"][of_a], a.images["front"])
    # 12 x 16 to 6 x 8: each new pixel is a mean over a triangle; the whole image keeps its mean within rounding and borders.
    assert mixed.window.images["eye"].shape == (18, 2, 6, 8, 3)
    assert abs(mixed.window.images["eye"][of_b].mean() - b.images["eye"].mean()) < 3
    assert (mixed.window.images["wrist"][of_b] == 128).all()
    assert mixed.state_is_known[of_a].all(0).tolist() == [True, True, False, True]
    assert mixed.state_is_known[of_b].all(0).tolist() == [True, True, True, False]
    assert mixed.action_is_known[of_a].any(0).tolist() == [True, True, False]
    np.testing.assert_array_equal(mixed.camera_is_known["wrist"], of_a)
    with pytest.raises(IndexError):
        mixture.read(np.array([18]))


def test_a_mixture_goes_through_the_loader(stores: tuple[EpisodeStore, EpisodeStore]) -> None:
    mixture = MixtureReader(TARGET, HORIZONS, sources(stores))
    with StreamLoader(mixture, MixtureSampler(mixture.sizes, [3, 1], 8, 0), 2) as loader:
        for batch in itertools.islice(loader, 12):
            assert (batch.window.source == 0).sum() in (5, 6, 7)
            np.testing.assert_array_equal(batch.window.window.action, mixture.read(batch.indices).window.action)


def test_statistics_stay_those_of_each_source(stores: tuple[EpisodeStore, EpisodeStore]) -> None:
    found = MixtureReader(TARGET, HORIZONS, sources(stores)).statistics()
    pose, proprio = stores[0].statistics([0, 2])["pose"], stores[1].statistics([1])["proprio"]
    assert found["a"]["arm"].mean == (*pose.mean[:2], 0.25)
    assert found["a"]["arm"].std == (*pose.std[:2], 0.0)
    assert found["b"]["arm"].q99 == (proprio.q99[2], proprio.q99[0], proprio.q99[1])
    assert found["b"]["force"].max == (0.0,)
    assert found["a"]["action"].count == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": {"action.lift": 0.0}}, r"source 'a' .*nothing for 'arm.grip' .*'pose' has \['x', 'y', 'yaw'\].*fill"),
        ({"fill": {"arm.grip": 0.0}}, "nothing for 'action.lift'"),
        ({"dimensions": {"arm.grip": "yaw"}}, "'arm.grip' is in rad, the target in m"),
        ({"features": {"arm": "force"}}, "nothing for 'arm.x'"),
        ({"cameras": {"eye": "front"}}, r"no camera 'wrist' \(it has \['front'\]\)"),
        ({"dimensions": {"arm.X": "y"}}, r"`dimensions` names \['arm.X'\], the target only .*'arm.x'.*correct"),
        ({"fill": {**PLAIN["fill"], "arm": 0.0}}, r"`fill` names \['arm'\], the target only .*'wrist'"),
        ({"features": {"arm": "pose", "leg": "pose"}}, r"`features` names \['leg'\], the target only \['arm', 'force'\]"),
        ({"cameras": {**PLAIN["cameras"], "ear": "front"}}, r"`cameras` names \['ear'\], the target only \['eye', 'wrist'\]"),
        ({"resize": False}, "camera 'front' is 6 x 8, the target 3 x 4; set `resize`"),
    ],
)
def test_what_a_source_lacks_is_refused_unless_the_mapping_says_so(
    stores: tuple[EpisodeStore, EpisodeStore], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(KineflowError, match=message):
        MixtureReader(TARGET, HORIZONS, [Source("a", stores[0], [0], **{**PLAIN, **changes})])


def test_frames_of_reference_and_rates_must_agree(stores: tuple[EpisodeStore, EpisodeStore]) -> None:
    source = Source("a", stores[0], [0], **PLAIN)
    for spec, message in (
        (FeatureSpec(replace(ARM, frame="map"), 10.0), "frame 'odom', the target in 'map'"),
        (FeatureSpec(ARM, 20.0), "at 10 Hz, the target at 20 Hz"),
    ):
        with pytest.raises(KineflowError, match=message):
            MixtureReader(replace(TARGET, features={**TARGET.features, "arm": spec}), HORIZONS, [source])
    with pytest.raises(KineflowError, match="different names"):
        MixtureReader(TARGET, HORIZONS, [source, source])


def test_resize_keeps_what_is_constant_and_averages_what_it_shrinks(tmp_path: Path) -> None:
    constant = np.full((2, 9, 7, 3), 77, np.uint8)
    for size in ((3, 5), (18, 14), (9, 7)):
        assert (resized(constant, *size) == 77).all()
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), np.uint8)
    np.testing.assert_array_equal(resized(image, 9, 7), image)
    ramp = np.broadcast_to(np.arange(0, 64, 4, dtype=np.uint8)[None, None, :, None], (1, 4, 16, 3)).copy()
    np.testing.assert_array_equal(resized(ramp, 4, 8)[0, 0, 1:-1, 0], np.arange(2, 64, 8)[1:-1])  # halves: means of pairs
