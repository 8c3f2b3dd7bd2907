"""What is offered and what is needed: the meaning of each dimension, and every way in which two sides can disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


class KineflowError(Exception):
    """A failure whose message names the thing, the value and the remedy; the command line prints it without a trace."""


class ContractError(KineflowError):
    """Two sides of a border (checkpoint, store, environment, robot) disagree."""


@dataclass(frozen=True)
class VectorSpec:
    """Meaning of each dimension of an action or state vector `[A]`.

    `low`/`high` bound the value (infinite: unbounded); `max_rate` bounds its change per second (infinite: unbounded).
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.max_rate:
            object.__setattr__(self, "max_rate", (math.inf,) * len(self.names))
        for name in ("units", "low", "high", "max_rate"):
            if len(getattr(self, name)) != len(self.names):
                raise ContractError(
                    f"VectorSpec.{name} has {len(getattr(self, name))} entries for {len(self.names)} names {self.names}; "
                    "give one entry per dimension"
                )
        for name, low, high in zip(self.names, self.low, self.high):
            if not low < high:
                raise ContractError(f"VectorSpec dimension '{name}': low {low} is not below high {high}")

    @property
    def size(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class FeatureSpec:
    """One low-dimensional stream: its vector and nominal rate in Hz."""

    vector: VectorSpec
    rate_hz: float


@dataclass(frozen=True)
class CameraSpec:
    """One camera stream: uint8 RGB images `[H, W, 3]`, or uint16 depth `[H, W]` in mm, 0 where nothing was measured."""

    height: int
    width: int
    rate_hz: float
    kind: Literal["rgb", "depth"] = "rgb"

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return (self.height, self.width, 3) if self.kind == "rgb" else (self.height, self.width)


GoalKind = Literal["image", "video", "pose", "point", "instruction"]


@dataclass(frozen=True)
class GoalSpec:
    """One way to say what to reach: uint8 RGB frames `[H, W, 3]` (image) or `[frames, H, W, 3]` at `rate_hz` (video, the part
    of a clip that lies ahead), a pose `[7]`, a point `[3]`, or words."""

    kind: GoalKind
    height: int = 0
    width: int = 0
    frames: int = 0
    rate_hz: float = 0.0

    def __post_init__(self) -> None:
        pictures, video = self.kind in ("image", "video"), self.kind == "video"
        wanted = {"height": pictures, "width": pictures, "frames": video, "rate_hz": video}
        for name, needed in wanted.items():
            value = getattr(self, name)
            if (value > 0) != needed or value < 0:
                raise ContractError(
                    f"GoalSpec of kind {self.kind}: {name} is {value:g}; " + ("it must be positive" if needed else "leave it out")
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one goal's array; of words: none."""
        frame = (self.height, self.width, 3)
        return {"image": frame, "video": (self.frames, *frame), "pose": (7,), "point": (3,), "instruction": ()}[self.kind]


@dataclass(frozen=True)
class Interface:
    """What a store, environment or robot offers, or a policy needs: named features, cameras and the action.

    A policy is told its goal in one or more of the ways in `goals`; whoever offers `goals` can tell it in those ways.
    """

    features: Mapping[str, FeatureSpec]
    action: FeatureSpec
    cameras: Mapping[str, CameraSpec] = field(default_factory=dict)
    goals: Mapping[str, GoalSpec] = field(default_factory=dict)  # not part of a store's schema: there each episode has its own


def interface_differences(needed: Interface, offered: Interface) -> Iterator[str]:
    """One line per mismatch: the field, both values, the remedy. Extra features and cameras on offer are fine."""
    for name, spec in needed.features.items():
        if name not in offered.features:
            yield (
                f"feature '{name}': the policy needs it, offered are {sorted(offered.features)}; "
                "record or map the feature, or train a policy without it"
            )
        else:
            yield from _feature_differences(f"feature '{name}'", spec, offered.features[name])
    for name, camera in needed.cameras.items():
        if name not in offered.cameras:
            yield f"camera '{name}': the policy needs it, offered are {sorted(offered.cameras)}; rename or add the camera"
        elif camera != offered.cameras[name]:
            yield f"camera '{name}': the policy needs {camera}, offered is {offered.cameras[name]}; resize or retrain"
    yield from _goal_differences(needed.goals, offered.goals)
    yield from _feature_differences("action", needed.action, offered.action)


def _goal_differences(needed: Mapping[str, GoalSpec], offered: Mapping[str, GoalSpec]) -> Iterator[str]:
    shared = [name for name in needed if name in offered]
    if needed and not shared:
        yield f"goal: the policy takes one of {sorted(needed)}, offered are {sorted(offered)}; name a goal that both know"
    for name in shared:
        if needed[name] != offered[name]:
            yield f"goal '{name}': the policy takes {needed[name]}, offered is {offered[name]}; make the goal anew or retrain"


def _feature_differences(what: str, needed: FeatureSpec, offered: FeatureSpec) -> Iterator[str]:
    if not math.isclose(needed.rate_hz, offered.rate_hz, rel_tol=1e-6):
        yield (
            f"{what}: rate_hz is {needed.rate_hz:g} in the policy and {offered.rate_hz:g} here; "
            f"resample the data to {needed.rate_hz:g} Hz or train at {offered.rate_hz:g} Hz"
        )
    if needed.vector.size != offered.vector.size:
        yield (
            f"{what}: shape is [{needed.vector.size}] {needed.vector.names} in the policy and "
            f"[{offered.vector.size}] {offered.vector.names} here; use the data it was trained for or retrain"
        )
        return
    for name in ("names", "units", "frame", "low", "high", "max_rate"):
        mine, theirs = getattr(needed.vector, name), getattr(offered.vector, name)
        if mine != theirs:
            yield f"{what}: {name} is {mine} in the policy and {theirs} here; convert the data or retrain the policy"
