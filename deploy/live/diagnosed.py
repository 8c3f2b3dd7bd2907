"""`Seen` from the values that a policy node writes to /diagnostics (deploy/ros2/policy_node.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kineflow.deploy.live.feed import ASKED
from kineflow.deploy.live.seen import Seen


def diagnosed(name: str, summary: str, values: Mapping[str, str], at_s: float) -> Seen:
    """What the node called `name` reported, received at `at_s`; values that it did not write are left out."""
    axes = tuple(_under(values, "axis.low"))
    return Seen(
        at_s=at_s,
        robot=values.get("governor.robot", name),
        state=values.get("state", summary) + (" (shadow)" if values.get("shadow") == "True" else ""),
        outcome=values.get("outcome", ""),
        why=values.get("why", ""),
        ages_s={stream: _number(age) for stream, age in _under(values, "ages_s").items()},
        latency_p50_s=_number(values.get("latency_p50_s", "")),
        latency_p95_s=_number(values.get("latency_p95_s", "")),
        delay_actions=_count(values.get("delay_actions", "")),
        actions_left=_count(values.get("actions_left", "")),
        counts={outcome: _count(count) for outcome, count in _under(values, "governor.counts").items()},
        asked={what: _count(values[what]) for what in ASKED if what in values},
        axes=axes,
        low=tuple(_number(values[f"axis.low.{axis}"]) for axis in axes),
        high=tuple(_number(values.get(f"axis.high.{axis}", "")) for axis in axes),
        wanted=_vector(values, "wanted", axes),
        commanded=_vector(values, "commanded", axes),
    )


def _under(values: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(f"{prefix}."): value for key, value in values.items() if key.startswith(f"{prefix}.")}


def _vector(values: Mapping[str, str], prefix: str, axes: tuple[str, ...]) -> np.ndarray | None:
    found = [_number(values.get(f"{prefix}.{axis}", "")) for axis in axes]
    return np.array(found) if found and not all(math.isnan(value) for value in found) else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _count(text: str) -> int:
    number = _number(text)
    return int(number) if math.isfinite(number) else 0
