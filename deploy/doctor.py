"""What of this machine would keep a policy from driving a robot well: threads of the runtimes, real-time priority.

Each finding says what to do. Nothing is changed, nothing heavy is imported; `deploy/ros2/doctor.py` looks at ROS 2.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kineflow.interface import KineflowError

Level = Literal["ok", "warn", "fail"]
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """`what` was looked at, what was `found`, and what is `to_do`: "" where nothing is. "fail": a node cannot work so."""

    level: Level
    what: str
    found: str
    to_do: str = ""


def examine(threads: int = 1, environ: Mapping[str, str] | None = None) -> list[Finding]:
    """Threads of torch and ONNX Runtime for a policy that is given `threads`, and real-time priority of the output thread.

    Raises:
        KineflowError: fewer than one thread.
    """
    if threads < 1:
        raise KineflowError(f"--threads {threads}: a policy needs at least 1")
    environ = os.environ if environ is None else environ
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [spinning(environ), torch_threads(environ, cores), runtime_threads(threads, cores), fifo()]


def spinning(environ: Mapping[str, str]) -> Finding:
    """Threads of OpenMP (torch) that spin at barriers wait for one that was descheduled: 2 s instead of 0.25 s under load."""
    passive, count = environ.get("OMP_WAIT_POLICY", ""), environ.get("GOMP_SPINCOUNT", "")
    found = f"OMP_WAIT_POLICY={passive or 'not set'}, GOMP_SPINCOUNT={count or 'not set'}"
    if passive.upper() == "PASSIVE" and count in ("", "0"):
        return Finding("ok", "threads that wait", found)
    if importlib.util.find_spec("torch") is None:
        return Finding("ok", "threads that wait", f"{found}; no torch here")
    to_do = (
        "export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 before Python starts: torch's threads spin, and stall on a busy machine"
    )
    return Finding("warn", "threads that wait", found, to_do)


def torch_threads(environ: Mapping[str, str], cores: int) -> Finding:
    """torch takes OMP_NUM_THREADS, else every core; one is to be left for sensors and for the output thread."""
    if importlib.util.find_spec("torch") is None:
        return Finding("ok", "torch", "not installed: exported policies run without it")
    text = environ.get("OMP_NUM_THREADS", "")
    first = text.split(",")[0]
    if text and not (first.isascii() and first.isdigit() and int(first) > 0):
        return Finding(
            "fail", "torch", f"OMP_NUM_THREADS is '{text}'", "set OMP_NUM_THREADS to a whole number above 0, or unset it"
        )
    takes, most = int(first) if text else cores, max(cores - 1, 1)
    found = f"{takes} threads (OMP_NUM_THREADS {text or 'not set'}), {cores} cores"
    if takes <= most:
        return Finding("ok", "torch", found)
    return Finding("warn", "torch", found, f"export OMP_NUM_THREADS={most}: leave one core to sensors and to the output thread")


def runtime_threads(threads: int, cores: int) -> Finding:
    """ONNX Runtime as an exported policy is run here: its threads must not spin."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("ok", "ONNX Runtime", "not installed: needed for exported policies alone, kineflow[export]")
    import onnxruntime

    from kineflow.deploy.runtimes import onnx_options

    options = onnx_options(threads)
    spins = options.get_session_config_entry("session.intra_op.allow_spinning") != "0"
    waits = "spinning" if spins else "not spinning"
    found = f"{onnxruntime.__version__}, {options.intra_op_num_threads} threads of {cores} cores, {waits}"
    if spins:
        return Finding("fail", "ONNX Runtime", found, "it ignores allow_spinning=0: install another version")
    if threads > max(cores - 1, 1):
        return Finding("warn", "ONNX Runtime", found, f"give the policy at most {max(cores - 1, 1)} threads")
    return Finding("ok", "ONNX Runtime", found)


def fifo(priority: int = 20) -> Finding:
    """Whether a thread may take SCHED_FIFO: commands come with 2 ms of jitter under load, without it with 28 ms."""
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_take_fifo(priority)))  # ends with what it took
    asking.start()
    asking.join()
    if not answers[0]:
        return Finding("ok", "real-time priority", f"SCHED_FIFO {priority} is permitted")
    to_do = (
        f"write '{getpass.getuser()} - rtprio {priority}' into /etc/security/limits.d/kineflow.conf and log in anew; in a "
        f"container --ulimit rtprio={priority}; without it the node works with more jitter"
    )
    return Finding("warn", "real-time priority", f"SCHED_FIFO {priority}: {answers[0]}", to_do)


def lines_of(findings: Iterable[Finding]) -> list[str]:
    """For a person: one line for each finding, and one for what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.level]}  {finding.what}: {finding.found}")
        if finding.to_do:
            lines.append(f"      -> {finding.to_do}")
    return lines


def _take_fifo(priority: int) -> str:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return str(error)
    return ""
