"""Panels for people: everything in its place, of the size asked for, and the episode goes on as if nobody had looked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.drawing import integrate
from kineflow.envs.navigation.goal_clip import expert_for
from kineflow.envs.navigation.lens import Lens
from kineflow.envs.navigation.navigation import Navigation
from kineflow.envs.navigation.panel import ACCENT, BAD, GOOD, GROUND, Ending, Fact, GoalCard, Layout, compose, compose_portrait
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.rendering.backend import open_renderer
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import Task
from kineflow.envs.navigation.world import WorldConfig, generate_world

SMALL = Picture(16, 16, "ray")
SHORT = (2.0, 4.0)
AHEAD = np.tile(np.array([0.5, 0.0, 0.0, 0.3], np.float32), (16, 1))


def flat(width: int, height: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def panel(layout: Layout, goal: GoalCard | None = None, **options: Any) -> np.ndarray:
    parts = flat(*layout.live, 200), goal, flat(*layout.inset, 90), flat(16, 16, 150), flat(layout.map_size, layout.map_size, 60)
    return compose(layout, *parts, **options)


@pytest.mark.parametrize(("height", "aspect"), [(448, 1.0), (448, 4 / 3), (896, 1.0), (128, 1.0), (300, 0.75)])
def test_parts_are_side_by_side_and_fill_the_panel(height: int, aspect: float) -> None:
    layout = Layout(height, aspect)
    drawn = panel(layout, GoalCard("goal image", flat(20, 20, 30)))
    assert drawn.shape == (height, layout.width, 3)
    assert layout.width % 2 == 0
    row = layout.px(10) + layout.inset[1] - layout.px(20)
    values = drawn[row, :, 0]
    order = [int(v) for v, before in zip(values[1:], values[:-1]) if v != before and v in (200, 30, 60)]
    assert order == [200, 30, 60], "live view, goal, map"
    low = drawn[layout.px(10) + layout.live[1] - layout.inset[1] // 2]
    assert (low[:, 0] == 90).sum() > 0.9 * layout.inset[0], "the body is below the goal"
    assert layout.seen[1] == pytest.approx(96 * height / 448, abs=1)
    own = drawn[layout.px(10) + layout.px(8) + layout.seen[1] // 3, : layout.px(10) + layout.live[0]]
    assert (own[:, 0] == 150).sum() == pytest.approx(layout.seen[0], abs=2), "what the policy sees is a small inset of the view"
    assert tuple(drawn[layout.px(10), layout.px(10)]) == GROUND, "corners are round"


def test_a_clip_shows_how_far_it_is_and_words_stand_on_a_card() -> None:
    layout = Layout(448)
    left, low = 10 + layout.live[0] + 8, 10 + layout.inset[1] - 2
    for share in (0.25, 0.75):
        drawn = panel(layout, GoalCard("goal clip", flat(20, 20, 30), progress=share))
        line = (drawn[low, left : left + layout.inset[0]] == ACCENT).all(axis=1)
        assert line.sum() == pytest.approx(share * layout.inset[0], abs=11), "less a rounded corner"
    words = panel(layout, GoalCard("instruction", words="go to the red door and stop in front of it, and then wait for a while"))
    card = words[40 : layout.inset[1] - 2, left : left + layout.inset[0]]
    assert (card > 220).all(axis=2).sum() > 150, "white letters"
    assert (card[:, :6] == card[0, 0]).all(), "within its margins"


def test_caption_ending_and_scale_are_written_where_there_is_room() -> None:
    layout = Layout(448)
    plain = panel(layout)
    said = panel(layout, facts=[Fact("", "wheeled"), Fact("time", "3.2 s", "00.0 s"), Fact("stop", "4 %", "100 %")], bar_px=40.0)
    changed = np.nonzero((plain != said).any(axis=2))
    captions = changed[0] > 10 + layout.live[1]
    assert captions.sum() > 200
    assert (~captions).sum() > 10, "the bar's length"
    again = panel(
        layout, facts=[Fact("", "wheeled"), Fact("time", "13.2 s", "00.0 s"), Fact("stop", "100 %", "100 %")], bar_px=40.0
    )
    moved = np.nonzero((again != said).any(axis=2))[1]
    assert moved.min() > 100, "what comes first stays, and nothing else jumps:"
    names = slice(10 + layout.live[1], None), slice(layout.width // 2 - 60, layout.width // 2 - 20)
    np.testing.assert_array_equal(again[names], said[names])
    for ending, colour in ((Ending("arrived", True), GOOD), (Ending("crash", False), BAD)):
        assert (panel(layout, ending=ending) == colour).all(axis=2).sum() > 400
    low = Layout(200)
    assert (panel(low) == panel(low, facts=[Fact("time", "3 s")], bar_px=9.0, ending=Ending("crash", False))).all()


def test_a_picture_of_another_size_is_refused() -> None:
    layout = Layout(448)
    with pytest.raises(KineflowError, match=r"the map is \(5, 5, 3\); this panel's layout has room for \(402, 402, 3\)"):
        compose(layout, flat(*layout.live, 0), None, flat(*layout.inset, 0), flat(4, 4, 0), flat(5, 5, 0))


def test_a_portrait_has_the_view_above_the_map() -> None:
    drawn = compose_portrait(flat(200, 100, 200), flat(120, 120, 60), Layout(224), 20.0)
    assert drawn.shape == (5 + 100 + 4 + 120 + 5, 210, 3)
    assert drawn[60, 105, 0] == 200
    assert drawn[170, 105, 0] == 60
    assert tuple(drawn[170, 10]) == GROUND, "the map is in the middle"


def drive(env: Navigation, steps: int, looks: bool) -> list[tuple[Any, ...]]:
    env.reset(seed=12)
    seen = []
    for step in range(steps):
        if looks:
            env.frame(160, AHEAD[None], AHEAD[0], stop_probability=0.2, cursor=step)
            env.frame(160, np.stack([AHEAD] * 3))
        seen.append(env.step(AHEAD[step]))
    return seen


@pytest.mark.parametrize("backend", ["ray", "auto"])
def test_who_looks_changes_nothing(backend: Any) -> None:
    """Commands with noise and delay, walkers: all that follows is the same to the last bit, pictures too."""
    task = Task("video", path_m=SHORT, movers=1)
    env = Navigation(task, picture=Picture(16, 16, backend), randomisation=RandomisationRanges())
    quiet, watched = drive(env, 10, looks=False), drive(env, 10, looks=True)
    for (before, *others), (after, *same) in zip(quiet, watched, strict=True):
        assert others == same
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name])
    env.close()


@pytest.mark.parametrize("kind", ["point", "image", "video", "language"])
def test_every_task_has_its_panel(kind: Any) -> None:
    env = Navigation(Task(kind, path_m=SHORT), picture=Picture(12, 16, "ray"))
    env.reset(seed=3)
    frames = [env.frame(300), env.frame(300, AHEAD[None]), env.frame(300, AHEAD[None], blind=True, cursor=10_000)]
    layout = Layout(300, 16 / 12)
    assert {f.shape for f in frames} == {(300, layout.width, 3)}
    live = np.s_[layout.px(10) : layout.px(10) + layout.live[1], layout.px(10) : layout.px(10) + layout.live[0]]
    assert (frames[0][live] != frames[1][live]).any(), "the plan is on the view"
    right = np.s_[:, -layout.map_size :]
    assert (frames[0][right] != frames[1][right]).any(), "and on the map"
    inset = np.s_[layout.px(20) : layout.seen[1], layout.live[0] - layout.seen[0] // 2 : layout.px(10) + layout.live[0]]
    assert (frames[1][inset] != frames[2][inset]).any() == (kind in ("video", "image")), "in open loop there is no camera"
    portrait = env.frame(400, np.stack([AHEAD, AHEAD]))
    assert portrait.shape[0] == 400
    assert portrait.shape[1] % 2 == 0
    env.close()


def test_the_view_is_the_camera_s_and_the_goal_the_clip_s() -> None:
    env = Navigation(Task("video", path_m=SHORT), picture=Picture(96, 96, "ray"))
    env.reset(seed=3)
    layout, drawn = Layout(448), env.frame(448, cursor=0)
    small, clip = env.stage.rgb(), env.clip
    assert clip is not None

    def part(left: int, top: int, size: tuple[int, int]) -> np.ndarray:  # without labels and inset
        inner = drawn[top + size[1] // 2 : top + size[1] - 10, left + 10 : left + size[0] - 10].astype(float)
        return inner.mean(axis=(0, 1))

    def whole(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        low, high = np.array([size[1] // 2, size[1] - 10]) * 96 // size[1]
        left, right = np.array([10, size[0] - 10]) * 96 // size[0]
        return picture[low:high, left:right].astype(float).mean(axis=(0, 1))

    middle = 10 + layout.live[0] + 8
    np.testing.assert_allclose(part(10, 10, layout.live), whole(small, layout.live), atol=3.0)
    np.testing.assert_allclose(part(middle, 10, layout.inset), whole(clip.frames[0], layout.inset), atol=4.0)
    right, top = 10 + layout.live[0] - 8 - 2, 10 + 8 + 2
    inset = drawn[top : top + layout.seen[1], right - layout.seen[0] : right]
    np.testing.assert_array_equal(inset[10:60, 10:86], small[10:60, 10:86]), "as it is, pixel for pixel"
    env.close()


def test_the_way_and_the_ending_are_remembered() -> None:
    env = Navigation(Task("point", path_m=SHORT), picture=SMALL)
    env.reset(seed=5)
    expert, done, before = expert_for(env.stage, env.trip), False, env.frame(300)
    while not done:
        stage = env.stage
        *_, terminated, truncated, info = env.step(expert.command(*stage.position, stage.yaw, stage.robot.velocity()))
        done = terminated or truncated
    assert info["is_success"]
    assert not (before == GOOD).all(axis=2).sum() > 300
    assert (env.frame(300) == GOOD).all(axis=2).sum() > 300, "arrived"
    env.reset(seed=5)
    assert not (env.frame(300) == GOOD).all(axis=2).sum() > 300, "a new episode has not ended"
    env.close()


def test_plans_are_drawn_as_far_as_the_body_can() -> None:
    """A wheeled body neither slides nor climbs, and drives at its own limits."""
    env = Navigation(Task("point", path_m=SHORT), picture=SMALL)
    env.reset(seed=5)
    wanted = np.tile([9.0, 1.0, 1.0, 0.0], (1, 10, 1))
    env.step(np.zeros(4, np.float32))
    can = np.tile([env.body.limits.high[0], 0.0, 0.0, 0.0], (1, 10, 1))
    np.testing.assert_array_equal(env.frame(300, wanted), env.frame(300, can))
    assert integrate(can)[0, -1, 0] == pytest.approx(env.body.limits.high[0])
    env.close()


def test_a_lens_draws_larger_pictures_and_frees_what_it_held() -> None:
    env = Navigation(Task("point", path_m=SHORT), picture=SMALL)
    env.reset(seed=5)
    lens = Lens(env.stage)
    assert lens.picture(40, 30).shape == (30, 40, 3)
    assert lens.picture(20, 20).shape == (20, 20, 3)
    lens.close()
    lens.close()
    env.frame(160)
    env.reset(seed=5 + 8)  # another world: the lens of the one before is closed with it
    assert env.frame(160).shape[0] == 160
    env.close()


def geoms_seen(lens: Lens, stage: Stage, heading: float) -> np.ndarray:
    """Ids of what the follower sees."""
    with lens._camera_at(*lens._behind(heading)):
        renderer = open_renderer(stage.scene.model, 48, 48, "ray")
        return renderer.segmentation(stage.scene.data, stage.scene.camera)


@pytest.mark.parametrize("body", ["wheeled", "drone"])
def test_the_follower_has_the_body_in_the_middle_wherever_it_stands(body: str) -> None:
    """Behind it, never behind a wall, and the scene is left as it was."""
    stage = Stage(generate_world(WorldConfig("indoor", 4)), embodiment_of(body), SMALL)
    lens, generator = Lens(stage), np.random.default_rng(0)
    for x, y in stage.world.free_space.sample(generator, stage.embodiment.radius_m + 0.05, 6).tolist():
        heading = float(generator.uniform(-3, 3))
        stage.begin(x, y, heading)
        data, number = stage.scene.data, stage.scene.model.camera(stage.scene.camera).id
        kept = data.cam_xpos[number].copy(), data.cam_xmat[number].copy(), float(stage.scene.model.cam_fovy[number])
        seen = geoms_seen(lens, stage, heading)
        own = np.isin(seen, stage.robot.geoms)
        assert own.sum() > 20
        rows, columns = np.nonzero(own)
        assert columns.mean() == pytest.approx(23.5, abs=5)
        assert rows.mean() == pytest.approx(23.5, abs=9)
        position, axes = lens._behind(heading)
        ahead = np.array([np.cos(heading), np.sin(heading), 0.0])
        assert (position - [x, y, stage.position[2]]) @ ahead < 0, "behind"
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
        assert np.linalg.det(axes) == pytest.approx(1.0)
        assert axes[2, 1] > 0, "upright"
        np.testing.assert_array_equal(kept[0], data.cam_xpos[number])
        np.testing.assert_array_equal(kept[1], data.cam_xmat[number])
        assert kept[2] == stage.scene.model.cam_fovy[number]
    assert lens.follower(24, 24, 0.0).shape == (24, 24, 3)
    lens.close()
