"""Settings of the policy server: YAML in configs/deploy/server.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from kineflow.contracts import KineflowError


@dataclass(frozen=True)
class ServerConfig:
    """`max_batch` counts rows of one call of the policy; `max_rows` those that one question may ask for."""

    host: str = "127.0.0.1"
    port: int = 8600  # 0: any that is free
    certificate: str = ""  # PEM file with certificate and key: wss:// then, and nobody reads along; "": ws://
    max_batch: int = 8
    max_wait_s: float = 0.003  # for others to share a call; not waited where all who lately asked have asked
    max_rows: int = 32
    max_steps: int = 100
    max_clients: int = 32
    questions_per_client: int = 4  # in work at once; one more is refused as busy
    questions: int = 64  # of all clients
    max_message_mb: float = 32.0
    budget_s: float = 5.0  # of questions that name none: after it they are dropped unanswered
    send_timeout_s: float = 5.0  # for a client to take its answer
    drain_s: float = 10.0  # after SIGTERM, for what is in work
    stuck_s: float = 30.0  # of one call of the policy: then not ready any more
    malformed: int = 16  # messages in a row that are none, before a client is sent away
    seed: int = 0  # of the noise for clients that send none (openpi-client)

    def __post_init__(self) -> None:
        counts = ("max_batch", "max_rows", "max_steps", "max_clients", "questions_per_client", "questions", "malformed")
        times = ("max_message_mb", "budget_s", "send_timeout_s", "drain_s", "stuck_s")
        for name in (*counts, *times):
            if not getattr(self, name) > 0:
                raise KineflowError(f"server.{name} is {getattr(self, name)}; it must be positive")
        if self.max_wait_s < 0 or not 0 <= self.port < 65536:
            raise KineflowError(f"server: max_wait_s {self.max_wait_s} and port {self.port}; from 0 on, ports below 65536")

    @property
    def max_message_bytes(self) -> int:
        return int(self.max_message_mb * 1e6)
