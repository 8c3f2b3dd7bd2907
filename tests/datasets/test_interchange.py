"""Every format alike: frames stored as JPEG lose nothing on the way out and back, and errors and reports can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import CameraSpec, Episode, Interface, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import EXPORTS, export_data
from kineflow.datasets.manifest import CameraRecord
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, sample_episode

EXACT = [form for form in EXPORTS if not form.endswith("-video")]
KEEPS_JPEG_BYTES = [form for form in EXACT if form not in ("diffusion-policy-zarr", "robomimic")]


def format_to_import(export: str) -> str:
    """The name under which an export is imported again."""
    return "lerobot" if export.startswith("lerobot") else export.removesuffix("-db3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Two episodes whose frames the store keeps as JPEG; a second encoding would change them."""
    interface = Interface(INTERFACE.features, INTERFACE.action, {"front": CameraSpec(32, 48, 10.0)})
    path = tmp_path_factory.mktemp("pictures") / "s.eps"
    made = EpisodeStore.create(path, interface, "nominal_10hz", cameras={"front": CameraRecord(codec="jpeg:80")})
    with made.writer(2) as writer:
        for number, length in enumerate((4, 3)):
            stamps = np.arange(length) * 100_000_000
            frames = np.random.default_rng(number).integers(0, 256, (length, 32, 48, 3), np.uint8)
            flat = {name: Stream(s.values, stamps) for name, s in sample_episode(number, LOW_DIM, length).streams.items()}
            writer.add(Episode({**flat, "front": Stream(frames, stamps)}, clock="nominal_10hz"))
    return made


def out_and_back(store: EpisodeStore, export: str, folder: Path) -> EpisodeStore:
    export_data(export, store, folder / "out.mcap")
    import_data(format_to_import(export), folder / "out.mcap", folder / "back.eps")
    return EpisodeStore.open(folder / "back.eps")


@pytest.mark.parametrize("export", EXACT)
def test_jpeg_frames_are_not_encoded_a_second_time(pictures: EpisodeStore, tmp_path: Path, export: str) -> None:
    back = out_and_back(pictures, export, tmp_path)
    for number in range(pictures.num_episodes):
        found, expected = (store.episode(number).streams["front"].values for store in (back, pictures))
        np.testing.assert_array_equal(found, expected)
        if export in KEEPS_JPEG_BYTES:
            assert back.jpegs(number, "front") == pictures.jpegs(number, "front")
