"""The shipped PushT demonstrations, value by value, and replay buffers of other robots and of the careless."""

from __future__ import annotations

import json
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import zarr

from kineflow.config import ConfigError, load_config, save_config
from kineflow.contracts import Interface, KineflowError, interface_differences
from kineflow.datasets.convert import ImportReport, import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions
from tests.datasets.sample_episodes import LOW_DIM

ENDS = [4, 5, 11]


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, ImportReport, list[tuple[int, int]], float]:
    path, calls, began = tmp_path_factory.mktemp("pusht") / "pusht.eps", [], time.process_time()
    report = import_data("diffusion-policy-zarr", demo_data(), path, progress=lambda done, total: calls.append((done, total)))
    return EpisodeStore.open(path), report, calls, time.process_time() - began


@pytest.fixture(scope="module")
def source() -> Mapping[str, np.ndarray]:
    root = zarr.open_group(zarr.storage.ZipStore(demo_data(), mode="r"), mode="r", zarr_format=2)
    data = root["data"]
    assert isinstance(data, zarr.Group)
    ends = root["meta/episode_ends"]
    assert isinstance(ends, zarr.Array)
    return {"ends": np.asarray(ends[:]), **{name: np.asarray(array[:]) for name, array in data.arrays()}}


class TestPushT:
    def test_every_number_equals_the_source(self, pusht: tuple[EpisodeStore, ...], source: Mapping[str, np.ndarray]) -> None:
        store = pusht[0]
        assert store.num_episodes == 206
        assert store.lengths.sum() == 25_650
        np.testing.assert_array_equal(np.cumsum(store.lengths), source["ends"])
        for name in ("state", "action", "keypoint", "n_contacts"):
            np.testing.assert_array_equal(store.low_dim(name), source[name].reshape(25_650, -1))

    def test_every_frame_equals_the_source(self, pusht: tuple[EpisodeStore, ...], source: Mapping[str, np.ndarray]) -> None:
        store, start = pusht[0], 0
        for number, end in enumerate(source["ends"].tolist()):
            episode = store.episode(number)
            np.testing.assert_array_equal(episode.streams["top"].values, source["img"][start:end])
            np.testing.assert_array_equal(episode.streams["top"].stamp_ns, np.arange(end - start) * 100_000_000)
            start = end

    def test_the_interface_is_the_one_of_the_simulator(self, pusht: tuple[EpisodeStore, ...]) -> None:
        shared, found = load_config(Interface, "interfaces/pusht"), pusht[0].interface
        assert list(interface_differences(shared, found)) == []
        assert (found.action, found.cameras, found.features["state"]) == (shared.action, shared.cameras, shared.features["state"])
        assert sorted(found.features) == ["keypoint", "n_contacts", "state"]

    def test_all_values_are_within_the_limits(self, pusht: tuple[EpisodeStore, ...]) -> None:
        assert check_store(pusht[0].path) == []

    def test_the_angle_limit_holds_any_float32_modulo_two_pi(self, pusht: tuple[EpisodeStore, ...]) -> None:
        high = pusht[0].interface.features["state"].vector.high[4]
        assert float(np.float32(2 * np.pi)) <= high < 2 * np.pi + 1e-5

    def test_small_and_fast(self, pusht: tuple[EpisodeStore, ImportReport, object, float]) -> None:
        store, report, _, cpu_s = pusht
        size = sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())
        assert size == report.bytes < 25e6
        assert cpu_s < 20  # 6 s measured; CPU time, because the machine may be shared

    def test_report_and_progress(self, pusht: tuple[EpisodeStore, ImportReport, list[tuple[int, int]], float]) -> None:
        _, report, calls, _ = pusht
        assert calls == [(done, 206) for done in range(1, 207)]
        assert (report.episodes, report.steps, report.clock, report.not_carried) == (206, 25_650, "nominal_10hz", {})
        assert sorted(report.carried) == ["action", "keypoint", "n_contacts", "state", "top"]
        assert pusht[0].episode(3).clock == pusht[0].manifest.clock == "nominal_10hz"
        assert pusht[0].episode(3).source == "pusht_cchi_v7_replay.zarr.zip#3"

    def test_the_licence_is_shipped(self) -> None:
        text = demo_data().with_name("README.md").read_text()
        assert "MIT License" in text
        assert "Columbia Artificial Intelligence and Robotics Lab" in text


