"""Features beside the store: computed once, right row by row, gone when frames or encoder change, whole or not there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Goal, GoalSpec, Interface, KineflowError, Stream, VectorSpec
from kineflow.datasets.collect import collect
from kineflow.datasets.doctor import check_store, diagnose
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import FeatureCache, FeatureReader, feature_folder, prune, remove_features
from kineflow.datasets.upkeep import compact, delete
from kineflow.datasets.window_goals import GoalReader, GoalWindows
from kineflow.policies.encoders.cached_features import cache_features, features_of
from kineflow.policies.encoders.efficientnet_lite import EfficientNetLite, EfficientNetLiteEncoder
from kineflow.policies.encoders.resnet_gn import ResNetGN
from kineflow.policies.encoders.window_features import Looker, encoded_goals

ACTION = FeatureSpec(VectorSpec(("v",), ("m/s",), "base", (-1.0,), (1.0,)), 10.0)
INTERFACE = Interface({"state": ACTION}, ACTION, {"front": CameraSpec(24, 32, 10.0)})
LENGTHS = (5, 9, 7)


def episode(length: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    stamps = np.arange(length, dtype=np.int64) * 100_000_000
    low = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
    frames = rng.integers(0, 256, (length, 24, 32, 3), dtype=np.uint8)
    streams = {"state": Stream(low, stamps), "action": Stream(low, stamps), "front": Stream(frames, stamps)}
    return Episode(streams, clock="nominal_10hz")


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    made = EpisodeStore.create(tmp_path / "frames.eps", INTERFACE, clock="nominal_10hz")
    with made.writer() as writer:
        for seed, length in enumerate(LENGTHS):
            writer.add(episode(length, seed))
    return made


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLiteEncoder:
    torch.manual_seed(0)
    return EfficientNetLite(32, grid=2, stride=8, weights="random").build()


class Counting(EfficientNetLiteEncoder):
    """Counts the frames that it looks at."""

    seen = 0

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        Counting.seen += len(pixels)
        return super().features(pixels)


@pytest.fixture
def counting(encoder: EfficientNetLiteEncoder) -> Counting:
    torch.manual_seed(1)
    Counting.seen = 0
    return Counting(EfficientNetLite(32, grid=2, stride=8))


def test_rows_are_those_of_the_frames(store: EpisodeStore, encoder: EfficientNetLiteEncoder) -> None:
    reader = cache_features(store, "front", encoder, batch_size=4)
    assert (len(reader), reader.frame_shape, reader.dtype) == (sum(LENGTHS), (4, 40), np.float16)
    frames = np.concatenate([store.episode(i).streams["front"].values for i in range(3)])
    whole = features_of(encoder, frames)
    assert whole.astype(np.float32).std() > 0
    np.testing.assert_allclose(reader.read(np.arange(21)), whole, atol=1e-3, rtol=1e-2)
    rows = np.array([[20, 0], [4, 5], [13, 13], [7, 14]])
    again = np.zeros((4, 2, 4, 40), np.float16)
    assert reader.read(rows, again) is again
    np.testing.assert_array_equal(again, reader.read(np.arange(21))[rows])
    assert reader.read(np.zeros((0, 2), np.int64)).shape == (0, 2, 4, 40)
    copy: FeatureReader = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read(rows), again)
    for wrong in (-1, 21):
        with pytest.raises(IndexError, match=r"not all in 0 .. 20"):
            reader.read(np.array([wrong]))


def test_each_frame_is_looked_at_once(store: EpisodeStore, counting: Counting) -> None:
    done: list[tuple[int, int]] = []
    cache_features(store, "front", counting, [1], progress=lambda *step: done.append(step))
    assert (Counting.seen, done) == (9, [(1, 1)])
    cache_features(store, "front", counting, progress=lambda *step: done.append(step))
    assert (Counting.seen, done[1:]) == (21, [(1, 2), (2, 2)])
    cache_features(store, "front", counting)
    assert Counting.seen == 21


def test_episodes_that_were_not_asked_for_are_not_read(store: EpisodeStore, encoder: EfficientNetLiteEncoder) -> None:
    reader = cache_features(store, "front", encoder, [2, 0])
    assert reader.read(np.array([0, 20])).shape == (2, 4, 40)
    with pytest.raises(IndexError, match="row 5 is of episode 1, whose features were not asked for"):
        reader.read(np.array([0, 5]))
    cache = FeatureCache(feature_folder(store.path), encoder.fingerprint(), "front")
    with pytest.raises(KineflowError, match=r"no features of episode 1 of .*cache_features"):
        FeatureReader(store, "front", cache, [1])


def test_another_encoder_computes_its_own(store: EpisodeStore, counting: Counting) -> None:
    one = cache_features(store, "front", counting).read(np.arange(21))
    with torch.no_grad():
        counting.stem.weight.mul_(1.5)
    other = cache_features(store, "front", counting).read(np.arange(21))
    assert Counting.seen == 42
    assert not np.array_equal(one, other)


def test_features_follow_their_episode_and_end_with_it(store: EpisodeStore, counting: Counting) -> None:
    before = cache_features(store, "front", counting).read(np.arange(21))
    delete(store.path, [0])
    compact(store.path)
    collect(store.path)
    with (changed := EpisodeStore.open(store.path)).writer() as writer:
        frames = episode(5, 0).streams["front"].values.copy()
        frames[2, 3, 4] ^= 1  # one pixel
        writer.add(replace(episode(5, 0), streams=episode(5, 0).streams | {"front": Stream(frames, np.arange(5) * 100_000_000)}))
    after = cache_features(changed, "front", counting)
    assert Counting.seen == 21 + 5
    np.testing.assert_array_equal(after.read(np.arange(16)), before[5:])
    np.testing.assert_allclose(after.read(np.arange(16, 21))[[0, 1, 3, 4]], before[[0, 1, 3, 4]], atol=1e-3, rtol=1e-2)
    assert len(list(feature_folder(store.path).rglob("*.npy"))) == 4
    assert prune(changed) > 0
    assert len(list(feature_folder(store.path).rglob("*.npy"))) == 3
    remove_features(store.path)
    assert not feature_folder(store.path).exists()


def test_goals_are_known_by_what_they_show(tmp_path: Path, counting: Counting) -> None:
    """Runs of a trip share a clip: its features are computed once, outlive one of the runs, and end with the last."""
    clip = np.random.default_rng(4).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    goals = {"video": Goal("video", clip, "front"), "image": Goal("image", clip[-1], "front")}
    store = EpisodeStore.create(tmp_path / "runs.eps", INTERFACE, clock="nominal_10hz")
    with store.writer() as writer:
        for seed in range(3):
            writer.add(replace(episode(4, seed), goals=goals))
    specs = {"video": GoalSpec("video", 24, 32, 2, 10.0), "image": GoalSpec("image", 24, 32)}
    looker = Looker(counting, None, "f" * 64)

    def read(held: EpisodeStore) -> np.ndarray:
        reader = GoalReader(held, range(held.num_episodes), encoded_goals(held, specs, GoalWindows(), looker))
        return reader.read(np.array([0]), np.array([3])).values["video"]

    before = read(store)
    assert Counting.seen == 6 + 1  # the clip, with its last frame once more (at rest), and the picture
    np.testing.assert_array_equal(before[0], looker(clip)[[3, 4]])
    Counting.seen = 0
    delete(store.path, [0, 1])
    compact(store.path)
    collect(store.path)
    left = EpisodeStore.open(store.path)
    assert prune(left) == 0
    np.testing.assert_array_equal(read(left), before)
    assert Counting.seen == 0
    delete(store.path, [0])
    assert prune(EpisodeStore.open(store.path)) > 0
    assert list(feature_folder(store.path).rglob("*.npy")) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no crc", "other kind"])
def test_damaged_features_are_computed_again(store: EpisodeStore, counting: Counting, damage: str) -> None:
    good = cache_features(store, "front", counting).read(np.arange(21))
    path = next(feature_folder(store.path).rglob("*.npy"))
    data = path.read_bytes()
    if damage == "other kind":
        path.unlink()
        np.save(path, np.zeros((5, 4, 40), np.float32))
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-100], "empty": b"", "no crc": data[:-4]}[damage])
    np.testing.assert_array_equal(cache_features(store, "front", counting).read(np.arange(21)), good)
    assert Counting.seen > 21
    assert path.read_bytes() == data


def test_doctor_and_gc_leave_the_cache_alone(store: EpisodeStore, encoder: EfficientNetLiteEncoder) -> None:
    before = diagnose(store.path, verify=True)
    cache_features(store, "front", encoder)
    assert check_store(store.path) == []
    assert diagnose(store.path, verify=True) == before
    assert collect(store.path).removed == ()
    assert len(list(feature_folder(store.path).rglob("*.npy"))) == 3
    file = next(feature_folder(store.path).rglob("*.npy"))
    assert np.load(file).dtype == np.float16  # an ordinary array for everybody else


def test_what_cannot_be_kept_is_refused(store: EpisodeStore, encoder: EfficientNetLiteEncoder, tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match="no RGB camera 'rear'; it has \\['front'\\]"):
        cache_features(store, "rear", encoder)
    with pytest.raises(KineflowError, match="ResNetGNEncoder is trained with the policy"):
        cache_features(store, "front", ResNetGN(32, width=8).build())
    (tmp_path / "file").touch()
    with pytest.raises(KineflowError, match="features cannot be kept"):
        cache_features(store, "front", encoder, folder=tmp_path / "file")
    torch.manual_seed(0)
    broken = EfficientNetLite(32, stride=8, weights="random").build()
    with torch.no_grad():
        broken.blocks[-1].project.bias.fill_(1e6)  # type: ignore[union-attr]
    with pytest.raises(KineflowError, match="not finite in float16"):
        cache_features(store, "front", broken)
    assert not list(feature_folder(store.path).rglob("*.npy"))


SLOW_WRITER = """
import os, sys, time, numpy as np
from pathlib import Path
from kineflow.datasets.feature_cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), "f" * 64, "front")
whole = os.fsync
def slow(descriptor):
    whole(descriptor)
    print("written", flush=True)
    time.sleep(60)
os.fsync = slow
cache.save(b"e" * 32, np.ones((4, 2, 3), np.float16))
"""


def test_a_killed_writer_leaves_no_features(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    cache = FeatureCache(tmp_path, "f" * 64, "front")
    assert cache.load(b"e" * 32) is None
    assert len(os.listdir(cache.folder)) == 1  # what it left, under another name
    cache.save(b"e" * 32, np.full((4, 2, 3), 2, np.float16))
    loaded = cache.load(b"e" * 32)
    assert loaded is not None
    assert (loaded == 2).all()
