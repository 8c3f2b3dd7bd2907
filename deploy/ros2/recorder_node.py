"""The recorder as a process of its own: an episode and a bag of each run of the policy, or between two calls of a service.

`python -m kineflow.deploy.ros2.start recorder --ros-args -p config:=recorders/wheeled`

    ~/record     std_srvs/SetBool: true begins, false finishes          ~/status     std_msgs/String, kept for who comes late
    /diagnostics once a second: counts of messages, of samples in the journal, of what was dropped

It subscribes what the policy node hears and says, raw, as soon as somebody publishes it. What came in the second before a
recording, and the last message of topics that are kept, are in it. Journals of recorders that were killed become episodes when
the next one starts (as by `kineflow data repair`).
"""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.repair import repair
from kineflow.deploy.governor import Governor
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.inputs import message_class
from kineflow.deploy.ros2.intake import GoalIntake, Intake
from kineflow.deploy.ros2.messages import diagnostic_message
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.policy_source import load
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.qos import Quality, choose, offers_of, profile
from kineflow.deploy.ros2.recorder_config import RecorderConfig
from kineflow.deploy.ros2.recording import Raw, Recording, lanes_of

LOOK_S = 0.5
REPORT_S = 1.0
QUEUE = 100
MOST_BEHIND = 600  # messages that wait to be written: further ones are dropped and counted
FEEDBACK, RESULT = "/policy/run/feedback", "/policy/run/result"
SPOKEN = ("/policy/heartbeat", "/policy/status", FEEDBACK, RESULT, "/diagnostics", "/clock")


