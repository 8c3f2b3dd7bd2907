"""What every EpisodeStore must do. Third parties subclass it in their own tests:

class TestMyStore(EpisodeStoreSuite):
    def make_store(self, folder, interface, episodes):
        return my_store_with(folder, interface, episodes)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import Episode, EpisodeStore, Interface, KineflowError
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode


class EpisodeStoreSuite:
    """Conformance of `kineflow.contracts.EpisodeStore`."""

    def make_store(self, folder: Path, interface: Interface, episodes: Sequence[Episode]) -> EpisodeStore:
        """A store below `folder` that holds `episodes` in this order."""
        raise NotImplementedError

    @pytest.fixture
    def episodes(self) -> list[Episode]:
        return [sample_episode(number) for number in range(5)]

    @pytest.fixture
    def store(self, tmp_path: Path, episodes: list[Episode]) -> EpisodeStore:
        return self.make_store(tmp_path / "a", INTERFACE, episodes)

    def test_is_an_episode_store(self, store: EpisodeStore) -> None:
        assert isinstance(store, EpisodeStore)

    def test_interface_is_kept(self, store: EpisodeStore) -> None:
        assert store.interface == INTERFACE

    def test_lengths_count_the_actions(self, store: EpisodeStore, episodes: list[Episode]) -> None:
        assert store.lengths.dtype == np.int64
        assert store.lengths.tolist() == [len(e.streams["action"].stamp_ns) for e in episodes]

    def test_episodes_come_back_equal_and_in_order(self, store: EpisodeStore, episodes: list[Episode]) -> None:
        for index in (3, 0, 4, 2, 1, 3):
            assert_equal_episodes(store.episode(index), episodes[index])

    @pytest.mark.parametrize("index", [-1, 5, 1000])
    def test_unknown_episode_is_refused(self, store: EpisodeStore, index: int) -> None:
        with pytest.raises((KineflowError, IndexError)):
            store.episode(index)

    def test_empty_store_has_no_episodes(self, tmp_path: Path) -> None:
        assert self.make_store(tmp_path / "empty", INTERFACE, []).lengths.shape == (0,)

    def test_fingerprint_is_a_function_of_the_contents(
        self, tmp_path: Path, store: EpisodeStore, episodes: list[Episode]
    ) -> None:
        same = self.make_store(tmp_path / "b", INTERFACE, episodes)
        fewer = self.make_store(tmp_path / "c", INTERFACE, episodes[:-1])
        changed = self.make_store(tmp_path / "d", INTERFACE, [*episodes[:-1], sample_episode(99)])
        assert same.fingerprint() == store.fingerprint() == store.fingerprint()
        assert len({store.fingerprint(), fewer.fingerprint(), changed.fingerprint()}) == 3
