"""Navigation evaluated: episodes are replayed as they were; the page says and shows what happened, in a real browser too."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import av
import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console

from kineflow.config import load_config
from kineflow.contracts import (
    ActionChunk,
    ContractError,
    GoldenPair,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
)
from kineflow.envs.navigation.navigation import sized
from kineflow.envs.navigation.panel import Layout
from kineflow.envs.navigation.stage import Picture
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.evaluation import evaluate, evaluation_rollout
from kineflow.policies.navigation_trial import NavigationTrial
from kineflow.policies.replay import episode_frames, rollout_strip, sample_fan
from kineflow.policies.video import encode_video, video_size
from tests.policies.evaluation.conftest import statistics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 180_000  # a browser on a busy machine
LIMIT_S = 2.4


class Wanderer:
    """Drives on, a little at random, and says after `patience_s` that it has arrived; keeps which clips it was shown."""

    def __init__(self, patience_s: float = 1.6) -> None:
        whole = sized(load_config(Interface, "interfaces/navigation"), Picture(16, 16))
        features = {name: whole.features[name] for name in ("velocity", "embodiment")}
        needed = Interface(features, whole.action, whole.cameras, {"video": whole.goals["video"]})
        known = {name: statistics(spec.vector.size) for name, spec in features.items()} | {"action": statistics(4)}
        sampler = SamplerSpec("CondOT", "velocity", "euler", 1)
        self.contract = PolicyContract(needed, Horizons(1, 16, 8), sampler, known, "0" * 16, {}, GoldenPair((), 0, ()))
        self.patience_s, self.shown = patience_s, list[np.ndarray]()

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        self.shown.append(observation.goal["video"].copy())
        noise = np.stack([np.random.default_rng(int(seed)).normal(size=2) for seed in request.seeds])
        actions = np.zeros((len(noise), 16, 4), np.float32)
        actions[:, :, 0] = 0.5 + 0.1 * noise[:, :1]
        actions[:, :, 3] = 0.4 * noise[:, 1:]
        stamp = observation.stamp_s[:, -1]
        return ActionChunk(actions, 0.1, stamp, np.where(stamp >= self.patience_s, 0.9, 0.1), np.full(len(noise), 0.8))


def config(**changes: object) -> EvalConfig:
    trial = NavigationTrial(world="indoor", time_limit_s=LIMIT_S, stop_consecutive=1)
    small = EvalConfig(
        "navigation", trial, "nav", episodes=3, num_envs=1, batch=2, videos=2, video_size=240, fan_samples=3, seed_start=100_000
    )
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def evaluated_navigation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("navigation")
    return evaluate(Wanderer(), config(), folder / "eval", console=Console(quiet=True))


@pytest.fixture(scope="module")
def page(evaluated_navigation):
    return evaluated_navigation.report.read_text(encoding="utf-8")


def words(page: str) -> str:
    return re.sub(r"<[^>]*>", "|", page.split("</style>")[1].split("<script>")[0])


def test_videos_are_whole_panels(evaluated_navigation):
    files = sorted((evaluated_navigation.out_dir / "videos").iterdir())
    assert len(files) == 2
    for path in files:
        episode = next(e for e in evaluated_navigation.episodes if path.stem.endswith(str(e.seed)))
        assert video_size(path) == (Layout(240).width, 240)
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == episode.steps + 1


def test_a_stop_is_replayed_where_it_was_said(evaluated_navigation):
    policy = Wanderer()
    rollout = evaluation_rollout(policy, config())
    (episode,) = rollout.run([100_001])
    assert episode.trajectory.stopped_at == 16
    assert episode == evaluated_navigation.episodes[1]
    assert episode.steps > 17, "it comes to rest, which takes steps of no chunk"
    frames = list(episode_frames(episode, rollout.envs[0], 8, 128))
    assert len(frames) == episode.steps + 1
    unsaid = dataclasses.replace(episode, trajectory=dataclasses.replace(episode.trajectory, stopped_at=episode.steps - 1))
    driven = unsaid.trajectory.actions.copy()
    driven[16:] = driven[0]  # what the policy would have had driven: a stopped robot does not listen
    moved = dataclasses.replace(unsaid, trajectory=dataclasses.replace(unsaid.trajectory, actions=driven))
    with pytest.raises(KineflowError, match="differs at step"):
        list(episode_frames(moved, rollout.envs[0], 16, 64))
    deaf = dataclasses.replace(episode, trajectory=dataclasses.replace(episode.trajectory, actions=driven))
    assert len(list(episode_frames(deaf, rollout.envs[0], 8, 64))) == episode.steps + 1


def test_a_fan_is_told_what_the_episode_was_told_then():
    policy = Wanderer()
    rollout = evaluation_rollout(policy, config(episodes=1))
    (episode,) = rollout.run([100_001])
    then = policy.shown[1][100_001 % 2]
    policy.shown.clear()
    chunks, picture = sample_fan(policy, episode, 1, rollout.envs[0], 3, 2, 320, rollout.tell)
    np.testing.assert_array_equal(policy.shown[0], np.stack([then, then]))
    assert chunks.shape == (3, 16, 4)
    assert picture.shape[0] == 320
    assert picture.shape[0] > 1.5 * picture.shape[1], "a portrait"


def test_a_strip_holds_wide_frames(tmp_path):
    policy = Wanderer()
    rollout = evaluation_rollout(policy, config(episodes=1))
    (episode,) = rollout.run([100_000])
    from PIL import Image

    with Image.open(rollout_strip(episode, rollout.envs[0], 8, tmp_path / "strip.png", frames=2, size=64)) as strip:
        assert strip.size == (2 * (Layout(128).width + 8) - 8, 128 + 18)


def test_the_page_says_what_was_measured(page, evaluated_navigation):
    said, scores = words(page), evaluated_navigation.metrics
    assert "Wheeled robot, goal video, closed loop" in said
    assert "3 trips in worlds never trained in, indoors" in said
    for title in ("Success rate", "SPL", "Distance at the end", "Policy call", "From the way (ATE), m", "False stops"):
        assert title in said, title
    error = scores["goal_error"]
    assert f"{error.value:.2f}" in said
    assert f"{error.low:.2f} – {error.high:.2f} m" in said
    assert "within 1.00 m" in said
    assert "--navigation.embodiment wheeled --navigation.goal video --navigation.loop closed --episodes 3" in said
    assert "coverage" not in said.split("Run it again")[0]
    for episode in evaluated_navigation.episodes:
        assert re.search(rf'<td data-value="{episode.seed}">', page)
        assert episode.outcome in said
    assert not re.search(r"\bNone\b|\bnan\b|\$", said.split("Run it again")[0])


def test_pictures_are_inside_and_small(page):
    assert page.count("data:video/mp4;base64,") == 2
    assert page.count("data:image/jpeg;base64,") + page.count("data:image/png;base64,") == 3
    assert len(page) < 8e6 / 3
    assert 'class="grid wide"' in page


def test_a_video_keeps_to_its_bit_rate(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    sizes = []
    for most in (None, 100):
        path = tmp_path / f"{most}.mp4"
        encode_video(noise, path, 20, most)
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.5 * sizes[0]
    assert sizes[1] < 1.5 * (40 / 20 + 2) * 100e3 / 8, "two seconds, and the two that its buffer holds"


@pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium; install it with `apt-get install chromium`"
)
def test_the_page_works_in_a_browser(evaluated_navigation):
    if CHROMIUM is None:
        pytest.fail("CI needs Chromium for this test; install it with `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(evaluated_navigation.report.as_uri())
        page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.readyState >= 2)")
        shapes = page.evaluate(
            "[...document.querySelectorAll('video')].map((v) => [v.videoWidth, v.clientWidth / v.clientHeight])"
        )
        for width, shape in shapes:
            assert width == Layout(240).width
            assert shape == pytest.approx(Layout(240).width / 240, rel=0.01), "no bars around the picture"
        assert page.evaluate("document.querySelectorAll('video')[0].clientWidth") > 900, "a row of its own"
        error = page.locator(".episodes th", has_text="From the goal")
        error.click()
        column = page.evaluate(
            "[...document.querySelectorAll('.episodes tbody tr')].map((r) => Number(r.cells[3].dataset.value))"
        )
        assert column == sorted(column)
        page.set_viewport_size({"width": 2000, "height": 1000})
        tops = page.evaluate("[...document.querySelectorAll('video')].map((v) => v.getBoundingClientRect().top)")
        assert tops[0] == tops[1], "two in a row on a large screen"
        assert page.evaluate("document.documentElement.scrollWidth") <= 2000
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert problems == []
        browser.close()


def test_who_follows_clips_is_not_evaluated_where_there_are_none() -> None:
    with pytest.raises(ContractError, match=r"told goals \['video'\], of which PushT knows none; .* --config eval/navigation"):
        evaluation_rollout(Wanderer(), dataclasses.replace(config(), env="pusht"))
