"""`kineflow train-flow`: films pairs in the simulator, trains the flow network on them, measures it in worlds it has not seen.

RUN/pairs/         world-<number>.npz; a run that was stopped films what is missing
RUN/config.yaml    RUN/metrics.jsonl    RUN/flow_net.safetensors (float16; its metadata say how it was made)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

import kineflow
from kineflow.config import save_config
from kineflow.contracts import KineflowError, to_plain
from kineflow.envs.navigation.flow_pairs import FlowWorlds, film_worlds
from kineflow.policies.encoders.flow_net import CELLS, SIDE, FlowNet, FlowNetwork, upsampled
from kineflow.policies.flow_pairs import FIRST, SECOND, EndPointError, FlowPairs, end_point_error

_HELD_OUT = 25000  # number of the first world that nothing is trained on
_CELL_PX = SIDE // CELLS
_STAGES = (0.3, 0.5, 1.0)  # weights of the losses of first guess, after a step, and the flow
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FlowTrainConfig:
    """`worlds` to learn from, `held_out` ones to measure in. A step learns from `batch` bursts, six pairs each.

    The loss is the distance to the true flow to the power `power` (less than 1: far points pull less), and `matching` times the
    cross-entropy of the matches of cells. Light and colour of a burst change by up to `light` and `colour`. Rates fall as a
    cosine; what is written is the average of the weights over about `1 / (1 - average)` steps.
    """

    worlds: FlowWorlds = field(default_factory=lambda: FlowWorlds(worlds=640))
    held_out: FlowWorlds = field(default_factory=lambda: FlowWorlds(first_world=_HELD_OUT, worlds=64))
    steps: int = 8000
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    power: float = 0.8
    matching: float = 0.2
    light: float = 0.3
    colour: float = 0.15
    average: float = 0.998
    measure_every: int = 1000
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.measure_every) < 1 or not 0 <= self.average < 1 or not 0 < self.power <= 1:
            raise KineflowError(
                f"train-flow: steps {self.steps}, batch {self.batch}, measure_every {self.measure_every} must be at least 1, "
                f"average {self.average:g} in [0, 1), power {self.power:g} in (0, 1]"
            )
        for name in ("worlds", "held_out"):
            picture = getattr(self, name).picture
            if (picture.height, picture.width) != (SIDE, SIDE):
                raise KineflowError(
                    f"train-flow: {name}.picture is {picture.height} x {picture.width} px, the network's {SIDE} x {SIDE}"
                )


@dataclass(frozen=True)
class FlowTrainReport:
    """What a run reached, on its held-out worlds."""

    weights: str
    steps: int
    minutes: float
    error: EndPointError

    def text(self) -> str:
        """For people."""
        return f"{self.weights}: {self.steps} steps, {self.minutes:.1f} min; error in held-out worlds {self.error.text()}"

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(to_plain(self)), parse_constant=lambda _: None)
        return plain


def train_flow(config: FlowTrainConfig, run: Path, progress: Progress = lambda what, done, total: None) -> FlowTrainReport:
    """Film, train, measure and write, as the module says. `progress(what, done, total)` hears of both.

    Raises:
        KineflowError: a body of the simulator is not available here, or RUN/pairs was filmed otherwise.
    """
    torch.set_num_threads(config.threads)
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    parts = {"pairs": config.worlds, "held-out pairs": config.held_out}
    learned, held_out = (
        FlowPairs.read(film_worlds(worlds, run / "pairs", lambda done, total, name=name: progress(name, done, total)))  # type: ignore[misc]
        for name, worlds in parts.items()
    )
    torch.manual_seed(config.seed)
    trainer, started = FlowTrainer(config, FlowNetwork(), learned), time.perf_counter()
    with (run / "metrics.jsonl").open("w") as log:
        for step, loss in trainer.steps():
            progress("training", step, config.steps)
            if step % config.measure_every == 0 or step == config.steps:
                error = measure(trainer.averaged(), held_out)
                line = {"step": step, "loss": loss, "seconds": time.perf_counter() - started, "error_px": error.near}
                print(json.dumps(line), file=log, flush=True)
    minutes, weights = (time.perf_counter() - started) / 60, run / "flow_net.safetensors"
    write_weights(trainer.averaged(), weights, {"config": to_plain(config), "end_point_error": error.text()})
    return FlowTrainReport(str(weights), config.steps, minutes, error)


class FlowTrainer:
    """Trains `network` on `pairs`; everything random follows from the seed."""

    def __init__(self, config: FlowTrainConfig, network: FlowNetwork, pairs: FlowPairs) -> None:
        self.config, self.network, self._pairs = config, network.train(), pairs
        self._optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self._average = {name: value.clone() for name, value in network.state_dict().items()}
        self._generator = torch.Generator().manual_seed(config.seed)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Step after step: its number from 1 on, and its loss."""
        for step in range(self.config.steps):
            yield step + 1, self._step(step)

    def averaged(self) -> FlowNetwork:
        """A network with the averaged weights, to be used."""
        network = FlowNetwork()
        network.load_state_dict(self._average)
        return network.eval().requires_grad_(False)

    def _step(self, step: int) -> float:
        config = self.config
        warm = min(1.0, (step + 1) / 200)
        rate = config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss = self._loss(*self._drawn())
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        keep = min(config.average, 1 - 1 / (step + 2) ** 0.8)
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self._average[name].lerp_(value, 1 - keep)
        return float(loss.detach())

    def _drawn(self) -> tuple[Float[Tensor, "B 3 96 96 3"], Float[Tensor, "B 6 2 48 48"], Bool[Tensor, "B 6 48 48"]]:
        chosen = torch.randint(len(self._pairs), (self.config.batch,), generator=self._generator)
        frames, (flow, known) = self._pairs.frames[chosen].float(), self._pairs.flow(chosen)
        turned = torch.rand(len(chosen), generator=self._generator) < 0.5
        frames[turned], flow[turned], known[turned] = mirrored(frames[turned], flow[turned], known[turned])
        light = 1 + self.config.light * self._even(len(chosen), 1) + self.config.colour * self._even(len(chosen), 3)
        return ((frames - 128) * light[:, None, None, None] + 128).clamp(0, 255), flow, known

    def _even(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator) * 2 - 1

    def _loss(
        self, frames: Float[Tensor, "B 3 96 96 3"], flow: Float[Tensor, "B 6 2 48 48"], known: Bool[Tensor, "B 6 48 48"]
    ) -> Float[Tensor, ""]:
        grey, cells = self.network.encode(frames.flatten(0, 1))
        start = 3 * torch.arange(len(frames))[:, None]
        first, second = (start + FIRST).flatten(), (start + SECOND).flatten()  # each frame is encoded once for its four pairs
        flow, known = flow.flatten(0, 1), known.flatten(0, 1)
        pixels = known.sum().clamp(min=1)
        loss = self.config.matching * matching_loss(self.network.logits(cells[first], cells[second]), flow, known)
        for weight, seen in zip(_STAGES, self.network.flows(grey[first], cells[first], grey[second], cells[second])):
            far = (upsampled(seen, SIDE, every=2) - flow).square().sum(dim=1)
            loss = loss + weight * ((far + 0.01).pow(self.config.power / 2) * known).sum() / pixels
        return loss