def write_buffer(path: Path, ends: list[int] = ENDS, chunk: int = 3, **arrays: np.ndarray) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, values in {"data/action": np.arange(22, dtype=np.float32).reshape(11, 2), **arrays}.items():
        chunks, whole = (chunk, *values.shape[1:]), {"write_empty_chunks": True}  # as Zarr 2 does
        root.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, config=whole)[...] = values
    root.create_array("meta/episode_ends", data=np.array(ends, np.int64))
    return path


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("inside", [None, "", "nested/folder/"])
def test_unknown_buffers_are_imported_by_shape(tmp_path: Path, chunk: int, inside: str | None) -> None:
    rng = np.random.default_rng(0)
    pose, frames = rng.random((11, 2, 2)), rng.integers(0, 256, (11, 4, 6, 3)).astype(np.float32)
    path = write_buffer(
        tmp_path / "buffer", chunk=chunk, **{"data/pose": pose, "data/wrist": frames, "data/phase": np.arange(11)}
    )
    if inside is not None:
        with zipfile.ZipFile(tmp_path / "buffer.zip", "w") as archive:
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                archive.write(file, inside + file.relative_to(path).as_posix())
        path = tmp_path / "buffer.zip"
    report = import_data("diffusion-policy-zarr", path, tmp_path / "s.eps", ImportOptions(rate_hz=20.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [4, 1, 6]
    assert store.interface.features["pose"].vector.names == ("dim_0", "dim_1", "dim_2", "dim_3")
    assert (store.interface.action.rate_hz, report.clock) == (20.0, "nominal_20hz")
    np.testing.assert_array_equal(store.low_dim("pose"), pose.reshape(11, 4).astype(np.float32))
    np.testing.assert_array_equal(store.low_dim("phase")[:, 0], np.arange(11))
    np.testing.assert_array_equal(np.concatenate([store.episode(i).streams["wrist"].values for i in range(3)]), frames)
    assert np.diff(store.episode(2).streams["action"].stamp_ns).tolist() == [50_000_000] * 5
    assert check_store(store.path) == []


def test_a_schema_says_names_and_selects(tmp_path: Path) -> None:
    source = write_buffer(
        tmp_path / "b", **{"data/pose": np.zeros((11, 3), "f4"), "data/force": np.zeros((11, 1), "f4"), "data/x": np.zeros(11)}
    )
    save_config(LOW_DIM, robot := tmp_path / "robot.yaml")
    report = import_data("diffusion-policy-zarr", source, tmp_path / "s.eps", ImportOptions(robot, licence="CC0-1.0"))
    assert EpisodeStore.open(tmp_path / "s.eps").interface == LOW_DIM
    assert list(report.not_carried) == ["data/x"]
    assert "not in the schema" in report.not_carried["data/x"]
    assert EpisodeStore.open(tmp_path / "s.eps").manifest.licence == "CC0-1.0"


def test_a_schema_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_config(LOW_DIM, robot := tmp_path / "robot.yaml")
    with pytest.raises(KineflowError, match=r"schema has stream 'pose', the source only the buffers \['action'\]"):
        import_data("diffusion-policy-zarr", write_buffer(tmp_path / "a"), tmp_path / "s.eps", ImportOptions(robot))
    wide = write_buffer(tmp_path / "b", **{"data/pose": np.zeros((11, 4), "f4"), "data/force": np.zeros((11, 1), "f4")})
    with pytest.raises(KineflowError, match=r"'pose' has shape \[3\] a step, the source has \[4\]"):
        import_data("diffusion-policy-zarr", wide, tmp_path / "s.eps", ImportOptions(robot))
    with pytest.raises(ConfigError, match="no configuration"):
        import_data("diffusion-policy-zarr", wide, tmp_path / "s.eps", ImportOptions(tmp_path / "missing.yaml"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "robot.yaml"]


def test_what_cannot_be_carried_is_reported(tmp_path: Path) -> None:
    source = write_buffer(tmp_path / "b", ends=[4, 9], **{"data/note": np.full(11, b"hi", "S2")})
    report = import_data("diffusion-policy-zarr", source, tmp_path / "s.eps")
    assert "data/note" in report.not_carried
    assert report.not_carried["rows after the last episode"] == "2 rows belong to no episode"
    assert report.steps == 9


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    source = write_buffer(tmp_path / "b")
    array = json.loads((source / "data/action/.zarray").read_text())
    (source / "data/action/.zarray").write_text(json.dumps({**array, "dtype": "|O", "filters": [{"id": "pickle"}]}))
    with pytest.raises(KineflowError, match=r"b: a buffer of data/ is of a type that is not read .*pickle.*remove it"):
        import_data("diffusion-policy-zarr", source, tmp_path / "s.eps")


def test_nan_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    pose = np.zeros((11, 3), np.float32)
    pose[6, 1] = np.nan
    source = write_buffer(tmp_path / "b", **{"data/pose": pose})
    with pytest.raises(KineflowError, match=r"episode 2 \(b#2\), stream 'pose', step 1, dimension 1: value nan"):
        import_data("diffusion-policy-zarr", source, tmp_path / "s.eps")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_frames_that_are_not_whole_numbers_are_refused(tmp_path: Path) -> None:
    for number, value in enumerate((0.5, -1.0, 256.0)):
        frames = np.zeros((11, 4, 4, 3), np.float32)
        frames[5] = value
        source = write_buffer(tmp_path / f"b{number}", **{"data/cam": frames})
        with pytest.raises(KineflowError, match=r"episode 2: frames of 'cam' .* not whole numbers"):
            import_data("diffusion-policy-zarr", source, tmp_path / "s.eps")


@pytest.mark.parametrize("ends", [[], [0, 11], [4, 4, 11], [5, 4, 11], [4, 12]])
def test_impossible_episode_ends_are_refused(tmp_path: Path, ends: list[int]) -> None:
    with pytest.raises(KineflowError, match=r"must increase from above 0|the source is incomplete"):
        import_data("diffusion-policy-zarr", write_buffer(tmp_path / "b", ends=ends), tmp_path / "s.eps")


def test_other_sources_and_taken_destinations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.zip").write_text("not a zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    zarr.open_group(tmp_path / "noaction", mode="w", zarr_format=2).create_array("meta/episode_ends", data=np.array([1]))
    zarr.open_group(tmp_path / "noaction", mode="a", zarr_format=2).create_array("data/state", data=np.zeros((1, 1)))
    for name, message in {
        "nowhere": "does not exist",
        "folder": "not a diffusion-policy replay buffer",
        "text.zip": "not a diffusion-policy replay buffer",
        "other.zip": "no meta/episode_ends",
        "noaction": "no buffer data/action",
    }.items():
        with pytest.raises(KineflowError, match=message):
            import_data("diffusion-policy-zarr", tmp_path / name, tmp_path / "s.eps")
    with pytest.raises(KineflowError, match="exists already"):
        import_data("diffusion-policy-zarr", demo_data(), tmp_path / "folder")


def test_demo_data_opens_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with zipfile.ZipFile(demo_data()) as archive:
            assert archive.testzip() is None
            assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
