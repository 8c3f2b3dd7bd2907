"""Which memory beside a policy an environment's goal goes through, and the backbone that looks at its pictures once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from kineflow.contracts import Policy
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.encoders.window_features import Looker
from kineflow.policies.running_episode import GoalEnvironment
from kineflow.policies.told import Look, Told, ToldBlindly


def teller(policy: Policy, loop: Literal["closed", "open"], stop: tuple[float, int]) -> Callable[[GoalEnvironment], Told]:
    """What `Rollout` takes: makes the `Told` of an environment that was reset. `stop`: see `Told`."""
    kind, look = {"closed": Told, "open": ToldBlindly}[loop], backbone_of(policy)

    def tell(env: GoalEnvironment) -> Told:
        return kind(env.goal(), env.clip_rate_hz, policy.contract, look, stop)

    return tell


def backbone_of(policy: Policy) -> Look | None:
    """The frozen backbone of a policy, which need not look at a goal more than once; None where there is none."""
    encoder = policy.network.encoder if isinstance(policy, ChunkPolicy) else None
    if not isinstance(encoder, GoalVisionEncoder) or not encoder.frames.frozen:
        return None
    return Looker(encoder.frames, encoder.flow, "")
