"""A policy that knows distances to pictures, as one that is shown a map: it finds its place there and heads for the next picture.

    camera [B, T frames] --backbone, once--> features --.
    map window [B, N pictures, 1 s apart] --------------+--> encoder [B N rows] --> distances [B, N] --> closest, subgoal
                                                        `--> the subgoals' rows --> head --> ActionChunk [B]

Pure, like every policy: which part of the map it is shown is up to who remembers (policies/told_by_map.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kineflow.contracts import (
    ActionChunk,
    ContractError,
    GoalSpec,
    KineflowError,
    Observation,
    Policy,
    PolicyContract,
    SamplingRequest,
)
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.encoders.goal_fusion import GoalFusionEncoder
from kineflow.policies.observed import Observed, observed
from kineflow.policies.policy import Encoded
from kineflow.policies.temporal_distance import DistanceHead
from kineflow.policies.topological_goal import Following


def knows_distances(policy: Policy) -> bool:
    """Can it be driven along a map by a `SubgoalPolicy`?"""
    return isinstance(policy, ChunkPolicy) and policy.network.distance is not None


@dataclass(frozen=True)
class SubgoalPolicy:
    """`policy` (configs train/navigation_vint, train/navigation_nomad) and how it follows a map."""

    policy: ChunkPolicy
    following: Following = field(default_factory=Following)

    def __post_init__(self) -> None:
        if not knows_distances(self.policy):
            raise KineflowError(
                "this policy predicts no distance to a picture, so it cannot find its place among them; train one with "
                "policy.distance, or show it the video itself"
            )

    @property
    def contract(self) -> PolicyContract:
        """That of the policy, but its goal video is a window of the map."""
        contract, (_, video) = self.policy.contract, self._head.names
        spec = replace(contract.interface.goals[video], frames=self.following.window, rate_hz=1 / self.following.spacing_s)
        return replace(contract, interface=replace(contract.interface, goals={**contract.interface.goals, video: spec}))

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """As the policy, towards the closest of the goal's pictures, or the one after it where that is close.

        Goals are pictures, or float features of the policy's backbone `[B, N, P, D]`; an image is the window's only picture. Of
        the answer `ahead_s` says where in the window the closest picture is, `distance` how many steps it is away.

        Raises:
            ContractError: as the policy; another number of pictures than the window has; or an image and a video at once.
        """
        network, rows = self.policy.network, len(observation.state)
        if not observation.goal:
            return self.policy.predict(observation, request)  # explores, or refuses
        if len(request.seeds) != rows:
            raise ContractError(f"{len(request.seeds)} seeds for {rows} observations; give one seed per row")
        pictures = self._pictures(observation.goal, rows)
        bare, device = replace(observation, goal={}), network.action_scale.device
        seen = observed(bare, network.interface, network.config.horizons, device, needs_goal=False)
        count = pictures.shape[1]
        condition = self._encoder(self._questions(seen, pictures.flatten(0, 1), count))
        distances = self._head(condition).float().cpu().numpy().reshape(rows, count)
        closest, subgoal = self.following.chosen(distances)
        chosen = torch.from_numpy(np.arange(rows) * count + subgoal).to(device)
        chunk = network.answer(Encoded(condition[chosen], network.units(seen)), observation.stamp_s, request)
        ahead_s = (self.following.spacing_s * closest).astype(np.float32)
        return replace(chunk, ahead_s=ahead_s, distance=distances.min(axis=1))

    def _pictures(self, goal: Mapping[str, np.ndarray], rows: int) -> Tensor:
        """Features of what is to be reached `[B, N, P, D]`."""
        image, video = self._head.names
        if len(goal) != 1 or not set(goal) <= {image, video}:
            raise ContractError(f"goals {sorted(goal)}; on a map give '{video}' or '{image}', one of them")
        name, value = next(iter(goal.items()))
        shown = value if name == video else value[:, None]
        spec: GoalSpec = self.contract.interface.goals[name]
        pictures, features = (spec.height, spec.width, 3), (self._encoder.frames.tokens, self._encoder.frames.dim)
        expected = pictures if value.dtype == np.uint8 else features
        if shown.shape != (rows, max(spec.frames, 1), *expected):
            raise ContractError(
                f"observation.goal['{name}'] is {value.dtype} {value.shape}; a map needs {max(spec.frames, 1)} pictures "
                f"{pictures} or features {features} for each of {rows} rows"
            )
        return self._encoder.features(torch.from_numpy(np.ascontiguousarray(shown)).to(self.policy.network.action_scale.device))

    def _questions(self, seen: Observed, pictures: Tensor, count: int) -> Observed:
        """Each of `pictures` for the row that asks; the camera's frames are looked at once, to features as training saw them."""
        cameras = {n: self._encoder.features(frames).half().repeat_interleave(count, 0) for n, frames in seen.images.items()}
        image, told = self._head.names[0], torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
        return Observed(seen.state.repeat_interleave(count, 0), cameras, {image: pictures}, {image: told})

    @property
    def _encoder(self) -> GoalFusionEncoder | GoalVisionEncoder:
        encoder = self.policy.network.encoder
        assert isinstance(encoder, GoalFusionEncoder | GoalVisionEncoder)  # no other takes goals
        return encoder

    @property
    def _head(self) -> DistanceHead:
        head = self.policy.network.distance
        assert head is not None
        return head
