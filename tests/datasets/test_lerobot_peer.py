"""The real lerobot reads our v3.0 export and converts our v2.1 export, in its own environment (`bash .ci/lerobot_env.sh`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import CameraSpec, Episode, Interface, Stream
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, sample_episode

PYTHON = Path(__file__).parents[2] / ".venv-lerobot" / "bin" / "python"
LENGTHS = (6, 9, 4)

# Runs under lerobot's own Python: reads every row through its data set class, in one window of two time steps as well.
READ = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, out = sys.argv[1:]
if "v2.1" in root:  # lerobot 0.6 reads version 2.1 through its own converter
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset("local/kineflow", root=root, push_to_hub=False)
data = LeRobotDataset("local/kineflow", root=root)
rows = [data[i] for i in range(len(data))]
found = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0] if key != "task"}
found["task"] = np.array([row["task"] for row in rows])
found["counts"] = np.array([data.num_episodes, len(data), data.fps])
for key, stats in data.meta.stats.items():
    found[f"mean/{key}"] = stats["mean"]
window = LeRobotDataset("local/kineflow", root=root, delta_timestamps={"observation.pose": [-0.1, 0.0], "action": [0.0, 0.1]})
found["window/pose"] = np.stack([np.asarray(window[i]["observation.pose"]) for i in range(len(window))])
found["window/pad"] = np.stack([np.asarray(window[i]["action_is_pad"]) for i in range(len(window))])
np.savez(out, **{key.replace("/", "|"): value for key, value in found.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lerobot-v3", "lerobot-v3-video", "lerobot-v2.1", "lerobot-v2.1-video"])
def test_lerobot_reads_what_we_wrote(tmp_path: Path, form: str) -> None:
    if not PYTHON.exists():
        pytest.skip("needs the real lerobot: bash .ci/lerobot_env.sh")
    store = _store(tmp_path / "s.eps")
    export_data(form, store, tmp_path / form)
    (tmp_path / "read.py").write_text(READ)
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [PYTHON, tmp_path / "read.py", tmp_path / form, tmp_path / "found.npz"]
    done = subprocess.run(list(map(str, command)), env=offline, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        read = {key.replace("|", "/"): found[key] for key in found.files}
    episodes = [store.episode(i) for i in range(3)]
    joined = {
        name: np.concatenate([e.streams[name].values for e in episodes]) for name in ("pose", "force", "action", "front", "depth")
    }
    assert read["counts"].tolist() == [3, sum(LENGTHS), 10]
    np.testing.assert_array_equal(read["observation.pose"], joined["pose"])
    np.testing.assert_array_equal(np.ravel(read["observation.force"]), joined["force"][:, 0])
    np.testing.assert_array_equal(read["action"], joined["action"])
    np.testing.assert_array_equal(read["task"], np.repeat([e.instruction for e in episodes], LENGTHS))
    stamps = np.concatenate([e.streams["action"].stamp_ns for e in episodes])
    np.testing.assert_array_equal(np.ravel(read["kineflow.stamp_ns"]), stamps)
    np.testing.assert_array_equal(read["observation.images.depth"][:, 0], joined["depth"])  # millimetres
    frames = read["observation.images.front"].transpose(0, 2, 3, 1) * 255
    if "video" not in form:
        np.testing.assert_allclose(frames, joined["front"], atol=1e-3)
    else:
        assert np.abs(frames - joined["front"]).mean() < 6
    np.testing.assert_allclose(np.ravel(read["mean/action"]), joined["action"].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(read["window/pose"][:, 1], joined["pose"])
    assert read["window/pad"].sum() == 3  # the last step of each episode has no next action


def _store(path: Path) -> EpisodeStore:
    interface = Interface(
        INTERFACE.features, INTERFACE.action, {"front": CameraSpec(64, 96, 10.0), "depth": CameraSpec(5, 7, 10.0, "depth")}
    )
    made, (y, x) = EpisodeStore.create(path, interface), np.mgrid[:64, :96]
    with made.writer(3) as writer:
        for number, length in enumerate(LENGTHS):
            flat = sample_episode(number, LOW_DIM, length)
            t = np.arange(length)[:, None, None]
            base = 128 + 60 * np.sin((x + 4 * t) / 9 + number) + 50 * np.cos((y - 2 * t) / 7)
            frames = np.stack([base, base, base], -1).astype(np.uint8)
            front = Stream(frames, flat.streams["action"].stamp_ns)
            ranges = np.random.default_rng(number).integers(0, 2**16, (length, 5, 7), np.uint16)
            depth = Stream(ranges, flat.streams["action"].stamp_ns)
            writer.add(Episode({**flat.streams, "front": front, "depth": depth}, flat.instruction, flat.success))
    return made
