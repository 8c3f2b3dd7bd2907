"""T10: policies with different normalisers. Shifts and one scalar factor are exact; factors that differ are refused."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.compose.memo import PreparedHead, Remembered, head_level
from kineflow.policies.compose.operators import Convex, Either, has_density, log_density
from kineflow.policies.compose.units import InUnits, SeenLevel, UnitChange, scale_ratio
from kineflow.policies.compose.weights import Weights
from kineflow.policies.field import HeadField
from kineflow.policies.paths import CondOT, SquaredCos
from kineflow.policies.samplers import RowNoise, ddim

DOUBLE = torch.float64


def raw_law() -> Mixture:
    """A policy over physical chunks [2, 2] of two modes."""
    generator = torch.Generator().manual_seed(3)
    means = 40 * torch.randn(2, 2, 2, generator=generator, dtype=DOUBLE) + 200
    return Mixture(torch.tensor([0.3, 0.7], dtype=DOUBLE), means, torch.full_like(means, 12.0))


def in_units(law: Mixture, scale: torch.Tensor, offset: torch.Tensor) -> Mixture:
    """The same policy over y = (a - offset) / scale."""
    return Mixture(law.weights, (law.means - offset) / scale, law.stds / scale)


OFFSET = torch.tensor([[180.0, 230.0], [190.0, 225.0]], dtype=DOUBLE)
SCALE = torch.full((2, 2), 50.0, dtype=DOUBLE)


def change(scale: torch.Tensor, offset: torch.Tensor) -> UnitChange:
    return UnitChange(scale_ratio(SCALE, scale, "B"), SCALE / scale, ((OFFSET - offset) / scale)[None])


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(11, 2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    return x, torch.linspace(-5, 5, 11, dtype=DOUBLE)


@pytest.mark.parametrize("factor", [1.0, 0.2, 3.7])
@pytest.mark.parametrize("shift", [0.0, 35.0])
def test_shift_and_scalar_factor_are_exact_in_raw_units(factor: float, shift: float) -> None:
    """One physical policy in two unit systems answers the same noisy chunk with the same physical chunk."""
    law = raw_law()
    scale, offset = SCALE / factor, OFFSET + shift
    same = InUnits(in_units(law, scale, offset), change(scale, offset))
    reference, (x, lam) = in_units(law, SCALE, OFFSET), noisy()
    ours, theirs = (answer * SCALE + OFFSET for answer in (same(x, lam, None), reference(x, lam, None)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_factor_without_the_shift_of_lambda_is_wrong() -> None:
    """Negative control: rescaling x alone, at the same lambda, misses by units of action."""
    law, scale = raw_law(), SCALE / 3.0
    wrong = InUnits(in_units(law, scale, OFFSET), UnitChange(1.0, SCALE / scale, torch.zeros(1, 2, 2, dtype=DOUBLE)))
    x, lam = noisy()
    gap = (wrong(x, lam, None) - in_units(law, SCALE, OFFSET)(x, lam, None)) * SCALE
    assert gap.abs().max() > 5


def test_offsets_may_differ_per_row() -> None:
    """Actions relative to the observed state: row b's offset is its own, absolute actions share one."""
    law = raw_law()
    rows = torch.linspace(-30, 30, 11, dtype=DOUBLE)[:, None, None]
    x, lam = noisy()
    for row in range(11):
        offset = OFFSET + rows[row]
        one = UnitChange(2.0, SCALE / 25.0, (OFFSET - offset)[None] / 25.0)
        answer = InUnits(in_units(law, SCALE / 2, offset), one)(x[row : row + 1], lam[row : row + 1], None)
        expected = in_units(law, SCALE, OFFSET)(x[row : row + 1], lam[row : row + 1], None)
        torch.testing.assert_close(answer, expected, rtol=1e-11, atol=1e-11)
    # All rows at once: a Gaussian's field is the same function in each row's own units.
    single = Mixture(torch.ones(1, dtype=DOUBLE), law.means[:1], law.stds[:1])

    class Rows:
        def __call__(self, x, lam, condition):
            answers = [in_units(single, SCALE / 2, OFFSET + r)(x[i : i + 1], lam[i : i + 1], None) for i, r in enumerate(rows)]
            return torch.cat(answers)

    many = InUnits(Rows(), UnitChange(2.0, SCALE / 25.0, -rows.expand(11, 2, 2) / 25.0))
    torch.testing.assert_close(many(x, lam, None), in_units(single, SCALE, OFFSET)(x, lam, None), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("end", [-math.inf, math.inf])
def test_both_ends_are_regular(end: float) -> None:
    law, scale, offset = raw_law(), SCALE / 3.0, OFFSET + 10
    x, _ = noisy()
    lam = torch.full((11,), end, dtype=DOUBLE)
    ours = InUnits(in_units(law, scale, offset), change(scale, offset))(x, lam, None)
    torch.testing.assert_close(ours, in_units(law, SCALE, OFFSET)(x, lam, None), rtol=1e-10, atol=1e-10)


def test_trained_heads_of_other_units_sample_the_same_chunks() -> None:
    """A discrete epsilon head in other units and a flow head, composed and solved: the physical chunks of either alone."""
    law, path, scale = raw_law(), SquaredCos(100), SCALE / 0.5
    flow = HeadField(MixtureHead(in_units(law, SCALE, OFFSET), CondOT(), "velocity"), CondOT(), "velocity")
    epsilon = HeadField(MixtureHead(in_units(law, scale, OFFSET), path, "epsilon"), path, "epsilon")
    composed = Convex([flow, InUnits(epsilon, change(scale, OFFSET))], Weights.constant([0.4, 0.6]))
    noise, fresh = noisy()[0], RowNoise(np.arange(11), (2, 2), DOUBLE)
    grid = torch.cat([torch.linspace(-6.5, 2.9, 41, dtype=DOUBLE), torch.tensor([math.inf], dtype=DOUBLE)])
    ours, alone = (ddim(one, noise, grid, None, fresh) for one in (composed, flow))
    torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-9)


