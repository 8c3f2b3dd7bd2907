"""1000 real frames of a small car: every JPEG is in the store as the camera made it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore


def test_every_picture_byte_for_byte(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    with tarfile.open(shared_data("donkeycar_tub") / "tub.tar.gz") as archive:
        archive.extractall(tmp_path, [m for m in archive if not Path(m.name).name.startswith("._")], filter="data")
    report = import_data("donkeycar-tub", tmp_path / "tub", tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert (report.episodes, report.steps) == (1, 1000)
    files = [tmp_path / "tub" / "images" / f"{i}_cam_image_array_.jpg" for i in range(1000)]
    assert store.jpegs(0, "image_array") == [file.read_bytes() for file in files]
    pictures = sum(file.stat().st_size for file in files)
    assert report.bytes < 1.05 * pictures  # 1000 steps of numbers, indexes and checksums beside the pictures
    assert store.interface.cameras["image_array"].frame_shape == (120, 160, 3)
