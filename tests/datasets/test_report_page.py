"""The page of a store: complete, escaped, and in a real browser without a request, a complaint or sideways scrolling."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.contracts import CameraSpec, Episode, Stream
from kineflow.datasets.doctor import Finding, diagnose
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.report_page import build_page, write_page
from tests.datasets import test_doctor_findings as faults
from tests.datasets.faulty_recordings import INTERFACE, Fault, write_recordings
from tests.datasets.sample_episodes import INTERFACE as SAMPLE, sample_episode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 180_000  # a browser on a busy machine
HOSTILE = "<script>alert(1)</script>&\"'"
PLANTED: dict[int, Fault] = {
    1: faults.dropped,
    2: faults.idle,
    3: faults.clock_jump,
    4: faults.swapped,
    5: faults.duplicates,
    6: faults.outlier,
    7: faults.other_epoch,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = write_recordings(folder / "robot.eps", PLANTED, 10)
    assert main(["data", "doctor", str(store.path), "--html", str(folder / "page.html")]) == 1
    return folder / "page.html"


def test_it_holds_all_kinds_of_findings_and_their_episodes(page: Path) -> None:
    text = page.read_text()
    for title in ("Lost samples", "Standing still", "Clock jumps", "Cameras exchanged", "Repeated frames", "Outliers"):
        assert title in text
    for episode in PLANTED:
        assert f'href="#episode-{episode}"' in text
    links = set(re.findall(r'href="#(episode-\d+)"', text))
    assert links <= set(re.findall(r'id="(episode-\d+)"', text)), "every link has its timeline"
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert not list(page.parent.glob(".page*"))


def test_whatever_comes_from_the_store_is_escaped(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", SAMPLE, HOSTILE, HOSTILE, HOSTILE)
    with store.writer() as writer:
        writer.add(replace(sample_episode(1), instruction=HOSTILE, split=HOSTILE))
    text = build_page(store.path, [Finding("error", HOSTILE, HOSTILE, HOSTILE, "integrity", 0, HOSTILE, 0, ((0.0, 1.0),))])
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 8


def test_stores_without_episodes_cameras_or_motion_and_damaged_ones_have_a_page(tmp_path: Path) -> None:
    empty = EpisodeStore.create(tmp_path / "empty.eps", SAMPLE)
    assert "sound" in build_page(empty.path, diagnose(empty.path))
    still = EpisodeStore.create(tmp_path / "still.eps", replace(INTERFACE, cameras={}))
    stamps = np.array([10**18], np.int64)
    with still.writer() as writer:
        writer.add(Episode({"pose": Stream(np.zeros((1, 3)), stamps), "action": Stream(np.zeros((1, 2)), stamps)}))
    text = build_page(still.path, diagnose(still.path))
    assert "No cameras" in text
    assert "Episodes of one step" in text
    next(p for p in sorted(still.path.rglob("steps/pose/c/**/*")) if p.is_file()).unlink()
    broken = build_page(still.path, diagnose(still.path))
    assert "cannot be read" in broken
    assert "Damage" in broken


def test_depth_and_large_frames_are_pictured(tmp_path: Path) -> None:
    cameras = {"depth": CameraSpec(48, 64, 10.0, "depth"), "wide": CameraSpec(300, 500, 10.0)}
    interface = replace(SAMPLE, cameras=cameras)
    store = EpisodeStore.create(tmp_path / "s.eps", interface)
    with store.writer() as writer:
        writer.add(sample_episode(3, interface, 3))
    write_page(store.path, [], tmp_path / "new" / "p.html")
    text = (tmp_path / "new" / "p.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 6
    assert len(text) < 400_000, "thumbnails, not frames"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Chromium for this test; install it with `apt-get install chromium`")
        pytest.skip("no Chromium; install it with `apt-get install chromium`")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield browser
        browser.close()


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, what it complained about and what it requested."""
    tab = browser.new_context(**options).new_page()
    tab.set_default_timeout(PATIENCE_MS)
    problems: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda r: requests.append(r.url))
    tab.goto(file.as_uri())
    return tab, problems, requests


def test_a_browser_shows_it_without_requests_and_complaints(browser: Any, page: Path) -> None:
    tab, problems, requests = opened(browser, page, viewport={"width": 1100, "height": 900}, reduced_motion="reduce")
    sizes = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])))")
    assert sizes == [[16, 12]] * 24, "first, middle and last frame of four episodes of two cameras"
    assert tab.locator(".camera figure", has_text="episode 4").count() == 2, "the episode with exchanged cameras"
    assert [url for url in requests if not url.startswith(("data:", page.as_uri()))] == []
    bars = tab.evaluate("[...document.querySelectorAll('.bar-line')].map(b => b.getBoundingClientRect().width)")
    assert min(bars) > 700
    assert len(bars) == 3 * tab.locator(".episode").count()
    tab.locator("a[href='#episode-3']").first.click()
    assert 0 <= tab.evaluate("document.querySelector('#episode-3').getBoundingClientRect().top") < 900
    jump = tab.locator("#episode-3 .mark.warning").first
    x, width = float(jump.get_attribute("x")), float(jump.get_attribute("width"))
    assert pytest.approx(x, abs=8) == 1000 * 3.91 / 10.95, "the mark is where the clock jumps"
    assert pytest.approx(width, abs=8) == 1000 * 3.1 / 10.95
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_and_the_button(browser: Any, page: Path, scheme: str) -> None:
    tab, problems, _ = opened(browser, page, color_scheme=scheme)
    colours = ["rgb(247, 247, 248)", "rgb(13, 14, 18)"]
    background = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(background) == colours[scheme == "dark"]
    tab.locator("#theme").click()
    assert tab.evaluate(background) == colours[scheme == "light"]
    assert problems == []


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_shows_it_without_sideways_scrolling(browser: Any, page: Path, width: int) -> None:
    tab, _, _ = opened(browser, page, viewport={"width": width, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    hidden = tab.evaluate("[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1).length")
    assert hidden == 0, "tables of values fit"
