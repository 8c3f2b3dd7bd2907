"""Recorded episodes played again: video frames, fans of sampled chunks and the strip of one rollout.

A simulator is deterministic from its seed, so an episode needs no recorded pictures: it is replayed from its actions, and
the replay must reach the recorded coverage at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from kineflow.contracts import KineflowError, Policy, SamplingRequest
from kineflow.policies.rollout import stack_observations
from kineflow.policies.running_episode import Environment, EpisodeResult, GoalEnvironment, RunningEpisode, Trajectory
from kineflow.policies.told import Told

Frame = UInt8[np.ndarray, "size W 3"]


def episode_frames(episode: EpisodeResult, env: Environment, execution: int, size: int, blind: bool = False) -> Iterator[Frame]:
    """A picture before each of the T steps, with the rest of the current plan, and one after the last: T + 1 frames.

    `blind`: the policy did not see the camera (open loop), and the pictures say so.

    Raises:
        KineflowError: the environment did not repeat the recorded episode.
    """
    trajectory = episode.trajectory
    _, info = env.reset(seed=episode.seed)
    for step, action in enumerate(trajectory.actions):
        _require_repeated(episode, step, float(info["coverage"]))
        has_stopped = trajectory.stopped_at is not None and step >= trajectory.stopped_at
        plan = None if has_stopped else trajectory.chunks[step // execution, step % execution :][None]
        if isinstance(env, GoalEnvironment):
            yield env.frame(size, plan, action, **_said(trajectory, env, step, execution), blind=blind)
            if step == trajectory.stopped_at:
                env.declare_stop()
        else:
            yield env.frame(size, plans=plan, target=action)
        *_, info = env.step(action)
    _require_repeated(episode, episode.steps, float(info["coverage"]))
    if isinstance(env, GoalEnvironment):
        yield env.frame(size, **_said(trajectory, env, episode.steps, execution), blind=blind)
    else:
        yield env.frame(size)


def _said(trajectory: Trajectory, env: GoalEnvironment, step: int, execution: int) -> dict[str, Any]:
    """What the policy believed and said when it was last asked: it goes on in its clip as long as it drives."""
    stopped = trajectory.stopped_at if trajectory.stopped_at is not None else step
    call = min(min(step, stopped) // execution, len(trajectory.chunks) - 1)
    said: dict[str, Any] = {}
    if trajectory.stop_probability is not None:
        said["stop_probability"] = float(trajectory.stop_probability[call])
    if trajectory.cursor is not None:
        driven_s = (min(step, stopped) - call * execution) / env.interface.action.rate_hz
        said["cursor"] = int(trajectory.cursor[call]) + round(driven_s * env.clip_rate_hz)
    return said


def sample_fan(
    policy: Policy,
    episode: EpisodeResult,
    chunk: int,
    env: Environment,
    samples: int,
    batch: int,
    size: int,
    tell: Callable[[GoalEnvironment], Told] | None = None,
) -> tuple[Float[np.ndarray, "N H A"], Frame]:
    """`samples` chunks for the observation before the episode's chunk number `chunk`, and their picture.

    `tell`: what the policy was told of its goal, as in `Rollout`.
    """
    trajectory, running = episode.trajectory, RunningEpisode(env, episode.seed, policy.contract, tell)
    for call, executed in enumerate(trajectory.chunks[:chunk]):
        _believe(running, trajectory, call)
        running.execute(executed, call_s=0.0)
    _believe(running, trajectory, chunk)
    observation = stack_observations([running.observation()] * batch)
    # One stream per sample: (episode, chunk, sample). Never the seed that the episode itself used.
    seeds = [np.random.SeedSequence((episode.seed, chunk, i)).generate_state(1, np.uint32)[0] for i in range(samples)]
    padded = np.array(seeds + [seeds[0]] * (-samples % batch), dtype=np.int64).reshape(-1, batch)
    chunks = np.concatenate([policy.predict(observation, SamplingRequest(seeds=row)).actions for row in padded])[:samples]
    return chunks, env.frame(size, plans=chunks)


def _believe(running: RunningEpisode, trajectory: Trajectory, call: int) -> None:
    """Be where in the clip the episode was at that call, without asking the policy again."""
    if running.told and trajectory.cursor is not None:
        running.told.believe(int(trajectory.cursor[call]))


def rollout_strip(episode: EpisodeResult, env: Environment, execution: int, path: Path, frames: int = 6, size: int = 256) -> Path:
    """PNG of one rollout: `frames` pictures evenly over time, time and coverage below each, transparent around them."""
    steps = np.unique(np.round(np.linspace(0, episode.steps, frames)).astype(int))
    shown = {step: picture for step, picture in enumerate(episode_frames(episode, env, execution, 2 * size)) if step in steps}
    captions = [_caption(episode, int(step), env.interface.action.rate_hz) for step in steps]
    _strip([shown[int(step)] for step in steps], captions).save(path, optimize=True)
    return path


def _caption(episode: EpisodeResult, step: int, rate_hz: float) -> str:
    return f"{step / rate_hz:.1f} s · {100 * episode.trajectory.coverage[step]:.0f} %"


def _strip(pictures: Sequence[Frame], captions: Sequence[str]) -> Image.Image:
    size, width = pictures[0].shape[:2]
    gap, caption_height, radius = size // 16, size // 7, size // 24
    strip = Image.new("RGBA", (len(pictures) * (width + gap) - gap, size + caption_height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size // 16)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        left = i * (width + gap)
        mask = Image.new("L", (width, size), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, size - 1), radius, fill=255)
        strip.paste(Image.fromarray(picture), (left, 0), mask)
        # Mid-grey reads on light and on dark pages.
        draw.text((left + width / 2, size + caption_height / 2), caption, fill=(128, 128, 128, 255), font=font, anchor="mm")
    return strip


def _require_repeated(episode: EpisodeResult, step: int, coverage: float) -> None:
    recorded = float(episode.trajectory.coverage[step])
    if coverage != recorded:
        raise KineflowError(
            f"replay of episode seed {episode.seed} differs at step {step}: coverage {coverage} instead of {recorded}; "
            "the environment is not deterministic from its seed, so its videos would not show what was measured"
        )
