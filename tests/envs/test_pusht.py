"""PushT against the recorded demonstrations, against gym-pusht itself and against areas known in closed form."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings, strategies as st

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError
from kineflow.datasets.demo_data import demo_data
from kineflow.envs.pusht import PushT, _make_simulator
from kineflow.envs.pusht_drawing import GOAL_POSE, PLAN_FAR, draw_board

AT_GOAL = (40.0, 40.0, *GOAL_POSE)


@pytest.fixture(scope="module")
def demonstrations():
    """(state [T, 5], action [T, 2], picture [T, 96, 96, 3]) of three episodes spread over the data."""
    with zarr.storage.ZipStore(demo_data(), mode="r") as store:
        group = zarr.open_group(store, mode="r", zarr_format=2)
        ends = np.asarray(group["meta/episode_ends"])
        episodes = []
        for i in (0, 77, 205):
            span = slice(int(ends[i - 1]) if i else 0, int(ends[i]))
            episodes.append(tuple(np.asarray(group[f"data/{name}"][span]) for name in ("state", "action", "img")))
    return episodes


def test_demonstrations_replay_exactly(demonstrations):
    env = PushT()
    for states, actions, _ in demonstrations:
        observation, _ = env.reset(seed=0, options={"state": states[0]})
        for state, action in zip(states, actions):
            # float32 of the recording is the only difference: 1e-4 px after hundreds of steps of contact.
            np.testing.assert_allclose(observation["state"], state, atol=1e-4)
            observation, _, terminated, _, info = env.step(action)
            assert not terminated
        assert info["coverage"] > 0.85, "a demonstration ends on the goal"


def test_camera_is_the_recorded_one(demonstrations):
    env = PushT(cameras=("top",))
    states, actions, pictures = demonstrations[0]
    observation, _ = env.reset(seed=0, options={"state": states[0]})
    for action, picture in zip(actions[:40], pictures):
        assert observation["top"].dtype == np.uint8
        assert np.abs(observation["top"].astype(int) - picture).mean() < 0.3
        observation, *_ = env.step(action)
    # The bound means something: one frame of a moving scene later, the difference is larger.
    assert np.abs(observation["top"].astype(int) - pictures[0]).mean() > 0.45


def test_setting_position_before_angle_would_not_reproduce_a_state(demonstrations):
    state = demonstrations[0][0][0]
    simulator = _make_simulator()
    legacy, _ = simulator.reset(seed=0, options={"reset_to_state": state.astype(np.float64)})
    exact, _ = PushT().reset(seed=0, options={"state": state})
    assert np.abs(legacy - state).max() > 20
    np.testing.assert_allclose(exact["state"], state, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 100_000])
def test_physics_rewards_and_starts_are_those_of_gym_pusht(seed):
    ours, theirs = PushT(), _make_simulator()
    observation, _ = ours.reset(seed=seed)
    expected, _ = theirs.reset(seed=seed)
    generator = np.random.default_rng(seed)
    touched = 0
    for _ in range(120):
        np.testing.assert_array_equal(observation["state"], expected.astype(np.float32))
        action = np.clip(np.array(theirs.block.position) + generator.normal(0, 40, 2), 0, 512).astype(np.float32)
        observation, reward, terminated, _, info = ours.step(action)
        expected, their_reward, their_terminated, _, their_info = theirs.step(action.astype(np.float64))
        assert reward == pytest.approx(float(their_reward), abs=1e-12)
        assert info["coverage"] == pytest.approx(float(their_info["coverage"]), abs=1e-12)
        assert (terminated, info["n_contacts"]) == (bool(their_terminated), their_info["n_contacts"])
        touched += info["n_contacts"]
    assert touched > 5, "the block was never pushed: nothing was compared"


def test_same_seed_is_bit_identical_even_after_other_episodes():
    def play(env):
        observation, info = env.reset(seed=5)
        numbers = [*observation["state"], info["coverage"]]
        for i in range(60):
            # A constant sweep through the block over the goal: coverage changes all the time.
            observation, reward, _, _, info = env.step(np.array([150 + 3 * i, 250 + 2 * i], dtype=np.float32))
            numbers += [*observation["state"], reward, info["coverage"]]
        return numbers

    used = PushT()
    first = play(used)
    for seed in range(3):
        used.reset(seed=seed)
        used.step(np.array([256.0, 256.0], dtype=np.float32))
    assert play(used) == first
    assert play(PushT()) == first


def test_coverage_is_bit_identical_wherever_memory_puts_the_shapes():
    """gym-pusht's own sum differs between resets by one unit in the last place; a reset makes new shapes every time."""
    env = PushT()
    generator = np.random.default_rng(0)
    for _ in range(20):
        state = np.array([40, 40, *GOAL_POSE]) + np.array([0, 0, *generator.uniform(-20, 20, 2), generator.uniform(-0.6, 0.6)])
        values = set()
        others = []  # keeps the memory of earlier shapes occupied, so that new ones get other addresses
        for _ in range(12):
            env.reset(seed=0, options={"state": state})
            others.append(env._simulator.space)
            values.add(env.coverage)
        assert len(values) == 1


