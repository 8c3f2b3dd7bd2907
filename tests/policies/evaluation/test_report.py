"""The page as text: complete, escaped, self-contained; metrics files in every state that a run leaves behind."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from kineflow.contracts import KineflowError
from kineflow.policies.report import Metric, read_metrics

VOID = {"meta", "link", "img", "br", "line", "rect", "circle", "polyline", "polygon", "path", "stop", "input"}


class Page(HTMLParser):
    """Collects tags, addresses and text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.words, self.tags = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "poster", "data", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


@pytest.fixture(scope="module")
def page(evaluated):
    text = evaluated[2].report.read_text(encoding="utf-8")
    page = Page(text)
    page.text = text
    return page


def test_page_is_well_formed_and_filled(page):
    assert page.open == []
    assert "$" not in page.words
    assert not re.search(r"\bNone\b|\bnan\b", page.words)


def test_page_needs_nothing_from_outside(page):
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    style = re.search(r"<style>(.*?)</style>", page.text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page.text


def test_headlines_carry_value_interval_and_counts(page, evaluated):
    result = evaluated[2]
    reward, success = result.mean_max_reward, result.success_rate
    assert f"{reward.value:.3f}" in page.words
    assert f"{reward.low:.3f} – {reward.high:.3f}" in page.words
    assert f"{success.low:.3f} – {success.high:.3f}" in page.words
    assert f"{sum(e.success for e in result.episodes)} of 5 episodes" in page.words


def test_videos_and_pictures_are_inside(page, evaluated):
    embedded = [base64.b64decode(a.split(",")[1]) for a in page.addresses if a.startswith("data:video/mp4;base64,")]
    assert sorted(embedded) == sorted(path.read_bytes() for path in (evaluated[2].out_dir / "videos").iterdir())
    assert len(embedded) == 3
    assert sum(a.startswith("data:image/png;base64,") for a in page.addresses) == 3
    assert page.words.index("best") < page.words.index("median") < page.words.index("worst")


def test_every_episode_has_its_row(page, evaluated):
    rows = re.findall(r'<tr><td data-value="(\d+)">', page.text)
    assert [int(seed) for seed in rows] == [e.seed for e in evaluated[2].episodes]


def test_training_curves_configuration_and_manifest_are_there(page):
    assert "600 steps in 1.0 min" in page.words
    assert page.text.count('class="line second dots"') == 1
    assert "validation loss 0.0025 at step 600" in page.text
    assert "seed_start: 100000" in page.words
    assert "0123456789abcdef" in page.words


def test_what_comes_from_files_and_names_is_escaped(page):
    assert "<script>alert" not in page.text
    assert "<script>alert(1)</script>" in page.words
    assert "first <run> & more" in page.words
    assert page.tags.count("script") == 1


def test_metrics_of_a_resumed_and_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 2.0, "lr": 0.1, "time_s": 1.0}\n'
        '{"step": 20, "loss": 9.0, "lr": 0.1, "time_s": 2.0}\n\n'
        '{"step": 20, "loss": 1.0, "lr": 0.1, "time_s": 2.5}\n'
        '{"step": 20, "validation_loss": 3.0, "time_s": 2.6}\n'
        '{"step": 30, "lo'
    )
    assert read_metrics(path) == (Metric(10, 2.0, None, 0.1, 1.0), Metric(20, 1.0, 3.0, 0.1, 2.6))
    assert read_metrics(tmp_path / "absent.jsonl") == ()


def test_a_broken_metrics_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\nnot json\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(KineflowError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(path)
