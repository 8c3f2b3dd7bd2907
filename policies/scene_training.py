"""`kineflow train-scene`: worlds are filmed; SceneNet learns which places of two pictures are the same, and what is there.

    two pictures of a group --SceneNet--> match --products, softmax--> where each cell is in the other picture, or nowhere
                                          look  --linear-->            colour and kind of the named thing in the cell, or none;
                                                                       how far away what is there is

Loss: cross-entropy of the matches in both directions (a place between cells is shared among the four around it), plus that of
colours and kinds, plus the Huber loss of the logarithm of depth. Measured on worlds of their own.

run/config.yaml, metrics.jsonl, scene_net.safetensors (float16), training.safetensors + training.json (to go on from)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kineflow.config import load_config, save_config
from kineflow.contracts import KineflowError
from kineflow.envs.navigation.place_views import VIEWS, Groups, PlaceViews, film_views, read_groups
from kineflow.policies.encoders.scene_net import CELLS, LOOK, SceneNetwork

CELL_PX = 8
NOTHING_WEIGHT = 0.2  # of cells without a named thing, which are nearly all
SCALES_FASTER = 10.0  # the learning rate of single numbers: they have far to go, and each step is as long as the rate


@dataclass(frozen=True)
class SceneTraining:
    """What is filmed, and how long is learned from it. `evaluate_every` steps the held-out worlds are looked at."""

    views: PlaceViews = field(default_factory=PlaceViews)
    held_out: PlaceViews = field(default_factory=lambda: PlaceViews(first_world=25_000, worlds=40))
    folder: Path = Path("runs/data/place_views")
    steps: int = 3_000
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 2e-2
    warmup_steps: int = 200
    naming: float = 0.5  # weight of colours and kinds beside the matches
    ranging: float = 0.5  # and of depths
    evaluate_every: int = 500
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.evaluate_every, self.threads) < 1 or not self.learning_rate > 0:
            raise KineflowError(f"{self}: steps, batch_size, evaluate_every, threads and learning_rate must be positive")


@dataclass(frozen=True)
class SceneScores:
    """On held-out worlds. Of cells seen in both pictures: `error_px`, mean distance of where a cell is said to be from where it
    is, and `still_px`, that of saying that nothing moved. How often it is right whether a cell is `seen`, and, of cells of named
    things, the `colour` and the `noun`. `best_px`: median distance of the cell that matches best from where
    a cell is. `depth`: median relative error.
    """

    error_px: float
    median_px: float
    still_px: float
    seen: float
    colour: float
    noun: float
    best_px: float
    depth: float


class SceneLearner(nn.Module):
    """SceneNet with what is read off its looks in training alone: the logarithm of depth."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.depth = SceneNetwork(), nn.Linear(LOOK, 1)

    def loss(self, pairs: Pairs, naming: float, ranging: float) -> Float[Tensor, ""]:
        match, look = self.network(pairs.pixels())
        here, there = match.chunk(2)
        first = _cross_entropy(self.network.logits(here, there), targets(pairs.place, pairs.seen))
        second = _cross_entropy(self.network.logits(there, here), targets(pairs.back, pairs.seen_back))
        named = first.new_zeros(())
        for logits, labels in zip(self.network.named(look), (pairs.colour, pairs.noun)):
            weight = torch.ones(logits.shape[-1]).index_fill_(0, torch.tensor(0), NOTHING_WEIGHT)
            named = named + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
        far = F.huber_loss(self.depth(look)[..., 0], pairs.depth.flatten(1).log())
        return first + second + naming * named + ranging * far


@dataclass(frozen=True, eq=False)
class Pairs:
    """B pairs of pictures: the first B frames, then those they are matched with; labels in the same order."""

    frames: UInt8[Tensor, "2B H W 3"]
    place: Float[Tensor, "B 12 12 2"]
    seen: Tensor
    back: Float[Tensor, "B 12 12 2"]
    seen_back: Tensor
    colour: Tensor
    noun: Tensor
    depth: Float[Tensor, "2B 12 12"]  # m
    shades: Float[Tensor, "2B 4"] | None = None  # exponent and tint of each picture, drawn in training

    def pixels(self) -> Float[Tensor, "2B 3 H W"]:
        pixels = self.frames.permute(0, 3, 1, 2).float() / 255
        if self.shades is None:
            return pixels
        exponent, tint = self.shades[:, :1, None, None], self.shades[:, 1:, None, None]
        return (pixels**exponent * tint).clamp(0, 1)


