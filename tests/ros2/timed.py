"""Promises as tests take them: what the robot does is never relaxed; a time may be longer by what a shared machine makes of it.

`kineflow bench node` measures the same with exact limits, and beside a bare loop, which the machine keeps waiting just as long.
"""

from __future__ import annotations

from kineflow.deploy.ros2.promises import Measured

BUSY_MS = 150.0


def in_time(measured: Measured) -> None:
    """Held, or late by no more than a busy machine makes it; what else the promise is, its test asks of the note."""
    print(measured)
    assert measured.held or (measured.unit == "ms" and measured.value <= measured.limit + BUSY_MS), measured


def exactly(measured: Measured) -> None:
    print(measured)
    assert measured.held, measured
