"""Is a trained field the gradient of anything? A report, not a requirement ("Are We Really Learning the Score Function?")."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.field import Chunk, Field, Level, Tokens


def asymmetry(field: Field, x: Chunk, lam: Level, condition: Tokens | None) -> Float[Tensor, "B"]:
    """|J - J^T| / |J| of J = d a_hat / dx, each row [H A, H A]: 0 for the true denoiser, up to 2 for a trained one.

    Costs H A gradients. Large values warn that densities, energies and acceptance tests built on the field mean little.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        entries = field(x, lam, condition).flatten(1).sum(dim=0)  # rows never look at each other
        rows = [torch.autograd.grad(entry, x, retain_graph=True)[0].flatten(1) for entry in entries]
    jacobian = torch.stack(rows, dim=1)
    report: Tensor = (jacobian - jacobian.mT).flatten(1).norm(dim=1) / jacobian.flatten(1).norm(dim=1)
    return report
