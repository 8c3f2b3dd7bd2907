"""A base that drives a plane under a toy policy, with a camera that sees its own picture number, watched by sinks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kineflow.deploy.control import Control
from kineflow.deploy.executor import Executor
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.governor import Governor
from kineflow.deploy.live.feed import Commanded, Show
from kineflow.deploy.live.seen import Seen, Sink
from kineflow.deploy.ros2.toy_policies import Toy
from kineflow.deploy.simulate import Trace, drive, simulated
from tests.deploy.governed import profile

ROBOT = profile("wheeled", watchdogs={"estop": False, "supervisor_s": math.inf}, keep_out=None)
RATE_HZ = ROBOT.rate_hz


@dataclass
class Plane:
    """A `SimulatedRobot`: odometry and a picture every 20 ms; from `blind_s` on, no more pictures."""

    blind_s: float = math.inf
    place: np.ndarray = field(default_factory=lambda: np.zeros(3))  # x, y, yaw
    now_s: float = 0.0
    moves: np.ndarray = field(default_factory=lambda: np.zeros(4))
    taken: int = 0
    is_done: bool = False

    def advance(self, now_s: float) -> None:
        vx, _, _, yaw_rate = self.moves
        yaw = self.place[2]
        self.place += (now_s - self.now_s) * np.array([vx * math.cos(yaw), vx * math.sin(yaw), yaw_rate])
        self.now_s = now_s

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        x, y, yaw = self.place
        yield "pose", np.array([x, y, 0, 0, 0, math.sin(yaw / 2), math.cos(yaw / 2)], np.float32), self.now_s
        if self.now_s < self.blind_s:
            self.taken += 1
            yield "front", self.picture(self.taken), self.now_s

    @staticmethod
    def picture(number: int) -> np.ndarray:
        picture = np.full((96, 96, 3), number % 251, np.uint8)
        picture[..., 1] = np.arange(96)  # not the same in both directions
        return picture

    def command(self, values: np.ndarray, now_s: float) -> None:
        self.moves = values

    def arrived(self) -> None:
        pass


class Kept:
    """A sink that keeps everything."""

    shows_pictures = True

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def show(self, seen: Seen) -> None:
        self.seen.append(seen)

    def close(self) -> None:
        pass


def watched(policy: Toy, *sinks: Sink, seconds: float = 2.0, blind_s: float = math.inf, show: Show | None = None) -> Trace:
    """One episode, answers after 60 ms."""
    show = show or Show(list(sinks), "simulated")
    governor = Governor(ROBOT)
    governor.activate(0.0)
    control = Control(Executor(policy.contract, ExecutorConfig(mode="async")), governor)
    watch = show.episode(control, ROBOT.name, Commanded(ROBOT.command.names, ROBOT.limits.low, ROBOT.limits.high))
    episode = simulated(control, Plane(blind_s), lambda question: 0.06, RATE_HZ, seconds, watch=watch)
    return drive(episode, lambda question: policy.predict(question.observation, question.request))
