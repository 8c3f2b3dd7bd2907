"""Real processes on loopback: base, node, guard; this process observes and injects faults. For tests and `kineflow bench node`.

    with Rig() as rig:
        rig.start("base", "base", "--draw", "none")
        rig.start("node", "policy", *parameters(config="nodes/wheeled"))
        rig.release_estop(); rig.change("configure"); rig.change("activate")
        rig.heard[-1].values

Every process has a session of its own and is killed with it, by SIGKILL if it must be: a wedged rclpy ignores everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kineflow.deploy.ros2.environment import clean_stale_segments, prepare
from kineflow.interface import KineflowError

START_S = 40.0  # a machine under load starts Python slowly
LONGEST_S = 600.0  # of any process
PRIORITY = -15  # of the rig's processes where permitted: a test is about the node, not about its neighbours
_TRANSITIONS = {
    "configure": (1, "inactive"),
    "cleanup": (2, "unconfigured"),
    "activate": (3, "active"),
    "deactivate": (4, "inactive"),
}
DOMAINS = range(2, 101)
_rigs = itertools.count()


@dataclass(frozen=True)
class Heard:
    """One command: when it was received here (monotonic) and stamped there (its own clock), vx (m/s) and yaw rate (rad/s)."""

    received_s: float
    stamp_s: float
    vx: float
    yaw_rate: float

    @property
    def is_zero(self) -> bool:
        return self.vx == 0.0 and self.yaw_rate == 0.0


@dataclass(frozen=True)
class Report:
    """One diagnostic status of a node."""

    received_s: float
    name: str
    level: int
    summary: str
    values: dict[str, str]


def parameters(**values: Any) -> list[str]:
    """ROS parameters as command-line words."""
    words = ["--ros-args"]
    for name, value in values.items():
        words += ["-p", f"{name}:={value}"]
    return words


class Rig:
    """See the module."""

    def __init__(self, log: Path | None = None, priority: int = PRIORITY) -> None:
        prepare()
        clean_stale_segments()
        self.folder = Path(log or tempfile.mkdtemp(prefix="kineflow-rig-"))
        self.domain, self._claim = claim_domain()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.heard: list[Heard] = []
        self.reports: list[Report] = []
        self.status: list[tuple[float, str]] = []
        self.runs: list[dict[str, str]] = []  # feedback and results
        self._clients: dict[str, Any] = {}
        self.beating, self._priority = True, priority
        self._ending = threading.Event()

    def __enter__(self) -> Rig:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from geometry_msgs.msg import TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
        from std_msgs.msg import Bool, Header, String

        from kineflow.deploy.ros2.qos import Quality, profile

        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        hurry(self._priority)  # before its threads begin, which inherit it
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = Node("observer", context=self.context)
        self.node.create_subscription(TwistStamped, "cmd_vel", self._on_command, profile(Quality(True, depth=100)))
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_report, 100)
        self.node.create_subscription(String, "policy/status", self._on_status, profile(Quality(True, True, 10)))
        for word in ("feedback", "result"):
            topic, quality = f"policy/run/{word}", Quality(True, word == "result", 10)
            self.node.create_subscription(DiagnosticStatus, topic, self._on_run, profile(quality))
        self.estop = self.node.create_publisher(Bool, "estop", profile(Quality(True, True)))
        self._beat = self.node.create_publisher(Header, "supervisor", profile(Quality(True)))
        self._fault = self.node.create_publisher(String, "fault", profile(Quality(True, depth=10)))
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._spin, self._supervise)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import rclpy

        for name in list(self.processes):
            self.kill(name)
        self._ending.set()
        self._executor.shutdown(timeout_sec=2.0)
        for thread in self._threads:
            thread.join(2.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)
        self._claim.close()
        hurry(0)
        if error is not None:
            print(f"logs of the rig's processes: {self.folder}", file=sys.stderr)

    # -- processes -------------------------------------------------------------------------------------------------------

    def start(self, name: str, node: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`python -m kineflow.deploy.ros2.start <node> words` in a session of its own."""
        settings = {
            **os.environ,
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_LOG_DIR": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        command = [sys.executable, "-m", "kineflow.deploy.ros2.start", node, *words]
        # No `timeout` in between: signals are for the node itself. The limit is a timer of ours, and pytest's.
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=settings, start_new_session=True, preexec_fn=self._begin_child
            )
        killer = threading.Timer(LONGEST_S, _kill_session, [process])
        killer.daemon = True
        killer.start()
        self.processes[name] = process
        return process

    def _begin_child(self) -> None:
        """In the child: Linux kills it when the rig's process is gone, however that ended."""
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        hurry(self._priority)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            _kill_session(process)
            process.wait(5.0)

    def send_signal(self, name: str, number: int) -> float:
        """Send a signal; when (monotonic)."""
        now = time.monotonic()
        os.kill(self.processes[name].pid, number)
        return now

    def end(self, name: str, number: int = signal.SIGTERM, within_s: float = 5.0) -> tuple[int, float]:
        """Signal, wait: exit code and seconds."""
        begin = self.send_signal(name, number)
        process = self.processes.pop(name)
        try:
            return process.wait(within_s), time.monotonic() - begin
        except subprocess.TimeoutExpired:
            _kill_session(process)
            process.wait(5.0)
            return -signal.SIGKILL, within_s

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # -- the node --------------------------------------------------------------------------------------------------------

    def change(self, transition: str, node: str = "policy", within_s: float = START_S) -> bool:
        """A lifecycle transition by service; whether it was done.

        An answer can be lost while the two are still being introduced: then the node's state tells, or it is asked again.
        """
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        number, goal = _TRANSITIONS[transition]
        request, until = ChangeState.Request(transition=Transition(id=number)), time.monotonic() + within_s
        while time.monotonic() < until:
            with contextlib.suppress(KineflowError):
                return bool(self.call(ChangeState, f"/{node}/change_state", request, 8.0).success)
            if self.state(node) == goal:
                return True
        raise KineflowError(f"{node} did not answer to {transition}: see {self.folder}")

    def state(self, node: str = "policy", within_s: float = START_S) -> str:
        from lifecycle_msgs.srv import GetState

        return str(self.call(GetState, f"/{node}/get_state", GetState.Request(), within_s, again_s=2.0).current_state.label)

    def call(self, kind: Any, name: str, request: Any, within_s: float = START_S, again_s: float = START_S) -> Any:
        """Call a service and wait; asked again every `again_s`, for what may be asked twice.

        A killed node's services stay in the graph for 20 s and take requests: so clients are kept, and have met the living one.

        Raises:
            KineflowError: nobody answers within the time.
        """
        until = time.monotonic() + within_s
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        if not client.wait_for_service(timeout_sec=within_s):
            raise KineflowError(f"nobody offers {name}; the node did not start: see {self.folder}")
        while time.monotonic() < until:
            future = client.call_async(request)
            if wait_for(future.done, min(again_s, until - time.monotonic())):
                return future.result()
        raise KineflowError(f"{name} did not answer within {within_s:g} s: see {self.folder}")

    def meet(self, node: str = "policy", within_s: float = START_S) -> str:
        """Wait until a node that was just started answers on its services: its state."""
        from lifecycle_msgs.srv import ChangeState, GetState
        from std_srvs.srv import Trigger

        for kind, name in ((ChangeState, "change_state"), (Trigger, "reset_estop"), (Trigger, "reset_fault")):
            self._clients.setdefault(f"/{node}/{name}", self.node.create_client(kind, f"/{node}/{name}"))
        state = self.call(GetState, f"/{node}/get_state", GetState.Request(), within_s, again_s=1.0)
        time.sleep(0.3)  # the others are met with it
        return str(state.current_state.label)

    def trigger(self, name: str) -> bool:
        """A std_srvs/Trigger that may be asked twice; its success."""
        from std_srvs.srv import Trigger

        return bool(self.call(Trigger, name, Trigger.Request(), again_s=2.0).success)

    def run_policy(self, begin: bool, node: str = "policy") -> tuple[bool, str]:
        """The service that begins a run, or cancels it: whether it was done, and its message."""
        from std_srvs.srv import SetBool

        answer = self.call(SetBool, f"/{node}/run", SetBool.Request(data=begin))
        return bool(answer.success), str(answer.message)

    def press_estop(self, pressed: bool) -> float:
        from std_msgs.msg import Bool

        now = time.monotonic()
        self.estop.publish(Bool(data=pressed))
        return now

    def fault(self, text: str) -> float:
        from std_msgs.msg import String

        now = time.monotonic()
        self._fault.publish(String(data=text))
        return now

    def wait_for_publisher(self, topic: str, within_s: float = START_S) -> None:
        if not wait_for(lambda: bool(self.node.get_publishers_info_by_topic(topic)), within_s):
            raise KineflowError(f"nobody publishes {topic}; see {self.folder}")

    def since(self, begin_s: float) -> list[Heard]:
        return [heard for heard in self.heard if heard.received_s >= begin_s]

    def report(self, name: str = "policy") -> Report | None:
        return next((report for report in reversed(self.reports) if report.name == name), None)

    # -- threads ---------------------------------------------------------------------------------------------------------

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def _supervise(self) -> None:
        from std_msgs.msg import Header

        while not self._ending.wait(0.1):
            if self.beating:
                self._beat.publish(Header(stamp=self.node.get_clock().now().to_msg()))

    def _on_command(self, message: Any) -> None:
        stamp = message.header.stamp
        twist = message.twist
        self.heard.append(Heard(time.monotonic(), stamp.sec + 1e-9 * stamp.nanosec, twist.linear.x, twist.angular.z))

    def _on_report(self, message: Any) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            self.reports.append(Report(time.monotonic(), status.name, level, status.message, values))

    def _on_run(self, message: Any) -> None:
        self.runs.append({pair.key: pair.value for pair in message.values})

    def _on_status(self, message: Any) -> None:
        self.status.append((time.monotonic(), message.data))


def claim_domain() -> tuple[int, socket.socket]:
    """A ROS domain that no other rig of this machine is in, and what keeps it so until it is closed or its process ends: another
    rig's commands would be taken for ours.

    Raises:
        KineflowError: every domain is taken.
    """
    claim, first = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), os.getpid() * 13 + next(_rigs)  # each time another one
    for k in range(len(DOMAINS)):
        domain = DOMAINS[(first + k) % len(DOMAINS)]
        with contextlib.suppress(OSError):
            claim.bind(f"\0kineflow-rig-domain-{domain}")  # a name without a file, which cannot be left behind
            return domain, claim
    claim.close()
    raise KineflowError(f"rigs are in all ROS domains {DOMAINS.start} to {DOMAINS.stop - 1} of this machine; end some of them")


def wait_for(condition: Callable[[], bool], within_s: float, every_s: float = 0.01) -> bool:
    """Whether it came true in time."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True


def hurry(nice: int) -> None:
    """This process' priority, and that of its session, by which Linux shares the processor first where autogroups are on."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
