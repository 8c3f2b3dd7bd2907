"""The parity gate: an exported policy must answer as the original does, on every question, or it is not exported.

The error of an answer is its largest difference relative to the spread of the original's answers, dimension by dimension; of a
stop probability the difference itself. One bad operation shows: OpenVINO 2026.4.1 computes attention wrong by half of its value
in float32 where tokens and heads are as many, and right in bfloat16 (specs), so each runtime, precision and shape is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kineflow.contracts import ActionChunk, Policy
from kineflow.deploy.export.questions import Question, random_questions
from kineflow.deploy.exported import SIDES, ExportedPolicy
from kineflow.deploy.exported_manifest import ParityResult, Precision

ALLOWED: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2, "int8": 2e-2}
FEWEST = 8  # questions
_SEED = 20261123


@dataclass(frozen=True)
class Asked:
    """Questions with the original's answers: computed once, compared with every candidate."""

    questions: Sequence[Question]
    answers: Sequence[ActionChunk]

    @classmethod
    def of(cls, policy: Policy, steps: int, count: int, *, prefixes: bool) -> Asked:
        questions = random_questions(policy.contract, max(count, FEWEST), _SEED, steps=steps, prefixes=prefixes)
        return cls(questions, [policy.predict(*question) for question in questions])


def parity(asked: Asked, exported: ExportedPolicy, steps: int, versions: str) -> ParityResult:
    """How far `exported` is from the original."""
    answers = [exported.predict(*question) for question in asked.questions]
    errors = _errors(asked.answers, answers)
    manifest, allowed = exported.manifest, ALLOWED[exported.manifest.precision]
    largest = float(np.max(errors))
    return ParityResult(
        f"act_{steps}",
        versions,
        manifest.precision,
        f"batch 1, {steps} steps",
        len(errors),
        largest,
        float(np.median(errors)),
        allowed,
        bool(largest <= allowed),  # not of NaN
    )


def _errors(expected: Sequence[ActionChunk], given: Sequence[ActionChunk]) -> list[float]:
    """Of each answer."""
    scale = _spread(np.concatenate([chunk.actions for chunk in expected]))
    errors = [np.abs((mine.actions - chunk.actions) / scale).max() for chunk, mine in zip(expected, given)]
    for name in SIDES:
        said = [getattr(chunk, name) for chunk in expected]
        known = [value for value in said if value is not None]
        if not known:
            continue
        size = 1.0 if name == "stop_probability" else float(np.abs(np.concatenate(known)).max()) or 1.0
        for row, (value, chunk) in enumerate(zip(said, given)):
            mine = getattr(chunk, name)
            if value is None and mine is None:
                continue
            differ = np.inf if value is None or mine is None else np.abs(mine - value).max() / size
            errors[row] = np.maximum(errors[row], differ)  # NaN stays NaN
    return [float(error) for error in errors]


def _spread(actions: np.ndarray) -> np.ndarray:
    """Half the range of each dimension over all answers; of one that does not vary its size, or 1."""
    rows = actions.reshape(-1, actions.shape[-1])
    half, size = (rows.max(axis=0) - rows.min(axis=0)) / 2, np.abs(rows).max(axis=0)
    return np.where(half > 1e-6 * np.maximum(size, 1e-12), half, np.where(size > 0, size, 1.0))
