"""The plan that a path follower is told: what the executor will do, unless it hears of something newer."""

from __future__ import annotations

import numpy as np
import pytest

from tests.deploy.closed_form import Counting, executor
from tests.deploy.test_executor import NONE, executed, run

TICKS = 5  # in each action: answers come in the middle of one


@pytest.mark.parametrize("latency", [0.0, 0.13, 0.2, 0.31])
def test_ahead_is_what_will_be_executed(latency: float) -> None:
    of = executor("async")
    plans: list[list[tuple[int, int]]] = []

    class Watching(Counting):
        def command(self, values: np.ndarray, now_s: float) -> None:
            plans.append([(int(seen), int(index)) for seen, index in of.ahead()])

    done = executed(run(of, latency=latency, robot=Watching(3.0), rate_hz=10.0 * TICKS))
    compared = 0
    for k, plan in enumerate(plans):
        if done[k] == NONE:
            assert plan == []
            continue
        assert plan[0] == done[k]
        for planned, did in zip(plan, done[k::TICKS]):
            if did[0] > plan[-1][0]:
                break  # of a chunk that came later
            assert planned == did
            compared += 1
    assert compared > 300
    assert max(len(plan) for plan in plans) >= 8
