"""Every format alike: frames stored as JPEG lose nothing on the way out and back, and errors and reports can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kineflow.cli import main
from kineflow.contracts import CameraSpec, Episode, Interface, KineflowError, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import EXPORTS, export_data
from kineflow.datasets.importers.source import ImportOptions
from kineflow.datasets.manifest import CameraRecord
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, sample_episode

EXACT = [form for form in EXPORTS if not form.endswith("-video")]
KEEPS_JPEG_BYTES = [form for form in EXACT if form not in ("diffusion-policy-zarr", "robomimic", "isaac-lab")]


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


def replay_buffer(folder: Path) -> Path:
    """Zarr v2 as diffusion_policy writes it, two chunks of `state`, one of them all zero."""
    root = zarr.open_group(folder, mode="w", zarr_format=2)
    whole: Any = {"write_empty_chunks": True}
    state = np.concatenate([np.ones((4, 3)), np.zeros((4, 3))]).astype(np.float32)
    root.create_array("data/state", data=state, chunks=(4, 3), config=whole)
    root.create_array("data/action", data=np.ones((8, 2), np.float32), chunks=(4, 2))
    root.create_array("meta/episode_ends", data=np.array([5, 8]))
    return folder


def test_a_chunk_that_is_not_there_is_no_row_of_zeros(tmp_path: Path) -> None:
    source = replay_buffer(tmp_path / "replay.zarr")
    import_data("diffusion-policy-zarr", source, tmp_path / "whole.eps")
    (source / "data" / "state" / "1.0").unlink()
    with pytest.raises(KineflowError, match=r"data/state: 1 of 2 chunks .* copy the data again"):
        import_data("diffusion-policy-zarr", source, tmp_path / "a.eps")
    assert not (tmp_path / "a.eps").exists()


def test_a_chunk_cut_short_is_named(tmp_path: Path) -> None:
    source = replay_buffer(tmp_path / "replay.zarr")
    chunk = source / "data" / "state" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(KineflowError, match=r"replay\.zarr: data/state, rows 0 to 7: .* copy the data again"):
        import_data("diffusion-policy-zarr", source, tmp_path / "a.eps")
    assert not (tmp_path / "a.eps").exists()


def test_streams_of_zeros_go_out_and_come_back(tmp_path: Path) -> None:
    stamps = np.arange(3) * 100_000_000
    still = {name: Stream(np.zeros((3, width), np.float32), stamps) for name, width in (("pose", 3), ("force", 1), ("action", 2))}
    with EpisodeStore.create(tmp_path / "s.eps", LOW_DIM, "nominal_10hz").writer() as writer:
        writer.add(Episode(still, clock="nominal_10hz"))
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert out_and_back(store, "diffusion-policy-zarr", tmp_path).fingerprint() == store.fingerprint()


def test_an_unknown_codec_is_refused_whether_there_are_cameras_or_not(tmp_path: Path) -> None:
    source = replay_buffer(tmp_path / "replay.zarr")
    with pytest.raises(KineflowError, match=r"codec 'png' is not known; choose one of auto, lossless"):
        import_data("diffusion-policy-zarr", source, tmp_path / "a.eps", ImportOptions(codec="png"))


@pytest.mark.parametrize("form", ["robomimic", "isaac-lab", "d4rl", "recon", "minari"])
def test_what_is_no_hdf5_is_not_called_damaged(tmp_path: Path, form: str) -> None:
    (tmp_path / "data.tfrecord").write_bytes(b"hello")
    with pytest.raises(KineflowError, match=r"data\.tfrecord is not an HDF5 file \(it starts with b'hello'\); give .* --format"):
        import_data(form, tmp_path / "data.tfrecord", tmp_path / "a.eps")


@pytest.mark.parametrize("form", ["robomimic", "isaac-lab", "d4rl"])
def test_a_folder_is_no_hdf5_file(tmp_path: Path, form: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(KineflowError, match="folder is a folder; give the HDF5 file itself"):
        import_data(form, tmp_path / "folder", tmp_path / "a.eps")


def test_what_was_carried_is_said_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, store = replay_buffer(tmp_path / "replay.zarr"), tmp_path / "a.eps"
    assert main(["data", "import", "--format", "diffusion-policy-zarr", str(source), str(store)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("2 episodes, 8 steps, clock nominal_10hz", "data/state float32 [8, 3]", "not carried nothing is left behind"):
        assert words in said
    assert main(["data", "export", "--format", "robomimic", str(store), str(tmp_path / "a.hdf5")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(robomimic) 2 episodes, 8 steps carried" in said
    assert "not carried next_obs not written" in said
    assert "{" not in said
