"""The policy server, with a policy whose answers say what it saw: batches, deadlines, bounds, clients' state, who may ask."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from kineflow.contracts import ContractError, KineflowError, Observation, SamplingRequest
from kineflow.deploy.client import NoAnswer, PolicyClient, ServerRefusedError
from kineflow.deploy.messages import PROTOCOL_HEADER, message, observation_fields, request_fields
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.process import token_from
from kineflow.deploy.server.serving import PolicyServer
from kineflow.deploy.server.session import Served
from kineflow.deploy.wire import pack, unpack
from tests.deploy.serving import (
    HELD,
    START_S,
    TOKEN,
    Running,
    Toy,
    client,
    contract,
    held,
    observation,
    request,
    running,
    served,
    wait_until,
)

AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
OURS = {**AUTHORISED, PROTOCOL_HEADER: "1"}
CLIP = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each gives or raises, called together."""
    said: list[Any] = [None] * len(calls)

    def run(k: int) -> None:
        try:
            said[k] = calls[k]()
        except Exception as error:
            said[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def http(url: str, path: str, token: str = "") -> tuple[int, str]:
    asked = urllib.request.Request(url.replace("ws://", "http://") + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def unanswered(error: str, ask: Callable[[], Any]) -> None:
    """It gives no answer, for that reason. A call that ends before the reason has come says another: then it is asked again."""
    said = list[str]()
    until_s = time.monotonic() + START_S
    while not said or error not in said[-1]:
        assert time.monotonic() < until_s, said
        with pytest.raises(NoAnswer) as raised:
            ask()
        said.append(str(raised.value))


def act(number: int, count: float, seed: int = 0, **fields: Any) -> bytes:
    """A question about `count` as bytes."""
    asked = {"observation": observation_fields(observation(count)), "request": request_fields(request(seed))}
    return pack(message("act", number, **{"epoch": 0, "told": False, "executed": 0, **asked, **fields}))


def test_answers_are_those_of_the_policy() -> None:
    with running() as server, client(server.url) as asking:
        assert asking.contract == contract()
        chunk = asking.act(observation(5, 2.0), request(11)).chunk
        expected = Toy().predict(observation(5, 2.0), request(11))
        np.testing.assert_equal(vars(chunk), vars(expected))
        rows = asking.act(observation(5, 2.0, rows=3), request(1, 2, 3)).chunk
        np.testing.assert_equal(vars(rows), vars(Toy().predict(observation(5, 2.0, rows=3), request(1, 2, 3))))


def test_questions_of_several_clients_share_calls_and_answers_do_not_mix() -> None:
    toy, n = Toy(slow_s=0.05), 6
    with running(toy, max_batch=8, max_wait_s=1.0) as server:
        clients = [PolicyClient(_config(server.url)) for _ in range(n)]
        said = []
        for k in range(4):
            said += [
                (c, k, a)
                for c, a in enumerate(
                    at_once(
                        *(lambda c=c, k=k: clients[c].act(observation(100 * c + k), request(c, steps=None)) for c in range(n))
                    )
                )
            ]
        for one in clients:
            one.close()
    for c, k, answer in said:
        np.testing.assert_array_equal(answer.chunk.actions[0, :, 0], 100 * c + k)
        np.testing.assert_array_equal(answer.chunk.actions[0, :, 1], c + np.arange(8))
    assert max(toy.batches[2:]) >= 2  # the first two are warm-up: 1 and 8
    assert sum(toy.batches[2:]) == 4 * n
    assert len(toy.batches[2:]) < 4 * n


def test_one_client_waits_for_no_company() -> None:
    """`max_wait_s` is for others who lately asked, and there are none."""
    with running(max_wait_s=30.0) as server, client(server.url) as asking, client(server.url) as idle:
        idle.connect(20)
        assert asking.act(observation(1), request(0)).timing["queue_ms"] < 10_000


@dataclass
class Several:
    """Clients of one server, connected."""

    toy: Toy
    server: Running
    asking: list[PolicyClient]

    def behind_one_another(self, *questions: tuple[Observation, SamplingRequest]) -> list[Any]:
        """What each of `questions` gives or raises; they came while the policy was busy with another of no kind of theirs."""
        self.toy.is_held.clear()
        self.toy.go_on.clear()

        def let_go() -> None:
            with held(self.toy):
                wait_until(lambda: self.server.server.status()["in_work"] == 1 + len(questions))

        def ask(k: int) -> Any:
            assert self.toy.is_held.wait(START_S)
            return self.asking[k + 1].act(*questions[k])

        busy = lambda: self.asking[0].act(observation(HELD), request(0, steps=7))  # noqa: E731
        _, _, *said = at_once(let_go, busy, *(lambda k=k: ask(k) for k in range(len(questions))))
        return said


@pytest.fixture
def several() -> Iterator[Several]:
    toy = Toy()
    with running(toy, max_wait_s=0.1) as server, ExitStack() as links:
        asking = [links.enter_context(client(server.url, START_S)) for _ in range(4)]
        for one in asking:
            one.connect(20)
        yield Several(toy, server, asking)


def test_questions_of_different_kinds_are_not_one_call(several: Several) -> None:
    alike = several.behind_one_another(*((observation(k, 1.0), request(0)) for k in range(3)))
    assert [answer.timing["batch_rows"] for answer in alike] == [3, 3, 3]
    plain, steps = (observation(1, 1.0), request(0)), (observation(2, 1.0), request(0, steps=5))
    for other in (steps, (observation(2, 1.0), request(0, guidance_scale=2.0)), (_with_clip(2), request(0))):
        said = several.behind_one_another(plain, other)
        assert [answer.timing["batch_rows"] for answer in said] == [1, 1]
    assert [answer.chunk.actions[0, 0, 0] for answer in said] == [2, 2 + 9]


def test_a_question_that_breaks_the_policy_breaks_alone(several: Several) -> None:
    for _ in range(2):
        one, bad, other = several.behind_one_another(*((observation(k), request(0)) for k in (1, 666, 3)))
        assert isinstance(bad, NoAnswer)
        assert bad.code == "failed"
        assert "the policy broke" in str(bad)
        assert [one.chunk.actions[0, 0, 0], other.chunk.actions[0, 0, 0]] == [1, 3]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (observation(float("nan")), "not finite|is nan"),
        (observation(1, None), ""),  # the toy needs no goal: only the shape is the server's business
        (type(observation(1))(np.zeros((1, 3, 1), np.float32), np.zeros((1, 3)), observation(1).images), "state has shape"),
        (type(observation(1))(observation(1).state, observation(1).stamp_s, {}), "no 'front'"),
        (
            type(observation(1))(observation(1).state, observation(1).stamp_s, observation(1).images, {"pose": np.zeros((1, 7))}),
            "pose",
        ),
    ],
)
def test_a_question_that_does_not_fit_the_contract_is_a_mistake(wrong: Any, why: str) -> None:
    with running() as server, client(server.url) as asking:
        if why:
            with pytest.raises(ContractError, match=why):
                asking.act(wrong, request(0))
        else:
            asking.act(wrong, request(0))
        assert asking.counts["connections"] == 1
        assert asking.act(observation(1), request(0)).chunk.actions[0, 0, 0] == 1


