"""MixFlow from a trained policy: the noise of each window knows what the teacher predicted E steps before it.

    observation of E steps ago --teacher--> chunk --shifted by E--> previous     (E: the execution horizon)
    flow from N(w mu(previous), w Sigma + (1 - w) I) to the demonstrated chunk, w ~ U[0, 1]     (policies/mix_flow.py)

The demonstration's own chunk of E steps ago would hold the answer; the teacher's holds its errors as well, as at run time. At
the first steps of an episode fewer than E are gone, at the very first none: then the previous chunk is one for now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from kineflow.policies.distillation.teaching import DistillationError, Lesson, with_noise_levels
from kineflow.policies.field import Head
from kineflow.policies.heads.arc import Arc
from kineflow.policies.heads.guessing import Guessing, GuessingHead
from kineflow.policies.losses import Losses
from kineflow.policies.mix_flow import MixFlow
from kineflow.policies.policy import HeadConfig, PolicyConfig


@dataclass(frozen=True)
class PreviousChunk:
    """A student whose noise starts at the previous chunk; a head that is not of kind Guessing becomes one."""

    teacher: Path  # run folder
    train_encoder: bool = False

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled."""
        with_noise_levels(teacher.objective)
        chosen = head or teacher.head
        if isinstance(chosen, Arc):
            raise DistillationError(
                "MixFlow regresses velocities, but an Arc head answers whole steps; take --student MLP or another"
            )
        guessing = chosen if isinstance(chosen, Guessing) else Guessing(chosen)
        return replace(teacher, head=guessing, objective=MixFlow(steps=steps))

    def loss(self, objective: MixFlow, head: Head, lesson: Lesson) -> Losses:
        """Flow matching of the demonstrated chunk from the guess that the teacher's previous chunk gives."""
        assert lesson.previous is not None
        assert lesson.condition is not None
        guess = cast(GuessingHead, head).guess(lesson.previous, lesson.condition)
        return objective.loss_from(head, guess, lesson.chunk, lesson.condition, lesson.generator, lesson.weight)
