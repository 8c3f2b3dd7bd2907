"""The guard: a commanding process that is killed or frozen has its robot stopped within 0.25 s of its last command."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.deploy.guard import Guard, GuardConfig, main

COMMANDS = """
import json, socket, sys, time
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
guard, robot = ("127.0.0.1", int(sys.argv[1])), ("127.0.0.1", int(sys.argv[2]))
while True:
    wire.sendto(json.dumps({"kind": "command"}).encode(), robot)
    wire.sendto(json.dumps({"kind": "beat", "active": True}).encode(), guard)
    time.sleep(0.02)
"""


class Bench:
    """A guard process, and the robot's side: all that arrives there, with times."""

    def __init__(self) -> None:
        self.robot = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.robot.bind(("127.0.0.1", 0))
        self.port = self.robot.getsockname()[1]
        self.processes: list[subprocess.Popen[str]] = []
        self.guard = self.start("-m", "kineflow.deploy.guard", "--listen", "127.0.0.1:0", "--tell", f"127.0.0.1:{self.port}")
        assert self.guard.stdout is not None
        self.guard_port = json.loads(self.guard.stdout.readline())["listens"]
        self.heard: list[tuple[float, dict[str, Any]]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.processes.append(subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True))
        return self.processes[-1]

    def commands(self) -> subprocess.Popen[str]:
        return self.start("-c", COMMANDS, str(self.guard_port), str(self.port))

    def tell(self, message: object) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.robot.sendto(data, ("127.0.0.1", self.guard_port))

    def listen(self, seconds: float, until: str = "") -> bool:
        """Collect for so long, or until the first of that kind."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.robot.settimeout(left)
            try:
                message = json.loads(self.robot.recv(4096))
            except TimeoutError:
                break
            self.heard.append((time.monotonic(), message))
            if message["kind"] == until:
                return True
        return False

    def count(self, kind: str) -> int:
        return sum(message["kind"] == kind for _, message in self.heard)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.robot.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_frozen_process_has_its_robot_stopped(bench: Bench, end: signal.Signals) -> None:
    commander = bench.commands()
    assert bench.listen(20.0, until="command")
    bench.listen(0.5)
    assert (bench.count("stop"), bench.count("supervisor") >= 2) == (0, True)
    os.kill(commander.pid, end)
    assert bench.listen(5.0, until="stop")
    stopped = bench.heard[-1][0]
    last = max(when for when, message in bench.heard if message["kind"] == "command")
    assert 0.1 < stopped - last <= 0.25
    bench.listen(0.5)
    assert bench.count("stop") >= 5, "one datagram may be lost"
    assert any(message == {"kind": "estop", "pressed": True} for _, message in bench.heard)
    if end == signal.SIGSTOP:  # it wakes up and goes on commanding, but the guard does not trust it any more
        os.kill(commander.pid, signal.SIGCONT)
        bench.heard.clear()
        bench.listen(0.5)
        assert bench.count("command") > 5
        assert bench.count("stop") >= 5
        bench.tell({"kind": "reset"})
        bench.listen(0.1)
        bench.heard.clear()
        bench.listen(0.3)
        assert bench.count("stop") == 0


def test_a_clean_end_is_not_stopped_and_sigterm_ends_the_guard(bench: Bench) -> None:
    for _ in range(5):
        bench.tell({"kind": "beat", "active": True})
        bench.listen(0.03)
    bench.tell({"kind": "beat", "active": False})
    bench.listen(0.4)
    assert bench.count("stop") == 0
    bench.guard.terminate()
    assert bench.guard.wait(5.0) == 0


def test_rubbish_neither_kills_the_guard_nor_feeds_it(bench: Bench) -> None:
    generator = random.Random(0)
    bench.tell({"kind": "beat", "active": True})
    end = time.monotonic() + 0.4
    rubbish = [
        b"",
        b"{",
        b"[" * 4000,
        b"3",
        b'{"kind": "beat"}',
        b'{"kind": "beat", "active": 1}',
        b'{"kind": ["beat"]}',
        b"\xff\xfe",
    ]
    while time.monotonic() < end:
        bench.tell(generator.choice([*rubbish, generator.randbytes(200)]))
        bench.listen(0.001)
    bench.listen(1.0, until="stop")
    assert bench.count("stop") > 0
    assert bench.guard.poll() is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["active", "inactive", "reset", "silence"]), st.floats(0.0, 0.4), st.floats(0.001, 0.03)),
        max_size=20,
    )
)
def test_stops_exactly_when_an_active_process_fell_silent(events: list[tuple[str, float, float]]) -> None:
    guard, now = Guard(GuardConfig()), 0.0
    active, heard, tripped = False, 0.0, False  # the rule, said once more
    for event, seconds, look in events:
        if event == "reset":
            guard.reset()
            active = tripped = False
        elif event != "silence":
            guard.beat(event == "active", now)
            active, heard = event == "active", now
        end = now + seconds
        while now < end:
            now += look
            was = tripped
            tripped |= active and now - heard > 0.15
            sends = guard.look(now)
            assert guard.tripped == tripped
            assert not sends.stop or tripped
            assert sends.stop or was or not tripped, "the first stop leaves in the look that trips"


def test_settings_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KineflowError, match="silence_s finite"):
        GuardConfig(silence_s=0.0)
    with pytest.raises(SystemExit):
        main(["--tell", "nowhere"])
    assert "'nowhere' is no address; write HOST:PORT" in capsys.readouterr().err