def test_each_client_has_its_own_goal_and_place_in_its_clip() -> None:
    with running() as server, client(server.url) as a, client(server.url) as b:
        a.tell({"video": CLIP}, 5.0)
        b.tell({"video": CLIP + 100}, 5.0)
        for k in range(4):
            first, second = (
                a.act(observation(0, None), request(0), executed=4 * k),
                b.act(observation(0, None), request(0), executed=k),
            )
            assert (first.chunk.actions[0, 0, 0], first.cursor) == (2 * k, 2 * k)
            assert (second.chunk.actions[0, 0, 0], second.cursor) == (100 + k // 2, k // 2)
        again = a.act(observation(0, None), request(0), executed=12)  # as after a timeout: nothing is counted twice
        assert again.cursor == 6
        a.reset()
        with pytest.raises(KineflowError, match="no goal was told"):
            a.act(observation(0, None), request(0), executed=0)
        assert b.act(observation(0, None), request(0), executed=4).cursor == 2


def test_arrived_is_said_after_so_many_answers_in_a_row() -> None:
    with running() as server, client(server.url) as asking:
        asking.tell({"point": np.zeros(3, np.float32)}, stop=(0.5, 2))
        said = [asking.act(observation(count, None), request(0), executed=0).has_arrived for count in (900, 1, 900, 900)]
        assert said == [False, False, False, True]
        asking.tell({"point": np.zeros(3, np.float32)}, stop=(0.5, 2))
        assert not asking.act(observation(900, None), request(0), executed=0).has_arrived


def test_a_reset_drops_what_was_asked_before() -> None:
    toy = Toy()
    config = {"questions_per_client": 6, "budget_s": 2 * START_S}
    with running(toy, **config) as server, connect(server.url, additional_headers=OURS) as raw:
        raw.recv()
        raw.send(act(1, HELD))  # computing until it is let go
        with held(toy):
            raw.send(act(2, 2))
            raw.send(act(3, 3))
            raw.send(pack(message("reset", 4, epoch=1)))
            raw.send(act(5, 5, epoch=0))
            raw.send(act(6, 6, epoch=1))
            first = [unpack(raw.recv(timeout=START_S)) for _ in range(2)]  # which the policy has no part in
            wait_until(lambda: server.server.status()["in_work"] == 4)
        said = {m["id"]: m for m in (*first, *(unpack(raw.recv(timeout=START_S)) for _ in range(4)))}
    assert {m["id"] for m in first} == {4, 5}
    assert said[4]["type"] == "reset"
    # Computed already, or dropped before they cost anything: their epoch says which they are.
    assert [said[k].get("code") for k in (2, 3)] == ["reset", "reset"]
    assert said[5]["code"] == "reset"
    assert said[6]["type"] == "chunk"
    assert said[6]["epoch"] == 1


def test_a_question_past_its_deadline_is_not_computed() -> None:
    toy = Toy()
    with running(toy) as server, connect(server.url, additional_headers=OURS) as raw:
        raw.recv()
        raw.send(act(1, HELD))
        with held(toy):
            raw.send(act(2, 2, budget_s=0.1))
            raw.send(act(3, 3, budget_s=2 * START_S))
            wait_until(lambda: server.server.status()["in_work"] == 3)
            time.sleep(0.15)
        said = {m["id"]: m for m in (unpack(raw.recv(timeout=START_S)) for _ in range(3))}
    assert said[2]["code"] == "deadline"
    assert said[3]["type"] == "chunk"
    assert len(toy.batches) == 2 + 2


def test_one_client_may_not_ask_without_end() -> None:
    def asked(*links: Any, n: int) -> list[dict[str, Any]]:
        """Each asks `n` questions while the policy computes the first one: the answers."""
        toy.is_held.clear()
        toy.go_on.clear()
        before = server.server.counts["messages"]
        for raw in links:
            raw.recv()
            for k in range(n):
                raw.send(act(k, HELD))
        with held(toy):
            wait_until(lambda: server.server.counts["messages"] == before + n * len(links))
        return [unpack(raw.recv(timeout=START_S)) for raw in links for _ in range(n)]

    toy = Toy()
    with running(toy, questions_per_client=2, questions=3, budget_s=2 * START_S) as server:
        with connect(server.url, additional_headers=OURS) as raw:
            said = {m["id"]: m.get("code", "chunk") for m in asked(raw, n=5)}
            assert said == {0: "chunk", 1: "chunk", 2: "busy", 3: "busy", 4: "busy"}
        # Nor may all together.
        with ExitStack() as links:
            codes = [
                m.get("code", "chunk")
                for m in asked(*(links.enter_context(connect(server.url, additional_headers=OURS)) for _ in range(3)), n=2)
            ]
            assert sorted(codes) == ["chunk"] * 3 + ["overloaded"] * 3


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "\u00e9" * 20])
def test_a_wrong_token_is_refused_with_one_message(token: str) -> None:
    with running() as server:
        with client(server.url, token=token.encode().decode("latin-1")) as asking, pytest.raises(ServerRefusedError) as refused:
            asking.connect(20)
        assert "401" in str(refused.value)
        assert "token" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert http(server.url, "/status", token.encode().decode("latin-1"))[0] == 401


