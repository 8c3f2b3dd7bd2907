"""The composed policy's contract: the checked union of its parents'."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from kineflow.contracts import (
    CameraSpec,
    ContractError,
    FeatureSpec,
    FeatureStatistics,
    GoldenPair,
    Interface,
    PolicyContract,
    SamplerSpec,
    interface_differences,
)
from kineflow.policies.compose.timeline import Clock, Timeline, View
from kineflow.policies.provenance import package_versions


def union_interface(names: Sequence[str], contracts: Sequence[PolicyContract], timeline: Timeline) -> Interface:
    """Every feature and camera that a parent needs, at the common rate, and the action that all share.

    Raises:
        ContractError: one name with two meanings, or actions of other names, units, frames or limits.
    """
    features: dict[str, FeatureSpec] = {}
    cameras: dict[str, CameraSpec] = {}
    owner: dict[str, str] = {}
    action = _at_rate(contracts[0].interface.action, timeline.tracks[0].every)
    for name, contract, track in zip(names, contracts, timeline.tracks):
        offered = contract.interface
        mine = {key: _at_rate(spec, track.every) for key, spec in offered.features.items()}
        frames = {key: replace(camera, rate_hz=camera.rate_hz * track.every) for key, camera in offered.cameras.items()}
        known = Interface(
            {k: v for k, v in features.items() if k in mine}, action, {k: v for k, v in cameras.items() if k in frames}
        )
        problems = list(interface_differences(known, Interface(mine, _at_rate(offered.action, track.every), frames)))
        if problems:
            others = sorted({owner[k] for k in (*known.features, *known.cameras)} or {names[0]})
            raise ContractError(
                f"'{name}' cannot be composed with '{', '.join(others)}' (the policy below; 'here' is '{name}'):\n  "
                + "\n  ".join(problems)
            )
        for key in (*mine, *frames):
            owner.setdefault(key, name)
        features |= {k: v for k, v in mine.items() if k not in features}
        cameras |= {k: v for k, v in frames.items() if k not in cameras}
    return Interface(features, action, cameras)


def views(union: Interface, contracts: Sequence[PolicyContract], timeline: Timeline) -> tuple[View, ...]:
    """What each parent sees: its features side by side in its own order."""
    first, place = 0, {}
    for name, spec in union.features.items():
        place[name] = range(first, first + spec.vector.size)
        first += spec.vector.size
    return tuple(
        View(track.history, tuple(i for f in c.interface.features for i in place[f]), tuple(c.interface.cameras))
        for c, track in zip(contracts, timeline.tracks)
    )


def union_contract(
    contracts: Sequence[PolicyContract], interface: Interface, timeline: Timeline, sampler: SamplerSpec, golden: GoldenPair
) -> PolicyContract:
    """Statistics of a feature are the first parent's that has it; each parent keeps its own inside its folder."""
    statistics: dict[str, FeatureStatistics] = {}
    for contract in contracts:
        wanted = {k: v for k, v in contract.statistics.items() if k in interface.features or k == "action"}
        statistics |= {k: v for k, v in wanted.items() if k not in statistics}
    hashes = sorted({contract.dataset_hash for contract in contracts})
    joined = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return PolicyContract(interface, timeline.horizons, sampler, statistics, joined, package_versions(), golden)


def clocks(names: Sequence[str], contracts: Sequence[PolicyContract]) -> list[Clock]:
    return [Clock(n, c.interface.action.rate_hz, c.horizons) for n, c in zip(names, contracts)]


def _at_rate(spec: FeatureSpec, every: int) -> FeatureSpec:
    return replace(spec, rate_hz=spec.rate_hz * every)
