"""The client and the executor behind a bad network, and a server that dies: late or no answers, never one that is not theirs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.contracts import ContractError, KineflowError
from kineflow.deploy.client import ClientConfig, NoAnswer, PolicyClient, token_of
from kineflow.deploy.control import Control, Ticked, Ungoverned
from kineflow.deploy.executor import Executor
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.loading import load_policy
from kineflow.deploy.observations import ObservationLimits
from kineflow.deploy.remote import AUTHORITY, TOKEN_FILE, RemotePolicy
from kineflow.deploy.ros2.policy_source import load as load_for_ros
from kineflow.deploy.runner import Runner
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.serving import PolicyServer
from tests.deploy.serving import (
    ROOT,
    STEP_S,
    TOKEN,
    Process,
    Toy,
    client,
    contract,
    observation,
    request,
    running,
    served,
    wait_until,
)
from tests.deploy.slow_network import network

BUSY_S = 8.0  # slack of a busy machine; less than what a connection takes to be found dead by its pings
CLIP = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)


def ask_many(asking: PolicyClient, n: int, timeout_s: float) -> tuple[int, list[str]]:
    """`n` questions about their own number: how many were answered, which took longer than they may, and why others were not."""
    answered, why = 0, list[str]()
    for k in range(n):
        began_s = time.monotonic()
        try:
            chunk = asking.act(observation(k % 500), request(k), timeout_s=timeout_s).chunk
        except NoAnswer as error:
            why.append(error.code)
        else:
            answered += 1
            # Never an answer to another question.
            np.testing.assert_array_equal(chunk.actions[0, :, 0], k % 500)
            np.testing.assert_array_equal(chunk.actions[0, :, 1], k + np.arange(8))
        assert time.monotonic() - began_s < timeout_s + BUSY_S
    return answered, why


def test_delay_is_waited_for() -> None:
    with running() as server, network(server.port) as between, client(between.url) as asking:
        asking.connect(20)
        between.delay_s = 0.05
        began_s = time.monotonic()
        assert ask_many(asking, 5, 20.0) == (5, [])
        assert time.monotonic() - began_s > 5 * 2 * 0.05


def test_answers_that_come_too_late_are_not_taken_for_later_ones() -> None:
    """Every third piece is stalled for longer than answers are waited for, as when packets are lost and sent again."""
    with running() as server, network(server.port) as between, client(between.url) as asking:
        asking.connect(20)
        between.stall_s, between.stall_every = 0.7, 3
        answered, why = 0, list[str]()
        for _ in range(40):  # how many it takes is a matter of what else the machine does
            more, others = ask_many(asking, 5, 0.5)
            answered, why = answered + more, why + others
            if answered >= 3 and "timeout" in why:
                break
        assert answered >= 3
        assert "timeout" in why
        assert set(why) <= {"timeout", "lost", "unreachable", "deadline"}  # the last: the server's word came in time
        assert between.stalls
        between.stall_every = 0
        asking.connect(20)
        assert ask_many(asking, 3, 20.0) == (3, [])


def test_a_connection_cut_within_a_message_is_made_again() -> None:
    """Everything is cut once 9000 bytes of answers have passed: somewhere in the middle of one."""
    with running() as server, network(server.port) as between, client(between.url, shortest_pause_s=0.01) as asking:
        between.cut_after = 9000
        answered, why = ask_many(asking, 60, 20.0)
        assert between.cuts >= 2
        assert set(why) == {"lost"}
        assert len(why) == between.cuts
        assert answered == 60 - len(why)


def test_what_was_told_is_told_again_after_a_cut() -> None:
    """The server of the new connection knows nothing; the clip goes on where it was."""
    with running() as server, network(server.port) as between, client(between.url) as asking:
        asking.tell({"video": CLIP}, 5.0)
        for executed in (0, 4, 8):
            assert asking.act(observation(0, None), request(0), executed=executed).cursor == executed // 2
        between.cut_all()
        with pytest.raises(NoAnswer):
            asking.act(observation(0, None), request(0), executed=10)
        again = asking.act(observation(0, None), request(0), executed=12)
        assert (again.cursor, again.chunk.actions[0, 0, 0]) == (6, 6)
        assert asking.act(observation(0, None), request(0), executed=20).cursor == 10
        assert asking.counts["connections"] == 2


def test_a_network_that_swallows_everything_is_left() -> None:
    """Nothing breaks, so nothing is heard of it: after two silences the connection is taken for dead."""
    with running() as server, network(server.port) as between, client(between.url) as asking:
        asking.connect(20)
        between.swallows = True
        for _ in range(2):
            with pytest.raises(NoAnswer, match="timeout"):
                asking.act(observation(1), request(0), timeout_s=0.3)
        between.swallows = False
        assert ask_many(asking, 3, 20.0) == (3, [])
        assert asking.counts["connections"] == 2


def test_a_network_that_takes_nothing_holds_nobody_up() -> None:
    """A question larger than what sockets hold: sending it ends after timeout_s, not when the connection is found dead."""
    with running() as server, network(server.port) as between, client(between.url, timeout_s=0.5) as asking:
        asking.connect(20)
        between.freezes = True
        asking._limit = 1 << 30
        seen = observation(1, rows=30)
        big = type(seen)(seen.state, seen.stamp_s, {"front": np.zeros((30, 2, 400, 600, 3), np.uint8)}, seen.goal)
        began_s = time.monotonic()
        with pytest.raises(NoAnswer, match="lost"):
            asking.act(big, request(*range(30)))
        assert time.monotonic() - began_s < BUSY_S  # pings would find out after 10
        between.freezes = False
        asking.connect(20)
        assert ask_many(asking, 3, 20.0) == (3, [])


def test_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    """wss:// with a certificate that the robot was given, for the name that it has; and with no other."""
    pem = str(Path(__file__).parent / "localhost.pem")
    with running(certificate=pem) as server, network(server.port) as between:
        url = server.url.replace("ws://", "wss://")
        with client(url, authority=pem) as asking:
            assert ask_many(asking, 3, 20.0) == (3, [])
        with client(server.url, timeout_s=0.5) as asking, pytest.raises(NoAnswer, match="unreachable"):  # not encrypted
            asking.act(observation(1), request(0))
        with client(url) as asking, pytest.raises(KineflowError, match=r"self-signed .* as authority"):
            asking.act(observation(1), request(0))
        monkeypatch.setenv(AUTHORITY, pem)
        policy = RemotePolicy.connect(f"wss://localhost:{between.port}", TOKEN, within_s=20)
        assert policy.contract == contract()
        policy.close()
        with pytest.raises(KineflowError, match="PEM"):
            PolicyClient(ClientConfig(url, TOKEN, authority=__file__))
    unfit = PolicyServer(served, ServerConfig(port=0, certificate=__file__), TOKEN)
    with pytest.raises(KineflowError, match="PEM"):
        asyncio.run(unfit.run(asyncio.Event(), lambda port: None, lambda: None))


