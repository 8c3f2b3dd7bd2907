"""`import torchvision` where its compiled part cannot be loaded; timm and open_clip import it.

The usual wheel of torchvision is built for CUDA. Beside a PyTorch for the CPU its `_C.so` finds no libraries, which torchvision
forgives, but then it describes two operators of that file to PyTorch, which knows neither: `operator torchvision::nms does not
exist`. Declaring their signatures is all that is missing. Everything written in Python works then (transforms, and models
without compiled operators, such as RAFT); an operator of the compiled part still refuses with torchvision's own message.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kineflow.extras import require

# Those that torchvision describes without asking whether they are there (its _meta_registrations.py).
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def torchvision() -> Any:
    """The module `torchvision`, imported; call it before timm or open_clip is imported.

    Raises:
        KineflowError: it is not installed; names the extra.
    """
    if "torchvision" not in sys.modules:
        _declare_operators()
    return require("torchvision", "for the image transforms of pretrained encoders")


def timm() -> Any:
    """The module `timm`, imported; raises KineflowError as `torchvision`."""
    torchvision()
    return require("timm", "for DINOv2")


def open_clip() -> Any:
    """The module `open_clip`, imported; raises KineflowError as `torchvision`."""
    torchvision()
    return require("open_clip", "for CLIP")


@cache  # keeps the library: its declarations end with it
def _declare_operators() -> Any:
    if _compiled_part_loads():
        return None
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


def _compiled_part_loads() -> bool:
    spec = find_spec("torchvision")  # runs nothing of it
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("_C*") if file.suffix in (".so", ".pyd")]
    try:
        for file in files:
            torch.ops.load_library(file)  # type: ignore[no-untyped-call]
    except (OSError, ImportError):
        return False
    return bool(files)
