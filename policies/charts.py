"""Charts as inline SVG text: no fonts, no requests, colours from the page's CSS variables, so light and dark both fit.

Each function returns one `<svg>`. A chart carries its points as `data-hover` (JSON list of [x, y, text] in the view box);
the page's script shows the nearest one under the pointer.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 38


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), a CSS class for its look, and its name in hover texts (empty: not hoverable)."""

    points: Sequence[tuple[float, float]]
    css: str
    name: str = ""


@dataclass(frozen=True)
class Axis:
    """Maps values to positions in the view box; `log` for a base-10 axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False) -> str:
    """Lines over a common x axis; a logarithmic y axis skips values that are not positive.

    The heading above the chart names the y axis for the eye; `y_label` names it for screen readers.
    """
    lines = [Series([p for p in s.points if p[1] > 0 or not log_y], s.css, s.name) for s in series]
    points = [p for s in lines for p in s.points]
    if not points:
        return empty_chart("no data")
    x_high = max(x for x, _ in points)
    x = Axis(min(0.0, *(x for x, _ in points)), x_high if x_high > 0 else 1.0, _LEFT, WIDTH - _RIGHT)
    y = _value_axis([value for _, value in points], log_y)
    body = _y_grid(y) + _x_ticks(x, nice_ticks(x.low, x.high, 5)) + _x_label(x_label)
    for s in lines:
        body += _polyline([(x.at(a), y.at(b)) for a, b in s.points], s.css)
    hover = [(x.at(a), y.at(b), f"{s.name} {number(b)} at {x_label} {number(a)}") for s in lines if s.name for a, b in s.points]
    return _svg(body, f"{y_label} over {x_label}", hover)


def histogram(
    values: Sequence[float],
    x_label: str,
    threshold: float,
    threshold_label: str,
    bins: int = 20,
    high: float = 1.0,
    is_lower_better: bool = False,
) -> str:
    """Counts of values in 0..`high`, greater ones in the last bar; bars on the better side of `threshold` stand out."""
    counts, width = [0] * bins, high / bins
    for value in values:
        counts[min(max(int(value * bins / high), 0), bins - 1)] += 1
    x = Axis(0.0, high, _LEFT, WIDTH - _RIGHT)
    y = Axis(0.0, float(max([*counts, 1])) * 1.12, HEIGHT - _BOTTOM, _TOP)
    body = _y_grid(y, whole=True) + _x_ticks(x, nice_ticks(0.0, high, 5)) + _x_label(x_label)
    hover = []
    for i, count in enumerate(counts):
        left, right, top = x.at(i * width), x.at((i + 1) * width), y.at(count)
        middle = (i + 0.5) * width
        is_good = middle <= threshold if is_lower_better else middle >= threshold
        if count:
            place = f'x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{y.start - top:.1f}"'
            body += f'<rect class="{"bar good" if is_good else "bar"}" {place} rx="2"/>'
        share = f"{100 * count / max(len(values), 1):.0f} %"
        upper = f"{(i + 1) * width:.2f}" if high == 1.0 or i < bins - 1 else "more"
        hover.append(((left + right) / 2, top, f"{count} episodes ({share}) at {i * width:.2f} to {upper}"))
    mark = x.at(threshold)
    at, anchor = (mark + 6, "start") if is_lower_better else (mark - 6, "end")
    body += f'<line class="mark" x1="{mark:.1f}" x2="{mark:.1f}" y1="{_TOP}" y2="{y.start}"/>'
    body += f'<text class="note" x="{at:.1f}" y="{_TOP + 9}" text-anchor="{anchor}">{html.escape(threshold_label)}</text>'
    return _svg(body, f"Distribution of {x_label}", hover)


def sparkline(values: Sequence[float], threshold: float, high: float = 1.0, label: str = "Coverage over the episode") -> str:
    """Small area chart of values in 0..`high` over steps, with a play head that the page's script moves."""
    width, height = 448, 56
    x = Axis(0.0, float(max(len(values) - 1, 1)), 0.0, float(width))
    y = Axis(0.0, high, height - 1.0, 4.0)
    points = [(x.at(i), y.at(v)) for i, v in enumerate(values)]
    outline = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    line = f'<polyline class="line accent" points="{outline}"/>'
    area = f'<polygon class="area" points="0,{height} {outline} {width},{height}"/>'
    goal = f'<line class="mark" x1="0" x2="{width}" y1="{y.at(threshold):.1f}" y2="{y.at(threshold):.1f}"/>'
    head = f'<line class="head" x1="0" x2="0" y1="0" y2="{height}"/>'
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}">{area}{goal}{line}{head}</svg>'
    )


