"""Foxglove: a websocket server for its app, or an MCAP file that it opens. Pictures with the plan, path, commands, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.deploy.live.drawing import Draws, drawn, drawn_onward
from kineflow.deploy.live.seen import Seen
from kineflow.deploy.plan_path import along
from kineflow.extras import require
from kineflow.interface import KineflowError

PORT = 8765
_LINE, _ONWARD = (0.1, 1.0, 0.3), (0.6, 0.7, 0.6)


class FoxgloveView:
    """A `Sink` of the topics

    /command            JSON: wanted and given by axis, outcome, why      /state       JSON: ages, latencies, queue, counts
    /camera/NAME        RawImage               /camera/NAME/plan    ImageAnnotations: the plan in it, and onward
    /plan               PosesInFrame, of body velocities, in base_link     /goal/NAME   RawImage       /goal      JSON: its words

    `file`: an MCAP file, else a server on this machine. `begin_s`: the wall's time at 0 of `Seen.at_s`.
    """

    shows_pictures = True

    def __init__(
        self,
        draws: Mapping[str, Draws],
        file: Path | None = None,
        port: int = PORT,
        begin_s: float = 0.0,
        host: str = "127.0.0.1",
    ) -> None:
        """Raises KineflowError: the package is not installed, the file exists, or the port is taken."""
        self._fox = require("foxglove", "to show a robot in Foxglove")
        self._messages = require("foxglove.messages", "to show a robot in Foxglove")
        self._made = require("foxglove.channels", "to show a robot in Foxglove")
        self._draws, self._begin_s = draws, begin_s
        self._context = self._fox.Context()
        self._channels: dict[str, Any] = {}
        try:
            if file is not None:
                self._out = self._fox.open_mcap(file, context=self._context)
            else:
                self._out = self._fox.start_server(name="kineflow", host=host, port=port, context=self._context)
        except FileExistsError as error:
            raise KineflowError(f"{file} exists; name another file, or delete it") from error
        except Exception as error:  # the package's own kinds
            where = str(file) if file is not None else f"port {port}"
            raise KineflowError(f"Foxglove: {where}: {error}; name another one") from error
        self.port = 0 if file is not None else int(self._out.port)

    def show(self, seen: Seen) -> None:
        """Log one look at its own time."""
        at_ns = round(1e9 * (self._begin_s + seen.at_s))
        self._log_json("/command", self._command(seen), at_ns)
        self._log_json("/state", _numbers(seen), at_ns)
        for name, picture in seen.pictures.items():
            self._log("RawImage", f"/camera/{name}", self._picture(picture, name, at_ns), at_ns)
            if name in self._draws:
                lines = [draw(self._draws, name, seen.plan, seen.step_s, picture.shape) for draw in (drawn_onward, drawn)]
                self._log("ImageAnnotations", f"/camera/{name}/plan", self._lines(lines, at_ns), at_ns)
        if seen.plan is not None and "vx" in seen.axes:
            self._log("PosesInFrame", "/plan", self._path(seen, at_ns), at_ns)
        for name, picture in seen.goal.items():
            self._log("RawImage", f"/goal/{name}", self._picture(picture, name, at_ns), at_ns)
        if seen.words:
            self._log_json("/goal", {"words": seen.words}, at_ns)

    def close(self) -> None:
        """The file is whole, or viewers are told that it ends."""
        close = getattr(self._out, "stop", None) or self._out.close
        close()

    def _command(self, seen: Seen) -> dict[str, Any]:
        return {
            "wanted": _by_axis(seen, seen.wanted),
            "given": _by_axis(seen, seen.commanded),
            "outcome": seen.outcome,
            "why": seen.why,
        }

    def _picture(self, picture: np.ndarray, frame: str, at_ns: int) -> Any:
        height, width = picture.shape[:2]
        encoding, pixels = ("rgb8", picture) if picture.dtype == np.uint8 else ("16UC1", picture.astype("<u2"))
        return self._messages.RawImage(
            timestamp=self._stamp(at_ns),
            frame_id=frame,
            width=width,
            height=height,
            encoding=encoding,
            step=pixels.strides[0] if pixels.flags.c_contiguous else width * pixels[0, 0].nbytes,
            data=pixels.tobytes(),
        )

    def _lines(self, lines: Sequence[np.ndarray], at_ns: int) -> Any:
        """Where it would go on to, thin; over it the plan."""
        m, strips = self._messages, []
        for pixels, colour, thickness in zip(lines, (_ONWARD, _LINE), (1.0, 2.0)):
            strips.append(
                m.PointsAnnotation(
                    timestamp=self._stamp(at_ns),
                    type=m.PointsAnnotationType.LineStrip,
                    points=[m.Point2(x=x + 0.5, y=y + 0.5) for x, y in pixels.tolist()],  # its pixels begin at their corners
                    outline_color=m.Color(r=colour[0], g=colour[1], b=colour[2], a=1.0),
                    thickness=thickness,
                )
            )
        return m.ImageAnnotations(points=strips)

    def _path(self, seen: Seen, at_ns: int) -> Any:
        assert seen.plan is not None
        m, poses = self._messages, []
        for x, y, yaw in along(seen.plan, seen.axes, seen.step_s).tolist():
            turn = m.Quaternion(x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))
            poses.append(m.Pose(position=m.Vector3(x=x, y=y, z=0.0), orientation=turn))
        return m.PosesInFrame(timestamp=self._stamp(at_ns), frame_id="base_link", poses=poses)

    def _stamp(self, at_ns: int) -> Any:
        return self._messages.Timestamp(at_ns // 1_000_000_000, at_ns % 1_000_000_000)

    def _log(self, kind: str, topic: str, message: Any, at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = getattr(self._made, f"{kind}Channel")(topic, context=self._context)
        self._channels[topic].log(message, log_time=at_ns)

    def _log_json(self, topic: str, message: dict[str, Any], at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._fox.Channel(topic, message_encoding="json", context=self._context)
        self._channels[topic].log(message, log_time=at_ns)


def _numbers(seen: Seen) -> dict[str, Any]:
    """Numbers that are none are null: JSON has no other."""
    return {
        "state": seen.state,
        "episode": seen.episode,
        "ages_ms": {name: _or_none(1e3 * age) for name, age in seen.ages_s.items()},
        "latency_ms": {"p50": _or_none(1e3 * seen.latency_p50_s), "p95": _or_none(1e3 * seen.latency_p95_s)},
        "delay_actions": seen.delay_actions,
        "queue": seen.actions_left,
        "governor": dict(seen.counts),
        "asked": dict(seen.asked),
    }


def _by_axis(seen: Seen, values: np.ndarray | None) -> dict[str, float | None]:
    given = [math.nan] * len(seen.axes) if values is None else np.asarray(values, np.float64).tolist()
    return {name: _or_none(value) for name, value in zip(seen.axes, given)}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
