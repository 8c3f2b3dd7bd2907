"""The teacher in the training loop: loaded once, frozen, its encoder and statistics shared with the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import Interface, PolicyContract
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.distillation.methods import Distillation
from kineflow.policies.distillation.teaching import DistillationError, Lesson, Solve, ode_of, with_noise_levels
from kineflow.policies.field import Chunk
from kineflow.policies.flow_map import FlowMap, Teacher
from kineflow.policies.heads.guessing import GuessingHead
from kineflow.policies.losses import draw_normal
from kineflow.policies.mix_flow import MixFlow, shifted
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.observed import Earlier
from kineflow.policies.paths import CondOT
from kineflow.policies.policy import PolicyConfig, PolicyNetwork, TrainingBatch

SHARED = ("horizons", "features", "cameras", "relative_to", "encoder", "action_scaling")  # what a student cannot change


@dataclass(frozen=True)
class TeacherPolicy:
    """A loaded policy and the method by which a student learns from it."""

    network: PolicyNetwork
    contract: PolicyContract
    method: Distillation

    @classmethod
    def load(cls, method: Distillation, student: PolicyConfig, offered: Interface, device: str) -> TeacherPolicy:
        """Raises KineflowError, before any training, when student, teacher and data do not fit each other."""
        policy = load_policy(method.teacher, device)
        config = policy.network.config
        with_noise_levels(config.objective)
        for name in SHARED:
            if (mine := getattr(student, name)) != (its := getattr(config, name)):
                raise DistillationError(
                    f"policy.{name} is {mine}, but the teacher {method.teacher} has {its}; a student answers the same "
                    "observations with the same actions, only its head and objective may differ"
                )
        policy.contract.require(offered, "the store of this run")
        policy.network.requires_grad_(False)
        return cls(policy.network, policy.contract, method)

    def prepare(self, student: PolicyNetwork) -> None:
        """Encoder, and head where it has the teacher's shapes and form, start as the teacher's; the encoder is frozen."""
        student.encoder.load_state_dict(self.network.encoder.state_dict())
        student.encoder.requires_grad_(self.method.train_encoder)
        if not _same_form(student.config, self.network.config):
            return
        head = student.head.head if isinstance(student.head, GuessingHead) else student.head
        mine, its = head.state_dict(), self.network.head.state_dict()
        if all(name in mine and mine[name].shape == value.shape for name, value in its.items()):
            head.load_state_dict(its, strict=False)

    def loss(
        self, student: PolicyNetwork, batch: TrainingBatch, generator: torch.Generator, noise_samples: int, progress: float
    ) -> Float[Tensor, ""]:
        """Mean loss over the batch; the counterpart of `PolicyNetwork.loss`."""
        lesson = self.lesson(student, batch, generator, progress).repeated(noise_samples)
        losses: Tensor = self.method.loss(student.config.objective, student.head, lesson)  # type: ignore[arg-type]
        return losses.mean()

    def lesson(self, student: PolicyNetwork, batch: TrainingBatch, generator: torch.Generator, progress: float) -> Lesson:
        """The batch in the units of both, with a teacher that answers as it is deployed: guided, clipped, its own solver."""
        objective, head = with_noise_levels(self.network.config.objective), self.network.head
        field = objective.field(head, self.network.null_condition)
        units, solve = student.units(batch.observed), ode_of(objective, head, field)
        with torch.no_grad():
            seen = self.network.encoder(batch.observed)
            previous = self._previous(solve, batch.earlier, units, generator) if batch.earlier else None
        return Lesson(
            teacher=Teacher(field, seen),
            solve=solve,
            chunk=units.normalise(batch.action),
            condition=student.encoder(batch.observed) if self.method.train_encoder else seen,
            weight=batch.weight,
            generator=generator,
            progress=progress,
            previous=previous,
        )

    def _previous(self, solve: Solve, earlier: Earlier, units: ActionUnits, generator: torch.Generator) -> Chunk:
        """What the teacher said at the earlier step, as seen from now and in the units of now."""
        then = self.network.units(earlier.observed)
        like = (units.scale + units.offset).expand(len(earlier.executed), *units.scale.shape)
        chunk = solve(draw_normal(like, generator), self.network.encoder(earlier.observed))
        return units.normalise(shifted(then.restore(chunk), earlier.executed))


def _same_form(student: PolicyConfig, teacher: PolicyConfig) -> bool:
    """Do both heads answer the same question? A flow map's diagonal is the velocity of a CondOT flow."""
    return _form(student) == _form(teacher)


def _form(config: PolicyConfig) -> tuple[object, str]:
    if isinstance(config.objective, MixFlow):
        return CondOT(), "velocity"
    objective = with_noise_levels(config.objective)
    return (CondOT(), "velocity") if isinstance(objective, FlowMap) else (objective.path, objective.prediction)