def mirrored(
    frames: Float[Tensor, "B 3 H W 3"], flow: Float[Tensor, "B 6 2 H2 W2"], known: Bool[Tensor, "B 6 H2 W2"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right exchanged. Columns 0, 2, .. of the flow stay those of even columns: frames go one pixel further."""
    sign = torch.tensor([-1.0, 1.0])[:, None, None]
    return frames.flip(3).roll(-1, 3), flow.flip(4) * sign, known.flip(3)


def matching_loss(
    logits: Float[Tensor, "N 144 144"], flow: Float[Tensor, "N 2 48 48"], known: Bool[Tensor, "N 48 48"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the cells' matches: a cell belongs to the four that its centre falls between, by bilinear weights."""
    places = torch.stack(torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="xy"), dim=-1).reshape(-1, 2)
    where = flow[:, :, 2::4, 2::4].flatten(2).transpose(1, 2) / _CELL_PX + places
    counts = known[:, 2::4, 2::4].flatten(1) & (where > 0).all(dim=-1) & (where < CELLS - 1).all(dim=-1)
    where = where.clamp(0, CELLS - 1 - 1e-3)
    corner, share, log_match = where.long(), where.frac(), logits.log_softmax(dim=-1)
    loss = torch.zeros_like(share[..., 0])
    for right in (0, 1):
        for down in (0, 1):
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            cell: Int64[Tensor, "N 144"] = (corner[..., 1] + down) * CELLS + corner[..., 0] + right
            loss = loss - weight * log_match.gather(-1, cell[..., None])[..., 0]
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def measure(network: FlowNetwork, pairs: FlowPairs) -> EndPointError:
    """End-point error of the network's flow of all pixels."""
    encoder = FlowNet("random").build(0)
    encoder.network = network

    def see(first: UInt8[Tensor, "N 96 96 3"], second: UInt8[Tensor, "N 96 96 3"]) -> Float[Tensor, "N 2 96 96"]:
        return encoder.dense(first, second)

    return end_point_error(see, pairs)


def write_weights(network: FlowNetwork, path: Path, made: dict[str, Any]) -> None:
    """float16 safetensors, with how they were made in the metadata."""
    from safetensors.torch import save_file

    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path, {"kineflow": kineflow.__version__, "made": json.dumps(made)})
