"""Charts put values where they belong: positions are read back from the SVG."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings, strategies as st

from kineflow.policies.charts import (
    Axis,
    Series,
    histogram,
    interval_bar,
    line_chart,
    log_ticks,
    nice_ticks,
    number,
    smooth,
    sparkline,
    thin,
)


def polylines(svg: str) -> dict[str, list[tuple[float, float]]]:
    lines = {}
    for element in ElementTree.fromstring(svg).iter("polyline"):
        pairs = [point.split(",") for point in element.get("points").split()]
        lines[element.get("class")] = [(float(a), float(b)) for a, b in pairs]
    return lines


def test_linear_chart_is_an_affine_map_of_its_points():
    line = polylines(line_chart([Series([(0, 0.0), (5, 1.0), (10, 2.0)], "accent")], "step", "loss"))["line accent"]
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2, "larger values are drawn higher"
    assert x2 - x0 > 300


def test_log_chart_spaces_decades_equally_and_skips_what_has_no_logarithm():
    points = [(0, 1.0), (1, 0.0), (2, 0.1), (3, -1.0), (4, 0.01)]
    line = polylines(line_chart([Series(points, "accent")], "step", "loss", log_y=True))["line accent"]
    assert len(line) == 3
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)


def test_hover_points_lie_on_the_line():
    svg = line_chart([Series([(0, 1.0), (4, 3.0)], "accent", "loss")], "step", "loss")
    hover = json.loads(ElementTree.fromstring(svg).get("data-hover"))
    assert [(x, y) for x, y, _ in hover] == polylines(svg)["line accent"]
    assert hover[1][2] == "loss 3 at step 4"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_histogram_counts_every_value_once(values):
    hover = json.loads(ElementTree.fromstring(histogram(values, "coverage", 0.95, "success")).get("data-hover"))
    counts = [int(text.split()[0]) for _, _, text in hover]
    assert sum(counts) == len(values)
    assert counts[19] == sum(v >= 0.95 for v in values)


def test_histogram_bars_have_heights_in_proportion_and_mark_success():
    svg = ElementTree.fromstring(histogram([0.52, 0.97, 0.98, 1.0], "coverage", 0.95, "success"))
    bars = {bar.get("class"): float(bar.get("height")) for bar in svg.iter("rect")}
    assert bars["bar good"] == pytest.approx(3 * bars["bar"], abs=0.3)


def test_empty_charts_say_so():
    assert "no data" in line_chart([Series([], "accent")], "step", "loss")
    assert "no data" in line_chart([Series([(0, -1.0)], "accent")], "step", "loss", log_y=True)


def test_labels_are_escaped():
    svg = line_chart([Series([(0, 1.0), (1, 2.0)], "accent", '<b>"&')], "<step>", "<loss>")
    assert "<b>" not in svg
    assert "<step>" not in svg
    assert '<b>"&' in html.unescape(ElementTree.fromstring(svg).get("data-hover")).replace('\\"', '"')


def test_sparkline_spans_its_width():
    line = polylines(sparkline([0.0, 0.5, 1.0], 0.95))["line accent"]
    assert [x for x, _ in line] == [0.0, 224.0, 448.0]
    assert line[0][1] == 55.0
    assert line[2][1] == 4.0


def test_interval_bar_draws_low_value_and_high():
    svg = interval_bar(0.5, 0.25, 1.0)
    band = re.search(r'class="band" x="([\d.]+)" y="3" width="([\d.]+)"', svg)
    assert float(band[1]) == 52.0
    assert float(band[1]) + float(band[2]) == 196.0
    assert 'cx="100.0"' in svg


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_few_and_inside(low, span, count):
    ticks = nice_ticks(low, low + span, count)
    assert len(ticks) <= count + 2
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in ticks)


def test_ticks_by_example():
    assert nice_ticks(0, 4000, 5) == [0, 1000, 2000, 3000, 4000]
    assert nice_ticks(0, 0.00031, 4) == pytest.approx([0, 1e-4, 2e-4, 3e-4])
    assert nice_ticks(2, 2, 4) == [2]
    assert log_ticks(0.04, 1.2) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1.0])
    assert log_ticks(1e-5, 1.0) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])


def test_thinning_and_smoothing_keep_levels():
    flat = [(float(i), 2.0) for i in range(1001)]
    assert len(thin(flat)) <= 400
    assert {y for _, y in thin(flat)} == {2.0}
    assert thin(flat[:10]) == flat[:10]
    ramp = [(float(i), float(i)) for i in range(100)]
    assert [y for _, y in smooth(ramp)] == pytest.approx([y for _, y in ramp]), "a centred mean does not shift a straight line"
    noisy = [(float(i), 1.0 + (-1) ** i) for i in range(1000)]
    assert all(0.9 < y < 1.1 for _, y in smooth(noisy)[20:-20])
    assert smooth([]) == []


@pytest.mark.parametrize(
    ("value", "text"), [(4000.0, "4,000"), (0.0, "0"), (0.12345, "0.123"), (3e-4, "3e-4"), (1234.5, "1,234"), (61.66, "61.7")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_axis_maps_ends_to_ends():
    assert Axis(2.0, 4.0, 100.0, 0.0).at(3.0) == 50.0
    assert Axis(0.1, 10.0, 0.0, 100.0, log=True).at(1.0) == pytest.approx(50.0)
