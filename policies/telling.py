"""Which memory beside a policy an environment's goal goes through, and the backbone that looks at its pictures once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from kineflow.contracts import Policy
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.encoders.goal_fusion import GoalFusionEncoder
from kineflow.policies.encoders.window_features import Looker
from kineflow.policies.running_episode import GoalEnvironment
from kineflow.policies.subgoal_policy import SubgoalPolicy, knows_distances
from kineflow.policies.told import Look, Told, ToldBlindly
from kineflow.policies.told_by_map import ToldByMap


def with_map(policy: Policy, loop: Literal["closed", "open"]) -> Policy:
    """A policy that knows distances follows a map of pictures where it sees; any other is itself."""
    if loop == "closed" and isinstance(policy, ChunkPolicy) and knows_distances(policy):
        return SubgoalPolicy(policy)
    return policy


def teller(policy: Policy, loop: Literal["closed", "open"], stop: tuple[float, int]) -> Callable[[GoalEnvironment], Told]:
    """What `Rollout` takes: makes the `Told` of an environment that was reset. `stop`: see `Told`."""
    kind, look = {"closed": Told, "open": ToldBlindly}[loop], backbone_of(policy)

    def tell(env: GoalEnvironment) -> Told:
        if isinstance(policy, SubgoalPolicy):
            return ToldByMap(env.goal(), env.clip_rate_hz, policy.contract, look, stop, policy.following)
        return kind(env.goal(), env.clip_rate_hz, policy.contract, look, stop)

    return tell


def backbone_of(policy: Policy) -> Look | None:
    """The frozen backbone of a policy, which need not look at a goal more than once; None where there is none."""
    policy = policy.policy if isinstance(policy, SubgoalPolicy) else policy
    if look := getattr(policy, "look_at", None):  # an exported policy's
        return cast(Look, look)
    encoder = policy.network.encoder if isinstance(policy, ChunkPolicy) else None
    if not isinstance(encoder, GoalVisionEncoder | GoalFusionEncoder) or not encoder.frames.frozen:
        return None
    return Looker(encoder.frames, None if isinstance(encoder, GoalFusionEncoder) else encoder.flow, "")
