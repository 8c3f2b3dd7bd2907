"""`kineflow deploy serve`: the policy server as a process. SIGTERM or SIGINT: answers what is in work, exits 0; twice: now."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from kineflow.contracts import KineflowError
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.serving import SHORTEST_TOKEN, PolicyServer
from kineflow.deploy.server.session import Served

REMEDY = f"write {SHORTEST_TOKEN} or more random characters to a file that you alone can read (umask 077; openssl rand -hex 32)"


def load_served(source: str, device: str = "cpu", threads: int = 1) -> Served:
    """Whatever `kineflow.deploy.loading.load_policy` takes. Raises KineflowError."""
    # Before torch is loaded: threads that spin while they wait crawl on a machine that does other things.
    for name, value in {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}.items():
        os.environ.setdefault(name, value)
    from kineflow.deploy.models import Model  # torch, unless the policy is exported

    model = Model.load(source, device, threads)
    return Served(model.contract, model.policy.predict, model.tell)


def token_from(file: Path) -> str:
    """The token that clients must show.

    Raises:
        KineflowError: no such file, one that everybody may read, or nothing that serves as a token.
    """
    try:
        mode, token = file.stat().st_mode, file.read_text().strip()
    except (OSError, ValueError) as error:
        raise KineflowError(f"token file {file}: {error}; {REMEDY}") from error
    if mode & stat.S_IROTH:
        raise KineflowError(f"token file {file} can be read by everybody on this machine: chmod 600 {file}")
    if len(token) < SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise KineflowError(f"token file {file}: holds no token; {REMEDY}")
    return token


def serve(load: Callable[[], Served], config: ServerConfig, token: str, name: str = "policy") -> int:
    """Serves until a signal comes; the exit code. Says on stdout where it listens, and when it is ready.

    Raises:
        KineflowError: see PolicyServer.
    """
    drained = asyncio.run(_serve(PolicyServer(load, config, token, name), config))
    if not drained:
        print(f"gave up after {config.drain_s:g} s: questions were left unanswered", file=sys.stderr, flush=True)
        os._exit(1)  # the policy may hang in native code, which no exception ends
    print("stopped", flush=True)
    return 0


async def _serve(server: PolicyServer, config: ServerConfig) -> bool:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    return await server.run(
        stop,
        lambda port: print(f"listening on {'wss' if config.certificate else 'ws'}://{config.host}:{port}", flush=True),
        lambda: print("ready", flush=True),
    )
