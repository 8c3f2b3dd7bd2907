"""The heads that `bench sampler` compares: two teachers and their distilled students, trained once and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from kineflow.config import load_config
from kineflow.policies.budget import choose_threads, fit_to_minutes
from kineflow.policies.checkpoint import checkpoint_steps
from kineflow.policies.demo import demo_store
from kineflow.policies.distillation.distill import distill
from kineflow.policies.train import TrainConfig, train

TEACHERS = {"flow": "train/pusht_flow", "diffusion": "train/pusht_diffusion"}
STUDENTS = ("psd", "lsd", "onestep", "reflow")  # of the flow teacher
TEACHER_MINUTES, STUDENT_MINUTES = 12.0, 4.0
QUICK_MINUTES = 0.4


def trained_heads(folder: Path, *, quick: bool) -> dict[str, Path]:
    """Run folders by name, teachers first; what is missing is trained: a full set, or in a hurry one pair of toys."""
    kept = {p.name: p for p in sorted(folder.glob("*")) if checkpoint_steps(p)}
    if not quick or "flow" not in kept:
        minutes = (QUICK_MINUTES, QUICK_MINUTES) if quick else (TEACHER_MINUTES, STUDENT_MINUTES)
        teachers = {"flow": TEACHERS["flow"]} if quick else TEACHERS
        students = STUDENTS[:1] if quick else STUDENTS
        kept |= _train_missing(folder, teachers, students, minutes)
    order = [name for name in TEACHERS if name in kept]
    return {name: kept[name] for name in order + sorted(kept.keys() - set(order))}


def teachers_of(runs: dict[str, Path]) -> dict[str, str]:
    """By name of a student, the name of the head that taught it, where both are here."""
    names = {run.resolve(): name for name, run in runs.items()}
    lessons = {name: load_config(TrainConfig, run / "config.yaml").distillation for name, run in runs.items()}
    asked = {name: names.get(lesson.teacher.resolve()) for name, lesson in lessons.items() if lesson is not None}
    return {student: teacher for student, teacher in asked.items() if teacher is not None}


def _train_missing(
    folder: Path, teachers: dict[str, str], students: tuple[str, ...], minutes: tuple[float, float]
) -> dict[str, Path]:
    console, runs = Console(stderr=True), {}
    for name, config in teachers.items():
        runs[name] = folder / name
        if not checkpoint_steps(runs[name]):
            console.rule(f"[bold]bench sampler: train {name} for about {minutes[0]:g} minutes")
            experiment = replace(load_config(TrainConfig, config), store=demo_store(folder / "pusht.eps"))
            train(fit_to_minutes(choose_threads(experiment), minutes[0]), runs[name])
    for method in students:
        runs[method] = folder / method
        if not checkpoint_steps(runs[method]):
            console.rule(f"[bold]bench sampler: distil {method} for about {minutes[1]:g} minutes")
            distill(runs["flow"], method, run=runs[method], minutes=minutes[1])
    return runs
