"""PushT: push the grey T onto the green one. gym-pusht's physics behind the project's interface.

Seeds give gym-pusht's own starts, so results compare with published ones. A given `state` is set exactly: the block's
angle first, then its position, because turning a body about its centre of mass moves its origin. gym-pusht's
`reset_to_state` does it the other way round (kept there for compatibility) and does not reproduce recorded episodes.

The control loop and the coverage are our own: the same numbers (tests compare them step by step), three times as fast,
and deterministic to the last bit. gym-pusht sums areas in the order of a Python set, which changes with memory addresses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import shapely
from jaxtyping import Float, UInt8

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError, VectorSpec
from kineflow.envs.pusht_drawing import GOAL_POSE, draw_board, tee_corners

if TYPE_CHECKING:
    from gym_pusht.envs.pusht import PushTEnv

MAX_STEPS = 300
CONTROL_HZ = 10.0
PHYSICS_DT_S = 0.01
STIFFNESS, DAMPING = 100.0, 20.0  # of the agent's position controller, 1/s^2 and 1/s
SUCCESS_COVERAGE = 0.95

_GOAL = shapely.polygons(np.stack(tee_corners(GOAL_POSE)))
_GOAL_AREA = float(shapely.area(_GOAL).sum())

PushTObservation = dict[str, Any]


class PushT(gymnasium.Env[PushTObservation, np.ndarray]):
    """PushT at 10 Hz with `interfaces/pusht` as its interface.

    Observation: `{"state": float32 [5]}` = agent x, y, block x, y (px), block angle (rad, in [0, 2 pi)), plus
    `"top": uint8 [96, 96, 3]` when `cameras=("top",)`, the picture that the demonstrations recorded.
    Action: float32 [2], the agent's target x, y on the board (px, 0..512).
    Reward: coverage / 0.95 clipped at 1. Terminated at coverage > 0.95, truncated after 300 steps.
    Info: `coverage` (share of the goal that the block covers, 0..1), `is_success`, `n_contacts`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's type)

    def __init__(self, cameras: tuple[str, ...] = (), render_mode: str | None = None, max_steps: int = MAX_STEPS) -> None:
        self.interface = load_config(Interface, "interfaces/pusht")
        self.cameras = cameras
        self.render_mode = render_mode
        self.max_steps = max_steps
        unknown = sorted(set(cameras) - set(self.interface.cameras))
        if unknown:
            raise KineflowError(f"PushT has no camera {unknown}; it offers {sorted(self.interface.cameras)}")
        self._simulator = _make_simulator()
        self._steps = 0
        self.observation_space: gymnasium.spaces.Dict[Any] = gymnasium.spaces.Dict(self._spaces())
        self.action_space = _box(self.interface.action.vector)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[PushTObservation, dict[str, Any]]:
        """Start from `options={"state": [5]}` exactly as recorded, else from a random state drawn with `seed`.

        Raises:
            KineflowError: `options` holds something else, or a state that is not five finite numbers.
        """
        super().reset(seed=seed)
        self._simulator.np_random = self.np_random
        self._simulator.reset()
        self._steps = 0
        if options:
            self._set_state(_start_state(options))
        return self._observation(), {"coverage": self.coverage, "is_success": False, "n_contacts": 0}

    def step(self, action: Float[np.ndarray, "2"]) -> tuple[PushTObservation, float, bool, bool, dict[str, Any]]:
        """Drive the agent towards `action` for 0.1 s."""
        simulator = self._simulator
        simulator.n_contact_points = 0
        self._drive(float(action[0]), float(action[1]))
        self._steps += 1
        coverage = self.coverage
        is_success = coverage > SUCCESS_COVERAGE
        info = {"coverage": coverage, "is_success": is_success, "n_contacts": simulator._get_info()["n_contacts"]}
        return self._observation(), min(coverage / SUCCESS_COVERAGE, 1.0), is_success, self._steps >= self.max_steps, info

    @property
    def coverage(self) -> float:
        """Share of the goal that the block covers, 0..1."""
        block = self._simulator.block
        corners = np.stack(tee_corners((*block.position, block.angle)))
        # The T's two rectangles do not overlap, so the four areas of overlap add up.
        overlaps = shapely.intersection(_GOAL[:, None], shapely.polygons(corners)[None])
        return float(shapely.area(overlaps).sum()) / _GOAL_AREA

    @property
    def state(self) -> Float[np.ndarray, "5"]:
        """Agent x, y, block x, y (px), block angle (rad, in [0, 2 pi)), float32."""
        return np.asarray(self._simulator.get_obs(), dtype=np.float32)

    def frame(
        self, size: int, plans: Float[np.ndarray, "N H 2"] | None = None, target: Float[np.ndarray, "2"] | None = None
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Anti-aliased RGB picture of the board, with N action chunks fanned out over it and the current action marked."""
        return draw_board(self.state, size, plans=plans, target=target)

    def render(self) -> UInt8[np.ndarray, "512 512 3"] | None:
        """The board at 512 pixels when `render_mode="rgb_array"`."""
        return self.frame(512) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._simulator.close()

    def _drive(self, x: float, y: float) -> None:
        agent, space = self._simulator.agent, self._simulator.space
        for _ in range(round(1 / (CONTROL_HZ * PHYSICS_DT_S))):
            position, velocity = agent.position, agent.velocity
            agent.velocity = (
                velocity.x + (STIFFNESS * (x - position.x) + DAMPING * (0 - velocity.x)) * PHYSICS_DT_S,
                velocity.y + (STIFFNESS * (y - position.y) + DAMPING * (0 - velocity.y)) * PHYSICS_DT_S,
            )
            space.step(PHYSICS_DT_S)

    def _spaces(self) -> dict[str, gymnasium.Space[Any]]:
        spaces: dict[str, gymnasium.Space[Any]] = {"state": _box(self.interface.features["state"].vector)}
        for name in self.cameras:
            camera = self.interface.cameras[name]
            spaces[name] = gymnasium.spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
        return spaces

    def _observation(self) -> PushTObservation:
        observation = {"state": self.state}
        for name in self.cameras:
            camera = self.interface.cameras[name]
            # The policy's camera is the recorded one, aliasing and all; `frame` is for people.
            observation[name] = self._simulator._get_img(self._simulator._draw(), camera.width, camera.height)
        return observation

    def _set_state(self, state: Float[np.ndarray, "5"]) -> None:
        simulator = self._simulator
        simulator._setup()
        simulator.agent.position = state[:2].tolist()
        simulator.block.angle = float(state[4])
        simulator.block.position = state[2:4].tolist()
        simulator.space.step(PHYSICS_DT_S)  # resolve contacts, as the recording did


def _box(vector: VectorSpec) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(np.array(vector.low, dtype=np.float32), np.array(vector.high, dtype=np.float32))


def _make_simulator() -> PushTEnv:
    # pygame greets on stdout and opens a display unless told otherwise before its import; an existing choice is kept.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise KineflowError(f"PushT needs gym-pusht ({error}); install it with `pip install 'kineflow[sim]'`") from error
    return PushTEnv(obs_type="state", render_mode="rgb_array")


def _start_state(options: Mapping[str, Any]) -> Float[np.ndarray, "5"]:
    if set(options) != {"state"}:
        raise KineflowError(f"PushT.reset knows the option 'state' only, got {sorted(options)}")
    state = np.asarray(options["state"], dtype=np.float64)
    if state.shape != (5,) or not np.isfinite(state).all():
        raise KineflowError(f"PushT.reset: 'state' must be 5 finite numbers (agent x, y, block x, y, angle), got {state}")
    return state
