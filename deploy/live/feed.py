"""From the executor and governor of a simulation or a replay to `Seen`, after each tick."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kineflow.deploy.control import Control, Ticked
from kineflow.deploy.live.seen import Seen, Sink

ASKED = ("questions", "chunks", "starved", "stops", "late chunk", "failed answers", "lost answers", "answers too late")
WORLD = "world"
_WORLD_S = 0.1  # between two pictures of the world, which cost more than a tick
Paint = Callable[[np.ndarray], np.ndarray]  # plan [N, A] -> a picture of the world from outside, uint8 [H, W, 3]


@dataclass(frozen=True)
class Commanded:
    """Names and bounds `[A]` of what is commanded."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass
class Show:
    """All the episodes of one run, for one or more sinks: their times go on from each other."""

    sinks: list[Sink]
    state: str
    episodes: int = 0
    until_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def episode(self, control: Control, robot: str, command: Commanded, paint: Paint | None = None) -> Feed:
        """What to call after each tick of the next episode."""
        self.episodes += 1
        return Feed(self, control, robot, command, paint if any(sink.shows_pictures for sink in self.sinks) else None)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class Feed:
    """See `Show.episode`."""

    def __init__(self, show: Show, control: Control, robot: str, command: Commanded, paint: Paint | None) -> None:
        self._show, self._control, self._robot, self._command, self._paint = show, control, robot, command, paint
        self._cameras = tuple(control.executor.contract.interface.cameras)
        self._stamps: dict[str, float] = {}
        self._told: object = None
        self._begin_s: float | None = None
        self._painted_s = -np.inf

    def __call__(self, ticked: Ticked) -> None:
        seen = self._seen(ticked)
        for sink in self._show.sinks:
            sink.show(seen)

    def _seen(self, ticked: Ticked) -> Seen:
        executor, show, command = self._control.executor, self._show, ticked.command
        if self._begin_s is None:
            self._begin_s = ticked.now_s - show.until_s
        at_s = ticked.now_s - self._begin_s
        show.until_s = at_s + executor.step_s  # of the next episode's beginning
        show.counts[command.outcome] += 1
        said, plan = executor.diagnostics(ticked.now_s), executor.ahead()
        goal, words = self._goal()
        return Seen(
            at_s=at_s,
            robot=self._robot,
            state=show.state,
            outcome=command.outcome,
            why="; ".join(command.reasons),
            episode=show.episodes,
            ages_s=said["ages_s"],
            latency_p50_s=said["latency_p50_s"],
            latency_p95_s=said["latency_p95_s"],
            delay_actions=said["delay_actions"],
            actions_left=said["actions_left"],
            counts=dict(show.counts),
            asked={name: said[name] for name in ASKED},
            axes=self._command.names,
            low=self._command.low,
            high=self._command.high,
            wanted=ticked.intent.action,
            commanded=command.values,
            plan=plan,
            step_s=executor.step_s,
            pictures=self._pictures(plan, ticked.now_s),
            goal=goal,
            words=words,
        )

    def _pictures(self, plan: np.ndarray, now_s: float) -> dict[str, np.ndarray]:
        """Those that came since the last look."""
        found = {}
        for name in self._cameras:
            newest = self._control.executor.observations.newest(name)
            if newest is not None and newest[1] != self._stamps.get(name):
                found[name], self._stamps[name] = newest
        if self._paint is not None and now_s - self._painted_s >= _WORLD_S:
            found[WORLD], self._painted_s = self._paint(plan), now_s
        return found

    def _goal(self) -> tuple[dict[str, np.ndarray], str]:
        """When it is another one than before. Of a clip the last picture; features of a backbone are no pictures."""
        told = self._control.executor.told
        if told is None or told is self._told:
            return {}, ""
        self._told = told
        values = dict(told.goal())
        frames = getattr(told, "frames", None)  # a clip as it was told, where the policy is given features of it
        if frames is not None:
            values["video"] = np.asarray(frames)
        last = {name: value[-1] if value.ndim == 4 else value for name, value in values.items()}
        pictures = {name: value for name, value in last.items() if value.dtype == np.uint8 and value.ndim == 3}
        points = [f"{name} {np.round(value, 3).tolist()}" for name, value in values.items() if value.ndim == 1]
        return pictures, "; ".join(part for part in (told.instruction, *points) if part)


class Paced:
    """For a person's eyes: a sink that is shown virtual time no faster than time passes."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._begin_s = sink, None
        self.shows_pictures = sink.shows_pictures

    _begin_s: float | None

    def show(self, seen: Seen) -> None:
        if self._begin_s is None:
            self._begin_s = time.monotonic() - seen.at_s
        if (early := seen.at_s - (time.monotonic() - self._begin_s)) > 0:
            time.sleep(early)
        else:
            self._begin_s -= early  # the machine is slower: do not hurry afterwards
        self._sink.show(seen)

    def close(self) -> None:
        self._sink.close()
