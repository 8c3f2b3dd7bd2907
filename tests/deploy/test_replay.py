"""`kineflow deploy replay`: a bag of known messages commands what executor and governor do in process on the same values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import ContractError, KineflowError
from kineflow.datasets.exporters.ros_messages import types
from kineflow.deploy.bag import Bag
from kineflow.deploy.replay import Recorded, Replayed, replay
from kineflow.deploy.replay_report import agreement, table_of
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.assembly import assemble
from kineflow.deploy.ros2.goals import StillGoal
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.toy_policies import forward, to_point
from tests.datasets.ros_samples import MS, START, header, make, pose, twist, write_log

NODE = load_config(NodeConfig, "nodes/wheeled")
ROBOT = load_config(RobotProfile, NODE.robot)
GOAL = (3.0, 1.0)
SECONDS = 4.0
Message = tuple[str, int, Any]
_rng = np.random.default_rng(0)
PICTURE = _rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)


def places(i: int) -> tuple[float, float, float]:
    """x, y, yaw of the base at the i-th odometry, 20 ms apart: on a wide curve."""
    return 0.2 * 0.02 * i, 0.05 * math.sin(0.02 * i), 0.2 * math.sin(0.04 * i)


def messages(camera_until: float = SECONDS, estop: Sequence[tuple[float, bool]] = ((0.0, False),)) -> list[Message]:
    """A robot's topics over `SECONDS`: received 4 ms (pictures) and 1 ms (odometry) after their stamps."""
    found: list[Message] = [("/estop", START + round(1e9 * at), make("std_msgs/msg/Bool", data=down)) for at, down in estop]
    for i in range(round(SECONDS * 30)):
        stamp = START + i * 33 * MS + 5 * MS
        if 1e-9 * (stamp - START) < camera_until:
            image = make(
                "sensor_msgs/msg/Image", header=header(stamp, "front_camera"), height=96, width=96, encoding="rgb8", step=288,
                data=PICTURE.reshape(-1),
            )  # fmt: skip
            found.append(("/front", stamp + 4 * MS, image))
    for i in range(round(SECONDS * 50)):
        stamp = START + i * 20 * MS
        x, y, yaw = places(i)
        with_pose = make("geometry_msgs/msg/PoseWithCovariance", pose=pose(x, y, 0, 0, 0, math.sin(yaw / 2), math.cos(yaw / 2)))
        odometry = make("nav_msgs/msg/Odometry", header=header(stamp, "odom"), child_frame_id="base_link", pose=with_pose)
        found.append(("/odom", stamp + 1 * MS, odometry))
    for i in range(round(SECONDS * 10)):
        found.append(("/supervisor", START + i * 100 * MS, make("std_msgs/msg/Header", frame_id="guard")))
    goal = make("geometry_msgs/msg/PoseStamped", header=header(START, "odom"), pose=pose(*GOAL, 0, 0, 0, 0, 1))
    found.append(("/goal_pose", START + 507 * MS, goal))
    return sorted(found, key=lambda message: message[1])


def beats(begin: float, end: float) -> list[Message]:
    """Heartbeats of an active node from `begin` to `end`, then of one that was stopped."""
    stamps = np.arange(begin, end, 0.02)
    found = [(t, "active") for t in stamps] + [(end, "stopped")]
    stamped = [(START + round(1e9 * t), word) for t, word in found]
    return [
        ("/policy/heartbeat", ns + MS, make("std_msgs/msg/Header", stamp=header(ns).stamp, frame_id=word)) for ns, word in stamped
    ]


def bag_of(folder: Path, log: list[Message]) -> Path:
    return write_log(folder / "drive.mcap", sorted(log, key=lambda message: message[1]))


def replayed(bag: Path, latency_s: float | None = 0.03, **options: Any) -> Replayed:
    return replay(bag, to_point(), NODE, ROBOT, latency_s=latency_s, **options)


