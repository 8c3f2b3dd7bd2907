"""A robot that takes governed commands; which one a profile means stands in `open_robot` and `deploy/ros2/robots.py`.

twist, twist_stamped, px4, joint_trajectory, path    topics: deploy/ros2/robots.py
mavlink                                              MAVLink over UDP: deploy/adapters/mavlink.py
g1                                                   Unitree's locomotion service: deploy/adapters/g1.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kineflow.deploy.governor import Command

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float


class Robot(Protocol):
    """Every call but `close` comes from the output thread, or while that one is stopped. Times are monotonic seconds."""

    def send(self, command: Command, now_s: float) -> None:
        """One governed command, at the robot's rate. Does not wait for an answer."""

    def stop(self, now_s: float) -> None:
        """The last word: come to rest. What the body does then is its profile's safe state."""

    def waits(self, now_s: float) -> str:
        """Why it does not take motion now (another mode, not armed, not heard), or "". The governor then rests, so that motion
        begins at rest when it does."""

    def held(self, now_s: float) -> tuple[float, ...] | None:
        """For commands of positions: where the joints are now. None: the commands are velocities."""

    def state(self, now_s: float) -> dict[str, Any]:
        """For diagnostics: plain values only."""

    def close(self) -> None:
        """Let go of sockets, threads and topics; says nothing."""


def axes(names: Sequence[str], values: Float[np.ndarray, "A"], wanted: Sequence[str]) -> tuple[float, ...]:
    """Values of the named axes, 0 for those that the command lacks."""
    of = dict(zip(names, values.tolist()))
    return tuple(float(of.get(name, 0.0)) for name in wanted)
