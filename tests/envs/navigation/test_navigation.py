"""The environment keeps gymnasium's contract, a seed says everything, and the goal is told and not leaked."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError, interface_differences
from kineflow.envs.navigation.embodiments.drone import Drone
from kineflow.envs.navigation.embodiments.humanoid import Humanoid
from kineflow.envs.navigation.embodiments.wheeled import Wheeled
from kineflow.envs.navigation.goal_clip import expert_for
from kineflow.envs.navigation.navigation import Navigation
from kineflow.envs.navigation.randomise import Randomisation, RandomisationRanges
from kineflow.envs.navigation.restyle import Restyler
from kineflow.envs.navigation.scene import build_scene
from kineflow.envs.navigation.stage import Picture, embodiment_of
from kineflow.envs.navigation.tasks import Task
from kineflow.envs.navigation.vector import MakeNavigation, make_vector
from kineflow.envs.navigation.world import WorldConfig, generate_world
from kineflow.policies.running_episode import Environment

TINY = Picture(12, 16, "ray")
POINT = Task("point", path_m=(2.0, 4.0))
AHEAD, STAY = np.array([0.5, 0.0, 0.0, 0.2], np.float32), np.zeros(4, np.float32)
RANGES = RandomisationRanges()


def make(task: Task = POINT, **options: object) -> Navigation:
    return Navigation(task, picture=TINY, **options)  # type: ignore[arg-type]


def drive_there(env: Navigation, steps: int = 400) -> list[tuple[object, ...]]:
    """The expert at the wheel, until the episode ends."""
    expert, said = expert_for(env.stage, env.trip), []
    for _ in range(steps):
        stage = env.stage
        said.append(env.step(expert.command(*stage.position, stage.yaw, stage.robot.velocity(), stage.walkers)))
        if said[-1][2] or said[-1][3]:
            break
    return said


def test_gymnasium_finds_nothing_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations, which velocities and poses are
        check_env(make(Task("image", path_m=(2.0, 4.0))), skip_render_check=True)


def test_it_is_an_environment_for_policies_and_offers_what_the_config_says() -> None:
    env = Navigation(POINT)
    assert isinstance(env, Environment)
    assert list(interface_differences(load_config(Interface, "interfaces/navigation"), env.interface)) == []
    assert make().interface.goals["video"].shape == (8, 12, 16, 3)


def test_commands_are_bounded_by_the_union_over_the_bodies() -> None:
    vector = load_config(Interface, "interfaces/navigation").action.vector
    bodies = [body.limits for body in (Wheeled(), Drone(), Humanoid())]
    for axis in range(4):
        assert vector.low[axis] == min(b.low[axis] for b in bodies)
        assert vector.high[axis] == max(b.high[axis] for b in bodies)
        rates = [b.max_rate[axis] for b in bodies if math.isfinite(b.max_rate[axis])]
        assert vector.max_rate[axis] == max(rates)


def episode(env: Navigation, seed: int) -> list[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    seen = [*observation.values(), *(np.asarray(v) for v in env.goal().values())]
    for step in range(6):
        observation, reward, *_ = env.step(AHEAD if step < 4 else STAY)
        seen += [*observation.values(), np.array(reward)]
    return seen


@pytest.mark.parametrize("task", [Task("video", path_m=(3.0, 4.0), movers=1), Task("language", "outdoor")])
def test_a_seed_gives_the_same_episode_whatever_ran_before(task: Task) -> None:
    env, fresh = make(task, randomisation=RANGES), make(task, randomisation=RANGES)
    first = episode(env, 5)
    other = episode(env, 6)  # of the same world
    episode(env, 9)  # of another
    for again in (episode(env, 5), episode(fresh, 5)):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other))


def test_a_world_serves_several_seeds_and_is_made_once() -> None:
    env = make(replace(POINT, episodes_per_world=3))
    stages = []
    for seed in (3, 4, 5, 6):
        env.reset(seed=seed)
        stages.append(env.stage)
    assert stages[0] is stages[1] is stages[2] is not stages[3]


@pytest.mark.parametrize(
    ("kind", "told"),
    [("point", {"point"}), ("image", {"image"}), ("video", {"video", "image"}), ("language", {"instruction"})],
)
def test_each_kind_tells_its_goal_in_its_way_only(kind: str, told: set[str]) -> None:
    env = make(Task(kind, path_m=(2.0, 5.0)))  # type: ignore[arg-type]
    observation, info = env.reset(seed=1)
    assert set(env.goal()) == told
    assert set(observation) == {"front", "velocity", "embodiment", "pose"}
    for name, value in env.goal().items():
        spec = env.interface.goals[name]
        if name == "instruction":
            assert env.trip.thing in value
        else:
            assert value.shape[-3:] == spec.shape[-3:]
    x, y = env.trip.goal
    flat = np.concatenate([np.asarray(v, np.float64).ravel() for k, v in observation.items() if k != "front"])
    assert not np.isclose(flat[:, None], [x, y], atol=1e-6).any(), "the goal is in no observation"
    assert not {"goal", "trip"} & set(info)


def test_resting_at_the_goal_for_half_a_second_is_success() -> None:
    env = make()
    env.reset(seed=2)
    said = drive_there(env)
    _, reward, terminated, truncated, info = said[-1]
    assert (terminated, truncated, info["is_success"], info["success_05m"]) == (True, False, True, True)  # type: ignore[index]
    assert reward > 9.0  # type: ignore[operator]
    assert all(not step[4]["is_success"] for step in said[:-1])  # type: ignore[index]
    assert all(step[4]["at_rest"] for step in said[-5:])  # type: ignore[index]
    assert not said[-6][4]["at_rest"]  # type: ignore[index]
    gained = sum(step[1] for step in said) - 10.0  # type: ignore[misc]
    assert gained == pytest.approx(math.dist(env.trip.start[:2], env.trip.goal) - info["distance"], abs=1e-3)  # type: ignore[index]
    assert info["path_length"] == pytest.approx(env.trip.path.length, rel=0.1)  # type: ignore[index]


def test_who_says_stop_is_judged_there() -> None:
    env = make()
    env.reset(seed=2)
    env.declare_stop()
    said = [env.step(AHEAD) for _ in range(5)]
    assert [step[2] for step in said] == [False] * 4 + [True], "it has rested for 0.5 s, whatever it was told"
    assert not said[-1][4]["is_success"]
    env.reset(seed=2)
    assert not env.step(AHEAD)[2], "a new episode has forgotten it"
    env.stage.begin(*env.trip.goal, 0.0)
    env.declare_stop()
    assert [env.step(STAY)[4]["is_success"] for _ in range(5)] == [False] * 4 + [True]


def test_where_the_goal_ends_nothing_only_the_end_counts() -> None:
    env = make(replace(POINT, time_limit_s=3.0), ends_at_goal=False)
    env.reset(seed=2)
    env.stage.begin(*env.trip.goal, 0.0)
    said = [env.step(STAY) for _ in range(30)]
    assert not any(step[2] for step in said), "resting at the goal is no news"
    assert [step[4]["is_success"] for step in said] == [False] * 29 + [True]
    env.reset(seed=2)
    env.stage.begin(*env.trip.goal, 0.0)
    far = math.dist(env.trip.start[:2], env.trip.goal)
    env.stage.begin(*env.trip.start)
    last = [env.step(STAY) for _ in range(30)][-1]
    assert (last[3], last[4]["is_success"]) == (True, False)
    assert env.metrics().goal_error == pytest.approx(far, abs=0.05)


def test_metrics_are_those_of_the_whole_drive() -> None:
    env = make()
    env.reset(seed=2)
    said = drive_there(env)
    found = env.metrics()
    assert found.success_1m
    assert found.stop_ok
    assert found.false_stops == 0
    assert found.path_length == pytest.approx(said[-1][4]["path_length"], abs=1e-6)  # type: ignore[index]
    assert found.spl == pytest.approx(env.trip.path.length / max(found.path_length, env.trip.path.length), rel=1e-6)
    assert found.ate < 0.25


def test_a_crash_ends_the_episode_and_a_soft_touch_is_counted() -> None:
    env = make()
    env.reset(seed=2)
    to_a_wall = facing_something(env)
    env.stage.begin(*to_a_wall)
    for _ in range(20):
        *_, terminated, _, info = env.step(np.array([1.0, 0, 0, 0], np.float32))
        if terminated:
            break
    assert terminated
    assert info["crashed"]
    assert not info["is_success"]
    env.reset(seed=2)
    env.stage.begin(*to_a_wall)
    said = [env.step(np.array([0.2, 0, 0, 0], np.float32)) for _ in range(50)]
    assert said[-1][4]["collisions"] >= 1
    assert not any(step[2] for step in said)


def facing_something(env: Navigation) -> tuple[float, float, float]:
    """A place about 0.5 m before an obstacle, and the heading that leads into it."""
    space = env.stage.world.free_space
    (row, *_), (column, *_) = np.nonzero((space.clearance > 0.75) & (space.clearance < 0.85))
    rows, columns = np.nonzero(space.occupied)
    nearest = np.hypot(rows - row, columns - column).argmin()
    (x, y), (there_x, there_y) = space.point(row, column), space.point(rows[nearest], columns[nearest])
    return x, y, math.atan2(there_y - y, there_x - x)


def test_no_walker_stands_where_the_body_starts() -> None:
    env = make(replace(POINT, movers=3))
    env.reset(seed=2)
    walker = env.stage.world.movers[0]
    for seed in range(12):
        env.stage.begin(*walker.start, 0.0, seed=seed)
        assert min(math.dist(walker.start, (x, y)) - r for x, y, r in env.stage.walkers) > env.body.radius_m + 0.4


def test_time_runs_out() -> None:
    env = make(replace(POINT, time_limit_s=0.5))
    env.reset(seed=2)
    assert [env.step(STAY)[3] for _ in range(5)] == [False] * 4 + [True]


def test_a_route_counts_only_with_its_places_in_between() -> None:
    env = make(Task("route", time_limit_s=200.0), told=("point",))
    env.reset(seed=3)
    env.stage.begin(*env.trip.goal, 0.0)
    assert not any(env.step(STAY)[4]["is_success"] for _ in range(8)), "there, but not by the way that was asked for"
    for place in env.trip.via:
        env.stage.begin(*place, 0.0)
        env.step(STAY)
    env.stage.begin(*env.trip.goal, 0.0)
    assert [env.step(STAY)[4]["is_success"] for _ in range(5)][-1]


def test_each_look_has_its_light_and_camera() -> None:
    env = make()
    env.reset(seed=2)
    looks = [
        Randomisation.none(),
        Randomisation(light_diffuse=0.2),
        Randomisation(camera_turn_rad=(0.0, 0.05, 0.0)),
        Randomisation.none(),
    ]
    pictures = []
    for look in looks:
        env.stage.begin(*env.trip.start, look)
        pictures.append(env.stage.rgb())
    assert pictures[0].mean() > pictures[1].mean() + 5
    assert not np.array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(pictures[0], pictures[3])


def test_delay_holds_commands_back_and_noise_spares_standing() -> None:
    env = make()
    env.reset(seed=2)
    stage = env.stage
    stage.begin(*env.trip.start, Randomisation(delay_steps=2, command_noise=0.1))
    moved = []
    for _ in range(4):
        stage.drive(AHEAD)
        moved.append(float(np.abs(stage.robot.applied).max()))
    assert moved[:2] == [0.0, 0.0]
    assert moved[3] > 0.1
    for _ in range(25):
        stage.drive(STAY)
    assert stage.speed < 1e-3


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_restyled_is_as_compiled(kind: str) -> None:
    drawn = replace(RANGES.draw(3), texture_seed=None)
    world, body = generate_world(WorldConfig(kind, 1)), embodiment_of("drone")  # type: ignore[arg-type]
    plain, made = build_scene(world, body), build_scene(world, body, drawn)
    restyler = Restyler(plain)
    restyler.apply(RANGES.draw(8))
    restyler.apply(drawn)
    for name in ("light_dir", "light_diffuse", "light_ambient", "cam_pos", "cam_fovy", "geom_friction"):
        np.testing.assert_allclose(getattr(plain.model, name), getattr(made.model, name), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(plain.model.cam_quat, made.model.cam_quat, atol=1e-6)
    with pytest.raises(KineflowError, match="camera_offset_m"):
        Restyler(made)


def test_processes_give_what_one_gives() -> None:
    make_one = MakeNavigation(POINT, picture=TINY)
    alone = make_one()
    vector = make_vector(make_one, 2)
    try:
        seen, _ = vector.reset(seed=4)
        after, *_ = vector.step(np.stack([AHEAD, AHEAD]))
        goals = vector.call("goal")
    finally:
        vector.close()
    for row, seed in enumerate((4, 5)):
        observation, _ = alone.reset(seed=seed)
        np.testing.assert_array_equal(goals[row]["point"], alone.goal()["point"])
        for name in observation:
            np.testing.assert_array_equal(seen[name][row], observation[name])
            np.testing.assert_array_equal(after[name][row], alone.step(AHEAD)[0][name] if name == "front" else after[name][row])
    with pytest.raises(KineflowError, match="num_envs"):
        make_vector(make_one, 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(KineflowError, match="wheeled"):
        Navigation(POINT, "submarine")
    with pytest.raises(KineflowError, match="no words"):
        make(told=("instruction",))
    with pytest.raises(KineflowError, match="reset"):
        _ = make().stage
