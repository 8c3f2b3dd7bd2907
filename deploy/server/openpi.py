"""One client of `openpi-client` (WebsocketClientPolicy): a mapping of one moment in, `{"actions": [H, A], ...}` out.

Those clients send what their robot sees now, under names of their own robots; here each is matched with the contract:

    whole state [S]     state, observation/state, observation.state
    one feature [n]     NAME, observation/NAME, observation.NAME
    camera              NAME, observation/NAME, observation.images.NAME, images: {NAME: ...}; of a policy with one camera also
                        image, observation/image. uint8 [H, W, 3] or [3, H, W]
    words               prompt, task
    other goals         goal/NAME, as in the contract

The server keeps the last observations of each connection, as the policy's window is longer than the moment they send. Their
`reset` says nothing to the server; a new connection, or `reset: True` beside an observation, begins a new window. A refusal is a
text, which their client raises.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kineflow.contracts import ContractError, Observation, SamplingRequest
from kineflow.deploy.asking import in_rows
from kineflow.deploy.messages import MOST_TEXT, SIDES
from kineflow.deploy.server.batching import Batcher, RefusedError
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.server.session import RECENTLY_S, Served, timing
from kineflow.deploy.wire import WireError
from kineflow.policies.noise_seed import noise_seed

_PREFIXES = ("", "observation/", "observation.")
_WORDS = ("prompt", "task")


class OpenpiSession:
    """Of one connection, whose messages are answered one after the other."""

    def __init__(self, served: Served, batcher: Batcher, config: ServerConfig) -> None:
        self._served, self._batcher, self._config = served, batcher, config
        self._window: deque[Observation] = deque(maxlen=served.contract.horizons.observation)
        self._number = self.in_work = self.malformed = 0
        self._asked_s, self._last_s = -1e9, 0.0
        self.is_open = True

    @property
    def asked_lately(self) -> bool:
        return self.in_work > 0 or time.monotonic() - self._asked_s < RECENTLY_S

    async def reply(self, data: Any) -> dict[str, Any] | str:
        began_s = time.monotonic()
        self.in_work += 1
        try:
            said = await self._reply(data)
            self.malformed = 0
        except WireError as error:
            self.malformed += 1
            return f"malformed: {error}"
        except (ContractError, RefusedError) as error:
            return f"{getattr(error, 'code', 'contract')}: {error}"
        finally:
            self.in_work -= 1
        if self._last_s:
            said["server_timing"]["prev_total_ms"] = 1e3 * self._last_s
        self._last_s = time.monotonic() - began_s
        return said

    async def _reply(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise WireError("an observation is a mapping with names")
        if data.get("reset") is True:
            self._window.clear()
        now = self._seen(data)
        # At the beginning the first observation stands for those before it, as in training.
        length = self._served.contract.horizons.observation
        seen = [*self._window, now][-length:]
        moments = [seen[0]] * (length - len(seen)) + seen
        window = Observation(
            np.stack([m.state for m in moments]),
            np.stack([m.stamp_s for m in moments]),
            {name: np.stack([m.images[name] for m in moments]) for name in now.images},
        )
        observation = in_rows(window, 1, now.goal, now.instruction[0] if now.instruction else "")
        request = SamplingRequest(np.array([noise_seed(self._config.seed, self._number)], np.int64))
        self._number += 1
        self._served.check(observation)
        self._window.append(now)  # what does not fit is not remembered
        self._asked_s = time.monotonic()
        answered = await self._batcher.ask(observation, request, self._config.budget_s, lambda: self.is_open)
        sides = {name: np.asarray(value)[0] for name in SIDES if (value := getattr(answered.chunk, name)) is not None}
        return {"actions": np.asarray(answered.chunk.actions[0], np.float32), **sides, "server_timing": timing(answered)}

    def _seen(self, data: Mapping[str, Any]) -> Observation:
        """One moment, without time and rows."""
        interface = self._served.contract.interface
        state = _first(data, [f"{p}state" for p in _PREFIXES])
        if state is None:
            parts = [self._vector(data, name, spec.vector.size) for name, spec in interface.features.items()]
            state = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        size = sum(spec.vector.size for spec in interface.features.values())
        if (state := _numbers("state", state)).shape != (size,):
            raise ContractError(f"the state has {len(state)} numbers, the policy needs {size}: {tuple(interface.features)}")
        images = {name: self._picture(data, name) for name in interface.cameras}
        goal = {key[len("goal/") :]: value for key, value in data.items() if key.startswith("goal/")}
        if not all(isinstance(value, np.ndarray) for value in goal.values()):
            raise ContractError("goals other than words are arrays")
        goal = {name: value if value.dtype == np.uint8 else value.astype(np.float32) for name, value in goal.items()}
        seen = Observation(state, np.array(time.monotonic()), images, goal)
        words = _first(data, _WORDS)
        takes_words = any(spec.kind == "instruction" for spec in interface.goals.values())
        if words is None or not takes_words:
            return seen
        if not isinstance(words, str) or len(words) > MOST_TEXT:
            raise ContractError(f"prompt: a text of up to {MOST_TEXT} characters is expected")
        return replace(seen, instruction=(words,))

    def _vector(self, data: Mapping[str, Any], name: str, size: int) -> np.ndarray:
        found = _first(data, [f"{p}{name}" for p in _PREFIXES])
        if found is None:
            raise ContractError(f"feature '{name}': the policy needs it, the observation has {_names(data)}; send it or 'state'")
        values = _numbers(name, found)
        if values.shape != (size,):
            raise ContractError(f"feature '{name}' is {values.shape}, the policy needs ({size},)")
        return values

    def _picture(self, data: Mapping[str, Any], name: str) -> np.ndarray:
        cameras = self._served.contract.interface.cameras
        nested = data.get("images")
        inner = nested if isinstance(nested, dict) else {}
        found = _first({**data, **inner}, list(_camera_names(name, alone=len(cameras) == 1)))
        if found is None:
            raise ContractError(
                f"camera '{name}': the policy needs it, the observation has {_names({**data, **inner})}; rename it"
            )
        expected = cameras[name].frame_shape
        picture = np.asarray(found)
        if picture.shape == (3, *expected[:2]) and picture.shape != expected:
            picture = np.moveaxis(picture, 0, -1)
        if picture.shape != expected or picture.dtype != np.uint8:
            raise ContractError(
                f"camera '{name}' is {picture.dtype} {picture.shape}, the policy needs uint8 {expected}; resize it"
            )
        return picture


def _camera_names(name: str, alone: bool) -> Iterator[str]:
    for camera in (name, "image") if alone else (name,):
        yield from (f"{p}{camera}" for p in _PREFIXES)
        yield f"observation.images.{camera}"


def _first(data: Mapping[str, Any], names: list[str] | tuple[str, ...]) -> Any:
    return next((data[name] for name in names if data.get(name) is not None), None)


def _numbers(name: str, value: Any) -> np.ndarray:
    """float32 `[n]` of an array or a list of numbers."""
    try:
        numbers = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ContractError(f"'{name}' is not made of numbers") from error
    if numbers.ndim != 1:
        raise ContractError(f"'{name}' has {numbers.ndim} axes; one is expected")
    return numbers


def _names(data: Mapping[str, Any]) -> list[str]:
    return sorted(str(key)[:40] for key in data)[:20]
