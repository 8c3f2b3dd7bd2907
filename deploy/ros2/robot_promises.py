"""Promises 19 and 20: the whole node, with a robot that has a link of its own and is simulated as a process.

The base gives the pictures and the poses; the robot's side (deploy/adapters/simulated_*.py) logs what it hears, and when. The
command topic echoes what the robot was told.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kineflow.config import find_config
from kineflow.deploy.adapters.g1 import DAMPING, SET_FSM, SET_VELOCITY
from kineflow.deploy.ros2.promises import Measured
from kineflow.deploy.ros2.rig import START_S, Rig, wait_for
from kineflow.deploy.ros2.session import Session
from kineflow.interface import KineflowError

OBSERVATION_S = 0.2 - 1 / 30  # from the camera's end to the fault, at the least: the last picture may be a period old

BEGINS = 0.2  # m/s: a drone that is switched to OFFBOARD begins at rest, a jump would be 0.4


class Peer:
    """A simulated robot's side: `tell` it what its pilot does; `heard` is its log, by the monotonic clock."""

    def __init__(self, folder: Path, module: str, *words: str) -> None:
        self.log = folder / f"{module}.jsonl"
        self.log.touch()
        command = [sys.executable, "-m", f"kineflow.deploy.adapters.{module}", "--log", str(self.log), *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, word: str) -> float:
        assert self._process.stdin is not None
        now = time.monotonic()
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return now

    def heard(self, since_s: float = 0.0, what: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["now_s"] >= since_s and what in ("", line["what"])]


def autopilot_hears_silence() -> Measured:
    """19: heartbeats at 20 Hz while healthy; no motion outside OFFBOARD; after a fault and an e-stop silence within 0.25 s."""
    with Rig() as rig:
        port = _free_port()
        with Peer(rig.folder, "simulated_autopilot", "--companion", f"127.0.0.1:{port}") as pilot:
            session = _session(rig, "drone", f"mavlink: {{address: '127.0.0.1:{port}'}}")
            session.activate(moves=False)
            _wait(lambda: bool(pilot.heard(what="heartbeat")), "a heartbeat")
            begin = time.monotonic() + 0.5
            time.sleep(3.5)
            beats = [h["now_s"] for h in pilot.heard(begin, "heartbeat")]
            rate = (len(beats) - 1) / (beats[-1] - beats[0]) if len(beats) > 1 else 0.0
            outside = len(_flown(pilot.heard(begin)))
            pilot.tell("arm offboard")
            _wait(lambda: any(h["frd"][0] > 0.39 for h in _flown(pilot.heard())), "flight")
            first = _flown(pilot.heard())[0]["frd"][0]
            held = pilot.tell("hold")
            time.sleep(1.0)
            outside += len(_flown(pilot.heard(held + 0.3)))
            silent = [_silent_after(rig, pilot, rig.fault, "camera off", OBSERVATION_S)]
            _recover(session)
            silent.append(_silent_after(rig, pilot, lambda word: rig.press_estop(True), "estop", 0.0))
            failsafes = len(pilot.heard(what="failsafe"))
    worst = max(silent)
    good = worst <= 0.25 and outside == 0 and first < BEGINS and abs(rate - 20) <= 1.5 and failsafes == 2
    note = (
        f"heartbeats {rate:.1f} Hz; moving setpoints outside OFFBOARD: {outside}; the first in it {first:.3f} m/s; silent "
        f"{1e3 * silent[0]:.0f} ms after a stale observation, {1e3 * silent[1]:.0f} ms after an e-stop; failsafes of the "
        f"autopilot: {failsafes} of 2"
    )
    return Measured(19, "drone: proof of life ends after a fault", 1e3 * worst, 250, "ms", good, note)


