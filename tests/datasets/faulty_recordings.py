"""Recordings as a robot makes them (two clocks, jitter, two cameras, smooth motion), and faults to plant into one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, Stream, VectorSpec
from kineflow.datasets.episode_store import EpisodeStore
from tests.datasets.sample_frames import natural_frames

POSE = VectorSpec(("x", "y", "yaw"), ("m", "m", "rad"), "odom", (-9.0, -9.0, -4.0), (9.0, 9.0, 4.0))
COMMAND = VectorSpec(("speed", "turn"), ("m/s", "rad/s"), "base", (-2.0, -2.0), (2.0, 2.0))
CAMERAS = {"left": CameraSpec(12, 16, 10.0), "right": CameraSpec(12, 16, 10.0)}
INTERFACE = Interface({"pose": FeatureSpec(POSE, 20.0)}, FeatureSpec(COMMAND, 20.0), CAMERAS)
SECONDS = 8
Fault = Callable[[Episode], Episode]


@lru_cache
def recording(number: int) -> Episode:
    """Episode `number` of 8 s: the cameras have a clock of their own, which starts 10 ms after that of the action."""
    rng = np.random.default_rng([23, number])
    t0 = 10**18 + 10**11 * number
    action, camera = t0 + _clock(rng, 20.0), t0 + 10_000_000 + _clock(rng, 10.0)
    t = (action - t0) / 1e9
    phase = rng.uniform(0, 6)
    pose = np.stack([3 * np.sin(0.9 * t + phase), 2 * np.cos(1.3 * t + phase), np.sin(0.7 * t)], 1)
    pose += rng.normal(0, 0.003, pose.shape)
    command = np.stack([np.cos(0.9 * t + phase), 0.7 * np.cos(1.7 * t)], 1) + rng.normal(0, 0.003, (len(t), 2))
    left = natural_frames(len(camera), 12, 16, seed=2 * number)
    right = (natural_frames(len(camera), 12, 16, seed=2 * number + 1) * 0.4 + [120, 40, 0]).astype(np.uint8)
    left[:, 8:] = 20  # the left camera sees the floor of the same machine every time
    streams = {
        "pose": Stream(pose.astype(np.float32), action),
        "action": Stream(command.astype(np.float32), action),
        "left": Stream(left, camera),
        "right": Stream(right, camera.copy()),
    }
    return Episode(streams, "follow the wall", True, f"log {number}", split="train")


def _clock(rng: np.random.Generator, rate_hz: float) -> np.ndarray:
    """Samples of a timer, each stamped up to 2 % of a period late."""
    samples = int(SECONDS * rate_hz)
    return ((np.arange(samples) + rng.uniform(0, 0.02, samples)) * 1e9 / rate_hz).astype(np.int64)


def write_recordings(
    path: Path, faults: Mapping[int, Fault], episodes: int = 6, interface: Interface = INTERFACE
) -> EpisodeStore:
    """A store of `episodes` recordings; `faults` names the episodes that are planted with one."""
    store = EpisodeStore.create(path, interface)
    with store.writer(4) as writer:
        for number in range(episodes):
            episode = recording(number)
            writer.add(faults[number](episode) if number in faults else episode)
    return store


def changed(episode: Episode, streams: Mapping[str, Stream]) -> Episode:
    return replace(episode, streams={**episode.streams, **streams})


def on_clock(episode: Episode, names: tuple[str, ...], change: Callable[[np.ndarray], np.ndarray]) -> Episode:
    """Other stamps for the streams `names`."""
    return changed(episode, {n: replace(episode.streams[n], stamp_ns=change(episode.streams[n].stamp_ns.copy())) for n in names})


def without(episode: Episode, names: tuple[str, ...], samples: np.ndarray) -> Episode:
    """The streams `names` without some of their samples."""
    kept = {}
    for name in names:
        stream = episode.streams[name]
        keep = np.setdiff1d(np.arange(len(stream.stamp_ns)), samples)
        kept[name] = Stream(stream.values[keep], stream.stamp_ns[keep])
    return changed(episode, kept)


def with_values(episode: Episode, name: str, change: Callable[[np.ndarray], None]) -> Episode:
    values = episode.streams[name].values.copy()
    change(values)
    return changed(episode, {name: replace(episode.streams[name], values=values)})
