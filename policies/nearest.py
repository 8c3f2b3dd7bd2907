"""The nearest point of a convex set of half-spaces and balls, for many small problems at once.

    minimise |w - target|^2 / 2   subject to f(w) <= 0 :   a w - h for each plane, (|C w + c|^2 - r^2) / 2 r for each ball

by a primal-dual interior-point method (Nocedal & Wright 2006, chapter 19): with slacks s > 0 and multipliers y > 0 Newton's
method follows w - target + f'(w)^T y = 0, f(w) + s = 0, s y = mu while mu falls to zero. About twenty iterations, each one
batched solve of [n, n]; the rows never mix. Unlike alternating projections it does not slow down when limits nearly agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "N n"]
SLACK = 1e-10  # the set is widened by this share of |target|, so that it has an inside
INSIDE = 1e-9  # points that miss the set by less than this share come back as they are
CENTERING = 0.1
ITERATIONS = 60
# Largest gradient, largest violation and mean complementarity: where to stop, and what to accept when numbers get in the way.
ENOUGH = (1e-9, 1e-11, 1e-15)
TOLERABLE = (1e-5, 1e-9, 1e-9)


@dataclass(frozen=True)
class Planes:
    """normals w <= bounds, bounds >= 0."""

    normals: Float[Tensor, "M n"]
    bounds: Float[Tensor, "N M"]

    def values(self, w: Rows) -> Float[Tensor, "N M"]:
        return w @ self.normals.T - self.bounds


@dataclass(frozen=True)
class Balls:
    """|maps w + offsets| <= radii, |offsets| <= radii; each ball has D dimensions."""

    maps: Float[Tensor, "K D n"]
    offsets: Float[Tensor, "N K D"]
    radii: Float[Tensor, "N K"]

    def values(self, w: Rows) -> Float[Tensor, "N K"]:
        return (self.image(w).square().sum(-1) - self.radii**2) / (2 * self.radii)

    def image(self, w: Rows) -> Float[Tensor, "N K D"]:
        return torch.einsum("kdn,bn->bkd", self.maps, w) + self.offsets


def nearest(target: Rows, planes: Planes, balls: Balls) -> Rows:
    """`target` projected, each row alone, to about 1e-9 of its length. The set must contain w = 0, which bounds every answer
    and stands in for a row that does not converge. Points inside come back as they are; non-finite rows as well."""
    unit = target.norm(dim=1, keepdim=True)
    missed = torch.cat([planes.values(target), balls.values(target)], dim=1) > INSIDE * unit
    solve = missed.any(dim=1) & torch.isfinite(target).all(dim=1)
    result = target.clone()
    if solve.any():
        unit, finite = unit[solve], torch.isfinite(planes.bounds[solve]).any(dim=0)
        normals = planes.normals[finite]
        # No answer is longer than the target, so a plane ten times further away is as good as none.
        reach = 10 * normals.norm(dim=1)
        scaled = Planes(normals, torch.minimum(planes.bounds[solve][:, finite] / unit, reach) + SLACK)
        radii = torch.minimum(balls.radii[solve] / unit, 1e6 * torch.ones_like(unit))
        rounds = Balls(balls.maps, balls.offsets[solve] / unit[..., None], radii + SLACK)
        result[solve] = unit * _interior_point(target[solve] / unit, scaled, rounds)
    return result


def _interior_point(target: Tensor, planes: Planes, balls: Balls) -> Tensor:
    identity = torch.eye(target.shape[1], dtype=target.dtype, device=target.device)
    w = torch.zeros_like(target)
    value, slope = _linearised(w, planes, balls)
    slack = (-value).clamp(min=0.1)
    dual = 0.1 / slack
    for _ in range(ITERATIONS):
        gap = (slack * dual).mean(dim=1, keepdim=True)
        pull = w - target + torch.einsum("bmn,bm->bn", slope, dual)
        missed = value + slack
        error = torch.stack([pull.abs().amax(dim=1), missed.abs().amax(dim=1), gap[:, 0]], dim=-1)
        done = (error < torch.tensor(ENOUGH).to(w)).all(dim=1)
        if done.all():
            break
        stiff = dual / slack
        curve = torch.einsum("bk,kdn,kdm->bnm", dual[:, len(planes.normals) :] / balls.radii, balls.maps, balls.maps)
        system = identity + curve + slope.mT @ (stiff[..., None] * slope)
        push = CENTERING * gap / slack - dual + stiff * missed
        dw = torch.linalg.solve_ex(system, -(pull + torch.einsum("bmn,bm->bn", slope, push)))[0]
        along = torch.einsum("bmn,bn->bm", slope, dw)
        dual_step, slack_step = push + stiff * along, -missed - along
        length = torch.minimum(_to_border(slack, slack_step), _to_border(dual, dual_step))
        go = ~done[:, None] & torch.isfinite(dw).all(dim=1, keepdim=True)
        w, slack, dual = (torch.where(go, at + length * by, at) for at, by in ((w, dw), (slack, slack_step), (dual, dual_step)))
        value, slope = _linearised(w, planes, balls)
    good = (error < torch.tensor(TOLERABLE).to(w)).all(dim=1, keepdim=True)
    return torch.where(good, w, 0)


def _linearised(w: Tensor, planes: Planes, balls: Balls) -> tuple[Tensor, Tensor]:
    """f `[N, M + K]` and its derivative `[N, M + K, n]`."""
    value = torch.cat([planes.values(w), balls.values(w)], dim=1)
    slope = torch.einsum("bkd,kdn->bkn", balls.image(w) / balls.radii[..., None], balls.maps)
    return value, torch.cat([planes.normals.expand(len(w), -1, -1), slope], dim=1)


def _to_border(value: Tensor, step: Tensor) -> Tensor:
    """The longest share of `step`, at most one, that keeps `value` positive, and a little less."""
    ratio = torch.where(step < 0, -value / step, torch.inf)
    return (0.99 * ratio.amin(dim=1, keepdim=True)).clamp(max=1)
