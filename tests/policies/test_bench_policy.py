"""Latency of navigation policies: the rows there are, and that a frame seen once counts as the same frame seen again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kineflow.policies.bench import policy as bench
from kineflow.policies.bench.policy import Asked, bench_policy, policy_network
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.flow_features import LucasKanade
from kineflow.policies.encoders.window_features import Looker
from kineflow.policies.live_features import LiveFeatures


@pytest.mark.parametrize("flow", [False, True])
def test_frames_looked_at_as_they_come(flow: bool) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    encoder = Colours(16, 2).build()
    look = Looker(encoder, LucasKanade(size=8).build(2) if flow else None, "")
    whole, live = look(frames), LiveFeatures(look, 3)
    camera = np.empty_like(frames[0])  # as a driver does that fills one buffer again and again
    for step in range(5):
        camera[:] = frames[step]
        seen = live.sees(camera)
        expected = whole[np.maximum(np.arange(step - 2, step + 1), 0)]
        np.testing.assert_allclose(seen, expected, atol=2e-3)
    live.reset()
    np.testing.assert_array_equal(live.sees(frames[4])[0], look(frames[4:])[0])


def test_cached_and_live_are_the_same_question() -> None:
    """But for the rounding of features to float16: what is measured as cached is not an easier answer."""
    asked = Asked.of(policy_network("5m", "efficientnet_lite"))
    with torch.no_grad():
        torch.nn.init.normal_(asked.network.head.action_out.shared.weight, std=0.3)
    cached, live = (asked.network.encode(asked.observation(way)).condition for way in ("cached", "live"))
    assert (cached - live).abs().max() < 0.02 * live.abs().max()


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", {True: 0.0})
    monkeypatch.setattr(bench, "MODELS", {"5m": "train/navigation_flow_small"})  # for the time it takes
    rows = {row.name: row for row in bench_policy(quick=True)}
    ways = [f"policy.5m.efficientnet_lite.{way}.threads_1.steps_{n}" for way in ("cached", "live") for n in (1, 2)]
    alone = [f"policy.5m.head_alone.threads_1.steps_{n}" for n in (1, 2)]
    assert list(rows) == [*ways, *alone, "policy.43m.gpu.cached.p99"]
    assert [rows[name].goal for name in ways] == ["<= 50 ms (20 chunks/s)"] * 2 + [None] * 2
    assert all(row.value > 0 and row.ratio and row.n >= 5 for name, row in rows.items() if "gpu" not in name)
    assert rows[ways[0]].value < rows[ways[2]].value, "one frame through the backbone, or eleven"
