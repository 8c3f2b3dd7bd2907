"""What a person sees of a robot: the feed, plans in pictures, the terminal, diagnostics read back."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.deploy.keep_out import Mount
from kineflow.deploy.live.diagnosed import diagnosed
from kineflow.deploy.live.drawing import CameraPlace, FromAbove, LiveConfig, OnFloor, drawings
from kineflow.deploy.live.feed import Paced, Show
from kineflow.deploy.live.seen import Seen
from kineflow.deploy.live.terminal import Terminal, bar, line
from kineflow.deploy.live.views import open_view
from kineflow.deploy.ros2.toy_policies import forward
from tests.deploy.watched import RATE_HZ, Kept, Plane, watched

STEPS = 30
ROOT = Path(__file__).resolve().parents[2]


def test_the_feed_is_what_executor_and_governor_did() -> None:
    kept = Kept()
    trace = watched(forward(), kept)
    assert len(kept.seen) == len(trace.ticks)
    np.testing.assert_array_equal([seen.commanded for seen in kept.seen], trace.commands)
    moving = [seen for seen in kept.seen if seen.wanted is not None]
    assert all(np.allclose(seen.wanted, [0.4, 0, 0, 0]) for seen in moving)  # what the policy said
    assert any(not np.allclose(seen.wanted, seen.commanded) for seen in moving)  # and what the ramp made of it
    last, said = kept.seen[-1], trace.diagnostics
    assert sum(last.counts.values()) == len(trace.ticks)
    assert last.counts == {name: sum(t.command.outcome == name for t in trace.ticks) for name in last.counts}
    assert (last.latency_p50_s, last.latency_p95_s) == (said["latency_p50_s"], said["latency_p95_s"])
    assert last.latency_p50_s == pytest.approx(0.06)
    assert last.delay_actions == said["delay_actions"] == 1
    assert last.asked["questions"] == said["questions"] > 3
    assert last.actions_left == said["actions_left"] > 0
    assert last.plan is not None
    np.testing.assert_allclose(last.plan[0], [0.4, 0, 0, 0])
    assert last.ages_s.keys() == {"front", "pose"}


def test_each_picture_comes_once_and_is_the_newest() -> None:
    kept = Kept()
    watched(forward(), kept, seconds=0.5)
    pictures = [seen.pictures["front"] for seen in kept.seen if "front" in seen.pictures]
    assert len(pictures) == len(kept.seen)
    for number, picture in enumerate(pictures, 1):
        np.testing.assert_array_equal(picture, Plane.picture(number))
    blind = Kept()
    watched(forward(), blind, seconds=0.5, blind_s=0.2)
    assert sum("front" in seen.pictures for seen in blind.seen) == 10
    assert blind.seen[-1].ages_s["front"] == pytest.approx(0.5 - 0.18, abs=0.021)


def test_episodes_go_on_in_time_and_in_counts() -> None:
    kept = Kept()
    show = Show([kept], "simulated")
    for _ in range(2):
        watched(forward(), seconds=0.4, show=show)
    times = [seen.at_s for seen in kept.seen]
    assert (np.diff(times) > 0).all()
    assert {seen.episode for seen in kept.seen} == {1, 2}
    assert sum(kept.seen[-1].counts.values()) == len(kept.seen)


def test_a_point_ahead_is_where_the_simulated_camera_has_it() -> None:
    """The shipped place against MuJoCo's own camera of the simulated base, through the drawing of envs/navigation."""
    mujoco = pytest.importorskip("mujoco")
    from kineflow.envs.navigation.drawing import project
    from kineflow.envs.navigation.ground_truth import camera_pose, intrinsics

    model = mujoco.MjModel.from_xml_path(str(ROOT / "envs/navigation/embodiments/wheeled.xml"))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    place = load_config(LiveConfig, "live/wheeled").cameras["front"]
    base = data.body(model.body(model.cam_bodyid[model.camera("front").id]).id).xpos * [1, 1, 0]
    points = np.array([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.8, -0.3, 0.0], [3.0, -1.0, 0.2]])
    expected, _ = project(points + base, *camera_pose(model, data, "front"), intrinsics(model, "front", 160, 120))
    np.testing.assert_allclose(place.pixels(points, 120, 160), expected, atol=0.6)


