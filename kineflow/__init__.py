"""Kineflow: train, compose, evaluate and deploy flow-matching and diffusion policies."""

from pathlib import Path as _Path

__version__ = "0.1.0"

for _folder in ("policies", "envs", "datasets", "deploy", "agents", "configs"):
    if not (_Path(__file__).parent / _folder).is_dir():
        raise ImportError(
            f"kineflow/{_folder} is not a folder: this copy of Kineflow lost its symbolic links (a .zip archive does that); "
            "get it with `git clone` or from a wheel or .tar.gz instead"
        )
