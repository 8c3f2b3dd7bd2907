"""The methods by the names that `kineflow distill --method` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from kineflow.policies.distillation.arc_flow import ArcFlow
from kineflow.policies.distillation.flow_maps import BiFM, MapDistillation
from kineflow.policies.distillation.mix_flow import PreviousChunk
from kineflow.policies.distillation.one_step import OneStep
from kineflow.policies.distillation.reflow import Reflow

# The registry of `kind:` in configs.
Distillation: TypeAlias = MapDistillation | Reflow | OneStep | ArcFlow | BiFM | PreviousChunk

METHODS: Mapping[str, Callable[[Path], Distillation]] = {
    "psd": lambda teacher: MapDistillation(teacher, "psd"),
    "lsd": lambda teacher: MapDistillation(teacher, "lsd"),
    "meanflow": lambda teacher: MapDistillation(teacher, "meanflow"),
    "imf": lambda teacher: MapDistillation(teacher, "imf"),
    "reflow": Reflow,
    "slimflow": lambda teacher: Reflow(teacher, annealing="exponential"),
    "onestep": OneStep,
    "arcflow": ArcFlow,
    "bifm": BiFM,
    "mixflow": PreviousChunk,
}
