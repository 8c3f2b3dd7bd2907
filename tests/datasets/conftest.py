"""Real recordings for tests, where they are at hand: a folder beside the repository, which the project must work without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Name of a folder of real samples to its path; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"needs ../shared/data/{name}")
        return SHARED / name

    return find
