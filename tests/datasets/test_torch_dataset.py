"""Windows through PyTorch's DataLoader: equal to the reader's, with workers of both kinds after a read in the parent."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kineflow.contracts import CameraSpec, Horizons, KineflowError, Stream
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.torch_dataset import TorchWindowDataset
from kineflow.datasets.window_images import Images
from kineflow.datasets.window_sampler import WindowSampler
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode
from tests.datasets.sample_frames import natural_frames

CAMERA = replace(INTERFACE, cameras={"front": CameraSpec(32, 32, 10.0)})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = EpisodeStore.create(tmp_path_factory.mktemp("torch") / "s.eps", CAMERA)
    with store.writer() as writer:
        for number in range(3):
            episode = sample_episode(number, CAMERA, 10)
            frames = Stream(natural_frames(10, 32, 32, number), episode.streams["action"].stamp_ns)
            writer.add(replace(episode, streams={**episode.streams, "front": frames}))
    return store.path


def opened(path: Path, images: Images) -> WindowReader:
    return WindowReader(EpisodeStore.open(path), ["pose"], Horizons(2, 3, 1), [2, 0], ["front"], images=images)


def assert_equal_batches(found: dict[str, torch.Tensor], reader: WindowReader, indices: np.ndarray) -> None:
    expected = reader.read(indices)
    for name in ("state", "action", "state_is_pad", "action_is_pad"):
        np.testing.assert_array_equal(found[name].numpy(), getattr(expected, name))
    np.testing.assert_array_equal(found["images"]["front"].numpy(), expected.images["front"])  # type: ignore[index]


@pytest.mark.parametrize(("where", "start"), [("disk", "fork"), ("disk", "spawn"), ("cache", "fork"), ("pool", "fork")])
def test_two_workers_after_a_read_in_the_parent(path: Path, tmp_path: Path, where: str, start: str) -> None:
    reader = opened(path, Images(where, cache=tmp_path))  # type: ignore[arg-type]
    dataset = TorchWindowDataset(reader)
    reader.read(np.arange(3))  # what broke other readers: a decoder opened before the fork
    loader = DataLoader(dataset, batch_size=7, num_workers=2, multiprocessing_context=start)
    batches = list(loader)
    ram = opened(path, Images("ram"))
    assert [len(b["state"]) for b in batches] == [7, 7, 6]
    for start_at, batch in zip((0, 7, 14), batches):
        assert_equal_batches(batch, ram, np.arange(start_at, start_at + len(batch["state"])))


def test_single_items_and_whole_batches(path: Path) -> None:
    reader = opened(path, Images("disk"))
    dataset = TorchWindowDataset(reader)
    assert len(dataset) == 20
    one = dataset[4]
    assert one["images"]["front"].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(one["action"].numpy(), reader.read(np.array([4])).action[0])
    sampler, order = WindowSampler(20, 6, 0), WindowSampler(20, 6, 0)
    loader = iter(DataLoader(dataset, batch_size=None, sampler=sampler))  # type: ignore[arg-type]
    for _ in range(4):
        assert_equal_batches(next(loader), reader, next(order))
    with pytest.raises(IndexError):
        dataset[20]


def test_a_worker_refuses_a_store_that_was_rewritten(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s.eps"
    shutil.copytree(path, copy)
    call, arguments = opened(copy, Images("disk")).__reduce__()
    assert len(call(*arguments)) == 20
    shutil.rmtree(copy)
    store = EpisodeStore.create(copy, CAMERA)
    with store.writer() as writer:
        writer.add(sample_episode(0, CAMERA, 10))
    with pytest.raises(KineflowError, match="rewritten since the windows were opened"):
        call(*arguments)
