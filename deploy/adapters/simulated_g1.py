"""A G1's locomotion service to test against, as a process: `python -m kineflow.deploy.adapters.simulated_g1 --log FILE`.

It answers the SDK's requests, over UDP on the loopback, and behaves as documented: a velocity is walked in FSM 500 for its
duration, then the robot stands. `log` gets one JSON line for each request, and when walking ends, with monotonic times. Words
on stdin: "mute" (answers nothing), "answer", "refuse" (code 3202), "fsm N".
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from kineflow.deploy.adapters.g1 import GET_FSM, SET_FSM, SET_VELOCITY
from kineflow.deploy.adapters.unitree_wire import read_request, response
from kineflow.interface import KineflowError

WALKING, INTERNAL_ERROR, NOT_IMPLEMENTED = 500, 3202, 3203


class Service:
    """State and log; no socket, no clock."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self.fsm, self.answers, self.refuses = WALKING, True, False
        self._walks_until_s = -1.0

    def hear(self, data: bytes, now_s: float) -> bytes | None:
        number, api, parameter = read_request(data)
        self._write(now_s, "request", api=api, parameter=json.loads(parameter))
        if self.refuses:
            return response(number, api, INTERNAL_ERROR, "")
        code, said = self._done(api, json.loads(parameter), now_s)
        return response(number, api, code, said) if self.answers else None

    def order(self, words: list[str]) -> None:
        for word in words:
            if word in ("mute", "answer"):
                self.answers, self.refuses = word == "answer", False
            elif word == "refuse":
                self.refuses = True
            elif word.isdecimal():
                self.fsm = int(word)

    def watch(self, now_s: float) -> None:
        if 0 < self._walks_until_s <= now_s:
            self._walks_until_s = -1.0
            self._write(now_s, "stands")

    def _done(self, api: int, parameter: dict[str, Any], now_s: float) -> tuple[int, str]:
        if api == GET_FSM:
            return 0, json.dumps({"data": self.fsm})
        if api == SET_FSM:
            self.fsm = int(parameter["data"])
            return 0, ""
        if api == SET_VELOCITY:
            walks = self.fsm == WALKING and any(parameter["velocity"])
            self._walks_until_s = now_s + (parameter["duration"] if walks else 0.0)
            return 0, ""
        return NOT_IMPLEMENTED, ""

    def _write(self, now_s: float, what: str, **more: object) -> None:
        self._log.write(json.dumps({"now_s": now_s, "what": what, "fsm": self.fsm, **more}) + "\n")
        self._log.flush()


def run(service: Service, port: int) -> None:
    """Until stdin ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", port))
        print(json.dumps({"port": wire.getsockname()[1]}), flush=True)
        while True:
            ready = select.select([wire, sys.stdin], [], [], 0.005)[0]
            now_s = time.monotonic()
            if wire in ready:
                data, sender = wire.recvfrom(4096)
                try:
                    answer = service.hear(data, now_s)
                except (KineflowError, ValueError, KeyError, TypeError):
                    answer = None
                if answer is not None:
                    wire.sendto(answer, sender)
            if sys.stdin in ready:
                words = os.read(sys.stdin.fileno(), 4096)
                if not words:
                    return
                service.order(words.decode().split())
            service.watch(now_s)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0, help="0: any, printed")
    options = parser.parse_args(words)
    with options.log.open("a") as log:
        run(Service(log), options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
