"""A whole evaluation: what it writes, that its numbers agree with each other, that replays show what was measured."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kineflow.config import from_plain
from kineflow.contracts import KineflowError
from kineflow.envs.pusht import PushT
from kineflow.policies import provenance
from kineflow.policies.eval_result import EvalConfig, ranked, spread_over_ranking, summarise
from kineflow.policies.evaluation import evaluate, render_result
from kineflow.policies.replay import episode_frames, rollout_strip, sample_fan
from kineflow.policies.rollout import Rollout
from kineflow.policies.video import encode_video


def test_json_has_the_promised_keys_and_agrees_with_the_episodes(evaluated):
    _, config, result, _ = evaluated
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    for key in ("mean_max_reward", "success_rate", "mean_max_coverage", "mean_final_coverage"):
        assert set(plain[key]) == {"value", "low", "high", "n"}
        assert plain[key]["low"] <= plain[key]["value"] <= plain[key]["high"]
        assert plain[key]["n"] == config.episodes
    assert set(plain["policy_call_ms"]) == set(plain["env_step_ms"]) == {"p50", "p99", "max", "n"}
    rewards = [min(max(e.trajectory.coverage[1:]) / 0.95, 1) for e in result.episodes]
    assert plain["mean_max_reward"]["value"] == pytest.approx(np.mean(rewards), abs=1e-12)
    assert plain["success_rate"]["value"] == np.mean([e.success for e in result.episodes])
    assert plain["env_step_ms"]["n"] == sum(e.steps for e in result.episodes)


def test_results_file_lists_every_seed_once_in_order(evaluated):
    _, config, result, _ = evaluated
    rows = [json.loads(line) for line in (result.out_dir / "results.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == list(config.seeds) == [100_000, 100_001, 100_002, 100_003, 100_004]
    for row, episode in zip(rows, result.episodes):
        assert row["max_reward"] == episode.max_reward
        assert (row["steps"], row["success"]) == (episode.steps, episode.success)
        assert row["policy_calls"] == -(-episode.steps // 8)


def test_manifest_is_enough_to_run_it_again(evaluated):
    _, config, result, policy = evaluated
    manifest = json.loads((result.out_dir / "manifest.json").read_text())
    assert from_plain(EvalConfig, manifest["config"], "manifest") == config
    assert manifest["seeds"] == {"start": 100_000, "count": 5}
    assert manifest["dataset_hash"] == policy.contract.dataset_hash
    assert manifest["packages"].keys() >= {"python", "numpy", "torch", "gym-pusht", "pymunk"}
    assert manifest["sampler"]["solver"] == "euler"


def test_evaluating_again_gives_the_same_numbers(evaluated, tmp_path):
    _, config, result, policy = evaluated
    again = evaluate(policy, dataclasses.replace(config, num_envs=5, videos=0), tmp_path / "eval", console=Console(quiet=True))
    assert again.episodes == result.episodes
    assert again.mean_max_reward == result.mean_max_reward
    assert not list((tmp_path / "eval" / "videos").iterdir())
    assert "No videos were asked for" in again.report.read_text()


def test_videos_are_whole_decodable_h264(evaluated):
    _, config, result, _ = evaluated
    chosen = spread_over_ranking(result.episodes, 3)
    files = {path.name: path for path in (result.out_dir / "videos").iterdir()}
    assert files.keys() == {f"{label}_{episode.seed}.mp4" for label, episode in chosen}
    for label, episode in chosen:
        with av.open(str(files[f"{label}_{episode.seed}.mp4"])) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (128, 128, 20)
        assert len(frames) == episode.steps + 1
        first = next(iter(episode_frames(episode, PushT(), 8, config.video_size)))
        assert np.abs(frames[0].to_ndarray(format="rgb24").astype(int) - first).mean() < 4


def test_a_second_evaluation_leaves_no_old_video(small_policy, tmp_path):
    config = EvalConfig(episodes=1, num_envs=1, batch=1, videos=1, video_size=64, fan_samples=1)
    for start in (1, 2):
        evaluate(small_policy, dataclasses.replace(config, seed_start=start), tmp_path, console=Console(quiet=True))
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["best_2.mp4"]


def test_replay_refuses_an_environment_that_does_not_repeat(small_policy):
    (episode,) = Rollout(small_policy, lambda: PushT(max_steps=20), 1, batch=4).run([3])
    assert len(list(episode_frames(episode, PushT(), 8, 64))) == 21
    coverage = episode.trajectory.coverage.copy()
    coverage[11] += 1e-9
    changed = dataclasses.replace(episode, trajectory=dataclasses.replace(episode.trajectory, coverage=coverage))
    with pytest.raises(KineflowError, match="replay of episode seed 3 differs at step 11"):
        list(episode_frames(changed, PushT(), 8, 64))


def test_fan_samples_answer_the_recorded_observation(evaluated):
    """The chunk that the episode itself got is reproduced from the replayed observation with the episode's own noise seed."""
    _, _, result, policy = evaluated
    episode = result.episodes[0]
    seen = []

    class Spy:
        contract = policy.contract

        def predict(self, observation, request):
            seen.append(observation.state.copy())
            return policy.predict(observation, request)

    list(Rollout(Spy(), lambda: PushT(), 1, batch=8).run([episode.seed]))
    in_episode = seen[4][episode.seed % 8]
    seen.clear()
    chunks, picture = sample_fan(Spy(), episode, 4, PushT(), samples=10, batch=8, size=96)
    np.testing.assert_array_equal(seen[0], np.broadcast_to(in_episode, (8, 2, 5)))
    assert chunks.shape == (10, 16, 2)
    assert len(np.unique(chunks[:, 0, 0])) == 10, "every sample has noise of its own"
    assert picture.shape == (96, 96, 3)


