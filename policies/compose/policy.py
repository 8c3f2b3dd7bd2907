"""Several trained policies as one: their fields mixed at every noise level, solved once (General Policy Composition).

observation --view i--> parent i: encoder, tokens, head as a Field --its units--> a_hat_i
                              common noisy chunk --all parents--> sum w_i a_hat_i --solver--> chunk --> physical units
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial as partial_of
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import (
    ActionChunk,
    CommittedPrefix,
    ContractError,
    KineflowError,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
)
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.batch import Batch, HeadStack, Slot, one_by_one, stacks_of
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.contract import clocks, union_contract, union_interface, views
from kineflow.policies.compose.grid import Levels, check_grid, common_grid
from kineflow.policies.compose.memo import HeadLevel, PreparedHead, Remembered, at_head, head_level, head_of
from kineflow.policies.compose.operators import Apart, Conditioned, Convex, Either, EqualDensity, OnSteps, Together
from kineflow.policies.compose.timeline import Timeline, View
from kineflow.policies.compose.units import InUnits, Reference, SeenLevel
from kineflow.policies.compose.weights import Weights
from kineflow.policies.field import Field, Head
from kineflow.policies.golden import recorded
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.objectives import Diffusion, FlowMap, FlowMatching
from kineflow.policies.paths import CondOT, NoisePath
from kineflow.policies.policy_statistics import joined_statistics
from kineflow.policies.question import Question, question
from kineflow.policies.real_time_chunking import continue_prefix
from kineflow.policies.samplers import RowNoise, SolverName, solver_of
from kineflow.policies.time_grids import TimeGrid


@dataclass(frozen=True)
class ComposedPolicy:
    """A policy like any other (contracts.Policy); `names` of the parents are for messages."""

    parents: tuple[ChunkPolicy, ...]
    names: tuple[str, ...]
    composition: Composition
    contract: PolicyContract

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """Observation `[B, T, ...]` and seeds `[B]` to actions `[B, H, A]` in physical units.

        `request.guidance_scale` guides every parent, `request.steps` overrides the composition's.
        """
        self._check(observation, request)
        plan, asked = self.plan, self._questions(observation, request)
        units = plan.reference.units([one.units for one in asked])
        fields, together = plan.fields(asked, units)
        steps = request.steps or self.composition.steps
        lambdas = plan.grid(steps, self.composition.grid)
        noise = RowNoise(request.seeds, plan.noise_shape(self.composition), device=asked[0].device)
        x = noise.draw()
        if self.composition.operator == "and":
            both = EqualDensity(fields, noise, together)
            chunk = solver_of("ddpm")(both, x, lambdas, None, both)
        else:
            mixed = plan.mixed(fields, together, self.composition)
            if request.prefix:
                shape = (len(request.seeds), plan.timeline.size, x.shape[-1])
                mixed = continue_prefix(_padded(request.prefix, shape[1]), shape, units, steps)(mixed)
            chunk = solver_of(self.composition.solver, self.composition.diffusion)(mixed, x, lambdas, None, noise)
        actions = units.restore(chunk[:, : plan.timeline.size])[:, : self.contract.horizons.prediction]
        stamp = np.asarray(observation.stamp_s)[..., -1]
        return ActionChunk(actions.float().cpu().numpy(), 1 / self.contract.interface.action.rate_hz, stamp)

    def question(self, observation: Observation, request: SamplingRequest) -> Question:
        """The mixed field at `observation`, for search and streaming (policies/question.py)."""
        self._check(observation, request)
        if self.composition.operator == "and" or self.composition.noise == "independent":
            raise KineflowError("this composition has no field of its own: its weights follow the solver's noise; use convex")
        plan, asked = self.plan, self._questions(observation, request)
        units = plan.reference.units([one.units for one in asked])
        mixed = plan.mixed(*plan.fields(asked, units), self.composition)
        return Question(mixed, None, units, sum(one.calls for one in asked), asked[0].device)

    def resampled(
        self,
        solver: SolverName | None = None,
        steps: int | None = None,
        grid: TimeGrid | None = None,
        diffusion: float | None = None,
    ) -> ComposedPolicy:
        """The same parents and weights, sampled otherwise; None keeps what the composition says."""
        asked = {"solver": solver, "steps": steps, "grid": grid, "diffusion": diffusion}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return compose(self.parents, self.names, replace(self.composition, **changes))

    @cached_property
    def plan(self) -> Plan:
        """What does not depend on the observation."""
        return Plan.of(self.parents, self.names, self.composition)

    def _questions(self, observation: Observation, request: SamplingRequest) -> list[Question]:
        own = replace(request, steps=None, prefix=None)
        return [question(self.parents[i], self.plan.views[i].of(observation), own) for i in self.plan.active]

    def _check(self, observation: Observation, request: SamplingRequest) -> None:
        horizon = self.contract.horizons.observation
        size = sum(spec.vector.size for spec in self.contract.interface.features.values())
        expected = (len(request.seeds), horizon, size)
        if observation.state.shape != expected:
            raise ContractError(
                f"observation.state has shape {observation.state.shape}, the composed policy needs {expected}: "
                f"seeds, observation horizon, dimensions of {tuple(self.contract.interface.features)}"
            )
        for name, camera in self.contract.interface.cameras.items():
            frames = observation.images.get(name)
            wanted = (*expected[:2], camera.height, camera.width, 3)
            if frames is None or frames.shape != wanted:
                found = "missing" if frames is None else str(frames.shape)
                raise ContractError(f"observation.images['{name}'] is {found}, the composed policy needs uint8 {wanted}")
        chunks = (expected[0], self.contract.horizons.prediction, self.contract.interface.action.vector.size)
        if request.prefix and request.prefix.actions.shape != chunks:
            raise ContractError(f"the prefix has actions {request.prefix.actions.shape}; the policy's chunks are {chunks}")
        if request.prefix and (self.composition.operator == "and" or self.composition.noise == "independent"):
            raise ContractError("operator and, and independent noise, take no prefix: there is no single field to guide")


@dataclass(frozen=True)
class Plan:
    """A composition worked out: which parents count, the common time axis, units and noise levels."""

    active: tuple[int, ...]  # parents that are called; all indices below are among these
    timeline: Timeline
    views: tuple[View, ...]  # of all parents
    steps: tuple[tuple[int, ...], ...]
    cover: Float[Tensor, "P N"] | None
    reference: Reference
    levels: tuple[Levels, ...]
    weights: Weights
    heads: tuple[Remembered[HeadLevel] | None, ...]  # None: a single parent is left exactly as it is
    seen: tuple[Remembered[SeenLevel], ...]
    stacks: tuple[HeadStack, ...]
    grids: dict[tuple[int, TimeGrid], Float[Tensor, "N1"]] = field(default_factory=dict)  # filled as they are asked for

    @classmethod
    def of(cls, parents: Sequence[ChunkPolicy], names: Sequence[str], composition: Composition) -> Plan:
        """Raises KineflowError or ContractError when these parents cannot be composed like this."""
        contracts = [parent.contract for parent in parents]
        timeline = Timeline.of(clocks(names, contracts), composition.execution)
        interface = union_interface(names, contracts, timeline)
        paths = [path_of(parent, name) for parent, name in zip(parents, names)]
        active = _active(timeline, composition)
        steps = [timeline.tracks[i].steps for i in active]
        cover = torch.zeros(len(active), timeline.size)
        for row, places in enumerate(steps):
            cover[row, list(places)] = 1
        partial = not bool(cover.all())
        if composition.operator != "convex" and partial:
            raise KineflowError(
                f"operator {composition.operator} compares densities of whole chunks, but these policies act on different steps; "
                "use convex, or parents of one rate and horizon"
            )
        scales = [parents[i].network.action_scale for i in active]
        reference = Reference.of(scales, steps, [names[i] for i in active], approximate=composition.approximate)
        levels = tuple(Levels(names[i], paths[i], float(np.log(q))) for i, q in zip(active, reference.ratios))
        return cls(
            active,
            timeline,
            views(interface, contracts, timeline),
            tuple(steps),
            cover if partial else None,
            reference,
            levels,
            composition.table.of(active),
            tuple(_remembered_head(parents[i]) if len(active) > 1 else None for i in active),
            tuple(Remembered(partial_of(SeenLevel.of, ratio=q)) for q in reference.ratios),
            stacks_of([parents[i] for i in active], [names[i] for i in active], composition.batched),
        )

    def fields(self, asked: Sequence[Question], units: ActionUnits) -> tuple[list[Field], Together]:
        """Each active parent's field, asked in common units on the common chunk, and how to ask them all."""
        fields: list[Field] = []
        slots: list[Slot] = []
        for index, (one, steps) in enumerate(zip(asked, self.steps)):
            own, levels = one.field, self.heads[index]
            if self.stacks:
                own = at_head(own, lambda at: replace(at, head=_noted(slots, at.head)))
            own = at_head(own, partial_of(PreparedHead, levels=levels)) if levels else own
            alone: Field = Conditioned(own, one.condition)
            change = self.reference.change(index, units, one.units, steps)
            alone = alone if change is None else InUnits(alone, change, self.seen[index])
            fields.append(OnSteps(alone, steps) if len(steps) < self.timeline.size else alone)
        return fields, Batch(self.stacks, slots) if self.stacks else one_by_one

    def mixed(self, fields: Sequence[Field], together: Together, composition: Composition) -> Field:
        if composition.operator == "or":
            return Either(fields, self.weights, [level.name for level in self.levels])
        convex = Convex(fields, self.weights, self.cover, together)
        return Apart(convex) if composition.noise == "independent" else convex

    def grid(self, steps: int, grid: TimeGrid) -> Float[Tensor, "N1"]:
        if (steps, grid) not in self.grids:
            lambdas = common_grid(self.levels, steps, grid)
            check_grid(self.levels, lambdas)
            self.grids[steps, grid] = lambdas
        return self.grids[steps, grid]

    def noise_shape(self, composition: Composition) -> tuple[int, int]:
        copies = len(self.active) if composition.noise == "independent" else 1
        return copies * self.timeline.size, self.reference.scale.shape[-1]


