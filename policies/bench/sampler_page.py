"""The page of `bench sampler`: one plot against calls, one against time with the Pareto front, one table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from kineflow.policies.bench.contest import Contest
from kineflow.policies.charts import Series, line_chart

COLOURS = ("#3b6fd4", "#d4663b", "#2f9e6e", "#a04fc4", "#b8922a", "#c43b5e", "#3aa3b5", "#6b7280")


def write_page(contests: Sequence[Contest], path: Path, episodes: int) -> None:
    """Self-contained HTML, light and dark."""
    heads = list(dict.fromkeys(c.head for c in contests))
    styles = "".join(
        f".s{i}{{stroke:{colour}}} .point.s{i},.key.s{i}{{fill:{colour};background:{colour}}}" for i, colour in enumerate(COLOURS)
    )
    legend = " ".join(f'<span><i class="key s{i % len(COLOURS)}"></i>{html.escape(head)}</span>' for i, head in enumerate(heads))
    missed = "missed coverage"
    calls = [_series(contests, head, i, "calls") for i, head in enumerate(heads)]
    by_calls = line_chart(calls, "network calls", missed, log_y=True)
    front = pareto_front([(c.chunk_ms.p99, c.coverage.value) for c in contests])
    timed = [_series(contests, head, i, "p99") for i, head in enumerate(heads)]
    best = Series([(cost, 1 - quality) for cost, quality in front], "front")
    by_time = line_chart([best, *timed], "ms per chunk, p99", missed, log_y=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        PAGE.format(styles=styles, legend=legend, calls=by_calls, time=by_time, rows=_rows(contests), episodes=episodes),
        encoding="utf-8",
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, quality) points those that no cheaper point equals or beats, by cost."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def _series(contests: Sequence[Contest], head: str, index: int, x: str) -> Series:
    mine = [c for c in contests if c.head == head]
    points = sorted((float(c.calls) if x == "calls" else c.chunk_ms.p99, 1 - c.coverage.value) for c in mine)
    return Series(points, f"scatter dots s{index % len(COLOURS)}", head)


def _rows(contests: Sequence[Contest]) -> str:
    cells = [
        (
            html.escape(c.head),
            html.escape(c.solver),
            str(c.calls),
            f"{c.coverage.value:.3f} [{c.coverage.low:.3f}, {c.coverage.high:.3f}]",
            f"{c.success.value:.3f} [{c.success.low:.3f}, {c.success.high:.3f}]",
            f"{c.chunk_ms.p50:.2f}",
            f"{c.chunk_ms.p99:.2f}",
        )
        for c in contests
    ]
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Kineflow: samplers</title>
<meta name="viewport" content="width=device-width">
<style>
:root{{--ink:#1b1f24;--faint:#8a929c;--paper:#fff;--rule:#e3e6ea}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6e8eb;--faint:#8b949e;--paper:#14171a;--rule:#2b3137}}}}
body{{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1040px;margin:2rem auto;padding:0 1rem}}
.plots{{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:2rem}} svg{{width:100%}}
.grid{{stroke:var(--rule)}} .axis{{stroke:var(--faint)}} .tick,.label{{fill:var(--faint);font-size:11px}}
.line{{fill:none;stroke-width:1.5}} .line.scatter{{stroke-width:0}} .front{{stroke:var(--faint);stroke-dasharray:4 3}}
.key{{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.35em}} .legend span{{margin-right:1.2em}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
td,th{{padding:.3rem .5rem;border-bottom:1px solid var(--rule);text-align:left}}
{styles}
</style>
<h1>Quality against network calls</h1>
<p>PushT, {episodes} starts each, the same for all. Coverage is the mean over episodes of the best coverage of the goal.
The plots show what is missing of it, 1 - coverage, on a logarithmic axis: lower is better. Time is that of one chunk at batch 1
on one thread.</p>
<p class="legend">{legend}</p>
<div class="plots"><div><h2>Missed over calls</h2>{calls}</div>
<div><h2>Missed over time, with the Pareto front</h2>{time}</div></div>
<h2>All of them</h2>
<table><tr><th>head</th><th>solver</th><th>calls</th><th>coverage</th>
<th>success</th><th>p50 ms</th><th>p99 ms</th></tr>{rows}</table>
</html>
"""
