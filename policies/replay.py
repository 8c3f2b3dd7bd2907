"""Recorded episodes played again: video frames, fans of sampled chunks and the strip of one rollout.

A simulator is deterministic from its seed, so an episode needs no recorded pictures: it is replayed from its actions, and
the replay must reach the recorded coverage at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from kineflow.contracts import KineflowError, Policy, SamplingRequest
from kineflow.policies.rollout import stack_observations
from kineflow.policies.running_episode import Environment, EpisodeResult, RunningEpisode

Frame = UInt8[np.ndarray, "size size 3"]


def episode_frames(episode: EpisodeResult, env: Environment, execution: int, size: int) -> Iterator[Frame]:
    """A picture before each of the T steps, with the rest of the current plan, and one after the last: T + 1 frames.

    Raises:
        KineflowError: the environment did not repeat the recorded episode.
    """
    trajectory = episode.trajectory
    _, info = env.reset(seed=episode.seed)
    for step, action in enumerate(trajectory.actions):
        _require_repeated(episode, step, float(info["coverage"]))
        plan = trajectory.chunks[step // execution, step % execution :]
        yield env.frame(size, plans=plan[None], target=action)
        *_, info = env.step(action)
    _require_repeated(episode, episode.steps, float(info["coverage"]))
    yield env.frame(size)


def sample_fan(
    policy: Policy, episode: EpisodeResult, chunk: int, env: Environment, samples: int, batch: int, size: int
) -> tuple[Float[np.ndarray, "N H A"], Frame]:
    """`samples` chunks for the observation before the episode's chunk number `chunk`, and their picture."""
    running = RunningEpisode(env, episode.seed, policy.contract)
    for executed in episode.trajectory.chunks[:chunk]:
        running.execute(executed, call_s=0.0)
    observation = stack_observations([running.observation()] * batch)
    # One stream per sample: (episode, chunk, sample). Never the seed that the episode itself used.
    seeds = [np.random.SeedSequence((episode.seed, chunk, i)).generate_state(1, np.uint32)[0] for i in range(samples)]
    padded = np.array(seeds + [seeds[0]] * (-samples % batch), dtype=np.int64).reshape(-1, batch)
    chunks = np.concatenate([policy.predict(observation, SamplingRequest(seeds=row)).actions for row in padded])[:samples]
    return chunks, env.frame(size, plans=chunks)


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
    size = pictures[0].shape[0]
    gap, caption_height, radius = size // 16, size // 7, size // 24
    strip = Image.new("RGBA", (len(pictures) * (size + gap) - gap, size + caption_height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size // 16)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        left = i * (size + gap)
        mask = Image.new("L", (size, size), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size - 1, size - 1), radius, fill=255)
        strip.paste(Image.fromarray(picture), (left, 0), mask)
        # Mid-grey reads on light and on dark pages.
        draw.text((left + size / 2, size + caption_height / 2), caption, fill=(128, 128, 128, 255), font=font, anchor="mm")
    return strip


def _require_repeated(episode: EpisodeResult, step: int, coverage: float) -> None:
    recorded = float(episode.trajectory.coverage[step])
    if coverage != recorded:
        raise KineflowError(
            f"replay of episode seed {episode.seed} differs at step {step}: coverage {coverage} instead of {recorded}; "
            "the environment is not deterministic from its seed, so its videos would not show what was measured"
        )
