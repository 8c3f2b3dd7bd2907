"""Values and protocols that cross folders: NumPy only, importable on Python 3.10 without torch.

`Episode -> Window -> TrainingBatch -> loss` and `Observation -> condition -> field -> sampler -> ActionChunk -> robot`
meet here. SI units, radians, REP-103 axes; units that are not SI (pixels) are named (`px`). In values time is float64
seconds (`stamp_s`); on disk it is int64 nanoseconds (`stamp_ns`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

# One import for users: recordings, units, limits and errors come from here too.
from kineflow.episode import (
    Episode as Episode,
    EpisodeStore as EpisodeStore,
    FeatureStatistics as FeatureStatistics,
    Goal as Goal,
    GoalBatch as GoalBatch,
    Span as Span,
    Stream as Stream,
)
from kineflow.interface import (
    CameraSpec as CameraSpec,
    ContractError as ContractError,
    FeatureSpec as FeatureSpec,
    GoalSpec as GoalSpec,
    Interface as Interface,
    KineflowError as KineflowError,
    VectorSpec as VectorSpec,
    interface_differences as interface_differences,
)
from kineflow.plain import to_json as to_json, to_plain as to_plain
from kineflow.sampler_spec import CLOCK as CLOCK, SamplerSpec as SamplerSpec

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Bool, Float, Float16, Int64, UInt8

CONTRACT_VERSION = 1
PrefixMethod = Literal["guided", "exact", "start"]


@dataclass(frozen=True)
class Observation:
    """What the policy sees, over the last `T` observation steps, oldest first. `*B` is any batch shape.

    In place of frames `[..., H, W, 3]`, of images or goals, a policy with a frozen backbone also takes float16 features of them
    `[..., P, D]`: a goal need not be looked at more than once (`kineflow.policies.telling.backbone_of`).
    """

    state: Float[np.ndarray, "*B T S"]
    stamp_s: Float[np.ndarray, "*B T"]
    images: Mapping[str, UInt8[np.ndarray, "*B T H W 3"]] = field(default_factory=dict)
    goal: Mapping[str, np.ndarray] = field(default_factory=dict)  # "image", "pose", "point" or "video" -> array
    instruction: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActionChunk:
    """Actions in physical units, `step_s` apart, answering the observation of `stamp_s`."""

    actions: Float[np.ndarray, "*B H A"]
    step_s: float
    stamp_s: Float[np.ndarray, "*B"]
    stop_probability: Float[np.ndarray, "*B"] | None = None
    ahead_s: Float[np.ndarray, "*B"] | None = None  # of the first frame of the goal video, in seconds of its clip
    distance: Float[np.ndarray, "*B"] | None = None  # predicted steps to the goal picture


@dataclass(frozen=True)
class CommittedPrefix:
    """Actions of the previous chunk that will be executed whatever is sampled now (Real-Time Chunking).

    `method`: "guided" without gradients; "exact" with them, through the network; "start": the first `delay` actions are given,
    for policies that learned it (`FlowMatching.clean_start`).
    """

    actions: Float[np.ndarray, "B H A"]
    soft_mask: Float[np.ndarray, "B H"]  # 1: keep, 0: free
    delay: int  # actions consumed until the new chunk arrives
    method: PrefixMethod = "guided"


@dataclass(frozen=True)
class SamplingRequest:
    """How to sample: one seed per row, so that a row's noise does not depend on who shares its batch.

    `steps` and `guidance_scale` override the contract's values when given.
    """

    seeds: Int64[np.ndarray, "B"]
    steps: int | None = None
    guidance_scale: float | None = None
    prefix: CommittedPrefix | None = None


@dataclass(frozen=True)
class Horizons:
    """Steps observed, predicted and executed: see the diagram in datasets/windows.py."""

    observation: int
    prediction: int
    execution: int

    def __post_init__(self) -> None:
        if min(self.observation, self.prediction, self.execution) < 1 or self.execution > self.prediction:
            raise ContractError(f"horizons need observation >= 1 and 1 <= execution <= prediction, got {self}")


@dataclass(frozen=True)
class GoldenPair:
    """One input and the output it gave when the checkpoint was written: replayed on load to catch silent drift."""

    state: tuple[tuple[float, ...], ...]  # [T, S]
    seed: int
    actions: tuple[tuple[float, ...], ...]  # [H, A]


@dataclass(frozen=True)
class PolicyContract:
    """One JSON file in each checkpoint: what the policy needs, what it emits, and how it was made."""

    interface: Interface
    horizons: Horizons
    sampler: SamplerSpec
    statistics: Mapping[str, FeatureStatistics]
    dataset_hash: str
    versions: Mapping[str, str]
    golden: GoldenPair
    contract_version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        for name in [*self.interface.features, "action"]:
            if name not in self.statistics:
                raise ContractError(
                    f"feature '{name}' is declared but has no normalisation statistics (have: {sorted(self.statistics)}); "
                    "contract.json was edited or is not whole: take the original, or train again"
                )

    def require(self, offered: Interface, where: str) -> None:
        """Raise ContractError unless `offered` provides what this policy needs; `where` names the other side."""
        problems = list(interface_differences(self.interface, offered))
        if problems:
            raise ContractError(f"{where} does not match the policy contract:\n  " + "\n  ".join(problems))


@runtime_checkable
class Policy(Protocol):
    """Pure and batched: the same observation, request and weights give the same chunk; memory lives in wrappers.

    Conformance suite: tests/contracts/policy_suite.py.
    """

    @property
    def contract(self) -> PolicyContract: ...

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """Observation `[B, T, ...]` and seeds `[B]` to an ActionChunk `[B, H, A]` in physical units."""
        ...


@dataclass(frozen=True)
class Window:
    """One batch of training windows, still in physical units."""

    state: Float[np.ndarray, "B T S"]
    action: Float[np.ndarray, "B H A"]
    state_is_pad: Bool[np.ndarray, "B T"]
    action_is_pad: Bool[np.ndarray, "B H"]
    images: Mapping[str, UInt8[np.ndarray, "B T H W 3"] | Float16[np.ndarray, "B T P D"]] = field(default_factory=dict)
    goals: GoalBatch | None = None  # images and goals: frames, or features of a frozen backbone
