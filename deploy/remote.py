"""A policy on another machine, as one of this: `kineflow.contracts.Policy` by `deploy/client.py`. No torch.

    policy = RemotePolicy.connect("ws://gpu-box:8600", token)
    executor = Executor(policy.contract, config)               chunk = policy.predict(question.observation, question.request)

What goes wrong on the way is raised as `NoAnswer`, within `timeout_s`: the executor's runner makes a failed answer of it, so a
lost server means no chunk, and the robot comes to rest when its plan is used up. With `told` the server keeps the goal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, Interface, KineflowError, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.client import ClientConfig, NoAnswer, PolicyClient, token_of

TOKEN_FILE = "KINEFLOW_TOKEN_FILE"
AUTHORITY = "KINEFLOW_AUTHORITY"


def is_remote(source: object) -> bool:
    """Does it name a policy server?"""
    return str(source).startswith(("ws://", "wss://"))


class RemotePolicy:
    """Pure, as every policy: each question says all that the answer depends on, unless the server keeps the goal (`told`)."""

    def __init__(self, client: PolicyClient) -> None:
        self.client = client
        self._contract = client.contract
        self._told: RemoteTold | None = None

    @classmethod
    def connect(
        cls, url: str, token: str = "", timeout_s: float = 1.0, within_s: float = 10.0, offers: Interface | None = None
    ) -> RemotePolicy:
        """`token` "": what is in the file that KINEFLOW_TOKEN_FILE names; likewise KINEFLOW_AUTHORITY for wss://, see
        `ClientConfig`. `within_s`: for the first connection.

        Raises:
            KineflowError: no server there in that time, no token, or refused; a policy that needs something else than `offers`.
        """
        if not token:
            file = os.environ.get(TOKEN_FILE)
            if not file:
                raise KineflowError(f"{url} wants a token: set {TOKEN_FILE} to the file that holds it")
            token = token_of(file)
        client = PolicyClient(ClientConfig(url, token, timeout_s, offers=offers, authority=os.environ.get(AUTHORITY, "")))
        try:
            client.connect(within_s)
            return cls(client)
        except NoAnswer as error:
            client.close()
            raise KineflowError(f"no policy server answered in {within_s:g} s ({error}); is it running, and ready?") from error
        except BaseException:
            client.close()
            raise

    @property
    def contract(self) -> PolicyContract:
        return self._contract

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """Raises NoAnswer, or KineflowError for a question that does not fit."""
        told = self._told
        if told is None or observation.goal or observation.instruction:
            return self.client.act(observation, request).chunk
        return told.asked(observation, request)

    def told(
        self, goal: Mapping[str, Any], clip_rate_hz: float = 0.0, instruction: str = "", stop: tuple[float, int] = (0.5, 3)
    ) -> RemoteTold:
        """For `Executor.set_goal`: the server is told the goal once, and follows it. Raises as `PolicyClient.tell`."""
        self._told = RemoteTold(self.client, goal, clip_rate_hz, instruction, stop)
        return self._told

    def close(self) -> None:
        self.client.close()


class RemoteTold:
    """The goal of the questions, kept by the server (`kineflow.deploy.asking.FollowsGoal`); here what was carried out."""

    instruction = ""  # the server has it

    def __init__(
        self, client: PolicyClient, goal: Mapping[str, Any], clip_rate_hz: float, instruction: str, stop: tuple[float, int]
    ) -> None:
        self._client, self._executed, self._has_arrived, self._newest = client, 0, False, False
        client.tell(goal, clip_rate_hz, instruction, stop)

    def goal(self) -> dict[str, np.ndarray]:
        """Nothing is sent with the question."""
        return {}

    def asked(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        if len(observation.state) != 1:
            raise KineflowError(
                "a server that keeps the goal answers one row at a time; use another mode than bid, or send the goal"
            )
        answer = self._client.act(replace(observation, instruction=()), request, executed=self._executed)
        self._newest = answer.has_arrived
        return answer.chunk

    def answered(self, chunk: ActionChunk, row: int) -> None:
        """That chunk was taken."""
        self._has_arrived = self._newest

    def executed(self) -> None:
        self._executed += 1

    @property
    def has_arrived(self) -> bool:
        return self._has_arrived
