"""rerun: its viewer, or an .rrd file that it opens. Pictures with the plan, path, commands, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.deploy.live.drawing import Draws, drawn, drawn_onward
from kineflow.deploy.live.seen import Seen
from kineflow.deploy.plan_path import along
from kineflow.extras import require
from kineflow.interface import KineflowError

TIMELINE = "robot"  # seconds of `Seen.at_s`
_LINE, _ONWARD = (30, 255, 80), (150, 180, 150)


class RerunView:
    """A `Sink` of the entities camera/NAME (with /plan and /onward), plan, command/AXIS/wanted and .../given, latency_ms/p50 and
    /p95, queue, delay_actions, age_ms/STREAM, governor (what it said, on change), goal/NAME and goal.

    `file`: an .rrd file, else the viewer is started.
    """

    shows_pictures = True

    def __init__(self, draws: Mapping[str, Draws], file: Path | None = None) -> None:
        """Raises KineflowError: the package is not installed, or the file exists."""
        if file is not None and file.exists():
            raise KineflowError(f"{file} exists; name another file, or delete it")
        self._rr = require("rerun", "to show a robot in rerun")
        self._draws, self._said = draws, ("", "")
        self._recording = self._rr.RecordingStream("kineflow")
        if file is not None:
            self._recording.save(file)
        else:
            self._recording.spawn()

    def show(self, seen: Seen) -> None:
        """Log one look at its own time."""
        rr = self._rr
        self._recording.set_time(TIMELINE, duration=seen.at_s)
        for name, picture in seen.pictures.items():
            self._log(f"camera/{name}", self._picture(picture))
            if name in self._draws:
                for what, draw, colour in (("onward", drawn_onward, _ONWARD), ("plan", drawn, _LINE)):
                    line = draw(self._draws, name, seen.plan, seen.step_s, picture.shape) + 0.5  # from the pixels' corners
                    self._log(f"camera/{name}/{what}", rr.LineStrips2D([line] if len(line) > 1 else [], colors=[colour]))
        if seen.plan is not None and "vx" in seen.axes:
            places = along(seen.plan, seen.axes, seen.step_s)
            strip = np.column_stack([places[:, :2], np.zeros(len(places))])
            self._log("plan", rr.LineStrips3D([strip] if len(strip) > 1 else [], colors=[_LINE]))
        for what, values in (("wanted", seen.wanted), ("given", seen.commanded)):
            for name, value in zip(seen.axes, () if values is None else np.asarray(values, np.float64).tolist()):
                self._number(f"command/{name}/{what}", value)
        self._number("latency_ms/p50", 1e3 * seen.latency_p50_s)
        self._number("latency_ms/p95", 1e3 * seen.latency_p95_s)
        self._number("queue", seen.actions_left)
        self._number("delay_actions", seen.delay_actions)
        for name, age in seen.ages_s.items():
            self._number(f"age_ms/{name}", 1e3 * age)
        if (seen.outcome, seen.why) != self._said:
            self._said = (seen.outcome, seen.why)
            self._log("governor", rr.TextLog(f"{seen.outcome} {seen.why}".strip()))
        for name, picture in seen.goal.items():
            self._log(f"goal/{name}", self._picture(picture))
        if seen.words:
            self._log("goal", rr.TextDocument(seen.words))

    def close(self) -> None:
        """The file is whole."""
        self._recording.flush()
        self._recording.disconnect()

    def _picture(self, picture: np.ndarray) -> Any:
        return self._rr.Image(picture) if picture.dtype == np.uint8 else self._rr.DepthImage(picture, meter=1000.0)

    def _number(self, path: str, value: float) -> None:
        if math.isfinite(value):
            self._log(path, self._rr.Scalars(value))

    def _log(self, path: str, entity: Any) -> None:
        self._recording.log(path, entity)
