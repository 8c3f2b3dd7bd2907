"""What a replay says: numbers for a table and for JSON, and a page with the commands beside the recorded ones."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.deploy.replay import Recorded, Replayed
from kineflow.policies.charts import Series, line_chart, thin

_STYLE = (
    ":root{--text:#222;--muted:#777;--grid:#ddd;--line:#ddd;--background:#fff}"
    "body{font:15px sans-serif;max-width:72em;margin:2em}svg{width:46em;max-width:100%}"
    "polyline,path{fill:none;stroke-width:1.5}text{font-size:11px;fill:#555}td,th{padding:.1em .8em .1em 0;text-align:left}"
    ".c{stroke:#1f77b4}.r{stroke:#c0392b;stroke-dasharray:4 3}.w{stroke:#bbb}.l{stroke:#8e44ad}"
)


@dataclass(frozen=True)
class Agreement:
    """Recorded commands against replayed ones: of each recorded one the smallest difference (largest over the axes) to the
    replayed ones at most one tick away, while both were active."""

    commands: int
    median: float
    p99: float
    largest: float


def agreement(times_s: np.ndarray, values: np.ndarray, recorded: Recorded, within_s: float) -> Agreement | None:
    """`times_s` `[N]`, `values` `[N, A]` of the replay. None where they have no time in common."""
    gaps = []
    for at_s, wanted in zip(recorded.times_s, recorded.values):
        low, high = np.searchsorted(times_s, [at_s - within_s, at_s + within_s])
        if low < high:
            gaps.append(np.abs(values[low:high] - wanted).max(axis=1).min())
    if not gaps:
        return None
    found = np.array(gaps)
    return Agreement(len(gaps), float(np.median(found)), float(np.percentile(found, 99)), float(found.max()))


def table_of(replayed: Replayed, axes: Sequence[str], rate_hz: float, measured: bool) -> dict[str, Any]:
    """Everything as plain values; `ticks` holds each command with why it was that."""
    ticks = replayed.trace.ticks
    latencies = 1e3 * np.array(replayed.latencies_s or (0.0,))
    said = replayed.trace.diagnostics
    agrees = None
    if replayed.recorded is not None and ticks:
        slack = 1 / rate_hz + 1e-3
        agrees = agreement(np.array([t.now_s for t in ticks]), replayed.trace.commands, replayed.recorded, slack)
    reasons = Counter(reason.split(":")[0] for tick in ticks for reason in tick.command.reasons)
    decisions = dict(Counter(tick.command.outcome for tick in ticks).most_common())
    # What the governor counted beside the ticks: whole chunks, stamps.
    refused = {name: n for name, n in replayed.events.items() if name not in decisions and name.split(":")[0] not in reasons}
    return {
        "seconds": ticks[-1].now_s - ticks[0].now_s if ticks else 0.0,
        "activations": replayed.activations,
        "commands": len(ticks),
        "decisions": decisions,
        "reasons": dict(reasons.most_common()),
        "chunks": said["chunks"],
        "refused": refused,
        "latency": "measured here" if measured else "stated",
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "latency_max_ms": float(latencies.max()),
        "delay_actions": said["delay_actions"],
        "starved": said["starved"],
        "raw_jump_p99": said["seam_jump_p99"],
        "limited_jump_p99": said["limited_jump_p99"],
        "received": dict(replayed.received),
        "dropped": dict(said["dropped"]),
        "input_faults": dict(replayed.faults),
        "recorded": None if agrees is None else vars(agrees),
        "notes": list(replayed.notes),
        "axes": list(axes),
        "ticks": [
            {
                "t": round(tick.now_s, 6),
                "command": [round(float(v), 6) for v in tick.command.values],
                "wanted": None if tick.intent.action is None else [round(float(v), 6) for v in tick.intent.action],
                "outcome": tick.command.outcome,
                "why": "; ".join(tick.command.reasons),
            }
            for tick in ticks
        ],
    }


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """For a terminal."""
    for name, value in table.items():
        if name in ("ticks", "notes", "axes", "recorded"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        yield f"{name:18} {value:.4g}" if isinstance(value, float) else f"{name:18} {value}"
    if found := table["recorded"]:
        yield (
            f"{'recorded commands':18} {found['commands']} in the bag; difference within one tick: median {found['median']:.3g}, "
            f"p99 {found['p99']:.3g}, largest {found['largest']:.3g}"
        )
    for note in table["notes"]:
        yield f"note: {note}"


def write_page(table: dict[str, Any], recorded: Recorded | None, title: str, file: Path) -> None:
    """One HTML file that asks for nothing else."""
    ticks, parts = table["ticks"], [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"]
    parts.append(f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>")
    parts.append("<p><b style='color:#1f77b4'>command</b> <b style='color:#bbb'>wanted by the policy</b>")
    parts.append("<b style='color:#c0392b'>recorded in the bag</b></p>" if recorded is not None else "</p>")
    begin = ticks[0]["t"] if ticks else 0.0
    for i, axis in enumerate(table["axes"]):
        wanted = [(t["t"] - begin, t["wanted"][i]) for t in ticks if t["wanted"] is not None]
        lines = [Series(thin(wanted), "w", "wanted"), Series(thin([(t["t"] - begin, t["command"][i]) for t in ticks]), "c", axis)]
        if recorded is not None:
            there = [(float(t) - begin, float(v[i])) for t, v in zip(recorded.times_s, recorded.values) if t >= begin]
            lines.append(Series(thin(there), "r", "recorded"))
        moves = any(value for line in lines for _, value in line.points)
        parts.append(f"<h2>{html.escape(axis)}{'' if moves else ': always 0'}</h2>")
        if moves:
            parts.append(line_chart([line for line in lines if line.points], "s", axis))
    parts.append("<h2>Decisions</h2><table>")
    parts += [f"<tr><td>{html.escape(line[:18])}<td>{html.escape(line[18:])}" for line in lines_of({**table, "notes": []})]
    parts.append("</table><ul>")
    parts += [f"<li>{html.escape(note)}" for note in table["notes"]]
    changes = [t for before, t in zip([None, *ticks], ticks) if before is None or _why(before) != _why(t)]
    parts.append("</ul><h2>When it changed its mind</h2><table><tr><th>s<th>decision<th>why")
    parts += [f"<tr><td>{t['t'] - begin:.2f}<td>{t['outcome']}<td>{html.escape(t['why'])}" for t in changes[:500]]
    parts.append("</table>")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts), encoding="utf-8")


def _why(tick: dict[str, Any]) -> tuple[str, str]:
    return tick["outcome"], tick["why"].split(":")[0]