class Views:
    """Groups of many worlds in RAM, and pairs of them."""

    def __init__(self, files: list[Path]) -> None:
        """Raises KineflowError without a group."""
        if not files:
            raise KineflowError("no world gave a group of views; film more worlds")
        parts = [read_groups(file) for file in files]
        self.groups = Groups(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0])})

    def __len__(self) -> int:
        return len(self.groups.frames)

    def pairs(self, count: int, generator: np.random.Generator, *, shaded: bool) -> Pairs:
        """Drawn evenly over groups and their ordered pairs."""
        g = generator.integers(len(self), size=count)
        i = generator.integers(VIEWS, size=count)
        j = (i + generator.integers(1, VIEWS, size=count)) % VIEWS
        own, shades = self.groups, None
        if shaded:
            drawn = np.concatenate(
                [generator.uniform(0.7, 1.3, (2 * count, 1)), generator.normal(1, 0.1, (2 * count, 3))], axis=1
            )
            shades = torch.from_numpy(drawn.astype(np.float32))
        labels = [np.concatenate([part[g, i], part[g, j]]).astype(np.int64) for part in (own.colour, own.noun)]
        frames = np.concatenate([own.frames[g, i], own.frames[g, j]])
        metres = np.concatenate([own.depth[g, i], own.depth[g, j]]).astype(np.float32)
        arrays = (frames, own.place[g, i, j], own.seen[g, i, j], own.place[g, j, i], own.seen[g, j, i], *labels, metres)
        first, place, seen, back, seen_back, colour, noun, depth = (torch.from_numpy(array) for array in arrays)
        return Pairs(first, place, seen, back, seen_back, colour, noun, depth, shades)


def targets(place: Float[Tensor, "B 12 12 2"], seen: Tensor) -> Float[Tensor, "B 144 145"]:
    """Where each cell is among the other picture's, shared among the four cells around it; the last entry is "nowhere"."""
    rows = len(place)
    cells = torch.where(seen[..., None], (place.float() - CELL_PX / 2) / CELL_PX, 0.0)
    low, shares = cells.floor(), torch.zeros(rows, CELLS * CELLS, CELLS * CELLS + 1)
    part = cells - low
    for right in (0, 1):
        for down in (0, 1):
            x, y = ((low[..., k] + step).clamp(0, CELLS - 1).long() for k, step in ((0, right), (1, down)))
            weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1]) * seen
            shares.scatter_add_(2, (y * CELLS + x).reshape(rows, -1, 1), weight.reshape(rows, -1, 1))
    shares[..., -1] = (~seen).flatten(1).float()
    return shares


def train_scene(config: SceneTraining, run: Path, *, progress: bool = True) -> SceneScores:
    """Film what is missing, train from where the run is, write the weights; returns the final scores.

    Raises:
        KineflowError: the folder holds a run of another configuration, or views filmed otherwise.
    """
    torch.set_num_threads(config.threads)
    run.mkdir(parents=True, exist_ok=True)
    if (run / "config.yaml").is_file() and load_config(SceneTraining, run / "config.yaml") != config:
        raise KineflowError(f"{run}/config.yaml is another configuration; name another folder with --run")
    save_config(config, run / "config.yaml")
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not progress) as bars:
        views, held_out = (
            Views(film_views(what, config.folder / name, _bar(bars, f"filming, {name}")))
            for name, what in (("training", config.views), ("held_out", config.held_out))
        )
        task, last = bars.add_task("training", total=config.steps), None
        for step, last in _steps(config, run, views, held_out):  # noqa: B007 - the last one is what it reached
            bars.update(task, completed=step)
    assert last is not None
    return last


