"""Real LeRobot data: what lerobot 0.6.1 wrote of PushT, video and pictures, and five episodes of GR00T (v2.0)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kineflow.datasets.convert import import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.lerobot_stats import FrameCounts, sampled
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.importers.diffusion_policy_zarr import open_replay_buffer
from kineflow.datasets.importers.lerobot import open_lerobot
from kineflow.datasets.importers.source import ImportOptions

LENGTHS = [161, 118, 141, 159, 159]
Find = Callable[[str], Path]


def test_pictures_are_the_demonstrations_that_we_ship(shared_data: Find) -> None:
    """The same five episodes through two formats and two importers."""
    source = open_lerobot(shared_data("lerobot_v3_pusht") / "image", ImportOptions())
    shipped = open_replay_buffer(demo_data(), ImportOptions())
    assert len(source) == 5
    for number, length in enumerate(LENGTHS):
        found, expected = source.episode(number), shipped.episode(number)
        np.testing.assert_array_equal(found.streams["image"].values, expected.streams["top"].values)
        np.testing.assert_array_equal(found.streams["action"].values, expected.streams["action"].values)
        np.testing.assert_array_equal(found.streams["state"].values, expected.streams["state"].values[:, :2])
        np.testing.assert_array_equal(found.streams["state"].stamp_ns, np.arange(length) * 100_000_000)
        assert found.instruction == "Push the T-shaped block onto the T-shaped target."
        assert (found.clock, found.split) == ("nominal_10hz", "train")


def test_video_shows_the_same_frames(shared_data: Find) -> None:
    video = open_lerobot(shared_data("lerobot_v3_pusht") / "video", ImportOptions())
    image = open_lerobot(shared_data("lerobot_v3_pusht") / "image", ImportOptions())
    assert "lossy" in video.facts.carried["image"]
    for number in (0, 3, 1, 2):  # out of order: a seek must land on the same frames
        film, exact = video.episode(number).streams["image"].values, image.episode(number).streams["image"].values
        error = np.abs(film.astype(int) - exact).mean((1, 2, 3))
        assert error.max() < 5
        motion = np.abs(exact[1:].astype(int) - exact[:-1]).mean((1, 2, 3))
        for step in np.argsort(motion)[-10:]:  # where much moves, a frame is nearer to itself than to the one before it
            assert error[step + 1] < np.abs(film[step + 1].astype(int) - exact[step]).mean()


@pytest.mark.parametrize("variant", ["image", "video"])
def test_our_statistics_agree_with_lerobots_own(shared_data: Find, tmp_path: Path, variant: str) -> None:
    theirs = json.loads((shared_data("lerobot_v3_pusht") / "image" / "meta" / "stats.json").read_text())
    import_data("lerobot", shared_data("lerobot_v3_pusht") / variant, tmp_path / "s.eps")
    export_data("lerobot-v3", EpisodeStore.open(tmp_path / "s.eps"), tmp_path / "out")
    ours = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    for key in ("observation.state", "action", "timestamp", "frame_index", "index", "episode_index", "task_index"):
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(ours[key][name], theirs[key][name], rtol=1e-5, atol=1e-6)
    picture, reference = ours["observation.images.image"], theirs["observation.image"]
    assert picture["count"] == reference["count"] == [500]
    if variant == "image":
        np.testing.assert_allclose(picture["min"], reference["min"], rtol=1e-6)
        _compare_episodes(shared_data("lerobot_v3_pusht") / "image", tmp_path / "out")


def test_lerobots_statistics_of_pictures_are_ours_in_single_precision(shared_data: Find) -> None:
    """LeRobot adds up a million pixels in float32 and loses 0.4 % of the mean and up to 25 % of the deviation. From the
    frames that we sample, the same sum in float32 gives its number to the digit, in float64 ours."""
    root = shared_data("lerobot_v3_pusht") / "image"
    source = open_lerobot(root, ImportOptions())
    listed = pq.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    for number, row in enumerate(listed):
        frames = source.episode(number).streams["image"].values
        pixels = frames[sampled(len(frames))].reshape(-1, 3)
        theirs = np.ravel(row["stats/observation.image/mean"])
        np.testing.assert_allclose(pixels.astype(np.float32).mean(0) / 255, theirs, rtol=1e-6)
        ours = np.ravel(FrameCounts(frames).stats()["mean"])
        np.testing.assert_allclose(pixels.mean(0, dtype=np.float64) / 255, ours, rtol=1e-12)
        assert 0 < np.abs(ours - theirs).max() < 0.005


def _compare_episodes(theirs: Path, ours: Path) -> None:
    """Quantiles of each episode: exact ones against lerobot's histogram of 5000 bins."""
    place = Path("meta") / "episodes" / "chunk-000" / "file-000.parquet"
    for found, expected in zip(pq.read_table(ours / place).to_pylist(), pq.read_table(theirs / place).to_pylist()):
        assert found["dataset_from_index"] == expected["dataset_from_index"]
        for key in ("observation.state", "action"):
            width = np.subtract(expected[f"stats/{key}/max"], expected[f"stats/{key}/min"])
            for name in ("q01", "q10", "q50", "q90", "q99"):
                error = np.abs(np.subtract(found[f"stats/{key}/{name}"], expected[f"stats/{key}/{name}"]))
                # Ours interpolates between two samples, lerobot's takes an edge of one's bin: a gap between samples apart.
                assert (error < 0.05 * width).all(), (key, name, error, width)


def test_pictures_survive_a_round_trip(shared_data: Find, tmp_path: Path) -> None:
    import_data("lerobot", shared_data("lerobot_v3_pusht") / "image", tmp_path / "a.eps")
    export_data("lerobot-v2.1", EpisodeStore.open(tmp_path / "a.eps"), tmp_path / "out")
    import_data("lerobot", tmp_path / "out", tmp_path / "b.eps")
    assert EpisodeStore.open(tmp_path / "a.eps").fingerprint() == EpisodeStore.open(tmp_path / "b.eps").fingerprint()


def test_gr00t(shared_data: Find) -> None:
    root = shared_data("gr00t_picknplace_lerobot_v2")
    source = open_lerobot(root, ImportOptions())
    facts = source.facts
    assert len(source) == 5
    assert sorted(facts.interface.features) == ["reward", "state"]
    assert facts.interface.action.vector.names == tuple(f"motor_{i}" for i in range(44))
    assert facts.not_carried["observation.images.egoview"].startswith("info.json declares it")
    stats, rows = json.loads((root / "meta" / "stats.json").read_text()), []
    for number, length in enumerate((416, 470, 470, 412, 328)):
        if number in (0, 4):  # decoding all five takes seconds
            episode = source.episode(number)
            table = pq.read_table(root / "data" / "chunk-000" / f"episode_{number:06d}.parquet")
            expected = np.array(table["observation.state"].to_pylist())
            np.testing.assert_array_equal(episode.streams["state"].values, expected)
            assert episode.streams["ego_view"].values.shape == (length, 256, 256, 3)
            assert episode.streams["reward"].values[-1] == 1
            assert [span.text for span in episode.spans] == ["valid"]
            seconds = table["timestamp"].to_numpy()
            np.testing.assert_allclose(episode.streams["action"].stamp_ns / 1e9, seconds, atol=1e-9)
        rows.append(np.array(pq.read_table(root / "data" / "chunk-000" / f"episode_{number:06d}.parquet")["action"].to_pylist()))
    assert source.episode(0).instruction == "pick the pear from the counter and place it in the plate"
    np.testing.assert_allclose(np.concatenate(rows).mean(0), stats["action"]["mean"], atol=1e-4)
