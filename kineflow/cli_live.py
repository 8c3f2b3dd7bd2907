"""`--view` of simulation and replay, `kineflow deploy watch`, and `kineflow doctor`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kineflow.cli_verb import add_verb, positive, show
from kineflow.interface import Interface

if TYPE_CHECKING:
    from kineflow.deploy.live.feed import Show


def add(whats: Any) -> None:
    watch = add_verb(whats, "watch", _watch, "a dashboard of a running policy node, from its diagnostics; for ssh")
    watch.add_argument("--node", default="policy", help="its name (default policy)")
    watch.add_argument("--seconds", type=positive, help="end after so long (default: with Ctrl-C)")


def add_doctor(verbs: Any) -> None:
    text = "what of this machine would keep a policy from driving a robot, and what to do; exit 1 where something must be done"
    doctor = add_verb(verbs, "doctor", _doctor, text)
    doctor.add_argument(
        "--ros", action="store_true", help="also ROS 2: middleware, domain, discovery, shared memory, installation"
    )
    doctor.add_argument("--topic", help="with --ros: a picture's topic whose rate is measured live")
    doctor.add_argument("--rate-hz", type=positive, default=30.0, help="that the topic should have (default 30)")
    doctor.add_argument("--seconds", type=positive, default=4.0, help="of measuring (default 4)")
    doctor.add_argument("--threads", type=int, default=1, help="of the policy's runtime (default 1)")


def add_view(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--view",
        action="append",
        default=[],
        metavar="WHAT",
        help="terminal, foxglove[:PORT], rerun, FILE.mcap or FILE.rrd; repeatable",
    )
    verb.add_argument("--live", metavar="CONFIG", help="where the cameras are, to draw the plan into them: live/wheeled")


@contextmanager
def shown(args: argparse.Namespace, state: str, interface: Interface) -> Iterator[Show | None]:
    """Open the views that were asked for; None without one. Closed at the end, whatever happens: a file stays readable."""
    from kineflow.config import load_config
    from kineflow.deploy.live.drawing import LiveConfig, drawings
    from kineflow.deploy.live.feed import Show
    from kineflow.deploy.live.views import open_view
    from kineflow.interface import KineflowError

    if not args.view:
        if args.live:
            raise KineflowError(f"--live {args.live} says where plans are drawn in pictures; name who shows them with --view")
        yield None
        return
    draws = drawings(interface, load_config(LiveConfig, args.live) if args.live else LiveConfig())
    opened = Show([], state)
    with told_to_end():
        try:
            for word in args.view:
                sink, told = open_view(word, draws)
                opened.sinks.append(sink)
                if told:
                    print(told, file=sys.stderr)
            yield opened
        finally:
            opened.close()


@contextmanager
def told_to_end() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a lost ssh connection, end what is within as an exception does: files are closed, the terminal is
    given back. A second one ends the process at once. Elsewhere than in the main thread nothing changes."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP) if is_main}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}  # by nohup

    def end(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(args: argparse.Namespace) -> int:
    from kineflow.deploy.ros2.environment import prepare

    prepare()
    from kineflow.deploy.ros2.watching import watch

    with told_to_end():
        return watch(args.node, args.seconds, args.json)


def _doctor(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from kineflow.deploy.doctor import examine, lines_of
    from kineflow.deploy.ros2.doctor import examine_ros
    from kineflow.interface import KineflowError

    if args.topic and not args.ros:
        raise KineflowError(f"--topic {args.topic}: its rate is measured with --ros")
    findings = examine(args.threads)
    if args.ros:
        findings += examine_ros(args.topic, args.rate_hz, args.seconds)
    failed = any(finding.level == "fail" for finding in findings)
    show(args, {"ok": not failed, "findings": [asdict(f) for f in findings]}, lambda: print("\n".join(lines_of(findings))))
    return 1 if failed else 0
