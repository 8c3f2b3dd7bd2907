"""The processes that `kineflow bench serve` asks: a policy server, or a bare websockets server that answers with as many bytes.

python -m kineflow.deploy.bench.serve_process stub|NAME|echo TOKEN MAX_BATCH REPLY_BYTES
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np

from kineflow.contracts import (
    ActionChunk,
    CameraSpec,
    FeatureSpec,
    FeatureStatistics,
    GoldenPair,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.process import serve
from kineflow.deploy.server.session import Follows, Served

SIDE, HORIZON = 96, 16
WARM = 10  # messages before the ones that count


def stub_contract() -> PolicyContract:
    """A state of two numbers and a camera of 96 x 96, chunks of 16."""
    point = VectorSpec(("x", "y"), ("m", "m"), "base", (-1.0, -1.0), (1.0, 1.0))
    feature, cameras = FeatureSpec(point, 10.0), {"front": CameraSpec(SIDE, SIDE, 10.0)}
    statistics = FeatureStatistics(1, *(((0.0, 0.0),) + ((1.0, 1.0),) + ((0.0, 0.0),) * 4))
    interface = Interface({"position": feature}, feature, cameras)
    zeros = ((0.0, 0.0),)
    both = {"position": statistics, "action": statistics}
    return PolicyContract(
        interface, Horizons(2, HORIZON, 8), SamplerSpec("none", "none", "none", 1), both, "", {}, GoldenPair(zeros, 0, zeros)
    )


def _stub() -> Served:
    """Answers at once: what is left is the server."""

    def predict(observation: Observation, request: SamplingRequest) -> ActionChunk:
        rows = len(request.seeds)
        return ActionChunk(np.zeros((rows, HORIZON, 2), np.float32), 0.1, np.asarray(observation.stamp_s)[:, -1])

    return Served(stub_contract(), predict, _no_goal)


def _no_goal(goal: Any, clip_rate_hz: float = 0.0, stop: tuple[float, int] = (0.5, 3)) -> Follows:
    raise KineflowError("this policy takes no goal")


def _random(name: str) -> Served:
    """A policy of `bench export` with random weights."""
    from kineflow.deploy.export.bench import bench_policy
    from kineflow.deploy.models import Model

    model = Model(bench_policy(name)[0])
    return Served(model.contract, model.policy.predict, model.tell)


async def _echo(reply: bytes) -> None:
    from websockets.asyncio.server import serve as listen

    async def answer(connection: Any) -> None:
        async for _ in connection:
            await connection.send(reply)

    async with listen(answer, "127.0.0.1", 0, compression=None, max_size=1 << 26) as server:
        print(f"listening on ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}\nready", flush=True)
        await server.serve_forever()


def main() -> int:
    kind, token, batch, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "echo":
        asyncio.run(_echo(bytes(size)))
        return 0
    config = ServerConfig(port=0, max_batch=batch, max_wait_s=0.003 if batch > 1 else 0.0)
    return serve(_stub if kind == "stub" else lambda: _random(kind), config, token, kind)


if __name__ == "__main__":
    sys.exit(main())
