"""Small SVG pictures for the page of a store: timelines of streams, histograms, ranges. Colours are CSS variables of the page.

Bars stretch with the page (`preserveAspectRatio="none"`), so they hold no text: labels are HTML beside them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 1000, 20
_MOST_TICKS, _BINS, _LEVELS = 240, 250, 5
_LEAST_MARK = 4  # units wide, so that a moment can be seen


@dataclass(frozen=True)
class Mark:
    """A finding on a timeline, from and to in seconds."""

    start_s: float
    stop_s: float
    error: bool
    text: str


def timeline(seconds: Float[np.ndarray, "n"], lasts_s: float, rate_hz: float, marks: Sequence[Mark], label: str) -> str:
    """Samples over time: one tick each where there are few, how dense they are where there are many; findings on top."""
    scale = WIDTH / max(lasts_s, 1e-9)
    if len(seconds) <= _MOST_TICKS:
        path = "".join(f"M{x:.1f} 3V{HEIGHT - 3}" for x in seconds * scale)
        body = f'<path class="ticks" d="{path}"/>'
    else:
        body = _density(seconds, lasts_s, rate_hz)
    return _bar(body + _marks(marks, scale), label)


def _density(seconds: np.ndarray, lasts_s: float, rate_hz: float) -> str:
    # A bin narrower than some periods would flicker with the phase of the samples.
    bins = int(np.clip(len(seconds) / 4, 1, _BINS))
    counts = np.histogram(seconds, bins=bins, range=(0, max(lasts_s, 1e-9)))[0]
    expected = max(rate_hz * lasts_s / bins, 1e-9)
    levels = np.where(counts == 0, 0, np.clip(np.rint(_LEVELS * counts / expected), 1, _LEVELS)).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(levels)) + 1, [bins]])
    parts = []
    for first, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if levels[first]:
            x, width = first * WIDTH / bins, (stop - first) * WIDTH / bins
            opacity = 0.25 + 0.75 * levels[first] / _LEVELS
            parts.append(
                f'<rect class="dense" x="{x:.1f}" y="3" width="{width:.1f}" height="{HEIGHT - 6}" opacity="{opacity:.2f}"/>'
            )
    return "".join(parts)


def motion(
    seconds: Float[np.ndarray, "n"], change: Float[np.ndarray, "n"], lasts_s: float, rate_hz: float, marks: Sequence[Mark]
) -> str:
    """How much changes over time, as an area; `change` belongs to the time from the sample before to that of `seconds`.

    `rate_hz` is that of the slowest stream: a narrower bin would be empty now and then.
    """
    scale = WIDTH / max(lasts_s, 1e-9)
    bins = int(np.clip(lasts_s * rate_hz / 2, 1, _BINS))
    place = np.minimum((seconds * bins / max(lasts_s, 1e-9)).astype(int), bins - 1)
    heights = np.zeros(bins)
    np.maximum.at(heights, place, change)
    top = float(np.quantile(heights, 0.98)) or float(heights.max()) or 1.0
    y = HEIGHT - 1 - (HEIGHT - 3) * np.minimum(heights / top, 1)
    points = " ".join(f"{(i + 0.5) * WIDTH / bins:.1f},{v:.1f}" for i, v in enumerate(y))
    body = f'<polygon class="motion" points="0,{HEIGHT} {points} {WIDTH},{HEIGHT}"/>'
    return _bar(body + _marks(marks, scale), "how much the values change")


def histogram(values: Sequence[float], unit: str) -> str:
    """Counts in at most 24 bins with the range below; `values` is not empty."""
    low, high = min(values), max(values)
    bins = 15 if high == low else min(24, max(6, len(values) // 3))  # one length: one bar in the middle
    counts = np.histogram(values, bins=bins, range=(low, high) if high > low else (low - 1, high + 1))[0]
    width, top = 480 / bins, max(int(counts.max()), 1)
    bars = "".join(
        f'<rect class="bar" x="{i * width + 1:.1f}" y="{120 - 116 * n / top:.1f}" width="{max(width - 2, 1):.1f}" '
        f'height="{116 * n / top:.1f}"><title>{n} episodes</title></rect>'
        for i, n in enumerate(counts.tolist())
        if n
    )
    middle = float(np.median(values))
    scale = f"<span>{number(low)} {unit}</span><span>median {number(middle)} {unit}</span><span>{number(high)} {unit}</span>"
    return (
        '<svg class="histogram" viewBox="0 0 480 120" preserveAspectRatio="none" role="img" '
        f'aria-label="{len(values)} episodes from {number(low)} to {number(high)} {unit}">{bars}</svg>'
        f'<p class="scale">{scale}</p>'
    )


def value_range(low: float, q01: float, mean: float, q99: float, high: float, label: str) -> str:
    """Minimum to maximum as a line, the middle 98 % as a band, the mean as a dot."""

    def at(value: float) -> float:
        return 4 + 192 * (value - low) / (high - low) if high > low else 100.0

    return (
        f'<svg class="range" viewBox="0 0 200 16" preserveAspectRatio="none" role="img" aria-label="{html.escape(label)}">'
        f'<line class="whole" x1="4" x2="196" y1="8" y2="8"/>'
        f'<rect class="band" x="{at(q01):.1f}" y="3" width="{max(at(q99) - at(q01), 2):.1f}" height="10" rx="2"/>'
        f'<line class="mean" x1="{at(mean):.1f}" x2="{at(mean):.1f}" y1="1" y2="15"/></svg>'
    )


def number(value: float) -> str:
    """Four digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _bar(body: str, label: str) -> str:
    return (
        f'<svg class="bar-line" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}"><rect class="track" width="{WIDTH}" height="{HEIGHT}"/>{body}</svg>'
    )


def _marks(marks: Sequence[Mark], scale: float) -> str:
    parts = []
    for mark in marks:
        width = max((mark.stop_s - mark.start_s) * scale, _LEAST_MARK)
        x = min(max((mark.start_s + mark.stop_s) / 2 * scale - width / 2, 0), WIDTH - width)
        css = "error" if mark.error else "warning"
        parts.append(
            f'<rect class="mark {css}" x="{x:.1f}" width="{width:.1f}" height="{HEIGHT}">'
            f"<title>{html.escape(mark.text)}</title></rect>"
        )
    return "".join(parts)
