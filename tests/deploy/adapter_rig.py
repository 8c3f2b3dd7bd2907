"""Real processes for the adapters' promises: a driver (governor and adapter), and the robot's side that logs what it hears."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from kineflow.config import CONFIG_ROOT
from kineflow.deploy.ros2.rig import PRIORITY, hurry

DRIVER = Path(__file__).with_name("adapter_driver.py")
ROOT = Path(__file__).resolve().parents[2]
START_S = 40.0  # a machine under load starts Python slowly
BUSY_S = 0.15  # more than a promise allows, on a machine that is shared


class AdapterRig:
    """`peer`: module of the robot's side. Words to either; what the robot's side heard, by its own monotonic times."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "heard.jsonl"
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.log.touch()

    def __enter__(self) -> AdapterRig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(START_S)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        """Ahead of its neighbours where permitted, as in the ROS rig: a test is about the robot, not about the machine."""
        command = [sys.executable, *words]
        self.processes[name] = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT, start_new_session=True,
            preexec_fn=partial(hurry, PRIORITY),
        )  # fmt: skip
        return process

    def profile(self, robot: str, settings: str) -> Path:
        """A shipped profile with settings added, and without ranges to watch."""
        text = (CONFIG_ROOT / "robots" / f"{robot}.yaml").read_text().split("keep_out:")[0]
        file = self.folder / f"{robot}.yaml"
        file.write_text(f"{text}\n{settings}\n")
        return file

    def tell(self, name: str, word: str) -> float:
        """Say a word to a process; when."""
        stdin = self.processes[name].stdin
        assert stdin is not None
        now = time.monotonic()
        stdin.write(word + "\n")
        stdin.flush()
        return now

    def heard(self, since_s: float = 0.0, what: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["now_s"] >= since_s and what in ("", line["what"])]

    def wait_for(self, condition: Callable[[], Any], within_s: float = START_S) -> None:
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"did not come true; heard last: {self.heard()[-3:]}"
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