def test_factors_per_dimension_are_refused_unless_flagged() -> None:
    scale = SCALE.clone()
    scale[1, 0] *= 4
    with pytest.raises(KineflowError, match=r"B: .*from 0.25 \(step 1, dimension 0\) to 1 .*isotropic.*--approximate"):
        scale_ratio(SCALE, scale, "B")
    assert scale_ratio(SCALE, scale, "B", approximate=True) == pytest.approx(4**-0.25)


def test_float32_statistics_are_one_factor() -> None:
    scale = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    assert scale_ratio(scale * 3, scale, "B") == pytest.approx(3.0, rel=1e-6)


def test_densities_follow_the_change_of_units() -> None:
    """OR across units: the density of the same noisy chunk, with the change of volume."""
    law, scale, offset = raw_law(), SCALE / 3.0, OFFSET + 10
    other = InUnits(in_units(law, scale, offset), change(scale, offset))
    reference, (x, lam) = in_units(law, SCALE, OFFSET), noisy()
    assert has_density(other)
    torch.testing.assert_close(log_density(other, x, lam, None), reference.log_density(x, lam, None), rtol=1e-10, atol=1e-10)
    either = Either([reference, other], Weights.constant([0.5, 0.5]))
    torch.testing.assert_close(either(x, lam, None), reference(x, lam, None), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "velocity", "velocity_to_noise", "v", "score", "edm"])
@pytest.mark.parametrize("path", [CondOT(), SquaredCos(100)], ids=str)
def test_remembered_levels_change_nothing(prediction, path) -> None:
    """Three numbers for a level instead of the schedule: the same answers, and rows of different levels as before."""
    head = HeadField(MixtureHead(in_units(raw_law(), SCALE / 3, OFFSET), path, prediction), path, prediction)
    kept = PreparedHead(head, Remembered(functools.partial(head_level, head)))
    both = [InUnits(head, change(SCALE / 3, OFFSET + 10)), None]
    both[1] = InUnits(kept, both[0].change, Remembered(functools.partial(SeenLevel.of, ratio=both[0].change.ratio)))
    x, rows = noisy()
    for lam in (torch.full((11,), -2.0, dtype=DOUBLE), torch.full((11,), 3.0, dtype=DOUBLE), rows.clamp(-3, 3)):
        plain, remembered = (one(x, lam, None) for one in both)
        torch.testing.assert_close(remembered, plain, rtol=1e-9, atol=1e-9)
    assert len(kept.levels.known) == 2
