"""The three findings of General Policy Composition, each held against what one weight search saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kineflow.policies.intervals import Estimate

MODERATE = 0.3  # success of a parent above which compositions gained in the publication
FAILING = 0.1  # success at or below which a parent counts as failing; the publication's parents that dragged had 0 to 8 %

Verdict = Literal["supports", "contradicts", "undecided", "does not apply"]


@dataclass(frozen=True)
class Evidence:
    """What a search knows. `mixture` is the chosen one, or the best real mixture where one parent alone was chosen: then the
    choice itself says nothing about mixing."""

    names: Sequence[str]
    success: Sequence[float]  # of each parent, on search seeds
    better: int  # the better parent, on search seeds
    lead: Estimate  # its score minus the next parent's, paired, on search seeds
    mixture: Sequence[float]  # weights
    gain: Estimate  # the mixture's reward minus the better parent's, paired, on report seeds


@dataclass(frozen=True)
class Finding:
    """One claim, when it is about such parents (thresholds included), what was seen here, and what that says about it."""

    claim: str
    applies_when: str
    seen: str
    verdict: Verdict


def gpc_findings(found: Evidence) -> tuple[Finding, ...]:
    """Gains above 30 % success, none with a failing parent, more weight to the better parent: what this search says of each.

    An interval that holds zero decides nothing, neither for a finding nor against it.
    """
    gains: Verdict = "supports" if found.gain.low > 0 else "contradicts" if found.gain.high < 0 else "undecided"
    drags: Verdict = "supports" if found.gain.high < 0 else "contradicts" if found.gain.low > 0 else "undecided"
    moderate, failing = all(s > MODERATE for s in found.success), any(s <= FAILING for s in found.success)
    parents = ", ".join(f"{name} {success:.0%}" for name, success in zip(found.names, found.success))
    weights = ", ".join(f"{w:g}" for w in found.mixture)
    gain = f"success {parents}; best mixture ({weights}) minus the better parent: reward {_signed(found.gain)}"
    name, own = found.names[found.better], found.mixture[found.better]
    others = max(w for i, w in enumerate(found.mixture) if i != found.better)
    weighs: Verdict = "supports" if own > others else "contradicts" if own < others else "undecided"
    return (
        Finding(
            "Composing gains when both parents are moderate",
            f"every parent succeeds in more than {MODERATE:.0%} of the search starts",
            gain,
            gains if moderate else "does not apply",
        ),
        Finding(
            "Composing does not gain with a failing parent: it drags",
            f"a parent succeeds in {FAILING:.0%} of the search starts or fewer",
            gain,
            drags if failing else "does not apply",
        ),
        Finding(
            "The better parent gets the larger weight",
            "one parent is better on the search starts, with the interval of the paired difference above zero",
            f"{name} leads by {_signed(found.lead)}; weights of the best mixture: {weights}",
            weighs if found.lead.low > 0 else "does not apply",
        ),
    )


def _signed(value: Estimate) -> str:
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
