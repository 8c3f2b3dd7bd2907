"""A policy that takes the output thread down with it, for the node that must notice."""

from __future__ import annotations

from typing import Any

from kineflow.contracts import Policy
from kineflow.deploy.control import Control
from kineflow.deploy.ros2.toy_policies import forward

AFTER = 150  # ticks


def forward_then_break() -> Policy:
    """Drives straight on; after three seconds each tick of this process fails."""
    tick, count = Control.tick, 0

    def failing(self: Control, now_s: float) -> Any:
        nonlocal count
        count += 1
        if count > AFTER:
            raise RuntimeError("the executor broke")
        return tick(self, now_s)

    Control.tick = failing  # type: ignore[method-assign]
    return forward()
