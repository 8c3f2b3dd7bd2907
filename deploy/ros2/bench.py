"""`python -m kineflow.deploy.ros2.bench [--quick]`: every promise measured, one JSON object a line, for `kineflow bench node`.

Quick: promises 1 to 3, 7 to 12, 15 and 16 in one session with the toy that drives straight on, and no load. Otherwise
also those whose toys misbehave, 20 exits, robots that are no topics (19, 20), and the node beside a bare loop, idle and loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from kineflow.deploy.ros2 import latency, promises, robot_promises
from kineflow.deploy.ros2.promises import Measured
from kineflow.deploy.ros2.rig import Rig
from kineflow.deploy.ros2.session import Session
from kineflow.interface import KineflowError

EXITS = 20


def measured(quick: bool) -> Iterator[Measured]:
    """Each promise as it is measured. A session that breaks down is a promise not held, and the next one begins anew."""
    yield from _driving(quick)
    if quick:
        return
    others: tuple[tuple[str, Callable[[Session], Measured], bool], ...] = (
        ("stuck", promises.chunk_exhausted, False),
        ("wild", promises.limits_on_output, False),
        ("broken", promises.broken_chunks, False),
        ("slow", promises.delay_adapts, False),
        ("bimodal", promises.seam_jump, False),
        ("forward", promises.clock_jumps, True),
    )
    for policy, promise, clock in others:
        yield _whole(promise.__name__, lambda: one(policy, promise, clock=clock))  # noqa: B023
    for whole_node in (robot_promises.autopilot_hears_silence, robot_promises.humanoid_stands):
        yield _whole(whole_node.__name__, whole_node)
    yield from latency.compared(40.0)


def one(policy: str, promise: Callable[[Session], Measured], *, clock: bool = False) -> Measured:
    """A promise that needs a session of its own. Without a guard: it sends zeros of its own when the machine stalls."""
    with Rig() as rig:
        words, settings = (("--clock",), {"use_sim_time": True}) if clock else ((), {})
        session = Session(rig, policy=policy, guarded=False, base_words=words, node_settings=dict(settings))
        session.up()
        return promise(session)


def _whole(name: str, measure: Callable[[], Measured]) -> Measured:
    try:
        return measure()
    except KineflowError as error:
        return Measured(0, f"{name}: broke down", 1, 0, "breakdowns", False, str(error)[:300])


def _driving(quick: bool) -> Iterator[Measured]:
    """Promises of one node after another, with base and guard that stay."""
    exits = [signal.SIGINT, signal.SIGTERM] * (1 if quick else EXITS // 2)
    steps: list[tuple[Callable[[Session], Measured], Callable[[Session], None]]] = [
        (partial(promises.steady_rate, seconds=4.0 if quick else 8.0), Session.recover),
        (promises.stale_observation, Session.recover),
        (promises.estop, Session.recover),
        (promises.diagnostics, Session.recover),
        (promises.shifted_stamps, Session.recover),
        (promises.supervisor_lost, Session.recover),
        (partial(promises.killed, number=signal.SIGKILL), Session.restart_node),
        (partial(promises.killed, number=signal.SIGSTOP), Session.restart_node),
        (promises.silent_unless_active, Session.recover),
        (promises.wiring, Session.recover),
        *((partial(promises.clean_exit, number=number), Session.restart_node) for number in exits),
        (partial(promises.latched_restart, restarts=1 if quick else 4), Session.recover),
    ]
    rows: list[Measured] = []
    with Rig() as rig:
        session = Session(rig)
        session.up()
        for measure, put_back in steps:
            row = _whole(str(measure), partial(measure, session))
            rows.append(row)
            if row.number != 10:
                yield row
            try:
                put_back(session)
            except KineflowError:  # whatever is wrong with this one
                session.restart_node()
    ends = [row for row in rows if row.number == 10]
    if ends:
        yield max(ends, key=lambda row: (not row.held, row.value))  # the worst
    if ends and not quick:
        yield promises.clean_exits(ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    try:
        for row in measured(options.quick):
            print(json.dumps(asdict(row)), flush=True)
    except KineflowError as error:
        print(f"kineflow: {error}", file=sys.stderr)
        return 2
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
