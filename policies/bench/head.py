"""`kineflow bench head`: a chunk from the policy beside plain PyTorch forwards of the same network, batch 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kineflow.config import load_config
from kineflow.contracts import FeatureStatistics, Horizons, Interface, Observation, SamplingRequest
from kineflow.policies.bench.rows import Row, alternate
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.observed import Observed
from kineflow.policies.policy import HeadConfig, PolicyConfig, PolicyNetwork

HEADS: dict[str, DiT | UNet] = {
    "dit_5m": DiT(width=256, depth=4),
    "unet_5m": UNet(channels=(80, 160, 240)),
    "dit_20m": DiT(width=512, depth=4, attention_heads=8),
    "unet_20m": UNet(channels=(168, 336, 504)),
}
STEPS = (1, 2, 4, 10)
ALLOWED = 1.10
REPETITIONS = {True: 15, False: 30}  # quick, full


def bench_head(*, quick: bool) -> Iterator[Row]:
    """Quick: 5 M heads, 1 thread. One predict() call against `steps` bare forwards of the head and one of the encoder."""
    before = torch.get_num_threads()
    names = ["dit_5m", "unet_5m"] if quick else list(HEADS)
    try:
        for threads in (1,) if quick else (1, 2):
            torch.set_num_threads(threads)
            for name in names:
                yield from _rows(name, threads, REPETITIONS[quick])
    finally:
        torch.set_num_threads(before)


def _rows(name: str, threads: int, n: int) -> Iterator[Row]:
    network = bench_network(HEADS[name])
    millions = sum(p.numel() for p in network.head.parameters()) / 1e6
    horizons, spec = network.config.horizons, network.interface.features["state"].vector
    state = np.random.default_rng(0).uniform(0, 500, (1, horizons.observation, spec.size)).astype(np.float32)
    observation, seen = Observation(state, np.zeros((1, horizons.observation))), Observed(torch.from_numpy(state), {})
    x, t = torch.randn(1, horizons.prediction, network.action_dim), torch.full((1,), 0.5)
    for steps in STEPS:
        request = SamplingRequest(np.zeros(1, np.int64), steps=steps)

        @torch.no_grad()
        def plain(steps: int = steps) -> None:
            condition = network.encoder(seen)
            for _ in range(steps):
                network.head(x, t, condition)

        def ours(request: SamplingRequest = request) -> None:
            network.predict(observation, request)

        mine, theirs, ratio = alternate(ours, plain, n)
        version = f"torch {torch.__version__}, float32, eager: 1 encoder + {steps} head forwards under no_grad"
        label = f"head.{name}.threads_{threads}.steps_{steps}"
        note = f"{millions:.1f} M parameters, horizon {horizons.prediction}, batch 1, euler"
        yield Row(
            f"{label}.chunk",
            mine * 1e3,
            "ms",
            "lower",
            theirs * 1e3,
            version,
            ratio,
            f"ratio <= {ALLOWED}",
            ratio <= ALLOWED,
            n,
            note,
        )
        yield Row(f"{label}.step", mine / steps * 1e3, "ms", "lower", theirs / steps * 1e3, version, ratio, None, None, n, note)


def bench_network(head: HeadConfig, **changes: Any) -> PolicyNetwork:
    """A network on the PushT state with random weights; `changes` of its configuration."""
    interface = load_config(Interface, "interfaces/pusht")
    interface = Interface(interface.features, interface.action)
    config = replace(PolicyConfig(Horizons(2, 16, 8), head, FlowMatching(), State()), **changes)
    rng = np.random.default_rng(0)
    state = rng.uniform(0, 500, (256, 2, 5)).astype(np.float32)
    action = rng.uniform(0, 500, (256, 16, 2)).astype(np.float32)
    raw = {"state": _unit_statistics(5), "action": _unit_statistics(2)}
    torch.manual_seed(0)
    return PolicyNetwork(config, interface, config.statistics(interface, raw, state, action)).eval()


def _unit_statistics(size: int) -> FeatureStatistics:
    zeros, ones = (0.0,) * size, (1.0,) * size
    return FeatureStatistics(1, zeros, ones, zeros, ones, zeros, ones)


def parameter_counts() -> Sequence[tuple[str, int]]:
    """Trainable parameters of each head that is measured."""
    return [(name, sum(p.numel() for p in bench_network(config).head.parameters())) for name, config in HEADS.items()]
