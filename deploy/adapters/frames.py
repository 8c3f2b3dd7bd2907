"""From the axes of ROS to those of autopilots: the one place where this is done.

FLU  x forward, y left, z up     our commands (REP-103), gravity-aligned: x is the heading's, z is against gravity
FRD  x forward, y right, z down  the same body in MAVLink's words (BODY_NED, BODY_FRD)
NED  x north, y east, z down     the world of PX4 and MAVLink
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float

LEVEL_NORTH = (1.0, 0.0, 0.0, 0.0)  # FRD is NED then


def ned_from_flu(
    vector: Float[np.ndarray, "3"], attitude: tuple[float, float, float, float] = LEVEL_NORTH
) -> Float[np.ndarray, "3"]:
    """A velocity (m/s) or rate of turn (rad/s) of the body's axes in the axes of NED.

    `attitude` is the unit quaternion w, x, y, z that turns FRD into NED, as autopilots publish it. Without it the result is in
    FRD. For gravity-aligned commands give the heading alone: `heading(yaw)`.
    """
    w, *axis = attitude
    frd = np.array([vector[0], -vector[1], -vector[2]], float)
    u = np.array(axis)
    turned = 2.0 * np.cross(u, frd)
    return frd + w * turned + np.cross(u, turned)


def heading(yaw: float) -> tuple[float, float, float, float]:
    """The attitude of a level body whose nose is `yaw` rad east of north (clockwise from above)."""
    return (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
