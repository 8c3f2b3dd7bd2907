"""Foxglove: files read back by the mcap library and protobuf, and the server by a client of its websocket protocol."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.reader import make_reader
from websockets.asyncio.client import connect

from kineflow.cli import main
from kineflow.contracts import KineflowError
from kineflow.deploy.keep_out import Mount
from kineflow.deploy.live.drawing import CameraPlace, LiveConfig, drawings
from kineflow.deploy.live.foxglove_view import FoxgloveView
from kineflow.deploy.plan_path import along
from kineflow.deploy.ros2.toy_policies import forward
from tests.deploy.test_live import seen
from tests.deploy.test_replay import SECONDS, bag_of, beats, messages
from tests.deploy.watched import Kept, Plane, watched

pytest.importorskip("foxglove")
SLOW = """
import pathlib, time
from kineflow.deploy.ros2.toy_policies import to_point
def slow():
    policy = to_point()
    predict, calls = policy.predict, []
    def answer(observation, request):
        calls.append(None)
        if len(calls) > 5:
            (pathlib.Path(__file__).parent / "asked").touch()
            time.sleep(0.5)
        return predict(observation, request)
    policy.predict = answer
    return policy
"""
PLACE = CameraPlace(Mount(z=0.5, pitch=0.2), 60.0)


def protobuf(schema: Any) -> Any:
    """The message class that a file's own schema describes."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))


def read(file: Path) -> dict[str, list[tuple[float, Any]]]:
    """By topic: seconds and message."""
    found: dict[str, list[tuple[float, Any]]] = {}
    with file.open("rb") as stream:
        for schema, channel, message in make_reader(stream).iter_messages():
            is_json = channel.message_encoding == "json"
            value = json.loads(message.data) if is_json else protobuf(schema).FromString(message.data)
            found.setdefault(channel.topic, []).append((1e-9 * message.log_time, value))
    return found


def test_the_file_is_what_happened(tmp_path: Path) -> None:
    kept, policy = Kept(), forward()
    draws = drawings(policy.contract.interface, LiveConfig({"front": PLACE}))
    view = FoxgloveView(draws, tmp_path / "drive.mcap")
    watched(policy, kept, view, seconds=1.0)
    view.close()
    topics = read(tmp_path / "drive.mcap")
    commands = topics["/command"]
    np.testing.assert_allclose([at for at, _ in commands], [look.at_s for look in kept.seen], atol=1e-6)
    np.testing.assert_allclose([m["given"]["vx"] for _, m in commands], [look.commanded[0] for look in kept.seen])  # type: ignore[index]
    assert commands[0][1]["wanted"]["vx"] is None  # no plan yet
    assert commands[-1][1]["wanted"]["vx"] == pytest.approx(0.4)
    state = topics["/state"][-1][1]
    assert state["latency_ms"]["p50"] == pytest.approx(60.0)
    assert state["governor"] == kept.seen[-1].counts
    pictures = topics["/camera/front"]
    assert len(pictures) == len(kept.seen)
    for number, (_, message) in enumerate(pictures, 1):
        assert (message.encoding, message.height, message.width, message.step) == ("rgb8", 96, 96, 288)
        np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(96, 96, 3), Plane.picture(number))
    last = kept.seen[-1]
    assert last.plan is not None
    onward, strip = topics["/camera/front/plan"][-1][1].points
    expected = draws["front"](last.plan, last.step_s, 96, 96) + 0.5
    assert len(expected) > 3
    np.testing.assert_allclose([(p.x, p.y) for p in strip.points], expected)
    on = draws["front"](np.repeat(last.plan[-1:], 30, axis=0), 0.1, 96, 96) + 0.5  # straight on for 3 s
    np.testing.assert_allclose([(p.x, p.y) for p in onward.points], on)
    poses = topics["/plan"][-1][1].poses
    path = along(last.plan, last.axes, last.step_s)
    np.testing.assert_allclose([(p.position.x, p.position.y) for p in poses], path[:, :2], atol=1e-9)