def test_pauses_between_attempts_grow() -> None:
    """Nobody listens there: asking goes on, by fewer and fewer attempts, and each call takes no longer than it may."""
    with network(1) as nobody:
        port = nobody.port
    with client(f"ws://127.0.0.1:{port}", timeout_s=0.3, shortest_pause_s=0.1, longest_pause_s=1.0) as asking:
        began_s = time.monotonic()
        while (failed := asking.counts["failed connections"]) < 7:
            asked_s = time.monotonic()
            assert asked_s - began_s < 60, failed
            with pytest.raises(NoAnswer, match="unreachable"):
                asking.act(observation(0), request(0))
            assert 0.25 < time.monotonic() - asked_s < 0.3 + BUSY_S
        # Half of 0.1, 0.2, 0.4, 0.8, 1.0, ... s between two attempts, at the least.
        assert time.monotonic() - began_s >= 0.5 * sum(min(0.1 * 2**k, 1.0) for k in range(failed - 1))


def test_another_policy_than_before_is_refused() -> None:
    with running() as first, network(first.port) as between, client(between.url) as asking:
        ask_many(asking, 1, 20.0)
        with running(load=lambda: served(made=contract(prediction=16))) as second:
            between.target = second.port
            between.cut_all()
            with contextlib.suppress(NoAnswer):
                asking.act(observation(0), request(0))
            with pytest.raises(ContractError, match="another policy than before"):
                asking.act(observation(0), request(0))


def test_a_robot_that_has_something_else_is_refused_with_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = contract().interface
    offers = type(made)(made.features, made.action, {}, made.goals)
    with running() as server:
        with pytest.raises(ContractError, match="camera 'front': the policy needs it"):
            RemotePolicy.connect(server.url, TOKEN, within_s=20, offers=offers)
        monkeypatch.delenv(TOKEN_FILE, raising=False)
        with pytest.raises(KineflowError, match=TOKEN_FILE):
            load_policy(server.url)
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
        for load in (load_policy, load_for_ros):
            policy: Any = load(server.url)
            assert policy.contract == contract()
            policy.close()
    with pytest.raises(KineflowError, match="no policy server answered"):
        RemotePolicy.connect(server.url, TOKEN, within_s=0.3)
    with pytest.raises(KineflowError, match="no policy server"):
        ClientConfig("http://here", TOKEN)
    with pytest.raises(KineflowError, match="token file"):
        token_of(tmp_path / "none")
    assert TOKEN not in repr(ClientConfig("ws://here", TOKEN))


