"""One experiment as a value: what is trained, on what, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kineflow.datasets.resample import Resample
from kineflow.datasets.window_goals import GoalWindows
from kineflow.datasets.window_images import Images
from kineflow.policies.augmentation import AffineSymmetry
from kineflow.policies.distillation.methods import Distillation
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.policy import PolicyConfig


@dataclass(frozen=True)
class TrainConfig:
    """One experiment; the YAML files in configs/train/ have these fields."""

    policy: PolicyConfig
    store: Path = Path("runs/data/pusht.eps")
    resample: Mapping[str, Resample] = field(default_factory=dict)  # a rule for each stream with a clock of its own
    images: Images = field(default_factory=lambda: Images("auto"))  # where frames are read from; the result does not depend on it
    goals: GoalWindows = field(default_factory=GoalWindows)  # where the goals in policy.goals come from
    data_threads: int = 1  # that read batches ahead; 0: the training thread reads each when it needs it
    start_from: str = ""  # a run, checkpoint or hub name whose weights and statistics are the beginning
    steps: int = 10_000
    batch_size: int = 256
    noise_samples: int = 1  # noises and times per window and step; the encoder runs once for all of them
    optimiser: Optimiser = field(default_factory=Optimiser)
    symmetry: AffineSymmetry | None = None
    mask_padding: bool = False  # True: actions after the end of an episode do not count in the loss
    validation_fraction: float = 0.05
    validation_block: int = 1  # so many neighbouring episodes are held out together: those of one world, say
    validate_every: int = 500
    checkpoint_every: int = 2_000
    log_every: int = 50
    seed: int = 0
    threads: int = 0  # 0: `kineflow train` measures whether one or all cores are faster
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the GPU has it
    device: str = "auto"
    distillation: Distillation | None = None  # learn from a trained policy: see kineflow distill
