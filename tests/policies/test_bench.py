"""Benchmarks: the row format, honest ratios, misses that fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kineflow.policies.bench import head as head_bench
from kineflow.policies.bench.head import bench_head, parameter_counts
from kineflow.policies.bench.rows import BenchReport, Row, alternate
from kineflow.policies.bench.train import bench_train

ROW = Row("a.b", 1.0, "ms", "lower", 2.0, "torch 2", 0.5, "ratio <= 1.1", True, 3, "")
FIELDS = {"name", "value", "unit", "better", "reference", "reference_version", "ratio", "goal", "holds", "n", "note"}


def test_alternate_measures_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only what is run moves, and where every other round is three times as slow for both."""
    now_s, calls = [0.0], list[str]()

    def run(name: str, seconds: float) -> None:
        calls.append(name)
        now_s[0] += seconds * (3 if (len(calls) - 1) // 2 % 2 else 1)

    monkeypatch.setattr("kineflow.policies.bench.rows.time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    ours, reference, ratio = alternate(lambda: run("ours", 0.02), lambda: run("reference", 0.01), n=4)
    assert calls == ["ours", "reference"] * 5, "in turn, after one call of each to warm up"
    assert (ours, reference) == (pytest.approx(0.04), pytest.approx(0.02))
    assert ratio == pytest.approx(2.0)


def test_a_missed_goal_fails_and_a_row_without_goal_does_not(tmp_path: Path) -> None:
    assert BenchReport([ROW, replace(ROW, goal=None, holds=None)]).ok
    missed = BenchReport([ROW, replace(ROW, holds=False)])
    assert not missed.ok
    missed.write_markdown(tmp_path / "b.md")
    assert "**no**" in (tmp_path / "b.md").read_text()


def test_measured_heads_have_the_promised_sizes() -> None:
    for name, count in parameter_counts():
        assert count == pytest.approx(5e6 if "5m" in name else 20e6, rel=0.05), name


def test_head_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_bench, "REPETITIONS", {True: 3, False: 3})
    for _ in range(5):
        rows = list(bench_head(quick=True))
        by_name = {r.name: r.value for r in rows}
        # Ten calls of a network cost more than one: the count of steps reaches the sampler. A busy machine may hide it for once.
        grows = by_name["head.dit_5m.threads_1.steps_10.chunk"] > 3 * by_name["head.dit_5m.threads_1.steps_1.chunk"]
        if grows:
            break
    assert grows, by_name
    assert {r.name for r in rows} == {
        f"head.{head}.threads_1.steps_{steps}.{what}"
        for head in ("dit_5m", "unet_5m")
        for steps in (1, 2, 4, 10)
        for what in ("chunk", "step")
    }
    assert set(json.loads(json.dumps(BenchReport(rows).to_json()))[0]) == FIELDS


def test_train_row() -> None:
    row, waiting = bench_train(quick=True)
    assert waiting.goal == "<= 0.02 of the time"
    assert waiting.holds == (waiting.value <= 0.02)
    assert set(BenchReport([row]).to_json()[0]) == FIELDS
    assert row.goal == "ratio >= 0.9"
    assert row.value > 0
    assert row.holds == (row.ratio is not None and row.ratio >= 0.9)