def interval_bar(value: float, low: float, high: float, end: float = 1.0) -> str:
    """A value and its interval on a track from 0 to `end`; what lies beyond is drawn at its end."""
    axis = Axis(0.0, end, 4.0, 196.0)

    def at(place: float) -> float:
        return min(max(axis.at(place), 4.0), 196.0)

    width = max(at(high) - at(low), 1.0)
    return (
        '<svg class="interval" viewBox="0 0 200 14" role="img" aria-label="95 % interval">'
        '<rect class="track" x="4" y="5" width="192" height="4" rx="2"/>'
        f'<rect class="band" x="{at(low):.1f}" y="3" width="{width:.1f}" height="8" rx="3"/>'
        f'<circle class="dot" cx="{at(value):.1f}" cy="7" r="5"/></svg>'
    )


def empty_chart(message: str) -> str:
    """A frame that says why there is nothing to see."""
    text = f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{html.escape(message)}</text>'
    return _svg(text, message, [])


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values (1, 2, 2.5 or 5 times a power of ten) within low..high."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within low..high; powers alone over more than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    return [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]


def thin(points: Sequence[tuple[float, float]], limit: int = 400) -> list[tuple[float, float]]:
    """At most `limit` points: means of equal runs, so that noise shrinks but no level shifts."""
    run = math.ceil(len(points) / limit)
    if run <= 1:
        return list(points)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smooth(points: Sequence[tuple[float, float]], share: float = 0.04) -> list[tuple[float, float]]:
    """Centred mean over `share` of the points, narrower towards both ends: a falling curve is not shifted to the right."""
    half = int(share * len(points) / 2)
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def number(value: float) -> str:
    """Short and honest: three significant digits, thousands with separators, 3e-4 for small ones."""
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _value_axis(values: Sequence[float], log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        low, high = min(0.0, low), high * 1.08 if high > 0 else 1.0
    return Axis(low, high, HEIGHT - _BOTTOM, _TOP, log)


def _y_grid(y: Axis, whole: bool = False) -> str:
    ticks = log_ticks(y.low, y.high) if y.log else nice_ticks(y.low, y.high, 4)
    text = ""
    for tick in ticks:
        if whole and tick != int(tick):
            continue
        at = y.at(tick)
        text += f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        text += f'<text class="tick" x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
    return text


def _x_ticks(x: Axis, ticks: Sequence[float]) -> str:
    base = HEIGHT - _BOTTOM
    text = f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>'
    for tick in ticks:
        text += f'<text class="tick" x="{x.at(tick):.1f}" y="{base + 16}" text-anchor="middle">{number(tick)}</text>'
    return text


def _x_label(text: str) -> str:
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return f'<text class="label" x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">{html.escape(text)}</text>'


def _polyline(points: Sequence[tuple[float, float]], css: str) -> str:
    if len(points) == 1 or "dots" in css:
        dots = "".join(f'<circle class="point {css}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points)
    else:
        dots = ""
    return f'<polyline class="line {css}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>{dots}'


def _svg(body: str, label: str, hover: Sequence[tuple[float, float, str]]) -> str:
    points = html.escape(json.dumps([[round(a, 1), round(b, 1), text] for a, b, text in hover]))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}" '
        f'data-hover="{points}">{body}</svg>'
    )