class RecorderNode(Node):  # type: ignore[misc]
    """See the module. One thread hears and notes when, one writes, one commits finished episodes."""

    def __init__(self, context: Any) -> None:
        super().__init__("recorder", context=context)
        self.ending = threading.Event()
        name = str(self.declare_parameter("config", "recorders/wheeled").value)
        words = [word for word in self.declare_parameter("overrides", [""]).value or [] if word]
        self._config = load_config(RecorderConfig, name, words)
        self._node_config = load_config(NodeConfig, self._config.node)
        self._contract = load(self._node_config.policy).contract
        interface = self._contract.interface
        if self._config.interface:
            interface = load_config(Interface, self._config.interface)
        lanes_of(interface, self._node_config)  # a stream that comes from nowhere is an error now, not after an hour
        self._store = open_store(Path(self._config.store), interface)
        for journal in repair(self._store.path).journals:
            self.get_logger().warning(f"recording {journal.journal}: {journal.outcome}, {journal.steps} steps {journal.problem}")
        self._store.reload()
        self._inbox = GoalInbox(self._contract, self._node_config.goals.video_rate_hz)
        self._kept: dict[str, Raw] = {}  # the last message of topics that are kept for who comes late
        self._before: deque[Raw] = deque()
        self._recording: Recording | None = None
        self._run = ""
        self._ended: str | None = None
        self._worker = ThreadPoolExecutor(1, "kineflow-commit")
        self._queue: queue.SimpleQueue[tuple[Recording, Raw] | tuple[Recording, bool | None] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="kineflow-write", daemon=True)
        self._writer.start()
        self._behind = 0
        self._wanted = self._topics()
        self._heard: dict[str, Any] = {}
        self._status = self.create_publisher(String, "~/status", profile(Quality(True, True)))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/record", self._on_record)
        self.create_timer(LOOK_S, self._look)
        self.create_timer(REPORT_S, self._report)
        self._say("ready")
        self._look()

    def stop_now(self) -> None:
        """Commits what is being recorded; the process ends afterwards."""
        self._finish(None)
        self._queue.put(None)
        self._writer.join()
        self._worker.shutdown(wait=True)

    def _topics(self) -> dict[str, str]:
        """Topic -> type, "" where the graph must tell."""
        config, robot = self._node_config, load_config(RobotProfile, self._node_config.robot)
        intake = Intake(self._contract, robot, config, Governor(robot), lambda *sample: "")
        goals = GoalIntake(GoalInbox(self._contract, config.goals.video_rate_hz), config, lambda told: None)
        listened = [(tap.topic, tap.type) for tap in intake.taps] + [(tap.topic, tap.type) for tap in goals.taps]
        found = {self.resolve_topic_name(topic): kind for topic, kind in listened}
        told = [config.command_topic, f"shadow_{config.command_topic}", *SPOKEN, *self._config.topics]
        return found | {self.resolve_topic_name(topic): "" for topic in told}

    def _look(self) -> None:
        """Subscribe what is published by now, with what its publishers offer."""
        for topic, kind in self._wanted.items():
            if topic in self._heard or not (offers := offers_of(self, topic)):
                continue
            kind = kind or offers[0].type_name
            try:
                found = message_class(kind)
            except KineflowError as error:
                self.get_logger().error(f"'{topic}' is not recorded: {error}")
                self._heard[topic] = None
                continue
            quality = choose(offers, depth=QUEUE, latched=True)
            take = self._taker(topic, kind, quality.transient)
            self._heard[topic] = self.create_subscription(found, topic, take, profile(quality), raw=True)
            if topic in (FEEDBACK, RESULT) and self._config.each_run:
                self.create_subscription(found, topic, self._on_run, profile(quality))

    def _taker(self, topic: str, kind: str, kept: bool) -> Any:
        window_ns = round(1e9 * self._config.before_s)

        def take(data: bytes, info: Any) -> None:
            # When the middleware had it: this thread may be behind.
            raw = Raw(topic, kind, bytes(data), int(info.get("received_timestamp") or time.time_ns()))
            if kept:
                self._kept[topic] = raw
            if self._recording is not None:
                self._put(raw)
                return
            self._before.append(raw)
            while self._before[0].log_ns < raw.log_ns - window_ns:
                self._before.popleft()

        return take

    def _put(self, raw: Raw) -> None:
        if self._queue.qsize() > MOST_BEHIND:
            self._behind += 1
        elif self._recording is not None:
            self._queue.put((self._recording, raw))

    def _write(self) -> None:
        """The writing thread. A disk without room ends the recording; the robot drives on."""
        full: Recording | None = None
        while (item := self._queue.get()) is not None:
            recording, what = item
            if not isinstance(what, Raw):
                self._worker.submit(self._commit, recording, what)
            elif recording is not full:
                try:
                    recording.take(what)
                except (KineflowError, OSError) as error:
                    self.get_logger().fatal(f"{recording.id} ends here: {error}")
                    full = recording

    # -- beginning and ending ---------------------------------------------------------------------------------------------

    def _on_record(self, request: Any, response: Any) -> Any:
        if request.data and self._recording is not None:
            response.success, response.message = False, f"already recording {self._recording.id}"
        elif request.data:
            response.message = self._begin()
            response.success = self._recording is not None
        else:
            response.success = self._recording is not None
            response.message = self._recording.id if self._recording else "nothing is being recorded"
            self._finish(None)
        return response

    def _on_run(self, message: Any) -> None:
        """A recording that was begun by hand outlives runs."""
        values = {pair.key: pair.value for pair in message.values}
        run, state = values.get("run", ""), values.get("state", "")
        if state == "running" and self._recording is None and run != self._ended:
            self._run = run
            self._begin()
        elif state != "running" and self._recording is not None and self._run == run:
            self._finish({"done": True, "failed": False}.get(state))
        if state != "running":
            self._ended = run  # feedback of it may still be under way

    def _begin(self) -> str:
        """The id of the recording, or why there is none."""
        config = self._config
        try:
            self._recording = Recording(
                self._store,
                Path(config.bags),
                self._inbox,
                self._node_config,
                operator=config.operator,
                flush_s=config.flush_s,
            )
        except (KineflowError, OSError) as error:
            self.get_logger().error(f"cannot record: {error}")
            self._say(f"cannot record: {error}")
            return str(error)
        begin_ns = self._before[0].log_ns if self._before else time.time_ns()
        earlier = [raw._replace(log_ns=begin_ns) for raw in self._kept.values() if raw.log_ns < begin_ns]
        for raw in (*earlier, *self._before):
            self._put(raw)
        self._before.clear()
        self._say(f"recording {self._recording.id}")
        return self._recording.id

    def _finish(self, success: bool | None) -> None:
        recording, self._recording, self._run = self._recording, None, ""
        if recording is not None:
            self._queue.put((recording, success))

    def _commit(self, recording: Recording, success: bool | None) -> None:
        try:
            said = recording.finish(success)
        except (KineflowError, OSError) as error:
            self.get_logger().fatal(f"{recording.id} is not committed; its journal stays for `kineflow data repair`: {error}")
            said = f"not committed: {recording.id}: {error}"
        self._say(said)

    # -- reports ------------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._status.publish(String(data=text))

    def _report(self) -> None:
        recording = self._recording
        values: dict[str, Any] = {"recording": recording.id if recording else "none", "topics": len(self._heard)}
        values |= {"waiting": self._queue.qsize(), "dropped_behind": self._behind}
        values["free_gb"] = shutil.disk_usage(self._store.path).free / 1e9
        if recording is not None:
            values |= {"bag": recording.bag.name, "messages": recording.messages}
            values |= {"samples": dict(recording.samples), "dropped": dict(recording.dropped)}
        summary = f"recording {recording.id}" if recording else "ready"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostic_message("recorder", "ok", summary, values, stamp))


def open_store(path: Path, interface: Interface) -> EpisodeStore:
    """The store at `path`, made when it is missing.

    Raises:
        KineflowError: it has other streams.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return EpisodeStore.create(path, interface, provenance="recorded on a robot")
    store = EpisodeStore.open(path)
    if store.interface != replace(interface, goals={}):
        raise KineflowError(f"{path} has other streams than the policy; record into another store: {store.interface}")
    return store


def main() -> int:
    return run_process(RecorderNode, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
