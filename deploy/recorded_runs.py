"""When a recorded node was active and which runs it made, from the messages that it says of itself; for replay.

`<node>/heartbeat` has one Header for each command, "active" or "stopped"; `<node>/run/feedback` and `run/result` tell of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kineflow.deploy.bag import Received

HEARTBEAT, FEEDBACK, RESULT = "/policy/heartbeat", "/policy/run/feedback", "/policy/run/result"
TOPICS = (HEARTBEAT, FEEDBACK, RESULT)
SAME_S = 0.3  # a run that begins so near to activation began with it


@dataclass(frozen=True)
class Change:
    """At `at_s` (of the replay): the node was activated or stopped, a run was begun or ended. `why`: of the rest that follows."""

    at_s: float
    what: Literal["active", "stopped", "begin", "end"]
    why: str = ""
    by_service: bool = False


def changes_of(known: Mapping[str, Sequence[Received]], first_ns: int) -> list[Change]:
    """In order of time, from the bag's beginning on."""
    found = [*_activity(known[HEARTBEAT], first_ns), *_runs([*known[FEEDBACK], *known[RESULT]], first_ns)]
    return sorted(found, key=lambda change: change.at_s)


def waits_for_runs(changes: Sequence[Change], at_s: float) -> bool:
    """Whether the node that was activated at `at_s` rested until a run was asked for."""
    begun = [change for change in changes if change.what == "begin"]
    return bool(begun) and not any(abs(change.at_s - at_s) < SAME_S and not change.by_service for change in begun)


def since(stamp: Any, first_ns: int) -> float:
    """Seconds from `first_ns` to a builtin_interfaces/Time, exact to the nanosecond."""
    return 1e-9 * (int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec) - first_ns)


def _activity(beats: Sequence[Received], first_ns: int) -> list[Change]:
    """Active: at its first tick then."""
    changes: list[Change] = []
    for beat in beats:
        what: Literal["active", "stopped"] = "active" if beat.message.frame_id == "active" else "stopped"
        if what != (changes[-1].what if changes else "stopped"):
            changes.append(Change(max(since(beat.message.stamp, first_ns), 0.0), what))
    return changes


def _runs(told: Sequence[Received], first_ns: int) -> list[Change]:
    found: dict[str, dict[str, str]] = {}
    for received in sorted(told, key=lambda message: message.log_ns):
        values = {pair.key: pair.value for pair in received.message.values}
        found.setdefault(values.get("run", ""), {}).update(values)
    changes = []
    for values in found.values():
        began_s, ended_s = (_time(values.get(name, ""), first_ns) for name in ("began", "ended"))
        by_service = values.get("by_service") == "True"
        if began_s >= 0:
            changes.append(Change(began_s, "begin", by_service=by_service))
        if values.get("state") != "running" and ended_s >= 0:
            changes.append(Change(ended_s, "end", values.get("why", ""), by_service))
    return changes


def _time(text: str, first_ns: int) -> float:
    """`text` is nanoseconds since the epoch; -inf where it is not."""
    return 1e-9 * (int(text) - first_ns) if text.isdigit() else -math.inf