def test_a_path_on_the_floor_bends_as_the_robot_turns() -> None:
    place = CameraPlace(Mount(z=0.5, pitch=0.2), 60.0)
    axes = ("vx", "vy", "vz", "yaw_rate")
    straight = OnFloor(place, axes)(np.tile([0.5, 0, 0, 0.0], (10, 1)), 0.2, 96, 128)
    np.testing.assert_allclose(straight[:, 0], 63.5)  # along the middle
    assert (np.diff(straight[:, 1]) < 0).all()  # and up the picture as it goes away
    left = OnFloor(place, axes)(np.tile([0.5, 0, 0, 0.3], (10, 1)), 0.2, 96, 128)
    assert left[-1, 0] < 50
    behind = OnFloor(place, axes)(np.tile([-0.5, 0, 0, 0.0], (10, 1)), 0.2, 96, 128)
    assert len(behind) == 1  # where it stands, below the picture
    assert behind[0, 1] > 96
    # A point on the optical axis is in the middle: 0.5 m up, looking down by 0.2 rad, the floor is met 0.5 / tan(0.2) ahead.
    middle = place.pixels(np.array([[0.5 / math.tan(0.2), 0.0, 0.0]]), 96, 128)
    np.testing.assert_allclose(middle, [[63.5, 47.5]])


def test_places_on_a_board_are_drawn_from_above() -> None:
    draw = FromAbove((0.0, 0.0), (512.0, 512.0))
    np.testing.assert_allclose(draw(np.array([[256.0, 128.0]]), 0.1, 96, 96), [[47.5, 23.5]])
    with pytest.raises(KineflowError, match="rear"):
        drawings(forward().contract.interface, LiveConfig({"rear": CameraPlace(Mount(), 60.0)}))


def seen(**changes: object) -> Seen:
    base = Seen(
        at_s=3.0,
        robot="wheeled",
        state="active",
        outcome="clamp",
        why="acceleration",
        ages_s={"front": 0.031, "pose": math.inf},
        latency_p50_s=0.061,
        latency_p95_s=0.094,
        delay_actions=2,
        actions_left=11,
        counts={"pass": 90, "clamp": 4, "reject": 1},
        asked={"questions": 7, "late chunk": 1},
        axes=("vx", "yaw_rate"),
        low=(-0.5, -1.0),
        high=(0.5, 1.0),
        wanted=np.array([0.9, 0.0]),
        commanded=np.array([0.5, -0.5]),
    )
    return replace(base, **changes)


def test_one_line_has_everything() -> None:
    text = line(seen())
    for part in ("wheeled active clamp  (acceleration)", "front=31 pose=-", "p50=61 p95=94", "delay=2 queue=11", "reject=1"):
        assert part in text
    assert "late_chunk=1" in text
    assert "vx=+0.5 yaw_rate=-0.5" in text


def test_bars_begin_at_zero() -> None:
    assert bar(0.5, -0.5, 0.5) == "·" * 10 + "┃" + "█" * 10
    assert bar(-0.5, -0.5, 0.5) == "█" * 10 + "┃" + "·" * 10
    assert bar(0.0, 0.0, 1.0) == "┃" + "·" * 20
    assert bar(math.nan, -1.0, 1.0) == bar(0.2, 0.0, 0.0) == ""


def test_plain_lines_where_no_terminal_is() -> None:
    """Once a second, and at once when something changes; silence is said once."""
    out, now = io.StringIO(), [0.0]
    terminal = Terminal(Console(file=out, width=60), clock=lambda: now[0])
    for tick in range(100):
        terminal.show(seen(at_s=0.02 * tick, outcome=("clamp", "pass")[tick % 2]))
    assert len(out.getvalue().splitlines()) == 2
    terminal.show(seen(at_s=2.0, outcome="estop", why="e-stop"))
    assert "estop  (e-stop)" in out.getvalue().splitlines()[-1]
    assert "\x1b" not in out.getvalue()
    now[0] = 2.0
    terminal.still()
    assert "SILENT" not in out.getvalue()
    now[0] = 4.0
    terminal.still()
    terminal.still()
    assert out.getvalue().count("SILENT: nothing heard for 4.0 s") == 1


