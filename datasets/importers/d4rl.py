"""Import D4RL HDF5: `observations`, `actions`, `rewards`, `terminals`, `timeouts`, `infos/*`, all episodes in one piece [N, ...].

Format: Farama-Foundation/D4RL, d4rl/offline_env.py. An episode ends where `terminals` or `timeouts` is set; older files have no
`timeouts`, so that an episode which a time limit ended cannot be told from the next one: that is said, not guessed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.hdf5 import leaves, opened
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

DEFAULT_RATE_HZ = 10.0
_STREAMS = {"actions": "action", "observations": "observation", "rewards": "reward"}
_WHY = {
    "terminals": "says where an episode ends, which its length does",
    "timeouts": "says where an episode ends, which its length does",
    "next_observations": "the observation one step later, which the next step has",
}


class OfflineRuns:
    """A `Source`; the end of the file ends the last episode."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path, self._rate = path, options.rate_hz or DEFAULT_RATE_HZ
        self._stated = options.rate_hz is not None
        with opened(path) as file:
            found = leaves(file)
            missing = [name for name in ("observations", "actions") if name not in found]
            if missing:
                raise KineflowError(f"{path} has no {' and no '.join(missing)}, only {sorted(found)[:8]}; it is not a D4RL file")
            self._steps = len(found["actions"])
            self._ends, self._how = _ends(found, self._steps, path)
            self._paths, self._dropped = _chosen_arrays(found, self._steps)
            widths = {stream: math.prod(found[name].shape[1:]) for stream, name in self._paths.items()}
            self._dtypes = {stream: str(found[name].dtype) for stream, name in self._paths.items()}
        specs = {name: FeatureSpec(_unknown(width), self._rate) for name, width in widths.items()}
        offered = Interface({n: s for n, s in specs.items() if n != "action"}, specs["action"])
        self._interface = chosen(options.schema, offered, str(path))
        self._dropped |= not_chosen(self._interface, offered)

    @property
    def facts(self) -> Facts:
        used = [*self._interface.features, "action"]
        carried = {name: f"{self._paths[name]} {self._dtypes[name]}" for name in used}
        assumed = "as stated" if self._stated else "assumed"
        lost = {
            "units": "D4RL has no units or names of dimensions: 'unknown', unless a schema says them",
            "clock": f"there are no time stamps: nominal ones at {self._rate:g} Hz, {assumed}",
            "success": "a terminal step may be a success or a failure: not told",
            **({"episodes": self._how} if self._how else {}),
        }
        lost |= {f"digits of {self._paths[n]}": "float64, stored as float32" for n in used if self._dtypes[n] == "float64"}
        provenance = f"{self._path.name} (D4RL)"
        return Facts(self._interface, nominal(self._rate), provenance, carried, {**self._dropped, **lost})

    def __len__(self) -> int:
        return len(self._ends)

    def episode(self, index: int) -> Episode:
        start, end = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        stamp_ns = nominal_ns(end - start, self._rate)
        with opened(self._path) as file:
            streams = {
                name: Stream(np.asarray(file[self._paths[name]][start:end]).reshape(end - start, -1), stamp_ns)
                for name in [*self._interface.features, "action"]
            }
        return Episode(streams, source=f"{self._path.name}#{index}", clock=nominal(self._rate))


def open_d4rl(path: Path, options: ImportOptions) -> OfflineRuns:
    """Open the D4RL file at `path`; `options.rate_hz` says the control rate, 10 Hz where it is not given.

    Raises:
        KineflowError: not such a file, damaged, arrays of different lengths, or a schema that does not fit.
    """
    return OfflineRuns(path, options)


def _unknown(width: int) -> Any:
    return unbounded(tuple(f"dim_{i}" for i in range(width)), "unknown", "unknown")


def _ends(found: dict[str, Any], steps: int, path: Path) -> tuple[Int64[np.ndarray, "E"], str]:
    """Exclusive end of each episode, and what is not certain about them."""
    marked = np.zeros(steps, np.bool_)
    for name in ("terminals", "timeouts"):
        if name in found:
            flags = np.asarray(found[name][()]).reshape(-1)
            if len(flags) != steps:
                raise KineflowError(f"{path}: {name} has {len(flags)} rows, actions have {steps}; the file is not whole")
            marked |= flags.astype(np.bool_)
    if steps == 0:
        raise KineflowError(f"{path} has no steps")
    doubts = []
    if "timeouts" not in found:
        doubts.append("there are no timeouts: episodes that a time limit ended are joined with the next one")
    if not marked[-1]:
        doubts.append("the last episode is cut off by the end of the file")
        marked[-1] = True
    return (np.flatnonzero(marked) + 1).astype(np.int64), "; ".join(doubts)


def _chosen_arrays(found: dict[str, Any], steps: int) -> tuple[dict[str, str], dict[str, str]]:
    """Stream -> array, and the arrays that are not carried."""
    paths, dropped = {}, {}
    for name, item in found.items():
        if name in _WHY:
            dropped[name] = _WHY[name]
        elif name in _STREAMS:
            paths[_STREAMS[name]] = name
        elif not name.startswith("infos/") or item.dtype.kind not in "fiub":
            dropped[name] = "not among the arrays of a step" if item.dtype.kind in "fiub" else f"{item.dtype} values"
        elif item.shape[:1] != (steps,) or not math.prod(item.shape[1:]):
            dropped[name] = f"{list(item.shape)} is not one row for each of the {steps} steps"
        else:
            paths[name.replace("/", "_")] = name
    return paths, dropped
