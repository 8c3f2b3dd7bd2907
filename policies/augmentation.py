"""Exact symmetries of a task as data augmentation: twice the demonstrations for nothing, when the symmetry truly holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kineflow.contracts import ContractError, VectorSpec, Window

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AffineSymmetry:
    """State `s -> M s + m`, action `a -> N a + n`, applied to a random half of each batch; angles wrap to [0, 2 pi).

    The state is that of the policy's features side by side. Whoever writes the matrices vouches that the task, its goal
    included, is unchanged by them.
    """

    state_matrix: Matrix
    state_offset: tuple[float, ...]
    action_matrix: Matrix
    action_offset: tuple[float, ...]
    angles: tuple[int, ...] = ()
    probability: float = 0.5

    def check(self, state: VectorSpec, action: VectorSpec) -> None:
        """Raise ContractError unless the matrices have the sizes of the state and the action."""
        for name, matrix, offset, spec in (
            ("state", self.state_matrix, self.state_offset, state),
            ("action", self.action_matrix, self.action_offset, action),
        ):
            if np.shape(matrix) != (spec.size, spec.size) or len(offset) != spec.size:
                raise ContractError(
                    f"symmetry.{name}_matrix has shape {np.shape(matrix)}, the {name} has {spec.size} dimensions {spec.names}"
                )

    def __call__(self, window: Window, rng: np.random.Generator) -> Window:
        chosen = rng.random(len(window.state)) < self.probability
        state, action = window.state.copy(), window.action.copy()
        state[chosen] = self.state(state[chosen])
        action[chosen] = action[chosen] @ np.asarray(self.action_matrix, np.float32).T + np.asarray(
            self.action_offset, np.float32
        )
        return replace(window, state=state, action=action)

    def state(self, state: np.ndarray) -> np.ndarray:
        """`[..., S]` to its image."""
        image: np.ndarray = state @ np.asarray(self.state_matrix, np.float32).T + np.asarray(self.state_offset, np.float32)
        image[..., list(self.angles)] %= 2 * np.pi
        return image
