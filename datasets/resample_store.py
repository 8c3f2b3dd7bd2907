"""A store in which every stream has the same clock, made from one in which each has its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import sync
from kineflow.datasets.resample import Resample, resample_episode, resampled_interface
from kineflow.datasets.staged import staged_beside

EPISODES_PER_COMMIT = 64


@dataclass(frozen=True)
class ResampleReport:
    """`episodes` counts the pieces in the new store; `dropped` the steps that no sample was near enough to, by stream;
    `encoded_again` names cameras whose frames were JPEG of our own encoding, and so went through JPEG twice."""

    source: str
    destination: str
    rate_hz: float
    rules: Mapping[str, Resample]
    episodes_read: int
    episodes: int
    steps: int
    dropped: Mapping[str, int]
    encoded_again: tuple[str, ...]


def parse_rule(text: str) -> tuple[str, Resample]:
    """`front=nearest:0.05` or `pose=slerp:0.1:3` (rule, longest gap in seconds, column of qx); KineflowError otherwise."""
    name, _, words = text.partition("=")
    parts = words.split(":")
    try:
        rule, gap, *column = parts
        if not name or rule not in ("nearest", "hold", "linear", "slerp") or len(column) > 1:
            raise ValueError
        return name, Resample(rule, float(gap), int(column[0]) if column else -1)  # type: ignore[arg-type]
    except ValueError:
        raise KineflowError(
            f"'{text}' is no resampling rule; write NAME=RULE:SECONDS, for example front=nearest:0.05, action=hold:0.2, "
            "pose=slerp:0.1:3 (rules: nearest, hold, linear, slerp with the column of qx; NAME * is for all others)"
        ) from None


def resample_store(
    source: EpisodeStore,
    destination: Path,
    rate_hz: float,
    rules: Mapping[str, Resample],
    progress: Callable[[int, int], None] | None = None,
) -> ResampleReport:
    """Write `source` at `rate_hz` to a new store; the rule named `*` holds for streams without one of their own.

    Raises:
        KineflowError: something exists at `destination`, a rule for a stream that is not there, a stream without a rule, or no
            step is left.
    """
    destination = Path(destination)
    if destination.exists():
        raise KineflowError(f"{destination} exists already; choose another destination or remove it")
    names = [*source.interface.features, "action", *source.interface.cameras]
    unknown = sorted(set(rules) - {*names, "*"})
    if unknown:
        raise KineflowError(f"{source.path}: rules for {unknown}, but its streams are {sorted(names)}; correct the names")
    chosen = {name: rules.get(name, rules.get("*")) for name in names}
    found = {name: rule for name, rule in chosen.items() if rule is not None}
    dropped: Counter[str] = Counter()
    with staged_beside(destination, "resampling") as staged:
        old = source.manifest
        provenance = f"{old.provenance} (resampled to {rate_hz:g} Hz)".strip()
        interface, clock = resampled_interface(source.interface, rate_hz), f"resampled_{rate_hz:g}hz"
        new = EpisodeStore.create(staged / "store", interface, clock, provenance, old.licence, old.cameras)
        with new.writer(EPISODES_PER_COMMIT) as writer:
            for index in range(source.num_episodes):
                episode = replace(source.episode(index), jpeg=_source_jpegs(source, index))
                result = resample_episode(episode, rate_hz, found)
                dropped.update(result.dropped)
                for piece in result.pieces:
                    writer.add(piece)
                if progress is not None:
                    progress(index + 1, source.num_episodes)
        if new.num_episodes == 0:
            raise KineflowError(
                f"{source.path}: no two steps in a row have every stream near enough ({dict(dropped)}); widen the gaps"
            )
        steps, again = (
            int(new.lengths.sum()),
            tuple(name for name in interface.cameras if _lossy(source, name) and _lossy(new, name)),
        )
        new.path.rename(destination)
    sync(destination.parent)
    where = (str(source.path), str(destination), rate_hz, found)
    return ResampleReport(*where, source.num_episodes, new.num_episodes, steps, dict(dropped), again)


def _source_jpegs(store: EpisodeStore, index: int) -> dict[str, list[bytes]]:
    """The frames of each camera that are stored as its own JPEG bytes: they are picked, not encoded again."""
    rgb = [name for name, camera in store.interface.cameras.items() if camera.kind == "rgb" and not _lossy(store, name)]
    return {name: payloads for name in rgb if (payloads := store.jpegs(index, name)) is not None}


def _lossy(store: EpisodeStore, camera: str) -> bool:
    return any(segment.frame_array(camera).codec.lossy for segment in store.segments)
