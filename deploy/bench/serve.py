"""`kineflow bench serve`: what the policy server adds to a bare websocket, and what sharing calls among clients gives.

Round trip: a question with two frames of 96 x 96 to a policy that answers at once, in a process of its own on loopback, beside a
bare websockets server that is sent the same bytes and answers with as many, asked in turns. Questions per second: 8 clients and a
policy with random weights on one thread, up to 8 rows in a call, beside one row in a call.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from kineflow.bench_row import Row
from kineflow.contracts import KineflowError, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.bench.serve_process import WARM
from kineflow.deploy.client import ClientConfig, NoAnswer, PolicyClient
from kineflow.deploy.messages import chunk_fields, message, observation_fields, request_fields
from kineflow.deploy.wire import pack
from kineflow.extras import require

POLICIES = ("pusht_flow_dit", "pusht_image_diffusion")
CLIENTS = 8
ADDED_MS = 2.0  # p50, above the bare websocket
GAIN = 1.5  # of sharing calls, for the policy whose call costs most
TIMEOUT_S = 60.0


def bench_serve(*, quick: bool) -> Iterator[Row]:
    """Raises KineflowError: a server process that does not start."""
    yield from _round_trip(200 if quick else 2000)
    for name in POLICIES[:1] if quick else POLICIES:
        yield _sharing(name, 3.0 if quick else 15.0)


def _round_trip(n: int) -> Iterator[Row]:
    token = secrets.token_hex(16)
    connect = require("websockets.sync.client", "to measure a bare websocket").connect
    with _process("stub", token, 8) as url, PolicyClient(ClientConfig(url, token, TIMEOUT_S)) as client:
        observation, request = _question(client.contract, 0)
        asked = {"observation": observation_fields(observation), "request": request_fields(request)}
        data = pack(message("act", 1, epoch=0, budget_s=TIMEOUT_S, told=False, executed=0, **asked))
        answer = client.act(observation, request)
        said = {"chunk": chunk_fields(answer.chunk), "server_timing": dict(answer.timing)}
        reply = pack(message("chunk", 1, epoch=0, **said))
        with (
            _process("echo", token, 8, len(reply)) as bare,
            connect(bare, compression=None, max_size=None, proxy=None) as raw,
        ):
            ours, theirs = np.zeros(n + WARM), np.zeros(n + WARM)
            for k in range(n + WARM):  # in turns: other work on the machine falls on both
                began = time.perf_counter()
                client.act(observation, request)
                ours[k] = time.perf_counter() - began
                began = time.perf_counter()
                raw.send(data)
                raw.recv()
                theirs[k] = time.perf_counter() - began
    note = f"{len(data)} bytes there, {len(reply)} back; load {os.getloadavg()[0]:.1f}"
    for q in (50, 99):
        mine, bare_ms = (1e3 * float(np.percentile(times[WARM:], q)) for times in (ours, theirs))
        goal = f"<= {ADDED_MS:g} ms above the bare websocket" if q == 50 else None
        holds = mine - bare_ms <= ADDED_MS if q == 50 else None
        yield Row(
            f"serve.round_trip_p{q}",
            mine,
            "ms",
            "lower",
            bare_ms,
            _version(),
            mine / bare_ms,
            goal,
            holds,
            n,
            f"{note}; echo beside",
        )


def _sharing(name: str, seconds: float) -> Row:
    rates, rows = {}, {}
    for batch in (1, CLIENTS):
        token = secrets.token_hex(16)
        with _process(name, token, batch) as url:
            rates[batch], rows[batch], n = _rate(url, token, seconds)
    shared, alone = rates[CLIENTS], rates[1]
    note = f"{CLIENTS} clients, {rows[CLIENTS]:.1f} rows a call; reference: one row a call; load {os.getloadavg()[0]:.1f}"
    gain = shared / alone
    goal, holds = (f">= {GAIN:g} x", gain >= GAIN) if name == POLICIES[0] else (None, None)
    return Row(f"serve.questions.{name}", shared, "1/s", "higher", alone, "max_batch: 1", gain, goal, holds, n, note)


def _rate(url: str, token: str, seconds: float) -> tuple[float, float, int]:
    """Answers per second of clients that ask as fast as they can, the mean number of rows in a call, and how many answers."""
    counts, rows, failed, ending = [0] * CLIENTS, [0.0] * CLIENTS, list[str](), threading.Event()
    gate = threading.Barrier(CLIENTS + 1)

    def ask(k: int) -> None:
        with PolicyClient(ClientConfig(url, token, TIMEOUT_S)) as client:
            question = _question(client.contract, k)
            client.act(*question)
            gate.wait()
            while not ending.is_set():
                try:
                    said = client.act(*question)
                except NoAnswer as error:
                    failed.append(str(error))
                    return
                counts[k] += 1
                rows[k] += said.timing["batch_rows"]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(CLIENTS)]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    ending.set()
    for thread in threads:
        thread.join()
    if failed:
        raise KineflowError(f"questions to {url} failed: {failed[0]}")
    total = sum(counts)
    return total / (time.perf_counter() - began), sum(rows) / max(total, 1), total


def _question(contract: PolicyContract, k: int) -> tuple[Observation, SamplingRequest]:
    rng, length = np.random.default_rng(k), contract.horizons.observation
    size = sum(spec.vector.size for spec in contract.interface.features.values())
    images = {
        name: rng.integers(0, 256, (1, length, *camera.frame_shape), np.uint8)
        for name, camera in contract.interface.cameras.items()
    }
    state = rng.uniform(-1, 1, (1, length, size)).astype(np.float32)
    return Observation(state, np.zeros((1, length)), images), SamplingRequest(np.array([k], np.int64))


@contextmanager
def _process(kind: str, token: str, batch: int, reply_bytes: int = 0) -> Iterator[str]:
    command = [sys.executable, "-m", "kineflow.deploy.bench.serve_process", kind, token, str(batch), str(reply_bytes)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as kept:
        process: Any = kept.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread))
        kept.callback(process.kill)
        listening, ready = process.stdout.readline(), process.stdout.readline()
        if not listening.startswith("listening on ") or ready != "ready\n":
            raise KineflowError(f"the server process '{kind}' did not start: see above")
        yield listening.split()[-1]


def _version() -> str:
    return f"websockets {require('websockets', 'to ask a policy server').__version__}"
