"""Streams of a store as arrays in RAM, one row per step of the actions, refused where windows over them would lie.

A stream with a clock of its own is read at the times of the actions by the rule that the user states (datasets/resample.py); rows
where the rule finds nothing are marked, and no window observes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64

from kineflow.contracts import Interface, KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.resample import Resample, resampled

ACTION = "action"


@dataclass(frozen=True)
class Rows:
    """Values of one stream in the rows of the actions [N, ...], and the rows that may be observed [N]."""

    values: np.ndarray
    usable: Bool[np.ndarray, "N"]


def low_dim_stream(store: EpisodeStore, name: str, rules: Mapping[str, Resample]) -> Rows:
    """A feature or the action over all episodes; KineflowError when it is absent, not finite, or has a clock of its own that no
    rule of `rules` brings to that of the actions."""
    if name != ACTION and name not in store.interface.features:
        raise KineflowError(
            f"{store.path}: no feature '{name}'; it has {sorted(store.interface.features)}; choose one of them or import it"
        )
    own_clock = has_own_clock(store, name, rules)
    values = store.low_dim(name)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        ends = np.cumsum(store.stream_lengths(name))
        episode = int(np.searchsorted(ends, bad[0], side="right"))
        step = bad[0] - (ends[episode - 1] if episode else 0)
        raise KineflowError(
            f"{store.path}: '{name}' is not finite in episode {episode}, step {step}; repair or leave out the episode"
        )
    if not own_clock:
        return Rows(values, np.ones(len(values), bool))
    return _at_actions(store, name, values, rules[name])


def has_own_clock(store: EpisodeStore, name: str, rules: Mapping[str, Resample]) -> bool:
    """Whether `name` must be resampled; KineflowError where it must and no rule says how."""
    if not store.has_own_clock(name):
        return False
    if name == ACTION or name not in rules:
        raise KineflowError(
            f"{store.path}: '{name}' has a clock of its own; say how it is read at the times of the actions, for example "
            f"resample: {{{name}: {{rule: hold, max_gap_s: 0.1}}}} (rules: nearest, hold, linear, slerp)"
        )
    return True


def interface_of_windows(store: EpisodeStore, rules: Mapping[str, Resample]) -> Interface:
    """That of `store`, but what a rule reads at the times of the actions comes at their rate."""
    offered = store.interface
    rate_hz, read = offered.action.rate_hz, [name for name in rules if store.has_own_clock(name)]
    return Interface(
        {name: replace(spec, rate_hz=rate_hz) if name in read else spec for name, spec in offered.features.items()},
        offered.action,
        {name: replace(spec, rate_hz=rate_hz) if name in read else spec for name, spec in offered.cameras.items()},
    )


def _at_actions(store: EpisodeStore, name: str, values: Float32[np.ndarray, "M D"], rule: Resample) -> Rows:
    at_ns, stamp_ns = store.stamps(ACTION), store.stamps(name)
    read, usable = np.empty((len(at_ns), values.shape[1]), np.float32), np.empty(len(at_ns), bool)
    for mine, theirs in zip(slices(store.lengths), slices(store.stream_lengths(name)), strict=True):
        read[mine], usable[mine] = resampled(values[theirs], stamp_ns[theirs], at_ns[mine], rule)
    return Rows(read, usable)


def slices(lengths: Int64[np.ndarray, "E"]) -> list[slice]:
    """The rows of each episode, for samples that lie episode after episode."""
    ends = np.cumsum(lengths)
    return [slice(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]
