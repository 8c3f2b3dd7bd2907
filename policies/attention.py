"""Attention over the short sequences of this package: tens of tokens, where the fused kernels of a CPU are at a loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SHORT = 64  # keys; up to here two plain products are quicker on a CPU than one fused kernel, forth and back


def attention(
    query: Float[Tensor, "B K T E"], key: Float[Tensor, "B K N E"], value: Float[Tensor, "B K N E"]
) -> Float[Tensor, "B K T E"]:
    """softmax(query key^T / sqrt(E)) value."""
    if query.device.type != "cpu" or key.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(query, key, value)
    weights = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), dim=-1)
    return weights.to(value.dtype) @ value