def test_gymnasium_accepts_it():
    env = PushT(cameras=("top",))
    with pytest.warns(UserWarning, match="symmetric and normalized"):  # physical units are on purpose
        check_env(env, skip_render_check=True)
    assert env.interface == load_config(Interface, "interfaces/pusht")
    assert env.observation_space["state"].shape == (5,)
    assert PushT(render_mode="rgb_array").render.__self__.metadata["render_fps"] == 10


def test_truncates_after_300_steps_and_terminates_on_the_goal():
    env = PushT()
    env.reset(seed=1)
    here = env.state[:2].copy()
    ends = [env.step(here)[2:4] for _ in range(300)]
    assert ends[:-1] == [(False, False)] * 299
    assert ends[-1] == (False, True)

    env.reset(seed=1, options={"state": AT_GOAL})
    _, reward, terminated, truncated, info = env.step(np.array(AT_GOAL[:2], dtype=np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-29, 29), turn=st.sampled_from([0.0, 2 * math.pi, -2 * math.pi]))
def test_coverage_in_closed_form(shift, turn):
    """Along the bar, bar and stem overlap only with themselves: ((120 - d) 30 + (30 - d) 90) / 6300."""
    x, y, angle = GOAL_POSE
    env = _shared_env()
    env.reset(seed=0, options={"state": (40, 40, x + shift * math.cos(angle), y + shift * math.sin(angle), angle + turn)})
    d = abs(shift)
    assert env.coverage == pytest.approx(((120 - d) * 30 + (30 - d) * 90) / 6300, abs=1e-9)


def _shared_env(cache=[]):  # noqa: B006 (one environment for all examples)
    if not cache:
        cache.append(PushT())
    return cache[0]


def test_angle_is_reported_within_one_turn():
    env = PushT()
    for angle in (-0.5, 7.0, 6.2831853):
        observation, _ = env.reset(seed=0, options={"state": (40, 40, 256, 256, angle)})
        assert env.observation_space.contains(observation)
        assert observation["state"][4] == pytest.approx(angle % (2 * math.pi), abs=1e-6)


@pytest.mark.parametrize("state", [(1, 2, 3), (40, 40, 256, float("nan"), 0)])
def test_unusable_start_is_one_clear_error(state):
    with pytest.raises(KineflowError, match="5 finite numbers"):
        PushT().reset(seed=0, options={"state": state})
    with pytest.raises(KineflowError, match="knows the option 'state' only, got \\['reset_to_state'\\]"):
        PushT().reset(seed=0, options={"reset_to_state": state})


def test_unknown_camera_is_named():
    with pytest.raises(KineflowError, match="no camera \\['wrist'\\]; it offers \\['top'\\]"):
        PushT(cameras=("wrist",))


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_picture_agrees_with_gym_pusht(seed):
    env = PushT()
    env.reset(seed=seed)
    ours = env.frame(512).astype(int)
    theirs = env._simulator._get_img(env._simulator._draw(), 512, 512).astype(int)
    difference = np.abs(ours - theirs).max(axis=-1)
    assert (difference > 40).mean() < 0.004, "only anti-aliased edges may differ"
    shifted = np.abs(np.roll(ours, 2, axis=1) - theirs).max(axis=-1)
    assert (shifted > 40).mean() > 2 * (difference > 40).mean(), "the bound would not notice a shift of two pixels"


def test_picture_shows_plans_and_target_where_they_are():
    state = np.array([100.0, 100.0, 400.0, 400.0, 0.0])
    plan = np.linspace((120, 100), (300, 100), 16)
    bare, drawn = (draw_board(state, 256, plans=p) for p in (None, plan[None]))
    changed = np.argwhere((bare != drawn).any(-1)) * 2  # picture pixel -> board pixel
    assert changed[:, 0].min() > 90
    assert changed[:, 0].max() < 110
    assert changed[:, 1].max() == pytest.approx(300, abs=6)
    assert np.abs(drawn[50, 150].astype(int) - PLAN_FAR).max() < 40
    assert (draw_board(state, 256, target=np.array([256.0, 200.0]))[100, 128] == (225, 29, 72)).all()


def test_import_changes_no_environment_variable_and_construction_prints_nothing():
    code = (
        "import os, sys; import kineflow.envs.pusht as p\n"
        "assert 'pygame' not in sys.modules and not [k for k in os.environ if k.startswith('SDL_')]\n"
        "p.PushT()"
    )
    clean_variables = {k: v for k, v in os.environ.items() if not k.startswith(("SDL_", "PYGAME_"))}
    command = [sys.executable, "-W", "error", "-c", code]
    clean = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_variables)
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "", "")
