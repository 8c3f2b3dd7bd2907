"""The control loop in simulation: many environments, one batched policy call per round, results independent of batching.

    slot 0  |observe| predict |a a a a a a a a|observe| predict |a a a done -> next seed|observe| ...
    slot 1  |observe|   one   |a a a a a a a a|observe|   one   |a a a a a a a a       |observe| ...
    slot 2  |observe|  call   |a a done -> next|observe|  call  |a a a a a a a a       |observe| ...

A slot whose episode ends takes the next seed at once and joins the next call: nobody waits for the slowest episode.

Why a seed gives bit-identical results with 1, 7 or 20 environments:
- noise: row seed = f(episode seed, index of the chunk in its episode), nothing else;
- arithmetic: every call has the same padded shape, and an episode sits in row `seed % batch` of it. Padding alone is not
  enough: kernels round rows at the edge of a tile differently (of 640 rows of a 37-129-77-5 MLP in a batch of 32, 478
  changed when moved to another row, none when only its neighbours changed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kineflow.contracts import KineflowError, Observation, Policy, SamplingRequest
from kineflow.policies.noise_seed import noise_seed as noise_seed
from kineflow.policies.running_episode import Environment, EpisodeResult, GoalEnvironment, RunningEpisode
from kineflow.policies.told import Told


class Rollout:
    """Runs a policy in `num_envs` environments; `batch` rows per policy call, always."""

    def __init__(
        self,
        policy: Policy,
        make_env: Callable[[], Environment],
        num_envs: int,
        batch: int = 32,
        tell: Callable[[GoalEnvironment], Told] | None = None,
    ) -> None:
        """`tell`: what a policy with goals is told in an environment that has just been reset."""
        if min(num_envs, batch) < 1:
            raise KineflowError(f"a rollout needs num_envs >= 1 and batch >= 1, got {num_envs} and {batch}")
        if hasattr(policy, "reset"):
            raise KineflowError(
                f"a {type(policy).__name__} remembers what it was asked before, but episodes here share the rows of a call; "
                "evaluate the policy that it wraps"
            )
        self.policy, self.batch, self.tell = policy, batch, tell
        self.envs = [make_env() for _ in range(num_envs)]
        self.call_s: list[float] = []  # wall time of every policy call so far
        policy.contract.require(self.envs[0].interface, f"environment {type(self.envs[0]).__name__}")

    def run(self, seeds: Sequence[int]) -> Iterator[EpisodeResult]:
        """Yield each seed's result as its episode ends (not in order of seeds).

        Raises:
            KineflowError: the policy returned NaN or a chunk of the wrong shape; names episode and step.
        """
        queue = list(seeds)
        idle, slots = list(self.envs), list[RunningEpisode]()
        while queue or slots:
            while queue and idle:
                rows_taken = {slot.seed % self.batch for slot in slots}
                # Prefer a seed whose row is free: then everyone fits into one call.
                pick = next((i for i, seed in enumerate(queue) if seed % self.batch not in rows_taken), 0)
                slots.append(RunningEpisode(idle.pop(), queue.pop(pick), self.policy.contract, self.tell))
            for group in _distinct_rows(slots, self.batch):
                self._act(group)
            for slot in [slot for slot in slots if slot.done]:
                slots.remove(slot)
                idle.append(slot.env)
                yield slot.result()

    def _act(self, slots: Sequence[RunningEpisode]) -> None:
        """One padded policy call for slots in distinct rows; each then executes its chunk."""
        rows: list[RunningEpisode] = [slots[0]] * self.batch
        for slot in slots:
            rows[slot.seed % self.batch] = slot
        request = SamplingRequest(seeds=np.array([noise_seed(s.seed, len(s.chunks)) for s in rows], dtype=np.int64))
        started = time.perf_counter()
        chunk = self.policy.predict(stack_observations([slot.observation() for slot in rows]), request)
        self.call_s.append(time.perf_counter() - started)
        contract = self.policy.contract
        expected = (self.batch, contract.horizons.prediction, contract.interface.action.vector.size)
        for slot in slots:
            where = f"policy at episode seed {slot.seed}, step {len(slot.actions)}"
            if chunk.actions.shape != expected:
                raise KineflowError(f"{where}: returned actions {chunk.actions.shape}, its contract says {expected}")
            actions = chunk.actions[slot.seed % self.batch]
            if not np.isfinite(actions).all():
                bad = int(np.flatnonzero(~np.isfinite(actions).all(axis=-1))[0])
                raise KineflowError(
                    f"{where}: action {bad} of the chunk is {actions[bad]}; the weights have diverged, use an earlier checkpoint"
                )
            slot.hear(chunk, slot.seed % self.batch)
            slot.execute(actions, self.call_s[-1])


def _distinct_rows(slots: Sequence[RunningEpisode], batch: int) -> list[list[RunningEpisode]]:
    """Split slots into groups that fit one call each: no two share a row."""
    groups: list[dict[int, RunningEpisode]] = []
    for slot in slots:
        row = slot.seed % batch
        group = next((g for g in groups if row not in g), None)
        if group is None:
            groups.append(group := {})
        group[row] = slot
    return [list(group.values()) for group in groups]


def stack_observations(rows: Sequence[Observation]) -> Observation:
    """Single observations `[T, ...]` to one batch `[B, T, ...]`."""
    images = {name: np.stack([row.images[name] for row in rows]) for name in rows[0].images}
    goal = {name: np.stack([row.goal[name] for row in rows]) for name in rows[0].goal}
    words = tuple(text for row in rows for text in row.instruction)
    return Observation(np.stack([row.state for row in rows]), np.stack([row.stamp_s for row in rows]), images, goal, words)
