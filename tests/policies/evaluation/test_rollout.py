"""The control loop: independence of batching, histories, chunk execution, auto-reset and clear errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kineflow.contracts import ActionChunk, ContractError, FeatureSpec, Horizons, KineflowError, VectorSpec
from kineflow.envs.pusht import PushT
from kineflow.policies.rollout import Rollout, noise_seed


def results(policy, seeds, num_envs, batch=32, max_steps=24):
    rollout = Rollout(policy, lambda: PushT(max_steps=max_steps), num_envs, batch)
    return {episode.seed: episode for episode in rollout.run(seeds)}


def assert_equal_results(one, other):
    assert one.keys() == other.keys()
    for seed, episode in one.items():
        assert episode == other[seed], f"seed {seed} differs"
        for name in ("actions", "coverage", "chunks"):
            mine, theirs = getattr(episode.trajectory, name), getattr(other[seed].trajectory, name)
            np.testing.assert_array_equal(mine, theirs, err_msg=f"seed {seed}, {name}")


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_the_number_of_environments(small_policy, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seeds = range(100_000, 100_020)
        one, seven, twenty = (results(small_policy, seeds, n) for n in (1, 7, 20))
    finally:
        torch.set_num_threads(before)
    assert_equal_results(one, seven)
    assert_equal_results(one, twenty)
    assert len({episode.max_coverage for episode in one.values()}) > 5, "episodes that all look alike prove nothing"


def test_results_do_not_depend_on_queue_order_or_on_crowded_rows(small_policy):
    """With 4 rows for 9 environments several calls share a round, and late seeds meet an occupied row."""
    seeds = [3, 7, 11, 15, 4, 5, 6, 8, 12]
    alone = {seed: results(small_policy, [seed], 1, batch=4)[seed] for seed in seeds}
    assert_equal_results(alone, results(small_policy, seeds, 9, batch=4))
    assert_equal_results(alone, results(small_policy, seeds[::-1], 3, batch=4))


def test_a_policy_that_rounds_every_row_differently_changes_nothing(small_policy):
    class RowSensitive:
        contract = small_policy.contract

        def predict(self, observation, request):
            chunk = small_policy.predict(observation, request)
            rows = np.arange(len(chunk.actions), dtype=np.float32)[:, None, None]
            return dataclasses.replace(chunk, actions=chunk.actions * (1 + 1e-5 * rows))

    one, five = (results(RowSensitive(), range(40, 52), n, max_steps=16) for n in (1, 5))
    assert_equal_results(one, five)


def test_noise_seed_depends_on_episode_and_chunk_alone():
    seeds = {noise_seed(episode, chunk) for episode in range(200) for chunk in range(40)}
    assert len(seeds) == 200 * 40
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert noise_seed(100_000, 3) == noise_seed(100_000, 3) != noise_seed(100_003, 0)


def test_every_call_has_the_same_shape_and_its_own_noise(scripted_policy, counting_env):
    env = counting_env({10: 4, 11: 9, 12: 2})
    policy = scripted_policy(env, Horizons(3, 5, 2))
    list(Rollout(policy, lambda: env if not policy.seen else None, 1, batch=4).run([10, 11, 12]))
    assert {state.shape for state, _, _ in policy.seen} == {(4, 3, 1)}
    assert {seeds.shape for _, _, seeds in policy.seen} == {(4,)}
    # Chunk c of episode s uses noise_seed(s, c), in row s % 4.
    assert [int(seeds[10 % 4]) for _, _, seeds in policy.seen[:2]] == [noise_seed(10, 0), noise_seed(10, 1)]
    assert int(policy.seen[2][2][11 % 4]) == noise_seed(11, 0)


def test_history_is_clamped_at_the_start_and_then_slides(scripted_policy, counting_env):
    env = counting_env({1: 6})
    policy = scripted_policy(env, Horizons(3, 4, 2))
    list(Rollout(policy, lambda: env, 1, batch=2).run([1]))
    states = [state[1, :, 0].tolist() for state, _, _ in policy.seen]
    stamps = [stamp[1].tolist() for _, stamp, _ in policy.seen]
    assert states == [[1000, 1000, 1000], [1000, 1001, 1002], [1002, 1003, 1004]]
    np.testing.assert_allclose(stamps, [[0, 0, 0], [0, 0.1, 0.2], [0.2, 0.3, 0.4]])


def test_executes_the_first_actions_of_each_chunk_in_order(scripted_policy, counting_env):
    env = counting_env({0: 5})
    policy = scripted_policy(env, Horizons(1, 4, 2))
    (episode,) = Rollout(policy, lambda: env, 1, batch=1).run([0])
    np.testing.assert_allclose(env.actions, [0.0, 0.01, 2.0, 2.01, 4.0], atol=1e-6)
    assert episode.trajectory.chunks.shape == (3, 4, 1)
    assert (episode.steps, len(episode.call_s), len(episode.step_s)) == (5, 3, 5)
    assert (episode.max_reward, episode.final_coverage, episode.max_coverage) == (0.05, 0.025, 0.025)
    assert episode.episode_return == pytest.approx(0.15)
    assert episode.success


def test_nobody_waits_for_the_slowest_episode(scripted_policy, counting_env):
    """One long episode beside ten short ones: as many calls as the long one needs, not one batch after another."""
    lengths = {0: 40} | dict.fromkeys(range(1, 11), 4)
    envs = [counting_env(lengths), counting_env(lengths)]
    policy = scripted_policy(envs[0], Horizons(1, 4, 4))
    free = list(envs)
    order = [episode.seed for episode in Rollout(policy, free.pop, 2, batch=16).run(range(11))]
    assert len(policy.seen) == 10
    assert order == [1, 2, 3, 4, 5, 6, 7, 8, 9, *order[-2:]]


def test_actions_beyond_the_limits_are_clipped_and_counted(scripted_policy, counting_env):
    limits = VectorSpec(("u",), ("m",), "world", (0.0,), (2.0,))
    env = counting_env({0: 4}, limits)
    (episode,) = Rollout(scripted_policy(env, Horizons(1, 4, 1)), lambda: env, 1, batch=1).run([0])
    assert env.actions == [0.0, 1.0, 2.0, 2.0]
    assert episode.clipped_actions == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_names_episode_step_and_remedy(scripted_policy, counting_env, bad):
    env = counting_env({7: 6})
    policy = scripted_policy(env, Horizons(1, 4, 2))
    answer = policy.predict

    def diverge(observation, request):
        chunk = answer(observation, request)
        if len(policy.seen) == 2:
            chunk.actions[:, 3] = bad
        return chunk

    policy.predict = diverge
    with pytest.raises(KineflowError, match=r"seed 7, step 2: action 3 of the chunk is \[(nan|inf)\].*earlier checkpoint"):
        list(Rollout(policy, lambda: env, 1, batch=4).run([7]))


def test_nan_in_padding_rows_is_not_an_error(scripted_policy, counting_env):
    env = counting_env({0: 3})
    policy = scripted_policy(env, Horizons(1, 4, 2))
    answer = policy.predict

    def poison(observation, request):
        chunk = answer(observation, request)
        chunk.actions[1:] = np.nan
        return chunk

    policy.predict = poison
    assert len(list(Rollout(policy, lambda: env, 1, batch=4).run([0]))) == 1


def test_wrong_shape_names_both(scripted_policy, counting_env):
    env = counting_env({7: 6})
    policy = scripted_policy(env, Horizons(1, 4, 2))
    policy.predict = lambda observation, request: ActionChunk(np.zeros((4, 3, 1)), 0.1, np.zeros(4))
    with pytest.raises(KineflowError, match=r"seed 7, step 0: returned actions \(4, 3, 1\), its contract says \(4, 4, 1\)"):
        list(Rollout(policy, lambda: env, 1, batch=4).run([7]))


def test_policy_of_another_environment_is_refused(scripted_policy, counting_env, small_policy):
    with pytest.raises(ContractError, match=r"(?s)environment CountingEnv does not match.*feature 'state': shape is \[5\]"):
        Rollout(small_policy, lambda: counting_env({}), 1)
    slower = counting_env({})
    policy = scripted_policy(slower, Horizons(1, 4, 2))
    slower.interface = dataclasses.replace(slower.interface, action=FeatureSpec(slower.interface.action.vector, 5.0))
    with pytest.raises(ContractError, match="action: rate_hz is 10 in the policy and 5 here"):
        Rollout(policy, lambda: slower, 1)


def test_environment_made_without_the_camera_is_refused(small_policy):
    interface = PushT().interface
    small_policy.contract = dataclasses.replace(small_policy.contract, interface=interface)
    with pytest.raises(ContractError, match=r"needs \['top'\], observations of PushT hold \['state'\]"):
        results(small_policy, [0], 1)


@pytest.mark.parametrize(("num_envs", "batch"), [(0, 32), (1, 0)])
def test_impossible_sizes_are_refused(small_policy, num_envs, batch):
    with pytest.raises(KineflowError, match="num_envs >= 1 and batch >= 1"):
        Rollout(small_policy, PushT, num_envs, batch)
