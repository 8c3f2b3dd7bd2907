"""Store -> replay buffer -> store loses nothing; plain Zarr reads what the real ReplayBuffer asserts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from kineflow.config import save_config
from kineflow.contracts import CameraSpec, Episode, Goal, Interface, KineflowError, Span, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters import diffusion_policy_zarr
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.importers.source import ImportOptions
from kineflow.datasets.manifest import CameraRecord
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

NAME = "diffusion-policy-zarr"
DEEP = Interface(INTERFACE.features, INTERFACE.action, {**INTERFACE.cameras, "depth": CameraSpec(5, 4, 10.0, "depth")})


def rich_episode(number: int) -> Episode:
    plain = sample_episode(number, DEEP)
    start = int(plain.streams["action"].stamp_ns[0])
    goals = {
        "there": Goal("pose", np.float32([1, 2, 3, 0, 0, 0, 1]), "map"),
        "spot": Goal("point", np.float32([0.1, 2, 3]), "map"),
    }
    said = {
        "language": "en",
        "split": "train",
        "seed": number,
        "operator": "anna",
        "spans": (Span("go", start, start + 9, "de"),),
    }
    return replace(plain, goals=goals, **said)


def make_store(path: Path, policy: str = "auto", episodes: int = 5) -> EpisodeStore:
    store = EpisodeStore.create(path, DEEP, "sensor", "a robot", "CC0-1.0", {"front": CameraRecord(policy)})
    with store.writer(2) as writer:
        for number in range(episodes):
            writer.add(rich_episode(number))
    return store


@pytest.mark.parametrize("chunk_bytes", [1, 700, 2_000_000])
def test_nothing_is_lost_on_the_way_out_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(diffusion_policy_zarr, "CHUNK_BYTES", chunk_bytes)
    store, calls = make_store(tmp_path / "a.eps"), []
    report = export_data(NAME, store, tmp_path / "out.zarr", lambda done, total: calls.append((done, total)))
    assert calls == [(n, 5) for n in range(1, 6)]
    assert list(report.not_carried) == ["statistics"]
    back = import_data(NAME, tmp_path / "out.zarr", tmp_path / "b.eps")
    again = EpisodeStore.open(tmp_path / "b.eps")
    for index in range(5):
        assert_equal_episodes(again.episode(index), store.episode(index))
    assert (again.fingerprint(), again.interface) == (store.fingerprint(), store.interface)
    assert (again.manifest.cameras, again.manifest.licence) == (store.manifest.cameras, "CC0-1.0")
    assert (again.manifest.provenance, back.clock, back.not_carried) == ("a robot", "sensor", {})


def test_plain_zarr_reads_what_the_replay_buffer_asserts(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.eps")
    export_data(NAME, store, tmp_path / "out.zarr")
    root = zarr.open_group(tmp_path / "out.zarr", mode="r", zarr_format=2)
    data, ends = root["data"], root["meta/episode_ends"]
    assert isinstance(data, zarr.Group)
    assert isinstance(ends, zarr.Array)
    assert ends.dtype == np.int64
    np.testing.assert_array_equal(ends[:], np.cumsum(store.lengths))
    assert sorted(name for name, _ in data.arrays()) == ["action", "depth", "force", "front", "pose"]
    assert list(data.groups()) == []
    for name, array in data.arrays():
        assert array.shape[0] == ends[-1]
        assert array.chunks[1:] == array.shape[1:]  # only time is chunked
        whole = np.concatenate([store.episode(index).streams[name].values for index in range(5)])
        assert array.dtype == whole.dtype
        np.testing.assert_array_equal(array[:], whole)
    meta = root["meta"]
    assert isinstance(meta, zarr.Group)
    assert {name: array.shape for name, array in meta.members()} == {"episode_ends": (5,), "timestamp_ns": (int(ends[-1]),)}


def test_frames_of_jpeg_cameras_lose_nothing_more(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.eps", "jpeg:80")
    report = export_data(NAME, store, tmp_path / "out.zarr")
    assert "JPEG bytes of front" in report.not_carried
    import_data(NAME, tmp_path / "out.zarr", tmp_path / "b.eps")
    again = EpisodeStore.open(tmp_path / "b.eps")
    for index in range(5):
        assert_equal_episodes(again.episode(index), store.episode(index))


def test_pusht_goes_out_as_it_came(tmp_path: Path) -> None:
    root = zarr.open_group(zarr.storage.ZipStore(demo_data(), mode="r"), mode="r", zarr_format=2)
    ends = root["meta/episode_ends"]
    assert isinstance(ends, zarr.Array)
    small = zarr.open_group(tmp_path / "small.zarr", mode="w", zarr_format=2)
    rows = int(np.asarray(ends[:])[2])
    for name in ("img", "state", "action", "keypoint", "n_contacts"):
        array = root[f"data/{name}"]
        assert isinstance(array, zarr.Array)
        small.create_array(f"data/{name}", data=np.asarray(array[:rows]))
    small.create_array("meta/episode_ends", data=np.asarray(ends[:3]))
    import_data(NAME, tmp_path / "small.zarr", tmp_path / "a.eps")
    store = EpisodeStore.open(tmp_path / "a.eps")
    export_data(NAME, store, tmp_path / "out.zarr")
    out = zarr.open_group(tmp_path / "out.zarr", mode="r", zarr_format=2)
    for name in ("img", "state", "action", "keypoint", "n_contacts"):
        found, expected = out[f"data/{name}"], small[f"data/{name}"]
        assert isinstance(found, zarr.Array)
        assert isinstance(expected, zarr.Array)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[:], expected[:])
    import_data(NAME, tmp_path / "out.zarr", tmp_path / "b.eps")
    assert EpisodeStore.open(tmp_path / "b.eps").fingerprint() == store.fingerprint()


def test_what_the_format_has_no_place_for_is_named_or_refused(tmp_path: Path) -> None:
    picture = Goal("image", np.zeros((2, 2, 3), np.uint8), "front")
    store = make_store(tmp_path / "a.eps", episodes=1)
    with store.writer() as writer:
        writer.add(replace(rich_episode(1), goals={"photo": picture}))
    assert "goal photo" in export_data(NAME, store, tmp_path / "out.zarr").not_carried
    late = rich_episode(2)
    force = late.streams["force"]
    with store.writer() as writer:
        writer.add(replace(late, streams={**late.streams, "force": Stream(force.values, force.stamp_ns + 1)}))
    with pytest.raises(KineflowError, match=r"\['force'\] have clocks of their own.*data resample"):
        export_data(NAME, store, tmp_path / "late.zarr")
    assert not (tmp_path / "late.zarr").exists()


def test_what_others_changed_since_is_not_described_by_what_we_wrote(tmp_path: Path) -> None:
    export_data(NAME, make_store(tmp_path / "a.eps"), tmp_path / "out.zarr")
    root = zarr.open_group(tmp_path / "out.zarr", mode="a", zarr_format=2)
    ends = np.asarray(root["meta/episode_ends"][:])  # type: ignore[index]
    root.create_array("meta/episode_ends", data=ends[:-1], overwrite=True)
    report = import_data(NAME, tmp_path / "out.zarr", tmp_path / "b.eps")
    assert (report.episodes, report.clock) == (4, "nominal_10hz")
    root.create_array("meta/episode_ends", data=ends, overwrite=True)
    save_config(INTERFACE, tmp_path / "schema.yaml")  # the user's schema goes before ours
    report = import_data(NAME, tmp_path / "out.zarr", tmp_path / "c.eps", ImportOptions(tmp_path / "schema.yaml"))
    assert report.clock == "nominal_10hz"
    root.attrs["kineflow"] = 3
    with pytest.raises(KineflowError, match="not as exported; remove the attribute"):
        import_data(NAME, tmp_path / "out.zarr", tmp_path / "d.eps")
