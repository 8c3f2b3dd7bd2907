"""robomimic and Isaac Lab HDF5 in and out: lossless round trips, the real robomimic 0.3 as reader, files of others, damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from kineflow.config import save_config
from kineflow.contracts import Episode, Interface, KineflowError, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.importers.robomimic import open_robomimic
from kineflow.datasets.importers.source import ImportOptions
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

LENGTHS = (5, 3, 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    made = EpisodeStore.create(tmp_path_factory.mktemp("store") / "s.eps", INTERFACE, provenance="bench", licence="CC0-1.0")
    with made.writer(3) as writer:
        for number, length in enumerate(LENGTHS):
            writer.add(sample_episode(number, length=length))
    return made


@pytest.fixture(scope="module")
def exported(store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "demos.hdf5"
    report = export_data("robomimic", store, path)
    assert report.carried["front"] == "obs/front"
    assert {"next_obs", "states, model_file"} <= report.not_carried.keys()
    return path


def test_out_and_back_to_the_bit(store: EpisodeStore, exported: Path, tmp_path: Path) -> None:
    import_data("robomimic", exported, tmp_path / "back.eps")
    back = EpisodeStore.open(tmp_path / "back.eps")
    assert back.fingerprint() == store.fingerprint()
    for number in range(3):
        assert_equal_episodes(back.episode(number), store.episode(number))
    assert (back.manifest.clock, back.manifest.licence, back.manifest.provenance) == ("sensor", "CC0-1.0", "bench")


def test_the_file_as_h5py_shows_it(store: EpisodeStore, exported: Path) -> None:
    with h5py.File(exported) as file:
        assert (sorted(file["data"]), int(file["data"].attrs["total"])) == (["demo_0", "demo_1", "demo_2"], 17)
        environment = json.loads(file["data"].attrs["env_args"])
        assert environment == {"env_name": "kineflow", "type": 2, "env_kwargs": {"control_freq": 10.0}}
        demo, episode = file["data/demo_1"], store.episode(1)
        assert (int(demo.attrs["num_samples"]), bool(demo.attrs["success"])) == (3, True)
        assert json.loads(demo.attrs["ep_meta"]) == {"lang": "open the door"}
        np.testing.assert_array_equal(demo["actions"][:], episode.streams["action"].values)
        np.testing.assert_array_equal(demo["obs/front"][:], episode.streams["front"].values)
        assert demo["obs/front"].dtype == np.uint8
        assert demo["dones"][:].tolist() == [0, 0, 1]
        assert "rewards" not in demo  # the store has none, and zeros would be an invention


@pytest.mark.parametrize("cache", [None, "low_dim", "all"])
def test_the_real_robomimic_reads_equal_values(store: EpisodeStore, exported: Path, cache: str | None) -> None:
    dataset = pytest.importorskip("robomimic.utils.dataset", reason="needs robomimic: see .ci/python.sh")
    from robomimic.utils.obs_utils import initialize_obs_utils_with_obs_specs

    initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["pose", "force"], "rgb": ["front"]}})
    data = dataset.SequenceDataset(
        hdf5_path=str(exported),
        obs_keys=("pose", "force", "front"),
        dataset_keys=("actions",),
        frame_stack=2,
        seq_length=3,
        hdf5_cache_mode=cache,
        load_next_obs=False,
    )
    assert len(data) == sum(LENGTHS)
    row = 0
    for number, length in enumerate(LENGTHS):
        streams = store.episode(number).streams
        for step in range(length):
            found = data[row]
            steps = np.clip(np.arange(step - 1, step + 3), 0, length - 1)
            np.testing.assert_array_equal(found["actions"], streams["action"].values[steps])
            np.testing.assert_array_equal(found["obs"]["pose"], streams["pose"].values[steps])
            np.testing.assert_array_equal(found["obs"]["force"], streams["force"].values[steps])
            np.testing.assert_array_equal(found["obs"]["front"], streams["front"].values[steps])
            row += 1


def test_rewards_seeds_and_splits_survive(tmp_path: Path) -> None:
    pose = INTERFACE.features["pose"]
    interface = Interface({"pose": pose, "reward": INTERFACE.features["force"]}, INTERFACE.action)
    with EpisodeStore.create(tmp_path / "s.eps", interface).writer(4) as writer:
        for number, split in enumerate(("train", "train", "validation", "")):
            flat = sample_episode(number, interface)
            writer.add(Episode(flat.streams, split=split, seed=number + 7))
    store = EpisodeStore.open(tmp_path / "s.eps")
    if not store.episode(0).split:
        pytest.skip("the store does not keep splits yet")
    export_data("robomimic", store, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert {name: list(file[f"mask/{name}"][:]) for name in file["mask"]} == {
            "train": [b"demo_0", b"demo_1"],
            "valid": [b"demo_2"],
        }
        assert int(file["data/demo_2"].attrs["seed"]) == 9
        np.testing.assert_array_equal(file["data/demo_0/rewards"][:], store.episode(0).streams["reward"].values[:, 0])
    source = open_robomimic(tmp_path / "out.hdf5", ImportOptions())
    assert [source.episode(i).split for i in range(4)] == ["train", "train", "validation", ""]
    assert [source.episode(i).seed for i in range(4)] == [7, 8, 9, 10]


def test_isaac_lab_reads_the_export(store: EpisodeStore, tmp_path: Path) -> None:
    export_data("isaac-lab", store, tmp_path / "demos.hdf5")

    def tensors(group: Any) -> dict[str, Any]:
        """As Isaac Lab's HDF5DatasetFileHandler.load_episode does: each data set of a demo, whatever it is."""
        return {n: tensors(x) if isinstance(x, h5py.Group) else torch.tensor(np.array(x)) for n, x in group.items()}

    with h5py.File(tmp_path / "demos.hdf5") as file:
        demo, episode = tensors(file["data/demo_1"]), store.episode(1)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "kineflow"
    np.testing.assert_array_equal(demo["actions"].numpy(), episode.streams["action"].values)
    np.testing.assert_array_equal(demo["obs"]["front"].numpy(), episode.streams["front"].values)
    import_data("isaac-lab", tmp_path / "demos.hdf5", tmp_path / "back.eps")
    assert EpisodeStore.open(tmp_path / "back.eps").fingerprint() == store.fingerprint()