def in_process(start_s: float, latency_s: float) -> np.ndarray:
    """The oracle: no messages, no bag, no conversion, no simulate.py; executor and governor by hand on the numbers themselves."""
    policy, made = to_point(), assemble(to_point().contract, replace(ROBOT, keep_out=None), NODE)
    executor, governor = made.control.executor, made.governor
    events: list[tuple[float, int, Any]] = []
    for i in range(round(SECONDS * 30)):
        events.append((i * 0.033 + 0.009, 1, ("front", PICTURE, i * 0.033 + 0.005)))
    for i in range(round(SECONDS * 50)):
        x, y, yaw = places(i)
        value = np.array([x, y, 0, 0, 0, math.sin(yaw / 2), math.cos(yaw / 2)], np.float32)
        events.append((i * 0.02 + 0.001, 2, ("pose", value, i * 0.02)))
    events += [(i * 0.1, 0, None) for i in range(round(SECONDS * 10))]
    events.append((0.507, 3, StillGoal({"point": np.array([*GOAL, 0], np.float32)})))
    events.sort(key=lambda event: event[0])
    length_s = events[-1][0]
    governor.estop(False, 0.0)
    told, flight, commands, begun = None, None, [], False
    for k in range(10**6):
        now = start_s + k / ROBOT.rate_hz
        if now >= length_s:
            break
        while events and events[0][0] <= now + 1e-9:
            at, kind, what = events.pop(0)
            if kind == 0:
                governor.supervisor(at)
            elif kind == 3:
                told = what
                executor.set_goal(told, at)
            else:
                executor.observe(what[0], what[1], what[2], at)
        if not begun:
            begun = True
            governor.activate(now)
            executor.reset(now, "activated")
        if flight and flight[0] <= now + 1e-9:
            made.control.hear(flight[1], flight[2], flight[0])
            flight = None
        question = executor.question(now)
        if question is not None:
            flight = (now + latency_s, question, policy.predict(question.observation, question.request))
        commands.append(made.control.tick(now).command.values)
    return np.stack(commands)


def test_a_replayed_bag_commands_what_the_parts_do_in_process(tmp_path: Path) -> None:
    """By message or by value: the same commands, tick by tick, to the precision of stamps that are floats since 1970."""
    found = replayed(bag_of(tmp_path, messages() + beats(0.3, SECONDS)))
    expected = in_process(0.3, 0.03)
    commands = found.trace.commands
    assert abs(len(commands) - len(expected)) <= 1
    np.testing.assert_allclose(commands[: len(expected)], expected[: len(commands)], atol=1e-5)
    assert np.abs(commands).max() > 0.3
    assert found.notes == ("no /scan: nothing keeps the robot out of obstacles in this replay",)
    assert found.activations == 1


