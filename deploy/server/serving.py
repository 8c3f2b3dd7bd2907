"""The policy server: one port for websockets (questions) and HTTP (is it alive, is it ready).

    GET /healthz   200 while the process answers                    no token
    GET /readyz    200 when questions are answered, else 503 and why (loading, draining, stuck)   no token
    GET /status    counts as JSON                                   token
    websocket      hello, then questions and answers                token

The policy computes in a thread of its own, so the port answers meanwhile. Everything that a client can make grow is bounded:
connections, messages, questions in work, time to take an answer. On `stop` no new connection is taken, what is in work is
answered, and what comes then is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http
import json
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import kineflow
from kineflow.contracts import KineflowError
from kineflow.deploy.messages import PROTOCOL, PROTOCOL_HEADER, contract_text, message
from kineflow.deploy.server.batching import Batcher, warm_up
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.openpi import OpenpiSession
from kineflow.deploy.server.session import Served, Session, number_of, refusal
from kineflow.deploy.wire import WireError, pack, unpack
from kineflow.extras import require

PING_S = 10.0
SHORTEST_TOKEN = 16


class Speaks(Protocol):
    """A session of either protocol."""

    in_work: int
    malformed: int
    is_open: bool

    @property
    def asked_lately(self) -> bool: ...

    async def reply(self, data: Any) -> dict[str, Any] | str: ...


class PolicyServer:
    """Serves what `load` gives, which runs in the inference thread while the port already answers; `name` is told to clients."""

    def __init__(self, load: Callable[[], Served], config: ServerConfig, token: str, name: str = "policy") -> None:
        """Raises KineflowError for a token that is too short to be one."""
        if len(token) < SHORTEST_TOKEN:
            raise KineflowError(
                f"the token has {len(token)} characters; it needs at least {SHORTEST_TOKEN}, from a random source"
            )
        self.config, self._load, self._name = config, load, name
        self._token = _digest(token)
        self._sessions: set[Speaks] = set()
        self._served: Served | None = None
        self._hello = b""
        self._draining = False
        self._replying = 0  # messages whose answer was not yet sent
        self.counts: Counter[str] = Counter()
        self._batcher = Batcher(self._predict, config, lambda: sum(s.asked_lately for s in self._sessions))

    def _predict(self, *asked: Any) -> Any:
        assert self._served is not None
        return self._served.predict(*asked)

    @property
    def not_ready(self) -> str:
        """Why questions are not answered; "" when they are."""
        if self._draining:
            return "draining"
        if self._served is None:
            return "loading"
        busy_s = self._batcher.busy_s
        return f"stuck: the policy has been computing for {busy_s:.0f} s" if busy_s > self.config.stuck_s else ""

    async def run(self, stop: asyncio.Event, bound: Callable[[int], None], ready: Callable[[], None]) -> bool:
        """Serve until `stop` is set; `bound` is told the port. True: everything in work was answered.

        Raises:
            KineflowError: a port that is taken, or whatever loading the policy raises.
        """
        serve = require("websockets.asyncio.server", "to serve policies").serve
        quiet = logging.getLogger("kineflow.server.websockets")
        quiet.setLevel(logging.CRITICAL)  # strangers' broken handshakes are counted, not traced
        try:
            server = await serve(
                self._talk,
                self.config.host,
                self.config.port,
                process_request=self._admit,
                compression=None,  # no bombs, and pictures of 8 bits hardly shrink
                max_size=self.config.max_message_bytes,
                max_queue=4,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=1.0,
                logger=quiet,
                server_header=None,
                ssl=_encryption(self.config.certificate),
            )
        except OSError as error:
            raise KineflowError(f"{self.config.host}:{self.config.port}: {error.strerror}; choose another --port") from error
        batches = asyncio.create_task(self._batcher.run())
        try:
            bound(server.sockets[0].getsockname()[1])
            if await self._make_ready(stop):
                ready()
                await _first(stop.wait(), batches)
            return await self._drain()
        finally:
            batches.cancel()
            self._batcher.close()
            server.close()
            await server.wait_closed()

    async def _make_ready(self, stop: asyncio.Event) -> bool:
        """False: told to stop meanwhile."""
        loading = asyncio.ensure_future(self._batcher.aside(self._loaded))
        waiting = asyncio.ensure_future(stop.wait())
        await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not loading.done():
            return False
        self._served = loading.result()
        return True

    def _loaded(self) -> Served:
        served = self._load()
        warm_up(served.predict, served.blank, tuple(dict.fromkeys((1, self.config.max_batch))))
        limits = {"max_message_bytes": self.config.max_message_bytes, "max_rows": self.config.max_rows}
        fields = {"contract": contract_text(served.contract), "policy": self._name, "version": kineflow.__version__}
        self._hello = pack(message("hello", 0, **fields, limits=limits))
        return served

    async def _drain(self) -> bool:
        """New clients and questions are refused from now on; what is in work has `drain_s`."""
        self._draining = True
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.config.drain_s
        while (left := self._replying) and loop.time() < until_s:
            await asyncio.sleep(0.01)
        return not left

    def _admit(self, connection: Any, request: Any) -> Any:
        """Before the handshake: HTTP questions, and who may come in."""
        path, status = request.path.split("?")[0], http.HTTPStatus
        if path == "/healthz":
            return connection.respond(status.OK, "OK\n")
        if path == "/readyz":
            why = self.not_ready
            return connection.respond(status.SERVICE_UNAVAILABLE if why else status.OK, f"{why or 'ready'}\n")
        if not self._is_known(request.headers.get_all("Authorization")):
            self.counts["wrong token"] += 1
            return connection.respond(status.UNAUTHORIZED, "the token is missing or wrong\n")
        if path == "/status":
            return connection.respond(status.OK, json.dumps(self.status()) + "\n")
        spoken = request.headers.get_all(PROTOCOL_HEADER)
        if spoken and spoken != [str(PROTOCOL)]:
            self.counts["wrong version"] += 1
            text = f"protocol {spoken[0][:20]} is not spoken here; this server speaks {PROTOCOL}; upgrade the older of both\n"
            return connection.respond(status.BAD_REQUEST, text)
        if why := self.not_ready:
            return connection.respond(status.SERVICE_UNAVAILABLE, f"{why}\n")
        if len(self._sessions) >= self.config.max_clients:
            self.counts["too many clients"] += 1
            return connection.respond(status.SERVICE_UNAVAILABLE, f"{self.config.max_clients} clients are connected already\n")
        return None

    def _is_known(self, headers: list[str]) -> bool:
        """`Bearer TOKEN`, or `Api-Key TOKEN` as openpi-client says it. Digests of one length are compared in constant time."""
        scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        return hmac.compare_digest(_digest(token.strip()), self._token) and scheme.lower() in ("bearer", "api-key")

    def status(self) -> dict[str, Any]:
        return {
            "policy": self._name,
            "version": kineflow.__version__,
            "not_ready": self.not_ready,
            "clients": len(self._sessions),
            "in_work": self._batcher.in_work,
            **self.counts,
            **self._batcher.counts,
        }

    async def _talk(self, connection: Any) -> None:
        assert self._served is not None
        ours = PROTOCOL_HEADER in connection.request.headers
        made = (self._served, self._batcher, self.config)
        session: Speaks = Session(*made) if ours else OpenpiSession(*made)
        replies: set[asyncio.Task[None]] = set()
        self._sessions.add(session)
        self.counts["connections"] += 1
        try:
            await self._send(connection, self._hello)
            async for data in connection:
                if session.malformed >= self.config.malformed:
                    await connection.close(1008, "too many messages that are none")
                    break
                reply = asyncio.ensure_future(self._reply(connection, session, data))
                if not ours:  # those clients expect answers in the order of their questions
                    await reply
                    continue
                replies.add(reply)
                reply.add_done_callback(replies.discard)
                # The reply reads its message before the next one is taken, so that resets are seen in their place.
                await asyncio.sleep(0)
                if len(replies) > 2 * self.config.questions_per_client:  # a client that asks and does not listen
                    await asyncio.wait(replies, return_when=asyncio.FIRST_COMPLETED)
        except require("websockets.exceptions", "to serve policies").ConnectionClosed:
            pass
        finally:
            session.is_open = False
            self._sessions.discard(session)
            for task in replies:
                task.cancel()

    async def _reply(self, connection: Any, session: Speaks, data: bytes | str) -> None:
        self.counts["messages"] += 1
        self._replying += 1
        try:
            said = await self._said(session, data)
            await self._send(connection, said if isinstance(said, str) else pack(said))
        except require("websockets.exceptions", "to serve policies").ConnectionClosed:
            self.counts["unheard answers"] += 1
        finally:
            self._replying -= 1

    async def _said(self, session: Speaks, data: bytes | str) -> dict[str, Any] | str:
        ours = isinstance(session, Session)
        if self._draining:
            return refusal(0, "draining", "the server is going down") if ours else "draining: the server is going down"
        try:
            content = _read(data)
        except WireError as error:
            session.malformed += 1
            self.counts["malformed"] += 1
            return refusal(0, "malformed", str(error)) if ours else f"malformed: {error}"
        try:
            return await session.reply(content)
        except Exception as error:  # a fault of this server: one client's question fails, and it is seen in the counts
            self.counts["internal errors"] += 1
            logging.getLogger("kineflow.server").exception("a question failed")
            text = f"{type(error).__name__} within the server; its log says more"
            return refusal(number_of(content), "failed", text) if ours else f"failed: {text}"

    async def _send(self, connection: Any, data: bytes | str) -> None:
        """A client that does not take its answers is sent away, or they would pile up here."""
        try:
            await asyncio.wait_for(connection.send(data), self.config.send_timeout_s)
        except asyncio.TimeoutError:
            self.counts["slow clients"] += not connection.transport.is_closing()
            connection.transport.abort()


def _encryption(certificate: str) -> ssl.SSLContext | None:
    """Raises KineflowError for a file that holds no certificate and key."""
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate)
    except OSError as error:  # ssl.SSLError as well
        raise KineflowError(f"certificate {certificate}: {error}; one PEM file with certificate and key is needed") from error
    return context


def _read(data: bytes | str) -> Any:
    if isinstance(data, str):
        raise WireError("a text; messages are binary")
    return unpack(data)


async def _first(*waiting: Any) -> None:
    """Until the first of them ends; what it raises is raised."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks[0].cancel()
    for task in done:
        task.result()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
