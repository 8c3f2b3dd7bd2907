"""`kineflow deploy robot PROFILE`: which adapter a profile means, and whether its robot is there; nothing moves."""

from __future__ import annotations

import argparse
from typing import Any

from kineflow.cli_verb import add_verb, positive, show


def add(whats: Any) -> None:
    robot = add_verb(whats, "robot", _robot, "what a robot's profile means, and whether the robot answers; nothing moves")
    robot.add_argument("profile", help="YAML file, or the name of a shipped one such as robots/drone")
    robot.add_argument("--seconds", type=positive, default=3.0, help="how long to listen (default 3)")


def _robot(args: argparse.Namespace) -> int:
    """0: the robot would take commands, or is one of topics; 1: it would not, and why."""
    from kineflow.config import load_config
    from kineflow.deploy.adapters.look import look
    from kineflow.deploy.robot_profile import RobotProfile

    found = look(load_config(RobotProfile, args.profile), args.seconds)

    def human() -> None:
        for name, value in found.items():
            print(f"{name:12} {value}")

    show(args, found, human)
    return 1 if found["waits"] else 0
