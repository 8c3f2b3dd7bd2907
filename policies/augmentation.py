"""Exact symmetries of a task as data augmentation: twice the demonstrations for nothing, when the symmetry truly holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kineflow.contracts import CameraSpec, ContractError, VectorSpec, Window

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
    # What it does to every camera: anti_transpose swaps the image over its anti-diagonal, (x, y) -> (size - y, size - x).
    images: Literal["unknown", "anti_transpose"] = "unknown"
    probability: float = 0.5

    def check(self, state: VectorSpec, action: VectorSpec, cameras: Mapping[str, CameraSpec]) -> None:
        """Raise ContractError unless the matrices have the sizes of the state and the action, and images have an image."""
        for name, camera in cameras.items():
            if self.images == "unknown" or camera.height != camera.width:
                raise ContractError(
                    f"symmetry.images is '{self.images}' and camera '{name}' is {camera.height} x {camera.width}; "
                    "say what the symmetry does to square images, or leave the symmetry out"
                )
        for name, matrix, offset, spec in (
            ("state", self.state_matrix, self.state_offset, state),
            ("action", self.action_matrix, self.action_offset, action),
        ):
            expected: tuple[int, ...] = (spec.size, spec.size) if spec.size else (0,)  # an empty matrix has one axis
            if np.shape(matrix) != expected or len(offset) != spec.size:
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
        images = {name: frames.copy() for name, frames in window.images.items()}
        for frames in images.values():
            frames[chosen] = frames[chosen][:, :, ::-1, ::-1].swapaxes(2, 3)
        return replace(window, state=state, action=action, images=images)

    def state(self, state: np.ndarray) -> np.ndarray:
        """`[..., S]` to its image."""
        if state.shape[-1] == 0:
            return state
        image: np.ndarray = state @ np.asarray(self.state_matrix, np.float32).T + np.asarray(self.state_offset, np.float32)
        image[..., list(self.angles)] %= 2 * np.pi
        return image
