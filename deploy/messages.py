"""Messages of the policy server's protocol, version 1, as mappings that `deploy/wire.py` packs. NumPy alone, Python 3.10.

    server, first   hello   contract, policy, version, limits
    client          act     observation, request, budget_s, epoch, told, executed     -> chunk | error
                    tell    goal, instruction, clip_rate_hz, stop, cursor, epoch      -> told | error
                    reset   epoch                                                     -> reset

Each is `{"kineflow": 1, "type": ..., "id": n, ...}`; an answer carries the id of its question. The version is also a header of
the handshake (`PROTOCOL_HEADER`): a server that does not speak it refuses there. A connection without that header is one of
`openpi-client` (deploy/server/openpi.py). Unknown fields are refused, as in configurations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import (
    CONTRACT_VERSION,
    ActionChunk,
    CommittedPrefix,
    ContractError,
    Observation,
    PolicyContract,
    SamplingRequest,
    to_json,
)
from kineflow.deploy.wire import WireError

PROTOCOL = 1
PROTOCOL_HEADER = "Kineflow-Protocol"
MOST_TEXT = 4000  # characters of an instruction
METHODS = ("guided", "exact", "start")
SIDES = ("stop_probability", "ahead_s", "distance")


def message(kind: str, number: int, **fields: Any) -> dict[str, Any]:
    return {"kineflow": PROTOCOL, "type": kind, "id": number, **fields}


def opened(data: Any) -> tuple[str, int, Fields]:
    """Type, id and fields of a message of this version.

    Raises:
        WireError: none, or of another version.
    """
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise WireError(f"a message is a mapping with names, not {type(data).__name__}")
    fields = Fields(data, "message")
    version = fields.integer("kineflow", 0, 1 << 31)
    if version != PROTOCOL:
        raise WireError(f"protocol version {version}: this side speaks {PROTOCOL}; upgrade the older of both")
    return fields.text("type", 40), fields.integer("id", 0, (1 << 62)), fields


class Fields:
    """A mapping from outside, read field by field; what is left at `done` is unknown."""

    def __init__(self, values: Mapping[Any, Any], where: str) -> None:
        self._values, self._where = dict(values), where

    def has(self, name: str) -> bool:
        """Is it there? A field sent as nothing is not."""
        if self._values.get(name, 0) is None:
            del self._values[name]
        return name in self._values

    def take(self, name: str) -> Any:
        if name not in self._values:
            raise WireError(f"{self._where}: '{name}' is missing")
        return self._values.pop(name)

    def number(self, name: str, low: float, high: float) -> float:
        value = self.take(name)
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise WireError(f"{self._where}.{name} is {str(value)[:40]}: a number from {low:g} to {high:g} is expected")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name)
        if type(value) is not int or not low <= value <= high:
            raise WireError(f"{self._where}.{name} is {str(value)[:40]}: a whole number from {low} to {high} is expected")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            raise WireError(f"{self._where}.{name} is {type(value).__name__}: true or false is expected")
        return value

    def text(self, name: str, most: int = MOST_TEXT) -> str:
        value = self.take(name)
        if not isinstance(value, str) or len(value) > most:
            raise WireError(f"{self._where}.{name}: a text of up to {most} characters is expected")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.take(name)
        if not isinstance(values, list) or not all(isinstance(v, str) and len(v) <= MOST_TEXT for v in values):
            raise WireError(f"{self._where}.{name}: a list of texts of up to {MOST_TEXT} characters is expected")
        return tuple(values)

    def array(self, name: str, dtype: Any, axes: int) -> np.ndarray:
        value = self.take(name)
        if not isinstance(value, np.ndarray) or value.dtype != np.dtype(dtype) or value.ndim != axes:
            raise WireError(f"{self._where}.{name}: an array of {np.dtype(dtype)} with {axes} axes is expected")
        return value

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        values = self.take(name)
        if not isinstance(values, dict) or not all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in values.items()):
            raise WireError(f"{self._where}.{name}: a mapping of arrays is expected")
        return values

    def inner(self, name: str) -> Fields:
        values = self.take(name)
        if not isinstance(values, dict):
            raise WireError(f"{self._where}.{name}: a mapping is expected")
        return Fields(values, f"{self._where}.{name}")

    def done(self) -> None:
        if self._values:
            raise WireError(f"{self._where}: unknown fields {[str(name)[:40] for name in self._values][:5]}")


def observation_fields(observation: Observation) -> dict[str, Any]:
    """Rows that are all alike, as those of one window asked for several chunks, are sent once."""
    rows = len(observation.state)
    alike = rows > 1 and _alike(observation)
    kept = slice(0, 1) if alike else slice(None)
    return {
        "rows": rows,
        "alike": alike,
        "state": np.asarray(observation.state, np.float32)[kept],
        "stamp_s": np.asarray(observation.stamp_s, np.float64)[kept],
        "images": {name: frames[kept] for name, frames in observation.images.items()},
        "goal": {name: np.asarray(value)[kept] for name, value in observation.goal.items()},
        "instruction": list(observation.instruction[kept]),
    }


def observation_from(fields: Fields, most_rows: int) -> Observation:
    """Shapes beyond the rows are for the policy's own check. Raises WireError."""
    rows, alike = fields.integer("rows", 1, most_rows), fields.flag("alike")
    state, stamp_s = fields.array("state", np.float32, 3), fields.array("stamp_s", np.float64, 2)
    images, goal, words = fields.arrays("images"), fields.arrays("goal"), fields.texts("instruction")
    fields.done()
    sent = 1 if alike else rows
    for name, value in {"state": state, "stamp_s": stamp_s, **images, **goal}.items():
        if not value.ndim or len(value) != sent:
            raise WireError(f"observation: '{name[:40]}' {value.shape} does not have {sent} rows")
    if len(words) not in (0, sent):
        raise WireError(f"observation: {len(words)} instructions for {sent} rows")
    if not np.isfinite(stamp_s).all():
        raise WireError("observation: stamps that are not finite")
    if not alike:
        return Observation(state, stamp_s, images, goal, words)

    def all_rows(value: np.ndarray) -> np.ndarray:
        return np.broadcast_to(value, (rows, *value.shape[1:]))

    images, goal = ({name: all_rows(v) for name, v in values.items()} for values in (images, goal))
    return Observation(all_rows(state), all_rows(stamp_s), images, goal, words * rows)


