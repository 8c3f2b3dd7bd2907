"""What other formats have no place for goes with them all the same, and comes back: units, depth, spans, goals, splits."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kineflow.contracts import CameraSpec, Episode, Goal, Interface, KineflowError, Span, Stream, to_plain
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.manifest import Calibration, CameraRecord
from kineflow.datasets.sidecar import episode_sidecar, read_sidecar, restored, store_sidecar
from tests.datasets.sample_episodes import LOW_DIM, assert_equal_episodes, sample_episode

FORMS = {"lerobot-v3": "lerobot", "lerobot-v2.1": "lerobot", "lerobot-v3-video": "lerobot", "robomimic": "robomimic"}
CAMERAS = {"depth": CameraSpec(5, 7, 10.0, "depth")}
RICH = Interface(LOW_DIM.features, LOW_DIM.action, CAMERAS)
EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
BODY = ((1.0, 0.0, 0.0, 0.1), (0.0, 1.0, 0.0, 0.2), (0.0, 0.0, 1.0, 0.3), (0.0, 0.0, 0.0, 1.0))


def rich_episode(number: int) -> Episode:
    flat = sample_episode(number, LOW_DIM)
    stamps = flat.streams["action"].stamp_ns
    frames = np.random.default_rng(number).integers(0, 2**16, (len(stamps), 5, 7), np.uint16)
    goals = {
        "pose": Goal("pose", np.array([0.1, -2, 3, 0, 0, 0, 1], np.float32), "odom"),
        "spot": Goal("point", np.array([1 / 3, 2, 3], np.float32), "map"),
    }
    return replace(
        flat,
        streams={**flat.streams, "depth": Stream(frames, stamps)},
        language="en",
        spans=(Span("reach", int(stamps[0]), int(stamps[1])), Span("gré äh", int(stamps[1]), int(stamps[2]), "fr")),
        goals=goals,
        split=("train", "validation", "")[number % 3],
        seed=None if number == 1 else number,
        operator="O. P.",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    record = CameraRecord(calibration=Calibration(EYE, "none", (), BODY))
    path = tmp_path_factory.mktemp("rich") / "s.eps"
    with EpisodeStore.create(path, RICH, cameras={"depth": record}).writer(4) as writer:
        for number in range(4):
            writer.add(rich_episode(number))
    return EpisodeStore.open(path)


@pytest.mark.parametrize("form", FORMS)
def test_everything_comes_back(store: EpisodeStore, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out.hdf5"
    export_data(form, store, out)
    import_data(FORMS[form], out, tmp_path / "back.eps")
    back = EpisodeStore.open(tmp_path / "back.eps")
    assert back.interface == store.interface
    assert back.manifest.cameras["depth"].calibration == store.manifest.cameras["depth"].calibration
    for number in range(4):
        found, expected = back.episode(number), store.episode(number)
        assert_equal_episodes(found, expected)
        for attribute in ("language", "spans", "split", "seed", "operator"):
            assert getattr(found, attribute) == getattr(expected, attribute)
        assert to_plain(found.goals["pose"].value.tolist()) == expected.goals["pose"].value.tolist()
        assert [(n, g.kind, g.frame) for n, g in found.goals.items()] == [("pose", "pose", "odom"), ("spot", "point", "map")]
    assert back.fingerprint() == store.fingerprint()


def test_depth_is_sixteen_bit_for_other_readers(store: EpisodeStore, tmp_path: Path) -> None:
    expected = store.episode(0).streams["depth"].values
    export_data("lerobot-v3", store, tmp_path / "lerobot")
    entry = pq.read_table(tmp_path / "lerobot" / "data/chunk-000/file-000.parquet")["observation.images.depth"][1].as_py()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(entry["bytes"]))), expected[1])
    info = json.loads((tmp_path / "lerobot" / "meta/info.json").read_text())
    assert info["features"]["observation.images.depth"]["info"] == {"is_depth_map": True, "depth_unit": "mm"}
    export_data("robomimic", store, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/depth"][:], expected)


def test_splits_are_ranges_where_they_are(store: EpisodeStore, tmp_path: Path) -> None:
    for order, expected in (((0, 3, 1, 4), {"train": "0:2", "validation": "2:4"}), ((0, 1, 3, 4), {"train": "0:4"})):
        path = tmp_path / f"{expected['train']}.eps"
        with EpisodeStore.create(path, RICH).writer(4) as writer:
            for number in order:
                writer.add(rich_episode(number))
        export_data("lerobot-v3", EpisodeStore.open(path), tmp_path / f"{expected['train']}.out")
        info = json.loads((tmp_path / f"{expected['train']}.out" / "meta/info.json").read_text())
        assert info["splits"] == expected


@pytest.mark.parametrize("form", FORMS)
def test_goals_that_are_pictures_are_named_as_lost(tmp_path: Path, form: str) -> None:
    flat = sample_episode(0, LOW_DIM)
    goal = Goal("image", np.zeros((4, 4, 3), np.uint8), "front")
    with EpisodeStore.create(tmp_path / "s.eps", LOW_DIM).writer() as writer:
        writer.add(replace(flat, goals={"final": goal}))
    report = export_data(form, EpisodeStore.open(tmp_path / "s.eps"), tmp_path / "out.hdf5")
    assert report.not_carried["goal final"] == "images as goals have no place in the format"


def test_damaged_sidecars_are_named(store: EpisodeStore) -> None:
    plain = store_sidecar(store.manifest)
    assert read_sidecar(json.loads(json.dumps(plain)), "x").interface == RICH
    with pytest.raises(KineflowError, match=r"a file has version 99, this Kineflow reads up to 1"):
        read_sidecar({**plain, "version": 99}, "a file")
    with pytest.raises(KineflowError, match="a file is not a Kineflow sidecar"):
        read_sidecar(["x"], "a file")
    episode = episode_sidecar(store.episode(0))
    assert restored(json.loads(json.dumps(episode)), "x")["spans"] == store.episode(0).spans
    for broken in ({**episode, "spans": [{"text": "a"}]}, {**episode, "goals": 3}, [], None):
        with pytest.raises(KineflowError, match="an episode is not what Kineflow wrote there"):
            restored(broken, "an episode")
