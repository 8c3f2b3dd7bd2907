"""In which precision networks are computed while they train."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, wanted: Precision) -> torch.autocast | nullcontext[None]:
    """auto: bfloat16 where the GPU has it."""
    if wanted == "float32" or (wanted == "auto" and not (device.type == "cuda" and torch.cuda.is_bf16_supported())):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
