"""Policies with random weights: they take as long as trained ones and answer something, so parity and latency can be measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kineflow.contracts import FeatureStatistics, Interface, PolicyContract
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.golden import golden_pair
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.policy_statistics import statistics_of


def random_policy(config: PolicyConfig, interface: Interface, seed: int = 0) -> ChunkPolicy:
    """Of `config` on data without meaning. Layers that begin as zero get random weights: an answer of zeros hides faults."""
    rng, steps = np.random.default_rng(seed), config.horizons
    raw = {name: _random_values(rng, spec.vector.size) for name, spec in interface.features.items()}
    raw["action"] = _random_values(rng, interface.action.vector.size)
    if config.stop:
        raw[config.stop] = np.array([[0.0], [1.0]])
    statistics = {name: statistics_of(values) for name, values in raw.items()}
    chosen = [_drawn(statistics[name], (64, steps.observation), rng) for name in config.features]
    state = np.concatenate(chosen, axis=-1) if chosen else np.zeros((64, steps.observation, 0), np.float32)
    action = _drawn(statistics["action"], (64, steps.prediction), rng)
    torch.manual_seed(seed)
    network = PolicyNetwork(config, interface, config.statistics(interface, statistics, state, action)).eval()
    _excite(network)
    whole = config.statistics(interface, statistics, state, action)
    golden = golden_pair(network)
    contract = PolicyContract(network.interface, steps, config.objective.sampler_spec(), whole, "random", {}, golden)
    return ChunkPolicy(network, contract)


def _random_values(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.uniform(-1, 1, (256, size))


def _drawn(statistics: FeatureStatistics, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    low, high = np.asarray(statistics.min), np.asarray(statistics.max)
    return rng.uniform(low, high, (*shape, len(low))).astype(np.float32)


@torch.no_grad()
def _excite(network: nn.Module) -> None:
    for name, value in network.named_parameters():
        if value.requires_grad and not value.any():
            scale = 0.3 / max(value.shape[-1], 1) ** 0.5 if value.ndim > 1 else 0.05
            nn.init.normal_(value, std=scale) if "bias" not in name else nn.init.normal_(value, std=0.05)
