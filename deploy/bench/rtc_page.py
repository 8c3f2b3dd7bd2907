"""The plots of `bench rtc`: success and seam jump over the delay, one line for each way to execute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kineflow.policies.charts import Series, line_chart

_COLOURS = ("#888", "#c0392b", "#b7950b", "#8e44ad", "#1f77b4", "#17a589", "#d35400")
_STYLE = (
    ":root{--text:#222;--muted:#777;--grid:#ddd;--line:#ddd;--background:#fff}"
    "body{font:15px sans-serif;max-width:70em;margin:2em}"
    "svg{width:32em;max-width:100%}polyline,path{fill:none;stroke-width:2}text{font-size:11px;fill:#555}"
)


class Scored(Protocol):
    """What is drawn of one row."""

    @property
    def world(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def delay(self) -> int: ...
    @property
    def success(self) -> float: ...
    @property
    def jump(self) -> float: ...


def write_page(scores: Sequence[Scored], file: Path, *, quick: bool) -> None:
    modes = list(dict.fromkeys(score.mode for score in scores))
    colours = "".join(f".m{i}{{stroke:{_COLOURS[i % len(_COLOURS)]}}}" for i in range(len(modes)))
    names = " ".join(f'<b style="color:{_COLOURS[i % len(_COLOURS)]}">{mode}</b>' for i, mode in enumerate(modes))
    parts = ["<!doctype html><meta charset=utf-8><title>bench rtc</title>", f"<style>{_STYLE}{colours}</style>"]
    parts.append(f"<h1>Success and seams over the delay</h1><p>{names}</p>")
    if quick:
        parts.append("<p>Quick run: toys of half a minute's training, a few episodes. These numbers show that it runs.</p>")
    for world in dict.fromkeys(score.world for score in scores):
        parts.append(f"<h2>{world}</h2>")
        for what, label in (("success", "success"), ("jump", "p99 of the raw seam jump, in units of the action")):
            lines = []
            for i, mode in enumerate(modes):
                mine = [score for score in scores if (score.world, score.mode) == (world, mode)]
                points = [(float(s.delay), float(getattr(s, what))) for s in mine if not math.isnan(getattr(s, what))]
                if points:
                    lines.append(Series(points, f"m{i}", mode))
            parts.append(line_chart(lines, "delay, actions", label))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts), encoding="utf-8")
