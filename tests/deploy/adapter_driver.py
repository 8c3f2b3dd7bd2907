"""A process that drives a robot's adapter as the node does: governor and adapter at the robot's rate, faults by words on stdin.

    python adapter_driver.py PROFILE.yaml      words: go rest think stale nan estop hang stop

Prints one JSON line a word: what it was and when (monotonic).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

import numpy as np

from kineflow.config import load_config
from kineflow.deploy.adapters.opening import open_robot
from kineflow.deploy.governor import Governor, Intent
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.governed import Governed

WANTED = np.array([0.4, 0.1, 0.0, -0.3], np.float32)


def main() -> None:
    profile = load_config(RobotProfile, sys.argv[1])
    robot = open_robot(profile)
    governor = Governor(profile)
    governed = Governed(governor, waits=robot.waits)
    word, observed_s = "rest", time.monotonic()
    governor.estop(False, observed_s)
    governor.activate(observed_s)
    due_s = time.monotonic()
    while word != "stop":
        now_s = time.monotonic()
        governor.supervisor(now_s)
        if word != "stale":
            observed_s = now_s
        action = {"go": WANTED, "stale": WANTED, "nan": WANTED * np.nan}.get(word)
        robot.send(governed.govern(Intent(action, "thinking", observed_s, rests=word == "rest"), now_s), now_s)
        due_s = max(due_s + 1 / profile.rate_hz, time.monotonic() - 1 / profile.rate_hz)
        if select.select([sys.stdin], [], [], max(due_s - time.monotonic(), 0.0))[0]:
            words = os.read(sys.stdin.fileno(), 4096).decode().split()
            word = words[-1] if words else "stop"
            if word == "estop":
                governor.estop(True, time.monotonic())
            print(json.dumps({"word": word, "now_s": time.monotonic(), **robot.state(now_s)}), flush=True)
            if word == "hang":
                time.sleep(1000)
            time.sleep(max(due_s - time.monotonic(), 0.0))
    robot.stop(time.monotonic())
    robot.close()


if __name__ == "__main__":
    main()
