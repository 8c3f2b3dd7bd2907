"""Our own store against the suite that third parties run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kineflow.contracts import Episode, Interface
from kineflow.datasets.episode_store import EpisodeStore
from tests.contracts.store_suite import EpisodeStoreSuite


class TestZarrStore(EpisodeStoreSuite):
    @pytest.fixture(params=[1, 2, 100])
    def episodes_per_commit(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture(autouse=True)
    def _segments(self, episodes_per_commit: int) -> None:
        self.episodes_per_commit = episodes_per_commit

    def make_store(self, folder: Path, interface: Interface, episodes: Sequence[Episode]) -> EpisodeStore:
        store = EpisodeStore.create(folder, interface)
        with store.writer(self.episodes_per_commit) as writer:
            for episode in episodes:
                writer.add(episode)
        return EpisodeStore.open(folder)
