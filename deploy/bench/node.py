"""`kineflow bench node`: the promises of the ROS 2 node, in the environment that has rclpy (its wheels need one of their own)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kineflow.bench_row import Row
from kineflow.interface import KineflowError

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-ros" / "bin" / "python"


def bench_node(quick: bool) -> Iterator[Row]:
    """One row for each measurement: `value` against the promise in `goal`.

    Without an interpreter that has rclpy: one row that says so.

    Raises:
        KineflowError: the rig of processes broke down.
    """
    python = _python()
    if not python:
        why = "needs rclpy: `make ros2` makes .venv-ros from wheels, or name its Python in KINEFLOW_ROS_PYTHON"
        yield Row("promises of the ROS 2 node", 0.0, "promises", "higher", None, "", None, "each held", None, 0, why)
        return
    settings = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [python, "-m", "kineflow.deploy.ros2.bench", *(["--quick"] if quick else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=settings, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = json.loads(line)
            yield Row(
                name=f"promise {found['number']}: {found['promise']}" if found["number"] else found["promise"],
                value=found["value"],
                unit=found["unit"],
                better="higher" if found["unit"] in ("dropped", "reports", "fault") else "lower",
                reference=None,
                reference_version="",
                ratio=None,
                goal=f"{'>=' if found['unit'] in ('dropped', 'reports', 'fault') else '<='} {found['limit']:g} {found['unit']}",
                holds=found["held"],
                n=1,
                note=f"{found['note']}; load {os.getloadavg()[0]:.1f}",
            )
    if process.returncode:
        raise KineflowError(f"the rig of ROS processes ended with {process.returncode}; is the machine too busy? see above")


def _python() -> str:
    if chosen := os.environ.get("KINEFLOW_ROS_PYTHON"):
        return chosen
    if ENVIRONMENT.is_file():
        return str(ENVIRONMENT)
    if importlib.util.find_spec("rclpy"):
        return sys.executable
    return ""
