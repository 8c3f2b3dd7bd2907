"""The page of a weight search: what was gained, against what, and the sweep that chose the weights. One file, no requests."""

from __future__ import annotations

import datetime
import html
from pathlib import Path
from string import Template

import yaml

from kineflow.config import to_plain_config
from kineflow.policies.charts import Series, interval_bar, line_chart
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.search import Arm, SearchResult
from kineflow.policies.intervals import Estimate

_TEMPLATE = Path(__file__).parent.parent / "report_template.html"  # the same head, style and script


def build_search_report(result: SearchResult, composition: Composition) -> str:
    """The page as HTML text."""
    page = _TEMPLATE.read_text(encoding="utf-8")
    head, tail = page[: page.index("<main>")], page[page.index('<div id="tip"') :]
    names = " + ".join(result.names)
    weights = ", ".join(f"{w:g}" for w in result.chosen.weights)
    report, config = result.report[0], result.config
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")[:16].replace("T", " ")
    facts = {
        "weights": weights,
        "operator": composition.operator,
        "sampler": f"{composition.solver} × {composition.steps}",
        "search seeds": f"{config.search_seeds.start} to {config.search_seeds.stop - 1}",
        "report seeds": f"{config.evaluation.seeds.start} to {config.evaluation.seeds.stop - 1}",
    }
    chips = "".join(f"<li><span>{html.escape(k)}</span>{html.escape(v)}</li>" for k, v in facts.items())
    filled = Template(head.replace("$task evaluation", "Composition of policies")).substitute(
        title=html.escape(f"{names} · Kineflow composition"),
        name=html.escape(names),
        subtitle=f"{len(report.episodes)} unseen starts that the search never saw · {created} UTC",
        chips=chips,
    )
    return (
        f'{filled}<main><div class="grid four">{_headlines(result)}</div>{_section_arms(result)}{_section_sweep(result)}'
        f"{_section_findings(result)}{_section_again(result, composition)}"
        "<footer>Intervals are 95 %: Wilson's score interval for rates, percentile bootstrap over episodes for means; "
        "differences are paired by start. Made by Kineflow; this page loads nothing from the network.</footer></main>"
        f"{tail}"
    )


def _headlines(result: SearchResult) -> str:
    composed, best = result.report[0], result.report[1 + result.best_parent]
    gain = result.gain
    verdict = "above zero" if gain.low > 0 else ("below zero" if gain.high < 0 else "includes zero")
    return (
        _card("Composed, mean max reward", f"{composed.reward.value:.3f}", composed.reward, "coverage / 0.95, at most 1")
        + _card(
            "Better parent, mean max reward", f"{best.reward.value:.3f}", best.reward, f"{best.name}, as the search seeds say"
        )
        + f'<div class="card score"><h3>Gain over the better parent</h3><p class="big">{gain.value:+.3f}</p>'
        f'<p class="range">95 % interval <b>{gain.low:+.3f} to {gain.high:+.3f}</b>: {verdict}</p>'
        f'<p class="hint">{gain.n} starts, paired</p></div>'
        + _card("Composed, success", f"{100 * composed.success.value:.1f} %", composed.success, "episodes above 95 % coverage")
    )


def _card(title: str, value: str, score: Estimate, hint: str) -> str:
    return (
        f'<div class="card score"><h3>{title}</h3><p class="big">{value}</p>{interval_bar(score.value, score.low, score.high)}'
        f'<p class="range">95 % interval <b>{score.low:.3f} – {score.high:.3f}</b></p>'
        f'<p class="hint">{html.escape(hint)}</p></div>'
    )


def _section_arms(result: SearchResult) -> str:
    composed = result.report[0]
    rows = "".join(_row(arm, None if arm is composed else composed.minus(arm)) for arm in result.report)
    mixture = "the best mixture, because one parent alone was chosen" if max(result.chosen.weights) == 1 else "the composition"
    head = "<tr><th>policy</th><th>mean max reward</th><th>success</th><th>best coverage</th><th>composed minus this</th></tr>"
    return (
        "<section><h2>On report seeds</h2><p class='lead'>Every row played the same starts, once. Baselines use the weights "
        f"of {mixture}: finished chunks averaged, or one parent drawn for each chunk.</p>"
        f'<div class="card scroll"><table class="plain"><thead>{head}</thead><tbody>{rows}</tbody></table></div></section>'
    )


def _row(arm: Arm, difference: Estimate | None) -> str:
    weights = ", ".join(f"{w:g}" for w in arm.weights) if arm.name.startswith(("composed", "best mixture")) else ""
    gap = "" if difference is None else f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    cells = [_interval(arm.reward), _interval(arm.success), _interval(arm.coverage), gap]
    name = html.escape(f"{arm.name} ({weights})" if weights else arm.name)
    return f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _interval(score: Estimate) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _section_sweep(result: SearchResult) -> str:
    chart = _sweep_chart(result) if len(result.names) == 2 else ""
    rows = "".join(
        f"<tr><th scope='row'>{', '.join(f'{w:g}' for w in arm.weights)}</th><td>{_interval(arm.reward)}</td>"
        f"<td>{_interval(arm.success)}</td></tr>"
        for arm in result.sweep
    )
    names = html.escape(" and ".join(result.names))
    head = f"<tr><th>weights of {names}</th><th>mean max reward</th><th>success</th></tr>"
    return (
        f"<section><h2>The sweep over weights</h2><p class='lead'>{len(result.sweep[0].episodes)} search starts for each weight. "
        "The best of several looks better here than it is; the page's numbers above come from other starts.</p>"
        f'<div class="grid two"><div class="card"><h3>Mean max reward over the weight of {html.escape(result.names[0])}</h3>'
        '<p class="legend"><i class="accent"></i>reward with its interval<i class="second"></i>success rate</p>'
        f'{chart}</div><div class="card scroll"><table class="plain"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        "</div></section>"
    )


def _sweep_chart(result: SearchResult) -> str:
    arms = sorted(result.sweep, key=lambda arm: arm.weights[0])
    bars = [Series([(a.weights[0], a.reward.low), (a.weights[0], a.reward.high)], "raw solid") for a in arms]
    reward = Series([(a.weights[0], a.reward.value) for a in arms], "accent", "reward")
    success = Series([(a.weights[0], a.success.value) for a in arms], "second", "success")
    return line_chart([*bars, success, reward], f"weight of {result.names[0]}", "mean max reward")


def _section_findings(result: SearchResult) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(one.claim)}</th><td>{html.escape(one.applies_when)}</td>"
        f"<td>{html.escape(one.seen)}</td><td>{one.verdict}</td></tr>"
        for one in result.gpc
    )
    return (
        "<section><h2>Three findings, held against this search</h2><p class='lead'>What General Policy Composition reports of "
        "pairs of policies. Parents are rated on search starts, which is the better one too; the gain is of report starts. An "
        "interval that holds zero decides nothing.</p>"
        f'<div class="card scroll"><table class="plain">'
        "<thead><tr><th>finding</th><th>about searches where</th><th>seen here</th><th>this search</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _section_again(result: SearchResult, composition: Composition) -> str:
    text = yaml.safe_dump(to_plain_config(composition), sort_keys=False)
    config = yaml.safe_dump(to_plain_config(result.config), sort_keys=False)
    return (
        "<section><h2>Run it again</h2><p class='lead'>Same seeds, same noise: the same numbers on the same machine.</p>"
        f"<details><summary>Composition</summary><pre>{html.escape(text)}</pre></details>"
        f"<details><summary>Search configuration</summary><pre>{html.escape(config)}</pre></details></section>"
    )