def test_goals_and_depth(tmp_path: Path) -> None:
    view = FoxgloveView({}, tmp_path / "goal.mcap")
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    goal = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    view.show(seen(pictures={"depth": depth}, goal={"image": goal}, words="to the kitchen", latency_p50_s=float("nan")))
    view.close()
    topics = read(tmp_path / "goal.mcap")
    message = topics["/camera/depth"][0][1]
    assert (message.encoding, message.step) == ("16UC1", 8)
    np.testing.assert_array_equal(np.frombuffer(message.data, "<u2").reshape(3, 4), depth)
    np.testing.assert_array_equal(np.frombuffer(topics["/goal/image"][0][1].data, np.uint8).reshape(5, 7, 3), goal)
    assert topics["/goal"][0][1] == {"words": "to the kitchen"}
    assert topics["/state"][0][1]["latency_ms"]["p50"] is None
    assert topics["/state"][0][1]["ages_ms"]["pose"] is None
    with pytest.raises(KineflowError, match="another"):
        FoxgloveView({}, tmp_path / "goal.mcap")


async def listen(port: int, wanted: str, showing: threading.Event) -> list[dict[str, Any]]:
    """As the app does: hear what is offered, subscribe, read frames (opcode 1, subscription, time in ns, message)."""
    found: list[dict[str, Any]] = []
    async with connect(f"ws://127.0.0.1:{port}", subprotocols=["foxglove.sdk.v1"], max_size=None) as socket:  # type: ignore[list-item]
        assert json.loads(await socket.recv())["op"] == "serverInfo"
        showing.set()
        while len(found) < 5:
            frame = await socket.recv()
            if isinstance(frame, str):
                said = json.loads(frame)
                for channel in said.get("channels", []) if said["op"] == "advertise" else []:
                    if channel["topic"] == wanted:
                        subscription = {"op": "subscribe", "subscriptions": [{"id": 7, "channelId": channel["id"]}]}
                        await socket.send(json.dumps(subscription))
            elif frame[0] == 1:
                assert int.from_bytes(frame[1:5], "little") == 7
                found.append({"at_ns": int.from_bytes(frame[5:13], "little"), **json.loads(frame[13:])})
    return found


def test_a_client_of_the_server_hears_commands() -> None:
    view, showing, ended = FoxgloveView({}, port=0, begin_s=100.0), threading.Event(), threading.Event()

    def show() -> None:
        showing.wait(60.0)
        for tick in range(10_000):
            if ended.wait(0.01):
                return
            view.show(seen(at_s=0.01 * tick))

    thread = threading.Thread(target=show)
    thread.start()
    try:
        heard = asyncio.run(asyncio.wait_for(listen(view.port, "/command", showing), 60.0))
    finally:
        ended.set()
        thread.join()
        view.close()
    assert heard[0]["given"] == {"vx": 0.5, "yaw_rate": -0.5}
    assert heard[0]["wanted"]["vx"] == 0.9
    assert (np.diff([message["at_ns"] for message in heard]) >= 9_000_000).all()
    assert heard[0]["at_ns"] >= 100_000_000_000
    taken = FoxgloveView({}, port=0)
    with pytest.raises(KineflowError, match=str(taken.port)):
        FoxgloveView({}, port=taken.port)
    taken.close()


def test_a_bag_is_replayed_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, file = bag_of(tmp_path, [*messages(), *beats(0.3, SECONDS)]), tmp_path / "seen.mcap"
    policy = "kineflow.deploy.ros2.toy_policies:to_point"
    words = ["deploy", "replay", str(bag), policy, "--latency-ms", "50", "--view", str(file), "--live", "live/wheeled", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"written: {file}" in said.err
    topics = read(file)
    assert len(topics["/command"]) == json.loads(said.out)["commands"]
    assert {"/camera/front", "/camera/front/plan", "/plan", "/goal"} <= topics.keys()
    assert topics["/goal"][0][1]["words"].startswith("point [3.0, 1.0")


def test_a_file_is_whole_when_the_replay_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM in the middle, in a process of its own: the file has its footer."""
    bag, file = bag_of(tmp_path, [*messages(), *beats(0.3, SECONDS)]), tmp_path / "seen.mcap"
    (tmp_path / "slow_policy.py").write_text(SLOW)
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    words = ["deploy", "replay", str(bag), "slow_policy:slow", "--latency-ms", "50", "--view", str(file)]
    with subprocess.Popen([sys.executable, "-m", "kineflow.cli", *words], env=settings) as process:
        try:
            begin = time.monotonic()
            while not (tmp_path / "asked").exists() and time.monotonic() - begin < 60:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        finally:
            process.kill()
    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count > 0
    assert len(read(file)["/command"]) > 10