def humanoid_stands() -> Measured:
    """20: velocities of 0.5 s at most, refreshed; after a fault StopMove; killed, the robot stands; only an operator damps it."""
    with Rig() as rig, Peer(rig.folder, "simulated_g1") as robot:
        session = _session(rig, "g1", f"g1: {{interface: 'udp:127.0.0.1:{robot.port}'}}")
        session.activate()
        _wait(lambda: any(v["velocity"][0] > 0.39 for v in _velocities(robot)), "walking")
        begin = time.monotonic()
        time.sleep(2.0)
        refreshed = np.diff([v["now_s"] for v in _velocities(robot, begin)])
        at = rig.fault("camera off") + OBSERVATION_S
        _wait(lambda: any(not any(v["velocity"]) for v in _velocities(robot, at)), "StopMove")
        stop_s = next(v["now_s"] for v in _velocities(robot, at) if not any(v["velocity"])) - at
        _recover(session)
        _wait(lambda: any(v["velocity"][0] > 0.39 for v in _velocities(robot, time.monotonic() - 0.3)), "walking again")
        killed = rig.send_signal("node", 9)
        _wait(lambda: bool(robot.heard(killed, "stands")), "the end of walking")
        stands_s = robot.heard(killed, "stands")[0]["now_s"] - killed
        damped_alone = _states(robot)
        session.restart_node()
        asked = time.monotonic()
        done = rig.trigger("/policy/damp")
        said = [h for h in robot.heard(asked, "request") if h["api"] in (SET_VELOCITY, SET_FSM)]
        order = (
            done
            and _states(robot) == 1
            and said[-1]["parameter"] == {"data": DAMPING}
            and not any(said[-2]["parameter"]["velocity"] if len(said) > 1 else [0])
        )
        longest = max(v["duration"] for v in _velocities(robot))
    good = stands_s <= 0.5 and longest <= 0.5 and refreshed.max() <= longest and damped_alone == 0 and order and stop_s < 1.0
    note = (
        f"longest duration {longest:g} s, refreshed every {1e3 * refreshed.mean():.0f} ms; StopMove {1e3 * stop_s:.0f} ms after "
        f"a stale observation (braking at 1 m/s^2 from 0.4); damped {damped_alone} times unasked, asked: StopMove first {order}"
    )
    return Measured(20, "humanoid: stands after the node was killed", 1e3 * stands_s, 500, "ms", good, note)


def _session(rig: Rig, robot: str, settings: str) -> Session:
    """Base and node up to inactive, for a shipped robot with the address of its simulated side."""
    file = rig.folder / f"{robot}.yaml"
    file.write_text(f"{find_config(f'robots/{robot}').read_text()}\n{settings}\n")
    session = Session(rig, guarded=False, overrides=("--robot", str(file)))
    session.start_base()
    rig.press_estop(False)
    session.start_node()
    session.configure()
    return session


def _recover(session: Session) -> None:
    """The camera on, latches cleared, ACTIVE; it moves when its robot takes motion."""
    rig = session.rig
    rig.fault("camera on")
    rig.press_estop(False)
    time.sleep(0.3)
    rig.trigger("/policy/reset_estop")
    rig.trigger("/policy/reset_fault")
    if rig.state() != "active":
        session.activate(moves=False)


def _silent_after(rig: Rig, pilot: Peer, inject: Any, word: str, until_fault_s: float) -> float:
    """Seconds from a fault in flight to the last word that the autopilot hears."""
    pilot.tell("arm offboard")
    _wait(lambda: any(h["frd"][0] > 0.39 for h in _flown(pilot.heard(time.monotonic() - 0.2))), "flight")
    at = float(inject(word)) + until_fault_s
    _wait(lambda: bool(pilot.heard(at, "failsafe")), "the autopilot's failsafe")
    spoken = [h["now_s"] for h in pilot.heard(at) if h["what"] in ("heartbeat", "setpoint")]
    return float(spoken[-1] if spoken else at) - at


def _flown(heard: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [h for h in heard if h["what"] == "setpoint" and (any(h["frd"]) or h["yaw_rate"])]


def _velocities(robot: Peer, since_s: float = 0.0) -> list[dict[str, Any]]:
    return [{**h, **h["parameter"]} for h in robot.heard(since_s, "request") if h["api"] == SET_VELOCITY]


def _states(robot: Peer) -> int:
    """How often somebody asked for another state."""
    return sum(h["api"] == SET_FSM for h in robot.heard(what="request"))


def _wait(condition: Any, what: str) -> None:
    if not wait_for(condition, START_S / 2, 0.03):
        raise KineflowError(f"waited in vain for {what}; is the machine too busy? load {os.getloadavg()[0]:.1f}")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
