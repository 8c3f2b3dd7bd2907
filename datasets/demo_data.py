"""The demonstrations that come with Kineflow."""

from __future__ import annotations

from pathlib import Path

from kineflow.contracts import KineflowError

_PUSHT = Path(__file__).resolve().parent / "assets" / "pusht_replay" / "pusht_cchi_v7_replay.zarr.zip"


def demo_data() -> Path:
    """The 206 human PushT demonstrations as a diffusion-policy replay buffer (.zip); licence: the README.md beside it."""
    if not _PUSHT.is_file():
        raise KineflowError(f"the demonstrations are missing ({_PUSHT}); install Kineflow again, or clone the repository again")
    return _PUSHT