def _steps(config: SceneTraining, run: Path, views: Views, held_out: Views) -> Iterator[tuple[int, SceneScores | None]]:
    torch.manual_seed(config.seed)
    learner = SceneLearner()
    # How sharply places are told apart is one number: decay would keep it small.
    scales = [p for p in learner.parameters() if p.ndim == 0]
    others = {"params": [p for p in learner.parameters() if p.ndim > 0], "weight_decay": config.weight_decay}
    optimiser = torch.optim.AdamW([others, {"params": scales, "weight_decay": 0.0}], config.learning_rate)
    step = _resume(run, learner, optimiser)
    if step == config.steps:
        yield step, evaluate(learner, held_out)
    while step < config.steps:
        rate = min(1.0, (step + 1) / config.warmup_steps) * (0.51 + 0.49 * math.cos(math.pi * step / config.steps))
        for group, faster in zip(optimiser.param_groups, (1.0, SCALES_FASTER)):
            group["lr"] = config.learning_rate * rate * faster
        loss = learner.loss(
            views.pairs(config.batch_size, np.random.default_rng([config.seed, step]), shaded=True),
            config.naming,
            config.ranging,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.parameters(), 2.0)
        optimiser.step()
        step += 1
        scores = None
        if step % config.evaluate_every == 0 or step == config.steps:
            scores = evaluate(learner, held_out)
            with (run / "metrics.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, "loss": float(loss.detach()), **vars(scores)}) + "\n")
            _save(run, learner, optimiser, step)
        yield step, scores


@torch.no_grad()
def evaluate(learner: SceneLearner, views: Views, pairs: int = 480) -> SceneScores:
    """On pairs that are always the same."""
    generator, network = np.random.default_rng(0), learner.network
    errors, still, right, colours, nouns, best, far = (list[Tensor]() for _ in range(7))
    along = torch.arange(CELLS, dtype=torch.float32)
    own = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).flatten(0, 1)
    for _ in range(pairs // 40):
        batch = views.pairs(40, generator, shaded=False)
        match, look = network(batch.pixels())
        share = torch.softmax(network.logits(*match.chunk(2)), dim=-1)
        said = share[..., :-1] @ own / share[..., :-1].sum(dim=-1, keepdim=True)
        seen, place = batch.seen.flatten(1), (batch.place.float().flatten(1, 2) - CELL_PX / 2) / CELL_PX
        errors.append(CELL_PX * (said - place).norm(dim=-1)[seen])
        still.append(CELL_PX * (own - place).norm(dim=-1)[seen])
        right.append((share[..., -1] < 0.5) == seen)
        best.append(CELL_PX * (own[share[..., :-1].argmax(dim=-1)] - place).norm(dim=-1)[seen])
        far.append((learner.depth(look)[..., 0].exp() / batch.depth.flatten(1) - 1).abs())
        for logits, labels, found in zip(network.named(look), (batch.colour, batch.noun), (colours, nouns)):
            known = labels.flatten(1) > 0
            found.append((logits.argmax(dim=-1) == labels.flatten(1))[known])
    every = [torch.cat([part.flatten() for part in p]).float() for p in (errors, still, right, colours, nouns, best, far)]
    means = [float(part.mean()) if len(part) else math.nan for part in every[:5]]
    return SceneScores(means[0], float(every[0].median()), *means[1:], *(float(part.median()) for part in every[5:]))


def _cross_entropy(logits: Float[Tensor, "B P Q"], shares: Float[Tensor, "B P Q"]) -> Float[Tensor, ""]:
    return -(shares * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def _save(run: Path, learner: SceneLearner, optimiser: torch.optim.Optimizer, step: int) -> None:
    """The weights for use, and everything to go on from."""
    half = {name: value.half().contiguous() for name, value in learner.network.state_dict().items()}
    state = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    for name, tensors in (("scene_net", half), ("training", state)):
        draft = run / f"{name}.draft"
        save_file(tensors, draft, {"step": str(step)})
        os.replace(draft, run / f"{name}.safetensors")


def _resume(run: Path, learner: SceneLearner, optimiser: torch.optim.Optimizer) -> int:
    """The step that was saved last; 0 without one."""
    file = run / "training.safetensors"
    if not file.is_file():
        return 0
    from safetensors import safe_open

    state = load_file(file)
    learner.load_state_dict({n.removeprefix("learner."): v for n, v in state.items() if n.startswith("learner.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimiser."):
            _, number, what = name.split(".")
            moments.setdefault(int(number), {})[what] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    with safe_open(file, "pt") as opened:
        return int(opened.metadata()["step"])


def _bar(bars: Any, name: str) -> Any:
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)
