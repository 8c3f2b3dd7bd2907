"""`kineflow bench policy`: from a camera's frame to a chunk, batch 1, on the processor and, where there is one, on a GPU.

Networks of configs/train/navigation_flow (5 M) and navigation_flow_43m with each backbone and random weights, which take as long
as trained ones. Two ways to ask:

    cached  what a robot does: clip and earlier frames were looked at before; one new frame goes through the backbone
    live    frames alone: three of the camera and eight of the clip go through the backbone at every call

Goals are for one thread: two are quicker on a machine that does nothing else, and many times slower on one that does.
The reference is the same layers called bare, on tensors that are there already: what checks, noise and solver cost is the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from kineflow.config import load_config
from kineflow.contracts import FeatureStatistics, Interface, KineflowError, Observation, SamplingRequest
from kineflow.policies.bench.rows import Row
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.efficientnet_lite import EfficientNetLite
from kineflow.policies.encoders.goal import FrameConfig, GoalVision, GoalVisionEncoder
from kineflow.policies.encoders.scene_net import SceneNet
from kineflow.policies.encoders.small_vit import SmallViT
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.encoders.window_features import Looker
from kineflow.policies.heads.flow_dit import FlowDiTHead
from kineflow.policies.live_features import LiveFeatures
from kineflow.policies.observed import observed
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.train_config import TrainConfig

MODELS = {"5m": "train/navigation_flow", "43m": "train/navigation_flow_43m"}
BACKBONES: dict[str, FrameConfig] = {
    "efficientnet_lite": EfficientNetLite(size=96, grid=4, stride=16, weights="random"),
    "scene_net": SceneNet(weights="random"),
    "small_vit": SmallViT(size=96, grid=4),
    "dinov2_small": DINOv2(size=224, grid=4, weights="random"),
}
STEPS = (1, 2, 5)
SECONDS = {True: 0.5, False: 2.0}  # quick, full: for each row, ours and the reference together
CHUNK_MS = 50.0  # 20 chunks a second: of the 5 M model, end to end, with one or two calls of the network
HEAD_MS = 100.0  # 10 a second: of the head of 43 M with as many calls
GPU_MS = 10.0  # 100 a second, at the 99th percentile: of the 43 M model; the Action Agent paper reports 40 to 47
CONTROL = "control needs a chunk within its executed steps: 4 at 10 Hz are 400 ms"


def bench_policy(*, quick: bool) -> Iterator[Row]:
    """Quick: EfficientNet-Lite and one or two calls on one thread, and both heads alone."""
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    backbones = ["efficientnet_lite"] if quick else list(BACKBONES)
    try:
        for threads in (1,) if quick else range(1, min(cores, 2) + 1):
            torch.set_num_threads(threads)
            for model in MODELS:
                for backbone in backbones:
                    yield from _rows(model, backbone, threads, quick=quick)
    finally:
        torch.set_num_threads(before)
    yield _gpu_row(quick=quick)


def policy_network(model: str, backbone: str) -> PolicyNetwork:
    """Of the configuration, on `backbone`. Raises KineflowError where a library that it needs is not there."""
    config = load_config(TrainConfig, MODELS[model]).policy
    assert isinstance(config.encoder, GoalVision)
    # No clip has words here: the text encoder is of a size, and not asked.
    config = replace(config, encoder=replace(config.encoder, frames=BACKBONES[backbone], text=HashedWords(256)))
    interface = load_config(Interface, "interfaces/navigation")
    size = {name: interface.features[name].vector.size for name in config.features}
    rng, steps = np.random.default_rng(0), config.horizons
    state = rng.normal(size=(64, steps.observation, sum(size.values()))).astype(np.float32)
    action = rng.uniform(-1, 1, (64, steps.prediction, interface.action.vector.size)).astype(np.float32)
    raw = {name: _unit(width) for name, width in {**size, "action": action.shape[-1], config.stop: 1}.items()}
    torch.manual_seed(0)
    return PolicyNetwork(config, interface, config.statistics(interface, raw, state, action)).eval()


def _unit(size: int) -> FeatureStatistics:
    zeros, ones = (0.0,) * size, (1.0,) * size
    return FeatureStatistics(1, zeros, ones, zeros, ones, zeros, ones)


@dataclass(frozen=True)
class Asked:
    """A policy and what it is asked, in both ways."""

    network: PolicyNetwork
    frames: np.ndarray  # [T, H, W, 3], the last one is new
    clip: np.ndarray  # [G, H, W, 3]
    look: Looker
    live: LiveFeatures
    clip_features: np.ndarray

    @classmethod
    def of(cls, network: PolicyNetwork) -> Asked:
        config, rng = network.config, np.random.default_rng(0)
        assert isinstance(network.encoder, GoalVisionEncoder)
        camera, video = network.interface.cameras[config.cameras[0]], config.goals["video"]
        frames = rng.integers(0, 256, (config.horizons.observation, camera.height, camera.width, 3), np.uint8)
        clip = rng.integers(0, 256, video.shape, np.uint8)
        look = Looker(network.encoder.frames, network.encoder.flow, "")
        live = LiveFeatures(look, len(frames))
        for frame in frames[:-1]:
            live.sees(frame)
        return cls(network, frames, clip, look, live, look(clip))

    def observation(self, way: str) -> Observation:
        """With `way` "cached" the newest frame goes through the backbone here."""
        config = self.network.config
        state = np.zeros((1, config.horizons.observation, len(self.network.state_statistics.mean)), np.float32)
        frames, clip = (self.live.sees(self.frames[-1]), self.clip_features) if way == "cached" else (self.frames, self.clip)
        return Observation(state, np.zeros((1, len(frames))), {config.cameras[0]: frames[None]}, {"video": clip[None]})

    def chunk(self, way: str, steps: int) -> None:
        self.network.predict(self.observation(way), SamplingRequest(np.zeros(1, np.int64), steps=steps))

    @torch.no_grad()
    def bare(self, way: str, steps: int) -> Callable[[], None]:
        """The same layers on tensors that are there."""
        network = self.network
        assert isinstance(network.head, FlowDiTHead)
        head, device = network.head, network.action_scale.device
        seen = observed(self.observation(way), network.interface, network.config.horizons, device)
        new = torch.from_numpy(self.frames[-1:])
        x = torch.randn(1, network.config.horizons.prediction, network.action_dim, device=device)
        t = torch.full((1,), 0.5, device=device)

        @torch.no_grad()
        def forward() -> None:
            if way == "cached":
                self.look.frames(new)
            prepared = head.prepare(network.encoder(seen))
            for _ in range(steps):
                head.answer(x, t, prepared)

        return forward

    @torch.no_grad()
    def head_alone(self, steps: int) -> Callable[[], Any]:
        """From condition tokens to a chunk."""
        network, noise = self.network, np.zeros(1, np.int64)
        encoded = network.encode(self.observation("cached"))
        return lambda: network.answer(encoded, np.zeros((1, 1)), SamplingRequest(noise, steps=steps))


def _rows(model: str, backbone: str, threads: int, *, quick: bool) -> Iterator[Row]:
    name = f"policy.{model}.{backbone}"
    try:
        asked = Asked.of(policy_network(model, backbone))
    except (KineflowError, ModuleNotFoundError) as missing:
        yield Row(f"{name}.threads_{threads}", 0.0, "ms", "lower", None, "", None, None, None, 0, f"not measured: {missing}")
        return
    network = asked.network
    head, counted = network.head, sum(p.numel() for p in network.parameters())
    own = counted - sum(p.numel() for p in asked.look.frames.parameters())
    size = f"{own / 1e6:.1f} M parameters beside the backbone"
    for way in ("cached", "live"):
        for steps in (1, 2) if quick else STEPS:
            has_goal = (model, backbone, way, threads) == ("5m", "efficientnet_lite", "cached", 1) and steps <= 2
            version = f"torch {torch.__version__}, float32, eager: the same layers under no_grad, {steps} calls of the head"
            yield _row(
                f"{name}.{way}.threads_{threads}.steps_{steps}",
                partial(asked.chunk, way, steps),
                asked.bare(way, steps),
                SECONDS[quick],
                CHUNK_MS if has_goal else None,
                version,
                f"{size}; {CONTROL}",
            )
    if backbone != "efficientnet_lite":
        return
    for steps in (1, 2) if quick else STEPS:
        version = f"torch {torch.__version__}, float32, eager: {steps} calls of the head, and its preparation"
        yield _row(
            f"policy.{model}.head_alone.threads_{threads}.steps_{steps}",
            asked.head_alone(steps),
            _bare_head(asked, steps),
            SECONDS[quick],
            HEAD_MS if (model, threads) == ("43m", 1) and steps <= 2 else None,
            version,
            f"{sum(p.numel() for p in head.parameters()) / 1e6:.1f} M parameters in the head",
        )


def _bare_head(asked: Asked, steps: int) -> Callable[[], None]:
    network, head = asked.network, asked.network.head
    assert isinstance(head, FlowDiTHead)
    condition = network.encode(asked.observation("cached")).condition
    x, t = torch.randn(1, network.config.horizons.prediction, network.action_dim), torch.full((1,), 0.5)

    @torch.no_grad()
    def forward() -> None:
        prepared = head.prepare(condition)
        for _ in range(steps):
            head.answer(x, t, prepared)

    return forward


def _row(
    name: str,
    ours: Callable[[], Any],
    bare: Callable[[], Any],
    seconds: float,
    wanted_ms: float | None,
    version: str,
    note: str,
) -> Row:
    mine, theirs = _timed(ours, bare, seconds)
    middle, late = median(mine), float(np.percentile(mine, 99))
    ratio = median(a / b for a, b in zip(mine, theirs))
    goal = None if wanted_ms is None else f"<= {wanted_ms:g} ms ({1e3 / wanted_ms:g} chunks/s)"
    holds = None if wanted_ms is None else middle <= wanted_ms
    said = f"p99 {late:.1f} ms, {1e3 / middle:.1f} chunks/s; {note}"
    return Row(name, middle, "ms", "lower", median(theirs), version, ratio, goal, holds, len(mine), said)


def _timed(ours: Callable[[], Any], bare: Callable[[], Any], seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of both, taken in turn, at least five of each."""
    mine, theirs = list[float](), list[float]()
    ours(), bare()
    end = time.perf_counter() + seconds
    while len(mine) < 5 or time.perf_counter() < end:
        for function, times in ((ours, mine), (bare, theirs)):
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return mine, theirs


def _gpu_row(*, quick: bool) -> Row:
    """The 99th percentile of the 43 M model with cached features in the head's own number of steps."""
    name, goal = "policy.43m.gpu.cached.p99", f"<= {GPU_MS:g} ms at p99 ({1e3 / GPU_MS:g} Hz)"
    if not torch.cuda.is_available():
        return Row(name, 0.0, "ms", "lower", None, "", None, goal, None, 0, "not measured: no GPU here")
    network = policy_network("43m", "efficientnet_lite").cuda()
    asked = Asked.of(network)
    steps = network.config.objective.sampler_spec().steps
    mine, _ = _timed(lambda: asked.chunk("cached", steps), lambda: None, 10 * SECONDS[quick])
    late = float(np.percentile(mine, 99))
    version = "the Action Agent paper: 40 to 47 chunks/s, on a GPU of its own"
    return Row(name, late, "ms", "lower", 1e3 / 47, version, late / (1e3 / 47), goal, late <= GPU_MS, len(mine), f"{steps} steps")