def test_a_server_without_a_token_does_not_start(tmp_path: Any) -> None:
    with pytest.raises(KineflowError, match="token"):
        PolicyServer(served, ServerConfig(), "")
    file = tmp_path / "token"
    with pytest.raises(KineflowError, match="openssl"):
        token_from(file)
    file.write_text(TOKEN.replace(" ", "-") + "\n")
    file.chmod(0o644)
    with pytest.raises(KineflowError, match="chmod 600"):
        token_from(file)
    file.chmod(0o600)
    assert token_from(file) == TOKEN.replace(" ", "-")
    file.write_text("short")
    with pytest.raises(KineflowError, match="holds no token"):
        token_from(file)


def test_another_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        with connect(server.url, additional_headers=OURS) as raw:
            raw.recv()
            raw.send(pack({**message("act", 3), "kineflow": 2}))
            said = unpack(raw.recv(timeout=20))
            assert (said["code"], said["id"]) == ("malformed", 3)
            assert "version 2" in said["message"]
        monkeypatch.setattr("kineflow.deploy.client.PROTOCOL", 2)
        with client(server.url) as asking, pytest.raises(ServerRefusedError, match=r"protocol 2 is not spoken here; .* speaks 1"):
            asking.connect(20)


def test_messages_that_are_too_large_are_refused_on_both_sides() -> None:
    with running(max_message_mb=0.001) as server, client(server.url) as asking:
        asking.act(observation(1), request(0))
        with pytest.raises(ServerRefusedError, match="the server takes 1000"):
            asking.act(observation(1, rows=20), request(*range(20)))
        asking._limit = 1 << 30  # a client that does not keep to it
        with pytest.raises(NoAnswer, match="1009"):
            asking.act(observation(1, rows=20), request(*range(20)))
        assert asking.act(observation(1), request(0)).chunk.actions[0, 0, 0] == 1


