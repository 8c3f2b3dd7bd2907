"""What all of visual navigation agrees on: the command, its rate, and how poses and pixels are written down.

Axes are REP-103: x forward, y left, z up; the body frame turns with yaw alone. Quaternions are x y z w (MuJoCo's own are
w x y z and turned over where they are read). The centre of a picture's top-left pixel is (0, 0).
"""

from __future__ import annotations

COMMAND = ("vx", "vy", "vz", "yaw_rate")
COMMAND_UNITS = ("m/s", "m/s", "m/s", "rad/s")
CONTROL_HZ = 10.0
EMBODIMENTS = ("wheeled", "drone", "humanoid")
FRONT = "front"  # the camera that every embodiment carries
