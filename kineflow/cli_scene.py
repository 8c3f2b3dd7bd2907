"""`kineflow train-scene ...`: the frozen eyes of navigation policies, learned in the simulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show


def add(verbs: Any) -> None:
    text = "film worlds and train SceneNet on them, going on where an earlier call stopped; config fields can follow"
    scene = add_verb(verbs, "train-scene", _train_scene, text, overrides=True)
    scene.add_argument("config", nargs="?", default="train_scene/navigation", help="default train_scene/navigation")
    scene.add_argument("--run", type=Path, default=Path("runs/scene_net"), help="folder of the run (default runs/scene_net)")


def _train_scene(args: argparse.Namespace) -> int:
    from kineflow.config import load_config
    from kineflow.policies.scene_training import SceneTraining, train_scene

    scores = vars(train_scene(load_config(SceneTraining, args.config, args.overrides), args.run, progress=not args.json))
    show(args, scores, lambda: print("\n".join(f"{name:10} {value:.3f}" for name, value in scores.items())))
    return 0