def test_more_rows_and_steps_than_allowed_are_refused() -> None:
    with running(max_rows=4, max_steps=10) as server, client(server.url) as asking:
        with pytest.raises(ServerRefusedError, match="rows"):
            asking.act(observation(1, rows=5), request(*range(5)))
        with pytest.raises(ServerRefusedError, match="steps"):
            asking.act(observation(1), request(0, steps=11))


def test_a_client_that_takes_no_answers_is_sent_away() -> None:
    """Nor do its answers pile up meanwhile: they are 32 kB each here, and its questions 4 kB."""
    rows = observation(1)
    rows = Observation(
        *(np.repeat(v, 512, axis=0) for v in (rows.state, rows.stamp_s)), {"front": np.zeros((512, 2, 4, 6, 3), np.uint8)}
    )
    asked = {"observation": observation_fields(rows), "request": request_fields(request(*range(512)))}
    data = pack(message("act", 1, epoch=0, told=False, executed=0, **asked))
    options = {"compression": None, "close_timeout": 0.1, "ping_interval": None, "max_queue": 1}  # reads one answer by itself
    most = 0
    with running(send_timeout_s=1.0, max_rows=512, questions_per_client=3) as server, client(server.url) as other:
        with connect(server.url, additional_headers=OURS, **options) as link:
            began_s = time.monotonic()
            while not server.server.counts["slow clients"] and time.monotonic() - began_s < 60:
                with suppress(OSError, ConnectionClosed):
                    link.send(data)
                most = max(most, server.server._replying)
                time.sleep(0.001)
        assert most <= 2 * 3 + 1
        assert server.server.counts["slow clients"] >= 1
        assert other.act(observation(2), request(0)).chunk.actions[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("goal", "rate_hz", "why"),
    [
        ({"video": CLIP[:, :3]}, 5.0, "the policy takes"),
        ({"video": CLIP.astype(np.float32)}, 5.0, "the policy takes"),
        ({"video": CLIP[:0]}, 5.0, "a clip of 0 frames"),
        ({"video": CLIP}, 0.0, "at 0 Hz"),
        ({"point": np.zeros(4, np.float32)}, 0.0, "the policy takes"),
        ({"point": np.full(3, np.nan, np.float32)}, 0.0, "not finite"),
    ],
)
def test_goals_that_do_not_fit_are_refused_when_they_are_told(goal: dict[str, Any], rate_hz: float, why: str) -> None:
    with running() as server, client(server.url) as asking, pytest.raises(ContractError, match=why):
        asking.tell(goal, rate_hz)