class Robot:
    """An executor that asks a policy server, with a sensor that counts, on the machine's clock."""

    def __init__(self, policy: RemotePolicy, told: Any) -> None:
        self.ticks: list[Ticked] = []
        config = ExecutorConfig("async", retry_s=0.05, max_failures=1000, observations=ObservationLimits())
        executor = Executor(policy.contract, config)
        rest = Ungoverned(lambda: np.full(2, np.nan, np.float32))
        ask = lambda question: policy.predict(question.observation, question.request)  # noqa: E731
        self.runner = Runner(Control(executor, rest), ask, self.ticks.append, 50.0)
        self.runner.set_goal(told)

    def drive_until(self, done: Any, limit_s: float = 60.0) -> bool:
        """Sense until `done(ticks of this call)`; False: it was not in time."""
        clock, first = self.runner.clock, len(self.ticks)
        began_s = clock.now()
        while (now_s := clock.now()) - began_s < limit_s:
            count = np.array([now_s / STEP_S % 600], np.float32)  # below what the toy takes for an arrival
            for stream, value in (("count", count), ("front", np.zeros((4, 6, 3), np.uint8))):
                self.runner.observe(stream, value, now_s, now_s)
            if done(self.ticks[first:]):
                return True
            clock.sleep_until(now_s + 0.02)
        return False


def moves(ticks: list[Ticked]) -> bool:
    return sum(tick.intent.action is not None for tick in ticks) > 20


def uses_up(ticks: list[Ticked]) -> bool:
    """The plan; and it rests."""
    last = ticks[-10:]
    return (
        len(last) == 10 and all(t.intent.action is None for t in last) and any(t.intent.reason == "chunk used up" for t in last)
    )


def test_a_server_killed_and_started_again_is_no_chunk_and_then_chunks() -> None:
    """kill -9: the robot rests when its plan is used up, the control loop goes on, and it drives on with the new server."""
    server = Process()
    policy = RemotePolicy.connect(server.url, TOKEN, timeout_s=1.0, within_s=60)
    try:
        robot = Robot(policy, policy.told({"video": CLIP}, 5.0))
        with robot.runner:
            assert robot.drive_until(moves)
            server.process.send_signal(signal.SIGKILL)
            server.end()
            assert robot.drive_until(uses_up), {tick.intent.reason for tick in robot.ticks}
            server = Process(server.port)
            assert robot.drive_until(moves)
        assert policy.client.counts["connections"] >= 2
        assert robot.runner.diagnostics()["failed answers"] >= 1
    finally:
        policy.close()
        server.end()


def test_sigterm_answers_what_is_in_work_and_exits_with_0() -> None:
    server = Process()
    asked = urllib.request.Request(f"http://127.0.0.1:{server.port}/status", headers={"Authorization": f"Bearer {TOKEN}"})

    def is_in_work() -> bool:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return bool(json.load(answer)["in_work"])

    def end() -> None:
        wait_until(is_in_work)
        server.process.terminate()

    try:
        with client(server.url) as asking:
            asking.connect(20)
            ending = threading.Thread(target=end)
            ending.start()
            assert asking.act(observation(7999), request(0)).chunk.actions[0, 0, 0] == 7999  # computed for a second
            ending.join()
            out, _ = server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert out.endswith("stopped\n")
    finally:
        server.end()


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "zarr", "scipy", "safetensors", "tyro", "rich"):
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import numpy as np
from kineflow.contracts import Observation, SamplingRequest
from kineflow.deploy.remote import RemotePolicy
policy = RemotePolicy.connect(sys.argv[2], sys.argv[3], timeout_s=30, within_s=30)
seen = Observation(np.full((1, 2, 1), 5, np.float32), np.zeros((1, 2)), {"front": np.zeros((1, 2, 4, 6, 3), np.uint8)})
print(policy.predict(seen, SamplingRequest(np.array([7]))).actions[0, 0].tolist(), policy.contract.horizons.prediction)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "jaxtyping", "kineflow", "websockets", "msgpack"}))
"""


@pytest.mark.parametrize("python", [sys.executable, os.environ.get("KINEFLOW_PYTHON310", "")])
def test_a_robot_without_torch(python: str) -> None:
    """In a process where importing torch fails. KINEFLOW_PYTHON310: a Python 3.10 with NumPy, PyYAML, websockets and msgpack."""
    if not python:
        return  # that interpreter is not part of `make test`
    with running(Toy()) as server:
        command = [python, "-I", "-c", NO_TORCH, str(ROOT), server.url, TOKEN]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[5.0, 7.0] 8", "['kineflow', 'msgpack', 'websockets']"]


def test_the_client_imports_numpy_websockets_and_msgpack_alone() -> None:
    """What its modules import at any depth in this project; websockets and msgpack by name, where they are needed."""
    seen, queue, outside = set[str](), ["kineflow.deploy.client", "kineflow.deploy.remote"], set[str]()
    while queue:
        name = queue.pop()
        seen.add(name)
        file = ROOT / (name.replace(".", "/") + ".py")
        tree = ast.parse((file if file.exists() else ROOT / name.replace(".", "/") / "__init__.py").read_text())
        typing_only = {id(n) for node in ast.walk(tree) if _is_typing(node) for n in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) in typing_only or not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            queue += [n for n in names if n.startswith("kineflow") and n not in seen]
            outside |= {n.split(".")[0] for n in names if not n.startswith("kineflow")}
    assert outside - set(sys.stdlib_module_names) - {"__future__"} == {"numpy", "yaml", "tyro"}  # tyro: command lines alone


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
