"""RECON files and ViNT folders, made as their authors' tools make them; pickles are never opened."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions

h5py = pytest.importorskip("h5py")


def picture(number: int, height: int = 24, width: int = 32) -> bytes:
    """A JPEG from another encoder than ours."""
    values = np.add.outer(np.arange(height) * 5, np.arange(width) * 3 + number) % 256
    made = io.BytesIO()
    Image.fromarray(np.stack([values, values[::-1], values[:, ::-1]], 2).astype(np.uint8)).save(made, "JPEG", quality=70)
    return made.getvalue()


def recon_file(path: Path, steps: int, objects: bool = False, **changed: np.ndarray | None) -> dict[str, np.ndarray]:
    rng, jpegs = np.random.default_rng(steps), [picture(n) for n in range(steps)]
    data: dict[str, np.ndarray | None] = {
        "jackal/position": rng.normal(size=(steps, 3)),
        "jackal/yaw": rng.normal(size=steps),
        "jackal/linear_velocity": rng.normal(size=steps),
        "jackal/angular_velocity": rng.normal(size=steps),
        "commands/linear_velocity": rng.normal(size=(steps, 1)),
        "commands/angular_velocity": rng.normal(size=(steps, 1)),
        "collision/any": rng.random(steps) < 0.5,
        "gps/latlong": rng.normal(size=(steps, 2)),
        **{name.replace("__", "/"): values for name, values in changed.items()},
    }
    kept = {name: values for name, values in data.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in kept.items():
            file[name] = values
        if "images__rgb_left" not in changed and objects:
            made = file.create_dataset("images/rgb_left", (steps,), h5py.vlen_dtype(np.uint8))
            for step, jpeg in enumerate(jpegs):
                made[step] = np.frombuffer(jpeg, np.uint8)
        elif "images__rgb_left" not in changed:
            file["images/rgb_left"] = np.array(jpegs)  # fixed-size strings, as in the release
    return kept


@pytest.mark.parametrize("objects", [False, True])
def test_recon_becomes_episodes_value_by_value(tmp_path: Path, objects: bool) -> None:
    folder = tmp_path / "recon_release"
    kept = [recon_file(folder / f"jackal_{n}.hdf5", steps, objects) for n, steps in enumerate((5, 3))]
    report = import_data("recon", folder, tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [5, 3]
    for index, expected in enumerate(kept):
        streams = store.episode(index).streams
        pose = np.concatenate([expected["jackal/position"], expected["jackal/yaw"][:, None]], 1)
        np.testing.assert_array_equal(streams["pose"].values, pose.astype(np.float32))
        commands = np.concatenate([expected["commands/linear_velocity"], expected["commands/angular_velocity"]], 1)
        np.testing.assert_array_equal(streams["action"].values, commands.astype(np.float32))
        np.testing.assert_array_equal(streams["velocity"].values[:, 0], expected["jackal/linear_velocity"].astype(np.float32))
        np.testing.assert_array_equal(streams["collision"].values[:, 0], expected["collision/any"])
        assert store.jpegs(index, "rgb_left") == [picture(n) for n in range(len(pose))]
        assert np.diff(streams["action"].stamp_ns).tolist() == [250_000_000] * (len(pose) - 1)
    assert store.interface.action.vector.names == ("linear_velocity", "angular_velocity")
    assert store.interface.features["pose"].vector.units == ("m", "m", "m", "rad")
    assert (report.clock, store.episode(1).source) == ("nominal_4hz", "jackal_1.hdf5")
    assert sorted(report.not_carried) == ["clock", "gps/latlong"]
    assert check_store(store.path) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"jackal__yaw": None}, r"b\.hdf5 has no jackal/yaw, which the first file has"),
        ({"jackal__yaw": np.zeros(3)}, r"b\.hdf5: .* have \[4, 3\] steps"),
        ({"images__rgb_left": np.array([picture(0)] * 3)}, r"'rgb_left' has 3 steps, the commands have 4"),
        ({"images__rgb_left": np.array([picture(0)] * 3 + [picture(0, 16)])}, r"step 3: the picture is \[16, 32, 3\]"),
        ({"images__rgb_left": np.array([picture(0)] * 3 + [b"no picture"])}, r"images/rgb_left, step 3: not a JPEG"),
        ({"images__rgb_left": np.array([picture(0)] * 3 + [picture(0)[:60]])}, r"images/rgb_left, step 3: .*cannot be decoded"),
        ({"jackal__position": np.zeros((4, 2))}, "have 3 columns"),
        ({"jackal__position": np.full((4, 3), np.nan)}, "stream 'pose', step 0.*nan"),
        ({"jackal__position": np.full((4, 3), b"x")}, r"jackal/position: \|S1 instead of numbers"),
    ],
)
def test_recon_files_that_differ_are_named(tmp_path: Path, changed: Mapping[str, np.ndarray | None], message: str) -> None:
    recon_file(tmp_path / "in" / "a.hdf5", 4)
    recon_file(tmp_path / "in" / "b.hdf5", 4, **changed)
    with pytest.raises(KineflowError, match=message):
        import_data("recon", tmp_path / "in", tmp_path / "s.eps")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_other_hdf5_and_none_are_refused(tmp_path: Path) -> None:
    recon_file(tmp_path / "a.hdf5", 4, commands__linear_velocity=None)
    (tmp_path / "b.hdf5").write_bytes(b"not HDF5")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "a.hdf5": r"no \['commands/linear_velocity'\], so it is not a RECON",
        "b.hdf5": "b.hdf5 is not an HDF5 file",
        "empty": r"no \.hdf5 files",
    }.items():
        with pytest.raises(KineflowError, match=message):
            import_data("recon", tmp_path / name, tmp_path / "s.eps")


class _Trap:
    """Pickled, it would make a file when opened."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self._file), "w"))