def test_more_clients_than_allowed_wait_outside() -> None:
    with running(max_clients=1) as server, client(server.url) as first, client(server.url, timeout_s=0.5) as second:
        first.connect(20)
        unanswered("503", lambda: second.act(observation(1), request(0)))
        first.close()
        second.connect(20)
        assert second.act(observation(2), request(0), timeout_s=20).chunk.actions[0, 0, 0] == 2


def test_health_and_readiness() -> None:
    may_load, toy = threading.Event(), Toy()

    def load() -> Served:
        assert may_load.wait(60)
        return served(toy)

    server = PolicyServer(load, ServerConfig(port=0, stuck_s=0.2), TOKEN)
    made = Running(server).wait(ready=False)
    try:
        assert http(made.url, "/healthz") == (200, "OK\n")
        assert http(made.url, "/readyz") == (503, "loading\n")
        with client(made.url, timeout_s=0.4) as asking:
            unanswered("503", lambda: asking.act(observation(1), request(0)))
            may_load.set()
            made.wait()
            assert http(made.url, "/readyz") == (200, "ready\n")
            assert toy.batches == [1, 8]  # warm
            asking.connect(20)
            assert asking.act(observation(1), request(0), timeout_s=20).chunk.actions[0, 0, 0] == 1
            status = http(made.url, "/status", TOKEN)
            assert status[0] == 200
            assert '"rows": 1' in status[1]
            slow = threading.Thread(target=lambda: asking.act(observation(HELD), request(0), timeout_s=START_S))
            slow.start()
            with held(toy):
                wait_until(lambda: server.not_ready)
                code, why = http(made.url, "/readyz")
                assert (code, why.split(":")[0]) == (503, "stuck")
                assert http(made.url, "/healthz")[0] == 200
            slow.join()
            assert http(made.url, "/readyz")[0] == 200
    finally:
        may_load.set()
        toy.go_on.set()
        made.stop()


def test_a_policy_that_cannot_be_loaded_ends_the_server() -> None:
    import asyncio

    def load() -> Served:
        raise KineflowError("nothing usable there")

    server = PolicyServer(load, ServerConfig(port=0), TOKEN)
    with pytest.raises(KineflowError, match="nothing usable there"):
        asyncio.run(server.run(asyncio.Event(), lambda port: None, lambda: None))


def test_stopping_answers_what_is_in_work_and_refuses_the_rest() -> None:
    toy = Toy()
    with running(toy, drain_s=START_S) as server, client(server.url, START_S) as asking, client(server.url) as late:
        late.connect(20)
        slow = threading.Thread(target=lambda: said.append(asking.act(observation(HELD), request(0))))
        said: list[Any] = []
        slow.start()
        with held(toy):
            ending = threading.Thread(target=server.stop)
            ending.start()
            wait_until(lambda: server.server.not_ready)
            with pytest.raises(NoAnswer, match="draining"):
                late.act(observation(1), request(0))
            assert http(server.url, "/readyz") == (503, "draining\n")
        slow.join()
        ending.join()
        assert said[0].chunk.actions[0, 0, 0] == HELD
        assert server.drained


def _config(url: str) -> Any:
    from kineflow.deploy.client import ClientConfig

    return ClientConfig(url, TOKEN, 20.0)


def _with_clip(count: float) -> Any:
    seen = observation(count, None)
    return type(seen)(seen.state, seen.stamp_s, seen.images, {"video": np.full((1, 3, 4, 6, 3), 9, np.uint8)})