def test_messages_count_in_the_order_of_their_receipt(tmp_path: Path) -> None:
    """A recorder with several threads writes nearly in order."""
    log = sorted(messages() + beats(0.3, SECONDS), key=lambda message: message[1])
    mixed = [log[i] for i in np.argsort(np.arange(len(log)) + np.random.default_rng(1).uniform(0, 40, len(log)))]
    expected = replayed(bag_of(tmp_path, log)).trace.commands
    found = replayed(write_log(tmp_path / "mixed.mcap", mixed)).trace.commands
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_rosbag2_with_sqlite_storage_is_the_same_bag(tmp_path: Path) -> None:
    """Written by another package than ours."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    log, store = sorted(messages() + beats(0.3, SECONDS), key=lambda message: message[1]), types()
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections: dict[str, Any] = {}
        for topic, ns, message in log:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connections[topic], ns, store.serialize_cdr(message, message.__msgtype__))
    expected = replayed(bag_of(tmp_path, log)).trace.commands
    np.testing.assert_allclose(replayed(tmp_path / "bag").trace.commands, expected, atol=1e-6)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    with pytest.raises(KineflowError, match=r"metadata.yaml: it is missing, so the recorder did not finish.*Read: \d+ messages"):
        replayed(tmp_path / "bag")


def test_a_latency_delays_the_commands_by_as_much(tmp_path: Path) -> None:
    bag = bag_of(tmp_path, messages() + beats(0.3, SECONDS))
    first = [next(t.now_s for t in replayed(bag, s).trace.ticks if t.command.values.any()) for s in (0.0, 0.2)]
    assert first[1] - first[0] == pytest.approx(0.2, abs=0.021)


def test_a_camera_that_falls_silent_brakes_within_a_quarter_of_a_second(tmp_path: Path) -> None:
    bag = bag_of(tmp_path, messages(camera_until=2.5) + beats(0.3, SECONDS))
    found = replayed(bag)
    stopped = [t for t in found.trace.ticks if t.now_s > 1 and any("observation" in reason for reason in t.command.reasons)]
    assert stopped[0].now_s == pytest.approx(2.5 + 0.2, abs=0.05)
    assert not found.trace.commands[-1].any()
    table = table_of(found, ROBOT.command.names, ROBOT.rate_hz, measured=False)
    assert sum(n for reason, n in table["reasons"].items() if "observation" in reason) >= 40
    assert table["latency_p50_ms"] == pytest.approx(30)


def test_without_heartbeats_it_is_activated_when_all_is_fresh_and_again_after_an_estop(tmp_path: Path) -> None:
    estop = ((0.0, False), (2.0, True), (2.5, False))
    found = replayed(bag_of(tmp_path, messages(estop=estop)))
    assert found.start_s < 0.02
    assert found.activations == 2
    still = [t.command for t in found.trace.ticks if 2.01 < t.now_s < 2.49]
    assert {c.outcome for c in still} == {"estop"}
    assert not any(c.values.any() for c in still)
    assert found.trace.commands[-1].any()


def test_what_the_bag_lacks_for_safety_is_said_and_what_the_policy_needs_is_an_error(tmp_path: Path) -> None:
    log = messages() + beats(0.3, SECONDS)
    bare = bag_of(tmp_path, [m for m in log if m[0] not in ("/estop", "/supervisor")])
    notes = " ".join(replayed(bare).notes)
    assert "no /estop: taken as released" in notes
    assert "no /supervisor" in notes
    blind = bag_of(tmp_path, [("/image", ns, m) if topic == "/front" else (topic, ns, m) for topic, ns, m in log])
    with pytest.raises(KineflowError, match=r"no topic '/front' \(camera 'front', sensor_msgs/msg/Image\).*--remap front:=TOPIC"):
        replayed(blind)
    assert replayed(blind, remap={"front": "/image"}).received["front"] > 100
    with pytest.raises(KineflowError, match="'/odom' is nav_msgs/msg/Odometry, needed is sensor_msgs/msg/Image"):
        replayed(blind, remap={"front": "odom"})
    framed = replace(NODE, features={"pose": replace(NODE.features["pose"], frame="map")})
    with pytest.raises(KineflowError, match="feature 'pose': '/odom': frame is 'odom', configured is 'map'"):
        replay(blind, to_point(), framed, ROBOT, remap={"front": "/image"})
    with pytest.raises(ContractError, match="camera"):
        replay(bare, to_point(), replace(NODE, cameras={}), ROBOT)


def test_a_truncated_bag_says_what_was_read_and_is_replayed_only_on_demand(tmp_path: Path) -> None:
    bag = bag_of(tmp_path, messages() + beats(0.3, SECONDS))
    data = bag.read_bytes()
    bag.write_bytes(data[: round(0.7 * len(data))])
    with pytest.raises(KineflowError, match=r"drive.mcap is not whole: .*byte.*Read: \d+ messages over \d.\d s \(.*/front \d+"):
        replayed(bag)
    assert len(replayed(bag, partial=True).trace.ticks) > 20
    damaged = bytearray(data)
    damaged[2000] ^= 0xFF
    bag.write_bytes(damaged)
    with pytest.raises(KineflowError, match=r"drive.mcap, .*byte \d+.*Read until then: "):
        replayed(bag)
    bag.write_bytes(b"")
    with pytest.raises(KineflowError, match="not an MCAP file"):
        replayed(bag)
    with pytest.raises(KineflowError, match="is no recording"):
        Bag.open(tmp_path / "none")


def test_agreement_is_the_nearest_within_a_tick() -> None:
    times, values = np.arange(5) * 0.02, np.arange(5.0)[:, None]
    found = agreement(times, values, Recorded(np.array([0.02, 0.04, 9.0]), np.array([[2.1], [2.0], [0.0]])), 0.021)
    assert found is not None
    assert (found.commands, round(found.largest, 6)) == (2, 0.1)
    assert agreement(times, values, Recorded(np.array([9.0]), np.zeros((1, 1))), 0.02) is None


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON, the table and the page; recorded commands are compared."""
    sent = make("geometry_msgs/msg/TwistStamped", header=header(START + 10**9, "base_link"), twist=twist(0.4, 0, 0, 0, 0, 0))
    bag = bag_of(tmp_path, [*messages(), *beats(0.3, SECONDS), ("/cmd_vel", START + 10**9, sent)])
    words = ["deploy", "replay", str(bag), "kineflow.deploy.ros2.toy_policies:to_point", "--latency-ms", "20"]
    page = tmp_path / "page.html"
    assert main([*words, "--json", "--page", str(page)]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["commands"] == len(table["ticks"]) > 150
    assert table["recorded"]["commands"] == 1
    text = page.read_text()
    assert "<h2>yaw_rate</h2>" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert main([*words, "--remap", "front"]) == 2
    assert "write OURS:=BAGS" in capsys.readouterr().err
    assert main([*words, "--shadow"]) == 0
    assert "recorded commands" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_the_policy_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = bag_of(tmp_path, messages()[:50])
    (tmp_path / "file").write_text("")
    for words, said in (
        ((tmp_path / "none.mcap",), "none.mcap is no recording"),
        ((bag, "--page", tmp_path / "file" / "page.html"), "name a file where you may write"),
        ((bag, "--page", tmp_path), "name a file where you may write"),
    ):
        assert main(["deploy", "replay", str(words[0]), "no/such/policy", *map(str, words[1:])]) == 2
        assert said in capsys.readouterr().err
    for seconds in ("nan", "inf", "-1"):
        with pytest.raises(SystemExit):
            main(["deploy", "replay", str(bag), "no/such/policy", "--latency-ms", seconds])
        assert f"0 or more, got {seconds}" in capsys.readouterr().err
    words = ["deploy", "replay", str(bag), "kineflow.deploy.ros2.toy_policies:to_point", "--live", "live/wheeled"]
    assert main(words) == 2
    assert "name who shows them with --view" in capsys.readouterr().err


def test_chunks_with_nan_are_counted_as_refused(tmp_path: Path) -> None:
    """Three in a row are a fault, in a replay as on the robot."""
    policy = to_point()
    policy.plan = lambda observation, call: np.full((16, 4), np.nan)
    found = replay(bag_of(tmp_path, messages() + beats(0.3, SECONDS)), policy, NODE, ROBOT, latency_s=0.0)
    table = table_of(found, ROBOT.command.names, ROBOT.rate_hz, measured=False)
    assert table["refused"]["chunk with NaN or Inf"] >= 3
    assert any("3 chunks in a row refused" in tick["why"] for tick in table["ticks"])
    assert not found.trace.commands.any()


def test_the_policy_by_its_name_is_that_of_the_command_line(tmp_path: Path) -> None:
    """A straight-on policy drives where the one to a point would turn."""
    bag = bag_of(tmp_path, messages() + beats(0.3, SECONDS))
    found = replay(bag, forward(), NODE, ROBOT, latency_s=0.0)
    assert found.trace.commands[-20][0] == pytest.approx(0.4, abs=1e-3)
    assert not found.trace.commands[:, 3].any()
