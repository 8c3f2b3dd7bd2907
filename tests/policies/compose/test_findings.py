"""GPC's three findings: which of them a search can speak about, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kineflow.policies.compose.findings import Evidence, gpc_findings
from kineflow.policies.intervals import Estimate

UP, DOWN, ZERO = Estimate(0.1, 0.02, 0.2, 60), Estimate(-0.1, -0.2, -0.02, 60), Estimate(0.0, -0.1, 0.1, 60)
BOTH = Evidence(("flow", "diffusion"), (0.5, 0.4), 0, UP, (0.7, 0.3), UP)
N = "does not apply"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("supports", N, "supports")),
        ({"gain": DOWN}, ("contradicts", N, "supports")),
        ({"gain": ZERO}, ("undecided", N, "supports")),
        ({"success": (0.5, 0.3)}, (N, N, "supports")),  # more than 30 %, not 30 %
        ({"success": (0.5, 0.11)}, (N, N, "supports")),
        ({"success": (0.5, 0.1), "gain": DOWN}, (N, "supports", "supports")),
        ({"success": (0.5, 0.0), "gain": UP}, (N, "contradicts", "supports")),
        ({"success": (0.0, 0.0), "gain": ZERO}, (N, "undecided", "supports")),
        ({"mixture": (0.3, 0.7)}, ("supports", N, "contradicts")),
        ({"mixture": (0.5, 0.5)}, ("supports", N, "undecided")),
        ({"better": 1}, ("supports", N, "contradicts")),
        ({"lead": ZERO}, ("supports", N, N)),  # which one is better is not known
    ],
)
def test_verdicts(changes: dict, expected: tuple[str, ...]) -> None:
    assert tuple(one.verdict for one in gpc_findings(replace(BOTH, **changes))) == expected


def test_words_give_the_thresholds_and_the_numbers() -> None:
    gains, drags, weighs = gpc_findings(BOTH)
    assert "more than 30%" in gains.applies_when
    assert "10%" in drags.applies_when
    assert "flow 50%, diffusion 40%" in gains.seen
    assert "+0.100 [+0.020, +0.200]" in gains.seen
    assert "flow leads by +0.100" in weighs.seen
    assert "0.7, 0.3" in weighs.seen
