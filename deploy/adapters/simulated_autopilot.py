"""An autopilot to test against, as a process of its own: `python -m kineflow.deploy.adapters.simulated_autopilot --log FILE`.

It sends HEARTBEAT (mode, armed) to the companion, hears what that says, and behaves as PX4 or ArduPilot document it:

    px4          OFFBOARD is refused unless a stream came within the last 0.5 s; a stream that ends for `loss_s` in OFFBOARD
                 makes it HOLD; setpoints are flown in OFFBOARD alone
    ardupilot    GUIDED may always be entered; setpoints are flown in GUIDED alone, the last one for 3 s

It flies nothing: `log` gets one JSON line for each message heard, with the monotonic time. Words on stdin: "offboard", "hold",
"arm", "disarm", "silent", "speak".
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kineflow.deploy.adapters.mavlink_wire import (
    ARMED,
    CUSTOM_MODE,
    HEARTBEAT,
    VELOCITY_TARGET,
    Packet,
    frame,
    packets,
    read_velocity,
)
from kineflow.deploy.adapters.settings import host_and_port

_MODES = {"px4": {"hold": (4 << 16) | (3 << 24), "offboard": 6 << 16}, "ardupilot": {"hold": 5, "offboard": 4}}
_KIND = {"px4": 12, "ardupilot": 3}
STREAM_S = 0.5


class Autopilot:
    """Mode and log; no socket, no clock."""

    def __init__(self, kind: str, loss_s: float, log: TextIO) -> None:
        self.kind, self._loss_s, self._log = kind, loss_s, log
        self.mode, self.armed, self.speaks = "hold", False, True
        self._proved_s = -1e9

    def hear(self, packet: Packet, now_s: float) -> None:
        if packet.message == VELOCITY_TARGET:
            frd, yaw_rate = read_velocity(packet)
            self._proved_s = now_s
            self._write(now_s, "setpoint", frd=frd, yaw_rate=yaw_rate)
        elif packet.message == HEARTBEAT:
            self._write(now_s, "heartbeat")

    def order(self, word: str, now_s: float) -> None:
        """Of the pilot."""
        if word == "offboard" and self.kind == "px4" and now_s - self._proved_s > STREAM_S:
            self._write(now_s, "refused")
        elif word in ("offboard", "hold"):
            self.mode = word
            self._write(now_s, word)
        elif word in ("arm", "disarm"):
            self.armed = word == "arm"
        elif word in ("silent", "speak"):
            self.speaks = word == "speak"

    def watch(self, now_s: float) -> None:
        if self.kind == "px4" and self.mode == "offboard" and now_s - self._proved_s > self._loss_s:
            self.mode = "hold"
            self._write(now_s, "failsafe")

    def heartbeat(self, sequence: int) -> bytes:
        flags = CUSTOM_MODE | (ARMED if self.armed else 0)
        payload = struct.pack("<IBBBBB", _MODES[self.kind][self.mode], 2, _KIND[self.kind], flags, 4, 3)
        return frame(HEARTBEAT, payload, sequence, 1, 1)

    def _write(self, now_s: float, what: str, **more: object) -> None:
        line = {"now_s": now_s, "what": what, "mode": self.mode, "armed": self.armed, **more}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def run(autopilot: Autopilot, companion: tuple[str, int], rate_hz: float) -> None:
    """Until stdin ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))
        print(json.dumps({"port": wire.getsockname()[1]}), flush=True)
        due_s, sequence = time.monotonic(), 0
        while True:
            ready = select.select([wire, sys.stdin], [], [], 0.005)[0]
            now_s = time.monotonic()
            if wire in ready:
                data, companion = wire.recvfrom(4096)
                for packet in packets(data):
                    autopilot.hear(packet, now_s)
            if sys.stdin in ready:
                words = os.read(sys.stdin.fileno(), 4096)
                if not words:
                    return
                for word in words.decode().split():
                    autopilot.order(word, now_s)
                due_s = now_s  # a change of mode is told at once
            autopilot.watch(now_s)
            if now_s >= due_s and autopilot.speaks:
                wire.sendto(autopilot.heartbeat(sequence), companion)
                due_s, sequence = now_s + 1 / rate_hz, (sequence + 1) & 0xFF


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--companion", default="127.0.0.1:14540", help="whom to send to, until somebody speaks")
    parser.add_argument("--kind", choices=list(_MODES), default="px4")
    parser.add_argument("--loss", type=float, default=0.5, help="seconds without a stream until OFFBOARD is left (COM_OF_LOSS_T)")
    parser.add_argument("--rate", type=float, default=5.0, help="heartbeats a second")
    options = parser.parse_args(words)
    with options.log.open("a") as log:
        run(Autopilot(options.kind, options.loss, log), host_and_port(options.companion, "--companion"), options.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
