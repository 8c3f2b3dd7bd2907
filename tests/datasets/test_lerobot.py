"""LeRobot in and out on small data: lossless round trips, files read by pyarrow and PIL, foreign quirks, damage."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from kineflow.config import save_config
from kineflow.contracts import CameraSpec, Episode, Interface, KineflowError, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.lerobot_stats import FrameCounts, sampled, vector_stats
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.importers.lerobot import open_lerobot, stream_name
from kineflow.datasets.importers.source import ImportOptions
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

IMAGES = ("lerobot-v3", "lerobot-v2.1")
VIDEOS = ("lerobot-v3-video", "lerobot-v2.1-video")
LENGTHS = (5, 3, 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Three episodes with jittering sensor clocks."""
    made = EpisodeStore.create(tmp_path_factory.mktemp("store") / "s.eps", INTERFACE, provenance="bench", licence="CC0-1.0")
    with made.writer(3) as writer:
        for number, length in enumerate(LENGTHS):
            writer.add(sample_episode(number, length=length))
    return made


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Two episodes of smooth 32 x 48 frames at a nominal 10 Hz: what a video encoder does well on."""
    interface = Interface(INTERFACE.features, INTERFACE.action, {"front": CameraSpec(32, 48, 10.0)})
    made = EpisodeStore.create(tmp_path_factory.mktemp("films") / "s.eps", interface, "nominal_10hz")
    y, x = np.mgrid[:32, :48]
    with made.writer(2) as writer:
        for number, length in enumerate((7, 5)):
            t = np.arange(length)[:, None, None]
            base = 128 + 60 * np.sin((x + 3 * t) / 9) + 50 * np.cos((y - 2 * t + 20 * number) / 7)
            frames = np.stack([base, base[:, ::-1], base * 0.5 + 30], -1).astype(np.uint8)
            stamps = np.arange(length) * 100_000_000
            flat = sample_episode(number, LOW_DIM, length).streams
            streams = {name: Stream(stream.values, stamps) for name, stream in flat.items()}
            writer.add(Episode({**streams, "front": Stream(frames, stamps)}, clock="nominal_10hz"))
    return made


@pytest.mark.parametrize("form", IMAGES)
def test_pictures_go_out_and_come_back_to_the_bit(store: EpisodeStore, tmp_path: Path, form: str) -> None:
    calls: list[tuple[int, int]] = []
    report = export_data(form, store, tmp_path / "out", lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (report.episodes, report.steps) == (3, sum(LENGTHS))
    assert "kineflow.stamp_ns" in report.not_carried["clock"]
    import_data("lerobot", tmp_path / "out", tmp_path / "back.eps")
    back = EpisodeStore.open(tmp_path / "back.eps")
    assert back.fingerprint() == store.fingerprint()
    for number in range(3):
        assert_equal_episodes(back.episode(number), store.episode(number))
    assert (back.manifest.clock, back.manifest.licence, back.manifest.provenance) == ("sensor", "CC0-1.0", "bench")


def test_v3_files_as_others_read_them(store: EpisodeStore, tmp_path: Path) -> None:
    root = tmp_path / "out"
    export_data("lerobot-v3", store, root)
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    assert pq.ParquetFile(root / "data" / "chunk-000" / "file-000.parquet").num_row_groups == 3
    for stream, key in (("pose", "observation.pose"), ("action", "action")):
        np.testing.assert_array_equal(np.array(table[key].to_pylist(), np.float32), store.low_dim(stream))
    assert table.schema.field("observation.pose").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("observation.force").type == pa.float32()
    frames = np.concatenate([store.episode(i).streams["front"].values for i in range(3)])
    for row, entry in enumerate(table["observation.images.front"].to_pylist()):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(entry["bytes"]))), frames[row])
    steps = np.concatenate([np.arange(n) for n in LENGTHS])
    np.testing.assert_array_equal(table["timestamp"].to_numpy(), (steps / 10).astype(np.float32))
    np.testing.assert_array_equal(table["frame_index"].to_numpy(), steps)
    np.testing.assert_array_equal(table["index"].to_numpy(), np.arange(17))
    np.testing.assert_array_equal(table["episode_index"].to_numpy(), np.repeat([0, 1, 2], LENGTHS))
    stamps = np.concatenate([store.episode(i).streams["action"].stamp_ns for i in range(3)])
    np.testing.assert_array_equal(table["kineflow.stamp_ns"].to_numpy(), stamps)
    episodes = pq.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [(0, 5), (5, 8), (8, 17)]
    assert [e["tasks"] for e in episodes] == [[""], ["open the door"], ["wait"]]
    tasks = pq.read_table(root / "meta" / "tasks.parquet")
    assert dict(zip(tasks["task"].to_pylist(), tasks["task_index"].to_pylist())) == {"": 0, "open the door": 1, "wait": 2}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    info = json.loads((root / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"], info["splits"]) == ("v3.0", 10, 17, {"train": "0:3"})
    assert info["features"]["observation.pose"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "yaw"]}


def test_statistics_are_those_of_the_values(store: EpisodeStore, tmp_path: Path) -> None:
    export_data("lerobot-v3", store, tmp_path / "v3")
    export_data("lerobot-v2.1", store, tmp_path / "v2")
    stats = json.loads((tmp_path / "v3" / "meta" / "stats.json").read_text())
    pose = store.low_dim("pose").astype(np.float64)
    for name, expected in {
        "mean": pose.mean(0),
        "std": pose.std(0),
        "min": pose.min(0),
        "q90": np.quantile(pose, 0.9, 0),
    }.items():
        np.testing.assert_allclose(stats["observation.pose"][name], expected, rtol=1e-12)
    frames = np.concatenate([store.episode(i).streams["front"].values for i in range(3)]) / 255
    image = stats["observation.images.front"]
    assert (image["count"], np.shape(image["mean"])) == ([17], (3, 1, 1))
    np.testing.assert_allclose(np.ravel(image["mean"]), frames.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(image["std"]), frames.std((0, 1, 2)), rtol=1e-12)
    lines = [json.loads(line) for line in (tmp_path / "v2" / "meta" / "episodes_stats.jsonl").read_text().splitlines()]
    first = store.episode(0).streams["pose"].values.astype(np.float64)
    np.testing.assert_allclose(lines[0]["stats"]["observation.pose"]["std"], first.std(0), rtol=1e-12)
    assert sorted(lines[0]["stats"]["action"]) == ["count", "max", "mean", "min", "std"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_histograms_give_the_exact_quantiles(count: int, size: int, seed: int, depth: bool) -> None:
    rng = np.random.default_rng(seed)
    shape, high = ((count, size, size + 1), 5000) if depth else ((count, size, size + 1, 3), 256)
    frames = rng.integers(0, high, shape, np.uint16 if depth else np.uint8)
    flat = frames.reshape(-1, 1 if depth else 3)
    found, expected = FrameCounts(frames).stats(), vector_stats(flat if depth else flat / 255)
    for name, value in expected.items():
        if name != "count":
            np.testing.assert_allclose(np.ravel(found[name]), value, rtol=1e-9, atol=1e-12)


def test_sampling_follows_lerobot() -> None:
    # Table in the comment of lerobot's own rule: frames of an episode -> frames looked at.
    assert [len(sampled(n)) for n in (1, 60, 100, 500, 1000, 2000, 20_000)] == [1, 60, 100, 105, 177, 299, 1681]
    assert sampled(500)[[0, -1]].tolist() == [0, 499]
    assert FrameCounts(np.zeros((1, 300, 400, 3), np.uint8)).histogram[0, 0] == 150 * 200


@pytest.mark.parametrize("form", VIDEOS)
def test_video_keeps_numbers_and_says_that_pixels_are_lossy(films: EpisodeStore, tmp_path: Path, form: str) -> None:
    report = export_data(form, films, tmp_path / "out")
    assert "lossy" in report.not_carried["pixels of front"]
    source = open_lerobot(tmp_path / "out", ImportOptions())
    assert "lossy" in source.facts.carried["front"]
    in_order = [source.episode(i) for i in range(2)]
    for number, found in enumerate(in_order):
        expected = films.episode(number)
        np.testing.assert_array_equal(found.streams["pose"].values, expected.streams["pose"].values)
        np.testing.assert_array_equal(found.streams["front"].stamp_ns, expected.streams["front"].stamp_ns)
        error = found.streams["front"].values.astype(float) - expected.streams["front"].values
        assert np.abs(error).mean() < 6  # chroma is at half resolution; a frame off by one is at 15
    for number in (1, 0, 1):
        np.testing.assert_array_equal(source.episode(number).streams["front"].values, in_order[number].streams["front"].values)


def test_each_file_is_opened_and_decoded_once(films: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_data("lerobot-v3-video", films, tmp_path / "out")
    data = tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(data), data)  # as others write it: all episodes in one row group
    calls, open_video, read_rows = [], av.open, pq.ParquetFile.read_row_groups
    monkeypatch.setattr(av, "open", lambda *args: calls.append("video") or open_video(*args))
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda *args: calls.append("rows") or read_rows(*args))
    source = open_lerobot(tmp_path / "out", ImportOptions())
    for number in range(2):
        np.testing.assert_array_equal(
            source.episode(number).streams["action"].values, films.episode(number).streams["action"].values
        )
    assert sorted(calls) == ["rows", "video"]


def test_large_files_are_split(films: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kineflow.datasets.exporters.lerobot_files.MAX_DATA_BYTES", 1)
    monkeypatch.setattr("kineflow.datasets.exporters.lerobot_files.MAX_VIDEO_BYTES", 1)
    for form, pattern in (("lerobot-v3", "data/*/*.parquet"), ("lerobot-v3-video", "videos/*/*/*.mp4")):
        export_data(form, films, tmp_path / form)
        assert len(list((tmp_path / form).glob(pattern))) == 2
        source = open_lerobot(tmp_path / form, ImportOptions())
        np.testing.assert_array_equal(source.episode(1).streams["pose"].values, films.episode(1).streams["pose"].values)


def test_what_the_format_cannot_hold_is_refused(store: EpisodeStore, tmp_path: Path) -> None:
    odd = Interface(INTERFACE.features, INTERFACE.action, {"front": CameraSpec(5, 8, 10.0)})
    with EpisodeStore.create(tmp_path / "odd.eps", odd).writer() as writer:
        writer.add(sample_episode(0, odd))
    with pytest.raises(KineflowError, match=r"camera 'front' is 8 x 5: video needs even sizes"):
        export_data("lerobot-v3-video", EpisodeStore.open(tmp_path / "odd.eps"), tmp_path / "out")
    episode = sample_episode(0, LOW_DIM)
    late = Stream(episode.streams["force"].values, episode.streams["force"].stamp_ns + 1)
    with EpisodeStore.create(tmp_path / "two.eps", LOW_DIM).writer() as writer:
        writer.add(Episode({**episode.streams, "force": late}))
    with pytest.raises(KineflowError, match="force have clocks of their own"):
        export_data("lerobot-v3", EpisodeStore.open(tmp_path / "two.eps"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_clock_called_nominal_that_is_not_keeps_its_stamps(tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "s.eps", LOW_DIM, "nominal_10hz").writer() as writer:
        writer.add(sample_episode(4, LOW_DIM))
    export_data("lerobot-v3", EpisodeStore.open(tmp_path / "s.eps"), tmp_path / "out")
    found = open_lerobot(tmp_path / "out", ImportOptions()).episode(0)
    np.testing.assert_array_equal(found.streams["action"].stamp_ns, sample_episode(4).streams["action"].stamp_ns)


# Data of others: written here with pyarrow and av only, to the layout of lerobot v2.0.


def foreign(root: Path, change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda features, columns: None) -> Path:
    """One episode of 6 steps at 10 Hz in folder `root`; `change` edits features and columns before they are written."""
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float64", "shape": [2], "names": {"motors": ["hip", "knee"]}},
        "action": {"dtype": "float32", "shape": [2], "names": ["hip", "hip"]},
        "observation.images.wrist": {"dtype": "video", "shape": [3, 16, 16], "names": ["channels", "height", "width"]},
        "observation.grid": {"dtype": "int64", "shape": [2, 2], "names": None},
        "note": {"dtype": "string", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    columns: dict[str, Any] = {
        "observation.state": pa.array([[0.1 * i, -1.0 * i] for i in range(6)], pa.list_(pa.float64())),
        "action": pa.array([[i, i + 1] for i in range(6)], pa.list_(pa.float32())),
        "observation.grid": pa.array([[[i, 1], [2, 3]] for i in range(6)], pa.list_(pa.list_(pa.int64()))),
        "note": pa.array(["x"] * 6),
        "next.done": pa.array([False] * 5 + [True]),
        "timestamp": pa.array((np.arange(6) / 10).astype(np.float32)),
        "episode_index": pa.array([0] * 6),
        "task_index": pa.array([3] * 6),
    }
    change(features, columns)
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "data" / "chunk-000" / "episode_000000.parquet")
    info = {
        "codebase_version": "v2.0",
        "robot_type": "leg",
        "fps": 10,
        "features": features,
        "chunks_size": 1000,
        "splits": {"test": "0:1"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["kick"], "length": 6}\n')
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 3, "task": "kick"}\n{"task_index": 4, "task": "rest"}\n')
    film(root / "videos" / "chunk-000" / "observation.images.wrist" / "episode_000000.mp4", 6)
    return root


def film(path: Path, frames: int, rate: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 30 * number + 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_data_of_others(tmp_path: Path) -> None:
    source = open_lerobot(foreign(tmp_path / "leg"), ImportOptions())
    facts, episode = source.facts, source.episode(0)
    assert (facts.clock, facts.provenance) == ("nominal_10hz", "leg (LeRobot v2.0 of a leg)")
    assert facts.interface.features["state"].vector.names == ("hip", "knee")
    assert facts.interface.action.vector.names == ("dim_0", "dim_1")  # "hip" twice names nothing
    assert set(facts.interface.action.vector.units) == {"unknown"}
    assert "unknown" in facts.not_carried["units"]
    assert facts.not_carried["note"] == "string values have no place in a stream"
    assert "float32" in facts.not_carried["digits of observation.state"]
    assert {"next.done", "clock"} <= facts.not_carried.keys()
    assert (episode.instruction, episode.split, episode.source, episode.success, episode.spans) == (
        "kick",
        "test",
        "leg#0",
        None,
        (),
    )
    np.testing.assert_array_equal(episode.streams["grid"].values, [[i, 1, 2, 3] for i in range(6)])
    np.testing.assert_allclose(episode.streams["state"].values[:, 0], 0.1 * np.arange(6))
    assert episode.streams["action"].stamp_ns.tolist() == [100_000_000 * i for i in range(6)]
    means = episode.streams["wrist"].values.mean((1, 2, 3))
    np.testing.assert_allclose(means, 30 * np.arange(6) + 20, atol=3)
    import_data("lerobot", tmp_path / "leg", tmp_path / "s.eps")


def test_tasks_that_change_become_spans_and_success_is_told(tmp_path: Path) -> None:
    def change(features: dict[str, Any], columns: dict[str, Any]) -> None:
        columns["task_index"] = pa.array([3, 3, 4, 4, 4, 4])
        features["annotation.human.quality"] = {"dtype": "int64", "shape": [1]}
        columns["annotation.human.quality"] = pa.array([3] * 6)
        features["next.success"] = {"dtype": "bool", "shape": [1]}
        columns["next.success"] = pa.array([False] * 5 + [True])
        columns["timestamp"] = pa.array(np.array([0, 0.1, 0.21, 0.3, 0.4, 0.52], np.float32))

    episode = open_lerobot(foreign(tmp_path / "d", change), ImportOptions()).episode(0)
    assert (episode.instruction, episode.success, episode.clock) == ("rest", True, "sensor")
    stamps = episode.streams["action"].stamp_ns
    assert stamps[2] == round(float(np.float32(0.21)) * 1e9)
    spans = [(s.text, s.start_ns, s.stop_ns) for s in episode.spans]
    assert spans == [("kick", 0, stamps[2]), ("kick", 0, stamps[5] + 10**8), ("rest", stamps[2], stamps[5] + 10**8)]


def test_jpeg_bytes_are_passed_through(tmp_path: Path) -> None:
    rng, buffers = np.random.default_rng(0), []
    for _ in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer := io.BytesIO(), "JPEG")
        buffers.append(buffer.getvalue())

    def change(features: dict[str, Any], columns: dict[str, Any]) -> None:
        del features["observation.images.wrist"]
        features["observation.image"] = {"dtype": "image", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
        entries = [{"bytes": data, "path": None} for data in buffers[:-1]] + [{"bytes": None, "path": "images/last.jpg"}]
        columns["observation.image"] = pa.array(entries)

    root = foreign(tmp_path / "d", change)
    (root / "images").mkdir()
    (root / "images" / "last.jpg").write_bytes(buffers[-1])
    episode = open_lerobot(root, ImportOptions()).episode(0)
    assert list(episode.jpeg["image"]) == buffers
    np.testing.assert_array_equal(episode.streams["image"].values[2], np.asarray(Image.open(io.BytesIO(buffers[2]))))


def test_a_schema_says_units_and_selects(tmp_path: Path) -> None:
    root = foreign(tmp_path / "d")
    offered = open_lerobot(root, ImportOptions()).facts.interface
    save_config(Interface({"state": offered.features["state"]}, offered.action), tmp_path / "robot.yaml")
    source = open_lerobot(root, ImportOptions(tmp_path / "robot.yaml"))
    assert sorted(source.episode(0).streams) == ["action", "state"]
    assert source.facts.not_carried["observation.images.wrist"] == "the schema leaves it out"
    save_config(LOW_DIM, tmp_path / "other.yaml")
    with pytest.raises(KineflowError, match="feature 'pose'"):
        open_lerobot(root, ImportOptions(tmp_path / "other.yaml"))
    with pytest.raises(KineflowError, match="recorded at 10 Hz, not 5 Hz"):
        open_lerobot(root, ImportOptions(rate_hz=5.0))


def test_streams_changed_by_others_lose_our_names_not_their_values(store: EpisodeStore, tmp_path: Path) -> None:
    export_data("lerobot-v3", store, tmp_path / "out")
    file = tmp_path / "out" / "meta" / "info.json"
    info = json.loads(file.read_text())
    del info["features"]["observation.force"]
    file.write_text(json.dumps(info))
    source = open_lerobot(tmp_path / "out", ImportOptions())
    assert "changed" in source.facts.not_carried["meta/kineflow.json"]
    assert source.facts.interface.features["pose"].vector.units == ("unknown",) * 3
    assert sorted(source.episode(0).streams) == ["action", "front", "pose"]


def test_a_camera_without_any_file_was_never_recorded(tmp_path: Path) -> None:
    root = foreign(tmp_path / "d")
    shutil.rmtree(root / "videos")
    assert "no video" in open_lerobot(root, ImportOptions()).facts.not_carried["observation.images.wrist"]


def test_stream_names_are_short_allowed_and_unique() -> None:
    keys = ["observation.state", "observation.images.state", "a/b.c", "7", "observation.action", "foo_timestamp", "next.reward"]
    taken: dict[str, object] = {}
    for key in keys:
        taken[stream_name(key, taken)] = key
    assert list(taken) == ["state", "observation_images_state", "a_b_c", "x_7", "observation_action", "foo_timestamp_5", "reward"]


def rewrite(file: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(file)), file)


DATA, FILM = "data/chunk-000/episode_000000.parquet", "videos/chunk-000/observation.images.wrist/episode_000000.mp4"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated parquet": (lambda r: (r / DATA).write_bytes((r / DATA).read_bytes()[:-30]), r"episode 0.*damaged or not whole"),
    "missing parquet": (lambda r: (r / DATA).unlink(), r"episode 0: .*parquet is missing"),
    "fewer rows": (lambda r: rewrite(r / DATA, lambda t: t.slice(0, 5)), r"episode 0: 5 rows, the metadata say 6"),
    "lost column": (lambda r: rewrite(r / DATA, lambda t: t.drop_columns(["action"])), r"no column action"),
    "unknown task": (
        lambda r: rewrite(r / DATA, lambda t: t.set_column(t.column_names.index("task_index"), "task_index", pa.array([9] * 6))),
        r"task_index 9 is not in meta/tasks",
    ),
    "empty value": (
        lambda r: rewrite(r / DATA, lambda t: t.set_column(1, "action", pa.array([[1.0, None]] * 6, pa.list_(pa.float32())))),
        r"'action': 6 values are empty",
    ),
    "missing mp4": (
        lambda r: (r / FILM).rename((r / FILM).with_name("other.mp4")),
        r"'observation.images.wrist'.*episode_000000.mp4 is missing",
    ),
    "fewer frames": (lambda r: film(r / FILM, 5), r"holds 5 frames, the rows are 6"),
    "more frames": (lambda r: film(r / FILM, 7), r"holds 7 frames, the rows are 6"),
    "another rate": (lambda r: film(r / FILM, 6, rate=20), r"frame 2 of .* is at 0.1\d* s, row 2 at 0.2"),
    "truncated mp4": (lambda r: (r / FILM).write_bytes((r / FILM).read_bytes()[:700]), r"cannot be decoded"),
    "not a video": (lambda r: (r / FILM).write_bytes(b"hello" * 99), r"cannot be decoded"),
    "info not JSON": (lambda r: (r / "meta/info.json").write_text("{"), r"info.json: cannot be read as JSON"),
    "version 1": (lambda r: edit_info(r, codebase_version="v1.6"), r"'v1.6', known are v2.0, v2.1, v3.0; convert"),
    "no fps": (lambda r: edit_info(r, fps=0), r"fps 0"),
    "path outside": (lambda r: edit_info(r, data_path="../{episode_index}.parquet"), r"leads out of the data set"),
    "path unknown": (lambda r: edit_info(r, data_path="{nothing}"), r"cannot be filled in"),
    "no info": (lambda r: (r / "meta/info.json").unlink(), r"not a LeRobot data set"),
    "odd split": (lambda r: edit_info(r, splits={"train": "all"}), r"split 'train' is 'all'"),
    "episode line": (lambda r: (r / "meta/episodes.jsonl").write_text('{"episode_index": 0}'), r"line 1: no length"),
    "no episodes": (lambda r: (r / "meta/episodes.jsonl").write_text(""), r"lists no episodes"),
    "empty episode": (lambda r: (r / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 0}'), r"has length 0"),
}


def edit_info(root: Path, **change: Any) -> None:
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, **change}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    break_it, message = DAMAGE[damage]
    break_it(foreign(tmp_path / "d"))
    with pytest.raises(KineflowError, match=message):
        import_data("lerobot", tmp_path / "d", tmp_path / "s.eps")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_flipped_bits_of_our_export_are_found(store: EpisodeStore, tmp_path: Path) -> None:
    export_data("lerobot-v3", store, tmp_path / "out")
    file, rng = tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet", np.random.default_rng(3)
    whole, group = file.read_bytes(), pq.ParquetFile(file).metadata.row_group(2)
    columns = [group.column(number) for number in range(group.num_columns)]
    pose = next(c for c in columns if c.path_in_schema.startswith("observation.pose"))  # numbers, which nothing else protects
    first = pose.dictionary_page_offset + 30  # behind the header of the page
    source = open_lerobot(tmp_path / "out", ImportOptions())
    np.testing.assert_array_equal(source.episode(2).streams["pose"].values, store.episode(2).streams["pose"].values)
    for position in range(first, first + 60, 3):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << int(rng.integers(8))]) + whole[position + 1 :])
        with pytest.raises(KineflowError, match="episode 2"):
            open_lerobot(tmp_path / "out", ImportOptions()).episode(2)


def test_damaged_pictures_and_metadata_of_v3(store: EpisodeStore, tmp_path: Path) -> None:
    root = tmp_path / "out"
    export_data("lerobot-v3", store, root)
    data, key = root / "data" / "chunk-000" / "file-000.parquet", "observation.images.front"

    def broken(table: pa.Table) -> pa.Table:
        entries = table[key].to_pylist()
        entries[6]["bytes"] = entries[6]["bytes"][:90]
        return table.set_column(table.column_names.index(key), key, pa.array(entries, table.schema.field(key).type))

    whole = data.read_bytes()
    rewrite(data, broken)
    with pytest.raises(KineflowError, match=r"episode 1, 'observation.images.front', frame 1: the picture cannot be decoded"):
        import_data("lerobot", root, tmp_path / "s.eps")
    data.write_bytes(whole)
    episodes = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rewrite(episodes, lambda t: t.drop_columns(["length"]))
    with pytest.raises(KineflowError, match="no column length"):
        open_lerobot(root, ImportOptions())
    episodes.unlink()
    with pytest.raises(KineflowError, match="holds no parquet file"):
        open_lerobot(root, ImportOptions())
