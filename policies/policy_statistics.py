"""Statistics and layout of what the network sees, from what the store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from kineflow.contracts import ContractError, FeatureStatistics, GoalSpec, Interface, VectorSpec
from kineflow.policies.encoders.state import StateFeatures


def state_spec(interface: Interface, features: tuple[str, ...]) -> VectorSpec:
    """The named features side by side, as the state the policy sees."""
    if missing := [f for f in features if f not in interface.features]:
        raise ContractError(
            f"feature '{missing[0]}' is not offered; there are {sorted(interface.features)}: correct policy.features"
        )
    vectors = [interface.features[f].vector for f in features]
    joined = [
        tuple(v for vector in vectors for v in getattr(vector, name)) for name in ("names", "units", "low", "high", "max_rate")
    ]
    frame = vectors[0].frame if vectors else ""  # a policy that only sees images has an empty state
    return VectorSpec(joined[0], joined[1], frame, *joined[2:])


def narrowed(
    offered: Interface, features: tuple[str, ...], cameras: tuple[str, ...], goals: Mapping[str, GoalSpec] | None = None
) -> Interface:
    """What a policy takes of what is offered: this, not the offer, is what a robot must provide."""
    state_spec(offered, features)
    if missing := [c for c in cameras if c not in offered.cameras]:
        raise ContractError(f"camera '{missing[0]}' is not offered; there are {sorted(offered.cameras)}: correct policy.cameras")
    chosen = {name: offered.features[name] for name in features}
    return Interface(chosen, offered.action, {name: offered.cameras[name] for name in cameras}, goals or {})


def joined_statistics(statistics: Mapping[str, FeatureStatistics], features: tuple[str, ...]) -> FeatureStatistics:
    """Those of the named features side by side, in the order of `state_spec`."""
    parts = [required(statistics, f) for f in features]
    joined = [tuple(v for part in parts for v in getattr(part, name)) for name in ("mean", "std", "min", "max", "q01", "q99")]
    return FeatureStatistics(parts[0].count if parts else 0, *joined)


def origin_dimensions(relative_to: Sequence[str], interface: Interface, spec: VectorSpec) -> list[int]:
    """Indices of the state dimensions that the action is measured from; empty for absolute actions."""
    if not relative_to:
        return []
    if unknown := [n for n in relative_to if n not in spec.names]:
        raise ContractError(f"policy.relative_to names {unknown}, but the state has {spec.names}")
    if len(relative_to) != interface.action.vector.size:
        raise ContractError(
            f"policy.relative_to names {len(relative_to)} dimensions, the action has {interface.action.vector.size}"
        )
    return [spec.names.index(n) for n in relative_to]


def required(statistics: Mapping[str, FeatureStatistics], name: str) -> FeatureStatistics:
    """`statistics[name]`, or a ContractError that says what is there."""
    if name not in statistics:
        raise ContractError(
            f"no normalisation statistics for '{name}' (have: {sorted(statistics)}); train again or restore contract.json"
        )
    return statistics[name]


def training_statistics(
    features: StateFeatures | None,
    origin: Sequence[int],
    raw: Mapping[str, FeatureStatistics],
    state: Float[np.ndarray, "N T S"],
    action: Float[np.ndarray, "N H A"],
) -> dict[str, FeatureStatistics]:
    """`raw` (per feature, from the store) plus those of what the network sees: encoded features and relative chunks."""
    chunk = action - state[:, -1:, list(origin)] if origin else action
    derived = {"action_chunk": statistics_of(chunk.reshape(len(chunk), -1).astype(np.float64))}
    if features is not None:
        derived["encoded_state"] = statistics_of(features(torch.from_numpy(state).double()).numpy())
    return {**raw, **derived}


def statistics_of(values: Float[np.ndarray, "N D"]) -> FeatureStatistics:
    """Exact statistics of an array in memory, float64."""
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    columns = (values.mean(0), values.std(0), values.min(0), values.max(0), low, high)
    return FeatureStatistics(len(values), *(tuple(float(v) for v in column) for column in columns))
