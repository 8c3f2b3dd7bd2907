"""The process around a node: our own signal handling, a spin thread, and a teardown in the one order that never aborts.

With rclpy's own handlers the context is already invalid when Python hears of Ctrl-C: a last "stop" cannot be sent, and the robot
keeps its last command. While `spin` blocks in C a Python handler does not run at all. So the main thread waits for the signal,
and a worker spins. EventsExecutor is not used: it deadlocks.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kineflow.deploy.ros2.environment import clean_stale_segments
from kineflow.interface import KineflowError

JOIN_S = 2.0


class Stops(Protocol):
    """A node that can be told to end."""

    def stop_now(self) -> None:
        """Say stop to the robot, at once and from any thread; called before the context goes."""


def run_process(make: Callable[[Any], Any], args: Sequence[str] | None = None) -> int:
    """Run the node that `make(context)` returns until SIGINT or SIGTERM, or until it sets its own `ending` event. Exit code.

    Started by `deploy/ros2/start.py`, which checks the environment first. `args`: of ROS (`--ros-args ...`). A second signal ends
    the process at once.
    """
    clean_stale_segments()
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    ending = threading.Event()
    received: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        ending.set()

    faulthandler.register(signal.SIGUSR1)  # a wedged process says where: kill -USR1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)
    context = rclpy.Context()
    rclpy.init(args=list(args or []), context=context, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor(context=context)
    code, node, failed = 0, None, list[BaseException]()

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        except BaseException as error:  # a callback failed: the robot must stop, and the process end with an error
            failed.append(error)
            ending.set()

    spinning = threading.Thread(target=spin, name="kineflow-spin", daemon=True)
    try:
        node = make(context)
        executor.add_node(node)
        node.ending = ending
        spinning.start()
        while not ending.wait(0.5):
            pass
    except KineflowError as error:
        print(f"kineflow: {error}", file=sys.stderr)
        code = 2
    finally:
        code = _tear_down(node, executor, spinning, context) or code
    if failed:
        print(f"kineflow: a callback failed: {type(failed[0]).__name__}: {failed[0]}", file=sys.stderr)
        code = 1
    return code


def _tear_down(node: Any, executor: Any, spinning: threading.Thread, context: Any) -> int:
    """Stop the robot, then executor, thread, node, context: any other order ends in abort()."""
    import rclpy

    code = 0
    if node is not None:
        try:
            node.stop_now()
        except Exception as error:  # what kept the commands from leaving
            print(f"kineflow: the stop was not sent: {type(error).__name__}: {error}", file=sys.stderr)
            code = 1
    executor.shutdown(timeout_sec=JOIN_S)
    if spinning.ident is not None:
        spinning.join(JOIN_S)
        if spinning.is_alive():  # wedged in C: the zero was sent, nothing more can be done in good order
            sys.stderr.flush()
            os._exit(3)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown(context=context)
    return code
