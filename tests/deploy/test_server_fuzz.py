"""10,000 messages that are none, or nearly one: each is answered, or its sender sent away, and others are answered."""

from __future__ import annotations

import socket
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from kineflow.deploy.messages import PROTOCOL_HEADER, message, observation_fields, request_fields
from kineflow.deploy.wire import pack, unpack
from tests.deploy.serving import TOKEN, Running, client, observation, request, running

AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
DIALECTS = {"ours": {**AUTHORISED, PROTOCOL_HEADER: "1"}, "openpi": AUTHORISED}
EACH, TOGETHER, CONNECTION = 5000, 25, 250  # messages in each dialect; before answers are read; before connecting anew
CLIP = np.zeros((4, 4, 6, 3), np.uint8)


def valid(dialect: str) -> list[dict[str, Any]]:
    if dialect == "openpi":
        return [{"state": np.ones(1, np.float32), "observation/front": CLIP[0], "goal/point": np.ones(3), "prompt": "go"}]
    asked = {"observation": observation_fields(observation(1, 2.0)), "request": request_fields(request(0))}
    prefix = {
        "actions": np.zeros((1, 8, 2), np.float32),
        "soft_mask": np.ones((1, 8), np.float32),
        "delay": 1,
        "method": "guided",
    }
    told = {"goal": {"video": CLIP}, "instruction": "", "clip_rate_hz": 5.0, "stop_threshold": 0.5, "stop_consecutive": 3}
    common = {"epoch": 0, "told": False, "executed": 0, "budget_s": 1.0}
    return [
        message("act", 7, **common, **asked),
        message("act", 8, **common, observation=asked["observation"], request={**asked["request"], "prefix": prefix}),
        message("tell", 9, epoch=0, cursor=0, **told),
        message("act", 10, **{**common, "told": True, "executed": 3}, **asked),
        message("reset", 11, epoch=0),
    ]


class Fuzzer:
    """Bytes that look more or less like a message."""

    def __init__(self, dialect: str, seed: int) -> None:
        self.rng, self.whole = np.random.default_rng(seed), valid(dialect)
        self.bytes = [pack(value) for value in self.whole]

    def __call__(self) -> bytes | str:
        kind = self.rng.integers(6)
        if kind == 0:
            return self.rng.bytes(int(self.rng.integers(0, 200)))
        if kind == 1:  # flipped
            data = bytearray(self._any(self.bytes))
            for _ in range(int(self.rng.integers(1, 6))):
                data[self.rng.integers(len(data))] = self.rng.integers(256)
            return bytes(data)
        if kind == 2:  # cut, or with more behind
            data = self._any(self.bytes)
            return data[: self.rng.integers(len(data))] if self.rng.random() < 0.5 else data + self.rng.bytes(3)
        if kind == 3:
            return msgpack.packb(self._value(0))
        if kind == 4 and self.rng.random() < 0.1:
            return "a text"
        return pack(self._changed(self._any(self.whole)))

    def _any(self, values: list[Any]) -> Any:
        return values[self.rng.integers(len(values))]

    def _value(self, depth: int) -> Any:
        """Anything at all."""
        scalars = [None, True, -1, 0, 1, 2**62, -(2**62), 1e308, float("nan"), float("inf"), "", "x" * 300, b"", b"\xff" * 9]
        kind = self.rng.integers(8 if depth < 4 else 5)
        if kind < 4:
            return self._any(scalars)
        if kind == 4:
            lies = {b"__ndarray__": True, b"data": self.rng.bytes(8), b"dtype": self._any(["<f4", "|O", "<f8", 3]), b"shape": [2]}
            return {name: value for name, value in lies.items() if self.rng.random() < 0.9}
        inner = [self._value(depth + 1) for _ in range(self.rng.integers(5))]
        return inner if kind < 6 else {self._any(["kineflow", "type", "id", "observation", "a"]): value for value in inner}

    def _changed(self, value: Any) -> Any:
        """A message with one field of other type, shape or size, or missing, or one too many."""
        changed = dict(value)
        name = self._any(list(changed))
        if isinstance(changed[name], dict) and changed[name] and self.rng.random() < 0.8:
            changed[name] = self._changed(changed[name])
        elif (what := self.rng.integers(6)) == 0:
            del changed[name]
        elif what == 1:
            changed["another"] = 1
        elif what < 4 and isinstance(changed[name], np.ndarray):
            strange = [np.zeros((1, 99), "<f8"), np.full_like(changed[name], 255), changed[name][None], np.zeros(0, "<f4")]
            changed[name] = self._any([*strange, np.full(changed[name].shape, np.nan, "<f4")])
        else:
            changed[name] = self._any([None, "text", -1, 1e9, [], {}, [1, 2], True, "act", "tell", "reset"])
        return changed


