"""A tiny process that stops the robot when the process that commands it is killed or frozen: it shares nothing with that one.

    commanding process --- a beat beside each command: active or not ---> Guard --- silent while active ---> stop, e-stop pressed
                       <--- supervisor beat: without its guard it does not move ---

`Guard` decides and knows no transport and no clock; the ROS node wraps it. `python -m kineflow.deploy.guard` is the same over
UDP on the loopback, for robots without ROS. One JSON object in each datagram:

    to the guard     {"kind": "beat", "active": true}      {"kind": "reset"}
    from the guard   {"kind": "supervisor"}                {"kind": "estop", "pressed": true}      {"kind": "stop"}

Standard library only, Python 3.10. A guard is no safety function either: the hardware e-stop stays mandatory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kineflow.interface import KineflowError


@dataclass(frozen=True)
class GuardConfig:
    """Seconds. `silence_s` without a beat while active trips; with the look and a late tick it stays below 0.25 s."""

    silence_s: float = 0.15
    stop_every_s: float = 0.05
    supervisor_every_s: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.silence_s < math.inf and self.stop_every_s > 0 and self.supervisor_every_s > 0):
            raise KineflowError(f"{self}: all are positive seconds, silence_s finite")


@dataclass(frozen=True)
class Sends:
    """What the guard sends now."""

    stop: bool = False
    estop: bool | None = None  # pressed or released, when that changed
    supervisor: bool = False


class Guard:
    """Idle until an active beat was heard; then silence trips it, and tripped it stays until `reset`, beats or not."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.tripped = False
        self._active = False
        self._heard_s = self._stopped_s = self._supervised_s = -math.inf
        self._estop: bool | None = False  # to be sent with the next look: who listens must know that it is there

    def beat(self, active: bool, now_s: float) -> None:
        """The commanding process lives, and commands the robot or not. Its last beat before a clean end is not active."""
        self._active, self._heard_s = active, now_s

    def reset(self) -> None:
        """The operator's: watches again from the next active beat on."""
        self._active, self._estop, self.tripped = False, False, False

    def look(self, now_s: float) -> Sends:
        """Call it every 10 ms or so."""
        if self._active and not self.tripped and now_s - self._heard_s > self.config.silence_s:
            self.tripped, self._estop, self._stopped_s = True, True, -math.inf
        stop = self.tripped and now_s - self._stopped_s >= self.config.stop_every_s
        supervisor = now_s - self._supervised_s >= self.config.supervisor_every_s
        self._stopped_s = now_s if stop else self._stopped_s
        self._supervised_s = now_s if supervisor else self._supervised_s
        estop, self._estop = self._estop, None
        return Sends(stop, estop, supervisor)


def run(guard: Guard, listen: tuple[str, int], tell: Sequence[tuple[str, int]], look_s: float = 0.01) -> None:
    """Until SIGINT or SIGTERM; then it lets go, and what it guarded stops for want of its supervisor."""
    ending = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.append(True))
    with contextlib.suppress(AttributeError, OSError):  # where permitted, ahead of whatever else keeps the cores busy
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(30))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(listen)
        wire.setblocking(False)
        print(json.dumps({"listens": wire.getsockname()[1]}), flush=True)
        while not ending:
            if select.select([wire], [], [], look_s)[0]:
                _hear(guard, wire)
            sends = guard.look(time.monotonic())
            kinds: list[dict[str, object]] = [{"kind": kind} for kind in ("stop", "supervisor") if getattr(sends, kind)]
            if sends.estop is not None:
                kinds.append({"kind": "estop", "pressed": sends.estop})
            for message in kinds:
                for address in tell:
                    with contextlib.suppress(OSError):  # nobody listens there, for now
                        wire.sendto(json.dumps(message).encode(), address)


def _hear(guard: Guard, wire: socket.socket) -> None:
    """All that has arrived, but no more than 100: a flood must not keep the guard from looking."""
    for _ in range(100):
        try:
            message = json.loads(wire.recv(4096))
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError):  # an echo of a closed port; what is no JSON is no beat
            continue
        kind = message.get("kind") if isinstance(message, dict) else None
        if kind == "beat" and isinstance(message.get("active"), bool):
            guard.beat(message["active"], time.monotonic())
        elif kind == "reset":
            guard.reset()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isdigit() and 0 <= int(port) < 65536):
        raise argparse.ArgumentTypeError(f"'{text}' is no address; write HOST:PORT")
    return host or "127.0.0.1", int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kineflow.deploy.guard", description=__doc__.split("\n")[0])
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 7310), help="where beats arrive; port 0: any, printed")
    parser.add_argument("--tell", type=_address, nargs="+", required=True, help="the commanding process, and the robot's driver")
    parser.add_argument("--silence", type=float, default=GuardConfig.silence_s, help="seconds without a beat while active")
    options = parser.parse_args(arguments)
    run(Guard(GuardConfig(silence_s=options.silence)), options.listen, options.tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