def vint_folder(folder: Path, steps: int, kind: str = "npz", pictures: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(steps)
    position, yaw = rng.normal(size=(steps, 2)), rng.normal(size=steps)
    folder.mkdir(parents=True)
    for number in range(steps if pictures is None else pictures):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    if kind == "npz":
        np.savez(folder / "traj_data.npz", position=position, yaw=yaw)
    elif kind == "json":
        (folder / "traj_data.json").write_text(json.dumps({"position": position.tolist(), "yaw": yaw.tolist()}))
    (folder / "traj_data.pkl").write_bytes(pickle.dumps(_Trap(folder / "trapped")))
    return np.concatenate([position, yaw[:, None]], 1).astype(np.float32)


def test_vint_folders_become_episodes(tmp_path: Path) -> None:
    root = tmp_path / "sacson"
    poses = [vint_folder(root / "run_0", 12), vint_folder(root / "run_1", 4, "json"), vint_folder(root / "run_2", 5, pictures=4)]
    report = import_data("vint", root, tmp_path / "s.eps", ImportOptions(rate_hz=5.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [12, 4, 4]
    for index, pose in enumerate(poses):
        streams, steps = store.episode(index).streams, store.lengths[index]
        np.testing.assert_array_equal(streams["pose"].values, pose[:steps])
        np.testing.assert_array_equal(streams["action"].values, pose[:steps])
        assert store.jpegs(index, "front") == [picture(n) for n in range(steps)]  # 10.jpg comes after 9.jpg
        assert streams["action"].stamp_ns[1] == 200_000_000
    assert store.episode(1).source == "sacson/run_1"
    assert {"clock", "commands", "unmatched end"} == set(report.not_carried)
    assert check_store(store.path) == []
    assert not list(root.rglob("trapped"))


def test_a_pickle_is_refused_with_the_recipe_and_never_opened(tmp_path: Path) -> None:
    vint_folder(tmp_path / "in" / "run_0", 4)
    vint_folder(tmp_path / "in" / "run_1", 4, "none")
    with pytest.raises(KineflowError, match=r"run_1/traj_data\.pkl \(1 of 2 folders\) is a pickle.*(?s:.*)numpy\.savez"):
        import_data("vint", tmp_path / "in", tmp_path / "s.eps")
    assert not list(tmp_path.rglob("trapped"))


def test_npz_that_hides_a_pickle_and_folders_with_holes_are_refused(tmp_path: Path) -> None:
    vint_folder(tmp_path / "a" / "run", 4)
    np.savez(tmp_path / "a" / "run" / "traj_data.npz", position=np.array([_Trap(tmp_path / "trapped")]), yaw=np.zeros(1))
    with pytest.raises(KineflowError, match=r"traj_data\.npz: not `position`.*allow_pickle=False"):
        import_data("vint", tmp_path / "a", tmp_path / "s.eps")
    assert not (tmp_path / "trapped").exists()
    vint_folder(tmp_path / "b" / "run", 4)
    (tmp_path / "b" / "run" / "2.jpg").unlink()
    with pytest.raises(KineflowError, match=r"2\.jpg is missing, but not \['3\.jpg'\]"):
        import_data("vint", tmp_path / "b", tmp_path / "s.eps")
    (tmp_path / "c").mkdir()
    with pytest.raises(KineflowError, match="no folder with traj_data"):
        import_data("vint", tmp_path / "c", tmp_path / "s.eps")
