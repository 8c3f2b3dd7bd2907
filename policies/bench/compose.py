"""`kineflow bench compose`: one composed chunk beside the bare network time of its parents; batched heads beside single ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from kineflow.contracts import FeatureStatistics, Observation, PolicyContract, SamplingRequest
from kineflow.policies.bench.head import bench_network
from kineflow.policies.bench.rows import Row, alternate
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.composition import Batched, Composition
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.golden import golden_pair
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.observed import Observed
from kineflow.policies.policy import HeadConfig

ALLOWED = 1.15
STEPS = 10
REPETITIONS = {True: 15, False: 30}  # quick, full
PAIRS: dict[str, tuple[HeadConfig, ...]] = {
    "mlp+mlp": (MLP(width=256, depth=2), MLP(width=256, depth=2)),  # as in train/pusht_state_flow
    "dit_5m+unet_5m": (DiT(width=256, depth=4), UNet(channels=(80, 160, 240))),
    "dit_5m+dit_5m+dit_5m": (DiT(width=256, depth=4),) * 3,
    "dit_20m+unet_20m": (DiT(width=512, depth=4, attention_heads=8), UNet(channels=(168, 336, 504))),
}
QUICK = ("mlp+mlp", "dit_5m+unet_5m")
BATCHED = ("mlp+mlp", "dit_5m+dit_5m+dit_5m")  # heads of one architecture


def bench_compose(*, quick: bool) -> Iterator[Row]:
    """Quick: the first two pairs, batch 1. Parents alternate flow on absolute and diffusion on relative actions, so units, paths
    and predictions all differ."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for name in QUICK if quick else PAIRS:
            for batch in (1,) if quick else (1, 32):
                yield _row(name, batch, REPETITIONS[quick])
        for name in BATCHED[:1] if quick else BATCHED:
            yield _batched_row(name, REPETITIONS[quick])
    finally:
        torch.set_num_threads(before)


def _row(name: str, batch: int, n: int) -> Row:
    policy = composed(PAIRS[name])
    observation, request = _question(policy, batch)
    networks = [parent.network for parent in policy.parents]
    x = torch.randn(batch, networks[0].config.horizons.prediction, networks[0].action_dim)
    t, seen = torch.full((batch,), 0.5), Observed(torch.from_numpy(observation.state), {})

    @torch.no_grad()
    def plain() -> None:
        for network in networks:
            condition = network.encoder(seen)
            for _ in range(STEPS):
                network.head(x, t, condition)

    mine, theirs, ratio = alternate(lambda: policy.predict(observation, request), plain, n)
    millions = sum(p.numel() for network in networks for p in network.head.parameters()) / 1e6
    return Row(
        f"compose.{name}.batch_{batch}",
        mine * 1e3,
        "ms",
        "lower",
        theirs * 1e3,
        f"torch {torch.__version__}, float32, eager, 1 thread: each parent's encoder once and its head {STEPS} times, no_grad",
        ratio,
        f"ratio <= {ALLOWED}",
        ratio <= ALLOWED,
        n,
        f"{millions:.1f} M parameters in all, {STEPS} DDIM steps, convex; other units, paths and predictions",
    )


def _batched_row(name: str, n: int) -> Row:
    """No goal: it says what `batched: always` costs or saves on this machine's CPU."""
    apart, together = composed(PAIRS[name], "never"), composed(PAIRS[name], "always")
    observation, request = _question(apart, 1)
    mine, theirs, ratio = alternate(
        lambda: together.predict(observation, request), lambda: apart.predict(observation, request), n
    )
    return Row(
        f"compose.batched.{name}.batch_1",
        mine * 1e3,
        "ms",
        "lower",
        theirs * 1e3,
        f"torch {torch.__version__}, float32, eager, 1 thread, CPU: the same composition with batched: never",
        ratio,
        None,
        None,
        n,
        f"{len(PAIRS[name])} heads in one call, {STEPS} DDIM steps; auto does this on accelerators only",
    )


def _question(policy: ComposedPolicy, batch: int) -> tuple[Observation, SamplingRequest]:
    horizon = policy.contract.horizons.observation
    state = np.random.default_rng(0).uniform(0, 500, (batch, horizon, 5)).astype(np.float32)
    return Observation(state, np.zeros((batch, horizon))), SamplingRequest(np.arange(batch, dtype=np.int64))


def composed(heads: tuple[HeadConfig, ...], batched: Batched = "auto") -> ComposedPolicy:
    """Untrained parents: flow on absolute actions, diffusion on actions relative to the agent, in turn."""
    parents = []
    for index, head in enumerate(heads):
        objective = Diffusion(clip=4.0) if index % 2 else FlowMatching()
        relative = ("agent_x", "agent_y") if index % 2 else ()
        network = bench_network(head, objective=objective, action_scaling="isotropic", relative_to=relative)
        statistics = {name: _statistics(np.zeros(size)) for name, size in (("state", 5), ("action", 2))}
        spec, golden = objective.sampler_spec(), golden_pair(network)
        contract = PolicyContract(network.interface, network.config.horizons, spec, statistics, "bench", {}, golden)
        parents.append(ChunkPolicy(network, contract))
    names = tuple(f"parent{i}" for i in range(len(heads)))
    weights = (1 - 0.3 * (len(heads) - 1), *[0.3] * (len(heads) - 1))
    return compose(parents, names, Composition(names, weights, steps=STEPS, batched=batched))


def _statistics(mean: Float[np.ndarray, "D"]) -> FeatureStatistics:
    zeros = tuple(float(v) for v in mean)
    ones = (1.0,) * len(zeros)
    return FeatureStatistics(1, zeros, ones, zeros, ones, zeros, ones)
