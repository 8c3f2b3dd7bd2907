"""A policy that knows distances, driven along a clip: one call finds every robot's place in its map and answers its next picture.

    observations [B] --backbone, once--> features --.
    followers [B]: pictures of each one's window ---+--> encoder, one row per picture --> distances --> followers
                                                    `--> rows of the chosen subgoals --> head --> ActionChunk [B]

The network that is asked about six pictures at once looks at the camera's frames once, and at the pictures before the episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kineflow.contracts import ActionChunk, KineflowError, Observation, Policy, SamplingRequest
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.encoders.goal_fusion import GoalFusionEncoder
from kineflow.policies.observed import Observed, observed
from kineflow.policies.policy import Encoded
from kineflow.policies.temporal_distance import DistanceHead
from kineflow.policies.topological_goal import Following, TopologicalFollower


def follows_subgoals(policy: Policy) -> bool:
    """Does it know distances, so that a `SubgoalPolicy` can drive it along a clip?"""
    return isinstance(policy, ChunkPolicy) and policy.network.distance is not None


@dataclass(frozen=True)
class SubgoalPolicy:
    """`policy` and how it follows clips. Pure: the memory is in the followers, one for each robot and episode."""

    policy: ChunkPolicy
    following: Following = field(default_factory=Following)

    def __post_init__(self) -> None:
        if not follows_subgoals(self.policy) or not isinstance(self._encoder, GoalFusionEncoder | GoalVisionEncoder):
            raise KineflowError(
                "this policy predicts no distance to a picture, so it cannot find its place among subgoals; train one with "
                "policy.distance (configs train/navigation_vint, train/navigation_nomad), or show it the video itself"
            )

    def follower(self, clip: UInt8[np.ndarray, "T H W 3"], rate_hz: float) -> TopologicalFollower:
        """At the beginning of `clip`; a goal image is a clip of one frame. The backbone looks at its nodes here, once."""
        return TopologicalFollower(clip, rate_hz, self.following, self._look)

    @torch.no_grad()
    def predict(
        self, observation: Observation, followers: Sequence[TopologicalFollower], request: SamplingRequest
    ) -> ActionChunk:
        """One chunk for each row towards the subgoal of its follower, which this call moves on.

        `observation` comes without goals. `distance` of the answer is to the subgoals; `stop_probability` is 1 where a robot has
        arrived at the end of its clip, else 0.

        Raises:
            ContractError: an observation that the policy does not take, or one with a goal.
            KineflowError: not one follower and one seed for each row.
        """
        network, rows = self.policy.network, len(observation.state)
        if len(followers) != rows or len(request.seeds) != rows:
            raise KineflowError(f"{rows} observations, {len(followers)} followers, {len(request.seeds)} seeds; give one per row")
        if observation.goal or observation.instruction:
            raise KineflowError("observation has a goal; followers hold the goals here, leave it out")
        horizons, device = network.config.horizons, network.action_scale.device
        seen = observed(observation, network.interface, horizons, device, needs_goal=False)
        asked = [follower.pictures_to_ask() for follower in followers]
        counts = [len(pictures) for pictures in asked]
        row = torch.repeat_interleave(torch.arange(rows), torch.tensor(counts)).to(device)
        condition = self._encoder(self._questions(seen, torch.from_numpy(np.concatenate(asked)).to(device), row))
        distances = self._head(condition).float().cpu().numpy()
        for follower, answer in zip(followers, np.split(distances, np.cumsum(counts)[:-1]), strict=True):
            follower.update(answer)
        chosen = torch.tensor([f.chosen + first for f, first in zip(followers, np.cumsum(counts) - counts)], device=device)
        chunk = network.answer(Encoded(condition[chosen], network.units(seen)), observation.stamp_s, request)
        return replace(chunk, stop_probability=np.array([f.has_arrived for f in followers], np.float32))

    def _questions(self, seen: Observed, pictures: Float[Tensor, "R P D"], row: Tensor) -> Observed:
        """Each of `pictures` for the row that asks; the cameras' frames are looked at once."""
        cameras = {name: self._encoder.features(frames)[row] for name, frames in seen.images.items()}
        image = self._head.names[0]
        told = torch.ones(len(row), dtype=torch.bool, device=row.device)
        return Observed(seen.state[row], cameras, {image: pictures}, {image: told})

    @torch.no_grad()
    def _look(self, pictures: UInt8[np.ndarray, "K H W 3"]) -> Float[np.ndarray, "K P D"]:
        device = self.policy.network.action_scale.device
        return np.asarray(self._encoder.features(torch.from_numpy(pictures).to(device)[:, None])[:, 0].cpu().numpy())

    @property
    def _encoder(self) -> GoalFusionEncoder | GoalVisionEncoder:
        encoder: GoalFusionEncoder | GoalVisionEncoder = self.policy.network.encoder
        return encoder

    @property
    def _head(self) -> DistanceHead:
        head = self.policy.network.distance
        assert head is not None
        return head
