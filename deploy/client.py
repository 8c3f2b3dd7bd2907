"""Client of the policy server (deploy/server): NumPy, websockets and msgpack alone; no torch; Python 3.10.

    client = PolicyClient(ClientConfig("ws://gpu-box:8600", token))
    answer = client.act(observation, request)                      a chunk, or an exception within timeout_s
    client.tell({"video": clip}, clip_rate_hz=5.0)                  the server keeps the goal and follows its clip
    answer = client.act(observation, request, executed=4)           4 actions were carried out since it was told

It connects when it is first needed and again whenever the connection is lost, with growing pauses, and tells the goal again,
from where in its clip it was. No call takes longer than its timeout; the server is told how long an answer is waited for and
drops what comes too late. Two kinds of failure: `NoAnswer` is weather (lost, late, overloaded), ask again; a `KineflowError` is a
mistake (token, version, contract, a question that does not fit), which asking again does not mend.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, Interface, KineflowError, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.client_link import bound_sending, closed, encryption, failures_to_connect, in_words
from kineflow.deploy.messages import (
    PROTOCOL,
    PROTOCOL_HEADER,
    Fields,
    chunk_from,
    contract_from,
    contract_text,
    message,
    observation_fields,
    opened,
    request_fields,
)
from kineflow.deploy.wire import WireError, pack, unpack
from kineflow.extras import require

LONGEST_ANSWER = 1 << 26  # bytes
SILENT = 2  # questions in a row without an answer: the connection is taken for dead
PING_S = 5.0


class NoAnswer(ConnectionError):
    """No answer this time; `code` says why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class ServerRefusedError(KineflowError):
    """The server does not want this client as it is: token, protocol version, size of a message."""


@dataclass(frozen=True)
class ClientConfig:
    """`offers`: what this robot has; a policy that needs something else is refused at the first connection. `authority`: for
    wss://, a PEM file with the certificate that the server's must come from; "": those that this machine trusts."""

    url: str
    token: str = field(repr=False)
    timeout_s: float = 1.0  # of every call, connecting included
    shortest_pause_s: float = 0.1  # between attempts to connect; doubles up to the longest
    longest_pause_s: float = 2.0
    offers: Interface | None = None
    authority: str = ""

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise KineflowError(f"'{self.url}' is no policy server; give ws://host:port or wss://host:port")
        if not 0 < self.shortest_pause_s <= self.longest_pause_s or not self.timeout_s > 0:
            raise KineflowError(f"pauses and timeout of a client must be positive, the longest not below the shortest: {self}")


@dataclass(frozen=True)
class Answer:
    """`cursor` and `has_arrived`: of the told goal, None where the question brought its own. `timing` in ms, by the server."""

    chunk: ActionChunk
    timing: Mapping[str, Any]
    cursor: int | None = None
    has_arrived: bool = False


@dataclass
class _Told:
    """What to say again to a server that knows nothing."""

    fields: dict[str, Any]
    cursor: int = 0  # as the server last said
    at: int = 0  # actions carried out then, since the goal was told here
    base: int = 0  # and when it was told to this server
    is_known: bool = False


