"""`kineflow distill RUN --method psd --student HEAD --steps 1`: a student of a trained run, as a normal run folder.

Data, symmetry and optimiser are those of the teacher's run unless overridden; what the student is comes from the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from kineflow.config import apply_overrides, from_plain, load_config
from kineflow.contracts import KineflowError
from kineflow.policies.budget import choose_threads, fit_to_minutes
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.distillation.methods import METHODS, Distillation
from kineflow.policies.distillation.teaching import DistillationError, with_noise_levels
from kineflow.policies.policy import HeadConfig, PolicyConfig
from kineflow.policies.train import TrainConfig, train


def distill(
    teacher: Path,
    method: str,
    *,
    student: str | None = None,
    steps: int = 1,
    run: Path | None = None,
    minutes: float | None = None,
    training_steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a student that samples in `steps` calls and return its run folder (default: beside the teacher's).

    `student` is a head: its kind, YAML such as "{kind: MLP, width: 64}", or a YAML file; None keeps the teacher's.

    Raises:
        KineflowError: before training, when teacher, method and student do not fit each other.
    """
    config = student_config(teacher, method, student, steps)
    config = apply_overrides(replace(config, steps=training_steps or config.steps), overrides)
    _check_head(teacher, config.policy, student)
    config = choose_threads(config)
    folder = run or teacher.with_name(f"{teacher.name}_{method}")
    train(fit_to_minutes(config, minutes) if minutes else config, folder)
    return folder


def student_config(teacher: Path, method: str, student: str | None, steps: int) -> TrainConfig:
    """The teacher's experiment with the method's student in its place."""
    distillation = _method(method)(teacher)
    if not (teacher / "config.yaml").is_file() or not (teacher / "checkpoints").is_dir():
        raise DistillationError(
            f"{teacher}: not a finished run folder (config.yaml and checkpoints/), so there is no teacher and no data; "
            f"train one first: kineflow train CONFIG --run {teacher}"
        )
    config = load_config(TrainConfig, teacher / "config.yaml")
    with_noise_levels(config.policy.objective)
    if steps < 1:
        raise DistillationError(f"--steps is {steps}; it is the number of calls for a chunk, at least 1")
    head = None if student is None else _head(student)
    return replace(config, policy=distillation.student(config.policy, head, steps), distillation=distillation)


def _method(name: str) -> Callable[[Path], Distillation]:
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise DistillationError(f"unknown method '{name}'{hint}; one of {', '.join(METHODS)}")


def _head(text: str) -> HeadConfig:
    file = Path(text)
    try:
        data = yaml.safe_load(file.read_text() if file.is_file() else text)
    except yaml.YAMLError as error:
        raise DistillationError(f"--student {text}: not valid YAML: {error}") from error
    if isinstance(data, str) and data.endswith((".yaml", ".yml")):
        raise DistillationError(f"--student {text}: no such file")
    if isinstance(data, dict) and "policy" in data:  # a whole experiment: its head
        data = data["policy"]["head"]
    named = {"kind": data} if isinstance(data, str) else data
    head: HeadConfig = from_plain(HeadConfig, named, f"--student {text}")
    return head


def _check_head(teacher: Path, student: PolicyConfig, text: str | None) -> None:
    network = load_policy(teacher).network
    try:
        student.head.build(student.horizons.prediction, network.action_dim, network.encoder.token_shape)
    except KineflowError as error:
        raise DistillationError(
            f"--student {text}: does not fit the teacher {teacher}, which predicts {student.horizons.prediction} steps of "
            f"{network.action_dim} dimensions: {error}"
        ) from error
