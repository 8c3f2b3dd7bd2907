"""One rig of processes for all tests of a module: starting Python with ROS in it takes seconds. Tests of real time are run again
when they fail, with a rig of their own (tests/run_again.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kineflow.deploy.ros2.rig import Rig
from kineflow.deploy.ros2.session import Session
from tests.run_again import pytest_report_teststatus, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Base, guard and a node whose policy drives straight on: ACTIVE and at speed. Tests put it back so."""
    with Rig() as rig:
        session = Session(rig)
        session.up()
        yield session