def test_streams_with_clocks_of_their_own_are_refused(tmp_path: Path) -> None:
    episode = sample_episode(0, LOW_DIM)
    late = Stream(episode.streams["force"].values, episode.streams["force"].stamp_ns + 1)
    with EpisodeStore.create(tmp_path / "two.eps", LOW_DIM).writer() as writer:
        writer.add(Episode({**episode.streams, "force": late}))
    with pytest.raises(KineflowError, match="force have clocks of their own"):
        export_data("robomimic", EpisodeStore.open(tmp_path / "two.eps"), tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


# Files of others, written with h5py to the layouts of robosuite's and Isaac Lab's recorders.


def robosuite(path: Path, change: Callable[[h5py.File], object] = lambda file: None) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 25}})
        for number, length in ((0, 4), (10, 2), (2, 3)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update({"num_samples": length, "model_file": "<mujoco/>"})
            demo["actions"] = rng.random((length, 7))
            demo["rewards"], demo["dones"] = rng.random(length), np.zeros(length)
            demo["states"] = rng.random((length, 32))
            for group in ("obs", "next_obs"):
                demo[f"{group}/robot0_eef_pos"] = rng.random((length, 3))
                demo[f"{group}/agentview_image"] = rng.integers(0, 256, (length, 8, 9, 3), np.uint8)
                demo[f"{group}/agentview_depth"] = rng.random((length, 8, 9, 1)).astype(np.float32)
        for name, members in {"train": ["demo_0", "demo_10"], "valid": ["demo_2"], "50_percent": ["demo_0"]}.items():
            file[f"mask/{name}"] = np.array(members, "S")
        change(file)
    return path


def test_robosuite_demonstrations(tmp_path: Path) -> None:
    path = robosuite(tmp_path / "lift.hdf5")
    source = open_robomimic(path, ImportOptions())
    facts = source.facts
    assert (len(source), facts.clock, facts.interface.action.rate_hz) == (3, "nominal_25hz", 25.0)
    assert facts.provenance == "lift.hdf5 (robomimic HDF5, environment Lift)"
    assert sorted(facts.interface.features) == ["reward", "robot0_eef_pos"]
    assert facts.interface.cameras["agentview_image"].frame_shape == (8, 9, 3)
    named = {"next_obs", "states", "dones", "model_file", "mask/50_percent", "obs/agentview_depth", "units", "clock"}
    assert named == {name for name in facts.not_carried if not name.startswith("digits of ")}
    with h5py.File(path) as file:
        for number, name, split in ((0, "demo_0", "train"), (1, "demo_2", "validation"), (2, "demo_10", "train")):
            episode = source.episode(number)
            assert (episode.source, episode.split, episode.success) == (f"lift.hdf5#{name}", split, None)
            demo = file["data"][name]
            np.testing.assert_array_equal(episode.streams["action"].values, demo["actions"][:])
            np.testing.assert_array_equal(episode.streams["agentview_image"].values, demo["obs/agentview_image"][:])
            np.testing.assert_array_equal(episode.streams["reward"].values[:, 0], demo["rewards"][:])
            assert np.diff(episode.streams["action"].stamp_ns).tolist() == [40_000_000] * (len(demo["actions"]) - 1)
    import_data("robomimic", path, tmp_path / "s.eps")


def test_isaac_lab_recordings(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "isaac.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs.update({"total": 3, "env_args": json.dumps({"env_name": "Isaac-Lift-v0", "type": 2})})
        demo = data.create_group("demo_0")
        demo.attrs.update({"num_samples": 3, "success": True, "seed": 42})
        values = {
            "actions": np.eye(3, 2, dtype="f4"),
            "processed_actions": np.zeros((3, 2), "f4"),
            "obs/policy/joint_pos": np.arange(9, dtype="f4").reshape(3, 3),
            "obs/policy/actions": np.zeros((3, 2), "f4"),
            "obs/subtask_terms/grasp": np.array([[False], [True], [True]]),
            "initial_state/articulation/robot/root_pose": np.zeros((1, 7), "f4"),
            "states/articulation/robot/joint_position": np.zeros((3, 3), "f4"),
        }
        for name, value in values.items():
            demo.create_dataset(name, data=value, compression="gzip")
    source = open_robomimic(tmp_path / "isaac.hdf5", ImportOptions())
    episode, facts = source.episode(0), source.facts
    assert sorted(episode.streams) == ["action", "actions", "grasp", "joint_pos"]
    assert (episode.success, episode.seed, facts.clock) == (True, 42, "nominal_20hz")
    assert {"initial_state", "states", "processed_actions"} <= facts.not_carried.keys()
    assert "assumed" in facts.not_carried["clock"]
    np.testing.assert_array_equal(episode.streams["joint_pos"].values, values["obs/policy/joint_pos"])
    assert open_robomimic(tmp_path / "isaac.hdf5", ImportOptions(rate_hz=30.0)).facts.clock == "nominal_30hz"


def test_a_schema_selects(tmp_path: Path) -> None:
    path = robosuite(tmp_path / "d.hdf5")
    offered = open_robomimic(path, ImportOptions()).facts.interface
    save_config(Interface({}, offered.action, offered.cameras), tmp_path / "robot.yaml")
    source = open_robomimic(path, ImportOptions(tmp_path / "robot.yaml"))
    assert sorted(source.episode(1).streams) == ["action", "agentview_image"]
    assert source.facts.not_carried["robot0_eef_pos"] == "the schema leaves it out"


def test_demos_changed_by_others_lose_our_names_not_their_values(store: EpisodeStore, tmp_path: Path) -> None:
    export_data("robomimic", store, tmp_path / "out.hdf5")
    with pytest.raises(KineflowError, match="has time stamps, at 10 Hz"):
        open_robomimic(tmp_path / "out.hdf5", ImportOptions(rate_hz=5.0))
    with h5py.File(tmp_path / "out.hdf5", "a") as file:
        for demo in file["data"]:
            del file[f"data/{demo}/obs/force"]
    source = open_robomimic(tmp_path / "out.hdf5", ImportOptions())
    assert "changed" in source.facts.not_carried["kineflow/store"]
    np.testing.assert_array_equal(source.episode(2).streams["pose"].values, store.episode(2).streams["pose"].values)


def test_digits_and_what_only_some_demos_have_are_said(tmp_path: Path) -> None:
    path = robosuite(tmp_path / "d.hdf5", lambda file: file.__setitem__("data/demo_10/obs/force", np.zeros((2, 3))))
    lost = open_robomimic(path, ImportOptions()).facts.not_carried
    assert lost["obs/force"] == "'demo_10' has it, the first demo does not"
    assert {name for name in lost if name.startswith("digits")} == {
        "digits of actions", "digits of rewards", "digits of obs/robot0_eef_pos"
    }  # fmt: skip


def remove(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]

    return change


def replace_by(name: str, value: object) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = value

    return change


DAMAGE: dict[str, tuple[Callable[[Any], object], str]] = {
    "no demos": (remove("data"), r"holds no data/demo_<i>, only \['mask'\]"),
    "no actions": (remove("data/demo_0/actions"), r"demo_0 has no actions"),
    "lost observation": (remove("data/demo_2/obs/robot0_eef_pos"), r"demo_2 has no obs/robot0_eef_pos, which the first demo has"),
    "fewer rows": (replace_by("data/demo_2/actions", np.zeros((2, 7))), r"demo_2/actions has shape \[2, 7\], needed is \[3, 7\]"),
    "no steps": (lambda file: file["data/demo_2"].attrs.update({"num_samples": 0}), r"demo_2 has no steps; drop the demo"),
    "a link into nothing": (
        replace_by("data/demo_2/actions", h5py.ExternalLink("gone.hdf5", "/x")),
        r"d.hdf5: an object in it cannot be opened .*links to, as one file",
    ),
    "another width": (replace_by("data/demo_10/actions", np.zeros((2, 6))), r"demo_10/actions has shape \[2, 6\]"),
    "env_args": (lambda file: file["data"].attrs.update({"env_args": "{"}), r"env_args: not JSON"),
    "nan": (replace_by("data/demo_2/rewards", np.full(3, np.nan)), r"demo_2\), stream 'reward', step 0.*nan"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    robosuite(tmp_path / "d.hdf5", change)
    with pytest.raises(KineflowError, match=message):
        import_data("robomimic", tmp_path / "d.hdf5", tmp_path / "s.eps")
    assert [p.name for p in tmp_path.iterdir()] == ["d.hdf5"]


def test_truncated_files_and_other_files(tmp_path: Path) -> None:
    whole = robosuite(tmp_path / "d.hdf5").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.hdf5").write_bytes(whole[:size])
        with pytest.raises(KineflowError, match="not a whole HDF5 file"):
            import_data("robomimic", tmp_path / "cut.hdf5", tmp_path / "s.eps")
    assert not (tmp_path / "s.eps").exists()


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["x"] = np.zeros((4, 1))
    path = robosuite(tmp_path / "d.hdf5", lambda f: f.__setitem__("data/demo_0/obs/x", h5py.ExternalLink("secret.hdf5", "/x")))
    assert "x" not in open_robomimic(path, ImportOptions()).facts.interface.features