def test_strip_shows_first_and_last_moment(evaluated, tmp_path):
    episode = evaluated[2].episodes[0]
    path = rollout_strip(episode, PushT(), 8, tmp_path / "strip.png", frames=4, size=64)
    strip = np.asarray(Image.open(path))
    assert strip.shape == (128 + 18, 4 * (128 + 8) - 8, 4)
    *_, last = episode_frames(episode, PushT(), 8, 128)
    np.testing.assert_array_equal(strip[20:108, -108:-20, :3], last[20:108, 20:108])
    assert strip[64, 131, 3] == 0, "the gaps are transparent"


def test_ranking_puts_reward_first_then_speed(evaluated):
    template = evaluated[2].episodes[0]
    episodes = [
        dataclasses.replace(template, seed=seed, max_reward=reward, steps=steps)
        for seed, reward, steps in [(0, 0.5, 300), (1, 1.0, 200), (2, 0.9, 300), (3, 1.0, 100), (4, 0.1, 300)]
    ]
    assert [e.seed for e in ranked(episodes)] == [3, 1, 2, 0, 4]
    assert [(label, e.seed) for label, e in spread_over_ranking(episodes, 3)] == [("best", 3), ("median", 2), ("worst", 4)]
    assert [label for label, _ in spread_over_ranking(episodes, 5)] == ["best", "rank 2 of 5", "median", "rank 4 of 5", "worst"]
    assert [label for label, _ in spread_over_ranking(episodes[:1], 3)] == ["best"]
    assert spread_over_ranking(episodes, 0) == []


def test_summary_orders_by_seed_and_is_a_function_of_its_inputs(evaluated, tmp_path):
    _, _, result, _ = evaluated
    shuffled = summarise(result.episodes[::-1], result.call_s, result.wall_s, result.out_dir, bootstrap_seed=100_000)
    assert shuffled == result


@pytest.mark.parametrize(
    "change",
    [{"episodes": 0}, {"num_envs": 0}, {"batch": 0}, {"videos": -1}, {"seed_start": -1}, {"video_size": 101}, {"video_size": 2}],
)
def test_impossible_configurations_are_refused(change):
    with pytest.raises(KineflowError, match="evaluation: .*" + next(iter(change))):
        EvalConfig(**change)


def test_video_needs_frames_of_even_size(tmp_path):
    with pytest.raises(KineflowError, match=r"31 x 30 px; H\.264 needs even sides"):
        encode_video([np.zeros((30, 31, 3), np.uint8)], tmp_path / "odd.mp4", 10)
    with pytest.raises(KineflowError, match="no frames"):
        encode_video([], tmp_path / "none.mp4", 10)


def test_same_frames_give_the_same_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    for name in ("a", "b"):
        assert encode_video(frames, tmp_path / f"{name}.mp4", 10) == 5
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_scores_for_people(evaluated):
    text = io.StringIO()
    render_result(evaluated[2], Console(file=text, width=200))
    text = text.getvalue()
    assert f"{evaluated[2].mean_max_reward.value:.3f}" in text
    assert "n = 5" in text
    assert "report.html" in text


def test_git_commit_is_reported_only_for_our_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "kineflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    (tmp_path / "readme").write_text("somebody else's repository")
    for command in (["init", "-q"], ["add", "readme"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance.kineflow, "__file__", str(package / "__init__.py"))
    assert provenance.code_version()["git"] is None
    for command in (["add", "site"], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *command], check=True)
    version = provenance.code_version()
    assert (len(version["git"]), version["dirty"]) == (40, False)
    (package / "__init__.py").write_text("changed")
    assert provenance.code_version()["dirty"] is True