class PolicyClient:
    """One connection, for one caller at a time (calls of several threads wait for each other)."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self._contract_text = ""
        self._contract: PolicyContract | None = None
        self._limit = LONGEST_ANSWER
        self._encryption = encryption(config.url, config.authority)
        self._socket: Any = None
        self._link = contextlib.ExitStack()  # of that socket
        self._told: _Told | None = None
        self._number = self._epoch = self._failed = self._silent = 0
        self._next_try_s = 0.0
        self._lock, self._ending = threading.Lock(), threading.Event()

    @property
    def contract(self) -> PolicyContract:
        """What the server's policy needs; connects if need be, within timeout_s. Raises as `act`."""
        if self._contract is None:
            self.connect(self.config.timeout_s)
        assert self._contract is not None
        return self._contract

    def connect(self, within_s: float) -> None:
        """Be connected, if that is possible within so many seconds. Raises as `act`."""
        with self._lock:
            self._connect(time.monotonic() + within_s)

    def act(
        self,
        observation: Observation,
        request: SamplingRequest,
        *,
        executed: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The policy's chunk. `executed`: ask about the goal told before, so many actions after it was told; None: the
        observation has its goal.

        Raises:
            NoAnswer: not this time.
            ContractError: the question does not fit the policy, or the server serves another one than before.
            ServerRefusedError: it does not want this client, or a message of this size.
        """
        until_s = time.monotonic() + (self.config.timeout_s if timeout_s is None else timeout_s)
        if executed is not None and self._told is None:
            raise KineflowError("no goal was told; call tell first, or send the goal with the observation")
        with self._lock:
            self._connect(until_s)
            if executed is not None:
                self._tell_again(until_s)
            asked = {"observation": observation_fields(observation), "request": request_fields(request)}
            since = max((executed or 0) - self._told.base, 0) if self._told else 0
            kept = {"told": executed is not None, "executed": since}
            said = self._exchange("act", until_s, **asked, **kept, budget_s=max(until_s - time.monotonic(), 0.0))
            with self._reading():
                return self._answer(said, executed or 0)

    def tell(
        self,
        goal: Mapping[str, np.ndarray],
        clip_rate_hz: float = 0.0,
        instruction: str = "",
        stop: tuple[float, int] = (0.5, 3),
        *,
        timeout_s: float | None = None,
    ) -> None:
        """The goal of the questions to come, by name as in the contract: uint8 frames (of a clip all), a pose, a point; or words.
        `stop`: arrived, when so many answers in a row give at least that stop probability.

        Raises: as `act`. The goal is remembered even where there is NoAnswer: it is told with the next question.
        """
        until_s = time.monotonic() + (self.config.timeout_s if timeout_s is None else timeout_s)
        fields = {"goal": dict(goal), "instruction": instruction, "clip_rate_hz": float(clip_rate_hz)}
        stops = {"stop_threshold": float(stop[0]), "stop_consecutive": int(stop[1])}
        with self._lock:
            self._epoch += 1
            self._told = _Told({**fields, **stops})
            self._connect(until_s)
            self._tell_again(until_s)

    def reset(self) -> None:
        """Forget the goal; what the server still computes for this client is dropped. Never fails: nobody has to hear it."""
        with self._lock:
            self._told = None
            self._epoch += 1
            if self._socket is not None:
                with contextlib.suppress(NoAnswer):
                    self._exchange("reset", time.monotonic() + self.config.timeout_s)

    def close(self) -> None:
        self._ending.set()
        with self._lock:
            self._drop()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _answer(self, said: Fields, executed: int) -> Answer:
        chunk, timing = chunk_from(said.inner("chunk")), said.take("server_timing")
        cursor, has_arrived = None, False
        if said.has("following"):
            following = said.inner("following")
            cursor, has_arrived = following.integer("cursor", 0, 1 << 31), following.flag("has_arrived")
            if self._told is not None:
                self._told.cursor, self._told.at = cursor, executed
        said.done()
        return Answer(chunk, timing if isinstance(timing, dict) else {}, cursor, has_arrived)

    def _tell_again(self, until_s: float) -> None:
        told = self._told
        if told is None or told.is_known:
            return
        said = self._exchange("tell", until_s, **told.fields, cursor=told.cursor)
        with self._reading():
            told.cursor = said.integer("cursor", 0, 1 << 31)
        told.is_known, told.base = True, told.at

    def _exchange(self, kind: str, until_s: float, **fields: Any) -> Fields:
        """One question and its answer; answers to questions that were given up are skipped."""
        self._number += 1
        data = pack(message(kind, self._number, epoch=self._epoch, **fields))
        if len(data) > self._limit:
            raise ServerRefusedError(
                f"a message of {len(data)} bytes, the server takes {self._limit}; send smaller pictures, or raise max_message_mb "
                "there"
            )
        try:
            self._socket.send(data)
            while True:
                answer = self._socket.recv(timeout=max(until_s - time.monotonic(), 0.0))
                with self._reading():
                    said, number, rest = opened(unpack(answer) if isinstance(answer, bytes) else answer)
                    if number != self._number and (said, number) != ("error", 0):
                        self.counts["late answers"] += 1
                        continue
                    if said != "error":
                        rest.integer("epoch", 0, 1 << 62)
                    break
        except TimeoutError:
            self._unanswered(until_s)
        except (OSError, EOFError, closed()) as error:
            self._drop()
            raise NoAnswer("lost", f"the connection to {self.config.url} broke ({in_words(error)})") from error
        self._silent = self._failed = 0
        if said == "error":
            self._raise(rest)
        return rest

    def _unanswered(self, until_s: float) -> None:
        self._silent += 1
        self.counts["timeouts"] += 1
        if self._silent >= SILENT:  # nobody may be there any more, though nothing broke
            self._drop()
        raise NoAnswer("timeout", f"{self.config.url} gave no answer in time")

    def _raise(self, refused: Fields) -> None:
        with self._reading():
            code, text = refused.text("code", 40), refused.text("message")
        self.counts[code] += 1
        if code == "contract":
            raise ContractError(text)
        if code == "malformed":
            raise ServerRefusedError(f"{self.config.url} did not understand: {text}; are both of one version?")
        if code == "not told" and self._told is not None:
            self._told.is_known = False
        raise NoAnswer(code, text)

    @contextlib.contextmanager
    def _reading(self) -> Any:
        """What the server says makes no sense: the connection is given up, since what follows would not either."""
        try:
            yield
        except WireError as error:
            self._drop()
            self.counts["malformed answers"] += 1
            raise NoAnswer("malformed", str(error)) from error

    def _connect(self, until_s: float) -> None:
        why: BaseException | str = "no time was left"
        while self._socket is None:
            pause_s = self._next_try_s - time.monotonic()
            left_s = until_s - time.monotonic()
            if pause_s >= left_s or self._ending.wait(max(pause_s, 0.0)):
                # The caller's patience is used up here, so that a caller who asks again at once does not run hot.
                self._ending.wait(max(left_s, 0.0))
                raise NoAnswer("unreachable", f"{self.config.url}: {in_words(why)}")
            try:
                self._open(until_s)
            except failures_to_connect() as error:
                self._refused(error)
                why = error

    def _open(self, until_s: float) -> None:
        connect = require("websockets.sync.client", "to ask a policy server").connect
        longest = min(self.config.longest_pause_s, self.config.shortest_pause_s * 2.0 ** min(self._failed, 30))
        # Not all robots at once, when a server comes back.
        self._next_try_s = time.monotonic() + longest * random.uniform(0.5, 1.0)
        self._failed += 1
        headers = {"Authorization": f"Bearer {self.config.token}", PROTOCOL_HEADER: str(PROTOCOL)}
        left_s = max(until_s - time.monotonic(), 1e-3)
        # A robot's server is on its own network: no proxy from the environment.
        link = connect(
            self.config.url,
            additional_headers=headers,
            compression=None,
            max_size=LONGEST_ANSWER,
            open_timeout=left_s,
            close_timeout=0.2,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            proxy=None,
            ssl=self._encryption,
            user_agent_header=None,
        )
        self._socket = self._link.enter_context(link)  # as newer websockets want it; older ones give themselves
        try:
            bound_sending(self._socket.socket, self.config.timeout_s)
            self._heard(self._socket.recv(timeout=max(until_s - time.monotonic(), 1e-3)))
        except BaseException:
            self._drop()
            raise
        self.counts["connections"] += 1
        self._silent = 0
        if self._told is not None:
            self._told.is_known = False

    def _heard(self, hello: Any) -> None:
        said, _, fields = opened(unpack(hello) if isinstance(hello, bytes) else hello)
        if said != "hello":
            raise WireError(f"'{said[:40]}' where a hello was expected")
        text = fields.text("contract", 1 << 24)
        limits = fields.inner("limits")
        self._limit = limits.integer("max_message_bytes", 1, 1 << 40)
        if self._contract is None:
            contract = contract_from(text, self.config.url)
            if self.config.offers is not None:
                contract.require(self.config.offers, f"this robot, asking {self.config.url},")
            self._contract, self._contract_text = contract, contract_text(contract)
        elif contract_text(contract_from(text, self.config.url)) != self._contract_text:
            raise ContractError(
                f"{self.config.url} serves another policy than before; what is planned here was for the old one: start anew"
            )

    def _refused(self, error: BaseException) -> None:
        """A server that is not there or not ready is tried again; one that says no is not."""
        if isinstance(error, ssl.SSLCertVerificationError):
            raise ServerRefusedError(
                f"{self.config.url}: {error.verify_message}; give this robot the server's certificate as authority"
            ) from error
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status is None or status == 503 or status >= 500:
            self.counts["failed connections"] += 1
            return
        said = bytes(response.body or b"").decode("utf-8", "replace").strip()[:300] if response is not None else ""
        remedy = "; give the token of the server's --token-file" if status == 401 else ""
        raise ServerRefusedError(f"{self.config.url} refused (HTTP {status}): {said or 'it says no more'}{remedy}") from error

    def _drop(self) -> None:
        dropped, self._socket = self._socket, None
        if dropped is not None:
            with contextlib.suppress(OSError):
                dropped.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(Exception):
                self._link.close()


def token_of(file: str | Path) -> str:
    """The token in a file. Raises KineflowError."""
    try:
        return Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise KineflowError(f"token file {file}: {error}; copy the one that the server was started with") from error
