"""`kineflow bench flow`: the learned optical flow beside others, in worlds that nothing was trained on, on one thread.

flow.error   mean distance to the true flow over the pixels seen in both pictures, of pairs 0.1 to 0.4 s apart: wheeled base,
             drone and humanoid, indoors and outdoors, walkers
flow.ms      one pair of 96 x 96 px, from uint8 pictures to the flow of every pixel
flow.clip    the same for each pair of a clip of 33 pictures
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.flow_pairs import FlowWorlds, film_worlds
from kineflow.extras import require
from kineflow.policies.bench.rows import Row, alternate
from kineflow.policies.encoders.flow_features import LucasKanade
from kineflow.policies.encoders.flow_net import CELLS, GREYS, SIDE, FlowNet, upsampled
from kineflow.policies.encoders.flow_peers import DIS, RAFT, DISFlow
from kineflow.policies.flow_pairs import EndPointError, FlowPairs, SeeFlow, end_point_error

FIRST_WORLD = 25100  # the weights' own measurements are in worlds 25000 .. 25063
CLIP = 33
REPEATS = 20  # of a pair in one measurement


def bench_flow(*, quick: bool) -> Iterator[Row]:
    """Quick: 8 worlds, fewer timings. Full: 48 worlds."""
    with _one_thread() as cv2, torch.inference_mode():
        pairs = _film(8 if quick else 48)
        ours = FlowNet().build(4)
        presets = {preset: DIS(preset).build(4) for preset in ("medium", "fast", "ultrafast")}
        named = {f"dis_{preset}": _dis_version(cv2, preset) for preset in presets}
        errors = {f"dis_{preset}": end_point_error(flow.dense, pairs) for preset, flow in presets.items()}
        errors |= {"lucas_kanade": end_point_error(_lucas_kanade, pairs), "no_motion": end_point_error(_no_motion, pairs)}
        named |= {"lucas_kanade": f"ours: LucasKanade(size={GREYS}) of {CELLS} x {CELLS} parts", "no_motion": "a flow of zeros"}
        yield from _error_rows(end_point_error(ours.dense, pairs), errors, named, len(pairs))
        yield from _time_rows(ours.dense, {**presets}, named, pairs, 15 if quick else 101)


def _error_rows(ours: EndPointError, others: dict[str, EndPointError], named: dict[str, str], bursts: int) -> Iterator[Row]:
    note = f"mean over pixels seen in both pictures, pairs 0.1 to 0.4 s apart, {bursts} bursts in held-out worlds"
    for name, error in others.items():
        goal = "ratio < 1" if name == "dis_medium" else None
        yield _row(f"flow.error.{name}", ours.near, error.near, "px", named[name], goal, ours.pairs, note)
    medium = others["dis_medium"]
    for step in sorted(ours.by_step.keys() & medium.by_step.keys()):
        name = f"flow.error.{0.1 * step:.1f}s"
        yield _row(name, ours.by_step[step], medium.by_step[step], "px", named["dis_medium"], None, ours.pairs, "by time between")


def _time_rows(ours: SeeFlow, presets: dict[str, DISFlow], named: dict[str, str], pairs: FlowPairs, rounds: int) -> Iterator[Row]:
    before, after = pairs.frames[0, :1], pairs.frames[0, 1:2]

    def timed(see: SeeFlow, first: Tensor, second: Tensor, times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                see(first, second)

        return run

    others: dict[str, tuple[SeeFlow, str]] = {f"dis_{name}": (flow.dense, named[f"dis_{name}"]) for name, flow in presets.items()}
    others["lucas_kanade"] = (_lucas_kanade, named["lucas_kanade"])
    mine = timed(ours, before, after, REPEATS)
    for name, (see, version) in others.items():
        ms, theirs, ratio = alternate(mine, timed(see, before, after, REPEATS), rounds)
        goal = "ratio < 1" if name == "dis_medium" else None
        note = f"one pair of {SIDE} x {SIDE} px, one thread; median of {rounds} times {REPEATS}"
        yield _row(f"flow.ms.{name}", 1e3 * ms / REPEATS, 1e3 * theirs / REPEATS, "ms", version, goal, rounds, note, ratio)
    clip = pairs.frames.flatten(0, 1)[torch.arange(CLIP) % (3 * len(pairs))]
    few, count = max(rounds // 5, 3), CLIP - 1
    mine, medium = (timed(see, clip[:-1], clip[1:], 1) for see in (ours, presets["medium"].dense))
    ms, theirs, ratio = alternate(mine, medium, few)
    note = f"each pair of a clip of {CLIP} pictures, one thread"
    yield _row("flow.clip.dis_medium", 1e3 * ms / count, 1e3 * theirs / count, "ms", named["dis_medium"], None, few, note, ratio)
    yield from _raft_row(ours, before, after, few)


def _raft_row(ours: SeeFlow, before: Tensor, after: Tensor, rounds: int) -> Iterator[Row]:
    try:
        raft = RAFT("random").build(4)
        version = f"torchvision {require('torchvision', 'for RAFT').__version__}: raft_small, random weights, 12 updates, 128 px"
    except KineflowError as missing:
        yield Row("flow.ms.raft_small", 0.0, "ms", "lower", None, "", None, None, None, 0, f"not measured: {missing}")
        return
    ms, theirs, ratio = alternate(lambda: ours(before, after), lambda: raft.dense(before, after), rounds)
    yield _row(
        "flow.ms.raft_small", 1e3 * ms, 1e3 * theirs, "ms", version, None, rounds, "its time only: no weights offline", ratio
    )


def _row(
    name: str, value: float, reference: float, unit: str, version: str, goal: str | None, n: int, note: str, ratio: float = 0.0
) -> Row:
    ratio = ratio or value / reference
    return Row(name, value, unit, "lower", reference, version, ratio, goal, None if goal is None else ratio < 1, n, note)


def _film(worlds: int) -> FlowPairs:
    """Pairs of all bodies that are available here."""
    bodies = ["wheeled", "drone", "humanoid"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = film_worlds(FlowWorlds(tuple(bodies), first_world=FIRST_WORLD, worlds=worlds), Path(folder) / "pairs")
        except KineflowError:  # the humanoid's model cannot be fetched
            config = FlowWorlds(tuple(bodies[:2]), first_world=FIRST_WORLD, worlds=worlds)
            files = film_worlds(config, Path(folder) / "fewer")
        return FlowPairs.read(files)


def _lucas_kanade(before: Tensor, after: Tensor) -> Tensor:
    """Of 12 x 12 parts, between them as the learned one does it."""
    parts = LucasKanade(size=GREYS).build(CELLS)(before, after)
    return upsampled(parts * (CELLS / GREYS), SIDE)


def _no_motion(before: Tensor, after: Tensor) -> Tensor:
    return torch.zeros(len(before), 2, *before.shape[1:3])


def _dis_version(cv2: Any, preset: str) -> str:
    return f"OpenCV {cv2.__version__}: DIS {preset}, grey levels, one thread"


@contextmanager
def _one_thread() -> Iterator[Any]:
    cv2 = require("cv2", "for the optical flow DIS")
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield cv2
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
