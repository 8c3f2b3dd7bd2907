"""Tests whose subject is real time, of real processes (marker `real_time`), are run again when they fail, twice at the most.

A machine that others use can miss what such a test promises, whatever the test does about it; a fault of ours fails each time.
Each failure is an R in the progress and named at the end of the output: one that comes often is a fault of the test or of ours.
Before each run everything is torn down that tests share, processes as well, so that a run inherits nothing from the one before.
A conftest that imports these hooks has them; the marker is in pyproject.toml and tests/ros2/pytest.ini.
"""

from __future__ import annotations

from typing import Any

import pytest
from _pytest.runner import CallInfo, runtestprotocol

RUNS = 3
AGAIN = "run again"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if item.get_closest_marker("real_time") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for run in range(1, RUNS + 1):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in reports if report.failed]
        if failed:
            CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(None), when="teardown")
        if not failed or run == RUNS or any("Timeout (>" in report.longreprtext for report in failed):  # its time is used up
            break
        failed[0].outcome = AGAIN  # type: ignore[assignment]
        item.ihook.pytest_runtest_logreport(report=failed[0])
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    return (AGAIN, "R", ("RUN AGAIN", {"yellow": True})) if report.outcome == AGAIN else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    again = terminalreporter.stats.get(AGAIN, [])
    if again:
        terminalreporter.section("run again, since their subject is real time (tests/run_again.py)", yellow=True)
    for report in again:
        terminalreporter.line(f"{report.nodeid}: {report.longreprtext.splitlines()[-1]}")
        terminalreporter.line(report.longreprtext)
