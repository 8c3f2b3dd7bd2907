"""VLASH (arXiv 2512.01031): show the policy the state in which its chunk will begin, not the one in which it was asked.

The committed actions say where the robot will be: a velocity follows its command, a position is the command or its integral. Only
what the actions tell is moved on; pictures stay as they are, so the policy must have been trained with such an offset to gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kineflow.contracts import ContractError, Interface

_POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_BODY_VELOCITY = ("vx", "vy", "yaw_rate")


@dataclass(frozen=True)
class RollForward:
    """`copied`: (state dimension, action dimension) whose state will be the action; `pose`: where a pose of seven begins in the
    state, moved by the body velocities `moves` = places of vx, vy, vz (-1: none), yaw_rate in the action."""

    copied: tuple[tuple[int, int], ...]
    pose: int = -1
    moves: tuple[int, int, int, int] = (-1, -1, -1, -1)

    @classmethod
    def of(cls, interface: Interface) -> RollForward:
        """State dimensions named and measured like an action dimension follow it; a `pose` is moved by body velocities.

        Raises:
            ContractError: no state dimension follows from the actions.
        """
        action = interface.action.vector
        place = {pair: i for i, pair in enumerate(zip(action.names, action.units))}
        copied, start, pose = list[tuple[int, int]](), 0, -1
        for spec in interface.features.values():
            vector = spec.vector
            named = enumerate(zip(vector.names, vector.units), start)
            copied += [(i, place[pair]) for i, pair in named if pair in place and vector.frame == action.frame]
            if vector.names == _POSE and set(_BODY_VELOCITY) <= set(action.names):
                pose = start
            start += vector.size
        if not copied and pose < 0:
            raise ContractError(
                f"nothing in the state {sorted(interface.features)} follows from the actions {action.names}; leave roll_forward "
                "out, or pass a RollForward of your own"
            )
        index = {name: i for i, name in enumerate(action.names)}
        moves = (index.get("vx", -1), index.get("vy", -1), index.get("vz", -1), index.get("yaw_rate", -1))
        return cls(tuple(copied), pose, moves)

    def __call__(
        self, state: Float[np.ndarray, "T S"], actions: Float[np.ndarray, "d A"], step_s: float
    ) -> Float[np.ndarray, "T S"]:
        """The states of a window that ends after `actions`: those that came about are appended, the oldest leave."""
        states = list(np.asarray(state, np.float64))
        for action in np.asarray(actions, np.float64):
            after = states[-1].copy()
            for dimension, source in self.copied:
                after[dimension] = action[source]
            if self.pose >= 0:
                after[self.pose : self.pose + 7] = self._moved(after[self.pose : self.pose + 7], action, step_s)
            states.append(after)
        return np.stack(states[-len(state) :]).astype(state.dtype)

    def _moved(self, pose: np.ndarray, action: np.ndarray, step_s: float) -> np.ndarray:
        """Along the arc that a constant body velocity drives; the axis of turning is up."""
        vx, vy, vz, rate = (action[i] if i >= 0 else 0.0 for i in self.moves)
        x, y, z, qx, qy, qz, qw = pose
        yaw = math.atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))
        turned = rate * step_s
        # sin(a) / a and (1 - cos(a)) / a without their 0 / 0.
        along = float(np.sinc(turned / np.pi))
        across = turned / 2 * float(np.sinc(turned / (2 * np.pi))) ** 2
        dx, dy = step_s * (along * vx - across * vy), step_s * (across * vx + along * vy)
        half = turned / 2
        sin, cos = math.sin(half), math.cos(half)
        quaternion = (cos * qx - sin * qy, cos * qy + sin * qx, cos * qz + sin * qw, cos * qw - sin * qz)
        moved_x, moved_y = x + math.cos(yaw) * dx - math.sin(yaw) * dy, y + math.sin(yaw) * dx + math.cos(yaw) * dy
        return np.array([moved_x, moved_y, z + vz * step_s, *quaternion])
