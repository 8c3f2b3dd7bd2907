"""The report in a real browser: headless Chromium opens the file, videos play, nothing complains, phones can read it."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 180_000  # a browser on a busy machine

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium; install it with `apt-get install chromium`"
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("CI needs Chromium for this test; install it with `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, evaluated):
    """Opens the report in a fresh page; console errors, exceptions and requests are collected on it."""
    contexts = []

    def open_page(**options):
        contexts.append(context := browser.new_context(**options))
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.problems, page.requests = [], []
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda r: page.requests.append(r.url))
        page.goto(evaluated[2].report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_videos_play_and_nothing_complains(open_report, evaluated):
    page = open_report()
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.readyState >= 2)")
    durations = page.evaluate("[...document.querySelectorAll('video')].map((v) => v.duration)")
    assert durations == pytest.approx([15.05] * 3, abs=0.1), "301 frames at 20 per second"
    videos = "[...document.querySelectorAll('video')]"
    before = page.evaluate(f"{videos}.map((v) => (v.play(), v.currentTime))")
    page.wait_for_function(f"(before) => {videos}.every((v, i) => v.currentTime > before[i] + 0.2)", arg=before)
    page.wait_for_function("Number(document.querySelector('.head').getAttribute('x1')) > 2")
    assert page.problems == []
    outside = [url for url in page.requests if not url.startswith(("data:", evaluated[2].report.as_uri()))]
    assert outside == []


def test_table_sorts_and_charts_answer_the_pointer(open_report):
    page = open_report()
    reward = page.locator(".episodes th", has_text="Max reward")
    column = "[...document.querySelectorAll('.episodes tbody tr')].map((r) => Number(r.cells[2].dataset.value))"
    reward.click()
    ascending = page.evaluate(column)
    reward.click()
    assert ascending == sorted(ascending)
    assert page.evaluate(column) == sorted(ascending, reverse=True)
    assert reward.get_attribute("aria-sort") == "descending"
    page.locator("svg.chart").first.scroll_into_view_if_needed()
    page.locator("svg.chart").first.hover()
    assert "loss" in page.locator("#tip").text_content()
    assert page.problems == []


def test_theme_follows_the_system_and_the_button(open_report):
    page = open_report(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(13, 14, 18)"
    page.locator("#theme").click()
    assert page.evaluate(colour) == "rgb(247, 247, 248)"
    assert page.locator("#theme").text_content() == "Dark"


def test_a_phone_shows_it_without_sideways_scrolling(open_report):
    page = open_report(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = page.evaluate("[...document.querySelectorAll('svg.chart .tick')].map((t) => t.getBoundingClientRect().height)")
    assert min(sizes) > 9, "axis labels stay readable"


def test_reduced_motion_is_respected(open_report):
    page = open_report(reduced_motion="reduce")
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.readyState >= 2)")
    assert page.evaluate("[...document.querySelectorAll('video')].every((v) => v.paused)")