def request_fields(request: SamplingRequest) -> dict[str, Any]:
    prefix = request.prefix
    sent = {
        "seeds": np.asarray(request.seeds, np.int64),
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
    }
    if prefix is None:
        return sent
    kept = {"actions": np.asarray(prefix.actions, np.float32), "soft_mask": np.asarray(prefix.soft_mask, np.float32)}
    return {**sent, "prefix": {**kept, "delay": int(prefix.delay), "method": prefix.method}}


def request_from(fields: Fields, rows: int, contract: PolicyContract, most_steps: int) -> SamplingRequest:
    """Raises WireError."""
    seeds = fields.array("seeds", np.int64, 1)
    if len(seeds) != rows or (seeds < 0).any():
        raise WireError(f"request.seeds: {rows} seeds from 0 on are expected, one per row")
    steps = fields.integer("steps", 1, most_steps) if fields.has("steps") else None
    scale = fields.number("guidance_scale", -1e3, 1e3) if fields.has("guidance_scale") else None
    prefix = None
    if fields.has("prefix"):
        inner, horizon = fields.inner("prefix"), contract.horizons.prediction
        method: Any = inner.text("method", 20)
        if method not in METHODS:
            raise WireError(f"request.prefix.method is '{method}', not one of {METHODS}")
        actions, mask = inner.array("actions", np.float32, 3), inner.array("soft_mask", np.float32, 2)
        prefix = CommittedPrefix(actions, mask, inner.integer("delay", 0, horizon), method)
        inner.done()
        expected = (rows, horizon, contract.interface.action.vector.size)
        if actions.shape != expected or mask.shape != expected[:2]:
            raise WireError(f"request.prefix: actions {actions.shape} and mask {mask.shape}; chunks are {expected}")
    fields.done()
    return SamplingRequest(seeds, steps, scale, prefix)


def chunk_fields(chunk: ActionChunk) -> dict[str, Any]:
    told = {name: np.asarray(value, np.float32) for name in SIDES if (value := getattr(chunk, name)) is not None}
    stamp_s = np.asarray(chunk.stamp_s, np.float64)
    return {"actions": np.asarray(chunk.actions, np.float32), "step_s": float(chunk.step_s), "stamp_s": stamp_s, **told}


def chunk_from(fields: Fields) -> ActionChunk:
    """Raises WireError."""
    sides = {name: fields.array(name, np.float32, 1) for name in SIDES if fields.has(name)}
    actions, stamp_s = fields.array("actions", np.float32, 3), fields.array("stamp_s", np.float64, 1)
    step_s = fields.number("step_s", 1e-6, 1e3)
    fields.done()
    if any(len(value) != len(actions) for value in (stamp_s, *sides.values())):
        raise WireError("chunk: its fields have different numbers of rows")
    return ActionChunk(actions, step_s, stamp_s, **sides)


def contract_text(contract: PolicyContract) -> str:
    return to_json(contract)


def contract_from(text: str, where: str) -> PolicyContract:
    """The contract that a server sent; `where` names it.

    Raises:
        ContractError: of a newer version, or damaged.
    """
    try:
        data = json.loads(text)
        version = data.get("contract_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > CONTRACT_VERSION:
            raise ContractError(
                f"{where}: contract version {version}, this side reads up to {CONTRACT_VERSION}; upgrade kineflow on the robot"
            )
        contract: PolicyContract = from_plain(PolicyContract, data, where)
    except (ConfigError, ValueError) as error:
        raise ContractError(f"{where}: a contract that cannot be read ({error})") from error
    return contract


def _alike(observation: Observation) -> bool:
    arrays = [observation.state, observation.stamp_s, *observation.images.values(), *observation.goal.values()]
    words = observation.instruction
    return len(set(words)) <= 1 and all((value[1:] == value[:1]).all() for value in map(np.asarray, arrays))
