"""RLDS without TensorFlow: nested steps, pictures kept as they are, instructions, and sets that are not whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from kineflow.config import save_config
from kineflow.contracts import FeatureSpec, Interface, KineflowError, Span, VectorSpec
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions, open_source
from kineflow.datasets.importers.tfrecord import write_records
from tests.datasets.test_tfrecord import encoded

CORE = "tensorflow_datasets.core.features."


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {
        "pythonClassName": CORE + "tensor_feature.Tensor",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": encoding},
    }


def image(dtype: str, *shape: int) -> dict[str, Any]:
    details = {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encodingFormat": "png"}
    return {"pythonClassName": CORE + "image_feature.Image", "image": details}


TEXT = {"pythonClassName": CORE + "text_feature.Text", "text": {}}


def group(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": CORE + "features_dict.FeaturesDict", "featuresDict": {"features": features}}


STEPS = group(
    action=group(move=tensor("float32", 3), grip=tensor("int64")),
    observation=group(
        state=tensor("float64", 2, 2), wrist=image("uint8", 4, 5, 3), top=image("uint8", 6, 8, 3), range=image("uint16", 4, 5, 1)
    ),
    language_instruction=TEXT,
    reward=tensor("float32"),
    is_first=tensor("bool"),
    is_last=tensor("bool"),
    note=TEXT,
    odd=image("uint8", 4, 5, 1),
)
RNG = np.random.default_rng(5)
TOP = [simplejpeg.encode_jpeg(RNG.integers(0, 256, (6, 8, 3), np.uint8), quality=90) for _ in range(4)]
WRIST, DEPTH = RNG.integers(0, 256, (4, 4, 5, 3), np.uint8), RNG.integers(0, 65536, (4, 4, 5)).astype(np.uint16)


def png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def features(steps: int, texts: list[str]) -> dict[str, Any]:
    """The Example of one episode of up to 4 steps."""
    return {
        "steps__action__move": np.arange(3.0 * steps).tolist(),
        "steps__action__grip": [10 + i for i in range(steps)],
        "steps__observation__state": (0.5 * np.arange(4 * steps)).tolist(),
        "steps__observation__wrist": [png(frame) for frame in WRIST[:steps]],
        "steps__observation__top": TOP[:steps],
        "steps__observation__range": [png(frame) for frame in DEPTH[:steps]],
        "steps__language_instruction": [text.encode() for text in texts],
        "steps__reward": [0.25] * steps,
        "steps__is_first": [1] + [0] * (steps - 1),
        "steps__is_last": [0] * (steps - 1) + [1],
        "steps__note": [b"n"] * steps,
        "steps__odd": [png(frame[..., 0]) for frame in WRIST[:steps]],
        "episode_metadata__file_path": [b"robot/day1.hdf5"],
    }


def write_set(path: Path, episodes: list[dict[str, Any]], shard: str = "toy-train.tfrecord-00000-of-00001") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    dataset = {"pythonClassName": CORE + "dataset_feature.Dataset", "sequence": {"feature": STEPS}}
    (path / "features.json").write_text(json.dumps(group(steps=dataset, episode_metadata=group(file_path=TEXT))))
    write_records(path / shard, [encoded(**episode) for episode in episodes])
    return path


def test_episodes_come_with_pictures_text_and_nested_actions(tmp_path: Path) -> None:
    source = write_set(tmp_path / "toy" / "1.0.0", [features(4, ["lift", "lift", "drop", "drop"]), features(2, ["go", "go"])])
    report = import_data("rlds", tmp_path / "toy", tmp_path / "s.eps", ImportOptions(rate_hz=5.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    first, second = store.episode(0), store.episode(1)
    assert store.interface.action.vector.names == ("move_0", "move_1", "move_2", "grip")
    np.testing.assert_array_equal(first.streams["action"].values[1], [3, 4, 5, 11])
    np.testing.assert_array_equal(first.streams["state"].values[3], [6, 6.5, 7, 7.5])
    np.testing.assert_array_equal(first.streams["range"].values, DEPTH)
    np.testing.assert_array_equal(first.streams["top"].values[2], simplejpeg.decode_jpeg(TOP[2]))
    assert store.jpegs(0, "top") == TOP
    np.testing.assert_array_equal(first.streams["action"].stamp_ns, np.arange(4) * 200_000_000)
    assert (first.instruction, first.spans) == ("lift", (Span("lift", 0, 400_000_000), Span("drop", 400_000_000, 800_000_000)))
    assert (second.instruction, second.spans, second.source, second.split) == ("go", (), "robot/day1.hdf5", "train")
    assert (report.clock, report.carried["source"]) == ("nominal_5hz", "episode_metadata/file_path")
    assert report.not_carried["steps/note"] == "text that is not the instruction"
    assert "neither RGB uint8 nor depth" in report.not_carried["steps/odd"]
    assert report.carried["state"] == "steps/observation/state float64 [2, 2], float64 kept as float32"
    raw = open_source("rlds", source, ImportOptions()).episode(0)
    np.testing.assert_array_equal(raw.streams["wrist"].values, WRIST)
    assert "wrist" not in raw.jpeg


def test_a_schema_names_dimensions_and_rate(tmp_path: Path) -> None:
    vector = VectorSpec(("x", "y", "z", "grip"), ("m", "m", "m", "1"), "base", (-9.0,) * 4, (99.0,) * 4)
    save_config(Interface({}, FeatureSpec(vector, 3.0)), tmp_path / "robot.yaml")
    path = write_set(tmp_path / "toy", [features(4, ["a"] * 4)])
    opened = open_source("rlds", path, ImportOptions(tmp_path / "robot.yaml"))
    assert opened.facts.interface.action.vector == vector
    assert (list(opened.episode(0).streams), opened.facts.clock) == (["action"], "nominal_3hz")
    assert opened.facts.not_carried["top"] == "the schema leaves it out"


def test_numbers_stored_as_bytes(tmp_path: Path) -> None:
    import zlib

    values = np.arange(6, dtype="<f4").reshape(2, 3)
    for encoding in ("bytes", "zlib"):
        path = tmp_path / encoding
        path.mkdir()
        steps = group(action=tensor("float32", 3, encoding=encoding))
        dataset = {"pythonClassName": CORE + "dataset_feature.Dataset", "sequence": {"feature": steps}}
        (path / "features.json").write_text(json.dumps(group(steps=dataset)))
        rows = [zlib.compress(row.tobytes()) if encoding == "zlib" else row.tobytes() for row in values]
        write_records(path / "a-train.tfrecord-00000-of-00001", [encoded(steps__action=rows)])
        np.testing.assert_array_equal(open_source("rlds", path, ImportOptions()).episode(0).streams["action"].values, values)


def test_sets_that_are_not_whole_say_what_lacks(tmp_path: Path) -> None:
    path = write_set(tmp_path / "toy", [features(4, ["a"] * 4)], "toy-train.tfrecord-00001-of-00003")
    info = {"splits": [{"name": "train", "shardLengths": ["1", "1", "1"]}, {"name": "val", "shardLengths": ["7"]}]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    rest = open_source("rlds", path, ImportOptions()).facts.not_carried
    assert rest["split train, shards [0, 2]"] == "they are not in the folder"
    assert rest["split val"] == "dataset_info.json lists 7 episodes, the folder has none of its shards"
    (path / "toy-train.tfrecord-00001-of-00003").rename(path / "toy-train.tfrecord-00000-of-00001")
    with pytest.raises(KineflowError, match=r"split train has 1 records, dataset_info.json says 3"):
        open_source("rlds", path, ImportOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps__observation__state": [1.0] * 8}, r"record 0: steps/observation/state has 2 steps, the action has 4"),
        (
            {"steps__observation__state": [1.0] * 7},
            r"steps/observation/state has 7 float32, not numbers of shape \[2, 2\] a step",
        ),
        ({"steps__action__grip": [b"a"] * 4}, r"record 0: steps/action/grip has 4 byte strings, not numbers"),
        ({"steps__observation__top": TOP[:3]}, r"steps/observation/top has 3 byte strings, 4 byte strings are needed"),
        ({"steps__observation__top": [*TOP[:3], b"GIF89a"]}, r"record 0, steps/observation/top, step 3: neither JPEG nor PNG"),
        ({"steps__observation__top": [*TOP[:3], TOP[3][:60]]}, r"steps/observation/top, step 3: the picture cannot be decoded"),
        (
            {"steps__observation__top": [*TOP[:3], png(WRIST[0])]},
            r"top, step 3: a picture of \[4, 5, 3\], the camera has \[6, 8, 3\]",
        ),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_set(tmp_path / "toy", [features(4, ["a"] * 4) | change])
    with pytest.raises(KineflowError, match=message):
        open_source("rlds", path, ImportOptions()).episode(0)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(KineflowError, match=r"no features.json; give the folder of one version"):
        open_source("rlds", tmp_path / "empty", ImportOptions())
    path = write_set(tmp_path / "toy", [features(2, ["a", "a"])])
    for file in path.glob("*tfrecord*"):
        file.unlink()
    with pytest.raises(KineflowError, match="no shards like"):
        open_source("rlds", path, ImportOptions())
    (path / "features.json").write_text('{"a": 1}')
    with pytest.raises(KineflowError, match="does not describe TFDS features"):
        open_source("rlds", path, ImportOptions())
