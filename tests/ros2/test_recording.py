"""Runs of a policy, recorded and replayed: to a goal through ROS 2, and the same episode through the executor in process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from std_msgs.msg import String
from std_srvs.srv import SetBool

from kineflow.config import CONFIG_ROOT, load_config
from kineflow.contracts import Goal
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.repair import repair
from kineflow.deploy.bag import Bag
from kineflow.deploy.replay import Recorded, replay
from kineflow.deploy.replay_report import agreement
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Rig, parameters, wait_for
from kineflow.deploy.ros2.session import Session
from kineflow.deploy.ros2.toy_policies import to_point

TICK_S, GOAL = 0.02, (1.0, 0.4)
pytestmark = pytest.mark.real_time


@dataclass
class Recordings:
    """The session, the folder of the recordings, what the recorder says and where the base is."""

    session: Session
    folder: Path
    said: list[str] = field(default_factory=list)
    places: list[tuple[float, float]] = field(default_factory=list)
    has_driven: bool = False

    def drive_to_goal(self) -> None:
        """The first run of this recorder, which several tests look at: whichever comes first makes it. Nothing moves before it
        is asked for; feedback while it runs, `done` at the end."""
        if self.has_driven:
            return
        rig, self.has_driven = self.session.rig, True
        self.tell_goal(*GOAL)
        assert wait_for(lambda: len(rig.heard) > 50, 30.0)
        assert all(h.is_zero for h in rig.heard)
        assert "no run was asked for" in rig.status[-1][1]
        done, message = rig.run_policy(True)
        assert (done, message) == (True, "run 1")
        assert wait_for(lambda: any(r["state"] == "done" for r in rig.runs), 90.0), (rig.runs[-1:], self.places[-1])
        assert wait_for(lambda: any(text.startswith("episode ") for text in self.said), 60.0), self.said

    def start_recorder(self) -> None:
        text = (CONFIG_ROOT / "nodes" / "wheeled.yaml").read_text().replace("toy_policies:forward", "toy_policies:to_point")
        (self.folder / "node.yaml").write_text(text)
        (self.folder / "recorder.yaml").write_text(
            f"node: {self.folder}/node.yaml\nstore: {self.folder}/store\nbags: {self.folder}/bags\n"
        )
        before = len(self.said)
        self.session.rig.start("recorder", "recorder", *parameters(config=self.folder / "recorder.yaml"))
        assert wait_for(lambda: "ready" in self.said[before:], 30.0), self.session.rig.log("recorder")

    def tell_goal(self, x: float, y: float) -> None:
        message = PoseStamped()
        message.header.frame_id, message.pose.orientation.w = "odom", 1.0
        message.pose.position.x, message.pose.position.y = x, y
        self._goals.publish(message)
        time.sleep(0.3)  # what is asked of the node next comes by another way, and is not to overtake it

    def __post_init__(self) -> None:
        node = self.session.rig.node
        self._goals = node.create_publisher(PoseStamped, "goal_pose", profile(Quality(True, True)))
        node.create_subscription(String, "recorder/status", lambda m: self.said.append(m.data), profile(Quality(True, True, 10)))
        node.create_subscription(Odometry, "odom", self._on_odometry, profile(Quality(False)))

    def _on_odometry(self, message: Odometry) -> None:
        self.places.append((message.pose.pose.position.x, message.pose.pose.position.y))

    def bags(self) -> list[Path]:
        return sorted((self.folder / "bags").glob("*.mcap"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recordings]:
    """Base, recorder, and a node that is active and waits to be asked."""
    with Rig() as rig:
        session = Session(rig, policy="to_point", guarded=False, overrides=("--starts", "asked"))
        session.start_base()
        rig.press_estop(False)
        found = Recordings(session, tmp_path_factory.mktemp("recordings"))
        found.start_recorder()
        session.start_node()
        session.configure()
        session.activate(moves=False)
        yield found


def test_a_run_drives_to_its_goal_and_says_so(recordings: Recordings) -> None:
    rig = recordings.session.rig
    recordings.drive_to_goal()
    feedback, result = [r for r in rig.runs if r["state"] == "running"], rig.runs[-1]
    assert len(feedback) >= 3 * float(result["seconds"])
    assert result["run"] == "1"
    assert result["why"] == "arrived"
    assert wait_for(lambda: rig.heard[-1].is_zero, 30.0)
    assert math.dist(recordings.places[-1], GOAL) < 0.15


def test_the_run_is_an_episode_of_the_store(recordings: Recordings) -> None:
    """Stamps, poses and commands as they were sent; what the run was to reach, and that it did."""
    recordings.drive_to_goal()
    store = EpisodeStore.open(recordings.folder / "store")
    episode, rig = store.episode(0), recordings.session.rig
    assert episode.success is True
    assert isinstance(episode.goals["point"], Goal)
    np.testing.assert_allclose(episode.goals["point"].value, [1.0, 0.4, 0.0], atol=1e-6)
    sent = {round(1e9 * h.stamp_s): (h.vx, h.yaw_rate) for h in rig.heard}
    action = episode.streams["action"]
    found = {int(ns): row for ns, row in zip(action.stamp_ns, action.values)}
    near = [min(sent, key=lambda other, ns=ns: abs(other - ns)) for ns in found]
    assert max(abs(a - b) for a, b in zip(near, found)) < 1000  # ns, of float stamps here
    np.testing.assert_allclose([row[[0, 3]] for row in found.values()], [sent[ns] for ns in near], atol=1e-6)
    assert len(episode.streams["pose"].stamp_ns) > 3 * len(episode.streams["front"].stamp_ns) > 30
    assert episode.streams["front"].values.shape[1:] == (96, 96, 3)


def test_the_bag_is_read_by_other_readers(recordings: Recordings) -> None:
    from mcap.reader import make_reader
    from rosbags.highlevel import AnyReader

    recordings.drive_to_goal()
    bag = recordings.bags()[0]
    with bag.open("rb") as file:
        summary = make_reader(file).get_summary()
        assert summary is not None
        counts = {c.topic: summary.statistics.channel_message_counts[i] for i, c in summary.channels.items()}
    for topic in ("/front", "/odom", "/scan", "/cmd_vel", "/policy/heartbeat", "/estop", "/goal_pose", "/policy/run/feedback"):
        assert counts[topic] >= 1, counts
    with AnyReader([bag]) as reader:
        messages = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages() if c.topic == "/odom"]
    assert len(messages) == counts["/odom"]
    assert messages[-1].pose.pose.position.x > 0.5


def test_replayed_in_process_the_bag_gives_the_same_commands_within_one_tick(recordings: Recordings) -> None:
    """The policy drives the base through ROS 2; executor and governor in process, given what was recorded, command the same."""
    recordings.drive_to_goal()
    rig = recordings.session.rig
    config = replace(load_config(NodeConfig, "nodes/wheeled"), policy="to_point")
    robot = load_config(RobotProfile, "robots/wheeled")
    found = replay(recordings.bags()[0], to_point(), config, robot)
    assert found.recorded is not None
    moving = np.abs(found.recorded.values).max(axis=1) > 0
    assert moving.sum() > 100
    times = np.array([tick.now_s for tick in found.trace.ticks])
    beyond = agreement(times, found.trace.commands, found.recorded, TICK_S + 1e-3)
    print(beyond)
    assert beyond is not None
    assert beyond.commands > 100
    # m/s, rad/s: what one tick of the limiter is. A node that the machine stops for a while brakes; its bag does not know why.
    is_busy = os.getloadavg()[0] > 3
    assert beyond.largest < 0.05 or is_busy, beyond
    assert beyond.median < 0.01, beyond
    # What was received by this process, the robot's neighbour, is what the bag holds.
    heard = np.array([(h.vx, h.yaw_rate) for h in rig.heard])
    assert heard[:, 0].max() == pytest.approx(found.recorded.values[:, 0].max(), abs=1e-6)
    wrong = Recorded(found.recorded.times_s, np.roll(found.recorded.values, 25, axis=0))
    shifted = agreement(times, found.trace.commands, wrong, TICK_S + 1e-3)
    assert shifted is not None
    assert shifted.largest > 0.1  # half a second late would be seen
    assert shifted.median > 0.02, shifted  # also where the machine is busy


def test_a_run_is_cancelled_by_service_and_recorded_as_such(recordings: Recordings) -> None:
    recordings.drive_to_goal()
    rig = recordings.session.rig
    recordings.tell_goal(-3.0, 0.0)
    before = len(recordings.said)
    done, message = rig.run_policy(True)
    assert (done, message) == (True, "run 2")
    assert wait_for(lambda: not rig.heard[-1].is_zero, 30.0), rig.status[-3:]
    time.sleep(0.6)
    assert rig.run_policy(False) == (True, "run 2")
    assert wait_for(lambda: rig.runs[-1]["state"] == "cancelled", 30.0)
    assert wait_for(lambda: rig.heard[-1].is_zero, 30.0)
    assert rig.state() == "active"
    assert wait_for(lambda: any(text.startswith("episode ") for text in recordings.said[before:]), 60.0), recordings.said
    store = EpisodeStore.open(recordings.folder / "store")
    assert store.num_episodes == 2
    assert store.episode(1).success is None


def test_an_estop_ends_the_run_as_failed(recordings: Recordings) -> None:
    recordings.drive_to_goal()
    rig = recordings.session.rig
    recordings.tell_goal(-3.0, 0.0)
    assert rig.run_policy(True)[0]
    assert wait_for(lambda: not rig.heard[-1].is_zero, 30.0), rig.status[-3:]
    rig.press_estop(True)
    assert wait_for(lambda: rig.runs[-1]["state"] == "failed", 30.0)
    assert "e-stop" in rig.runs[-1]["why"]
    assert rig.run_policy(True) == (False, "not active; activate the node first")
    rig.press_estop(False)
    assert wait_for(lambda: rig.state() == "inactive", 30.0)


def test_a_killed_recorder_loses_at_most_the_tail(recordings: Recordings) -> None:
    """What the recorder had counted is in the episode that repair makes; its bag is read up to the last half second."""
    rig, folder = recordings.session.rig, recordings.folder
    recordings.drive_to_goal()
    recordings.tell_goal(-3.0, 0.0)
    assert rig.trigger("/policy/reset_estop")
    if rig.state() != "active":
        recordings.session.activate(moves=False)
    before = len(recordings.said)
    assert rig.run_policy(True)[0]
    assert wait_for(lambda: any(text.startswith("recording ") for text in recordings.said[before:]), 60.0), recordings.said
    rig.run_policy(False)
    ends = ("episode ", "no episode")  # a run that ends at once may have had no command
    assert wait_for(lambda: any(text.startswith(ends) for text in recordings.said[before:]), 60.0), recordings.said
    known = EpisodeStore.open(folder / "store").num_episodes
    request = SetBool.Request(data=True)
    assert rig.call(SetBool, "/recorder/record", request).success
    assert not rig.call(SetBool, "/recorder/record", request).success  # it records already
    time.sleep(3.5)
    killed_ns = time.time_ns()
    rig.kill("recorder")  # SIGKILL
    report = rig.report("recorder")
    assert report is not None
    counted = {name: int(report.values[f"samples.{name}"]) for name in ("front", "pose", "action")}
    assert min(counted.values()) > 10, counted
    outcome = repair(folder / "store")
    assert outcome.ok
    assert outcome.episodes == known + 1
    episode = EpisodeStore.open(folder / "store").episode(known)
    kept = {name: len(episode.streams[name].stamp_ns) for name in counted}
    assert all(kept[name] >= counted[name] - 1 for name in counted), (kept, counted)  # repair keeps whole steps
    bag = Bag.open(recordings.bags()[-1])
    assert "the recorder did not finish the file" in bag.damage
    assert 1e-9 * (killed_ns - max(facts.last_ns for facts in bag.topics.values())) < 1.5
