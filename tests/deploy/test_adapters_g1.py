"""Promise 20: velocities that end by themselves, StopMove after a fault, damping by the operator alone; bytes as the SDK's."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.config import load_config
from kineflow.deploy.adapters.g1 import DAMPING, G1, GET_FSM, SET_FSM, SET_VELOCITY, Words
from kineflow.deploy.adapters.g1_link import TIMED_OUT, UdpLink, open_link
from kineflow.deploy.adapters.settings import G1Settings
from kineflow.deploy.adapters.unitree_wire import read_request, read_response, request, response
from kineflow.deploy.governor import Command
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.interface import KineflowError
from tests.deploy.adapter_rig import BUSY_S, DRIVER, START_S, AdapterRig, free_port

# Requests as Unitree's own LocoClient makes them and its message classes (cyclonedds 11.0.1) serialise them, SDK of 2026-07.
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "unitree_vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda v: v["parameter"])
def test_requests_are_the_bytes_of_the_sdk(vector: dict[str, Any]) -> None:
    assert request(vector["id"], vector["api_id"], vector["parameter"]).hex() == vector["hex"]
    assert read_request(bytes.fromhex(vector["hex"])) == (vector["id"], vector["api_id"], vector["parameter"])


@pytest.mark.parametrize("vector", VECTORS["responses"], ids=lambda v: str(v["code"]))
def test_responses_are_the_bytes_of_the_sdk(vector: dict[str, Any]) -> None:
    said = (vector["id"], vector["api_id"], vector["code"], vector["data"])
    assert response(*said).hex() == vector["hex"]
    assert read_response(bytes.fromhex(vector["hex"])) == said


@given(st.binary(max_size=200))
def test_bytes_that_are_none_are_refused(data: bytes) -> None:
    for read in (read_request, read_response):
        try:
            read(b"\x00\x01\x00\x00" + data)
        except KineflowError:
            continue


def test_what_is_asked_for_is_the_sdks_json() -> None:
    """The very requests of GetFsmId, SetVelocity(0.4, 0.1, -0.3, 0.4), StopMove and Damp in the recording."""
    words, said = Words(G1Settings()), []
    words.hear((0.4, 0.1, -0.3), 1.0)
    for now in (1.0, 1.01):
        made = words.next(now)
        assert made is not None
        said.append((made.api, made.parameter))
    words.hear((0.0, 0.0, 0.0), 1.2)
    words.damp()
    for _ in range(2):
        made = words.next(1.2)
        assert made is not None
        said.append((made.api, made.parameter))
        words.answered(made, 0, "", 1.2)
    recorded = [(v["api_id"], v["parameter"]) for v in VECTORS["requests"]]
    assert said == [recorded[1], recorded[0], recorded[2], recorded[3]]
    assert [r["api_id"] for r in VECTORS["requests"][4:]] == [SET_VELOCITY, SET_FSM]  # the SDK's own StopMove and Damp


EVENTS = st.lists(
    st.tuples(st.sampled_from(["go", "rest", "nothing", "lost", "refused"]), st.floats(0.001, 0.6)), min_size=1, max_size=60
)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_whatever_happens_velocities_are_short_and_nobody_damps(events: list[tuple[str, float]]) -> None:
    words, now = Words(G1Settings()), 0.0
    newest, moves = -1.0, list[float]()
    for what, seconds in events:
        now += seconds
        if what in ("go", "rest"):
            words.hear((0.3, 0.0, 0.1) if what == "go" else (0.0, 0.0, 0.0), now)
            newest = now
        made = words.next(now)
        if made is None:
            continue
        assert made.api in (GET_FSM, SET_VELOCITY)
        if made.api == SET_VELOCITY:
            said = json.loads(made.parameter)
            assert 0 < said["duration"] <= 0.5
            if made.what == "move":
                assert newest not in moves, "a command was sent twice"
                assert now - newest <= 0.15
                moves.append(newest)
        words.answered(made, {"lost": TIMED_OUT, "refused": 3202}.get(what, 0), '{"data": 500}', now)


def test_a_stop_is_said_until_it_is_acknowledged_and_then_no_more() -> None:
    words = Words(G1Settings())
    assert words.next(0.0).what == "look"  # type: ignore[union-attr]
    words.hear((0.3, 0.0, 0.0), 0.0)
    move = words.next(0.01)
    assert move is not None
    words.answered(move, 0, "", 0.01)
    words.hear((0.0, 0.0, 0.0), 0.02)
    for code in (TIMED_OUT, TIMED_OUT, 0):
        stop = words.next(0.03)
        assert stop is not None
        assert (stop.what, json.loads(stop.parameter)["velocity"]) == ("stop", [0.0, 0.0, 0.0])
        words.answered(stop, code, "", 0.03)
    assert words.next(0.04) is None


# Real processes


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterRig]:
    with started(tmp_path_factory.mktemp("g1")) as rig:
        yield rig


def started(folder: Path) -> AdapterRig:
    rig, port = AdapterRig(folder), free_port()
    rig.start("robot", "-m", "kineflow.deploy.adapters.simulated_g1", "--log", str(rig.log), "--port", str(port))
    assert rig.processes["robot"].stdout is not None
    assert json.loads(rig.processes["robot"].stdout.readline()) == {"port": port}
    rig.start("driver", str(DRIVER), str(rig.profile("g1", f"g1: {{interface: 'udp:127.0.0.1:{port}'}}")))
    rig.wait_for(lambda: rig.heard(what="request"))
    return rig


def velocities(heard: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**h, **h["parameter"]} for h in heard if h["what"] == "request" and h["api"] == SET_VELOCITY]


def go(rig: AdapterRig) -> None:
    begin = rig.tell("driver", "go")
    rig.wait_for(lambda: any(v["velocity"][0] > 0.39 for v in velocities(rig.heard(begin))))


def stops(rig: AdapterRig, begin: float) -> list[dict[str, Any]]:
    return [v for v in velocities(rig.heard(begin)) if not any(v["velocity"])]


@pytest.mark.real_time
def test_it_walks_by_short_velocities_refreshed(walk: AdapterRig) -> None:
    go(walk)
    begin = time.monotonic()
    walk.wait_for(lambda: len(velocities(walk.heard(begin))) >= 25)
    said = velocities(walk.heard(begin))
    assert np.median(np.diff([v["now_s"] for v in said])) == pytest.approx(0.1, abs=0.025)
    assert {v["duration"] for v in said} == {0.4}
    assert said[-1]["velocity"] == pytest.approx([0.4, 0.1, -0.3], abs=0.01)
    assert walk.heard(begin, "stands") == [], "refreshed in time"


@pytest.mark.real_time
@pytest.mark.parametrize(("fault", "after_s"), [("rest", 0.0), ("think", 0.0), ("stale", 0.2), ("nan", 0.0)])
def test_a_fault_is_a_stop_and_then_silence(walk: AdapterRig, fault: str, after_s: float) -> None:
    """Braking at 1 m/s^2 from 0.4 m/s (and jerk), then one StopMove; the robot is never damped."""
    go(walk)
    begin = walk.tell("driver", fault) + after_s
    walk.wait_for(lambda: stops(walk, begin))
    time.sleep(0.6)
    (stop,) = stops(walk, begin)
    print(f"promise 20, {fault}: StopMove after {1e3 * (stop['now_s'] - begin):.0f} ms")
    assert stop["now_s"] - begin <= 0.25 + 0.6 + BUSY_S
    assert velocities(walk.heard(stop["now_s"] + 1e-6)) == []


@pytest.mark.real_time
def test_an_unanswered_stop_is_said_again(walk: AdapterRig) -> None:
    go(walk)
    walk.tell("robot", "mute")
    begin = walk.tell("driver", "rest")
    walk.wait_for(lambda: len(stops(walk, begin)) >= 3)
    walk.tell("robot", "answer")
    walk.wait_for(lambda: time.monotonic() - stops(walk, begin)[-1]["now_s"] > 0.8)


@pytest.mark.real_time
def test_another_state_of_the_robot_is_rest(walk: AdapterRig) -> None:
    """Somebody made it sit down with the remote control: velocities end, and begin again from rest."""
    go(walk)
    begin = walk.tell("robot", "3")
    walk.wait_for(lambda: stops(walk, begin))
    time.sleep(0.3)
    assert not any(any(v["velocity"]) for v in velocities(walk.heard(time.monotonic() - 0.2)))
    begin = walk.tell("robot", "500")
    walk.wait_for(lambda: any(any(v["velocity"]) for v in velocities(walk.heard(begin))))


@pytest.mark.real_time
def test_frozen_and_killed_the_robot_stands_within_the_duration(walk: AdapterRig) -> None:
    go(walk)
    frozen = time.monotonic()
    walk.processes["driver"].send_signal(signal.SIGSTOP)
    walk.wait_for(lambda: walk.heard(frozen, "stands"))
    assert walk.heard(frozen, "stands")[0]["now_s"] - frozen <= 0.5 + BUSY_S
    thawed = time.monotonic()
    walk.processes["driver"].send_signal(signal.SIGCONT)
    walk.wait_for(lambda: velocities(walk.heard(thawed)))
    go(walk)
    killed = time.monotonic()
    walk.processes["driver"].kill()
    walk.wait_for(lambda: walk.heard(killed, "stands"))
    stands_s = walk.heard(killed, "stands")[0]["now_s"] - killed
    print(f"promise 20, SIGKILL: the robot stands after {1e3 * stands_s:.0f} ms")
    assert stands_s <= 0.5 + BUSY_S
    assert [h for h in walk.heard(what="request") if h["api"] == SET_FSM] == [], "nobody was damped in all these tests"


@pytest.mark.real_time
def test_an_estop_stops_and_only_the_operator_damps(tmp_path: Path) -> None:
    with started(tmp_path) as rig:
        go(rig)
        begin = rig.tell("driver", "estop")
        rig.wait_for(lambda: stops(rig, begin))
        assert stops(rig, begin)[0]["now_s"] - begin <= 0.12 + BUSY_S, "no ramp: an e-stop is zero at once"
        rig.tell("driver", "stop")
        assert rig.processes["driver"].wait(START_S) == 0
        assert [h for h in rig.heard(what="request") if h["api"] == SET_FSM] == []
        profile = load_config(RobotProfile, rig.folder / "g1.yaml")
        robot = G1.open(profile)
        try:
            now = time.monotonic()
            robot.send(Command(np.array([0.2, 0.0, 0.0, 0.0]), "pass"), now)
            time.sleep(0.05)
            assert robot.damp(now) == ""
            robot.send(Command(np.array([0.2, 0.0, 0.0, 0.0]), "pass"), time.monotonic())
            time.sleep(0.3)
            after = [h for h in rig.heard(now, "request") if h["api"] != GET_FSM]
            assert [h["api"] for h in after[-2:]] == [SET_VELOCITY, SET_FSM], "StopMove, then damping, then nothing"
            assert after[-2]["parameter"]["velocity"] == [0.0, 0.0, 0.0]
            assert after[-1]["parameter"] == {"data": DAMPING}
            assert "was damped" in robot.waits(time.monotonic())
        finally:
            robot.close()


def test_a_robot_that_does_not_answer_is_not_walked() -> None:
    robot = G1(load_config(RobotProfile, "robots/g1"), UdpLink(("127.0.0.1", free_port()), 0.05))
    try:
        assert robot.waits(time.monotonic()) == "the robot has not said whether it walks"
        assert "use its remote control" in robot.damp(time.monotonic())
    finally:
        robot.close()


# The SDK


def test_without_the_sdk_the_message_says_where_it_is() -> None:
    with pytest.raises(KineflowError, match="unitree_sdk2_python"):
        open_link(G1Settings(interface="eth0"))


def test_with_the_sdk_its_client_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signatures of the SDK of 2026-07."""
    seen: list[Any] = []

    class LocoClient:
        def SetTimeout(self, timeout: float) -> None:
            seen.append(("timeout", timeout))

        def Init(self) -> None:
            seen.append("init")

        def _Call(self, apiId: int, parameter: str) -> tuple[int, str | None]:
            seen.append((apiId, parameter))
            return (0, '{"data": 500}') if apiId == GET_FSM else (3104, None)

    def initialise(id: int, networkInterface: str | None = None) -> None:
        seen.append((id, networkInterface))

    for name in ("", ".core", ".g1", ".g1.loco"):
        monkeypatch.setitem(sys.modules, f"unitree_sdk2py{name}", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "unitree_sdk2py.core.channel", SimpleNamespace(ChannelFactoryInitialize=initialise))
    monkeypatch.setitem(sys.modules, "unitree_sdk2py.g1.loco.g1_loco_client", SimpleNamespace(LocoClient=LocoClient))
    link = open_link(G1Settings(interface="enp3s0"))
    assert link.call(GET_FSM, "{}") == (0, '{"data": 500}')
    assert link.call(SET_VELOCITY, "{}") == (3104, "")
    assert seen[:3] == [(0, "enp3s0"), ("timeout", 0.15), "init"]