def test_a_dashboard_where_one_is() -> None:
    out, now = io.StringIO(), [0.0]
    terminal = Terminal(Console(file=out, width=100, force_terminal=True), clock=lambda: now[0])
    terminal.show(seen())
    now[0] = 5.0
    terminal.still()
    terminal.close()
    drawn = out.getvalue()
    for part in (
        "wheeled",
        "age of observations",
        "p50 61  p95 94",
        "2 actions",
        "11 actions",
        "clamp 4",
        "reject 1",
        "┃██████████",
    ):
        assert part in drawn
    assert "SILENT: nothing heard for 5.0 s" in drawn


def test_virtual_time_is_shown_no_faster_than_time() -> None:
    import time

    kept = Kept()
    begin = time.monotonic()
    watched(forward(), Paced(kept), seconds=0.3)
    assert len(kept.seen) == round(0.3 * RATE_HZ) + 1
    assert time.monotonic() - begin >= 0.29


DIAGNOSED = {
    "state": "active",
    "outcome": "clamp",
    "why": "acceleration",
    "shadow": "True",
    "delay_actions": "2",
    "actions_left": "11",
    "questions": "7",
    "late chunk": "1",
    "latency_p50_s": "0.061",
    "latency_p95_s": "nan",
    "ages_s.front": "0.031",
    "ages_s.pose": "inf",
    "governor.robot": "wheeled",
    "governor.counts.pass": "90",
    "axis.low.vx": "-0.5",
    "axis.low.yaw_rate": "-1",
    "axis.high.vx": "0.5",
    "axis.high.yaw_rate": "1",
    "commanded.vx": "0.5",
    "commanded.yaw_rate": "-0.5",
}


def test_diagnostics_are_read_back() -> None:
    found = diagnosed("policy", "acceleration", DIAGNOSED, 3.0)
    assert (found.robot, found.state, found.outcome, found.why) == ("wheeled", "active (shadow)", "clamp", "acceleration")
    assert found.ages_s == {"front": 0.031, "pose": math.inf}
    assert (found.latency_p50_s, found.delay_actions, found.actions_left) == (0.061, 2, 11)
    assert found.counts == {"pass": 90}
    assert found.asked == {"questions": 7, "late chunk": 1}
    assert found.axes == ("vx", "yaw_rate")
    assert (found.low, found.high) == ((-0.5, -1.0), (0.5, 1.0))
    assert found.wanted is None
    np.testing.assert_allclose(found.commanded, [0.5, -0.5])  # type: ignore[arg-type]
    assert "command vx=+0.5 yaw_rate=-0.5" in line(found)
    assert diagnosed("policy", "unconfigured", {}, 0.0).state == "unconfigured"


def test_views_that_are_none_say_so() -> None:
    for word in ("mujoco", "foxglove:x", "picture.png", "terminal:3"):
        with pytest.raises(KineflowError, match="--view"):
            open_view(word, {})


def test_the_command_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kineflow.envs.pusht import PushT
    from tests.policies.evaluation.conftest import SmallPolicy

    monkeypatch.setattr("kineflow.policies.evaluation.PushT", lambda cameras=(): PushT(cameras=cameras, max_steps=STEPS))
    monkeypatch.setattr("kineflow.deploy.loading.load_policy", lambda source: SmallPolicy())
    monkeypatch.setattr("kineflow.deploy.live.feed.time.sleep", lambda seconds: None)
    words = ["deploy", "simulate", "runs/mine", "--episodes", "1", "--latency-ms", "120", "--view", "terminal", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["results"][0]["steps"] == STEPS
    assert "PushT simulated pass" in said.err
    assert main([*words[:-2], "nothing.png"]) == 2
