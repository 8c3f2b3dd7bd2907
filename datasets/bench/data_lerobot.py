"""The real lerobot on the same frames, in a Python of its own where there is one: it needs versions that others do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kineflow.contracts import KineflowError
from kineflow.datasets.bench.data_sets import OBSERVED, PREDICTED, DataSet

_PYTHON = Path(__file__).resolve().parents[2] / ".venv-lerobot" / "bin" / "python"  # made by .ci/lerobot_env.sh

_MEASURE = """
import json, sys, time
from importlib.metadata import version
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

torch.set_num_threads(1)  # threads that spin would count against it
root, camera, observed, predicted, samples = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
plain = LeRobotDataset("local/kineflow", root=root)
step = 1 / plain.fps
past = [step * i for i in range(1 - observed, 1)]
names = {k: past for k in plain.meta.features if k == f"observation.images.{camera}" or k.startswith("observation.state")}
data = LeRobotDataset("local/kineflow", root=root, delta_timestamps={**names, "action": [step * i for i in range(predicted)]})
rng = np.random.default_rng(0)
for i in rng.integers(0, len(data), 4):
    data[int(i)]
found = []
for _ in range(5):
    indices, cpu, wall = rng.integers(0, len(data), samples), time.process_time(), time.perf_counter()
    for i in indices:
        data[int(i)]
    found.append([(time.process_time() - cpu) / samples, (time.perf_counter() - wall) / samples])
cpu_s, wall_s = np.median(found, axis=0)
try:
    import torchcodec
    decoder = "torchcodec"
except Exception:
    decoder = "pyav, because torchcodec cannot be loaded here"
print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "version": f"{version('lerobot')} (frames by {decoder})"}))
"""


def measure_lerobot(data: DataSet, samples: int) -> tuple[float, float, str]:
    """CPU and wall seconds of one window of lerobot's own data set class, medians of 5, its version and decoder.

    Raises:
        KineflowError: no lerobot here, or it failed; says why.
    """
    if "lerobot_v3" in data.missing:
        raise KineflowError(data.missing["lerobot_v3"])
    python = os.environ.get("KINEFLOW_LEROBOT_PYTHON") or (str(_PYTHON) if _PYTHON.exists() else sys.executable)
    home = data.folder / "lerobot_home"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "cache")}
    arguments = [str(data.folder / "lerobot_v3"), data.camera, str(OBSERVED), str(PREDICTED), str(samples)]
    done = subprocess.run([python, "-c", _MEASURE, *arguments], env=offline, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KineflowError(f"lerobot is not importable or failed here ({last}); name its Python in KINEFLOW_LEROBOT_PYTHON")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cpu_s"], found["wall_s"], f"lerobot {found['version']}"
