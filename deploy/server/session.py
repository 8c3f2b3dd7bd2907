"""One client of the policy server, of the protocol of deploy/messages.py: its goal, where it is in its clip, its epoch.

Questions come with their goal, or with `told: true` after `tell`: then a clip is sent once, looked at once by the policy's
backbone, and followed here, as `kineflow.policies.told.Told` does on a robot. Nothing of it is shared between clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.asking import blank_window, in_rows
from kineflow.deploy.messages import Fields, chunk_fields, message, observation_from, opened, request_from
from kineflow.deploy.server.batching import Answered, Batcher, RefusedError
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.wire import WireError
from kineflow.policies.observation_check import checked, observed_goals

LONGEST_BUDGET_S = 600.0
MOST_EXECUTED = 10_000_000  # actions since a goal was told
RECENTLY_S = 1.0


class Follows(Protocol):
    """A goal that was told, as `kineflow.policies.told.Told`."""

    instruction: str

    def goal(self) -> Mapping[str, np.ndarray]: ...

    def answered(self, chunk: ActionChunk, row: int) -> None: ...

    def executed(self) -> None: ...

    def believe(self, frame: int) -> None: ...

    @property
    def cursor(self) -> int: ...

    @property
    def has_arrived(self) -> bool: ...


class Tell(Protocol):
    """`kineflow.deploy.models.Model.tell`."""

    def __call__(self, goal: Mapping[str, Any], clip_rate_hz: float = 0.0, stop: tuple[float, int] = (0.5, 3)) -> Follows: ...


@dataclass(frozen=True)
class Served:
    """What a server serves; `tell` may take its time, and is called in the inference thread."""

    contract: PolicyContract
    predict: Callable[[Observation, SamplingRequest], ActionChunk]
    tell: Tell

    def check(self, observation: Observation) -> None:
        """Raises ContractError here, before others share a call with it."""
        interface = self.contract.interface
        checked(observation, interface, self.contract.horizons)
        observed_goals(observation, interface.goals, needs_goal=False)

    def blank(self, rows: int) -> Observation:
        """Zeros, for warm-up."""
        window = blank_window(self.contract)
        return in_rows(window, rows, window.goal, window.instruction[0] if window.instruction else "")


class Session:
    """Of one connection; messages of one client may overlap, so what awaits comes after what reads the state."""

    def __init__(self, served: Served, batcher: Batcher, config: ServerConfig) -> None:
        self._served, self._batcher, self._config = served, batcher, config
        self._told: Follows | None = None
        self._epoch = self._executed = self.in_work = self.malformed = 0
        self._asked_s = -1e9
        self.is_open = True

    @property
    def asked_lately(self) -> bool:
        return self.in_work > 0 or time.monotonic() - self._asked_s < RECENTLY_S

    async def reply(self, data: Any) -> dict[str, Any]:
        """The answer to one message; refusals are answers, too."""
        known = number_of(data)
        self.in_work += 1
        try:
            if self.in_work > self._config.questions_per_client:
                raise RefusedError("busy", f"{self.in_work - 1} of this client's questions are in work; wait for an answer")
            said = await self._reply(data)
            self.malformed = 0
        except WireError as error:
            self.malformed += 1
            return refusal(known, "malformed", str(error))
        except ContractError as error:
            return refusal(known, "contract", str(error))
        except RefusedError as error:
            return refusal(known, error.code, str(error))
        finally:
            self.in_work -= 1
        return said

    async def _reply(self, data: Any) -> dict[str, Any]:
        kind, number, fields = opened(data)
        epoch = fields.integer("epoch", 0, 1 << 62)
        if kind == "act":
            return message("chunk", number, epoch=epoch, **await self._act(fields, epoch))
        if kind == "tell":
            return message("told", number, epoch=epoch, cursor=await self._tell(fields, epoch))
        if kind == "reset":
            fields.done()
            self._epoch, self._told = max(epoch, self._epoch), None
            return message("reset", number, epoch=self._epoch)
        raise WireError(f"message of type '{kind}': act, tell and reset are known")

    def _is_current(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise RefusedError("reset", f"epoch {epoch} has ended, this is {self._epoch}")
        self._epoch = epoch

    async def _act(self, fields: Fields, epoch: int) -> dict[str, Any]:
        config, contract = self._config, self._served.contract
        budget_s = fields.number("budget_s", 0, LONGEST_BUDGET_S) if fields.has("budget_s") else config.budget_s
        observation = observation_from(fields.inner("observation"), config.max_rows)
        request = request_from(fields.inner("request"), len(observation.state), contract, config.max_steps)
        wants_told, executed = fields.flag("told"), fields.integer("executed", 0, MOST_EXECUTED)
        fields.done()
        self._is_current(epoch)
        told = self._following(observation, executed) if wants_told else None
        if told is not None:
            window = replace(observation, goal={name: value[None] for name, value in told.goal().items()})
            observation = replace(window, instruction=(told.instruction,) if told.instruction else ())
        self._served.check(observation)
        self._asked_s = time.monotonic()
        answered = await self._batcher.ask(observation, request, budget_s, lambda: self.is_open and epoch == self._epoch)
        said = {"chunk": chunk_fields(answered.chunk), "server_timing": timing(answered)}
        if told is not None and told is self._told:
            told.answered(answered.chunk, 0)
            said["following"] = {"cursor": told.cursor, "has_arrived": told.has_arrived}
        return said

    def _following(self, observation: Observation, executed: int) -> Follows:
        if self._told is None:
            raise RefusedError("not told", "no goal was told on this connection; tell it first")
        if len(observation.state) != 1 or observation.goal or observation.instruction:
            raise ContractError(
                "a question about the told goal has one row and no goal of its own; send the goal with the question"
            )
        # Counted since the goal was told, so a question that is asked again counts nothing twice.
        for _ in range(executed - self._executed):
            self._told.executed()
        self._executed = max(executed, self._executed)
        return self._told

    async def _tell(self, fields: Fields, epoch: int) -> int:
        goal: dict[str, Any] = fields.arrays("goal")
        words, rate_hz = fields.text("instruction"), fields.number("clip_rate_hz", 0, 1e4)
        stop = fields.number("stop_threshold", 0, 1), fields.integer("stop_consecutive", 1, 1000)
        cursor = fields.integer("cursor", 0, 1 << 31)
        fields.done()
        self._is_current(epoch)
        specs = self._served.contract.interface.goals
        named = next((name for name, spec in specs.items() if spec.kind == "instruction"), "instruction")
        self._check_goal(goal, rate_hz)
        told = await self._batcher.aside(lambda: self._served.tell({**goal, **({named: words} if words else {})}, rate_hz, stop))
        if cursor:
            told.believe(cursor)
        if epoch == self._epoch:
            self._told, self._executed = told, 0
        return told.cursor

    def _check_goal(self, goal: Mapping[str, np.ndarray], rate_hz: float) -> None:
        """Shapes as the contract has them; of a clip any length. Raises ContractError."""
        for name, value in goal.items():
            spec = self._served.contract.interface.goals.get(name)
            if spec is None:
                continue  # the teller names what there is
            pictures, video = spec.kind in ("image", "video"), spec.kind == "video"
            shape = value.shape[1:] if video else value.shape
            if shape != (spec.shape[1:] if video else spec.shape) or value.dtype != (np.uint8 if pictures else np.float32):
                raise ContractError(f"goal '{name}' is {value.dtype} {value.shape}, the policy takes {spec}; convert it")
            if video and not (len(value) and rate_hz > 0):
                raise ContractError(f"goal '{name}': a clip of {len(value)} frames at {rate_hz:g} Hz; both must be positive")
            if not pictures and not np.isfinite(value).all():
                raise ContractError(f"goal '{name}' is not finite; ask for the goal again, do not act on it")


def number_of(data: Any) -> int:
    """The id of whatever came; 0 where it has none."""
    number = data.get("id") if isinstance(data, dict) else None
    return number if type(number) is int and 0 <= number < (1 << 62) else 0


def refusal(number: int, code: str, text: str) -> dict[str, Any]:
    return message("error", number, code=code, message=text[:2000])


def timing(answered: Answered) -> dict[str, Any]:
    """In milliseconds; `batch_rows` shared the call."""
    return {
        "queue_ms": 1e3 * answered.queued_s,
        "infer_ms": 1e3 * answered.inference_s,
        "batch_rows": answered.rows,
    }