def compose(parents: Sequence[ChunkPolicy], names: Sequence[str], composition: Composition) -> ComposedPolicy:
    """A policy of `parents`, checked, with its contract and golden pair."""
    from_parents = [parent.contract for parent in parents]
    plan = Plan.of(parents, names, composition)
    plan.grid(composition.steps, composition.grid)
    sampler = SamplerSpec(
        " + ".join(c.sampler.path for c in from_parents),
        " + ".join(c.sampler.prediction for c in from_parents),
        composition.solver,
        composition.steps,
    )
    interface = union_interface(names, from_parents, plan.timeline)
    draft = union_contract(from_parents, interface, plan.timeline, sampler, from_parents[0].golden)
    policy = ComposedPolicy(tuple(parents), tuple(names), composition, draft)
    mean = joined_statistics(draft.statistics, tuple(interface.features)).mean
    return replace(policy, contract=replace(draft, golden=recorded(policy.predict, interface, draft.horizons, mean)))


def path_of(parent: ChunkPolicy, name: str) -> NoisePath:
    """The noise path of a parent's head; KineflowError for a policy without noise levels."""
    objective = parent.network.config.objective
    if isinstance(objective, FlowMap):
        return CondOT()  # its diagonal is an ordinary flow
    if not isinstance(objective, FlowMatching | Diffusion):
        raise KineflowError(
            f"'{name}' is a {type(objective).__name__} policy: it has no noise levels at which its answer could be mixed; "
            "compose flow-matching and diffusion policies"
        )
    return objective.path


