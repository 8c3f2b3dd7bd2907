"""Export to robomimic HDF5: `data/demo_<i>/{actions,obs/<stream>,rewards,dones}`, `mask/<split>`; numbers and pixels as they are.

Isaac Lab reads the same file: its handler turns each array of a demo into a tensor, so all of them are numbers, texts as bytes.

What robomimic has no place for (units, clocks, spans, several splits' names) goes beside it: `kineflow/store`,
`kineflow_stamp_ns` and `kineflow_episode`; its own tools ignore these, our importer brings all back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import Episode, KineflowError, to_json
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import Carried, Progress
from kineflow.datasets.importers.robomimic import EPISODE_SIDECAR, SIDECAR, STAMPS
from kineflow.datasets.sidecar import episode_sidecar, left_out, store_sidecar, without_second_loss
from kineflow.extras import require

GYM = 2  # robomimic's number for a gym environment, which is what it takes for one that it does not know
_LOST = {
    "next_obs": "not written: it would double the file; train with load_next_obs=False, as behaviour cloning does",
    "states, model_file": "a store holds no simulator states, so robomimic cannot replay the demos in its simulators",
    "scale of the actions": "robomimic's policies expect actions in -1 .. 1; these keep their physical units",
    "units, limits, spans, clock": f"kept in {SIDECAR}, {STAMPS} and {EPISODE_SIDECAR}, which only we read",
}


def export_robomimic(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """Write one HDF5 file.

    Raises:
        KineflowError: a stream has a clock of its own: robomimic has one row for each action.
    """
    h5py = require("h5py", "to write HDF5")
    interface = store.interface
    streams = [*interface.features, *interface.cameras]
    own = [name for name in streams if store.has_own_clock(name)]
    if own:
        raise KineflowError(
            f"{store.path}: {', '.join(own)} have clocks of their own, robomimic has one row for each action; resample the store "
            "to one clock first, or export to MCAP"
        )
    lost, splits = dict(_LOST), dict[str, list[str]]()
    for name in (n for n in interface.cameras if any(s.frame_array(n).codec.name == "jpeg" for s in store.segments)):
        lost[f"JPEG bytes of {name}"] = "the frames are decoded; an import keeps these frames lossless"
    with h5py.File(destination, "w") as file:
        data = file.create_group("data")
        for number in range(store.num_episodes):
            episode, name = store.episode(number), f"demo_{number}"
            _write_demo(data.create_group(name), episode, streams)
            lost |= left_out(episode)
            if episode.split:
                splits.setdefault({"validation": "valid"}.get(episode.split, episode.split), []).append(name)
            progress(number + 1, store.num_episodes)
        data.attrs["total"] = int(store.lengths.sum())
        environment = {"env_name": "kineflow", "type": GYM, "env_kwargs": {"control_freq": interface.action.rate_hz}}
        data.attrs["env_args"] = json.dumps(environment)
        for split, members in splits.items():
            file[f"mask/{split.replace('/', '_')}"] = np.array(members, "S")
        file[SIDECAR] = to_json(store_sidecar(without_second_loss(store, keeps_jpeg=False)))
    carried = {name: "rewards" if name == "reward" else f"obs/{name}" for name in streams}
    return Carried({"action": "actions", **carried}, lost)


def _write_demo(demo: Any, episode: Episode, streams: list[str]) -> None:
    action = episode.streams["action"]
    demo.attrs["num_samples"] = len(action.stamp_ns)
    demo["actions"] = action.values
    demo[STAMPS] = action.stamp_ns
    demo["dones"] = (np.arange(len(action.stamp_ns)) == len(action.stamp_ns) - 1).astype(np.int64)
    if "reward" in episode.streams:
        demo["rewards"] = episode.streams["reward"].values[:, 0]
    observed = demo.create_group("obs")
    for name in streams:
        if name != "reward":
            observed[name] = episode.streams[name].values
    if episode.instruction:
        demo.attrs["ep_meta"] = json.dumps({"lang": episode.instruction})
    if episode.success is not None:
        demo.attrs["success"] = episode.success
    if episode.seed is not None:
        demo.attrs["seed"] = episode.seed
    said = json.dumps(episode_sidecar(episode), allow_nan=False)  # may be longer than an attribute can
    demo[EPISODE_SIDECAR] = np.frombuffer(said.encode(), np.uint8)
