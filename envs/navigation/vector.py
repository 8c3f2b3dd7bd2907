"""Many navigation environments at once, each in a process of its own: gymnasium's vector API.

Processes, because pictures are drawn by the CPU and MuJoCo binds OpenGL once per process. Observations come through shared
memory. Each environment takes the seeds `seed, seed + 1, ...` that gymnasium gives it, and its results do not depend on the
number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.navigation import Navigation
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.stage import Picture
from kineflow.envs.navigation.tasks import Task


@dataclass(frozen=True)
class MakeNavigation:
    """Makes the environment of these arguments; a value, so that it can be sent to a process."""

    task: Task = field(default_factory=Task)
    embodiment: str = "wheeled"
    picture: Picture = field(default_factory=Picture)
    randomisation: RandomisationRanges | None = None

    def __call__(self) -> Navigation:
        return Navigation(self.task, self.embodiment, picture=self.picture, randomisation=self.randomisation)


def make_vector(make: MakeNavigation, num_envs: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """`num_envs` environments in as many processes; close it when done.

    `call("goal")` gives the goals of all, one after the other. An episode that ends is followed by one of a new seed at the next
    step (gymnasium's autoreset).

    Raises:
        KineflowError: num_envs < 1.
    """
    if num_envs < 1:
        raise KineflowError(f"num_envs is {num_envs}; it must be at least 1")
    # spawn: a forked process would share the parent's OpenGL context, threads and locks.
    return gymnasium.vector.AsyncVectorEnv([make] * num_envs, shared_memory=True, context="spawn")
