"""bench sampler on a toy head: calls counted at the head, goals that can be missed, a front without dominated points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import Observation
from kineflow.policies.bench.contest import Contest
from kineflow.policies.bench.sampler import contestants, row, timed
from kineflow.policies.bench.sampler_page import pareto_front, write_page
from kineflow.policies.bench.sampler_runs import teachers_of, trained_heads
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.distillation.distill import distill
from kineflow.policies.intervals import Estimate, Percentiles
from kineflow.policies.samplers import calls


def contest(head: str, solver: str, steps: int, count: int, coverage: float) -> Contest:
    around = Estimate(coverage, coverage - 0.05, coverage + 0.05, 10)
    return Contest(
        head, solver, steps, count, around, Estimate(0.5, 0.3, 0.7, 10), Percentiles(1, 2.0 * count, 3, 9), (coverage,) * 10
    )


def test_front_has_no_dominated_point() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (3.0, 0.7), (4.0, 0.9)]
    assert pareto_front(points) == [(1.0, 0.5), (2.0, 0.7), (4.0, 0.9)]


@pytest.mark.parametrize(("coverage", "holds"), [(0.79, True), (0.77, False)])
def test_one_call_is_held_against_its_ten_step_teacher(coverage: float, holds: bool) -> None:
    teacher, student = contest("flow", "euler", 10, 10, 0.8), contest("psd", "jump", 1, 1, coverage)
    made = row(student, [teacher, student], "flow")
    assert made.holds is holds
    assert made.goal == "coverage >= 0.800 - 0.02"
    assert made.reference == 0.8
    assert row(teacher, [teacher], None).goal is None
    two = row(replace(student, steps=2, calls=2, coverage=Estimate(0.74, 0.7, 0.8, 10)), [teacher], "flow")
    assert two.holds is False  # below the lower bound 0.75
    assert row(replace(student, steps=4, calls=4), [teacher], "flow").goal is None


def test_only_students_are_held_against_a_teacher() -> None:
    flow, psd = contest("flow", "euler", 10, 10, 0.8), contest("psd", "jump", 1, 1, 0.1)
    other = row(contest("diffusion", "ddim", 1, 1, 0.1), [flow], None)
    assert (other.reference, other.goal, other.holds) == (None, None, None)
    assert row(psd, [flow], "another head").goal is None


def test_a_student_names_its_teacher(trained: Path, tmp_path: Path) -> None:
    student = distill(trained, "onestep", run=tmp_path / "student", training_steps=1)
    (tmp_path / "link").symlink_to(trained)
    assert teachers_of({"flow": tmp_path / "link", "onestep": student}) == {"onestep": "flow"}
    assert teachers_of({"onestep": student}) == {}


def test_page_has_every_contest(tmp_path: Path) -> None:
    contests = [contest("flow", "euler", 10, 10, 0.8), contest("<psd>", "jump", 1, 1, 0.7)]
    write_page(contests, tmp_path / "report.html", 10)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<tr>") == 3
    assert "&lt;psd&gt;" in page
    assert "<psd>" not in page
    assert "0.800 [0.750, 0.850]" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_calls_are_counted_at_the_head_of_a_real_run(trained: Path) -> None:
    """On the tiny policy: what the head is called equals what the solver promises."""
    policy = load_policy(trained)
    observation = Observation(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2)))
    for solver, steps in (("euler", 3), ("heun", 3), ("dpmpp2m", 4)):
        chosen = policy.resampled(solver, steps)  # type: ignore[arg-type]
        counted, times = timed(chosen, observation, 20)
        assert counted == calls(solver, steps)  # type: ignore[arg-type]
        assert times.n == 18
    assert ("euler", 10) in contestants(policy, quick=False)


def test_kept_runs_are_used_and_teachers_come_first(trained: Path, tmp_path: Path) -> None:
    for name in ("psd", "flow"):
        (tmp_path / name).symlink_to(trained)
    assert list(trained_heads(tmp_path, quick=True)) == ["flow", "psd"]
