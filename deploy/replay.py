"""`kineflow deploy replay`: a recorded bag drives the node's path in virtual time, message by message.

    bag --in order of receipt--> Intake, GoalIntake --> executor --> governor --> commands        (the node's own parts)
              clock: the time of receipt               latencies: measured here, or stated

The bag's heartbeats say when the node was active, and when its ticks were; without them it is activated as soon as every stream
is fresh, and again when an e-stop was released. What the bag lacks for the robot's safety is taken as given, and said so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from kineflow.contracts import ActionChunk, KineflowError, Policy, PolicyContract
from kineflow.deploy.asking import FollowsGoal, Question
from kineflow.deploy.bag import Bag, Received
from kineflow.deploy.live.feed import Commanded, Show
from kineflow.deploy.recorded_runs import HEARTBEAT, TOPICS, changes_of, since, waits_for_runs
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.assembly import Assembly, assemble
from kineflow.deploy.ros2.contract_check import check as check_contract
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.intake import GoalIntake, GoalTap, Intake, Tap
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.readers import twist_values
from kineflow.deploy.ros2.runs import CANCELLED, NO_RUN
from kineflow.deploy.simulate import Trace, drive, simulated

_FEWEST_SHARE = 0.5  # of the expected rate, as the node's check of wiring
_SAME_S = 1e-9


@dataclass(frozen=True)
class Recorded:
    """Commands in the bag: times `[N]` for which they were governed (s, of the replay), values `[N, A]`."""

    times_s: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Replayed:
    """What came of it. `latencies_s`: of each answer, as applied; `notes`: what was assumed, and what is odd about the bag."""

    trace: Trace
    latencies_s: tuple[float, ...]
    recorded: Recorded | None
    start_s: float
    activations: int
    notes: tuple[str, ...]
    received: Mapping[str, int]
    faults: Mapping[str, str]
    events: Mapping[str, int]  # what the governor counted


def replay(
    path: Path,
    policy: Policy,
    config: NodeConfig,
    robot: RobotProfile,
    *,
    latency_s: float | None = None,
    partial: bool = False,
    remap: Mapping[str, str] | None = None,
    show: Show | None = None,
) -> Replayed:
    """Drive the bag's messages through the node's path. `latency_s`: of every answer, None: the time that it takes here;
    `remap`: topics of the configuration to those of the bag; `partial`: also a bag that is not whole; `show`: who watches.

    Raises:
        ContractError: policy, robot and configuration do not belong together, as the node would say.
        KineflowError: a bag that cannot be read or is not whole, or that lacks a topic which the policy needs.
    """
    check_contract(policy.contract, robot, config)
    names = {absolute(ours): absolute(theirs) for ours, theirs in (remap or {}).items()}
    commands = names.get(absolute(config.command_topic), absolute(config.command_topic))
    shadow = absolute(f"shadow_{config.command_topic}")
    bag = Bag.open(path, (*TOPICS, commands, shadow))
    if bag.damage and not partial:
        raise KineflowError(f"{bag.damage}; replay what there is with --partial")
    robot, config, notes = _as_recorded(bag, robot, config, names)
    player = _Player(bag, policy.contract, robot, config, names)
    notes = [*([bag.damage] if bag.damage else []), *notes, *_slow(bag, config, names)]
    start_s = player.begin()
    took = [0.0]
    latencies: list[float] = []

    def ask(question: Question) -> ActionChunk:
        started = time.perf_counter()
        chunk = policy.predict(question.observation, question.request)
        took[0] = time.perf_counter() - started
        return chunk

    def latency(question: Question) -> float:
        latencies.append(took[0] if latency_s is None else latency_s)
        return latencies[-1]

    for question in player.made.control.executor.warm_up():
        ask(question)
    command = Commanded(robot.command.names, robot.limits.low, robot.limits.high)
    watch = show.episode(player.made.control, robot.name, command) if show else None
    episode = simulated(player.made.control, player, latency, robot.rate_hz, player.length_s - start_s, start_s, watch)
    trace = drive(episode, ask)
    axes = robot.command.names
    recorded = _recorded(bag.known[commands] or bag.known[shadow], axes, bag.first_ns)
    if not bag.known[HEARTBEAT]:
        notes.append(f"no {HEARTBEAT}: activated as soon as every stream was fresh, {start_s:.2f} s after the bag's beginning")
    state = player.made.governor.state(player.length_s)
    return Replayed(
        trace,
        tuple(latencies),
        recorded,
        start_s,
        player.activations,
        tuple(notes),
        dict(player.intake.received),
        dict(player.intake.faults),
        {**state["counts"], **state["reasons"]},
    )


class _Player:
    """A `SimulatedRobot` whose world is the bag; it delivers messages itself, each at its own time of receipt."""

    def __init__(
        self, bag: Bag, contract: PolicyContract, robot: RobotProfile, config: NodeConfig, names: Mapping[str, str]
    ) -> None:
        self._bag, self._names = bag, names
        self.made: Assembly = assemble(contract, robot, config)
        executor = self.made.control.executor
        self.intake = Intake(contract, robot, config, self.made.governor, executor.observe)
        goals = GoalIntake(GoalInbox(contract, config.goals.video_rate_hz), config, self._follow)
        self._takes: dict[str, list[Callable[[Received], None]]] = {}
        self._checked: set[str] = set()  # taps of which a message was looked at, as the node does at configure
        for tap in self.intake.taps:
            self._check(tap.topic, tap.type, tap.name, tap.needed)
            self._takes.setdefault(self._topic(tap.topic), []).append(partial(self._tapped, tap))
        for goal in goals.taps:
            self._check(goal.topic, goal.type, "goal", False)
            self._takes.setdefault(self._topic(goal.topic), []).append(partial(self._told_by, goal))
        self._messages = bag.messages(self._takes.keys())
        self._next: Received | None = next(self._messages, None)
        self._told: FollowsGoal | None = None
        self._changes = changes_of(bag.known, bag.first_ns)
        self._begun = tuple(self._changes)
        self.activations = 0
        self._now_s = 0.0
        self.is_done = False

    @property
    def length_s(self) -> float:
        return self._bag.length_s

    def begin(self) -> float:
        """Deliver what came before the node was active, and activate it: when.

        Raises:
            KineflowError: it could never be activated; says why.
        """
        start_s = next((change.at_s for change in self._changes if change.what == "active"), None)
        if start_s is not None:
            self._deliver(start_s)
            self._change(start_s)
            return start_s
        observations, governor = self.made.control.executor.observations, self.made.governor
        while self._next is not None:
            now_s = self._when(self._next)
            self._deliver(now_s)
            if not observations.silence(now_s) and not governor.state(now_s)["estop_latched"]:
                self._activate(now_s)
                return now_s
        why = observations.silence(self.length_s) or "the e-stop was pressed all the time"
        raise KineflowError(f"{self._bag.path}: the node would never have been active: {why}")

    def advance(self, now_s: float) -> None:
        self._now_s = now_s
        self._change(now_s)
        self._deliver(now_s)
        if not self._bag.known[HEARTBEAT]:
            self._activate_again(now_s)
        self.is_done = self._next is None and now_s >= self.length_s

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        return iter(())  # `advance` delivered everything

    def command(self, values: np.ndarray, now_s: float) -> None:
        """A bag does not move by commands."""

    def arrived(self) -> None:
        """Nor does it end by them."""

    def _change(self, until_s: float) -> None:
        """What happened to the node by then, each in its turn among the messages."""
        while self._changes and self._changes[0].at_s <= until_s + _SAME_S:
            change = self._changes.pop(0)
            self._deliver(change.at_s)
            executor, governed = self.made.control.executor, self.made.governed
            if change.what == "active":
                self._activate(change.at_s)
                governed.paused = NO_RUN if waits_for_runs(self._begun, change.at_s) else ""
            elif change.what == "stopped":
                self.made.governor.deactivate()
            elif change.what == "begin":
                governed.paused = ""
                if change.by_service:
                    executor.reset(change.at_s, "told to run")
            elif change.by_service or change.why == CANCELLED:
                governed.paused = change.why
                if change.why == CANCELLED:
                    executor.reset(change.at_s, CANCELLED)

    def _deliver(self, until_s: float) -> None:
        while self._next is not None and self._when(self._next) <= until_s + _SAME_S:
            received = self._next
            self._now_s = self._when(received)
            for take in self._takes[received.topic]:
                take(received)
            self._next = next(self._messages, None)

    def _told_by(self, tap: GoalTap, received: Received) -> None:
        tap.take(received.message, received.data, self._when(received))

    def _tapped(self, tap: Tap, received: Received) -> None:
        if tap.name not in self._checked:
            self._checked.add(tap.name)
            if fault := tap.check(received.message):
                raise KineflowError(f"{self._bag.path}: {tap.name}: '{received.topic}': {fault}")
        tap.take(received.message, 1e-9 * received.log_ns, self._when(received))

    def _activate(self, now_s: float) -> None:
        """As the node does; what the operator cleared before is not in the bag, but was."""
        governor, executor = self.made.governor, self.made.control.executor
        governor.reset_estop(now_s)
        governor.reset_fault(now_s)
        try:
            governor.activate(now_s)
        except KineflowError:  # the e-stop is heard as pressed a moment longer than the node heard it
            return
        self.activations += 1
        executor.set_goal(self._told, now_s) if self._told else executor.reset(now_s, "activated")

    def _activate_again(self, now_s: float) -> None:
        governor, observations = self.made.governor, self.made.control.executor.observations
        state = governor.state(now_s)
        if not state["active"] and not state["fault"] and not observations.silence(now_s) and not governor.reset_estop(now_s):
            self._activate(now_s)

    def _follow(self, told: FollowsGoal | None) -> None:
        self._told, executor = told, self.made.control.executor
        executor.set_goal(told, self._now_s) if told else executor.clear_goal(self._now_s)

    def _when(self, received: Received) -> float:
        return 1e-9 * (received.log_ns - self._bag.first_ns)

    def _topic(self, ours: str) -> str:
        return self._names.get(absolute(ours), absolute(ours))

    def _check(self, ours: str, kind: str, name: str, needed: bool) -> None:
        topic = self._topic(ours)
        facts = self._bag.topics.get(topic)
        if facts is None and needed:
            raise KineflowError(
                f"{self._bag.path} has no topic '{topic}' ({name}, {kind}); it has {sorted(self._bag.topics)}. Name the one that "
                f"is meant with --remap {ours}:=TOPIC, or record it"
            )
        if facts is not None and facts.type != kind:
            raise KineflowError(
                f"{self._bag.path}: {name}: '{topic}' is {facts.type}, needed is {kind}; name another topic with --remap "
                f"{ours}:=TOPIC"
            )


def absolute(topic: str) -> str:
    """As a node without a namespace resolves it."""
    return topic if topic.startswith("/") else f"/{topic}"


def _as_recorded(
    bag: Bag, robot: RobotProfile, config: NodeConfig, names: Mapping[str, str]
) -> tuple[RobotProfile, NodeConfig, list[str]]:
    """Robot and node without the watchdogs and sensors of topics that nobody recorded, and one line for each."""
    notes, dogs = [], robot.watchdogs

    def lacks(topic: str) -> bool:
        return names.get(absolute(topic), absolute(topic)) not in bag.topics

    if dogs.estop and lacks(config.estop_topic):
        dogs = replace(dogs, estop=False)
        notes.append(f"no {absolute(config.estop_topic)}: taken as released all the time")
    if math.isfinite(dogs.supervisor_s) and lacks(config.supervisor_topic):
        dogs = replace(dogs, supervisor_s=math.inf)
        notes.append(f"no {absolute(config.supervisor_topic)}: the supervisor is taken as alive all the time")
    scan, depths = config.scan_topic, dict(config.depths)
    gone = [topic for topic in (scan, *(depth.topic for depth in depths.values())) if topic and lacks(topic)]
    depths = {name: depth for name, depth in depths.items() if depth.topic not in gone}
    config = replace(config, scan_topic="" if scan in gone else scan, depths=depths)
    if robot.keep_out and gone:
        is_blind = not (config.scan_topic or depths)
        word = "nothing keeps the robot out of obstacles" if is_blind else "it looks for obstacles with less"
        notes += [f"no {absolute(topic)}: {word} in this replay" for topic in gone]
        robot = replace(robot, keep_out=None) if is_blind else robot
    if robot.geofence and lacks(config.pose_topic):
        notes.append(f"no {absolute(config.pose_topic)}: nothing keeps the robot within its fence in this replay")
        robot = replace(robot, geofence=None)
    return replace(robot, watchdogs=dogs), config, notes


def _slow(bag: Bag, config: NodeConfig, names: Mapping[str, str]) -> Iterator[str]:
    """Topics that the node would have refused at configure."""
    expected = {f"camera '{name}'": topic for name, topic in config.cameras.items()}
    wanted = [(name, camera.topic, camera.rate_hz) for name, camera in expected.items()]
    wanted += [(f"feature '{name}'", f.topic, f.rate_hz) for name, f in config.features.items() if f.topic]
    for name, topic, rate_hz in wanted:
        facts = bag.topics[names.get(absolute(topic), absolute(topic))]
        if facts.rate_hz < _FEWEST_SHARE * rate_hz:
            yield f"{name}: '{absolute(topic)}' came at {facts.rate_hz:.1f} Hz, expected are {rate_hz:g}: the node would refuse"


def _recorded(messages: tuple[Received, ...], axes: tuple[str, ...], first_ns: int) -> Recorded | None:
    """Of Twist or TwistStamped; None for other commands."""
    if not messages or not messages[0].message.__msgtype__.endswith(("/Twist", "/TwistStamped")):
        return None
    stamped = hasattr(messages[0].message, "header")
    times = [since(m.message.header.stamp, first_ns) if stamped else 1e-9 * (m.log_ns - first_ns) for m in messages]
    rows = [twist_values(m.message.twist if stamped else m.message, axes) for m in messages]
    return Recorded(np.array(times), np.array(rows, np.float64))
