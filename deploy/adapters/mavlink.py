"""A drone whose autopilot (PX4, ArduPilot) speaks MAVLink over UDP: body velocities, proof of life, mode watched.

    to the autopilot    HEARTBEAT, 20 Hz, while the policy is healthy
                        SET_POSITION_TARGET_LOCAL_NED with the governed velocity, at the robot's rate, in OFFBOARD / GUIDED
                        the same with zero at 20 Hz before, to PX4 alone: it refuses OFFBOARD without a stream, and outside
                        of it takes the stream as proof of life and flies none of it (its mavlink_receiver)
    from the autopilot  HEARTBEAT: mode, armed; nothing else is needed

After a fault: see offboard.py. Serial lines go through mavlink-router or mavproxy. Messages are unsigned.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kineflow.deploy.adapters.frames import ned_from_flu
from kineflow.deploy.adapters.mavlink_wire import (
    ARMED,
    CUSTOM_MODE,
    HEARTBEAT,
    Heartbeat,
    heartbeat,
    packets,
    read_heartbeat,
    velocity_target,
)
from kineflow.deploy.adapters.offboard import Mode, Offboard
from kineflow.deploy.adapters.robot import axes
from kineflow.deploy.adapters.settings import MavlinkSettings, host_and_port
from kineflow.deploy.governor import Command
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.interface import KineflowError

_PX4_MODES = {1: "MANUAL", 2: "ALTCTL", 3: "POSCTL", 4: "AUTO", 5: "ACRO", 6: "OFFBOARD", 7: "STABILIZED", 8: "RATTITUDE"}
_LISTEN_S = 0.2


class Mavlink:
    """See the module. A thread of its own hears the autopilot."""

    def __init__(self, profile: RobotProfile) -> None:
        """Raises:
        KineflowError: the address cannot be used.
        """
        self._settings = settings = profile.mavlink or MavlinkSettings()
        self._names = profile.command.names
        self._offboard = Offboard(settings.offboard, profile.rate_hz, setpoints_prove_life=True)
        self._zero = np.zeros(profile.command.size)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._peer: tuple[str, int] | None = None
        self._heard_s = -np.inf
        address = host_and_port(settings.address, "mavlink.address")
        try:
            if settings.direction == "listen":
                self._socket.bind(address)
            else:
                self._peer = (socket.gethostbyname(address[0]), address[1])
                self._socket.bind(("", 0))
        except OSError as error:
            self._socket.close()
            raise KineflowError(
                f"mavlink.address {settings.address} cannot be used: {error}; is another program there?"
            ) from None
        self._socket.settimeout(_LISTEN_S)
        self._sequence, self._began_s, self.lost = 0, time.monotonic(), 0
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="kineflow-mavlink", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Of our own socket."""
        return int(self._socket.getsockname()[1])

    def send(self, command: Command, now_s: float) -> None:
        told = self._offboard.tick(command, now_s)
        if told.beat:
            self._say(heartbeat)
        if told.setpoint is not None:
            self._fly(told.setpoint)
        elif told.beat and self._settings.autopilot == "px4":
            self._fly(self._zero)

    def stop(self, now_s: float) -> None:
        if self._offboard.may_say_stop(now_s):
            self._fly(self._zero)

    def waits(self, now_s: float) -> str:
        return self._offboard.waits(now_s)

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        return {**self._offboard.state(now_s), "peer": str(self._peer), "lost": self.lost}

    def close(self) -> None:
        self._ending.set()
        self._thread.join(2 * _LISTEN_S)
        self._socket.close()

    def _fly(self, values: np.ndarray) -> None:
        vx, vy, vz, yaw_rate = axes(self._names, values, ("vx", "vy", "vz", "yaw_rate"))
        frd = ned_from_flu(np.array([vx, vy, vz]))
        turn = ned_from_flu(np.array([0.0, 0.0, yaw_rate]))
        target = (self._settings.system, self._settings.component)
        boot_ms = int(1e3 * (time.monotonic() - self._began_s))
        forward, right, down = frd.tolist()

        def message(sequence: int, system: int, own: int) -> bytes:
            return velocity_target((forward, right, down), float(turn[2]), boot_ms, sequence, system, own, target)

        self._say(message)

    def _say(self, message: Callable[[int, int, int], bytes]) -> None:
        """Never waits; what the network does not take is counted."""
        peer = self._peer
        if peer is None:
            return
        with self._lock:  # `stop` may come from another thread
            data = message(self._sequence, self._settings.system, self._settings.own)
            self._sequence = (self._sequence + 1) & 0xFF
            try:
                self._socket.sendto(data, socket.MSG_DONTWAIT, peer)
            except OSError:
                self.lost += 1

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                data, sender = self._socket.recvfrom(4096)
            except OSError:  # nothing came; or an echo of a port where nobody listens
                continue
            now_s = time.monotonic()
            with contextlib.suppress(ValueError):
                for packet in packets(data):
                    from_autopilot = (packet.system, packet.component) == (self._settings.system, self._settings.component)
                    if packet.message == HEARTBEAT and from_autopilot and self._is_peer(sender, now_s):
                        self._offboard.hear(self._mode(read_heartbeat(packet), now_s))

    def _is_peer(self, sender: tuple[str, int], now_s: float) -> bool:
        """Whoever spoke first stays our autopilot until it has been silent: another one cannot take the stream over."""
        if self._settings.direction == "connect":
            return sender == self._peer
        if sender != self._peer and now_s - self._heard_s <= self._settings.offboard.heard_s:
            return False
        self._peer, self._heard_s = sender, now_s
        return True

    def _mode(self, said: Heartbeat, now_s: float) -> Mode:
        armed, custom = bool(said.base_mode & ARMED), bool(said.base_mode & CUSTOM_MODE)
        if self._settings.autopilot == "px4":
            number = (said.custom_mode >> 16) & 0xFF
            return Mode(_PX4_MODES.get(number, str(number)), custom and number == 6, armed, now_s)
        guided = said.custom_mode == self._settings.guided_mode
        return Mode("GUIDED" if guided else str(said.custom_mode), custom and guided, armed, now_s)