def _noted(slots: list[Slot], head: Head) -> Slot:
    slots.append(Slot(head))
    return slots[-1]


def _padded(prefix: CommittedPrefix, size: int) -> CommittedPrefix:
    """A prefix for all steps that are solved: those after the chunk's end are free."""
    more = size - prefix.actions.shape[1]
    actions, mask = np.pad(prefix.actions, ((0, 0), (0, more), (0, 0))), np.pad(prefix.soft_mask, ((0, 0), (0, more)))
    return CommittedPrefix(actions, mask, prefix.delay, prefix.method)


def _remembered_head(parent: ChunkPolicy) -> Remembered[HeadLevel] | None:
    objective = parent.network.config.objective
    assert isinstance(objective, FlowMatching | Diffusion | FlowMap)
    head = head_of(objective.field(parent.network.head, parent.network.null_condition))
    return Remembered(partial_of(head_level, head)) if head else None


def _active(timeline: Timeline, composition: Composition) -> tuple[int, ...]:
    """Parents with a weight at some level, and those without which a step would have nobody."""
    everyone = range(len(timeline.tracks))
    if composition.operator == "and":
        return tuple(everyone)
    weighted = [i for i in everyone if composition.table.largest[i] > 0]
    reached = {step for i in weighted for step in timeline.tracks[i].steps}
    return tuple(i for i in everyone if i in weighted or not reached.issuperset(timeline.tracks[i].steps))
