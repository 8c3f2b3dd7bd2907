"""Small deterministic episodes for the store's tests: episode k is a pure function of k, so any reader can check it."""

from __future__ import annotations

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, Stream, VectorSpec

POSE = VectorSpec(("x", "y", "yaw"), ("m", "m", "rad"), "odom", (-9.0, -9.0, -4.0), (9.0, 9.0, 4.0))
FORCE = VectorSpec(("force",), ("N",), "tool", (-50.0,), (50.0,))
COMMAND = VectorSpec(("speed", "turn"), ("m/s", "rad/s"), "base", (-2.0, -2.0), (2.0, 2.0))
INTERFACE = Interface(
    {"pose": FeatureSpec(POSE, 10.0), "force": FeatureSpec(FORCE, 10.0)},
    FeatureSpec(COMMAND, 10.0),
    {"front": CameraSpec(6, 8, 10.0)},
)
LOW_DIM = Interface(INTERFACE.features, INTERFACE.action)


def sample_episode(number: int, interface: Interface = INTERFACE, length: int | None = None) -> Episode:
    """Episode `number`: 3 to 12 steps unless said, within the limits of the schema."""
    rng = np.random.default_rng([7, number])
    steps = int(rng.integers(3, 13)) if length is None else length
    stamps = 10**18 + 10**9 * number + np.cumsum(rng.integers(90_000_000, 110_000_000, steps))
    values = {
        name: rng.uniform(-1, 1, (steps, s.vector.size)) for name, s in {**interface.features, "action": interface.action}.items()
    }
    values = {name: value.astype(np.float32) for name, value in values.items()}
    frames = {
        name: rng.integers(0, 256, (steps, *camera.frame_shape), np.uint8 if camera.kind == "rgb" else np.uint16)
        for name, camera in interface.cameras.items()
    }
    streams = {name: Stream(value, stamps) for name, value in {**values, **frames}.items()}
    success = (None, True, False)[number % 3]
    return Episode(streams, ("", "open the door", "wait")[number % 3], success, f"log {number}")


def assert_equal_episodes(found: Episode, expected: Episode) -> None:
    """Equal to the bit, metadata included."""
    assert found.streams.keys() == expected.streams.keys()
    for name, stream in expected.streams.items():
        np.testing.assert_array_equal(found.streams[name].values, stream.values)
        np.testing.assert_array_equal(found.streams[name].stamp_ns, stream.stamp_ns)
        assert found.streams[name].values.dtype == stream.values.dtype
        assert found.streams[name].stamp_ns.dtype == np.int64
    for attribute in ("instruction", "success", "source", "clock", "language", "spans", "split", "seed", "operator"):
        assert getattr(found, attribute) == getattr(expected, attribute)
    assert list(found.goals) == list(expected.goals)
    for name, goal in expected.goals.items():
        assert (found.goals[name].kind, found.goals[name].frame) == (goal.kind, goal.frame)
        np.testing.assert_array_equal(found.goals[name].value, goal.value)
        assert found.goals[name].value.dtype == goal.value.dtype