def fuzz(server: Running, dialect: str, seed: int) -> tuple[int, int]:
    """Messages sent, and times that we were sent away."""
    made, sent, gone = Fuzzer(dialect, seed), 0, 0
    while sent < EACH:
        with connect(server.url, additional_headers=DIALECTS[dialect]) as raw:
            raw.recv()
            try:
                until = min(sent + CONNECTION, EACH)  # a nonsensical epoch ends all earlier ones of its connection
                while sent < until:
                    sent += _send(raw, [made() for _ in range(min(TOGETHER, EACH - sent))])
            except ConnectionClosed:
                gone += 1
    return sent, gone


def _send(raw: ClientConnection, messages: list[bytes | str]) -> int:
    for data in messages:
        raw.send(data)
    for _ in messages:
        answer = raw.recv(timeout=60)
        if isinstance(answer, bytes):
            said = unpack(answer)
            assert said.get("type") in ("error", "chunk", "told", "reset") or "actions" in said
    return len(messages)


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_ten_thousand_messages_are_survived(dialect: str) -> None:
    """5,000 in each dialect. `sent` counts answered ones alone; those under way when we were sent away come on top."""
    with running(malformed=400, questions_per_client=TOGETHER, budget_s=60.0) as server, client(server.url) as good:
        good.tell({"video": CLIP + 3}, 5.0)
        sent, gone = fuzz(server, dialect, seed=1)
        assert sent == EACH
        assert server.server.counts["messages"] >= EACH
        print(f"{dialect}: {sent} messages, sent away {gone} times: {server.server.status()}")
        # Another client's goal is where it was, and the policy was not even called wrongly.
        answer = good.act(observation(4, None), request(5), executed=2)
        np.testing.assert_array_equal(answer.chunk.actions[0, :, 0], 4 + 3)
        assert answer.cursor == 1
        assert good.act(observation(5), request(5)).chunk.actions[0, 0, 0] == 5
        status = server.server.status()
        assert (status.get("failed calls", 0), status.get("internal errors", 0), status["in_work"]) == (0, 0, 0)


def test_who_sends_nonsense_again_and_again_is_sent_away() -> None:
    with running(malformed=5) as server, connect(server.url, additional_headers=DIALECTS["ours"]) as raw:
        raw.recv()
        for _ in range(5):
            raw.send(b"\xc1")
            assert unpack(raw.recv(timeout=20))["code"] == "malformed"
        raw.send(b"\xc1")
        with pytest.raises(ConnectionClosed, match="1008"):
            raw.recv(timeout=20)


def test_bytes_that_are_no_websocket() -> None:
    """Before the handshake, and within frames: other clients do not notice."""
    rng = np.random.default_rng(2)
    hello = f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    upgrade = f"{hello}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    with running() as server, client(server.url) as good:
        for k in range(60):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
                raw.sendall((upgrade if k % 2 else b"") + rng.bytes(int(rng.integers(1, 400))))
        assert good.act(observation(5), request(5)).chunk.actions[0, 0, 0] == 5
