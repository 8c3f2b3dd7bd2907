"""Closed-loop evaluation: run the episodes, write results, manifest, videos and the report.

out_dir/
  results.jsonl    one line per episode, in the order of seeds
  manifest.json    code, packages, data, seeds, environment, configuration: enough to run it again
  videos/          replays spread over the ranking
  report.html      all of it on one page
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from kineflow.config import to_plain_config
from kineflow.contracts import ContractError, Policy, PolicyContract, to_json, to_plain
from kineflow.envs.pusht import PushT
from kineflow.policies.describe_navigation import describe_navigation
from kineflow.policies.describe_pusht import describe_pusht
from kineflow.policies.eval_result import EvalConfig, EvalResult, ranked, spread_over_ranking, summarise
from kineflow.policies.intervals import Estimate
from kineflow.policies.provenance import code_version, machine, package_versions
from kineflow.policies.replay import episode_frames, sample_fan
from kineflow.policies.report import Clip, Fan, ReportPage, build_report, read_metrics
from kineflow.policies.rollout import Rollout
from kineflow.policies.running_episode import Environment, EpisodeResult
from kineflow.policies.telling import teller, with_map
from kineflow.policies.video import encode_video

PLAYBACK_SPEED = 2  # videos play at twice the robot's rate
_VIDEOS_BYTES = 5_000_000  # of all videos of a page, which then opens from a mail, too
_FAN_PLACES = (0.0, 0.35, 0.7)  # share of the episode at which chunks are fanned out


def evaluate(
    policy: Policy, config: EvalConfig, out_dir: Path, run_dir: Path | None = None, console: Console | None = None
) -> EvalResult:
    """Evaluate `policy` on the configured seeds and write everything below `out_dir` (replacing an earlier evaluation).

    `run_dir` is the training run, for its loss curves and configuration. Progress goes to `console` (default: stderr).

    Raises:
        ContractError: the policy does not fit the environment.
        KineflowError: the policy returned unusable actions, or the environment is not deterministic.
    """
    console = console or Console(stderr=True)
    torch.set_num_threads(config.threads)
    rollout = evaluation_rollout(policy, config)
    started = time.perf_counter()
    episodes = _run(rollout, config, console)
    result = summarise(episodes, rollout.call_s, time.perf_counter() - started, out_dir, bootstrap_seed=config.seed_start)

    (out_dir / "videos").mkdir(parents=True, exist_ok=True)
    manifest = _manifest(policy.contract, config)
    (out_dir / "manifest.json").write_text(to_json(manifest))
    (out_dir / "results.jsonl").write_text("".join(json.dumps(episode_row(e), allow_nan=False) + "\n" for e in result.episodes))
    with console.status("drawing videos and report"):
        page = ReportPage(
            name=run_dir.name if run_dir else config.name,
            config=config,
            contract=policy.contract,
            result=result,
            description={"pusht": describe_pusht, "navigation": describe_navigation}[config.env](config, result),
            manifest=manifest,
            training=read_metrics(run_dir / "metrics.jsonl") if run_dir else (),
            run_config=_text(run_dir / "config.yaml") if run_dir else "",
            clips=_clips(policy.contract, config, result, rollout.envs[0]),
            fans=_fans(rollout.policy, config, result, rollout),
        )
        result.report.write_text(build_report(page), encoding="utf-8")
    return result


def evaluation_rollout(policy: Policy, config: EvalConfig) -> Rollout:
    """`policy` in as many environments as `config` says.

    Raises:
        ContractError: the policy does not fit the environment.
    """
    if (goals := sorted(policy.contract.interface.goals)) and config.env == "pusht":
        raise ContractError(
            f"this policy is told goals {goals}, of which PushT knows none; evaluate it with --config eval/navigation"
        )
    policy = with_map(policy, config.navigation.loop)
    trial, make_env = config.navigation, environment_factory(config, policy.contract)
    tell = teller(policy, trial.loop, (trial.stop_threshold, trial.stop_consecutive)) if policy.contract.interface.goals else None
    return Rollout(policy, make_env, min(config.num_envs, config.episodes), config.batch, tell)


def environment_factory(config: EvalConfig, contract: PolicyContract) -> Callable[[], Environment]:
    """Maker of the configured environment with the cameras that the policy needs."""
    # EvalConfig's Literal is the list of names; a new environment is a new line here.
    factories: dict[str, Callable[[], Environment]] = {
        "pusht": lambda: PushT(cameras=tuple(contract.interface.cameras)),
        "navigation": lambda: config.navigation.environment(contract),
    }
    return factories[config.env]


def render_result(result: EvalResult, console: Console) -> None:
    """The scores in a few lines for a person."""
    scores = {"success rate": result.success_rate}
    if result.metrics:
        scores |= {name.replace("_", " "): score for name, score in result.metrics.items()}
    else:
        scores = {"mean max reward": result.mean_max_reward, **scores, "max coverage": result.mean_max_coverage}
    for name, score in scores.items():
        console.print(f"[bold]{name:18}[/] {_estimate(score)}")
    call, step = result.policy_call_ms, result.env_step_ms
    console.print(f"[bold]{'policy call':18}[/] p50 {call.p50:.1f} ms, p99 {call.p99:.1f} ms  (env step {step.p50:.2f} ms)")
    console.print(f"[bold]{'report':18}[/] {result.report}", soft_wrap=True)


def _estimate(score: Estimate) -> str:
    return f"{score.value:.3f}  (95 % interval {score.low:.3f} to {score.high:.3f}, n = {score.n})"


def _run(rollout: Rollout, config: EvalConfig, console: Console) -> list[EpisodeResult]:
    episodes: list[EpisodeResult] = []
    columns = (SpinnerColumn(), TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[score]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("evaluating", total=config.episodes, score="")
        for episode in rollout.run(config.seeds):
            episodes.append(episode)
            reward = sum(e.max_reward for e in episodes) / len(episodes)
            success = sum(e.success for e in episodes) / len(episodes)
            # Quick episodes end first, so early numbers flatter: say that they are provisional.
            progress.update(task, advance=1, score=f"so far: reward {reward:.2f}, success {success:.0%}")
    return episodes


def _clips(contract: PolicyContract, config: EvalConfig, result: EvalResult, env: Environment) -> tuple[Clip, ...]:
    fps = round(contract.interface.action.rate_hz * PLAYBACK_SPEED)
    for old in (result.out_dir / "videos").glob("*.mp4"):
        old.unlink()
    clips, chosen = [], spread_over_ranking(result.episodes, config.videos)
    blind = config.env == "navigation" and config.navigation.loop == "open"
    for label, episode in chosen:
        path = result.out_dir / "videos" / f"{label.replace(' ', '_')}_{episode.seed}.mp4"
        frames = episode_frames(episode, env, contract.horizons.execution, config.video_size, blind)
        most_kbps = _VIDEOS_BYTES * 8 * fps // (1000 * len(chosen) * (episode.steps + 1))
        encode_video(frames, path, fps, most_kbps)
        clips.append(Clip(label, episode, path))
    return tuple(clips)


def _fans(policy: Policy, config: EvalConfig, result: EvalResult, rollout: Rollout) -> tuple[Fan, ...]:
    median = ranked(result.episodes)[round((len(result.episodes) - 1) / 2)]
    calls = len(median.trajectory.chunks)
    fans = []
    for index in sorted({int(place * calls) for place in _FAN_PLACES}):
        _, picture = sample_fan(
            policy, median, index, rollout.envs[0], config.fan_samples, config.batch, 2 * config.video_size, rollout.tell
        )
        fans.append(Fan(picture, median.seed, index * policy.contract.horizons.execution))
    return tuple(fans)


def _manifest(contract: PolicyContract, config: EvalConfig) -> dict[str, Any]:
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code": code_version(),
        "packages": package_versions(),
        "machine": machine(),
        "environment": {"id": config.env, "conditions": "random starts of the simulator, one seed per episode"},
        "seeds": {"start": config.seed_start, "count": config.episodes},
        "dataset_hash": contract.dataset_hash,
        "trained_with": dict(contract.versions),
        "sampler": contract.sampler,
        "horizons": contract.horizons,
        "config": to_plain_config(config),
    }


def episode_row(episode: EpisodeResult) -> dict[str, Any]:
    return {
        "seed": episode.seed,
        "success": episode.success,
        "max_reward": episode.max_reward,
        "max_coverage": episode.max_coverage,
        "final_coverage": episode.final_coverage,
        "return": episode.episode_return,
        "steps": episode.steps,
        "clipped_actions": episode.clipped_actions,
        "policy_calls": len(episode.call_s),
        "mean_policy_call_ms": _mean_ms(episode.call_s),
        "mean_env_step_ms": _mean_ms(episode.step_s),
        **({} if episode.metrics is None else {"outcome": episode.outcome, **to_plain(episode.metrics)}),
    }


def _mean_ms(seconds: Sequence[float]) -> float:
    return round(1e3 * sum(seconds) / len(seconds), 4)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
