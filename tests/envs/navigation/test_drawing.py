"""Plans and maps are drawn where things are: against closed forms, the renderer itself, and known worlds."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from kineflow.envs.navigation.drawing import Layer, draw_plans, integrate, project, ribbon_edge, shades, to_world
from kineflow.envs.navigation.ground_truth import camera_pose, intrinsics
from kineflow.envs.navigation.map_drawing import (
    DRIVEN,
    FLOOR,
    GOAL,
    OUTSIDE,
    ROBOT,
    TOUCH,
    WALKER,
    WALL,
    MapView,
    TripState,
    dashes,
    draw_trip,
    draw_world,
    footprint,
)
from kineflow.envs.navigation.rendering.backend import open_renderer
from kineflow.envs.navigation.shapes import COLOURS, Block
from tests.envs.navigation.views import simple_model, world

WIDTH, HEIGHT = 200, 160


def commands(vx: float, vy: float, yaw_rate: float, steps: int = 20) -> np.ndarray:
    return np.tile([vx, vy, 0.0, yaw_rate], (steps, 1))


def test_straight_and_sideways_ways_are_lengths_times_time() -> None:
    places = integrate(np.tile([0.5, -0.2, 0.1, 0.0], (10, 1)))
    np.testing.assert_allclose(places[-1], [0.5, -0.2, 0.1, 0.0])
    np.testing.assert_allclose(places[3], np.array([0.5, -0.2, 0.1, 0.0]) * 0.3)


@pytest.mark.parametrize("rate", [0.7, -1.3, 1e-9])
@pytest.mark.parametrize("substeps", [1, 4])
def test_an_arc_is_a_circle(rate: float, substeps: int) -> None:
    """Forward v and left u at turn rate w: the centre is (-u, v) / w away, the way a circle around it."""
    v, u, time = 0.8, 0.3, 2.0
    places = integrate(commands(v, u, rate), substeps)
    assert len(places) == 20 * substeps + 1
    angle = rate * time
    centre = np.array([-u, v]) / rate
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    end = centre - turn @ centre if abs(rate) > 1e-6 else np.array([v, u]) * time
    np.testing.assert_allclose(places[-1, [0, 1, 3]], [*end, angle], atol=1e-8)


def test_points_between_commands_lie_on_the_same_way() -> None:
    changing = np.random.default_rng(0).normal(size=(3, 8, 4))
    np.testing.assert_allclose(integrate(changing, 5)[:, ::5], integrate(changing), atol=1e-12)


def test_the_body_frame_is_put_where_the_body_is() -> None:
    seen = to_world(np.array([[2.0, 1.0, 0.0, 0.5]]), 10.0, 20.0, math.pi / 2)
    np.testing.assert_allclose(seen, [[9.0, 22.0, math.pi / 2 + 0.5]], atol=1e-12)


@pytest.mark.parametrize("place", [(1.5, 0.4), (2.5, -0.9), (4.0, 1.2)])
@pytest.mark.parametrize("camera", ['pos="0 0 0.5" xyaxes="0 -1 0 0 0 1"', 'pos="-0.3 0.2 1.2" xyaxes="0.1 -1 0 0.15 0 0.95"'])
def test_a_point_is_drawn_where_the_renderer_shows_what_is_there(place: tuple[float, float], camera: str) -> None:
    marker = f'<geom type="cylinder" size="0.1 0.001" pos="{place[0]} {place[1]} 0.001" rgba="1 0 0 1"/>'
    model = simple_model(marker, camera)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = open_renderer(model, WIDTH, HEIGHT, "ray")
    shown = renderer.segmentation(data, "front") == 1
    renderer.close()
    assert shown.sum() > 5
    rows, columns = np.nonzero(shown)
    position, rotation = camera_pose(model, data, "front")
    pixels, depth = project(np.array([(*place, 0.001)]), position, rotation, intrinsics(model, "front", WIDTH, HEIGHT))
    assert depth[0] > 0
    np.testing.assert_allclose(pixels[0], [columns.mean(), rows.mean()], atol=0.7)


def plans_on_grey(*rates: float, vx: float = 0.8) -> np.ndarray:
    """What draw_plans changes of a grey picture, seen from 0.5 m above the ground."""
    model = simple_model()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    places = to_world(integrate(np.stack([commands(vx, 0.0, rate) for rate in rates]), 2), 0.0, 0.0, 0.0)
    grey = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    position, rotation = camera_pose(model, data, "front")
    drawn = draw_plans(grey, places, position, rotation, intrinsics(model, "front", WIDTH, HEIGHT))
    assert (grey == 120).all(), "a copy is drawn on"
    return drawn.astype(int) - 120


def test_a_plan_ahead_is_in_the_middle_and_one_to_the_left_is_left() -> None:
    touched = [np.nonzero(plans_on_grey(rate).any(axis=2))[1].mean() for rate in (0.0, 0.6, -0.6)]
    assert touched[0] == pytest.approx((WIDTH - 1) / 2, abs=0.6)
    assert touched[1] < touched[0] - 8
    assert touched[2] == pytest.approx(WIDTH - 1 - touched[1], abs=1.0)


def test_a_plan_ends_where_it_leads_and_narrows_on_the_way() -> None:
    changed = plans_on_grey(0.0).any(axis=2)
    rows = np.flatnonzero(changed.any(axis=1))
    focal = intrinsics(simple_model(), "front", WIDTH, HEIGHT)[0, 0]
    assert rows[0] == pytest.approx((HEIGHT - 1) / 2 + focal * 0.5 / 1.6, abs=2.0), "1.6 m ahead, half a metre below the camera"
    assert rows[-1] == HEIGHT - 1
    widths = changed.sum(axis=1)
    assert widths[HEIGHT - 1] > 1.5 * widths[rows[0] + 12]


def test_colour_says_when() -> None:
    shown = plans_on_grey(0.0) + 120
    rows = np.flatnonzero((shown != 120).any(axis=(1, 2)))
    late, early = shown[rows[0] + 5, WIDTH // 2], shown[HEIGHT - 1, WIDTH // 2]
    assert late[0] > late[2] + 80, "orange at the end"
    assert early[2] > late[2] + 40, "nearer to violet where it begins"
    assert shades(2)[0] == (124, 58, 237)


def test_many_plans_are_a_translucent_fan_and_standing_still_is_nothing() -> None:
    one, fan = plans_on_grey(0.0), plans_on_grey(-0.6, -0.3, 0.0, 0.3, 0.6)
    assert np.abs(fan).max() < np.abs(one).max()
    assert fan.any(axis=2).any(axis=0).sum() > one.any(axis=2).any(axis=0).sum()
    assert not plans_on_grey(0.0, vx=0.0).any()


def test_what_lies_behind_the_camera_is_not_drawn() -> None:
    assert not plans_on_grey(0.0, vx=-0.8).any()


def test_edges_lie_to_the_left_of_the_way() -> None:
    way = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]])  # along y, whatever the heading says
    np.testing.assert_allclose(ribbon_edge(way, 0.1), [[-0.1, 0.0], [-0.07, 1.0], [-0.04, 2.0]], atol=1e-12)


def test_a_layer_is_anti_aliased_and_its_overlaps_do_not_add_up() -> None:
    picture, layer = np.zeros((40, 40, 3), np.uint8), Layer(40, 40)
    square = np.array([(9.5, 9.5), (19.75, 9.5), (19.75, 19.5), (9.5, 19.5)])
    layer.polygon(square, (200, 100, 0))
    layer.polygon(square + np.array([5, 0]), (200, 100, 0))
    layer.onto(picture, 0.5)
    assert picture[15, 12].tolist() == picture[15, 18].tolist() == [100, 50, 0]
    assert 0 < picture[15, 25, 0] < 100, "a half covered pixel"
    assert not picture[:8].any()
    Layer(40, 40).onto(picture)  # nothing drawn, nothing changed
    far = Layer(40, 40)
    far.line(np.array([(-1e9, 5.0), (1e9, 5.0)]), (1, 2, 3), 2.0)
    far.onto(picture)


# maps


def pixel(view: MapView, x: float, y: float) -> tuple[int, int]:
    u, v = np.rint(view.pixels(np.array([(x, y)]))[0]).astype(int).tolist()
    return v, u


def test_x_is_right_and_y_is_up() -> None:
    view = MapView((1.0, 2.0), 10.0, 101)
    np.testing.assert_allclose(view.pixels(np.array([(1.0, 2.0), (3.0, 2.0), (1.0, 4.0)])), [(50, 50), (70.2, 50), (50, 29.8)])


def test_a_view_holds_the_trip_and_stays_in_its_world() -> None:
    view = MapView.around(np.array([(0.0, 0.0), (4.0, 9.0)]), 100, margin_m=1.0)
    assert view == MapView((2.0, 4.5), 11.0, 100)
    corner = MapView.around(np.array([(0.2, 0.2), (1.0, 1.0)]), 100, (0.0, 0.0, 20.0, 5.0))
    assert corner.side_m == 6.0
    assert corner.middle == pytest.approx((2.7, 2.5)), "along x within the world and its rim, along y too long for it"


def test_a_world_is_drawn_as_it_stands() -> None:
    place = world("indoor", 3)
    view = MapView.around(np.array([place.bounds[:2], place.bounds[2:]]), 600)
    plan = draw_world(place, view)
    wall = next(b for b in place.blocks if b.name.startswith("wall"))
    assert tuple(plan[pixel(view, *wall.position[:2])]) == WALL
    goal = next(g for g in place.goals if g.noun not in ("door", "lamp"))
    body = next(b for b in place.blocks if b.name == goal.blocks[0])
    assert np.abs(plan[pixel(view, *body.position[:2])].astype(int) - np.array(COLOURS[goal.colour]) * 255).max() <= 1
    assert tuple(plan[2, 2]) == OUTSIDE
    space = place.free_space
    row, column = np.unravel_index(space.clearance.argmax(), space.clearance.shape)
    assert tuple(plan[pixel(view, *space.point(int(row), int(column)))]) == FLOOR
    free = [tuple(plan[pixel(view, *p)]) for p in space.sample(np.random.default_rng(0), 0.3, 300)]
    assert np.mean([colour in (FLOOR,) for colour in free]) > 0.97, "where one can drive there is floor"


def test_footprints_are_turned_as_blocks_are() -> None:
    corners = footprint(Block("", "box", (1.0, 2.0, 0.5), (0.5, 0.1, 0.5), math.pi / 2))
    np.testing.assert_allclose(np.abs(corners - [1.0, 2.0]).max(axis=0), [0.1, 0.5], atol=1e-12)
    disc = footprint(Block("", "cylinder", (0.0, 0.0, 0.5), (0.3, 0.3, 0.5)))
    np.testing.assert_allclose(np.hypot(*disc.T), 0.3)


def test_a_landmark_on_the_left_of_the_robot_is_drawn_on_its_left() -> None:
    """The robot looks up the map (yaw 90 degrees): what is on its left is at smaller x, and drawn left of it."""
    view = MapView((0.0, 0.0), 8.0, 240)
    left, ahead, right = to_world(np.array([[0.0, 1.5, 0, 0], [1.5, 0.0, 0, 0], [0.0, -1.5, 0, 0]]), 0.0, 0.0, math.pi / 2)[:, :2]
    state = TripState(
        pose=(0.0, 0.0, math.pi / 2),
        radius_body_m=0.25,
        driven=np.array([(0.0, -3.0), (0.0, 0.0)]),
        reference=np.array([(0.0, -3.0), (0.0, 3.0)]),
        goal=(float(ahead[0]), float(ahead[1]) + 1.5),
        radius_m=0.5,
        walkers=((float(left[0]), float(left[1]), 0.3),),
        touches=((float(right[0]), float(right[1])),),
    )
    blank = np.zeros((240, 240, 3), np.uint8)
    drawn = draw_trip(blank, view, state)
    assert not blank.any(), "the background is kept"

    def middle(colour: tuple[int, int, int]) -> np.ndarray:
        rows, columns = np.nonzero((drawn == colour).all(axis=2))
        assert len(rows), colour
        return np.array([columns.mean(), rows.mean()])

    robot = view.pixels(np.array([(0.0, 0.0)]))[0]
    np.testing.assert_allclose(middle(WALKER), robot - np.array([45, 0]), atol=1.0)
    np.testing.assert_allclose(middle(TOUCH), robot + np.array([45, 0]), atol=1.0)
    assert middle(DRIVEN)[1] > robot[1] + 20, "it came from below"
    assert drawn[pixel(view, 0.0, 3.0)][1] > 150, "the goal is green"
    assert drawn[pixel(view, 0.35, 3.0)][1] > drawn[pixel(view, 0.35, 3.0)][0], "with its region around it"
    heading = np.nonzero((drawn == (109, 63, 217)).all(axis=2))
    assert heading[0].min() < robot[1] - 4, "its arrow points up"
    assert tuple(drawn[pixel(view, 0.2, 0.0)]) == ROBOT
    assert GOAL[1] > GOAL[0]


def test_dashes_share_a_way_evenly() -> None:
    pieces = dashes(np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]), 0.3, 0.2)
    assert [round(float(p[0].sum()), 6) for p in pieces] == [0.0, 0.5, 1.0, 1.5]
    assert np.hypot(*(pieces[0][-1] - pieces[0][0])) == pytest.approx(0.3)
    np.testing.assert_allclose(pieces[-1][-1], [1.0, 0.8])


def test_a_fan_on_the_map_leads_away_from_the_robot() -> None:
    view = MapView((0.0, 0.0), 6.0, 240)
    plans = to_world(integrate(np.stack([commands(0.8, 0.0, rate) for rate in (-0.4, 0.0, 0.4)]), 2), 0.0, 0.0, 0.0)
    way = np.array([(-2.0, -2.0), (-2.0, 2.0)])
    state = TripState((0.0, 0.0, 0.0), 0.25, way[:1], way, (-2.0, 2.0), 0.5, sight_rad=0.01)
    blank = np.zeros((240, 240, 3), np.uint8)
    without, fan = (draw_trip(blank, view, s) for s in (state, TripState(**{**vars(state), "plans": plans})))
    one = draw_trip(blank, view, TripState(**{**vars(state), "plans": plans[1:2]}))
    changed = np.nonzero((fan != without).any(axis=2))
    assert changed[1].min() > 119
    assert changed[1].max() == pytest.approx(view.pixels(np.array([(1.6, 0.0)]))[0][0], abs=2.0)
    assert len(np.unique(changed[0])) > 20
    assert one[120, 180:183].max() > fan[120, 180:183].max()
