"""`kineflow deploy watch`: a policy node's diagnostics, as a dashboard in this terminal."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rich.console import Console

from kineflow.deploy.live.diagnosed import diagnosed
from kineflow.deploy.live.seen import Seen
from kineflow.deploy.live.terminal import Terminal

_LOOK_S = 0.25


def watch(node_name: str, seconds: float | None, as_json: bool) -> int:
    """Until Ctrl-C, or for so long; 0 where the node was heard, 1 where it never was. `as_json`: one object a line."""
    terminal = Terminal(Console())
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("kineflow_watch", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    begin, heard = time.monotonic(), 0

    def hear(message: Any) -> None:
        nonlocal heard
        for status in message.status:
            if status.name == node_name:
                heard += 1
                values = {pair.key: pair.value for pair in status.values}
                seen = diagnosed(node_name, status.message, values, time.monotonic() - begin)
                if as_json:
                    print(json.dumps(_plain(seen)), flush=True)
                else:
                    terminal.show(seen)

    node.create_subscription(DiagnosticArray, "/diagnostics", hear, 50)
    try:
        while seconds is None or time.monotonic() - begin < seconds:
            executor.spin_once(timeout_sec=_LOOK_S)
            if not as_json:
                terminal.still()
    except KeyboardInterrupt:
        pass
    finally:
        terminal.close()
        executor.shutdown(timeout_sec=2.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    return 0 if heard else 1


def _plain(seen: Seen) -> dict[str, Any]:
    """Without pictures and plan, which diagnostics have not; numbers that are none are null."""
    whole = asdict(seen)
    for name in ("plan", "pictures", "goal", "words", "step_s", "episode"):
        del whole[name]
    return {name: _finite(value) for name, value in whole.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (np.ndarray, tuple, list)):
        return [_finite(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
