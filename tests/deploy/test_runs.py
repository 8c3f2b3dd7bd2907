"""Runs of a policy: how they begin and end, and what a recorded node says of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kineflow.deploy.bag import Received
from kineflow.deploy.recorded_runs import FEEDBACK, HEARTBEAT, RESULT, Change, changes_of, waits_for_runs
from kineflow.deploy.ros2.runs import Runs

START = 1_700_000_000_000_000_000


def test_a_run_ends_once_and_says_how() -> None:
    runs = Runs()
    assert runs.end("cancelled", "nobody", 0.0) is None
    assert runs.begin(1.0) is None
    assert runs.watch(1.5, may_move=True, has_arrived=False, why="") is None
    done = runs.watch(3.0, may_move=True, has_arrived=True, why="")
    assert done is not None
    assert (done.number, done.state, done.why, done.seconds) == (1, "done", "arrived", 2.0)
    assert runs.watch(4.0, may_move=True, has_arrived=True, why="") is None
    runs.begin(5.0)
    failed = runs.watch(6.0, may_move=False, has_arrived=False, why="e-stop")
    assert failed is not None
    assert (failed.number, failed.state, failed.why) == (2, "failed", "e-stop")


def test_another_run_cancels_the_one_before() -> None:
    runs = Runs()
    runs.begin(1.0)
    ended = runs.begin(2.0, "another goal was told")
    assert ended is not None
    assert (ended.number, ended.state, ended.why) == (1, "cancelled", "another goal was told")
    assert runs.run is not None
    assert (runs.run.number, runs.is_running) == (2, True)


def test_feedback_is_due_five_times_a_second_while_one_runs() -> None:
    runs = Runs()
    assert not runs.is_feedback_due(0.0)
    runs.begin(10.0)
    assert sum(runs.is_feedback_due(10 + 0.05 * k) for k in range(40)) in (8, 9, 10)
    runs.end("done", "", 12.0)
    assert not runs.is_feedback_due(13.0)


def said(topic: str, at_s: float, **fields: Any) -> Received:
    return Received(topic, START + round(1e9 * at_s), SimpleNamespace(**fields), b"")


def beat(at_s: float, state: str) -> Received:
    ns = START + round(1e9 * at_s)
    stamp = SimpleNamespace(sec=ns // 10**9, nanosec=ns % 10**9)
    return said(HEARTBEAT, at_s + 0.001, stamp=stamp, frame_id=state)


def told(topic: str, at_s: float, **values: Any) -> Received:
    pairs = [SimpleNamespace(key=key, value=str(value)) for key, value in values.items()]
    return said(topic, at_s, values=pairs)


def test_a_bag_tells_when_the_node_was_active_and_what_was_asked_of_it() -> None:
    known = {
        HEARTBEAT: [beat(1.0, "active"), beat(1.02, "active"), beat(4.0, "stopped"), beat(5.0, "active")],
        FEEDBACK: [told(FEEDBACK, 2.1, run=1, state="running", by_service=True, began=START + 2 * 10**9)],
        RESULT: [told(RESULT, 3.1, run=1, state="cancelled", why="cancelled", by_service=True, ended=START + 3 * 10**9)],
    }
    changes = changes_of(known, START)
    assert changes == [
        Change(1.0, "active"),
        Change(2.0, "begin", by_service=True),
        Change(3.0, "end", "cancelled", by_service=True),
        Change(4.0, "stopped"),
        Change(5.0, "active"),
    ]
    assert waits_for_runs(changes, 1.0)
    assert not waits_for_runs([Change(1.0, "active"), Change(1.05, "begin")], 1.0)
    assert not waits_for_runs([Change(1.0, "active")], 1.0)
