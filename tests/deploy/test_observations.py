"""The observation buffer: alignment across streams of other rates, late and bad samples, silence."""

from __future__ import annotations

import numpy as np
import pytest

from kineflow.contracts import CameraSpec, FeatureSpec, Interface, KineflowError, VectorSpec
from kineflow.deploy.chunks import ChunkBuffer, Placed
from kineflow.deploy.delays import DelayForecast
from kineflow.deploy.observations import ObservationBuffer, ObservationLimits
from kineflow.policies.deadline import Latency, LatencyTable


def two_streams(**limits: float) -> ObservationBuffer:
    """State at 50 Hz, camera at 30 Hz, windows of three steps of 0.1 s."""
    vector = VectorSpec(("v",), ("m/s",), "base", (-9.0,), (9.0,))
    interface = Interface({"velocity": FeatureSpec(vector, 50.0)}, FeatureSpec(vector, 10.0), {"front": CameraSpec(2, 2, 30.0)})
    return ObservationBuffer(interface, 3, 0.1, ObservationLimits(**limits))


def picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def filled(camera_lag_s: float = 0.04, order: int = 1) -> ObservationBuffer:
    """State k at k / 50 s; picture k at k / 30 s, heard `camera_lag_s` later; until one second."""
    buffer = two_streams()
    for k in range(51)[::order]:
        buffer.put("velocity", np.array([k / 50]), k / 50, k / 50)
    for k in range(30)[::order]:
        buffer.put("front", picture(k), k / 30, k / 30 + camera_lag_s)
    return buffer


@pytest.mark.parametrize("order", [1, -1])
def test_a_window_shows_every_stream_at_the_same_moments(order: int) -> None:
    """The newest moment that both have reached is that of picture 29; arrival order does not matter."""
    window = filled(order=order).window()
    now = 29 / 30
    np.testing.assert_allclose(window.stamp_s, [now - 0.2, now - 0.1, now], atol=1e-9)
    assert window.images["front"][:, 0, 0, 0].tolist() == [23, 26, 29]
    np.testing.assert_allclose(window.state[:, 0], [now - 0.2, now - 0.1, now], atol=0.011)
    assert window.state.dtype == np.float32
    assert filled().misalignment() == ""


def test_before_the_first_sample_there_is_that_sample() -> None:
    buffer = two_streams()
    assert buffer.silence(0.0) == "no observation of velocity, front"
    buffer.put("velocity", np.array([1.0]), 0.0, 0.0)
    buffer.put("front", picture(7), 0.01, 0.01)
    assert buffer.silence(0.05) == ""
    assert buffer.window().images["front"][:, 0, 0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("stream", "value", "age_s", "reason"),
    [
        ("velocity", np.array([1.0]), 0.6, "old stamp"),
        ("velocity", np.array([1.0]), -0.2, "stamp from the future"),
        ("velocity", np.array([1.0, 2.0]), 0.0, "shape (2,), expected (1,)"),
        ("velocity", np.array([np.nan]), 0.0, "not finite"),
        ("velocity", np.array([1e300]), 0.0, "not finite"),  # as the policy is shown it, in float32
        ("front", np.zeros((2, 2, 3), np.float32), 0.0, "dtype float32"),
        ("front", np.zeros((3, 2, 3), np.uint8), 0.0, "shape (3, 2, 3), expected (2, 2, 3)"),
    ],
)
def test_bad_samples_are_dropped_and_counted(stream: str, value: np.ndarray, age_s: float, reason: str) -> None:
    """Promise 3: stamps older than 0.5 s or more than 0.1 s ahead."""
    buffer = two_streams()
    assert buffer.put(stream, value, 10.0, 10.0 + age_s) == reason
    assert buffer.dropped == {f"{stream}: {reason}": 1}
    assert f"no observation of {stream}" in buffer.silence(10.0).replace("velocity, front", stream)


def test_unknown_streams_are_a_mistake_of_wiring() -> None:
    with pytest.raises(KineflowError, match=r"no stream 'rear', it needs \['front', 'velocity'\]"):
        two_streams().put("rear", picture(0), 0.0, 0.0)


def test_one_silent_stream_is_enough_to_be_stale() -> None:
    buffer = filled()
    buffer.put("velocity", np.array([0.0]), 1.25, 1.25)
    assert buffer.silence(1.25).startswith("stale observation: front")
    assert buffer.heard_s == pytest.approx(29 / 30 + 0.04)


def test_a_gap_in_a_stream_is_seen() -> None:
    """The state of 0.2 s before was never heard, though older and newer ones were."""
    buffer = two_streams(skew_s=0.05)
    for stamp_s in (0.0, 0.38, 0.4):
        buffer.put("velocity", np.array([stamp_s]), stamp_s, stamp_s)
    for k in range(13):
        buffer.put("front", picture(k), k / 30, k / 30)
    assert buffer.misalignment().startswith("observations not aligned: velocity is")


def test_samples_are_copied() -> None:
    buffer, frame = two_streams(), picture(1)
    buffer.put("front", frame, 0.0, 0.0)
    buffer.put("velocity", np.array([0.0]), 0.0, 0.0)
    frame[:] = 9
    assert buffer.window().images["front"].max() == 1


def test_old_samples_are_forgotten() -> None:
    buffer = two_streams()
    for k in range(1000):
        buffer.put("velocity", np.array([0.0]), k / 50, k / 50)
    assert len(buffer._samples["velocity"]) < 80


def test_chunks_by_the_action_that_they_begin_with() -> None:
    buffer, old, new = ChunkBuffer(), np.arange(8.0)[:, None], 100 + np.arange(8.0)[:, None]
    buffer.put(Placed(old, 0, 0))
    buffer.put(Placed(new, 4, 1))
    assert [buffer.at(k)[0][0] for k in (3, 4, 11)] == [3, 100, 107]  # type: ignore[index]
    assert buffer.at(12) is None
    assert buffer.left(11) == 0  # the past was forgotten with it


def test_a_forecast_scales_what_was_measured_with_other_steps() -> None:
    table = LatencyTable(tuple(Latency(n, 1, s, s, 100) for n, s in ((2, 0.1), (8, 0.4))))
    delays = DelayForecast(0.1, window=3, table=table)
    assert (delays.choose(4).steps, delays.choose(4).delay) == (8, 4)
    delays.record(0.8, 8)  # twice as slow as the table: 2 steps would take 0.2 s
    assert (delays.choose(4).steps, delays.choose(4).delay) == (2, 2)
    assert delays.choose(1).is_too_slow
    for _ in range(3):
        delays.record(0.1, 2)
    assert delays.choose(4).steps == 8
    with pytest.raises(KineflowError, match="measure that batch"):
        DelayForecast(0.1, table=table, batch=16)
