"""`kineflow bench export`: parity and latency of exported policies, by runtime, precision, threads and steps.

Parity rows: the largest error over 8 random questions against `Policy.predict`; a goal for each. A row without a measurement is
an export that the gate refused, with the reason. Latency rows: one chunk with one new camera frame, the goal's clip seen before;
the reference is the policy itself in torch, asked the same with as many threads.

quick   PushT's MLP in ONNX Runtime and OpenVINO
full    every head of PushT, its image policy, the shipped navigation policy, and the 43 M FlowDiT on a ViT-S (random weights)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from kineflow.bench_row import Row
from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError
from kineflow.deploy.export.folder import ExportConfig, Exported, export_models
from kineflow.deploy.export.gate import ALLOWED
from kineflow.deploy.export.latency import Timed, latency
from kineflow.deploy.export.random_policies import random_policy
from kineflow.deploy.exported_manifest import Format, LatencyResult, Precision
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.train_config import TrainConfig

PUSHT = ("flow", "flow_unet", "diffusion", "flow_flagdit", "flow_dit", "flow_map", "regression", "mip", "image_diffusion")
BIG = "navigation_43m_vit_s"
NAVIGATION = "kineflow://navigation_flow_small"
CHUNK_MS = 50.0  # 20 chunks a second, of BIG in OpenVINO with few calls of the head
FEW_STEPS = 4
KINDS: tuple[tuple[Format, Precision], ...] = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
SECONDS = {True: 0.3, False: 2.0}


def bench_export(*, quick: bool) -> Iterator[Row]:
    """See the module; nothing is left on disk."""
    threads = (1,) if quick else tuple(range(1, min(os.cpu_count() or 1, 2) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pusht_flow",) if quick else (*(f"pusht_{head}" for head in PUSHT), NAVIGATION, BIG):
            kinds = KINDS[:2] if quick else KINDS
            yield from _policy_rows(name, kinds, threads, Path(folder), quick=quick)
    yield from _missing()


def bench_policy(name: str) -> tuple[ChunkPolicy, tuple[int, ...]]:
    """A policy by its name here, and the numbers of steps it is exported with beside its own."""
    if name == NAVIGATION:
        return load_policy(name), ()
    if name == BIG:
        return big_policy(), (FEW_STEPS,)
    config = load_config(TrainConfig, f"train/{name}").policy
    return random_policy(replace(config, privileged=()), load_config(Interface, "interfaces/pusht")), ()


def big_policy() -> ChunkPolicy:
    """The 43 M FlowDiT on a ViT-S/14 of 224 px, random weights. Words are hashed here: CLIP's are looked up once per episode."""
    config = load_config(TrainConfig, "train/navigation_flow_43m").policy
    assert isinstance(config.encoder, GoalVision)
    encoder = replace(config.encoder, frames=DINOv2(size=224, grid=4, weights="random"), text=HashedWords(256))
    return random_policy(replace(config, encoder=encoder), load_config(Interface, "interfaces/navigation"))


def _policy_rows(
    name: str, kinds: tuple[tuple[Format, Precision], ...], threads: tuple[int, ...], folder: Path, *, quick: bool
) -> Iterator[Row]:
    short = name.removeprefix("kineflow://")
    try:
        policy, steps = bench_policy(name)
    except (KineflowError, ModuleNotFoundError) as missing:
        yield Row(f"export.{short}", 0.0, "ms", "lower", None, "", None, None, None, 0, f"not measured: {missing}")
        return

    @cache
    def reference(count: int, threads: int) -> LatencyResult:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return latency(policy, Timed(short, "torch", "fp32", count, threads), SECONDS[quick])
        finally:
            torch.set_num_threads(before)

    for form, precision in kinds:
        config = ExportConfig(form, precision, steps=steps, measured_threads=threads)
        target = folder / f"{short}-{form}-{precision}"
        try:
            made = export_models(policy, name, target, config)
        except KineflowError as refused:
            yield _refused(f"export.parity.{short}.{form}.{precision}", precision, str(refused))
            continue
        yield from _parity_rows(short, made)
        for timed in made.manifest.latency:
            yield _latency_row(short, form, timed, reference)


def _refused(name: str, precision: Precision, why: str) -> Row:
    allowed = f"<= {ALLOWED[precision]:g}, or refused"
    return Row(
        name, math.inf, "of the spread", "lower", None, "", None, allowed, True, 8, f"refused, nothing written: {why[:300]}"
    )


def _parity_rows(short: str, made: Exported) -> Iterator[Row]:
    for result in made.manifest.parity:
        yield Row(
            f"export.parity.{short}.{made.manifest.format}.{result.precision}.{result.model}",
            result.error,
            "of the spread",
            "lower",
            0.0,
            f"Policy.predict, torch {torch.__version__}",
            None,
            f"<= {result.allowed:g}",
            result.holds,
            result.inputs,
            f"{result.runtime}; median {result.median:.1e}; {made.megabytes:.1f} MB",
        )


def _latency_row(short: str, form: Format, timed: LatencyResult, reference: Callable[[int, int], LatencyResult]) -> Row:
    torch_ms = reference(timed.steps, timed.threads)
    has_goal = short == BIG and form == "openvino" and timed.steps == FEW_STEPS and timed.precision != "fp32"
    return Row(
        f"export.latency.{short}.{form}.{timed.precision}.steps_{timed.steps}.threads_{timed.threads}",
        timed.p50_ms,
        "ms",
        "lower",
        torch_ms.p50_ms,
        f"torch {torch.__version__}, eager, float32",
        timed.p50_ms / torch_ms.p50_ms,
        f"<= {CHUNK_MS:g} ms (20 chunks/s)" if has_goal and timed.threads == 2 else None,
        timed.p50_ms <= CHUNK_MS if has_goal and timed.threads == 2 else None,
        timed.calls,
        f"p95 {timed.p95_ms:.2f}, least {timed.least_ms:.2f} ms; load {timed.load:.1f} (torch: {torch_ms.load:.1f})",
    )


def _missing() -> Iterator[Row]:
    """What this machine cannot run."""
    for name in ("tensorrt", "cuda_graphs"):
        why = (
            "this machine has no CUDA device" if not torch.cuda.is_available() else "not written yet; use torch.compile or eager"
        )
        yield Row(f"export.latency.{name}", 0.0, "ms", "lower", None, "", None, "<= 10 ms", None, 0, f"not measured: {why}")
