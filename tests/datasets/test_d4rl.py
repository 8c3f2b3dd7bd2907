"""D4RL and Minari HDF5 in: episode borders, what is not carried, pictures, damage."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.d4rl import open_d4rl
from kineflow.datasets.importers.minari import open_minari
from kineflow.datasets.importers.source import ImportOptions


def d4rl(path: Path, **arrays: np.ndarray | None) -> Path:
    rng = np.random.default_rng(1)
    whole: dict[str, np.ndarray | None] = {
        "observations": rng.random((9, 4)),
        "actions": rng.random((9, 2)).astype("f4"),
        "rewards": rng.random(9).astype("f4"),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1, 0, 0, 1], bool),
        "infos/qpos": rng.random((9, 3)),
        "infos/short": rng.random((2, 3)),
        "metadata/algorithm": np.bytes_("SAC"),
        "next_observations": rng.random((9, 4)),
    }
    with h5py.File(path, "w") as file:
        for name, value in (whole | arrays).items():
            if value is not None:
                file[name] = value
    return path


def test_d4rl_episodes_end_at_terminals_and_timeouts(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "door.hdf5")
    import_data("d4rl", path, tmp_path / "s.eps", ImportOptions(rate_hz=25.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [3, 3, 3]
    with h5py.File(path) as file:
        for stream, name in {"observation": "observations", "action": "actions", "infos_qpos": "infos/qpos"}.items():
            np.testing.assert_array_equal(store.low_dim(stream), file[name][:].astype(np.float32))
        np.testing.assert_array_equal(store.low_dim("reward")[:, 0], file["rewards"][:])
    assert store.episode(1).streams["action"].stamp_ns.tolist() == [0, 40_000_000, 80_000_000]
    assert (store.manifest.clock, store.episode(2).source, store.episode(2).success) == ("nominal_25hz", "door.hdf5#2", None)


def test_d4rl_says_what_it_cannot_know(tmp_path: Path) -> None:
    facts = open_d4rl(d4rl(tmp_path / "a.hdf5"), ImportOptions()).facts
    expected = {"terminals", "timeouts", "next_observations", "infos/short", "metadata/algorithm", "units", "clock", "success"}
    assert expected | {"digits of observations", "digits of infos/qpos"} == facts.not_carried.keys()
    assert "assumed" in facts.not_carried["clock"]
    source = open_d4rl(d4rl(tmp_path / "b.hdf5", timeouts=None), ImportOptions())
    assert "joined with the next one; the last episode is cut off" in source.facts.not_carried["episodes"]
    assert [len(source.episode(i).streams["action"].values) for i in range(len(source))] == [3, 6]


def test_d4rl_damage(tmp_path: Path) -> None:
    for number, (arrays, message) in enumerate(
        [
            ({"actions": None}, r"has no actions, only"),
            ({"terminals": np.zeros(8, bool)}, r"terminals has 8 rows, actions have 9"),
            ({"actions": np.zeros((0, 2)), "terminals": None, "timeouts": None}, r"has no steps"),
        ]
    ):
        with pytest.raises(KineflowError, match=message):
            open_d4rl(d4rl(tmp_path / f"{number}.hdf5", **arrays), ImportOptions())
    whole = d4rl(tmp_path / "d.hdf5").read_bytes()
    (tmp_path / "d.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KineflowError, match="not a whole HDF5 file"):
        open_d4rl(tmp_path / "d.hdf5", ImportOptions())


def minari(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number, length in ((0, 4), (10, 2), (2, 3)):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": length} | ({"seed": 5} if number == 2 else {}))
            group["actions"], group["rewards"] = rng.random((length, 2)).astype("f4"), rng.random(length)
            group["terminations"] = group["truncations"] = np.zeros(length, bool)
            group["observations/achieved_goal"] = rng.random((length + 1, 2))
            group["observations/image"] = rng.integers(0, 256, (length + 1, 6, 5, 3), np.uint8)
            group["infos/success"] = np.ones(length + 1, bool)
            group["infos/note"] = ["a"] * (length + 1)
            pictures = []
            for _ in range(length + 1):
                Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(buffer := io.BytesIO(), "JPEG")
                pictures.append(np.frombuffer(buffer.getvalue(), np.uint8))
            camera = group.create_dataset("observations/camera", (length + 1,), h5py.vlen_dtype(np.uint8))
            for row, picture in enumerate(pictures):
                camera[row] = picture
    return folder


def test_minari(tmp_path: Path) -> None:
    folder = minari(tmp_path / "door-human-v2")
    source = open_minari(folder, ImportOptions())
    assert [len(source.episode(i).streams["action"].values) for i in range(3)] == [4, 3, 2]
    facts, episode = source.facts, source.episode(1)
    assert (episode.source, episode.seed, source.episode(0).seed) == ("door-human-v2#episode_2", 5, None)
    assert sorted(facts.interface.features) == ["achieved_goal", "infos_success", "reward"]
    assert {n: c.frame_shape for n, c in facts.interface.cameras.items()} == {"camera": (16, 24, 3), "image": (6, 5, 3)}
    assert {"last observation", "terminations, truncations", "infos/note", "clock"} <= facts.not_carried.keys()
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        group = file["episode_2"]
        np.testing.assert_array_equal(episode.streams["image"].values, group["observations/image"][:3])
        np.testing.assert_array_equal(episode.streams["achieved_goal"].values, group["observations/achieved_goal"][:3])
        assert [bytes(b) for b in episode.jpeg["camera"]] == [bytes(row) for row in group["observations/camera"][:3]]
    first = np.asarray(Image.open(io.BytesIO(episode.jpeg["camera"][0])))
    np.testing.assert_array_equal(episode.streams["camera"].values[0], first)
    import_data("minari", folder / "data" / "main_data.hdf5", tmp_path / "s.eps")


def test_minari_damage(tmp_path: Path) -> None:
    (tmp_path / "arrow").mkdir()
    with pytest.raises(KineflowError, match=r"holds no main_data.hdf5.*not Arrow"):
        open_minari(tmp_path / "arrow", ImportOptions())
    with pytest.raises(KineflowError, match="holds no episode_<i>"):
        open_minari(d4rl(tmp_path / "d.hdf5"), ImportOptions())
    folder = minari(tmp_path / "m")
    file = folder / "data" / "main_data.hdf5"
    with h5py.File(file, "a") as opened:
        del opened["episode_2/observations/image"]
        opened["episode_2/observations/image"] = np.zeros((2, 6, 5, 3), np.uint8)
        del opened["episode_10/actions"]
    source = open_minari(folder, ImportOptions())
    with pytest.raises(KineflowError, match=r"episode_2/observations/image has 2 rows for 3 actions"):
        source.episode(1)
    with pytest.raises(KineflowError, match="episode_10 has no actions"):
        source.episode(2)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(KineflowError, match="not a whole HDF5 file"):
        open_minari(folder, ImportOptions())
