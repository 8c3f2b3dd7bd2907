"""Starts a node: `python -m kineflow.deploy.ros2.start policy --ros-args -p config:=nodes/wheeled`.

Everything is checked before rclpy is imported: a middleware that is not installed ends the process at the import, with exit code
102 and no exception.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from kineflow.deploy.ros2.environment import prepare
from kineflow.interface import KineflowError

NODES = {
    "policy": "policy_node",
    "guard": "guard_node",
    "recorder": "recorder_node",
    "base": "simulated_base",
    "bare": "bare_loop",
}


def main(words: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] not in NODES:
        print(f"kineflow: name a node: {', '.join(NODES)}; got {given[:1]}", file=sys.stderr)
        return 2
    try:
        prepare()
    except KineflowError as error:
        print(f"kineflow: {error}", file=sys.stderr)
        return 2
    sys.argv = given
    return int(importlib.import_module(f"kineflow.deploy.ros2.{NODES[given[0]]}").main())


if __name__ == "__main__":
    code = main()
    gc.collect()  # what is left of DDS says goodbye, or others would remember it for 20 s
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a policy that still thinks in native code must not meet an interpreter that is gone
